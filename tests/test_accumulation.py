"""Optimizer steps over several batches are those over one large batch, and all that counts steps counts these."""

import pytest
import torch
from conftest import config, read_metrics, read_results
from hydra import compose, initialize_config_dir

from rule_extrapolation.config.composing import CONF_DIR
from rule_extrapolation.experiment.assembling import assemble
from rule_extrapolation.experiment.run import run

TINY = ["model.embedding_dim=4", "model.hidden_dim=4"]
SGD = [
    "optimizer=sgd", "optimizer.lr=0.1", "optimizer.momentum=0", "scheduler=constant", "data.num_train=64",
    "grammar=L5", "trainer.log_every_n_steps=1",
]  # fmt: skip
WAYS = {
    "linear, without PAD": ["model=linear", "model.embedding_dim=4"],
    "all positions": ["model=minlstm", *TINY],
    "completions": ["data=completions", "model=seq2seq", "model.embedding_dim=4", "model.hidden_dim=4"],
    "with OOD prompts": ["training=oracle", "model=minlstm", *TINY],
    "clipped": ["model=linear", "model.embedding_dim=4", "trainer.gradient_clip_val=0.01"],
}


def weights(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def assert_same_training(parts, whole):
    for name, weight in weights(parts).items():
        torch.testing.assert_close(weight, weights(whole)[name], rtol=1e-4, atol=1e-6)
    for ours, theirs in zip(read_metrics(parts), read_metrics(whole), strict=True):
        for name in ("step", "Train/loss", "Train/loss_ignore_pad", "Train/ood_loss", "Train/perplexity", "Val/loss"):
            assert ours.get(name, 0) == pytest.approx(theirs.get(name, 0), rel=1e-4)


@pytest.mark.parametrize("way", WAYS)
def test_a_step_over_small_batches_is_the_step_over_a_large_one(train, way):
    overrides = [*SGD, *WAYS[way], "trainer.max_steps=3", "trainer.val_check_interval=3"]
    whole = train(*overrides, "data.batch_size=64", folder="whole")
    parts = train(*overrides, "data.batch_size=16", "+trainer.accumulate_grad_batches=4", folder="parts")
    assert_same_training(parts, whole)


def test_a_step_of_a_text_over_small_batches(tmp_path, monkeypatch):
    """59 stretches of 8 tokens, the last of which is shorter."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 13)
    optimization = [override for override in SGD if not override.startswith(("grammar", "data"))]
    overrides = [
        "data=text", f"data.path={tmp_path / 'text.txt'}", "logger=csv", "model=minlstm", *TINY, *optimization,
        "data.max_length=8", "trainer.max_steps=4", "trainer.val_check_interval=2",
    ]  # fmt: skip

    def train(folder, *more):
        with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
            run(compose("config", [f"run_dir={tmp_path / folder}", *overrides, *more]))
        return tmp_path / folder

    whole = train("whole", "data.batch_size=32")
    assert_same_training(train("parts", "data.batch_size=8", "+trainer.accumulate_grad_batches=4"), whole)


def test_the_last_step_of_an_epoch_may_have_fewer_batches(train):
    """64 words in batches of 24, 24 and 16: steps of 48 and 16 words."""
    overrides = [*SGD, "model=linear", "model.embedding_dim=4", "trainer.max_steps=2", "trainer.val_check_interval=2"]
    parts = train(*overrides, "data.batch_size=24", "+trainer.accumulate_grad_batches=2", folder="parts")
    assert_same_training(parts, train(*overrides, "data.batch_size=48", folder="whole"))


def test_validations_are_at_steps(train):
    folder = train(
        "grammar=L1", "data.num_train=64", "data.batch_size=8", *TINY, "+trainer.accumulate_grad_batches=3",
        "trainer.max_steps=20", "trainer.val_check_interval=5", "trainer.log_every_n_steps=5",
    )  # fmt: skip
    assert [row["step"] for row in read_metrics(folder) if "Val/loss" in row] == [4, 9, 14, 19]
    assert [row["step"] for row in read_metrics(folder) if "Train/loss" in row] == [4, 9, 14, 19]


@pytest.mark.parametrize("stage", ["train", "validation"])
def test_an_interrupted_step_is_not_lost(train, stage):
    """Ctrl-C within a step, whose gradients no checkpoint holds, and in a validation between two steps."""
    overrides = [
        "grammar=L1", "data.num_train=64", "data.batch_size=8", *TINY, "+trainer.accumulate_grad_batches=4",
        "trainer.max_steps=6", "trainer.val_check_interval=3",
    ]  # fmt: skip
    interrupt = "{_target_: conftest.CtrlC, stage: %s, n: %d}" % (stage, 9 if stage == "train" else 1)  # noqa: UP031
    whole = train(*overrides, folder="whole")
    with pytest.raises(KeyboardInterrupt):
        train(*overrides, f"+callbacks.ctrl_c={interrupt}", folder="part")
    rest = train(*overrides, f"resume={whole.parent / 'part'}", folder="rest")
    assert read_results(rest)["test"] == read_results(whole)["test"]
    assert all(torch.equal(weight, weights(whole)[name]) for name, weight in weights(rest).items())


def test_seeds_that_accumulate_are_not_stacked(tmp_path):
    from rule_extrapolation.experiment.seeds import reason_not_to_stack

    cfg = config(tmp_path, "grammar=L1", "data.batch_size=8", "+trainer.accumulate_grad_batches=2")
    assert reason_not_to_stack(cfg, assemble(cfg)) == "trainer.accumulate_grad_batches=2"
