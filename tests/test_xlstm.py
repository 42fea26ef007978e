"""xLSTM: the LanguageModel around the package's model."""

import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, config
from sizes import MODELS, NUM_TOKENS, make
from torch import nn

from rule_extrapolation.core.errors import ConfigError
from rule_extrapolation.experiment.assembling import assemble
from rule_extrapolation.models.xlstm import (
    keep_vanilla_layout,
    quiet_stdout,
    sLSTMCell_cuda,
    sLSTMCell_vanilla,
    try_kernel,
    xlstm,
    xLSTMLMModel,
)
from rule_extrapolation.reporting.messages import messages_printed

SLSTM_RECURRENT = "model.xlstm_block_stack.blocks.1.xlstm.slstm_cell._recurrent_kernel_"
SIZES = [name for name, (model, _) in MODELS.items() if model is xLSTMLMModel]


@pytest.fixture
def tokens():
    return torch.randint(0, NUM_TOKENS, (3, 17), generator=torch.Generator().manual_seed(1))


def package_model(num_blocks, embedding_dim):
    """The package's model with the paper's or the L5 settings, built without this project."""
    return xlstm.xLSTMLMModel(
        xlstm.xLSTMLMModelConfig(
            mlstm_block=xlstm.mLSTMBlockConfig(
                mlstm=xlstm.mLSTMLayerConfig(conv1d_kernel_size=4, qkv_proj_blocksize=4, num_heads=4)
            ),
            slstm_block=xlstm.sLSTMBlockConfig(
                slstm=xlstm.sLSTMLayerConfig(
                    backend="vanilla", num_heads=4, conv1d_kernel_size=4, bias_init="powerlaw_blockdependent"
                ),
                feedforward=xlstm.FeedForwardConfig(proj_factor=1.3, act_fn="gelu"),
            ),
            context_length=98,
            num_blocks=num_blocks,
            embedding_dim=embedding_dim,
            slstm_at=[1],
            vocab_size=NUM_TOKENS,
        )
    )


@pytest.mark.parametrize(("size", "num_blocks", "embedding_dim"), [("xlstm-l5", 7, 128), ("xlstm-paper", 6, 64)])
class TestPackage:
    def test_the_same_weights_give_the_same_values(self, tokens, size, num_blocks, embedding_dim):
        theirs = package_model(num_blocks, embedding_dim)
        ours = make(size)
        ours.model.load_state_dict(theirs.state_dict())
        torch.testing.assert_close(ours(tokens), theirs(tokens).mT, rtol=1e-5, atol=1e-5)

    def test_a_seed_gives_the_same_initial_weights(self, size, num_blocks, embedding_dim):
        torch.manual_seed(0)
        theirs = package_model(num_blocks, embedding_dim)
        theirs.reset_parameters()
        torch.manual_seed(0)
        ours = make(size)
        for (name, weight), (their_name, their_weight) in zip(
            ours.model.state_dict().items(), theirs.state_dict().items(), strict=True
        ):
            assert name == their_name
            assert torch.equal(weight, their_weight)


@pytest.mark.parametrize("size", SIZES)
def test_initial_weights_are_finite_and_not_constant(size):
    model = make(size)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert model.model.token_embedding.weight.std() > 0


@pytest.mark.parametrize("bias_init", ["powerlaw_blockdependent", "small_init", "standard", "zeros"])
@pytest.mark.parametrize("act_fn", ["gelu", "relu", "relu^2", "sigmoid", "swish", "selu"])
def test_every_choice_builds_and_runs(tokens, bias_init, act_fn):
    model = xLSTMLMModel(NUM_TOKENS, 2, 8, "all", num_heads=2, bias_init=bias_init, act_fn=act_fn, dropout=0.1)
    assert model(tokens).isfinite().all()


@pytest.mark.parametrize(
    ("embedding_dim", "num_heads", "blocksize", "width"),
    [(128, 4, 4, 256), (10, 4, 4, 64), (96, 64, 4, 192), (32, 64, 4, 128), (10, 3, 4, 192), (10, 1, 5, 320)],
)
def test_inner_widths_are_the_packages_if_they_fit(tokens, embedding_dim, num_heads, blocksize, width):
    """Otherwise the next width that fits. Heads of a single feature would be normalised to zero (32, 64)."""
    model = xLSTMLMModel(NUM_TOKENS, 1, embedding_dim, [], num_heads=num_heads, qkv_proj_blocksize=blocksize)
    assert model.model.xlstm_block_stack.blocks[0].xlstm.proj_down.in_features == width
    model(tokens).square().sum().backward()
    assert model.model.xlstm_block_stack.blocks[0].xlstm.q_proj.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("arguments", "blocks"), [({"slstm_at": []}, "mmm"), ({"slstm_at": "all"}, "sss"), ({"slstm_at": [2, 0]}, "sms")]
)
def test_slstm_at_says_which_blocks_are_slstm(arguments, blocks):
    model = xLSTMLMModel(NUM_TOKENS, 3, 8, **arguments)
    kinds = [type(block).__name__[0] for block in model.model.xlstm_block_stack.blocks]
    assert "".join(kinds) == blocks


class TestContext:
    def test_it_has_room_for_the_longest_prompt_and_completion(self, tmp_path):
        for overrides, context in {(): 12 + 2 + 24, ("data.max_length=20", "decoding.max_new_tokens=7"): 29}.items():
            cfg = config(tmp_path, "model=xlstm", *overrides)
            module = assemble(cfg).module
            assert module.model.max_context == context
            for prompts in module.grammar.prompts.values():
                assert module.decoder.budget(module.model, prompts.shape[1]) == cfg.decoding.max_new_tokens

    def test_a_context_shorter_than_the_words_is_refused(self, tmp_path):
        with pytest.raises(ConfigError, match=r"data\.max_length=12: .* take 13 tokens, and the model reads 12"):
            assemble(config(tmp_path, "model=xlstm", "model.context_length=12"))

    def test_decoding_ends_with_the_context(self, tmp_path):
        module = assemble(config(tmp_path, "model=xlstm", "model.context_length=14", "model.num_blocks=2")).module
        prompts = module.grammar.prompts["ID"]
        nn.init.zeros_(module.model.model.lm_head.weight)  # the most probable token is then SOS, not EOS
        assert module.decoder(module.model.eval(), prompts).shape[1] == 15


class TestBackend:
    def test_vanilla_is_the_backend_without_a_gpu(self):
        assert xLSTMLMModel(NUM_TOKENS, 1, 8, [0], backend="vanilla").backend == "vanilla"
        assert xLSTMLMModel(NUM_TOKENS, 1, 8, [0], accelerator="cpu").backend == "vanilla"

    def test_an_unavailable_kernel_is_refused_in_one_line(self):
        with pytest.raises(ConfigError, match="backend=cuda: needs a CUDA GPU and the CUDA toolkit") as error:
            xLSTMLMModel(NUM_TOKENS, 1, 8, [0], backend="cuda", accelerator="cpu")
        assert "\n" not in str(error.value)

    @pytest.fixture
    def gpu(self, monkeypatch):
        """Imitates a machine with a GPU, with a kernel that is never called."""
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr("xlstm.blocks.slstm.cell.sLSTMCellFuncGenerator", lambda training, config: None)
        try_kernel.cache_clear()
        yield monkeypatch
        try_kernel.cache_clear()

    def test_auto_takes_the_kernel_if_it_runs(self, gpu):
        gpu.setattr("rule_extrapolation.models.xlstm.try_kernel", lambda embedding_dim, num_heads: None)
        model, vanilla = xLSTMLMModel(NUM_TOKENS), make("xlstm-l5")
        assert (model.backend, model.backend_reason) == ("cuda", None)
        [cell] = [module for module in model.modules() if isinstance(module, sLSTMCell_cuda)]
        assert cell.config.torch_dtype is torch.float32
        weights = {name: torch.randn_like(weight) for name, weight in vanilla.state_dict().items()}
        model.load_state_dict(weights)
        assert not torch.equal(cell._recurrent_kernel_.view(-1), weights[SLSTM_RECURRENT].view(-1))
        assert all(torch.equal(saved, weights[name]) for name, saved in model.state_dict().items())
        assert xLSTMLMModel(NUM_TOKENS, accelerator="cpu").backend == "vanilla"
        assert xLSTMLMModel(NUM_TOKENS, slstm_at=[]).backend == "vanilla"

    def test_auto_does_not_use_a_kernel_that_fails_and_says_why(self, gpu, capfd):
        for home, reason in {None: "CUDA toolkit was not found: set CUDA_HOME", "/usr/local/cuda": "Error: "}.items():
            gpu.setattr("rule_extrapolation.models.xlstm.CUDA_HOME", home)
            try_kernel.cache_clear()
            with messages_printed():
                model = xLSTMLMModel(NUM_TOKENS)
            assert model.backend == "vanilla"
            assert reason in model.backend_reason
            with pytest.raises(ConfigError, match="backend=cuda: needs a CUDA GPU") as error:
                xLSTMLMModel(NUM_TOKENS, backend="cuda")
            assert reason in str(error.value)
            assert "\n" not in str(error.value)
        assert capfd.readouterr().out.count("Compiling xLSTM's CUDA kernel") == 1

    def test_it_works_with_a_gpu_but_without_the_toolkit(self):
        """There, importing the package by itself fails."""
        script = (
            "import torch; torch.cuda.is_available = lambda: True\n"
            "from rule_extrapolation.models.xlstm import xLSTMLMModel\n"
            "from torch.utils import cpp_extension; assert cpp_extension.CUDA_HOME is None\n"
            "print(xLSTMLMModel(7, accelerator='cpu').backend, xLSTMLMModel(7).backend_reason)"
        )
        env = {name: value for name, value in os.environ.items() if not name.startswith("CUDA")}
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, cwd=ROOT)
        assert (done.stdout.strip(), done.stderr) == ("vanilla the CUDA toolkit was not found: set CUDA_HOME", "")

    def test_compiler_output_is_hidden(self, capfd):
        with quiet_stdout():
            print("printed")
            subprocess.run(["echo", "from a program"], check=True)
        print("after")
        assert capfd.readouterr().out == "after\n"

    def test_the_kernels_cell_saves_and_loads_the_layout_of_the_torch_code(self):
        """The cell can be built on any machine without its kernel."""
        settings = {"hidden_size": 6, "num_heads": 2, "recurrent_weight_init": "standard", "bias_init": "standard"}
        vanilla = sLSTMCell_vanilla(xlstm.sLSTMLayerConfig(embedding_dim=6, backend="vanilla", **settings))
        cuda, back = (
            sLSTMCell_cuda(xlstm.sLSTMLayerConfig(embedding_dim=6, backend="cuda", **settings), skip_backend_init=True)
            for _ in range(2)
        )
        assert cuda._recurrent_kernel_.shape != vanilla._recurrent_kernel_.shape
        for cell in (cuda, back):
            keep_vanilla_layout(cell)
        cuda.load_state_dict(vanilla.state_dict())
        for name in ("recurrent_kernel", "bias"):
            assert torch.equal(getattr(cuda, name)[:], getattr(vanilla, name)[:])  # head, gate, feature
        saved = cuda.state_dict()
        assert all(torch.equal(saved[name], weight) for name, weight in vanilla.state_dict().items())
        back.load_state_dict(saved)
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(back.parameters(), cuda.parameters()))

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
    def test_the_kernel_gives_the_values_and_gradients_of_the_torch_code(self, tokens):
        torch.manual_seed(0)
        vanilla = xLSTMLMModel(NUM_TOKENS, backend="vanilla").cuda()
        kernel = xLSTMLMModel(NUM_TOKENS, backend="cuda").cuda()
        for parameter in vanilla.parameters():
            nn.init.normal_(parameter, std=0.2)  # recurrent weights start at zero, which hides their layout
        kernel.load_state_dict(vanilla.state_dict())
        tokens, results = tokens.cuda(), []
        for model in (vanilla, kernel):
            logits = model(tokens)
            logits.square().sum().backward()
            gradients = {name: p.grad for name, p in model.named_parameters() if "slstm_cell" not in name}
            cells = [module for module in model.modules() if isinstance(module, sLSTMCell_cuda | sLSTMCell_vanilla)]
            in_cells = [(cell.recurrent_kernel.grad, cell.bias.grad) for cell in cells]
            results.append((logits, gradients, in_cells, model.prefill(tokens)[0]))
        torch.testing.assert_close(*results, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"num_heads": 3},
            "num_heads=3: sLSTM blocks need a divisor of embedding_dim=128 with two features or more per",
        ),
        ({"num_heads": 128}, "per head: 1, 2, 4, 8, 16, 32, 64; or set slstm_at=[]"),
        ({"embedding_dim": 1}, "embedding_dim=1: must be at least 2"),
        ({"num_blocks": 0}, "num_blocks=0: must be greater than 0"),
        ({"num_heads": 0}, "num_heads=0: must be greater than 0"),
        ({"slstm_at": [7]}, "slstm_at=[7]: num_blocks=7 has the blocks 0 to 6; list each at most once, or write all"),
        ({"slstm_at": [-1]}, "slstm_at=[-1]: num_blocks=7 has the blocks 0 to 6"),
        ({"slstm_at": [1, 1]}, "slstm_at=[1, 1]: num_blocks=7 has the blocks 0 to 6; list each at most once"),
        ({"slstm_at": ["one"]}, "slstm_at=['one']: num_blocks=7 has the blocks 0 to 6"),
        ({"num_blocks": 1}, "slstm_at=[1]: num_blocks=1 has the blocks 0 to 0"),
        ({"conv1d_kernel_size": 1}, "conv1d_kernel_size=1: must be at least 2"),
        ({"conv1d_kernel_size": 0}, "conv1d_kernel_size=0: must be at least 2 (or 0 with slstm_at=all)"),
        ({"conv1d_kernel_size": -1, "slstm_at": "all"}, "conv1d_kernel_size=-1: must be at least 2"),
        ({"qkv_proj_blocksize": 0}, "qkv_proj_blocksize=0: must be greater than 0"),
        ({"proj_factor": -1.0}, "proj_factor=-1.0: must be greater than 0"),
        ({"act_fn": "gello"}, "act_fn=gello: did you mean gelu?"),
        ({"bias_init": "powerlaw"}, "bias_init=powerlaw: did you mean powerlaw_blockdependent?"),
        ({"dropout": 1.0}, "dropout=1.0: must be at least 0 and less than 1"),
        ({"context_length": 0}, "context_length=0: must be greater than 0"),
        ({"backend": "vanila"}, "backend=vanila: did you mean vanilla?"),
    ],
)
def test_invalid_sizes_are_refused_in_one_line(arguments, message):
    with pytest.raises(ConfigError) as error:
        xLSTMLMModel(NUM_TOKENS, **arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
