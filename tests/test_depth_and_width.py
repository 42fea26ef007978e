"""depth= and width= at the top level, for models that name their own keys differently."""

import pytest
from conftest import SHORT
from omegaconf import OmegaConf

from rule_extrapolation.config.composing import compose, groups
from rule_extrapolation.config.depth_and_width import set_depth_and_width
from rule_extrapolation.core.errors import ConfigError
from rule_extrapolation.runs.identity import identity

KEYS = {
    "transformer": ("num_decoder_layers", "dim_model"),
    "lstm": ("num_layers", "hidden_dim"),
    "stack_rnn": (None, "hidden_dim"),
    "rnn": ("num_layers", "hidden_dim"),
    "gru": ("num_layers", "hidden_dim"),
    "linear": (None, "embedding_dim"),
    "mamba": ("n_layers", "d_model"),
    "xlstm": ("num_blocks", "embedding_dim"),
    "minlstm": ("num_layers", "hidden_dim"),
    "mingru": ("num_layers", "hidden_dim"),
    "deltanet": ("num_layers", "d_model"),
    "gated_deltanet": ("num_layers", "d_model"),
    "deltaproduct": ("num_layers", "d_model"),
    "ffnn": (None, "hidden_dim"),
    "seq2seq": ("num_layers", "hidden_dim"),
    "ngram": (None, None),
    "normative": (None, None),
    "oracle": (None, None),
}


def test_every_model_is_here():
    assert set(KEYS) == set(groups()["model"])


@pytest.mark.parametrize("model", KEYS)
def test_they_set_the_models_own_keys(model):
    cfg = compose(f"model={model}", "run_dir=x")
    for key, own in zip(("depth", "width"), KEYS[model]):
        if own is None:
            with pytest.raises(ConfigError, match=f"{key}=16: {model} has no {key} to set; leave it out"):
                set_depth_and_width(OmegaConf.merge(cfg, {key: 16}))
        else:
            changed = set_depth_and_width(OmegaConf.merge(cfg, {key: 16}))
            assert changed.model[own] == 16 != cfg.model[own]


def test_a_run_is_the_same_by_either_key():
    by_depth, by_own_key = (compose(override, "run_dir=x") for override in ("depth=3", "model.num_layers=3"))
    assert identity(by_depth) == identity(by_own_key) != identity(compose("run_dir=x"))


def test_one_sweep_varies_them_across_architectures(cli, tmp_path):
    sweep = ["-m", *SHORT, "model=lstm,mamba", "depth=1,2", "width=8", "sweep=x", "data.num_train=8"]
    assert cli(*sweep)[0] == 0
    configs = [OmegaConf.load(path) for path in tmp_path.rglob("config.yaml") if path.parent.name != ".hydra"]
    made = {(cfg.model.name, cfg.model[cfg.model.depth_key], cfg.model[cfg.model.width_key]) for cfg in configs}
    assert made == {("lstm", 1, 8), ("lstm", 2, 8), ("mamba", 1, 8), ("mamba", 2, 8)}
    # The same command meets the same runs.
    status, out, _ = cli(*sweep)
    assert status == 0 and out.count("Skipped (already finished)") == 4


def test_they_must_be_positive(cli):
    status, _, err = cli("depth=0")
    assert (status, err) == (2, "error: depth=0: must be greater than 0\n")
