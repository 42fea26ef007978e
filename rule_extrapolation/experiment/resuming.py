"""The checkpoint that a run resumes or starts from, checked against its settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from rule_extrapolation.core.errors import ConfigError, as_written
from rule_extrapolation.models.language_model import LanguageModel
from rule_extrapolation.runs.checkpoints import (
    best_checkpoint,
    completed_progress,
    lacks_validation,
    last_checkpoint,
    load,
    loads,
    shapes,
)
from rule_extrapolation.runs.identity import WITHOUT_EFFECT
from rule_extrapolation.runs.run_folder import DONE, read_config, read_results
from rule_extrapolation.training.language_modeling import LanguageModeling


def checkpoint_to_resume(cfg: DictConfig, module: LanguageModeling) -> Path | None:
    """The checkpoint that training continues from, or None to start again.

    In a sweep it is the last checkpoint in the run's own folder. Otherwise ``resume`` names it: a .ckpt file, or a run
    folder, whose last checkpoint is taken.

    Raises:
        ConfigError: there is no such checkpoint; its run has another model, language, data or optimization; it has had
            all its steps; or the model takes no steps.
    """
    if cfg.sweep is not None and (own := own_checkpoint(cfg, module)):
        check_same_settings(cfg, module.model, own.parent.parent)
        return own
    if cfg.resume is None:
        return None
    check_has_steps(cfg, "resume", module.model)
    path, checkpoint = read_checkpoint(cfg, "resume", last_checkpoint, "meta")
    check_same_settings(cfg, module.model, path.parent.parent)
    if shapes(checkpoint["state_dict"]) != shapes(module.state_dict()):
        raise ConfigError("resume", cfg.resume, "its weights are of another model; use that model's name and sizes")
    module.check_checkpoint("resume", checkpoint)
    check_groups(cfg, checkpoint, module)
    if ("ood" in checkpoint) != (module.ood is not None):
        fix = "the run to resume has another; use the same value"
        raise ConfigError("training.name", cfg.training.get("name"), fix)
    check_best(cfg, path)
    if not lacks_results(path, checkpoint):
        for key, done in completed_progress(checkpoint).items():
            if 0 < (cfg.trainer.get(key) or -1) <= done:
                raise ConfigError(f"trainer.{key}", cfg.trainer[key], f"already trained for {done}; increase it")
    return path


def check_groups(cfg: DictConfig, checkpoint: dict[str, Any], module: LanguageModeling) -> None:
    """Raise a ConfigError unless the optimizer of a checkpoint has as many groups of weights as the module's."""
    if not module.model.num_parameters:
        return
    [saved] = checkpoint["optimizer_states"]
    if len(saved["param_groups"]) != len(module.make_optimizer(module.model.parameters()).param_groups):
        decay = cfg.optimizer.get("decay", "convention")
        other = "all" if decay == "convention" else "convention"
        raise ConfigError("optimizer.decay", decay, f"the run to resume has {other}; use the same value")


def check_best(cfg: DictConfig, path: Path) -> None:
    """Raise a ConfigError if the best checkpoint beside the one to resume cannot be read, since it may be tested."""
    best = path.with_name(best_checkpoint(Path()).name)
    if best.is_file() and not loads(best):
        fix = f"{best} is not a checkpoint; delete it to go on without the best weights so far"
        raise ConfigError("resume", cfg.resume, fix)


def lacks_results(path: Path, checkpoint: dict[str, Any]) -> bool:
    """Whether the run of a checkpoint was interrupted in its last validation or later, so that its results are left to
    compute although it has had all its steps."""
    folder = path.parent.parent
    is_run = path == last_checkpoint(folder) and (folder / "config.yaml").is_file()
    return lacks_validation(checkpoint) or (is_run and (read_results(folder) or {}).get("status") not in DONE)


def own_checkpoint(cfg: DictConfig, module: LanguageModeling) -> Path | None:
    """The last checkpoint in the run's own folder, if there is one that loads and fits the model."""
    path = last_checkpoint(Path(cfg.run_dir))
    try:
        checkpoint = load(path, "meta")
        fits = shapes(checkpoint["state_dict"]) == shapes(module.state_dict())
        module.check_checkpoint("resume", checkpoint)
    except Exception:  # without a usable checkpoint the run starts again
        return None
    return path if fits else None


def has_ended(cfg: DictConfig, checkpoint: dict[str, Any]) -> bool:
    """Whether a checkpoint was written at the end of training, or where early stopping ended it, and no validation is
    left to do."""
    if lacks_validation(checkpoint):
        return False
    stopped = any(state.get("stopped") for state in checkpoint["callbacks"].values())
    progress = completed_progress(checkpoint)
    return stopped or any(0 < (cfg.trainer.get(key) or -1) <= done for key, done in progress.items())


def load_initial_weights(cfg: DictConfig, module: LanguageModeling, device: str | None) -> None:
    """Load the weights that ``ckpt`` names, if it names any. A run that is resumed has its own.

    Raises:
        ConfigError: there is no such file, its weights do not fit, or the model is fitted by counting.
    """
    if cfg.ckpt is None or cfg.resume is not None:
        return
    if not cfg.ckpt:
        raise ConfigError("ckpt", None, "must be set; name a run folder or a .ckpt file to start from")
    check_has_steps(cfg, "ckpt", module.model)
    _, checkpoint = read_checkpoint(cfg, "ckpt", best_checkpoint, device or "cpu")
    weights, own = shapes(checkpoint["state_dict"]), shapes(module.state_dict())
    if weights != own:
        name = next(name for name in [*own, *weights] if weights.get(name) != own.get(name))
        differ = f"its {name} is {weights.get(name, 'missing')}, not {own.get(name, 'missing')}"
        raise ConfigError("ckpt", cfg.ckpt, f"{differ}; set its model and sizes, and a grammar with as many symbols")
    module.check_checkpoint("ckpt", checkpoint)
    module.load_state_dict(checkpoint["state_dict"])


def check_has_steps(cfg: DictConfig, key: str, model: LanguageModel) -> None:
    """Raise a ConfigError for a model that is fitted by counting, which has no checkpoint to continue from."""
    if model.fitted_by_counting:
        raise ConfigError(key, cfg[key], f"{cfg.model.name} is counted again in seconds; leave {key} out")


def read_checkpoint(
    cfg: DictConfig, key: str, of_folder: Callable[[Path], Path], device: str
) -> tuple[Path, dict[str, Any]]:
    """The .ckpt file that ``cfg[key]`` names, or that of the run folder that it names, and its content.

    Args:
        of_folder: the path of the checkpoint in a run folder.

    Raises:
        ConfigError: there is no such file, or it is not a checkpoint.
    """
    path = Path(cfg[key])
    path = of_folder(path) if path.is_dir() else path
    if not path.is_file():
        raise ConfigError(key, cfg[key], f"there is no {path}; name a run folder or a .ckpt file")
    try:
        return path, load(path, device)
    except Exception as error:
        raise ConfigError(key, cfg[key], f"{path} is not a checkpoint of a run") from error


def check_same_settings(cfg: DictConfig, model: LanguageModel, folder: Path) -> None:
    """Raise a ConfigError for the first setting that affects training and differs from the run in that folder."""
    if not (folder / "config.yaml").is_file():
        return
    before = read_config(folder)
    for key in ("seed", "ckpt"):
        if cfg[key] != before.get(key):
            raise ConfigError(key, cfg[key], f"the run to resume has {as_written(before.get(key))}; use the same value")
    trainer = ("gradient_clip_val", "gradient_clip_algorithm", "accumulate_grad_batches", "precision")
    for group in ("grammar", "data", "model", "optimizer", "scheduler", "training", "trainer"):
        now, then = OmegaConf.to_container(cfg[group], resolve=True), before.get(group, {})
        for key in trainer if group == "trainer" else {**now, **then}:
            if (group == "model" and key == model.context_setting) or f"{group}.{key}" in WITHOUT_EFFECT:
                continue
            if key == "decay" and group == "optimizer":
                if not now.get("weight_decay"):
                    continue
                then.setdefault("decay", "all")  # as in runs of earlier versions
            if now.get(key) != then.get(key):
                fix = f"the run to resume has {as_written(then.get(key))}; use the same value"
                raise ConfigError(f"{group}.{key}", now.get(key), fix)
    if results := read_results(folder):
        backend = results.get("backend")
        if backend != model.backend:
            raise ConfigError("model.backend", model.backend, f"the run to resume used {backend}; use the same value")
