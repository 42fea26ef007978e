"""A trained run, loaded from its folder."""

from __future__ import annotations

import inspect
import pydoc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from rule_extrapolation.config.building import build_data, resolve_factory
from rule_extrapolation.config.checks import check_settings
from rule_extrapolation.config.messages import one_line
from rule_extrapolation.config.trust import check_targets
from rule_extrapolation.core.errors import ConfigError
from rule_extrapolation.experiment.prompts import Completion, encode_prompt
from rule_extrapolation.runs.run_folder import read_config, read_metrics, read_results

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from rule_extrapolation.core.task import Task
    from rule_extrapolation.grammars.grammar import Grammar
    from rule_extrapolation.inference.decoding import Decoder
    from rule_extrapolation.models.language_model import LanguageModel
    from rule_extrapolation.training.language_modeling import LanguageModeling


@dataclass(repr=False)
class TrainedRun:
    """A run's model with its trained weights, on the CPU and in evaluation mode, and all that its folder says."""

    folder: Path
    cfg: DictConfig
    checkpoint: Path | None
    """Where the weights are from; None for a model without weights."""
    task: Task
    """The language or the text that it was trained on."""
    model: LanguageModel
    decoder: Decoder
    caveat: str | None
    """What a table must say next to the run's figures, if anything."""

    def __repr__(self) -> str:
        weights = f"{self.checkpoint.stem} checkpoint" if self.checkpoint else "no weights"
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        model = f"{self.cfg.model.name} ({parameters:,} parameters, {weights})"
        return f"TrainedRun: {model} on {self.task.name}, {self.folder}"

    @property
    def grammar(self) -> Grammar:
        """The language of a run on a language. A run on a text has only ``task``."""
        if self.task.kind != "language":
            raise AttributeError(f"{self.task.name} is not a language; use task")
        return self.task

    @property
    def results(self) -> dict[str, Any]:
        """The content of results.json; empty if the run has not written it."""
        return read_results(self.folder) or {}

    def read_metrics(self) -> pd.DataFrame:
        """Every logged value, one a row: ``step``, ``epoch``, ``metric`` (its logged name) and ``value``."""
        return read_metrics(self.folder)

    def complete(
        self, prompt: str = "", temperature: float | None = None, seed: int = 0, max_new_tokens: int | None = None
    ) -> Completion:
        """Complete one prompt.

        >>> run.complete("aaab")  # doctest: +SKIP
        aaab|bb  R1 kept  R2 kept  R3 kept

        Args:
            temperature: of the distribution that tokens are drawn from; None decodes greedily.
            seed: of the draws.
            max_new_tokens: after which an unfinished completion ends, whatever the run's limits are. None: the run's
                own ``decoding.max_new_tokens`` and ``decoding.max_tokens``.

        Raises:
            ConfigError: a symbol outside the alphabet, a prompt longer than the model reads, or a temperature that is
                not positive.
        """
        from rule_extrapolation.inference.decoding import Greedy, Sample, decoding_limits
        from rule_extrapolation.inference.evaluation import probabilities

        tokens = encode_prompt(self.task, self.model, prompt)
        limits = decoding_limits(self.decoder, max_new_tokens)
        decoder = Greedy(**limits) if temperature is None else Sample(temperature=temperature, seed=seed, **limits)
        completed = decoder(self.model, tokens)
        [probability] = probabilities(self.model, completed, tokens.shape[1]).tolist()
        text, finished, rules = self.task.judge_completion(completed, tokens.shape[1])
        return Completion(prompt, text, finished, probability, rules)

    def logits(self, prompt: str = "") -> Tensor:
        """(P, num_tokens) logits of the token after each of a prompt's P tokens.

        A language's prompt begins with SOS, so that "aab" has P = 4 and the last row is for the token after "b".

        Raises:
            ConfigError: a symbol outside the alphabet, or a prompt longer than the model reads.
        """
        import torch

        with torch.no_grad():
            return self.model(encode_prompt(self.task, self.model, prompt))[0].T

    def grammar_with(self, **changed: int) -> Grammar:
        """The run's language with another max_length or test_prompt_length.

        Raises:
            ConfigError: the language rejects it.
        """
        make = resolve_factory(self.cfg, "grammar", given=["max_length"])
        for key in changed.keys() - inspect.signature(make).parameters:
            fix = f"{self.grammar.name} takes no {key}; add it to the arguments of its class, as Grammar has it"
            raise ConfigError(key, changed[key], fix)
        return make(**{"max_length": self.grammar.max_length, **changed})

    def header(self) -> dict[str, Any]:
        """What ``terminal.model_title`` needs of results.json."""
        tested = self.checkpoint and self.checkpoint.stem
        name = self.cfg.model.name
        return {"model": name, "caveat": self.caveat, "grammar": self.task.name, "tested": tested}


def find_config(folder: str | Path) -> Path:
    """The config.yaml of a run's folder. Commands call it first, since it needs no torch.

    Raises:
        ConfigError: there is none.
    """
    path = Path(folder)
    if not str(folder) or not path.is_dir():
        raise ConfigError("run", folder, "there is no such folder; name the one that a run printed")
    if not (path / "config.yaml").is_file():
        raise ConfigError("run", folder, "holds no config.yaml; name the folder that a run printed")
    return path / "config.yaml"


def check_objects(grammar: Any, model: Any) -> None:
    """Raise a ConfigError unless each is None or an object of its kind."""
    from rule_extrapolation.grammars.grammar import Grammar
    from rule_extrapolation.models.language_model import LanguageModel

    for name, value, cls in (("grammar", grammar, Grammar), ("model", model, LanguageModel)):
        if isinstance(value, type):
            raise ConfigError(name, value.__name__, f"is a class; pass an object of it: {value.__name__}(...)")
        if value is not None and not isinstance(value, cls):
            raise ConfigError(name, type(value).__name__, f"must be a {cls.__name__}")


def import_path(value: Any) -> str:
    """The import path of an object's class, as a configuration names it."""
    return f"{type(value).__module__}.{type(value).__qualname__}"


def load_run(
    folder: str | Path,
    *,
    grammar: Grammar | None = None,
    model: LanguageModel | None = None,
    trust_run: bool = False,
    min_context: Callable[[DictConfig], int] = lambda cfg: 0,
) -> TrainedRun:
    """Load a run's model with the weights of its best checkpoint, or of the last where there is no best.

    Args:
        grammar, model: the objects that the run was trained with, if its configuration cannot build them again.
        trust_run: build what the configuration names whatever it is, which can run any code. Otherwise only languages,
            models, data and decoders of this package and of installed plugins are built.
        min_context: from the run's configuration, the number of tokens that the model must be able to read, for models
            whose weights allow any number.

    Raises:
        ConfigError: there is no such run, its configuration is invalid or names another class, or its weights are
            missing or do not fit.
    """
    path = find_config(folder).parent
    check_objects(grammar, model)
    given = {"grammar": grammar, "model": model}
    own = {group: import_path(value) for group, value in given.items() if value is not None}
    with config_usable(folder):
        cfg = read_config(path)
        for group in own:
            cfg[group]._target_ = own[group]
        if not trust_run:
            check_targets(cfg, own.values())
    from rule_extrapolation.experiment.assembling import build_model_for, build_module
    from rule_extrapolation.experiment.libraries import set_up_libraries
    from rule_extrapolation.runs.checkpoints import tested_checkpoint

    set_up_libraries()
    with config_usable(folder):
        check_settings(cfg)
        settings = for_evaluation(cfg, min_context)
        data = saved_data(settings, path) or build_data(settings, grammar)
        module = build_module(settings, data, build_model_for(settings, data, model=model), trains=False)
    checkpoint = None
    if any(True for _ in module.model.parameters()) or module.model.fitted_by_counting:
        checkpoint = tested_checkpoint(path)
        if checkpoint is None:
            raise ConfigError("run", path, "holds no checkpoints/best.ckpt or last.ckpt; name a run that was trained")
        load_trained_weights(module, checkpoint, folder)
    module.eval()
    if model is None:  # an object stays as trainable as the caller has made it
        module.requires_grad_(False)
    return TrainedRun(path, cfg, checkpoint, module.task, module.model, module.decoder, caveat_of(path, module))


@contextmanager
def config_usable(folder: str | Path) -> Iterator[None]:
    """Turn what is wrong with a run's configuration into a ConfigError of one line that names the run."""
    try:
        yield
    except Exception as error:
        raise ConfigError("run", folder, f"its config.yaml cannot be used: {one_line(error)}") from error


def for_evaluation(cfg: DictConfig, min_context: Callable[[DictConfig], int]) -> DictConfig:
    """The configuration for the CPU, with the context that is asked for."""
    cfg = cfg.copy()
    cfg.trainer.accelerator = "cpu"
    if "backend" in cfg.model:
        cfg.model.backend = "auto"
    setting = getattr(pydoc.locate(cfg.model._target_), "context_setting", None)
    if setting in cfg.model:  # the configuration of a run with a model object may lack it
        cfg.model[setting] = max(min_context(cfg), cfg.model[setting])
    return cfg


def saved_data(cfg: DictConfig, folder: Path) -> Any:
    """What the run has saved of its data, if the data cannot be built from the configuration alone."""
    saved = getattr(pydoc.locate(cfg.data._target_), "saved", None)
    return saved and saved(cfg.grammar.name, folder)


def caveat_of(folder: Path, module: LanguageModeling) -> str | None:
    """The run's caveat: as it was written, or the module's where the run wrote none."""
    results = read_results(folder)
    if results is None:
        return module.caveat
    diverged = "diverged in training" if results.get("status") == "diverged" else None
    return "; ".join(filter(None, [results.get("caveat", module.caveat), diverged])) or None


def load_trained_weights(module: LanguageModeling, checkpoint: Path, folder: str | Path) -> None:
    """Load a checkpoint's weights into the module.

    Raises:
        ConfigError: the file cannot be read, or its weights are of another model.
    """
    from rule_extrapolation.runs.checkpoints import load

    try:
        module.load_state_dict(load(checkpoint, "cpu")["state_dict"])
    except Exception as error:
        fix = f"checkpoints/{checkpoint.name} is not a checkpoint of the model in its config.yaml"
        raise ConfigError("run", folder, fix) from error
