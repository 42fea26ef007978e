"""A trained run, loaded from its folder."""

from __future__ import annotations

import pydoc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from rule_extrapolation.config.composing import resolve_factory
from rule_extrapolation.core.errors import ConfigError

if TYPE_CHECKING:
    from rule_extrapolation.grammars.grammar import Grammar
    from rule_extrapolation.inference.decoding import Decoder
    from rule_extrapolation.models.language_model import LanguageModel
    from rule_extrapolation.training.language_modeling import LanguageModeling


@dataclass
class TrainedRun:
    folder: Path
    cfg: DictConfig
    checkpoint: Path | None
    """Where the weights are from; None: the model has none."""
    task: Any
    """The language, or what has its place."""
    model: LanguageModel
    """On the CPU, for evaluation."""
    decoder: Decoder
    caveat: str | None

    @property
    def grammar(self) -> Grammar:
        """The task of a run on a language."""
        return self.task

    @property
    def results(self) -> dict[str, Any]:
        """What is in its results.json."""
        from rule_extrapolation.runs.run_folder import read_results

        return read_results(self.folder)

    def grammar_with(self, **changed: int) -> Grammar:
        """The run's language with another max_length or test_prompt_length.

        Raises:
            ConfigError: the language refuses it.
        """
        make = resolve_factory(self.cfg, "grammar", given=["max_length"])
        return make(**{"max_length": self.grammar.max_length, **changed})

    def header(self) -> dict[str, Any]:
        """What results.json says of it, as far as ``terminal.model_title`` reads it."""
        tested = self.checkpoint and self.checkpoint.stem
        name = self.cfg.model.name
        return {"model": name, "caveat": self.caveat, "grammar": self.task.name, "tested": tested}


def find_config(folder: str) -> Path:
    """The config.yaml of a run's folder. This and all that can be said without torch comes before it is imported.

    Raises:
        ConfigError: there is none.
    """
    path = Path(folder)
    if not folder or not path.is_dir():
        raise ConfigError("run", folder, "there is no such folder; name the one that a run printed")
    if not (path / "config.yaml").is_file():
        raise ConfigError("run", folder, "holds no config.yaml; name the folder that a run printed")
    return path / "config.yaml"


def load_run(folder: str, context: Callable[[DictConfig], int] = lambda cfg: 0) -> TrainedRun:
    """The run's model with the weights of its best checkpoint, or of the last where there is no best.

    Args:
        context: how many tokens it is to read, by its configuration, if its weights allow for as many as one likes.

    Raises:
        ConfigError: there is no such run, its configuration cannot work, or its weights are missing or do not fit.
    """
    config = find_config(folder)
    from rule_extrapolation.experiment.checkpoints import read_config
    from rule_extrapolation.experiment.run import assemble

    try:
        cfg = read_config(config.parent)
        module = assemble(on_cpu(cfg, context), data=saved_data(cfg, config.parent)).module
    except Exception as error:
        raise ConfigError("run", folder, f"its config.yaml cannot be used: {error}") from error
    checkpoint = None
    if module.model.num_parameters or module.model.fitted_by_counting:
        checkpoint = find_checkpoint(config.parent)
        load_weights(module, checkpoint, folder)
    module.eval().requires_grad_(False)
    caveats = [module.caveat, "diverged in training" if diverged(config.parent) else None]
    caveat = "; ".join(filter(None, caveats)) or None
    return TrainedRun(config.parent, cfg, checkpoint, module.task, module.model, module.decoder, caveat)


def on_cpu(cfg: DictConfig, context: Callable[[DictConfig], int]) -> DictConfig:
    """The configuration with what depends on where the run was, or on what it went on from, left out; and with as much
    context."""
    cfg = cfg.copy()
    cfg.resume = cfg.ckpt = None
    cfg.trainer = {"_target_": cfg.trainer._target_, "accelerator": "cpu"}
    if "backend" in cfg.model:
        cfg.model.backend = "auto"
    if setting := getattr(pydoc.locate(cfg.model._target_), "context_setting", None):
        cfg.model[setting] = max(context(cfg), cfg.model[setting])
    return cfg


def saved_data(cfg: DictConfig, folder: Path) -> Any:
    """What the run has kept of its data, if it cannot be built from the configuration alone."""
    saved = getattr(pydoc.locate(cfg.data._target_), "saved", None)
    return saved and saved(cfg.grammar.name, folder)


def diverged(folder: Path) -> bool:
    from rule_extrapolation.runs.run_folder import read_results

    return (folder / "results.json").is_file() and read_results(folder).get("status") == "diverged"


def find_checkpoint(folder: Path) -> Path:
    for path in (folder / "checkpoints" / "best.ckpt", folder / "checkpoints" / "last.ckpt"):
        if path.is_file():
            return path
    raise ConfigError("run", folder, "holds no checkpoints/best.ckpt or last.ckpt; name a run that was trained")


def load_weights(module: LanguageModeling, checkpoint: Path, folder: str) -> None:
    import torch

    try:
        module.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"])
    except Exception as error:
        fix = f"checkpoints/{checkpoint.name} is no checkpoint of the model in its config.yaml"
        raise ConfigError("run", folder, fix) from error
