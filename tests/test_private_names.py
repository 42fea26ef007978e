"""The list of private names in docs/architecture.md is complete, and the names exist."""

import re

from conftest import ROOT
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.plugins import Plugins
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.strategies import launchers

PACKAGE = ROOT / "rule_extrapolation"
SECTION = (ROOT / "docs" / "architecture.md").read_text().split("## Private names")[1]
LISTED = {
    file: set(re.findall(r"`([\w.]+)`", names)) for file, names in re.findall(r"^\| `(.+?)` \| (.*?) \|", SECTION, re.M)
}
OURS = re.compile(r"\b(?:self|cls|super\(\))\._\w+")


def private_names(text):
    """Names with a single leading underscore that are read of modules or objects which are not our own."""
    code = "\n".join(line.partition("  #")[0] for line in text.splitlines())
    attributes = set(re.findall(r"\.(_[a-z]\w+)\b", OURS.sub("", code)))
    imported = {name for line in re.findall(r"import (.*)", code) for name in re.findall(r"\b_[A-Za-z]\w+", line)}
    return (attributes | imported) - {"_exit", "_target_", "_internal", "_kernels"}


def test_every_private_import_and_attribute_is_listed():
    for path in PACKAGE.rglob("*.py"):
        found = private_names(path.read_text())
        listed = LISTED.get(path.relative_to(PACKAGE).as_posix(), set())
        own = {"_to_model"}  # wandb-workspaces', in cli/dashboard.py
        assert found - own <= listed, path


def test_the_listed_names_are_used_and_exist():
    for file, names in LISTED.items():
        text = (PACKAGE / file).read_text()
        assert names and all(name in text for name in names)
    assert callable(BasicSweeper.split_arguments)
    assert callable(ConfigLoaderImpl.load_sweep_config)
    assert callable(Plugins.instantiate_launcher)
    assert isinstance(launchers._MultiProcessingLauncher, type)
    assert callable(TQDMProgressBar._should_update)
    module = LightningModule()
    assert module._trainer is None and module._current_fx_name is None
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", max_steps=1)
    assert "_batches_that_stepped" in trainer.fit_loop.state_dict()["epoch_loop.state_dict"]
