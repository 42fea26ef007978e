"""A run that can change no weight, or whose precision does not work, is refused before any work."""

import pytest
import torch
from conftest import SHORT, config, read_results

from rule_extrapolation.experiment.assembling import assemble

TINY = ["model.embedding_dim=4", "model.hidden_dim=4"]
ONE_EPOCH = ["grammar=L1", "scheduler.interval=epoch", "trainer.max_steps=-1", "data.batch_size=2"]
NO_STEP = {
    "trainer.max_epochs=1": "trainer.max_epochs=1",
    "trainer.max_epochs=1 +trainer.accumulate_grad_batches=4": "trainer.max_epochs=1",
    "trainer.max_epochs=5 trainer.max_steps=16": "trainer.max_epochs=5",
    "trainer.max_steps=16": "trainer.max_steps=16",
    "trainer.max_steps=1 scheduler.interval=step": "trainer.max_steps=1",
    "trainer.max_epochs=1 data.batch_size=32 scheduler.interval=step": "trainer.max_epochs=1",
}
REST = "the learning rate is 0 in all of its steps, and no weight would change; train longer, or set scheduler=constant"


@pytest.mark.parametrize(("overrides", "named"), NO_STEP.items())
def test_a_learning_rate_of_0_throughout_is_refused(cli, tmp_path, overrides, named):
    status, out, err = cli(*SHORT, *TINY, *ONE_EPOCH, *overrides.split())
    assert (status, out, err) == (2, "", f"error: {named}: {REST}\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "overrides",
    [
        "trainer.max_epochs=2", "trainer.max_steps=17", "trainer.max_epochs=1 scheduler.interval=step",
        "trainer.max_steps=2 scheduler.interval=step", "model=oracle trainer.max_epochs=1", "trainer.max_epochs=-1",
        "model=ngram trainer.max_epochs=1",
    ],
)  # fmt: skip
def test_one_step_at_a_rate_above_0_is_enough(tmp_path, overrides):
    sizes = [] if "model=" in overrides else TINY
    assert assemble(config(tmp_path, *sizes, *ONE_EPOCH, *overrides.split()))


def test_a_rate_of_0_is_refused_unless_nothing_is_trained(cli, tmp_path):
    status, _, err = cli(*SHORT, "optimizer.lr=0")
    assert (status, err) == (2, "error: optimizer.lr=0: must be greater than 0\n")


def test_checking_changes_neither_weights_nor_draws(tmp_path):
    """The shortest run that is not refused, checked and not checked, has the same weights and the same state."""
    overrides = [*TINY, "+trainer.precision=bf16-mixed", "trainer.accelerator=cpu", "model.dropout=0.1"]
    torch.manual_seed(0)
    checked = assemble(config(tmp_path, *overrides))
    after = torch.get_rng_state()
    torch.manual_seed(0)
    plain = assemble(config(tmp_path, *overrides[:2], *overrides[3:]))
    assert torch.equal(after, torch.get_rng_state())
    for ours, theirs in zip(checked.module.parameters(), plain.module.parameters(), strict=True):
        assert torch.equal(ours, theirs) and ours.grad is None


MIXED = [*SHORT, "+trainer.precision=bf16-mixed", "trainer.accelerator=cpu"]


def test_a_precision_that_an_architecture_cannot_have_is_one_line(cli, tmp_path):
    status, out, err = cli(*MIXED, "model=lstm")
    if status == 0:
        pytest.skip("this CPU runs an LSTM in bfloat16")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: trainer.precision=bf16-mixed: does not work for lstm on this CPU; leave it out, or ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("model", ["minlstm", "transformer"])
def test_a_precision_that_works_trains(train, model):
    small = TINY if model == "minlstm" else ["model.dim_model=8", "model.num_decoder_layers=1", "model.num_heads=2"]
    run = train("+trainer.precision=bf16-mixed", "trainer.accelerator=cpu", f"model={model}", *small)
    assert read_results(run)["status"] == "finished"
