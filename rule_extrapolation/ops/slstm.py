"""The sLSTM cell of xLSTM (Beck et al. 2024, arXiv 2405.04517, section 2.2) over a sequence.

The gates before their activation are (i, f, z, o)_t = x_t + R h_{t-1}, where R does not mix heads. With the stabilizer
m,

    m_t = max(i_t, m_{t-1} + log sigmoid(f_t))
    I_t = exp(i_t - m_t)
    F_t = exp(m_{t-1} + log sigmoid(f_t) - m_t)
    c_t = F_t c_{t-1} + I_t tanh(z_t)
    n_t = F_t n_{t-1} + I_t
    h_t = sigmoid(o_t) c_t / n_t
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def slstm(x: Tensor, state: Tensor, recurrent: Tensor) -> Tensor:
    """The states of all steps. Differentiable once, with a backward pass written by hand.

    Args:
        x: (T, B, 4 * NH * DH) contribution of the input and the bias to i, f, z and o, for NH heads of width DH.
        state: (4, B, NH * DH) h, c, n and m before the first step. If n is all 0, the state is empty, and m_1 = i_1.
        recurrent: (NH, 4 * DH, DH) the blocks of R.

    Returns:
        (4, T + 1, B, NH * DH) h, c, n and m, before the first step and after each.
    """
    time, batch, _ = x.shape
    heads, _, width = recurrent.shape
    # Heads first: they are the batch of the recurrent product.
    x = x.view(time, batch, 4, heads, width).permute(0, 3, 1, 2, 4).reshape(time, heads, batch, 4 * width)
    state = state.view(4, batch, heads, width).transpose(1, 2)
    states = SLSTM.apply(x, state, recurrent.mT)
    return states.transpose(2, 3).reshape(4, time + 1, batch, heads * width)


class SLSTM(torch.autograd.Function):
    """From (T, NH, B, 4 * DH), (4, NH, B, DH) and (NH, DH, 4 * DH) to (4, T + 1, NH, B, DH)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, state: Tensor, recurrent: Tensor) -> Tensor:
        time = len(x)
        states = state.new_empty(4, time + 1, *state.shape[1:])
        states[:, 0] = state
        gates = torch.empty_like(x)  # I, sigmoid(f), tanh(z) and sigmoid(o)
        forget = torch.empty_like(states[0, 1:])
        h, c, n, m = states
        fresh = bool((n[0] == 0).all())
        for t, gate in enumerate(gates):
            torch.baddbmm(x[t], h[t], recurrent, out=gate)
            i, f, z, o = gate.chunk(4, 2)
            decayed = F.logsigmoid(f).add_(m[t])
            torch.maximum(i, i if fresh and t == 0 else decayed, out=m[t + 1])
            torch.sub(decayed, m[t + 1], out=forget[t]).clamp_(max=0).exp_()
            i.sub_(m[t + 1]).exp_()
            f.sigmoid_()
            z.tanh_()
            o.sigmoid_()
            torch.mul(forget[t], c[t], out=c[t + 1]).addcmul_(i, z)
            torch.mul(forget[t], n[t], out=n[t + 1]).add_(i)
            torch.div(c[t + 1], n[t + 1], out=h[t + 1]).mul_(o)
        ctx.save_for_backward(states, gates, forget, recurrent)
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        states, gates, forget, recurrent = ctx.saved_tensors
        (h, c, n, _), (i, f, z, o) = states, gates.chunk(4, 3)
        # What does not depend on the gradients of later steps is computed for all steps at once.
        o_by_n = o / n[1:]
        h_by_n = h[1:] / n[1:]
        h_by_raw_o = h[1:] * (1 - o)
        c_by_raw_z = i * (1 - z * z)
        decay_by_raw_f = 1 - f
        takes_i = i == 1  # where m_t = i_t
        d_gates = torch.empty_like(gates)
        dh, dc, dn, dm = (grad.clone() for grad in d_states[:, -1])
        for t in reversed(range(len(gates))):
            d_i, d_f, d_z, d_o = d_gates[t].chunk(4, 2)
            torch.mul(dh, h_by_raw_o[t], out=d_o)
            dc.addcmul_(dh, o_by_n[t])
            dn.addcmul_(dh, h_by_n[t], value=-1)
            torch.mul(dc, c_by_raw_z[t], out=d_z)
            torch.mul(dc, z[t], out=d_i).add_(dn).mul_(i[t])
            d_decayed = torch.mul(dc, c[t]).addcmul_(dn, n[t]).mul_(forget[t])
            dm.sub_(d_i).sub_(d_decayed)
            to_i = dm * takes_i[t]
            d_i.add_(to_i)
            d_decayed.add_(dm).sub_(to_i)
            torch.mul(d_decayed, decay_by_raw_f[t], out=d_f)
            dh = torch.baddbmm(d_states[0, t], d_gates[t], recurrent.mT)
            dc = dc.mul_(forget[t]).add_(d_states[1, t])
            dn = dn.mul_(forget[t]).add_(d_states[2, t])
            dm = d_decayed.add_(d_states[3, t])
        d_recurrent = (h[:-1].mT @ d_gates).sum(0)
        return d_gates, torch.stack([dh, dc, dn, dm]), d_recurrent
