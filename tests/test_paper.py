"""The published settings, experiment=paper/<language>, compared with the paper value by value."""

import csv
import importlib
import math
import re
import sys

import pytest
import torch
from conftest import read_results
from hydra import compose, initialize_config_dir

from rule_extrapolation.config.composing import CONF_DIR, PACKAGE
from rule_extrapolation.experiment.assembling import assemble
from rule_extrapolation.reporting.comparison import Cell
from rule_extrapolation.reporting.measures import OOD_RULE_1

with open(PACKAGE / "reporting" / "published_results.csv") as file:
    PUBLISHED = [row for row in csv.DictReader(file) if row["experiment"] == "main"]
LANGUAGES = list(dict.fromkeys(row["grammar"] for row in PUBLISHED))
FIGURES = ("test_loss", "id_rule_1", "id_rule_2", "ood_rule_1", "ood_rule_2_completion", "ood_finished")

# arXiv 2409.13728, appendix; linear's bias, lstm's embedding and the quirks from the authors' code
SIZES = {
    "transformer": {
        "dim_model": 10,
        "num_heads": 5,
        "num_decoder_layers": 7,
        "dim_feedforward": 1024,
        "dropout_p": 0.1,
        "layer_norm_eps": 6e-3,
        "norm_first": False,
        "relu_rescale": 1.0,
        "positions": "by_row",
        "mask_pad": True,
        "copy_first_layer": True,
    },
    "lstm": {"embedding_dim": 10, "hidden_dim": 64, "num_layers": 5, "dropout": 0.4, "dropout_between_layers": 0.0},
    "mamba": {"d_model": 32, "d_state": 16, "d_conv": 8, "n_layers": 10, "init": "mamba_py"},
    "xlstm": {"num_blocks": 6, "embedding_dim": 64, "slstm_at": [1], "context_length": 258},
    "linear": {
        "embedding_dim": 10,
        "bias": True,
        "max_data_length": 256,
        "published_mask": True,
        "published_decoding": True,
    },
}
SETTINGS = {
    "data.max_length": 256,
    "data.batch_size": 128,
    "data.num_val": 512,
    "data.num_test": 512,
    "grammar.num_sos_prompts": 128,
    "optimizer._target_": "torch.optim.AdamW",
    "optimizer.lr": 2e-3,
    "optimizer.weight_decay": 0.01,  # torch's default
    "scheduler._target_": "rule_extrapolation.training.schedules.inverse_sqrt",
    "scheduler.warmup": 1000,
    "scheduler.interval": "epoch",
    "trainer.max_steps": -1,
    "trainer.val_check_interval": 1.0,
    "callbacks.early_stopping.monitor": "Val/loss",
    "callbacks.early_stopping.patience": 25,
    "decoding._target_": "rule_extrapolation.inference.decoding.Greedy",
    "decoding.max_tokens": 256,
}
EPOCHS_AND_VALIDATIONS = {"bbaN": (5_000, 100)}  # of all others: 50,000 and 250
TRAINING_WORDS = {"baN": 15_000, "bbaN": 15_000, "aNbN": 128, "aNbNcN": 85}  # all words of the latter two


def header(language):
    return (CONF_DIR / "experiment" / "paper" / f"{language}.yaml").read_text()


def commands(language):
    return [c.split() for c in re.findall(r"^# +rule-extrapolation train (.*)$", header(language), re.M)]


def composed(*overrides):
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return compose("config", [*overrides, "run_dir=''"])


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: f"{row['grammar']}-{row['model']}")
def test_each_published_figure_has_one_command_with_the_published_settings(row):
    [command] = [c for c in commands(row["grammar"]) if f"model={row['model']}" in c]
    assert command[0] == f"experiment=paper/{row['grammar']}"
    cfg = composed(*command)
    assert (cfg.grammar.name, cfg.model.name, cfg.seed) == (row["grammar"], row["model"], 0)
    sizes = SIZES[row["model"]]
    assert {key: cfg.model[key] for key in sizes} == sizes
    values = {key: cfg[key.split(".")[0]] for key in SETTINGS}
    for key in SETTINGS:
        for part in key.split(".")[1:]:
            values[key] = values[key][part]
    assert values == SETTINGS
    epochs = (cfg.trainer.max_epochs, cfg.trainer.check_val_every_n_epoch)
    assert epochs == EPOCHS_AND_VALIDATIONS.get(row["grammar"], (50_000, 250))


@pytest.mark.parametrize("language", LANGUAGES)
def test_training_words_and_budgets(language):
    for model in ("lstm", "linear"):
        experiment = assemble(composed(f"experiment=paper/{language}", f"model={model}"), device="meta")
        prompt = experiment.module.grammar.prompts["ID"].shape[1]
        assert experiment.module.decoder.budget(experiment.module.model, prompt) == 256 - prompt
        [[_, scheduler]] = [[*experiment.module.configure_optimizers().values()]]
        assert scheduler["interval"] == "epoch"
    assert len(experiment.data.train_dataloader().rows) == TRAINING_WORDS.get(language, 512)


@pytest.mark.parametrize("language", LANGUAGES)
def test_headers_hold_the_published_figures(language):
    text = header(language)
    for row in (row for row in PUBLISHED if row["grammar"] == language):
        assert f"The paper calls it {row['paper_label']}" in text
        line = re.search(rf"^#   {row['model']} +{row['n_runs']}  +(.*)$", text, re.M)[1]
        assert re.split("  +", line) == [header_figure(row, name) for name in FIGURES]


def header_figure(row, name):
    """The mean and deviation, or "none finished" where no run finished a completion: a 0 in the authors' files."""
    finished = row.get(f"{name.split('_')[0]}_finished_mean")
    if finished is not None and float(finished) == 0 and not name.endswith("finished"):
        return "none finished"
    digits = 4 if name == "test_loss" else 3
    return f"{float(row[f'{name}_mean']):.{digits}f} ± {float(row[f'{name}_std']):.{digits}f}"


SHORT = ["logger=csv", "data.max_length=12", "data.num_train=32", "data.num_val=8", "data.num_test=8"]
SHORT += ["trainer.max_epochs=2", "trainer.check_val_every_n_epoch=1", "decoding.max_new_tokens=2"]
ALL = [command for language in LANGUAGES for command in commands(language)]
# Each language and each model once.
SOME = [commands(language)[i % 5] for i, language in enumerate(LANGUAGES)]


@pytest.mark.parametrize(
    "command", [pytest.param(c, marks=[] if c in SOME else pytest.mark.slow, id=" ".join(c[:2])) for c in ALL]
)
def test_each_published_figures_command_runs(cli, tmp_path, command):
    assert cli(*command, *SHORT)[0] == 0
    [results] = [read_results(path.parent) for path in tmp_path.rglob("results.json")]
    assert results["status"] == "finished"
    assert math.isfinite(results["over_training"]["Val/loss"])
    model = next(argument for argument in command if argument.startswith("model="))
    assert results["caveat"] == CAVEATS.get(model.removeprefix("model="))


CAVEATS = {
    "transformer": "positions by batch row, PAD masked, layers start equal",
    "linear": "published mask: sees the future; published decoding",
    "mamba": "initialised as mamba.py",
}


@pytest.mark.parametrize("model", SIZES)
def test_without_quirks(model):
    cfg = composed("experiment=paper/aNbN", f"model={model}", "quirks=none")
    experiment = assemble(cfg, device="meta")
    assert experiment.module.caveat is None
    assert experiment.module.decoder.budget(experiment.module.model, 9) == (249 if model == "linear" else 300)
    assert len(experiment.module.grammar.prompts["SOS"]) == 32


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_published_linear_model_completes_all_prompts_alike(language):
    cfg = composed(f"experiment=paper/{language}", "model=linear", "data.max_length=20")
    module = assemble(cfg).module
    torch.nn.init.normal_(module.model.bias)
    prompts = module.grammar.prompts["OOD"]
    completions = {tuple(row.tolist()) for row in module.complete(prompts)[:, prompts.shape[1] :]}
    assert len(completions) == 1


@pytest.mark.parametrize("model", ["minlstm", "mingru"])
def test_models_that_are_not_in_the_paper_run_with_its_settings(model):
    cfg = composed("experiment=paper/baN", f"model={model}")
    assert cfg.model.num_layers == SIZES["lstm"]["num_layers"]
    assert assemble(cfg, device="meta").module.model.num_parameters > 0


def test_sizes_come_from_the_command_line_first_and_only_for_the_chosen_model():
    assert composed("experiment=paper/baN", "model=lstm", "model.hidden_dim=3").model.hidden_dim == 3
    assert composed("sizes=paper", "model=mamba").model.n_layers == SIZES["mamba"]["n_layers"]
    assert composed("experiment=paper", "model=oracle").model.name == "oracle"  # it has no sizes
    assert composed("model=lstm").model.hidden_dim == 256


EXPERIMENTS = sorted({path.stem for path in (CONF_DIR / "experiment" / "paper").glob("*.yaml")} - {*LANGUAGES})
# One job of each sweep.
ONE_JOB = {
    "transformer_size": ["model.num_heads=5", "model.num_decoder_layers=2"],
    "adamw": ["model=linear", "optimizer.lr=0.02"],
    "sgd": ["model=linear", "optimizer.lr=0.02"],
    "sampling": [],
    "parity": [],
}


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_each_other_experiment_of_the_paper_runs(cli, tmp_path, experiment):
    """By the command in its header. finetune has three: the run that it starts from comes first."""
    ran = [command for command in commands(experiment) if "-m" not in command]
    assert ran
    for i, command in enumerate(ran[:1] if experiment in ONE_JOB else ran):
        here = [f"hydra.run.dir={tmp_path}/{i}", f"hydra.sweep.dir={tmp_path}/{i}"]
        command = [part for part in command if not part.startswith("hydra.run.dir")]
        command = [part.replace("ckpt=aNbN", f"ckpt={tmp_path}/0") for part in command]
        assert cli(*command, *ONE_JOB.get(experiment, []), *SHORT, *here)[0] == 0
    finished = [read_results(path.parent) for path in tmp_path.rglob("results.json")]
    assert finished
    assert {results["status"] for results in finished} == {"finished"}


@pytest.mark.parametrize(("experiment", "optimizer"), {"adamw": "AdamW", "sgd": "SGD"}.items())
def test_sweeps_on_another_language_have_its_published_settings(experiment, optimizer):
    [command] = [command for command in commands(experiment) if command[0] == "-m"]
    assert "experiment=paper/bbaN" in command
    cfg = composed(*(part.partition(",")[0] for part in command[1:]))
    assert (cfg.optimizer._target_, cfg.optimizer.lr) == (f"torch.optim.{optimizer}", 0.02)
    assert (cfg.trainer.max_epochs, cfg.trainer.check_val_every_n_epoch) == EPOCHS_AND_VALIDATIONS["bbaN"]
    assert cfg.data.num_train == TRAINING_WORDS["bbaN"]


def test_sgd_has_neither_momentum_nor_a_schedule():
    module = assemble(composed("experiment=paper/sgd", "model=linear"), device="meta").module
    optimizers = module.configure_optimizers()
    assert {type(optimizers["optimizer"]).__name__} == {"SGD"}
    [group] = optimizers["optimizer"].param_groups
    assert (group["momentum"], group["weight_decay"]) == (0, 0)
    rates = []
    for _ in range(3):
        rates.append(group["lr"])
        optimizers["optimizer"].step()
        optimizers["lr_scheduler"]["scheduler"].step()
    assert rates == [2e-3] * 3


@pytest.mark.parametrize(
    ("experiment", "values"),
    {
        "transformer_size": {"model.num_heads": "5,10", "model.num_decoder_layers": "7,10,13"},
        "adamw": {"model": "linear,lstm,mamba,transformer", "optimizer.lr": "0.02,0.002,0.0002"},
        "sgd": {"model": "linear,lstm,mamba,transformer", "optimizer.lr": "0.02,0.002,0.0002"},
    }.items(),
)
def test_sweeps_cover_the_published_values(experiment, values):
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        cfg = compose("config", [f"experiment=paper/{experiment}"], return_hydra_config=True)
    assert cfg.hydra.mode.name == "MULTIRUN"
    assert cfg.hydra.sweeper.params == values


sys.path.append(str(CONF_DIR.parent / "docs"))
published = importlib.import_module("published")


def test_the_page_of_published_figures_is_up_to_date():
    """After a change: python docs/published.py"""
    assert (CONF_DIR.parent / "docs" / "published.md").read_text() == published.page()


def test_rows_marked_as_in_the_first_section_have_its_settings():
    models = {"parity": "linear", "optimizers": "linear", "transformer_size": "transformer"}
    rows = [
        row for row in published.rows().itertuples() if (row.grammar, row.model) == ("aNbN", models.get(row.experiment))
    ]
    first = {model: composed("experiment=paper/aNbN", f"model={model}") for model in models.values()}
    same = [composed(*published.command(row).split()) == first[row.model] for row in rows]
    assert same == [published.is_as_first(row) for row in rows]
    assert sum(same) == len(models)


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict"),
    [
        (Cell(0.2749), Cell(0.275, 0.0), "equal"),
        (Cell(missing="none finished"), Cell(missing="none finished"), "equal"),
        (Cell(0.3), Cell(0.2, 0.11), "within 1 sd"),
        (Cell(0.3), Cell(0.2, 0.09), "differs"),
        (Cell(0.3), Cell(0.2), "differs"),
        (Cell(0.0), Cell(missing="none finished"), "differs"),
    ],
)
def test_verdicts(ours, theirs, verdict):
    assert published.verdict(ours, theirs, OOD_RULE_1) == verdict


PAGE_COMMANDS = sorted({published.command(row) for row in published.rows().itertuples()} - {""})


@pytest.mark.parametrize(
    "command", [pytest.param(c, marks=[] if i % 20 == 0 else pytest.mark.slow) for i, c in enumerate(PAGE_COMMANDS)]
)
def test_the_commands_of_the_page_of_published_figures_build(command):
    experiment = assemble(composed(*command.split()), device="meta")
    assert experiment.module.model.num_parameters > 0
