"""Tests of the interface, which every model must pass at every size, and of each architecture."""

import copy

import pytest
import torch
from omegaconf import OmegaConf
from sizes import MODELS, NUM_TOKENS, make
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from rule_extrapolation.config.composing import CONF_DIR
from rule_extrapolation.core.errors import ConfigError
from rule_extrapolation.core.tokens import PAD, SOS
from rule_extrapolation.models.gru import GRU
from rule_extrapolation.models.linear import LinearLLM
from rule_extrapolation.models.lstm import LSTM_LLM
from rule_extrapolation.models.mamba import MambaLM
from rule_extrapolation.models.mingru import MinGRU
from rule_extrapolation.models.minlstm import MinLSTM
from rule_extrapolation.models.rnn import RNN
from rule_extrapolation.models.stack_rnn import StackRNN
from rule_extrapolation.models.transformer import TransformerDecoder

LENGTH = 17
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(params=MODELS)
def name(request):
    return request.param


@pytest.fixture
def model(name):
    torch.manual_seed(0)
    return make(name).eval()


@pytest.fixture
def tokens():
    return torch.randint(0, NUM_TOKENS, (3, LENGTH), generator=torch.Generator().manual_seed(1))


def stepped(model, tokens):
    """(B, num_tokens, T) logits, token by token."""
    state, logits = model.init_state(len(tokens)), []
    for token in tokens.unbind(1):
        step_logits, state = model.step(token, state)
        logits.append(step_logits)
    return torch.stack(logits, 2)


def comparable_prompt(model, length):
    """The length of a prompt for which ``prefill`` agrees with ``forward``, at most ``length``."""
    return 1 if model.conditional else length


def needs_weights(model):
    if not model.num_parameters:
        pytest.skip("the model has no weights")


def tensors(state):
    return [leaf for leaf in tree_leaves(state) if isinstance(leaf, torch.Tensor)]


class TestContract:
    @torch.no_grad()
    def test_a_state_has_independent_continuations(self, model, tokens):
        """In alternation, which fails if the states share memory that is written to."""
        other = (tokens + 1) % NUM_TOKENS
        other[:, :5] = tokens[:, :5]
        read = comparable_prompt(model, 5)
        _, start = model.prefill(tokens[:, :read])
        states = [start, start]
        for t in range(read, 9):
            for i, row in enumerate((tokens, other)):
                logits, states[i] = model.step(row[:, t], states[i])
                torch.testing.assert_close(logits, model(row)[:, :, t], **CLOSE)

    def test_logits_have_the_layout_of_cross_entropy(self, model, tokens):
        logits = model(tokens)
        assert logits.shape == (3, NUM_TOKENS, LENGTH)
        assert nn.CrossEntropyLoss()(logits, tokens).isfinite()

    def test_causal(self, model, tokens):
        """No logit depends on a later token, and the last one depends on the last token."""
        logits = model(tokens)
        for start in (1, LENGTH // 2, LENGTH - 1):
            changed = tokens.clone()
            changed[:, start:] = (changed[:, start:] + 1) % NUM_TOKENS
            torch.testing.assert_close(model(changed)[:, :, :start], logits[:, :, :start], **CLOSE)
            assert not torch.equal(model(changed)[:, :, start:], logits[:, :, start:])

    def test_step_equals_forward(self, model, tokens):
        torch.testing.assert_close(stepped(model, tokens), model(tokens), **CLOSE)

    @pytest.mark.parametrize("length", [1, 2, LENGTH - 1])
    def test_prefill_then_step_equals_forward(self, model, tokens, length):
        length = comparable_prompt(model, length)
        logits, state = model.prefill(tokens[:, :length])
        expected = model(tokens)
        torch.testing.assert_close(logits, expected[:, :, length - 1], **CLOSE)
        logits, _ = model.step(tokens[:, length], state)
        torch.testing.assert_close(logits, expected[:, :, length], **CLOSE)

    @pytest.mark.parametrize("length", [1, 6])
    def test_prefill_then_steps_equal_continuation(self, model, tokens, length):
        logits, state = model.prefill(tokens[:, :length])
        stepped = [logits]
        for token in tokens[:, length:-1].unbind(1):
            logits, state = model.step(token, state)
            stepped.append(logits)
        expected = model.continuation_logits(tokens[:, :length], tokens[:, length:])
        torch.testing.assert_close(torch.stack(stepped, 2), expected, **CLOSE)

    @torch.no_grad()
    def test_continuation_equals_forward_unless_the_model_is_conditional(self, model, tokens):
        expected = model(tokens[:, :-1])[:, :, 5:]
        assert (
            torch.allclose(model.continuation_logits(tokens[:, :6], tokens[:, 6:]), expected, **CLOSE)
            != model.conditional
        )

    def test_advance_continues_from_any_state(self, model, tokens):
        state, pieces = model.init_state(3), []
        for piece in tokens.split([4, 1, 7, LENGTH - 12], 1):
            logits, state = model.advance(piece, state)
            pieces.append(logits)
        torch.testing.assert_close(torch.cat(pieces, 1).mT, model(tokens), **CLOSE)

    def test_step_does_not_change_its_state_in_place(self, model, tokens):
        _, state = model.prefill(tokens[:, :5])
        before = [tensor.clone() for tensor in tensors(state)]
        first, _ = model.step(tokens[:, 5], state)
        again, _ = model.step(tokens[:, 5], state)
        assert torch.equal(first, again)
        assert before
        assert all(torch.equal(now, then) for now, then in zip(tensors(state), before))

    @pytest.mark.parametrize("length", [1, 2, 3])
    def test_any_length(self, model, tokens, length):
        torch.testing.assert_close(model(tokens[:, :length]), model(tokens)[:, :, :length], **CLOSE)

    def test_rows_do_not_depend_on_each_other(self, model, tokens):
        torch.testing.assert_close(model(tokens[1:2]), model(tokens)[1:2], **CLOSE)

    def test_every_parameter_gets_a_gradient(self, model, tokens):
        needs_weights(model)
        logits = model.continuation_logits(tokens[:, :6], tokens[:, 6:]) if model.conditional else model(tokens)
        nn.CrossEntropyLoss()(logits, tokens.roll(-1, 1)[:, -logits.shape[2] :]).backward()
        missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        assert not missing

    def test_state_dict_round_trip(self, model, tokens, tmp_path):
        needs_weights(model)
        torch.save(model.state_dict(), tmp_path / "weights.pt")
        torch.manual_seed(1)
        other = copy.deepcopy(model)
        for parameter in other.parameters():
            nn.init.normal_(parameter)
        assert not torch.equal(other(tokens), model(tokens))
        other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
        assert torch.equal(other(tokens), model(tokens))

    def test_longer_than_the_context_is_refused(self, model):
        if model.max_context is None:
            model(torch.zeros(1, 300, dtype=torch.long))
            return
        assert model(torch.zeros(1, model.max_context, dtype=torch.long)).shape[2] == model.max_context
        with pytest.raises(ValueError, match=f"at most {model.max_context} tokens, not {model.max_context + 1}"):
            model(torch.zeros(1, model.max_context + 1, dtype=torch.long))
        _, state = model.prefill(torch.zeros(1, model.max_context, dtype=torch.long))
        with pytest.raises(ValueError, match="at most"):
            model.step(torch.zeros(1, dtype=torch.long), state)

    def test_trains_and_is_deterministic(self, name, tokens):
        needs_weights(make(name))
        losses = []
        for _ in range(2):
            torch.manual_seed(2)
            model = make(name).train()
            optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
            for _ in range(12):
                loss = nn.functional.cross_entropy(model(tokens[:, :-1]), tokens[:, 1:])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
        assert losses[:12] == losses[12:]
        assert sum(losses[8:12]) < sum(losses[:4])  # means, since dropout makes single losses uneven


def test_every_configured_model_is_tested():
    chosen = {OmegaConf.load(path)._target_ for path in (CONF_DIR / "model").glob("*.yaml")}
    assert chosen == {f"{model.__module__}.{model.__name__}" for model, _ in MODELS.values()}


@pytest.mark.parametrize(
    ("name", "count"),
    {
        "transformer-l5": 498_951,
        "linear-l5": 976_871,
        "mamba-l5": 315_456,
        "xlstm-l5": 766_640,
        "rnn-l5": 742_599,
        "gru-l5": 2_223_303,
    }.items(),
)
def test_parameter_counts_of_the_l5_defaults(name, count):
    assert make(name).num_parameters == count


def test_parameter_count_of_the_linear_model_with_five_tokens():
    assert round(LinearLLM(num_tokens=5).num_parameters, -3) == 698_000


class TestTransformer:
    @pytest.mark.parametrize("norm_first", [True, False])
    @pytest.mark.parametrize("relu_rescale", [1.0, 0.3])
    @pytest.mark.parametrize("positions", ["sinusoidal", "none", "by_row"])
    @pytest.mark.parametrize("mask_pad", [False, True])
    def test_equals_nn_transformer_encoder_with_a_causal_mask(
        self, tokens, norm_first, relu_rescale, positions, mask_pad
    ):
        """The reference takes the published quirks as the published code does: relu(s x) / s, positions added to a
        batch-first tensor along its first axis, and a key padding mask."""
        options = {"norm_first": norm_first, "relu_rescale": relu_rescale, "positions": positions, "mask_pad": mask_pad}
        model = TransformerDecoder(NUM_TOKENS, 12, 3, 3, 20, **options).eval()
        layer = nn.TransformerEncoderLayer(
            12, 3, 20, 0.1, lambda x: (relu_rescale * x).relu() / relu_rescale, 2e-4, True, norm_first
        )
        encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False).eval()
        encoder.layers.load_state_dict(model.layers.state_dict())
        position = torch.arange(LENGTH)[:, None] / 10_000 ** (torch.arange(0, 12, 2) / 12)
        encodings = torch.stack([position.sin(), position.cos()], 2).flatten(1)
        added = {"sinusoidal": encodings, "none": 0 * encodings, "by_row": encodings[: len(tokens), None]}[positions]
        tokens[:, 0] = SOS
        x = model.embedding(tokens) * 12**0.5 + added
        mask = nn.Transformer.generate_square_subsequent_mask(LENGTH)
        pad = (tokens == PAD).float().masked_fill(tokens == PAD, -torch.inf) if mask_pad else None
        assert (tokens == PAD).any()
        expected = model.head(encoder(x, mask=mask, src_key_padding_mask=pad, is_causal=True)).mT
        torch.testing.assert_close(model(tokens), expected, rtol=1e-5, atol=1e-5)

    def test_masked_pad_is_not_attended_to_in_training_either(self, tokens):
        """Training takes another path on a CPU, with dropout; here its probability is next to nothing."""
        tokens[:, 0] = SOS
        model = TransformerDecoder(NUM_TOKENS, 12, 2, 3, 20, dropout_p=1e-9, mask_pad=True)
        torch.testing.assert_close(model.train()(tokens), model.eval()(tokens), **CLOSE)
        unmasked = TransformerDecoder(NUM_TOKENS, 12, 2, 3, 20)
        unmasked.load_state_dict(model.state_dict())
        assert not torch.allclose(unmasked.eval()(tokens), model(tokens), atol=1e-3)

    @torch.no_grad()
    def test_positions_by_row_depend_on_the_row_and_not_on_the_time(self, tokens):
        model = TransformerDecoder(NUM_TOKENS, positions="by_row").eval()
        same = tokens[:1].expand(3, -1)
        alone, first, second = model(same[:1])[0], *model(same)[:2]
        torch.testing.assert_close(alone, first, **CLOSE)
        assert not torch.allclose(first, second, atol=1e-2)
        # With a single layer, the last logits do not change with the order of the tokens before.
        single = TransformerDecoder(NUM_TOKENS, 8, 1, 2, 8, positions="by_row").eval()
        shuffled = torch.cat([tokens[:, :-1].flip(1), tokens[:, -1:]], 1)
        torch.testing.assert_close(single(shuffled)[:, :, -1], single(tokens)[:, :, -1], **CLOSE)
        assert not model.rows_are_independent
        with pytest.raises(ValueError, match="encodings for 2 rows, not 3"):
            TransformerDecoder(NUM_TOKENS, positions="by_row", max_len=2)(tokens)

    @torch.no_grad()
    def test_steps_with_positions_by_row_equal_forward(self, tokens):
        model = TransformerDecoder(NUM_TOKENS, positions="by_row").eval()
        torch.testing.assert_close(stepped(model, tokens), model(tokens), **CLOSE)

    def test_relu_rescale_changes_neither_values_nor_gradients(self, tokens):
        gradients = []
        for relu_rescale in (1.0, 64.0):
            torch.manual_seed(0)
            model = TransformerDecoder(NUM_TOKENS, relu_rescale=relu_rescale).eval()
            loss = nn.functional.cross_entropy(model(tokens[:, :-1]), tokens[:, 1:])
            loss.backward()
            gradients.append([loss.detach(), *(parameter.grad for parameter in model.parameters())])
        for one, other in zip(*gradients):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)

    def test_copy_first_layer(self):
        first, *others = TransformerDecoder(NUM_TOKENS, copy_first_layer=True).layers
        for layer in others:
            for one, other in zip(first.parameters(), layer.parameters()):
                assert torch.equal(one, other)
                assert one is not other

    @pytest.mark.parametrize(
        ("options", "caveat"),
        [
            ({}, None),
            ({"positions": "none"}, None),
            (
                {"positions": "by_row", "mask_pad": True, "copy_first_layer": True},
                "positions by batch row, PAD masked, layers start equal",
            ),
        ],
    )
    def test_quirks_are_named_in_tables(self, options, caveat):
        assert TransformerDecoder(NUM_TOKENS, **options).caveat == caveat

    @torch.no_grad()
    def test_the_rows_of_a_cache_can_be_reordered(self, tokens):
        """As in a beam search."""
        model, order = TransformerDecoder(NUM_TOKENS).eval(), torch.tensor([2, 0, 0])
        _, state = model.prefill(tokens[:, :5])
        _, state = model.step(tokens[:, 5], state)
        state = tree_map(lambda tensor: None if tensor is None else tensor[order], state)
        logits, _ = model.step(tokens[order, 6], state)
        torch.testing.assert_close(logits, model(tokens[order, :7])[:, :, -1], **CLOSE)

    def test_a_cache_from_inference_mode_can_be_continued_outside(self, tokens):
        model = TransformerDecoder(NUM_TOKENS).eval()
        with torch.inference_mode():
            _, state = model.prefill(tokens[:, :5])
            _, state = model.step(tokens[:, 5], state)
        with torch.no_grad():
            logits, _ = model.step(tokens[:, 6], state)
            torch.testing.assert_close(logits, model(tokens[:, :7])[:, :, -1], **CLOSE)

    def test_relu_rescale_is_fixed_and_saved(self):
        model = TransformerDecoder(NUM_TOKENS, relu_rescale=0.5)
        assert model.state_dict()["relu_rescale"].item() == 0.5
        assert model.num_parameters == 498_951

    def test_layers_begin_with_different_weights(self):
        first, second, *_ = TransformerDecoder(NUM_TOKENS).layers
        assert not torch.equal(first.linear1.weight, second.linear1.weight)

    def test_num_heads_must_divide_dim_model(self):
        with pytest.raises(ConfigError, match=r"num_heads=3: must divide dim_model=10: 1, 2, 5, 10"):
            TransformerDecoder(NUM_TOKENS, dim_model=10, num_heads=3)


def block(model, layer, x):
    """A pre-norm layer by the papers' equations, in plain loops: (T, dim_model) of one row -> the same, and the
    (heads, T, T) weights."""
    length, dim = x.shape
    size, kv = dim // model.num_heads, model.num_key_value_heads
    attn = layer.self_attn

    def normed(norm, x):
        if isinstance(norm, nn.RMSNorm):
            return x / (x.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight
        x = x - x.mean(-1, keepdim=True)
        return x / (x.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias

    def turned(vector, position):
        """Multiplied, as a complex number for each pair of columns, by exp(i position theta)."""
        if model.position_encoding != "rope":
            return vector
        theta = 10000.0 ** (-2 * torch.arange(size // 2, dtype=vector.dtype) / size)
        rotated = torch.view_as_complex(vector.reshape(-1, 2)) * torch.polar(torch.ones_like(theta), position * theta)
        return torch.view_as_real(rotated).flatten()

    def attended(x):
        q, k, v = (x @ attn.in_proj_weight.T + attn.in_proj_bias).split([dim, kv * size, kv * size], 1)
        out, maps = torch.zeros_like(q), torch.zeros(model.num_heads, length, length, dtype=x.dtype)
        for h in range(model.num_heads):
            mine, theirs = slice(h * size, (h + 1) * size), h // (model.num_heads // kv)
            shared = slice(theirs * size, (theirs + 1) * size)
            for i in range(length):
                scores = (
                    torch.stack([turned(q[i, mine], i) @ turned(k[j, shared], j) for j in range(i + 1)]) / size**0.5
                )
                if model.position_encoding == "alibi":
                    scores = scores - 2 ** (-8 * (h + 1) / model.num_heads) * (i - torch.arange(i + 1))
                maps[h, i, : i + 1] = weights = scores.softmax(0)
                out[i, mine] = weights @ v[: i + 1, shared]
        return out @ attn.out_proj.weight.T + attn.out_proj.bias, maps

    def feed_forward(x):
        inner = x @ layer.linear1.weight.T + layer.linear1.bias
        if model.activation == "swiglu":
            inner = inner * inner.sigmoid() * (x @ layer.gate.weight.T + layer.gate.bias)
        elif model.activation == "gelu":
            inner = inner * (1 + torch.erf(inner / 2**0.5)) / 2
        else:
            inner = inner.clamp_min(0)
        return inner @ layer.linear2.weight.T + layer.linear2.bias

    out, maps = attended(normed(layer.norm1, x))
    x = x + out
    return x + feed_forward(normed(layer.norm2, x)), maps


@pytest.mark.parametrize("positions", ["learned", "rope", "alibi", "none"])
@pytest.mark.parametrize(
    ("norm", "activation", "kv_heads"), [("layer", "relu", None), ("rms", "swiglu", 1), ("layer", "gelu", 2)]
)
def test_transformer_options_equal_their_equations(positions, norm, activation, kv_heads, tokens):
    """In values, gradients and attention weights."""
    torch.manual_seed(0)
    options = {"positions": positions, "norm": norm, "activation": activation, "num_key_value_heads": kv_heads}
    model = TransformerDecoder(NUM_TOKENS, 16, 2, 4, 12, **options).double().eval()
    tokens = tokens[:2, :7]
    rows, maps = [], []
    for row in tokens:
        x = model.embedding.weight[row] * 4
        if positions == "learned":
            x = x + model.position_embedding.weight[: len(row)]
        of_layers = []
        for layer in model.layers:
            x, weights = block(model, layer, x)
            of_layers.append(weights)
        rows.append(model.head(x))
        maps.append(torch.cat(of_layers).mean(0))
    expected = torch.stack(rows).mT
    torch.testing.assert_close(model(tokens), expected)
    torch.testing.assert_close(model.attention_weights(tokens[:, :3], tokens[:, 3:]), torch.stack(maps)[:, 2:6, :3])
    upstream, used = torch.randn_like(expected), [p for n, p in model.named_parameters()]
    ours, theirs = (torch.autograd.grad((logits * upstream).sum(), used) for logits in (model(tokens), expected))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("positions", ["rope", "alibi"])
def test_positions_in_attention_hold_in_training_too(positions, tokens):
    """Training takes another path on a CPU, with dropout; here its probability is next to nothing."""
    model = TransformerDecoder(NUM_TOKENS, 12, 2, 3, 20, dropout_p=1e-9, positions=positions, mask_pad=True)
    torch.testing.assert_close(model.train()(tokens), model.eval()(tokens), **CLOSE)


def test_fewer_heads_of_keys_make_the_cache_smaller(tokens):
    sizes = []
    for kv_heads in (8, 2, 1):
        _, state = TransformerDecoder(NUM_TOKENS, num_key_value_heads=kv_heads).prefill(tokens[:1])
        sizes.append(sum(tensor.numel() for cache in state.caches for tensor in cache))
    assert sizes == [6 * 2 * 64 * LENGTH, 6 * 2 * 16 * LENGTH, 6 * 2 * 8 * LENGTH]


class TestLinear:
    @pytest.mark.parametrize("published_mask", [False, True])
    def test_equals_the_einsum(self, tokens, published_mask):
        model = LinearLLM(NUM_TOKENS, max_data_length=LENGTH - 1, embedding_dim=4, published_mask=published_mask)
        nn.init.normal_(model.bias)
        s, t = torch.meshgrid(torch.arange(LENGTH), torch.arange(LENGTH), indexing="ij")
        mask = (s >= t if published_mask else s <= t).float()
        expected = torch.einsum("bsw,swtv,st->btv", model.embedding(tokens), model.weight, mask) + model.bias
        torch.testing.assert_close(model(tokens), expected.mT, rtol=1e-5, atol=1e-6)

    def test_published_mask_sees_the_future(self, tokens):
        model = LinearLLM(NUM_TOKENS, published_mask=True)
        changed = tokens.clone()
        changed[:, -1] = (changed[:, -1] + 1) % NUM_TOKENS
        assert not torch.allclose(model(changed)[:, :, 0], model(tokens)[:, :, 0])

    @torch.no_grad()
    def test_published_decoding_reads_the_windows_last_position(self, tokens):
        """Every completion of every prompt is the argmax of the last position's bias, over and over."""
        model = LinearLLM(NUM_TOKENS, max_data_length=20, published_mask=True, published_decoding=True).eval()
        nn.init.normal_(model.bias)
        last = model.bias[-1].expand(3, -1)
        logits, state = model.prefill(tokens[:, :5])
        torch.testing.assert_close(logits, last, **CLOSE)
        logits, state = model.step(tokens[:, 5], state)
        torch.testing.assert_close(logits, last, **CLOSE)
        assert model.caveat == "published mask: sees the future; published decoding"

        # The published code: pad the embedded tokens with zeros to the window's width, and take the last logits.
        causal = LinearLLM(NUM_TOKENS, max_data_length=20, published_decoding=True).eval()
        window = nn.functional.pad(causal.embedding(tokens), (0, 0, 0, 21 - LENGTH))
        expected = torch.einsum("bsw,swv->bv", window, causal.weight[:, :, -1]) + causal.bias[-1]
        torch.testing.assert_close(causal.prefill(tokens)[0], expected, **CLOSE)


def rnn_step(weights, x, h, k):
    """Elman's equation of layer k, in plain torch."""
    w = {name: weights[f"{name}_l{k}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
    return torch.tanh(w["weight_ih"] @ x + w["bias_ih"] + w["weight_hh"] @ h + w["bias_hh"])


def gru_step(weights, x, h, k):
    """Cho et al. 2014, equations 5 to 8, with the reset gate after the product."""
    w_r, w_z, w_n = weights[f"weight_ih_l{k}"].chunk(3)
    u_r, u_z, u_n = weights[f"weight_hh_l{k}"].chunk(3)
    b_r, b_z, b_n = weights[f"bias_ih_l{k}"].chunk(3)
    c_r, c_z, c_n = weights[f"bias_hh_l{k}"].chunk(3)
    r = (w_r @ x + b_r + u_r @ h + c_r).sigmoid()
    z = (w_z @ x + b_z + u_z @ h + c_z).sigmoid()
    n = (w_n @ x + b_n + r * (u_n @ h + c_n)).tanh()
    return (1 - z) * n + z * h


@pytest.mark.parametrize(("architecture", "step"), [(RNN, rnn_step), (GRU, gru_step)])
def test_recurrent_layers_equal_their_equations(architecture, step, tokens):
    """In values and in the gradients of all weights."""
    torch.manual_seed(0)
    model = architecture(NUM_TOKENS, 3, 5, 2).double().eval()
    weights = dict(model.layers.named_parameters())
    logits = torch.empty(*tokens.shape, NUM_TOKENS, dtype=torch.double)
    for b, row in enumerate(tokens):
        states = [torch.zeros(5, dtype=torch.double)] * 2
        for t, token in enumerate(row):
            x = model.embedding.weight[token]
            for k in range(2):
                x = states[k] = step(weights, x, states[k], k)
            logits[b, t] = model.head(x)
    torch.testing.assert_close(model(tokens), logits.mT)
    parameters = list(model.parameters())
    upstream = torch.randn_like(logits)
    expected = torch.autograd.grad((logits * upstream).sum(), parameters)
    actual = torch.autograd.grad((model(tokens).mT * upstream).sum(), parameters)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize(("architecture", "numbers"), [(RNN, 2 * 5), (GRU, 2 * 5), (LSTM_LLM, 2 * 2 * 5)])
def test_numbers_in_the_state_of_a_recurrent_model(architecture, numbers):
    assert sum(tensor.numel() for tensor in tensors(architecture(NUM_TOKENS, 3, 5, 2).init_state(1))) == numbers


def test_stack_rnn_equals_the_papers_equations(tokens):
    """In values and gradients, element by element, beyond the size of the stacks."""
    torch.manual_seed(0)
    model = StackRNN(NUM_TOKENS, 3, 4, num_stacks=2, stack_size=5, top=2).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    rows = []
    for row in tokens:
        h, stacks, logits = torch.zeros(4, dtype=torch.double), [[torch.tensor(-1.0).double()] * 5] * 2, []
        for token in row:
            tops = torch.stack([element for stack in stacks for element in stack[:2]])
            x = model.of_input.weight @ model.embedding.weight[token] + model.of_input.bias
            h = 1 / (1 + (-(x + model.of_hidden.weight @ h + model.of_stack.weight @ tops)).exp())
            new = []
            for k, stack in enumerate(stacks):
                a = (model.action.weight[3 * k : 3 * k + 3] @ h + model.action.bias[3 * k : 3 * k + 3]).exp()
                push, pop, keep = a / a.sum()
                value = 1 / (1 + (-(model.pushed.weight[k] @ h + model.pushed.bias[k])).exp())
                padded = [value, *stack, torch.tensor(-1.0).double()]
                new.append([push * padded[i] + pop * padded[i + 2] + keep * padded[i + 1] for i in range(5)])
            stacks = new
            logits.append(model.head.weight @ h + model.head.bias)
        rows.append(torch.stack(logits, 1))
    expected, parameters = torch.stack(rows), list(model.parameters())
    torch.testing.assert_close(model(tokens), expected)
    upstream = torch.randn_like(expected)
    ours, theirs = (torch.autograd.grad((x * upstream).sum(), parameters) for x in (model(tokens), expected))
    torch.testing.assert_close(ours, theirs)
    assert sum(tensor.numel() for tensor in model.init_state(1)) == 4 + 2 * 5


class TestLSTM:
    def test_dropout_is_on_the_last_output_alone(self, tokens):
        """The dropped elements are zeros in what the output layer reads; the layers below are not touched."""
        model = LSTM_LLM(NUM_TOKENS, 8, 32, 3, dropout=0.5).train()
        outputs = []
        model.head.register_forward_pre_hook(lambda _, inputs: outputs.append(inputs[0]))
        model(tokens)
        clean, _ = model.lstm(model.embedding(tokens))
        dropped = outputs[0] == 0
        assert 0.4 < dropped.float().mean() < 0.6
        torch.testing.assert_close(outputs[0][~dropped], 2 * clean[~dropped])

    def test_dropout_between_layers_is_an_option(self, tokens):
        model = LSTM_LLM(NUM_TOKENS, 8, 32, 3, dropout=0.0, dropout_between_layers=0.5).train()
        assert not torch.allclose(model(tokens), model(tokens))
        model.lstm.dropout = 0.0
        assert torch.equal(model(tokens), model(tokens))


def test_mamba_py_differs_from_mamba_ssm_in_its_initial_weights_alone():
    """mamba.py keeps torch's standard deviation of 1 for the (tied) embeddings, and does not shrink the output
    projections."""
    ssm, py = (MambaLM(NUM_TOKENS, d_model=64, n_layers=4, init=init) for init in ("mamba_ssm", "mamba_py"))
    assert 0.9 < py.lm_head.weight.std() < 1.1
    assert 0.015 < ssm.lm_head.weight.std() < 0.025
    bound = 128**-0.5  # nn.Linear draws uniformly from +-1 / sqrt(inputs)
    assert 0.95 * bound < py.backbone.layers[0].mixer.out_proj.weight.abs().max() <= bound
    assert 0.95 * bound / 2 < ssm.backbone.layers[0].mixer.out_proj.weight.abs().max() <= bound / 2
    assert py.caveat == "initialised as mamba.py"


def equations(model, tokens):
    """minLSTM and minGRU by the paper's equations (sections 3.1 and 3.2; g from appendix B.3), token by token."""

    def g(x):
        return x + 0.5 if x >= 0 else 1 / (1 + (-x).exp())

    def candidate(x):
        return torch.stack([g(value) for value in x]) if model.layers[0].log_space else x

    def kept(share):
        return 2 * share - 1 if model.layers[0].signed else share

    def layer_step(layer, x, h):
        if isinstance(model, MinGRU):
            z, h_tilde = layer.linear(x).chunk(2)
            return kept(1 - z.sigmoid()) * h + z.sigmoid() * candidate(h_tilde)
        f, i, h_tilde = layer.linear(x).chunk(3)
        f, i = f.sigmoid(), i.sigmoid()
        return kept(f / (f + i)) * h + i / (f + i) * candidate(h_tilde)

    logits = torch.empty(*tokens.shape, NUM_TOKENS, dtype=model.head.weight.dtype)
    for b, row in enumerate(tokens):
        states = [torch.zeros(model.hidden_dim, dtype=logits.dtype) for _ in model.layers]
        for t, token in enumerate(row):
            x = model.embedding.weight[token]
            for k, layer in enumerate(model.layers):
                x = states[k] = layer_step(layer, x, states[k])
            logits[b, t] = model.head(x)
    return logits.mT


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("architecture", [MinLSTM, MinGRU])
class TestMinimalRNNs:
    def variants(self, architecture, dtype, log_space, eigenvalues=(0, 1)):
        """Models with the same weights and each scan."""
        torch.manual_seed(0)
        models = []
        for scan in ("auto", "sequential", "parallel", "log")[: 4 if log_space and eigenvalues == (0, 1) else 3]:
            model = architecture(NUM_TOKENS, 6, 8, 3, log_space=log_space, scan=scan, eigenvalues=eigenvalues).to(dtype)
            if models:
                model.load_state_dict(models[0].state_dict())
            models.append(model)
        return models

    @pytest.mark.parametrize("eigenvalues", [(0, 1), (-1, 1)])
    @pytest.mark.parametrize("log_space", [True, False])
    def test_all_scans_equal_the_papers_equations(self, architecture, dtype, log_space, eigenvalues, tokens):
        tolerance = 1e-5 if dtype == torch.float32 else 1e-10
        models = self.variants(architecture, dtype, log_space, eigenvalues)
        expected = equations(models[0], tokens)
        for model in models:
            torch.testing.assert_close(model(tokens), expected, rtol=tolerance, atol=tolerance)
            _, state = model.prefill(tokens[:, :6])
            rest, _ = model.advance(tokens[:, 6:], state)
            torch.testing.assert_close(rest.mT, expected[:, :, 6:], rtol=tolerance, atol=tolerance)

    def test_gates_that_underflow_stay_finite(self, architecture, dtype, tokens):
        for model in self.variants(architecture, dtype, log_space=True):
            nn.init.constant_(model.layers[0].linear.bias, -500.0)
            logits = model(tokens)
            logits.sum().backward()
            assert logits.isfinite().all()
            assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("architecture", "arguments", "message"),
    [
        (MinLSTM, {"hidden_dim": -1}, "hidden_dim=-1: must be greater than 0"),
        (MinLSTM, {"scan": "fast"}, "scan=fast: did you mean auto? (one of auto, sequential, parallel, log)"),
        (MinGRU, {"scan": "log", "log_space": False}, "scan=log: needs log_space=true"),
        (MinGRU, {"scan": "log", "eigenvalues": [-1, 1]}, "scan=log: needs eigenvalues=[0,1]"),
        (MinLSTM, {"eigenvalues": [-2, 1]}, "must be [0,1] or [-1,1]"),
        (MambaLM, {"eigenvalues": [1, -1]}, "must be [0,1] or [-1,1]"),
        (MambaLM, {"eigenvalues": [-1, 1], "backend": "mamba_ssm"}, "backend=mamba_ssm: has no negative eigenvalues"),
        (MinGRU, {"residual": True, "hidden_dim": 32}, "hidden_dim=32: must equal embedding_dim=64"),
        (MinGRU, {"norm": "layr"}, "norm=layr: did you mean layer"),
        (LSTM_LLM, {"dropout": 1.0}, "dropout=1.0: must be at least 0 and less than 1"),
        (LSTM_LLM, {"num_layers": 0}, "num_layers=0: must be greater than 0"),
        (StackRNN, {"stack_size": 1}, "top=2: must be at most stack_size=1"),
        (GRU, {"num_layers": 0}, "num_layers=0: must be greater than 0"),
        (RNN, {"nonlinearity": "tan"}, "nonlinearity=tan: did you mean tanh?"),
        (LinearLLM, {"embedding_dim": 0}, "embedding_dim=0: must be greater than 0"),
        (TransformerDecoder, {"dim_feedforward": -2}, "dim_feedforward=-2: must be greater than 0"),
        (TransformerDecoder, {"num_key_value_heads": 3}, "num_key_value_heads=3: must divide num_heads=8"),
        (
            TransformerDecoder,
            {"positions": "rope", "dim_model": 24},
            "positions=rope: needs an even dim_model / num_heads",
        ),
        (TransformerDecoder, {"activation": "gelu", "relu_rescale": 2.0}, "relu_rescale=2.0: needs activation=relu"),
        (TransformerDecoder, {"norm": "rsm"}, "norm=rsm: did you mean rms?"),
        (TransformerDecoder, {"dropout_p": -0.1}, "dropout_p=-0.1: must be at least 0"),
    ],
)
def test_invalid_sizes_are_refused_in_one_line(architecture, arguments, message):
    with pytest.raises(ConfigError) as error:
        architecture(NUM_TOKENS, **arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
