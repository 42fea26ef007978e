"""xLSTM: the package's model behind the contract."""

import pytest
import torch
import xlstm
from conftest import config
from sizes import MODELS, NUM_TOKENS, make
from torch import nn
from xlstm.blocks.slstm.cell import sLSTMCell_cuda, sLSTMCell_vanilla

from rule_extrapolation.errors import ConfigError
from rule_extrapolation.experiment import assemble
from rule_extrapolation.models.xlstm import keep_vanilla_layout, xLSTMLMModel

SIZES = [name for name, (model, _) in MODELS.items() if model is xLSTMLMModel]


@pytest.fixture
def tokens():
    return torch.randint(0, NUM_TOKENS, (3, 17), generator=torch.Generator().manual_seed(1))


def package_model(num_blocks, embedding_dim):
    """The package's model in the paper's and the L5 setting, as one writes it without this project."""
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
    def test_same_weights_same_values(self, tokens, size, num_blocks, embedding_dim):
        theirs = package_model(num_blocks, embedding_dim)
        ours = make(size)
        ours.model.load_state_dict(theirs.state_dict())
        torch.testing.assert_close(ours(tokens), theirs(tokens).mT, rtol=0, atol=0)

    def test_same_initial_weights(self, size, num_blocks, embedding_dim):
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
def test_weights_begin_finite_and_different(size):
    model = make(size)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert model.model.token_embedding.weight.std() > 0


@pytest.mark.parametrize("bias_init", ["powerlaw_blockdependent", "small_init", "standard", "zeros"])
@pytest.mark.parametrize("act_fn", ["gelu", "relu", "relu^2", "sigmoid", "swish", "selu"])
def test_every_choice_builds_and_runs(tokens, bias_init, act_fn):
    model = xLSTMLMModel(NUM_TOKENS, 2, 8, "all", num_heads=2, bias_init=bias_init, act_fn=act_fn, dropout=0.1)
    assert model(tokens).isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "blocks"), [({"slstm_at": []}, "mmm"), ({"slstm_at": "all"}, "sss"), ({"slstm_at": [2, 0]}, "sms")]
)
def test_slstm_at_says_which_blocks_are_slstm(arguments, blocks):
    model = xLSTMLMModel(NUM_TOKENS, 3, 8, **arguments)
    kinds = [type(block).__name__[0] for block in model.model.xlstm_block_stack.blocks]
    assert "".join(kinds) == blocks


class TestContext:
    def test_it_holds_the_longest_prompt_and_all_that_decoding_adds(self, tmp_path):
        for overrides, context in {(): 12 + 2 + 24, ("data.max_length=20", "decoding.max_new_tokens=7"): 29}.items():
            cfg = config(tmp_path, "model=xlstm", *overrides)
            module = assemble(cfg).module
            assert module.model.max_context == context
            for prompts in module.grammar.prompts.values():
                assert module.decoder.budget(module.model, prompts.shape[1]) == cfg.decoding.max_new_tokens

    def test_a_context_shorter_than_the_words_is_refused(self, tmp_path):
        with pytest.raises(ConfigError, match=r"data\.max_length=12: .* take 13 tokens, and the model reads 12"):
            assemble(config(tmp_path, "model=xlstm", "model.context_length=12"))

    def test_decoding_ends_where_the_context_does(self, tmp_path):
        module = assemble(config(tmp_path, "model=xlstm", "model.context_length=14", "model.num_blocks=2")).module
        prompts = module.grammar.prompts["ID"]
        nn.init.zeros_(module.model.model.lm_head.weight)  # the most probable token is SOS: never an end
        assert module.decoder(module.model.eval(), prompts).shape[1] == 15


class TestBackend:
    def test_vanilla_computes_it_where_nothing_else_can(self):
        assert xLSTMLMModel(NUM_TOKENS, 1, 8, [0], backend="vanilla").backend == "vanilla"
        assert xLSTMLMModel(NUM_TOKENS, 1, 8, [0], accelerator="cpu").backend == "vanilla"

    def test_the_kernel_where_it_cannot_be_had_is_refused_in_one_line(self):
        with pytest.raises(ConfigError, match="backend=cuda: needs a CUDA GPU and the CUDA toolkit") as error:
            xLSTMLMModel(NUM_TOKENS, 1, 8, [0], backend="cuda", accelerator="cpu")
        assert "\n" not in str(error.value)

    def test_the_kernels_cell_saves_and_loads_the_layout_of_the_torch_code(self):
        """Without its kernel, the cell can be built anywhere."""
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
        kernel.load_state_dict(vanilla.state_dict())
        vanilla.load_state_dict(kernel.state_dict())
        tokens, results = tokens.cuda(), []
        for model in (vanilla, kernel):
            logits = model(tokens)
            logits.square().sum().backward()
            embedding = model.model.token_embedding.weight.grad
            results.append((logits, embedding, model.prefill(tokens)[0]))
        torch.testing.assert_close(*results, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"num_heads": 3},
            "num_heads=3: sLSTM blocks need a divisor of embedding_dim=128, and two features in each he",
        ),
        ({"num_heads": 128}, "in each head: 1, 2, 4, 8, 16, 32, 64; or set slstm_at=[]"),
        ({"embedding_dim": 1}, "embedding_dim=1: must be at least 2"),
        ({"num_blocks": 0}, "num_blocks=0: must be greater than 0"),
        ({"num_heads": 0}, "num_heads=0: must be greater than 0"),
        ({"slstm_at": [7]}, "slstm_at=[7]: must be different blocks from 0 to 6, or all"),
        ({"slstm_at": [-1]}, "slstm_at=[-1]: must be different blocks from 0 to 6, or all"),
        ({"slstm_at": [1, 1]}, "slstm_at=[1, 1]: must be different blocks"),
        ({"slstm_at": ["one"]}, "slstm_at=['one']: must be different blocks"),
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
def test_impossible_sizes_are_refused_in_one_line(arguments, message):
    with pytest.raises(ConfigError) as error:
        xLSTMLMModel(NUM_TOKENS, **arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
