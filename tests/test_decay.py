"""Which weights decay: those of products by convention, or all."""

import pytest
import torch
from conftest import SHORT, config, read_results

from rule_extrapolation.core.errors import ConfigError
from rule_extrapolation.experiment.assembling import assemble

TINY = ["model.embedding_dim=4", "model.hidden_dim=4"]


def groups(tmp_path, *overrides):
    """For each group of the optimizer, its weight decay and the names of its parameters."""
    module = assemble(config(tmp_path, *overrides)).module
    names = {parameter: name for name, parameter in module.model.named_parameters()}
    optimizer = module.make_optimizer(module.model.parameters())
    return [(group["weight_decay"], {names[p] for p in group["params"]}) for group in optimizer.param_groups]


@pytest.mark.parametrize("model", ["transformer", "lstm", "linear", "mamba", "xlstm", "minlstm", "mingru", "ffnn"])
def test_by_convention_no_bias_or_norm_decays(tmp_path, model):
    (decay, decaying), (none, others) = groups(tmp_path, f"model={model}")
    assert (decay, none) == (0.01, 0.0)
    assert not [name for name in decaying if "bias" in name or "norm" in name or name.endswith(("A_log", ".D"))]
    of_xlstm = ("token_embedding.weight", "learnable_skip", "recurrent_kernel_") if model == "xlstm" else ()
    marked = ("A_log", ".D", *of_xlstm)
    assert all("bias" in name or "norm" in name or name.endswith(marked) for name in others)
    assert groups(tmp_path, f"model={model}", "optimizer.decay=all") == [(0.01, decaying | others)]


def test_mamba_and_xlstm_have_the_groups_of_their_packages(tmp_path):
    _, (_, others) = groups(tmp_path, "model=mamba")
    assert {"A_log", "D"} <= {name.split(".")[-1] for name in others}
    module = assemble(config(tmp_path, "model=xlstm")).module
    decaying, exempt = module.model.model.get_weight_decay_optim_group_param_names()
    (_, ours), (_, others) = groups(tmp_path, "model=xlstm")
    assert (ours, others) == ({f"model.{name}" for name in decaying}, {f"model.{name}" for name in exempt})


@pytest.mark.parametrize("overrides", [["experiment=paper"], ["quirks=published"], ["optimizer=sgd"]])
def test_all_decay_as_published_and_one_group_is_enough_without_decay(tmp_path, overrides):
    assert len(groups(tmp_path, *overrides)) == 1


def test_a_step_without_a_gradient_shrinks_only_what_decays(tmp_path):
    module = assemble(config(tmp_path, "model=mamba", "optimizer.lr=1.0")).module
    optimizer = module.make_optimizer(module.model.parameters())
    mixer = module.model.backbone.layers[0].mixer
    before = {name: parameter.clone() for name, parameter in mixer.named_parameters()}
    for parameter in module.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in mixer.named_parameters():
        factor = 1 if name in ("A_log", "D") or name.endswith("bias") else 0.99
        torch.testing.assert_close(parameter, factor * before[name])


def test_another_value_is_refused(cli, tmp_path):
    status, _, err = cli(*SHORT, "optimizer.decay=none")
    assert (status, err) == (2, "error: optimizer.decay=none: must be one of convention, all\n")
    assert not list(tmp_path.iterdir())


def test_resuming_needs_the_same_groups(train, tmp_path):
    """Also of a run of an earlier version, which did not record them, and of a checkpoint alone."""
    first = train(*TINY, "optimizer.decay=all", folder="first")
    text = (first / "config.yaml").read_text()
    (first / "config.yaml").write_text(text.replace("  decay: all\n", ""))
    line = "optimizer.decay=convention: the run to resume has all; use the same value"
    alone = tmp_path / "alone.ckpt"
    alone.write_bytes((first / "checkpoints" / "last.ckpt").read_bytes())
    for resumed in (first, alone):
        with pytest.raises(ConfigError, match=line):
            assemble(config(tmp_path, *TINY, "trainer.max_steps=6", f"resume={resumed}"))
    rest = train(*TINY, "optimizer.decay=all", "trainer.max_steps=6", f"resume={first}", folder="rest")
    whole = train(*TINY, "optimizer.decay=all", "trainer.max_steps=6", folder="whole")
    assert read_results(rest)["test"] == read_results(whole)["test"]


def test_stacked_seeds_have_the_groups_of_a_run_alone(train, tmp_path, cli):
    """Also in their checkpoints, from which a run alone continues."""
    overrides = [*SHORT, *TINY, "grammar=L1", "model=minlstm", "optimizer.lr=0.1", "optimizer.weight_decay=0.5"]
    assert cli(*overrides, "seeds=2", "hydra.run.dir=stacked")[0] == 0
    for seed in (0, 1):
        alone = train(*overrides[len(SHORT):], f"seed={seed}", folder=f"alone{seed}")  # fmt: skip
        ours, theirs = (
            torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
            for folder in (tmp_path / "stacked" / f"seed{seed}", alone)
        )
        for name, weight in theirs["state_dict"].items():
            torch.testing.assert_close(ours["state_dict"][name], weight)
        [mine], [reference] = ours["optimizer_states"], theirs["optimizer_states"]
        assert [group["params"] for group in mine["param_groups"]] == [g["params"] for g in reference["param_groups"]]
        for index, state in reference["state"].items():
            torch.testing.assert_close(mine["state"][index], state)


def test_the_identity_of_earlier_runs_stays(tmp_path):
    from omegaconf import open_dict

    from rule_extrapolation.runs.identity import identity

    cfg = config(tmp_path, "optimizer.decay=all")
    earlier = cfg.copy()
    with open_dict(earlier):
        del earlier.optimizer.decay
    assert identity(cfg) == identity(earlier) != identity(config(tmp_path))
