"""What README, CONTRIBUTING and docs/ show is so: commands run, output is a run's, links and files exist."""

import ast
import configparser
import importlib
import importlib.util
import io
import json
import math
import re
import shlex
from typing import NamedTuple

import pytest
from conftest import ROOT, SHORT, config, read_metrics
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from rule_extrapolation import __main__ as program
from rule_extrapolation import train
from rule_extrapolation.experiment.assembling import assemble
from rule_extrapolation.experiment.seeds import reason_not_to_stack
from rule_extrapolation.runs.identity import identity

README = ROOT / "README.md"
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in (README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md")))
}
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^(?:\$ )?(rule-extrapolation|python -m rule_extrapolation[.\w]*)(.*?)(?:  +#.*)?$")
FORMER_NAMES = {"runner": "train"}


class Command(NamedTuple):
    name: str
    """A subcommand of rule-extrapolation."""
    arguments: tuple[str, ...]
    error: str | None
    """What the next line shows, if that is an error."""


def blocks(text):
    """The language and the lines of each block of code, fenced or indented by four spaces."""
    for _, language, block in FENCE.findall(text):
        yield language, block.replace("\\\n", " ").splitlines()
    outside = FENCE.sub("", text).replace("\\\n", " ")
    yield "", [line[4:] for line in outside.splitlines() if line.startswith("    ")]


def commands(text):
    for _, lines in blocks(text):
        for line, following in zip(lines, [*lines[1:], ""]):
            if match := COMMAND.match(line):
                command, arguments = match.groups()
                former = command.partition("rule_extrapolation.")[2]
                name, *arguments = [FORMER_NAMES.get(former, former)] * bool(former) + shlex.split(arguments)
                yield Command(name, tuple(arguments), following if following.startswith("error: ") else None)


COMMANDS = list(dict.fromkeys(command for text in PAGES.values() for command in commands(text)))

# What each is shortened by comes after what it says itself, and so takes precedence.
TINY = [*SHORT, "trainer.max_steps=2", "decoding.max_new_tokens=2", "data.num_val=2", "data.num_test=2"]
TINY_TEXT = [
    "logger=csv",
    "trainer.max_steps=2",
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
    assert len(COMMANDS) == 57
    assert {command.name for command in COMMANDS} == set(program.COMMANDS)
    assert all("@@" not in text for text in PAGES.values())


def test_the_readme_is_short():
    assert len(README.read_text().splitlines()) <= 150


def without_figures(output):
    """What a run prints before its completions, without what depends on machine and time."""
    lines = output.strip().split("OOD prompts |")[0].splitlines()
    measured = [line if "chance" in line else re.sub(r"\d+\.\d+", "#", line) for line in lines]
    return [line.rstrip() for line in measured if not line.startswith("W&B: ")]


def test_the_output_shown_is_what_a_run_prints(cli):
    shown = PAGES["docs/index.md"].split("`make run` prints")[1].split("```")[1]
    status, printed, _ = cli()
    assert status == 0
    assert without_figures(printed) == without_figures(shown)


# What an experiment that sweeps is shortened to, as far as its command says nothing of it.
SOME_OF_MINI = {"model": "linear,mingru", "grammar": "L3", "seed": "1,2"}


def ends(argument):
    """Of a sweep's choices, the first and the last."""
    key, equals, choices = argument.partition("=")
    choices = choices.split(",")
    return key + equals + ",".join([choices[0], choices[-1]] if len(choices) > 2 else choices)


@pytest.mark.slow
def test_the_sweep_runs_in_full(cli, tmp_path):
    [sweep] = [c for c in COMMANDS if "-m" in c.arguments and "grammar=L1,L2" in " ".join(c.arguments[:3])]
    assert cli(*sweep.arguments, *TINY)[0] == 0
    assert len(list(tmp_path.rglob("results.json"))) == 7 * 6


@pytest.mark.filterwarnings("ignore:Pydantic V1:DeprecationWarning")  # wandb-workspaces' own
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join([command.name, *command.arguments]))
def test_command_runs(cli, call, tmp_path, monkeypatch, command):
    arguments = list(command.arguments)
    arguments = [*map(ends, arguments)] if "-m" in arguments else arguments
    if "experiment=mini" in arguments:
        given = {argument.partition("=")[0] for argument in arguments}
        arguments += [f"{key}={values}" for key, values in SOME_OF_MINI.items() if key not in given]
    arguments += ["hydra.sweeper.n_trials=1"] if "hparams_search=optuna" in arguments else []
    tiny = TINY_TEXT if "data=text" in arguments else TINY
    trains = command.name == "train" and not command.error and not {"--list", "--cfg"} & set(arguments)
    arguments += tiny if trains else []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for run, overrides in RUNS.items():
        if {f"run={run}", f"ckpt={run}", f"runs={run.rpartition('/')[0]}"} & set(arguments):
            cli(f"hydra.run.dir={run}", *overrides)
    if command.name == "dashboard":
        import wandb

        monkeypatch.setenv("WANDB_MODE", "offline")
        wandb.teardown()
    before = set(tmp_path.rglob("results.json"))
    monkeypatch.setattr("sys.stdin", io.StringIO("aab\n"))
    monkeypatch.chdir(tmp_path)
    GlobalHydra.instance().clear()
    status, out, err = call(program.main, command.name, *arguments)
    made = set(tmp_path.rglob("results.json")) - before
    results = [json.loads(path.read_text()) for path in made]
    if command.error:
        assert (status, err.strip(), out) == (2, command.error, "")
        assert not results
    else:
        assert status == 0
        assert out
    if trains:
        # A sweep has a run for each combination of what stands between commas, and for each seed.
        seeds = math.prod(int(argument.removeprefix("seeds=")) for argument in arguments if "seeds=" in argument)
        assert len(results) == seeds * math.prod(
            argument.count(",") + 1 for argument in arguments if "[" not in argument
        )
        assert len({identity(OmegaConf.load(path.with_name("config.yaml"))) for path in made}) == len(results)
        assert all(result["status"] == "finished" for result in results)


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_the_text_exist(page):
    for name in re.findall(r"`rule-extrapolation ([^`\s]+)", PAGES[page]):
        assert name in (*program.COMMANDS, "--help", "--version")


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    lines = [line for text in PAGES.values() for _, block in blocks(text) for line in block]
    targets = {match[1] for line in lines if (match := re.match(r"make ([\w-]+)", line))}
    targets |= {target for text in PAGES.values() for target in re.findall(r"`make ([\w-]+)", text)}
    assert {"run", "test", "lint", "test-slow", "bench", "docs"} <= targets
    assert all(f"\n{target}:" in makefile for target in targets)


OTHER_COMMAND = re.compile(r"(?:^|`)((?:OMP_NUM_THREADS=1 )?(?:pip|pytest|python|wandb|jupyter) [^`\n]+)", re.MULTILINE)


def test_other_commands_name_files_and_extras_that_exist():
    found = []
    for text in PAGES.values():
        lines = [line for _, block in blocks(text) for line in block]
        found += OTHER_COMMAND.findall("\n".join([*lines, text]))
    found = [command for command in found if "rule_extrapolation." not in command]
    paths = {path for command in found for path in re.findall(r"(?<![\w.])(?:\w+/)*\w+\.(?:py|yaml|txt)\b", command)}
    assert {"constraints.txt", "notebooks/run.py", "tests/test_models.py", "sweeps/grid.yaml"} <= paths
    assert all((ROOT / path).exists() for path in paths)
    extras = {extra for command in found for extra in re.findall(r"(?<=\.\[)\w+(?=\])", command)}
    declared = configparser.ConfigParser()
    declared.read(ROOT / "setup.cfg")
    assert {"test", "notebooks", "sweep"} <= extras <= set(declared["options.extras_require"])


def test_the_line_to_add_a_language_is_the_real_one():
    [line] = re.findall(r'^"\w+": Language\(.*\),$', PAGES["docs/extending.md"], re.MULTILINE)
    assert f"    {line}\n" in (ROOT / "rule_extrapolation" / "grammars" / "__init__.py").read_text()


@pytest.mark.parametrize("page", PAGES)
def test_python_blocks_parse_and_import_what_there_is(page):
    for language, lines in blocks(PAGES[page]):
        if language == "python":
            for node in ast.walk(ast.parse("\n".join(lines))):
                if isinstance(node, ast.ImportFrom) and node.module.startswith("rule_extrapolation"):
                    module = importlib.import_module(node.module)
                    assert all(hasattr(module, alias.name) for alias in node.names)


def test_the_examples_to_extend_it_work():
    language, model, *_ = ["\n".join(lines) for kind, lines in blocks(PAGES["docs/extending.md"]) if kind == "python"]
    names = {}
    exec(language, names)
    exec(model, names)
    grammar = names["BaN"](max_length=8)
    assert len(grammar.prompts["ID"]) == len(grammar.prompts["OOD"]) == 128
    words = grammar.sample(4)
    assert grammar.judge(words[:, 1:])["grammatical"].all()
    assert names["LSTM_LLM"](grammar.num_tokens)(words).shape == (4, grammar.num_tokens, 10)


def test_the_callback_of_the_recipe_logs(tmp_path, monkeypatch):
    page = PAGES["docs/extending.md"]
    [callback] = ["\n".join(lines) for kind, lines in blocks(page) if "GradientNorm(Callback)" in "\n".join(lines)]
    [settings] = ["\n".join(lines) for kind, lines in blocks(page) if "# conf/callbacks/mine.yaml" in lines]
    (tmp_path / "my_package.py").write_text(callback)
    node = OmegaConf.create(settings.split("  - default\n")[1]).gradients
    monkeypatch.syspath_prepend(tmp_path)
    added = [f"+callbacks.gradients.{key}={value}" for key, value in node.items()]
    length = ["trainer.max_steps=25", "trainer.log_every_n_steps=7"]
    train(tmp_path / "run", *SHORT, *length, *added, quiet=True)
    logged = [row for row in read_metrics(tmp_path / "run") if "Train/gradient_norm" in row]
    assert [row["step"] for row in logged] == [0, 10, 20]
    assert all(row["Train/gradient_norm"] > 0 for row in logged)
    # Two seeds do not share the Trainer and the gradients that it reads.
    cfg = config(tmp_path / "many", *added)
    assert reason_not_to_stack(cfg, assemble(cfg, device="meta")).startswith("GradientNorm")


@pytest.mark.parametrize("page", PAGES)
def test_files_named_in_the_text_exist(page):
    for path in re.findall(r"`((?:rule_extrapolation|conf|tests|benchmarks|sweeps|results)/[\w./]*)`", PAGES[page]):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#\s]+)", PAGES[page]):
        if not link.startswith("https://") and link not in ("contributing.md", "changelog.md"):
            assert ((ROOT / page).parent / link).exists(), link


ROOMS = {"core", "ops", "grammars", "models", "inference", "data", "runs", "training", "config"}
ROOMS |= {"reporting", "experiment", "cli"}


def test_every_room_is_described():
    rooms = set(re.findall(r"^\| `(\w+)/` \|", PAGES["docs/architecture.md"], re.MULTILINE))
    folders = {path.parent.name for path in (ROOT / "rule_extrapolation").glob("*/__init__.py")}
    assert folders == ROOMS
    assert folders <= rooms


def copy_results():
    """The script docs/copy_results.py as a module."""
    spec = importlib.util.spec_from_file_location("copy_results", ROOT / "docs" / "copy_results.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["README.md", "docs/results.md"])
def test_the_results_shown_are_those_of_mini(page):
    script = copy_results()
    assert script.BEGIN + script.excerpt(page) + script.END in PAGES[page], "run docs/copy_results.py"
