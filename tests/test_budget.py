"""Widths from numbers of weights, and experiment=mini, whose sizes come from them."""

import re

import pytest
from conftest import read_results
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from rule_extrapolation.cli import budget
from rule_extrapolation.config.composing import CONF_DIR
from rule_extrapolation.experiment.assembling import assemble

MINI = {path.stem: path.read_text() for path in (CONF_DIR / "sizes" / "matched").glob("*.yaml")}
WEIGHTS = 50_000
OFF = {"linear": 0.08}  # its width has few steps; the others come within 5%


def composed(*overrides):
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return compose("config", [*overrides, "run_dir=''"])


def shown(out):
    """The widths and numbers of weights that the command printed, and which of them it calls nearest."""
    rows = re.findall(r"^(nearest|) +(model\S+=\d+(?: model\S+=\d+)*)  ([\d,]+) \(", out, re.M)
    sizes = [(dict(re.findall(r"model\.(\w+)=(\d+)", values)), int(n.replace(",", ""))) for _, values, n in rows]
    return sizes, [is_nearest for is_nearest, *_ in rows].index("nearest")


class TestBudget:
    def test_counts_what_is_built_and_keeps_ratios(self, call):
        arguments = [
            "model=transformer",
            "model.num_heads=2",
            "model.dim_feedforward=128",
            "model.num_decoder_layers=1",
        ]
        status, out, _ = call(
            budget.main, *arguments, "grammar=L3", "parameters=9000", "vary=dim_model,dim_feedforward"
        )
        assert status == 0
        sizes, nearest = shown(out)
        assert len(sizes) == 3
        for values, number in sizes:
            width = int(values["dim_model"])
            assert width % 2 == 0  # what two heads admit
            assert int(values["dim_feedforward"]) == 2 * width
            overrides = [f"model.{key}={value}" for key, value in values.items()]
            model = assemble(composed(*arguments, *overrides, "grammar=L3")).module.model
            assert sum(weight.numel() for weight in model.parameters()) == number
        assert [int(values["dim_model"]) for values, _ in sizes] == [
            int(sizes[1][0]["dim_model"]) + i for i in (-2, 0, 2)
        ]
        assert nearest == min(range(3), key=lambda i: abs(sizes[i][1] - 9000))

    def test_fewer_than_the_least_and_more_than_the_default(self, call):
        for parameters, hidden in ((1, 1), (300_000, 270)):
            arguments = ["model=mingru", "model.num_layers=1", f"parameters={parameters}", "vary=hidden_dim"]
            sizes, nearest = shown(call(budget.main, *arguments, "model.embedding_dim=8")[1])
            assert (int(sizes[nearest][0]["hidden_dim"]) > hidden) == (parameters > 1)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        {
            "model=lstm parameters=9 vary=hiden_dim": "vary=hiden_dim: did you mean hidden_dim?",
            "model=linear parameters=9 vary=bias": "vary=bias: model.bias=True is not a width",
            "model=transformer parameters=9 vary=max_len": "vary=max_len: does not change the number of weights",
            "model=lstm vary=hidden_dim": "parameters=null: must be set",
            "model=lstm parameters=0 vary=hidden_dim": "parameters=0: must be greater than 0",
            "model=lsmt parameters=9 vary=hidden_dim": "model=lsmt: did you mean lstm?",
            "model=transformer model.num_heads=3 parameters=9 vary=dim_feedforward": "model.num_heads=3: must divide",
        }.items(),
    )
    def test_errors_are_one_line(self, call, arguments, message):
        status, out, err = call(budget.main, *arguments.split())
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert message in err

    def test_help(self, call):
        status, out, _ = call(budget.main, "--help")
        assert status == 0
        assert "vary" in out


class TestMini:
    @pytest.mark.parametrize("model", MINI)
    def test_sizes_are_those_that_the_budget_gives(self, call, model):
        [command] = re.findall(r"^# +rule-extrapolation budget (.*)$", MINI[model], re.M)
        assert {f"model={model}", "sizes=matched", "grammar=L5", f"parameters={WEIGHTS}"} <= set(command.split())
        sizes, nearest = shown(call(budget.main, *command.split())[1])
        values, number = sizes[nearest]
        written = OmegaConf.create(MINI[model])
        assert {key: str(written[key]) for key in values} == values
        assert MINI[model].startswith(f"# {number:,} weights;")
        assert abs(number / WEIGHTS - 1) < OFF.get(model, 0.05)

    def test_linear_says_what_it_has_with_fewer_tokens(self):
        for grammar in ("L3", "L4"):
            cfg = composed("experiment=mini", "model=linear", f"grammar={grammar}")
            assert f"{assemble(cfg, device='meta').module.model.num_parameters:,} with" in MINI["linear"]

    def test_is_seven_models_on_six_languages_with_three_seeds(self):
        with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
            hydra = compose("config", ["experiment=mini"], return_hydra_config=True).hydra
        params = {key: str(value).split(",") for key, value in hydra.sweeper.params.items()}
        assert hydra.mode.name == "MULTIRUN"
        assert len(params["model"]) == 7
        assert set(params["model"]) < set(MINI)
        assert params["grammar"] == [f"L{i}" for i in range(1, 7)]
        assert params["seed"] == ["0", "1", "2"]

    def test_one_command_runs_it_and_the_command_line_restricts_it(self, cli, tmp_path):
        header = (CONF_DIR / "experiment" / "mini.yaml").read_text()
        command = re.findall(r"^# +rule-extrapolation train (.*)$", header, re.M)[0]
        short = ["logger=csv", "trainer.max_steps=2", "decoding.max_new_tokens=2", "data.num_train=8"]
        short += ["data.num_val=8", "data.num_test=8"]
        assert cli(*command.split(), "model=lstm,linear", "grammar=L3", *short)[0] == 0
        results = [read_results(path.parent) for path in tmp_path.rglob("results.json")]
        made = {(result["model"], result["grammar"], result["seed"]) for result in results}
        assert made == {(model, "aNbN", seed) for model in ("lstm", "linear") for seed in range(3)}
        assert len(results) == len(made)
        assert all(result["num_parameters"] > 0.7 * WEIGHTS for result in results)

    def test_a_job_that_cannot_work_stops_it_before_any_work(self, cli, tmp_path):
        status, _, err = cli("experiment=mini", "model=lstm", "grammar=L3,L4", "data.max_length=2", "logger=csv")
        assert (status, err.count("\n")) == (2, 1)
        assert "max_length" in err or "test_prompt_length" in err
        assert not [*tmp_path.rglob("results.json")]
