import pytest
import torch
from conftest import SHORT, read_results

from rule_extrapolation.core.errors import ConfigError
from rule_extrapolation.experiment.train import train


def test_it_makes_the_run_of_the_command_line(tmp_path, cli):
    status, _, _ = cli(*SHORT, "model=mingru", "grammar=L1", "seed=3", "hydra.run.dir=command")
    run = train(tmp_path / "python", *SHORT, "model=mingru", "grammar=L1", "seed=3")
    assert status == 0
    assert run.results["test"] == read_results(tmp_path / "command")["test"]
    for name in ("config.yaml", "metrics.csv", "completions.csv", "checkpoints/last.ckpt"):
        assert (run.folder / name).is_file()


def test_it_loads_the_best_checkpoint(tmp_path):
    run = train(tmp_path / "run", *SHORT, "model=lstm", "model.num_layers=1")
    kept = torch.load(run.folder / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    for name, weights in run.model.state_dict().items():
        assert torch.equal(weights, kept[f"model.{name}"])


@pytest.mark.parametrize("quiet", [True, False])
def test_it_prints_unless_quiet(tmp_path, capsys, quiet):
    train(tmp_path / "run", *[o for o in SHORT if o != "logger=csv"], "logger.offline=true", quiet=quiet)
    out = capsys.readouterr().out
    assert (
        out == ""
        if quiet
        else all(text in out for text in ("on aNbN", "W&B: offline=true", "step 4/4", "optimal loss"))
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model=lstmm", "model=lstmm: did you mean lstm?"),
        ("model.width=3", "model.width=3: no such key"),
        ("model.hidden_dim=0", "model.hidden_dim=0: must be greater than 0"),
        ("seeds=2", "seeds=2: call train once for each seed"),
    ],
)
def test_what_cannot_work_is_said_in_one_line(tmp_path, override, message):
    with pytest.raises(ValueError) as error:
        train(tmp_path / "run", *SHORT, override)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_holds_a_run_is_left_alone(tmp_path):
    train(tmp_path / "run", *SHORT, quiet=True)
    with pytest.raises(ConfigError, match="run_dir="):
        train(tmp_path / "run", *SHORT, quiet=True)
