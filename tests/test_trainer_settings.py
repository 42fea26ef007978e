"""Lightning's settings that change what is measured work, or are refused in one line before any work."""

import math

import pytest
from conftest import SHORT, read_metrics, read_results

TINY = ["model.embedding_dim=4", "model.hidden_dim=4"]
PART = "the figures would be of part of the words; leave it out, and set data.num_val and data.num_test"
NO_RESULTS = "would write no results; leave it out"
TWO = "+trainer.accumulate_grad_batches=2"
REFUSED = {
    "+trainer.fast_dev_run=true": f"trainer.fast_dev_run=true: {NO_RESULTS}, and set trainer.max_steps=2",
    "+trainer.fast_dev_run=3": f"trainer.fast_dev_run=3: {NO_RESULTS}, and set trainer.max_steps=2",
    "+trainer.overfit_batches=1": "trainer.overfit_batches=1: would validate on training words; leave it out",
    "+trainer.overfit_batches=0.5": "trainer.overfit_batches=0.5: would validate on training words",
    "+trainer.limit_val_batches=1": f"trainer.limit_val_batches=1: {PART}",
    "+trainer.limit_val_batches=0.5": f"trainer.limit_val_batches=0.5: {PART}",
    "+trainer.limit_test_batches=2": f"trainer.limit_test_batches=2: {PART}",
    "+trainer.limit_train_batches=2": "trainer.limit_train_batches=2: would repeat the end of the data; leave it out",
    "trainer.num_sanity_val_steps=2": "trainer.num_sanity_val_steps=2: would count among the validations; set 0",
    "+trainer.reload_dataloaders_every_n_epochs=1": "trainer.reload_dataloaders_every_n_epochs=1: would repeat the",
    "+trainer.barebones=true": f"trainer.barebones=true: {NO_RESULTS}",
    "+trainer.enable_checkpointing=false": "trainer.enable_checkpointing=false: resume= and the test need checkpoints",
    "+trainer.accumulate_grad_batches=4": "trainer.accumulate_grad_batches=4: an epoch has 1 batch, and a step takes",
    "grammar=L1 +trainer.accumulate_grad_batches=4 data.batch_size=12": "set at most 3, or a smaller data.batch_size",
    "+trainer.accumulate_grad_batches=0": "trainer.accumulate_grad_batches=0: must be greater than 0",
    "+trainer.accumulate_grad_batches=2.5": "trainer.accumulate_grad_batches=2.5: must be int",
    f"{TWO} data.batch_size=8 trainer.check_val_every_n_epoch=1 trainer.val_check_interval=3":
        "trainer.val_check_interval=3: may fall between the 2 batches of a step; set 1.0, or",
    "+trainer.gradient_clip_algorithm=nrm trainer.gradient_clip_val=1": "gradient_clip_algorithm",
    "trainer.gradient_clip_val=0": "trainer.gradient_clip_val=0: must be greater than 0",
    "trainer.check_val_every_n_epoch=0": "trainer.check_val_every_n_epoch=0: must be greater than 0",
    "+trainer.precision=bf16": "trainer.precision=bf16: does not say which; set bf16-mixed or bf16-true",
    "+trainer.precision=16": "trainer.precision=16: does not say which; set 16-mixed or 16-true",
    "+trainer.precision=16-mixed trainer.accelerator=cpu": "trainer.precision=16-mixed: needs a GPU; set bf16-mixed",
}  # fmt: skip


@pytest.mark.parametrize(("overrides", "message"), REFUSED.items())
def test_refused_in_one_line_without_a_folder(cli, tmp_path, overrides, message):
    status, out, err = cli(*SHORT, *TINY, *overrides.split())
    assert (status, err.count("\n"), out) == (2, 1, "")
    assert err.startswith("error: ") and message in err
    assert not list(tmp_path.iterdir())


def test_max_time_ends_training_with_a_validation(train):
    run = train("grammar=L1", *TINY, "+trainer.max_time={milliseconds: 1}", "trainer.max_steps=1000")
    validated = [row["step"] for row in read_metrics(run) if "Val/loss" in row]
    results = read_results(run)
    assert results["status"] == "finished"
    assert len(validated) == 1 and validated[0] < 999
    assert results["at_best_validation"]["step"] == validated[0] + 1


def test_detect_anomaly_changes_no_figure(train):
    plain, watched = (
        train("grammar=L1", *TINY, *more, folder=folder)
        for folder, more in {"plain": [], "watched": ["+trainer.detect_anomaly=true"]}.items()
    )
    assert read_results(plain)["test"] == read_results(watched)["test"]


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_gradients_are_clipped_by_either_algorithm(train, algorithm):
    """SGD at a learning rate of 1 moves the weights by the clipped gradient."""
    run = train(
        "optimizer=sgd", "optimizer.lr=1", "optimizer.momentum=0", "scheduler=constant", *TINY,
        "trainer.max_steps=1", "trainer.gradient_clip_val=1e-3", f"+trainer.gradient_clip_algorithm={algorithm}",
    )  # fmt: skip
    assert math.isfinite(read_results(run)["test"]["Test/loss"])


def test_validation_every_other_epoch(train):
    run = train(
        "grammar=L1", "data.batch_size=16", *TINY, "trainer.max_steps=-1", "trainer.max_epochs=5",
        "trainer.val_check_interval=1.0", "trainer.check_val_every_n_epoch=2",
    )  # fmt: skip
    assert [row["step"] for row in read_metrics(run) if "Val/loss" in row] == [3, 7, 9]
