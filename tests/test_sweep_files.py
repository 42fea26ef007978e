"""sweeps/*.yaml: the commands that W&B's agents make of them run here, as the agent's run."""

from __future__ import annotations

import itertools
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, SHORT, environment
from hydra import compose, initialize_config_dir
from offline_wandb import read_run

from rule_extrapolation.cli.preflight import check
from rule_extrapolation.config.composing import CONF_DIR

FILES = sorted((ROOT / "sweeps").glob("*.yaml"))
SWEEPS = {path.stem: yaml.safe_load(path.read_text()) for path in FILES}
START = ["/usr/bin/env", "python", "-m", "rule_extrapolation.runner"]


def choices(parameter: dict[str, Any]) -> list[Any]:
    """All values of a parameter, or the ends of its range."""
    if "value" in parameter:
        return [parameter["value"]]
    return parameter["values"] if "values" in parameter else [parameter["min"], parameter["max"]]


def combinations(sweep: dict[str, Any]) -> list[dict[str, Any]]:
    parameters = sweep["parameters"]
    return [dict(zip(parameters, values)) for values in itertools.product(*map(choices, parameters.values()))]


def overrides_of_agent(sweep: dict[str, Any], values: dict[str, Any]) -> list[str]:
    """The overrides of the command line that `wandb agent` makes of the file."""
    from wandb.sdk.launch.sweeps import utils

    command = {"args": {name: {"value": value} for name, value in values.items()}}
    macros = {**utils.create_sweep_command_args(command), "env": ["/usr/bin/env"]}
    words = [macros.get(word[2:-1], [word]) for word in utils.create_sweep_command([*sweep["command"]])]
    line = list(itertools.chain(*words))
    assert line[: len(START)] == START
    return line[len(START) :]


@pytest.mark.parametrize("name", SWEEPS)
def test_it_is_valid_for_wandb(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about its use of pydantic
        from sweeps.config import schema_violations_from_proposed_config

    assert not schema_violations_from_proposed_config(SWEEPS[name])
    assert schema_violations_from_proposed_config({**SWEEPS[name], "method": "exhaustive"})


@pytest.mark.parametrize("name", SWEEPS)
def test_its_values_can_run(name):
    """Each value at least once, combined with the others in turn."""
    parameters = SWEEPS[name]["parameters"]
    most = max(len(choices(parameter)) for parameter in parameters.values())
    sample = [{key: choices(of)[i % len(choices(of))] for key, of in parameters.items()} for i in range(most)]
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        configs = [compose("config", [*overrides_of_agent(SWEEPS[name], values), "run_dir=."]) for values in sample]
    assert [cfg.model.name for cfg in configs] == [values["model"] for values in sample]
    for experiment in check(configs):
        assert SWEEPS[name]["metric"]["name"] in experiment.module.validation_names()


def test_the_grid_is_seven_by_six_by_three():
    assert len(combinations(SWEEPS["grid"])) == 7 * 6 * 3


# wandb does not close the agent's file.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", SWEEPS)
def test_a_run_of_it_is_the_agents(name, cli, tmp_path, monkeypatch):
    import wandb
    from wandb.sdk.lib import config_util

    values = {**combinations(SWEEPS[name])[-1], "model": "minlstm", "grammar": "L1"}
    told = tmp_path / "wandb" / "config-run12345.yaml"
    config_util.save_config_file_from_dict(str(told), {key: {"value": value} for key, value in values.items()})
    for variable in os.environ.keys() - environment(tmp_path).keys():
        monkeypatch.delenv(variable)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep678")
    monkeypatch.setenv("WANDB_RUN_ID", "run12345")
    monkeypatch.setenv("WANDB_PROJECT", "the agents")
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", str(told))
    wandb.teardown()
    shortened = [word for word in SHORT if word != "logger=csv"]
    status, _, err = cli(*overrides_of_agent(SWEEPS[name], values), *shortened, "hydra.run.dir=run")
    wandb.teardown()
    assert (status, err) == (0, "")
    [folder] = tmp_path.glob("run/wandb/offline-run-*")
    run = read_run(folder)
    assert (run.info["id"], run.info["project"], run.info["group"]) == ("run12345", "the agents", "sweep678")
    assert run.info["tags"][:3] == ["baN", "L1", "minlstm"]
    assert run.config.items() >= values.items()
    assert run.config["model.name"] == run.config["architecture"] == "minlstm"
    assert run.config["language"] == "baN"
    assert run.config["trainer.max_steps"] == values.get("trainer.max_steps", 4)
    assert run.summary["Val/objective"] > 0


def test_an_agents_run_is_not_several(cli, monkeypatch):
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep678")
    status, _, err = cli("seeds=2")
    assert (status, err) == (2, "error: seeds=2: W&B's agent takes one run at a time; sweep over seed instead\n")


def test_every_file_says_how_it_is_run():
    for path in FILES:
        assert f"wandb sweep --project rule_extrapolation sweeps/{Path(path).name}" in path.read_text()
