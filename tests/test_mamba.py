"""Mamba: mamba-ssm's weights, and the values of the paper's equations and of other implementations."""

import math
import subprocess
import sys
import types

import pytest
import torch
import torch.nn.functional as F
from sizes import MODELS, NUM_TOKENS, make

from rule_extrapolation.core.errors import ConfigError
from rule_extrapolation.models.mamba import MambaLM, kernel_scan
from rule_extrapolation.ops.selective_scan import selective_scan

CUDA = torch.cuda.is_available()
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
SIGNED = "mamba-signed"
"""The size that mamba-ssm, mambapy and transformers do not have."""
SIZES = [name for name, (model, _) in MODELS.items() if model is MambaLM and name != SIGNED]


@pytest.fixture
def tokens():
    return torch.randint(0, NUM_TOKENS, (3, 40), generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=SIZES)
def model(request):
    """A model with larger weights than the initial ones, as after training, so that every part affects the logits."""
    torch.manual_seed(0)
    model = make(request.param)
    for name, parameter in model.named_parameters():
        if not name.endswith(("A_log", "dt_proj.bias", "norm.weight")):
            torch.nn.init.normal_(parameter, std=0.1)
    return model.requires_grad_(False)


def mixer_step(mixer, inputs, h, signed):
    """One token in a block (sections 3.3 and 3.4, figure 3), from the (d_conv, d_inner) inputs of its convolution."""
    d_state = h.shape[1]
    x = F.silu((inputs * mixer.conv1d.weight[:, 0].T).sum(0) + mixer.conv1d.bias)
    dt, B, C = (mixer.x_proj.weight @ x).split([mixer.dt_proj.in_features, d_state, d_state])
    delta = (1 + (mixer.dt_proj.weight @ dt + mixer.dt_proj.bias).exp()).log()
    decay = (delta[:, None] * -mixer.A_log.exp()).exp()
    h = (2 * decay - 1 if signed else decay) * h + (delta * x)[:, None] * B
    return h @ C + mixer.D * x, h


def equations(model, tokens, signed=False):
    """(B, T) -> (B, num_tokens, T) logits, for one row, layer and token at a time."""

    def rms_norm(x, norm):
        return x / (x.square().mean() + 1e-5).sqrt() * norm.weight

    rows = []
    for row in tokens:
        xs = [model.backbone.embedding.weight[token] for token in row]
        for layer in model.backbone.layers:
            mixer = layer.mixer
            inputs, h = 0 * mixer.conv1d.weight[:, 0].T, 0 * mixer.A_log
            for t, x in enumerate(xs):
                into, gate = (mixer.in_proj.weight @ rms_norm(x, layer.norm)).chunk(2)
                inputs = torch.cat([inputs[1:], into[None]])
                y, h = mixer_step(mixer, inputs, h, signed)
                xs[t] = x + mixer.out_proj.weight @ (y * gate * gate.sigmoid())
        rows.append(torch.stack([model.lm_head.weight @ rms_norm(x, model.backbone.norm_f) for x in xs], 1))
    return torch.stack(rows)[:, :NUM_TOKENS]


@pytest.mark.parametrize("model", [*SIZES, SIGNED], indirect=True)
def test_equals_the_papers_equations(request, model, tokens):
    model, signed = model.double(), request.node.callspec.params["model"] == SIGNED
    torch.testing.assert_close(model(tokens), equations(model, tokens, signed), rtol=1e-9, atol=1e-9)


class TestWeights:
    def test_names_and_shapes_are_those_of_mamba_ssm(self):
        """Those of MambaLMHeadModel(MambaConfig(32, n_layer=2, vocab_size=7, ssm_cfg={"d_state": 16, "d_conv": 8})) in
        mamba-ssm 2.3.2."""
        shapes = {name: tuple(weight.shape) for name, weight in MambaLM(7, 32, 16, 8, 2).state_dict().items()}
        mixer = {
            "A_log": (64, 16),
            "D": (64,),
            "in_proj.weight": (128, 32),
            "conv1d.weight": (64, 1, 8),
            "conv1d.bias": (64,),
            "x_proj.weight": (34, 64),
            "dt_proj.weight": (64, 2),
            "dt_proj.bias": (64,),
            "out_proj.weight": (32, 64),
        }
        expected = {"backbone.embedding.weight": (8, 32)}
        for layer in ("backbone.layers.0", "backbone.layers.1"):
            expected[f"{layer}.norm.weight"] = (32,)
            expected |= {f"{layer}.mixer.{name}": shape for name, shape in mixer.items()}
        assert shapes == {**expected, "backbone.norm_f.weight": (32,), "lm_head.weight": (8, 32)}

    @pytest.mark.parametrize(("num_tokens", "padded"), [(5, 8), (7, 8), (8, 8), (9, 16)])
    def test_only_the_weights_are_padded(self, num_tokens, padded):
        model = MambaLM(num_tokens, d_model=4, n_layers=1)
        assert model.lm_head.weight is model.backbone.embedding.weight
        assert len(model.lm_head.weight) == padded
        assert model(torch.zeros(1, 3, dtype=torch.long)).shape == (1, num_tokens, 3)

    def test_initial_values(self):
        torch.manual_seed(0)
        model = MambaLM(NUM_TOKENS)
        for layer in model.backbone.layers:
            mixer = layer.mixer
            dt = F.softplus(mixer.dt_proj.bias)
            assert dt.min() >= 0.001 * (1 - 1e-4)
            assert dt.max() <= 0.1 * (1 + 1e-4)
            assert abs(dt.log().mean() - math.log(0.01)) < 0.4  # log-uniform; the mean of 128 values
            torch.testing.assert_close(mixer.A_log.exp(), torch.arange(1.0, 33).expand(128, 32))
            assert (mixer.D == 1).all()
            assert mixer.dt_proj.weight.abs().max() <= 4**-0.5
            assert 0.95 < mixer.out_proj.weight.abs().max() * (128 * 8) ** 0.5 <= 1
            assert mixer.in_proj.bias is mixer.out_proj.bias is mixer.x_proj.bias is None
        assert 0.017 < model.backbone.embedding.weight.std() < 0.023

    @pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux")
    def test_a_training_step_peaks_under_1_5_gib(self):
        """The peak memory of a process with the L5 defaults and a batch of 128."""
        step = """
import resource, torch
from rule_extrapolation.models.mamba import MambaLM
model = MambaLM(7)
optimizer = torch.optim.AdamW(model.parameters())
tokens = torch.randint(0, 7, (128, 34))
torch.nn.functional.cross_entropy(model(tokens[:, :-1]), tokens[:, 1:]).backward()
optimizer.step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
        kib = subprocess.run([sys.executable, "-c", step], capture_output=True, text=True, check=True).stdout
        assert int(kib) < 1.5 * 1024**2


class TestOtherImplementations:
    """These tests need the extra `bench`."""

    def test_mambapy(self, model, tokens):
        mambapy = pytest.importorskip("mambapy.mamba")
        first = model.backbone.layers[0].mixer
        theirs = mambapy.Mamba(
            mambapy.MambaConfig(
                d_model=model.lm_head.in_features,
                n_layers=len(model.backbone.layers),
                d_state=first.A_log.shape[1],
                expand_factor=first.D.shape[0] // model.lm_head.in_features,
                d_conv=first.conv1d.kernel_size[0],
            )
        )
        theirs.load_state_dict(model.backbone.state_dict(), strict=False)
        assert {f"layers.{name}" for name in theirs.layers.state_dict()} <= set(model.backbone.state_dict())
        with torch.no_grad():
            hidden = theirs(model.backbone.embedding(tokens))
            logits = model.lm_head(model.backbone.norm_f(hidden))[..., :NUM_TOKENS]
        torch.testing.assert_close(model(tokens), logits.mT, **CLOSE)

    def test_transformers(self, model, tokens):
        transformers = pytest.importorskip("transformers")
        first = model.backbone.layers[0].mixer
        config = transformers.MambaConfig(
            vocab_size=len(model.lm_head.weight),
            hidden_size=model.lm_head.in_features,
            state_size=first.A_log.shape[1],
            num_hidden_layers=len(model.backbone.layers),
            conv_kernel=first.conv1d.kernel_size[0],
            expand=first.D.shape[0] // model.lm_head.in_features,
        )
        theirs = transformers.MambaForCausalLM(config).eval()
        weights = model.state_dict()
        theirs.load_state_dict({name.replace("embedding.", "embeddings."): w for name, w in weights.items()})
        with torch.no_grad():
            logits = theirs(tokens).logits[..., :NUM_TOKENS]
        torch.testing.assert_close(model(tokens), logits.mT, **CLOSE)


class TestBackend:
    def test_torch_is_the_backend_without_a_gpu(self):
        assert MambaLM(NUM_TOKENS, backend="torch").backend == "torch"
        assert MambaLM(NUM_TOKENS, accelerator="cpu").backend == "torch"

    def test_an_unavailable_kernel_is_refused_in_one_line(self):
        with pytest.raises(ConfigError, match="backend=mamba_ssm: needs a CUDA GPU and `pip install") as error:
            MambaLM(NUM_TOKENS, backend="mamba_ssm", accelerator="cpu")
        assert '".[cuda]"' in str(error.value)
        assert "\n" not in str(error.value)

    def test_the_kernel_is_called_with_mamba_ssms_layout(self):
        """Time is last, in float32 and without an initial state. The stand-in follows mamba-ssm's
        selective_scan_ref."""

        def selective_scan_fn(u, delta, A, B, C, return_last_state):
            assert {tensor.dtype for tensor in (u, delta, A, B, C)} == {torch.float32}
            x, ys = torch.zeros(len(u), *A.shape), []
            for t in range(u.shape[2]):
                x = torch.exp(delta[:, :, t, None] * A) * x + (delta * u)[:, :, t, None] * B[:, None, :, t]
                ys.append((x * C[:, None, :, t]).sum(2))
            return torch.stack(ys, 2), x

        torch.manual_seed(0)
        x, dt, (B, C) = torch.randn(2, 9, 5), torch.rand(2, 9, 5), torch.randn(2, 2, 9, 3)
        arguments = (x, dt, -torch.rand(5, 3), B, C)
        torch.testing.assert_close(kernel_scan(selective_scan_fn, *arguments), selective_scan(*arguments))
        in_bfloat16 = kernel_scan(selective_scan_fn, *(tensor.bfloat16() for tensor in arguments))
        assert (in_bfloat16[0].dtype, in_bfloat16[1].dtype) == (torch.bfloat16, torch.float32)

    def test_auto_says_why_it_does_not_use_the_kernel(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        model = MambaLM(NUM_TOKENS, d_state=300)
        assert model.backend == "torch"
        assert model.backend_reason == "mamba-ssm: its kernel takes d_state up to 256, not 300"
        monkeypatch.setitem(sys.modules, "mamba_ssm.ops.selective_scan_interface", None)
        assert "mamba-ssm: " in MambaLM(NUM_TOKENS).backend_reason
        with pytest.raises(ConfigError, match="backend=mamba_ssm: needs a CUDA GPU"):
            MambaLM(NUM_TOKENS, backend="mamba_ssm")
        interface = types.SimpleNamespace(selective_scan_fn=None)
        for name in ("mamba_ssm", "mamba_ssm.ops"):
            monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        monkeypatch.setitem(sys.modules, "mamba_ssm.ops.selective_scan_interface", interface)
        assert (MambaLM(NUM_TOKENS).backend, MambaLM(NUM_TOKENS).backend_reason) == ("mamba_ssm", None)
        assert MambaLM(NUM_TOKENS, accelerator="cpu").backend == "torch"

    @pytest.mark.skipif(not CUDA, reason="needs a CUDA GPU")
    def test_the_kernel_gives_the_values_and_gradients_of_the_torch_code(self, tokens):
        pytest.importorskip("mamba_ssm")
        torch_model = MambaLM(NUM_TOKENS, backend="torch").cuda()
        kernel_model = MambaLM(NUM_TOKENS, backend="mamba_ssm").cuda()
        kernel_model.load_state_dict(torch_model.state_dict())
        tokens = tokens.cuda()
        results = []
        for model in (torch_model, kernel_model):
            model(tokens).square().sum().backward()
            logits, state = model.prefill(tokens[:, :9])
            steps, _ = model.advance(tokens[:, 9:], state)
            gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
            results.append((model(tokens), logits, steps, gradients))
        torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)

    @pytest.mark.skipif(not CUDA, reason="mamba-ssm imports only with CUDA")
    def test_mamba_ssm_loads_our_weights_and_vice_versa(self, tokens):
        mamba_ssm = pytest.importorskip("mamba_ssm")
        from mamba_ssm.models.config_mamba import MambaConfig

        ours, tokens = MambaLM(NUM_TOKENS, 32, 16, 4, 2).cuda(), tokens.cuda()
        config = MambaConfig(32, n_layer=2, vocab_size=NUM_TOKENS, ssm_cfg={"d_state": 16, "d_conv": 4})
        theirs = mamba_ssm.MambaLMHeadModel(config).cuda()
        theirs.load_state_dict(ours.state_dict())
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits[..., :NUM_TOKENS].mT, rtol=1e-4, atol=1e-4)
        theirs = mamba_ssm.MambaLMHeadModel(config).cuda()
        ours.load_state_dict(theirs.state_dict())
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits[..., :NUM_TOKENS].mT, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("field", ["d_model", "d_state", "d_conv", "n_layers", "expand"])
def test_invalid_sizes_are_refused_in_one_line(field):
    with pytest.raises(ConfigError, match=f"{field}=0: must be greater than 0"):
        MambaLM(NUM_TOKENS, **{field: 0})
