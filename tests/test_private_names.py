"""The list of private names in docs/architecture.md is complete, and the names exist."""

import importlib
import inspect
import re

import torch
from conftest import ROOT
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.plugins import Plugins
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.strategies import launchers
from torch.optim import AdamW

PACKAGE = ROOT / "rule_extrapolation"
SECTION = (ROOT / "docs" / "architecture.md").read_text().split("## Private names")[1]
LISTED = {
    file: set(re.findall(r"`([\w.]+)`", names)) for file, names in re.findall(r"^\| `(.+?)` \| (.*?) \|", SECTION, re.M)
}
OURS = re.compile(r"\b(?:self|cls|super\(\))\._\w+")
PRIVATE = r"_[a-z]\w+"


def private_names(text):
    """Names with a single leading underscore that are read of modules or objects which are not our own."""
    code = "\n".join(line.partition("  #")[0] for line in text.splitlines())
    attributes = set(re.findall(rf"\.({PRIVATE})\b", OURS.sub("", code)))
    attributes |= set(re.findall(rf"attr\([^()]*, \"({PRIVATE})\"", code))
    imported = {name for line in re.findall(r"import (.*)", code) for name in re.findall(r"\b_[A-Za-z]\w+", line)}
    return (attributes | imported) - {"_exit", "_target_", "_internal", "_kernels"}


def private_names_of_bases(path):
    """Private names of base classes from elsewhere that our classes override or read."""
    used = set(re.findall(rf"(?:def |self\.|super\(\)\.|cls\.)({PRIVATE})\b", path.read_text()))
    if not used:
        return set()
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    classes = [cls for cls in vars(module).values() if inspect.isclass(cls) and cls.__module__ == module.__name__]
    bases = {base for cls in classes for base in cls.__mro__ if not base.__module__.startswith("rule_extrapolation")}
    sources = [inspect.getsource(base) for base in bases - {object} if base.__module__ != "builtins"]
    return {name for name in used if any(re.search(rf"\b{name}\b", source) for source in sources)}


def test_every_private_import_and_attribute_is_listed():
    for path in PACKAGE.rglob("*.py"):
        found = private_names(path.read_text()) | private_names_of_bases(path)
        listed = LISTED.get(path.relative_to(PACKAGE).as_posix(), set())
        # wandb-workspaces', in cli/dashboard.py; and the mark of weights that do not decay, as in mamba-ssm.
        own = {"_to_model", "_no_weight_decay"}
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
    assert callable(ExperimentWriter._check_log_dir_exists)
    assert callable(ExperimentWriter._rewrite_with_new_header)
    assert CSVLogger("folder")._experiment is None
    assert AdamW([torch.nn.Parameter(torch.zeros(1))], fused=True)._step_supports_amp_scaling
    module = LightningModule()
    assert module._trainer is None and module._current_fx_name is None
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", max_steps=1)
    assert "_batches_that_stepped" in trainer.fit_loop.state_dict()["epoch_loop.state_dict"]
    epoch_loop = trainer.fit_loop.epoch_loop
    assert callable(epoch_loop._should_check_val_fx) and callable(epoch_loop._num_ready_batches_reached)
    assert callable(epoch_loop._should_accumulate)
    assert epoch_loop._skip_next_val is False and trainer.fit_loop._data_fetcher is None
    assert trainer.fit_loop._can_stop_early and callable(epoch_loop.val_loop._on_evaluation_end)
