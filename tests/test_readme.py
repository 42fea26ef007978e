"""Every command of the README does what it says."""

import io
import json
import math
import re
import shlex

import pytest
from conftest import ROOT, SHORT
from omegaconf import OmegaConf

from rule_extrapolation.cli import budget, complete, dashboard, evaluate, report
from rule_extrapolation.cli import train as runner
from rule_extrapolation.runs.identity import identity

README = (ROOT / "README.md").read_text()
COMMAND = r"^    (?:\$ )?python -m rule_extrapolation\.(\w+)(.*?)(?:  +#.*)?$"
COMMANDS = re.findall(COMMAND, README, re.MULTILINE)
PROGRAMS = (budget, complete, dashboard, evaluate, report, runner)
MAINS = {program.__name__.rpartition(".")[2]: program.main for program in PROGRAMS}
# What each is shortened by comes after what it says itself, and so wins.
TINY = [*SHORT, "trainer.max_steps=1", "decoding.max_new_tokens=2", "data.num_val=2", "data.num_test=2"]
TINY_TEXT = [
    "logger=csv",
    "trainer.max_steps=1",
    "decoding.max_new_tokens=2",
    "data.max_length=8",
]
# The runs that commands ask more of, and what they are.
SEQ2SEQ = ["model=seq2seq", "model.hidden_dim=16", *TINY]
RUNS = {
    "first": TINY,
    "text": ["data=text", *TINY_TEXT],
    "runs/sweeps/text/0": ["data=text", "model=ngram", *TINY_TEXT],
    "seq2seq/none": ["model.attention=none", *SEQ2SEQ],
    "seq2seq/dot": ["model.attention=dot", *SEQ2SEQ],
    "sweep/0": TINY,
    "runs/sweeps/mini/0": TINY,
}


def test_there_are_commands_and_no_gaps():
    assert len(COMMANDS) == 50
    assert "@@" not in README


def without_figures(output):
    """What a run prints before its completions, without what depends on machine and time."""
    lines = output.strip().split("OOD prompts |")[0].splitlines()
    measured = [line if "chance" in line else re.sub(r"\d+\.\d+", "#", line) for line in lines]
    return [line.rstrip() for line in measured if not line.startswith("W&B: ")]


def test_the_output_shown_is_what_a_run_prints(cli):
    shown = README.split("`make run` prints")[1].split("```")[1]
    status, printed, _ = cli()
    assert status == 0
    assert without_figures(printed) == without_figures(shown)


# What an experiment that sweeps is cut down to, as far as its command says nothing of it.
SOME_OF_MINI = {"model": "linear,mingru", "grammar": "L3", "seed": "1,2"}


def ends(argument):
    """Of a sweep's choices, the first and the last."""
    key, equals, choices = argument.partition("=")
    choices = choices.split(",")
    return key + equals + ",".join([choices[0], choices[-1]] if len(choices) > 2 else choices)


@pytest.mark.slow
def test_the_sweep_runs_in_full(cli, tmp_path):
    [sweep] = [command for _, command in COMMANDS if " -m " in command and "grammar=L1,L2" in command]
    assert cli(*shlex.split(sweep), *TINY)[0] == 0
    assert len(list(tmp_path.rglob("results.json"))) == 7 * 6


@pytest.mark.filterwarnings("ignore:Pydantic V1:DeprecationWarning")  # wandb-workspaces' own
@pytest.mark.parametrize(("program", "command"), COMMANDS)
def test_command_runs(cli, call, tmp_path, monkeypatch, program, command):
    arguments = shlex.split(command)
    arguments = [*map(ends, arguments)] if "-m" in arguments else arguments
    if "experiment=mini" in arguments:
        given = {argument.partition("=")[0] for argument in arguments}
        arguments += [f"{key}={values}" for key, values in SOME_OF_MINI.items() if key not in given]
    arguments += ["hydra.sweeper.n_trials=1"] if "hparams_search=optuna" in arguments else []
    says = README.split(f"{program}{command}")[1].lstrip("\n ").split("\n")[0]
    tiny = TINY_TEXT if "data=text" in arguments else TINY
    trains = program == "runner" and not says.startswith("error: ") and not {"--list", "--cfg"} & set(arguments)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for run, overrides in RUNS.items():
        if {f"run={run}", f"ckpt={run}", f"runs={run.rpartition('/')[0]}"} & set(arguments):
            cli(f"hydra.run.dir={run}", *overrides)
    if program == "dashboard":
        import wandb

        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("WANDB_MODE", "offline")
        wandb.teardown()
    before = set(tmp_path.rglob("results.json"))
    monkeypatch.setattr("sys.stdin", io.StringIO("aab\n"))
    status, out, err = (
        cli(*arguments, *(tiny if trains else [])) if program == "runner" else call(MAINS[program], *arguments)
    )
    made = set(tmp_path.rglob("results.json")) - before
    results = [json.loads(path.read_text()) for path in made]
    if says.startswith("error: "):
        assert (status, err.strip(), out) == (2, says, "")
        assert not results
    else:
        assert status == 0
        assert out
    if trains:
        # A sweep has a run for each combination of what stands between commas, and for each seed.
        seeds = math.prod(int(argument.removeprefix("seeds=")) for argument in arguments if "seeds=" in argument)
        assert len(results) == seeds * math.prod(argument.count(",") + 1 for argument in arguments)
        assert len({identity(OmegaConf.load(path.with_name("config.yaml"))) for path in made}) == len(results)
        assert all(result["status"] == "finished" for result in results)


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^    make ([\w-]+)", README, re.MULTILINE)
    assert {"run", "test", "lint", "test-slow", "bench"} <= set(targets)
    assert all(f"\n{target}:" in makefile for target in targets)


def test_the_line_to_add_a_language_is_the_real_one():
    [line] = re.findall(r"The line: `(.*?)`", README)
    assert line in (ROOT / "rule_extrapolation" / "grammars" / "__init__.py").read_text()
