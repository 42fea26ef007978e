"""Checks of the Trainer's settings that change what a run measures. They need neither torch nor Lightning."""

from __future__ import annotations

from omegaconf import DictConfig

from rule_extrapolation.core.errors import ConfigError

PART = "the figures would be of part of the words; leave it out, and set data.num_val and data.num_test"
REFUSED = {
    "fast_dev_run": ((False, 0), "would write no results; leave it out, and set trainer.max_steps=2"),
    "overfit_batches": ((0,), "would validate on training words; leave it out, and set data.num_train"),
    "limit_train_batches": ((None, 1.0), "would repeat the end of the data; leave it out, and set data.num_train"),
    "limit_val_batches": ((None, 1.0), PART),
    "limit_test_batches": ((None, 1.0), PART),
    "num_sanity_val_steps": ((0,), "would count among the validations; set 0, since settings are checked before work"),
    "reload_dataloaders_every_n_epochs": ((0,), "would repeat the order of the batches; leave it out"),
    "barebones": ((False,), "would write no results; leave it out"),
    "enable_checkpointing": ((None, True), "resume= and the test need checkpoints; leave it out"),
}
"""The values with which a run does what this program says, and why others are refused."""
PRECISIONS = {
    "bf16": "does not say which; set bf16-mixed or bf16-true",
    "16": "does not say which; set 16-mixed or 16-true",
}


def check_trainer(trainer: DictConfig) -> None:
    """Check the settings of the Trainer.

    Raises:
        ConfigError: naming the key, its value and how to fix it.
    """
    for key, (kept, fix) in REFUSED.items():
        value = trainer.get(key, kept[0])
        if not any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in kept):
            # Lightning reads 1 as one batch, and 1.0 as all of them.
            raise ConfigError(f"trainer.{key}", value, fix)
        if key.startswith("limit_") and value is not None and type(value) is not float:
            raise ConfigError(f"trainer.{key}", value, fix)
    check_accumulation(trainer)
    precision = str(trainer.get("precision"))
    if precision in PRECISIONS:
        raise ConfigError("trainer.precision", precision, PRECISIONS[precision])


def check_accumulation(trainer: DictConfig) -> None:
    """Raise a ConfigError where validations would fall between the batches of an optimizer step."""
    batches = trainer.get("accumulate_grad_batches", 1)
    if type(batches) is not int:
        raise ConfigError("trainer.accumulate_grad_batches", batches, "must be int")
    per_epoch, interval = trainer.get("check_val_every_n_epoch", 1), trainer.get("val_check_interval")
    if batches > 1 and per_epoch is not None and interval not in (None, 1.0):
        fix = f"may fall between the {batches} batches of a step; set 1.0, or trainer.check_val_every_n_epoch=null"
        raise ConfigError("trainer.val_check_interval", interval, fix)
