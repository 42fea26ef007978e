"""The Hydra configuration: where its files are, the groups that they form and the functions that they use."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import hydra
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf

from rule_extrapolation.core import plugins
from rule_extrapolation.core.errors import ConfigError, one_of
from rule_extrapolation.core.files import expand_home
from rule_extrapolation.data import text_name
from rule_extrapolation.grammars import ALIASES, LANGUAGES, TAKEN, target
from rule_extrapolation.runs.identity import identity

PACKAGE = Path(__file__).parents[1]
# Installed, the configuration lies inside the package; in a checkout, beside it.
CONF_DIR = next(path for path in (PACKAGE / "conf", PACKAGE.parent / "conf") if path.is_dir())

OUR_MODELS = {file.stem for file in (CONF_DIR / "model").glob("*.yaml")}
"""The names that another package cannot give a model."""


class OutsideConfigurations(SearchPathPlugin):
    """Adds the folders ``conf`` of other packages to Hydra's search path."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for package, folder in plugins.conf_folders().items():
            search_path.append(package, f"file://{folder}")


def register() -> None:
    """Register the languages and the models of other packages as choices, and the functions that the YAML files use."""
    store = ConfigStore.instance()
    for name in [*LANGUAGES, *ALIASES]:
        canonical = ALIASES.get(name, name)
        node = {"name": canonical, "_target_": target(name), "test_prompt_length": None, "num_sos_prompts": 32}
        store.store(group="grammar", name=name, node={**node, **LANGUAGES[canonical].options})
    # data=text has no language; its runs are named by the text.
    store.store(group="grammar", name="none", node={"name": "${text_name:${data.path}}", "_target_": None})
    with_settings = {name for folder in plugins.conf_folders().values() for name in choices_in(folder / "model")}
    for name, path in plugins.targets(plugins.MODELS, OUR_MODELS).items():
        if name not in with_settings:
            store.store(group="model", name=name, node={"name": name, "_target_": path})
    Plugins.instance().register(OutsideConfigurations)
    OmegaConf.register_new_resolver("text_name", text_name, replace=True)
    OmegaConf.register_new_resolver("twice", lambda number: 2 * number, replace=True)
    OmegaConf.register_new_resolver("min_positive", min_positive, replace=True)
    OmegaConf.register_new_resolver("sum_ints", sum_ints, replace=True)
    OmegaConf.register_new_resolver("seed_label", seed_label, replace=True)
    OmegaConf.register_new_resolver("sweep_name", lambda name: name or "default", replace=True)
    OmegaConf.register_new_resolver("identity", lambda *, _root_: identity(_root_), replace=True)


OPTIONAL = ("experiment", "hparams_search")
"""Groups of which no choice is needed."""


def as_hydra_reads(overrides: Iterable[str]) -> list[str]:
    """Overrides in the form that Hydra takes: it refuses null as a group's choice, and a value that begins with ~.

    Raises:
        ConfigError: null for a group of which a choice is needed.
    """
    read = []
    for override in overrides:
        key, equals, value = override.partition("=")
        if value == "null" and key in (known := groups()):
            if key in OPTIONAL:
                continue
            if "none" not in known[key]:
                raise ConfigError(key, value, one_of(value, known[key]))
            override = f"{key}=none"
        elif equals:
            override = f"{key}={expand_home(value)}"
        read.append(override)
    return read


def compose(*overrides: str, with_hydra: bool = False) -> DictConfig:
    """The configuration that a command line makes.

    Args:
        with_hydra: whether Hydra's own settings are part of it.

    Raises:
        Exception: Hydra's and OmegaConf's, which ``messages.one_line`` puts into words.
    """
    with hydra.initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return hydra.compose("config", as_hydra_reads(overrides), return_hydra_config=with_hydra)


def groups() -> dict[str, list[str]]:
    """The choices of each configuration group."""
    choices: dict[str, set[str]] = {}
    for conf in (CONF_DIR, *plugins.conf_folders().values()):
        for folder in filter(Path.is_dir, conf.iterdir()):
            choices.setdefault(folder.name, set()).update(choices_in(folder))
    choices["grammar"] = {*ALIASES, *LANGUAGES}
    choices["model"] |= {*plugins.targets(plugins.MODELS, OUR_MODELS)}
    return {group: sorted(choices[group]) for group in sorted(choices) if choices[group]}


def models() -> dict[str, str]:
    """Each model with the first line of its YAML file if that is a comment, or else with its class."""
    described = dict(plugins.targets(plugins.MODELS, OUR_MODELS))
    for conf in (*plugins.conf_folders().values(), CONF_DIR):
        for file in (conf / "model").glob("*.yaml"):
            first = file.read_text().lstrip().partition("\n")[0]
            if first.startswith("#"):
                described[file.stem] = first.removeprefix("#").strip()
    return {name: described.get(name, "") for name in groups()["model"]}


def clashes() -> list[str]:
    """A line for each language and model of another package that is left out since its name is taken."""
    return plugins.clashes(plugins.LANGUAGES, TAKEN) + plugins.clashes(plugins.MODELS, OUR_MODELS)


def choices_in(folder: Path) -> Iterator[str]:
    """The choices of a group: the YAML files of its folder, and those further down that set other groups too.

    Other files further down are parts of a choice.
    """
    for file in folder.rglob("*.yaml"):
        if file.parent == folder or file.read_text().startswith("# @package _global_"):
            yield str(file.relative_to(folder).with_suffix(""))


def min_positive(*numbers: int | float) -> int | float:
    """The least positive number. Lightning's -1 means no limit; other values are rejected where they are used."""
    return min(number for number in numbers if isinstance(number, int | float) and number > 0)


def seed_label(seed: int, seeds: int | None) -> str:
    """``seed0`` for one seed, ``seeds0-7`` for several."""
    return f"seeds{seed}-{seed + seeds - 1}" if isinstance(seeds, int) else f"seed{seed}"


def sum_ints(*numbers: int) -> int:
    """The sum of all ints. Other values are rejected where they are used."""
    return sum(number for number in numbers if isinstance(number, int))
