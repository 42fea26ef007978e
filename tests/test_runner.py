"""The command line: what it prints, what it refuses, and that it can be stopped."""

import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile

import pytest
import torch
from conftest import ROOT, SHORT, config, environment, read_metrics, read_results
from omegaconf import OmegaConf

from rule_extrapolation.config.composing import CONF_DIR
from rule_extrapolation.experiment.assembling import assemble
from rule_extrapolation.grammars import ALIASES, LANGUAGES
from rule_extrapolation.reporting.terminal import figure

# A step of training and a few prompts and tokens, for what is about the command and not about the model.
TWO_STEPS = [*SHORT, "trainer.max_steps=2", "decoding.max_new_tokens=4"]


def runs(folder):
    return sorted(path.parent for path in folder.rglob("results.json"))


def yaml_options(group):
    return sorted(path.stem for path in (CONF_DIR / group).glob("*.yaml"))


MODELS = yaml_options("model")


class TestOutput:
    def test_list(self, cli):
        status, out, _ = cli("--list")
        assert status == 0
        assert all(name in out for name in [*LANGUAGES, *ALIASES])
        assert re.search(
            r"L3  aNbN  context-free\n +R1: #a = #b   R2: a's before b's .*\n +word a+b+   ID a+b*   OOD b", out
        )

    def test_table_at_the_end(self, cli, tmp_path):
        status, out, err = cli(*TWO_STEPS, "grammar=L3")
        assert status == 0
        assert err == ""
        [run] = runs(tmp_path)
        results = read_results(run)
        for title, metric in {"finished": "finished", "empty": "empty", "R1": "rule_1", "R2": "rule_2"}.items():
            row = []
            for name in ("ID", "OOD", "SOS"):
                path = name if metric == "finished" else f"{name}/finished"
                row.append(results["test"].get(f"Test/{path}/{metric}_accuracy"))
                row += [results[levels][f"{path}/{metric}_accuracy"] for levels in ("chance_levels", "stop_at_once")]
            assert re.search(rf"│ {title} +│ +" + "│ +".join(map(figure, row)), out)
        assert "Accuracies are over finished completions" in out
        assert f"Test loss {results['test']['Test/loss']:.4f}, optimal loss" in out
        assert len(re.findall(r"\|.* R1 [✓✗]  R2 [✓✗]", out)) == 5
        assert f"Run folder: {run.relative_to(tmp_path)}" in out

    @pytest.mark.parametrize(("model", "backend"), {"mamba": "torch", "xlstm": "vanilla", "minlstm": None}.items())
    def test_the_backend_is_said_and_kept(self, cli, tmp_path, model, backend):
        _, out, _ = cli(*TWO_STEPS, f"model={model}", "trainer.accelerator=cpu")
        assert (f"parameters, backend {backend}) on" if backend else "parameters) on") in out
        assert read_results(runs(tmp_path)[0])["backend"] == backend

    def test_a_run_in_a_process_of_its_own_prints_no_warnings(self, tmp_path):
        """As a user starts it: W&B as the default logger, no key."""
        overrides = [override for override in TWO_STEPS if override != "logger=csv"]
        command = [sys.executable, "-m", "rule_extrapolation.runner", *overrides]
        done = subprocess.run(command, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        assert len(re.findall("W&B: no API key, logging offline", done.stdout)) == 1
        [run] = runs(tmp_path)
        written = {"config.yaml", "metrics.csv", "completions.csv", "results.json", ".hydra", "checkpoints", "wandb"}
        written.add(".lock")
        assert {path.name for path in run.iterdir()} == written
        assert {path.name for path in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}

    def test_csv_needs_no_wandb(self, tmp_path):
        (tmp_path / "wandb.py").write_text("raise ImportError('not installed')")
        command = [sys.executable, "-m", "rule_extrapolation.runner", *TWO_STEPS]
        env = environment(tmp_path) | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        assert read_metrics(runs(tmp_path)[0])


@pytest.mark.parametrize(("value", "shown"), {1.0: "1.00", 0.996: "0.99", 0.29: "0.29", 0.0: "0.00", None: "-"}.items())
def test_figures_are_cut_so_that_1_00_is_all(value, shown):
    assert figure(value) == shown


class TestConfigurations:
    @pytest.mark.parametrize("name", [*LANGUAGES, *ALIASES])
    def test_every_language_by_name_and_label(self, name, tmp_path):
        assert assemble(config(tmp_path, f"grammar={name}")).module.grammar.name == ALIASES.get(name, name)

    @pytest.mark.parametrize(
        ("group", "option"),
        [
            (group, option)
            for group in ("model", "optimizer", "scheduler", "decoding", "trainer", "callbacks", "data", "training")
            for option in yaml_options(group)
            # finetune needs a run to start from (tests/test_ood_training.py), completions a model of its own
            # (model=seq2seq here), text other settings (tests/test_text.py).
            if option not in ("finetune", "completions", "text")
        ],
    )
    def test_every_option_runs(self, train, group, option):
        assert read_results(train(f"{group}={option}", "trainer.max_steps=2"))["status"] == "finished"

    # What is in folders: tests/test_paper.py; mini, which sweeps: tests/test_budget.py
    @pytest.mark.parametrize("option", [option for option in yaml_options("experiment") if option != "mini"])
    def test_every_experiments_own_command_runs(self, cli, tmp_path, option):
        header = (CONF_DIR / "experiment" / f"{option}.yaml").read_text()
        [command] = re.findall(r"^# +rule-extrapolation train (.*)$", header, re.MULTILINE)
        short = ["logger=csv", "trainer.max_epochs=2", "trainer.check_val_every_n_epoch=1", "data.num_train=128"]
        short += ["data.num_val=32", "data.num_test=32", "decoding.max_new_tokens=32"]
        assert cli(*command.split(), *short)[0] == 0
        assert read_results(runs(tmp_path)[0])["status"] == "finished"

    @pytest.mark.parametrize("model", MODELS)
    def test_l5_is_the_documents_setting_and_takes_any_model(self, tmp_path, model):
        cfg = config(tmp_path, "experiment=l5", f"model={model}")
        experiment = assemble(cfg)
        assert experiment.module.grammar.name == "parentheses_and_brackets"
        assert (cfg.optimizer.lr, cfg.trainer.max_epochs, cfg.data.batch_size) == (5e-4, 1000, 128)
        shipped = OmegaConf.load(CONF_DIR / "experiment" / "l5.yaml").data  # the test's own are smaller
        assert (shipped.max_length, shipped.num_train, shipped.num_val, shipped.num_test) == (32, 2048, 1024, 1024)


ERRORS = {
    "modle=minlstm": "modle=minlstm: no such key; did you mean model?",
    "model=minlsmt": "model=minlsmt: did you mean minlstm?",
    "grammar=aNbX": "grammar=aNbX: did you mean aNb",
    "experiment=paper/aNbX": "experiment=paper/aNbX: did you mean paper/aNb",
    "model.hiden_dim=3": "model.hiden_dim=3: no such key; did you mean hidden_dim?",
    "+model.hiden_dim=3": "model.hiden_dim=3: no such key; did you mean hidden_dim?",
    "+modle=3": "modle=3: no such key; did you mean model?",
    "+trainer.max_step=3": "trainer.max_step=3: no such key; did you mean max_steps?",
    "model.hidden_dim=big": "model.hidden_dim=big: must be int",
    "model.hidden_dim=2.5": "model.hidden_dim=2.5: must be int",
    "model.residual=1": "model.residual=1: must be bool",
    "model.norm=batch": "model.norm=batch: must be one of none, layer, rms",
    "model.hidden_dim=-4": "model.hidden_dim=-4: must be greater than 0",
    "data.max_length=1": "data.max_length=1: aNbN has no word that short; use 2 or more",
    "data.max_length=6": "grammar.test_prompt_length=8: must be from 1 to max_length=6",
    "grammar.test_prompt_length=0": "grammar.test_prompt_length=0: must be from 1 to max_length=12",
    "data.batch_size=0": "data.batch_size=0: must be greater than 0",
    "optimizer.lr=-1": "optimizer.lr=-1: must be greater than 0",
    "trainer.gradient_clip_val=1.0 +trainer.precision=bf16-mixed": "optimizer.fused=true: Lightning does not clip",
    "optimizer.lr=fast": "optimizer.lr=fast: must be float",
    "optimizer.lr=inf": "optimizer.lr=inf: must be finite",
    "optimizer.lr=[1]": "optimizer.lr=[1]: must be float",
    "optimizer.weight_decay=-1": "optimizer.weight_decay=-1: Invalid weight_decay value: -1",
    "scheduler.warmup=0": "scheduler.warmup=0: must be 1 or more",
    "scheduler.interval=day": "scheduler.interval=day: must be one of step, epoch",
    "decoding.max_new_tokens=0": "decoding.max_new_tokens=0: must be greater than 0",
    "decoding=beam": "decoding=beam: must be one of greedy, sample",
    "trainer.max_steps=-7": "trainer.max_steps=-7: must be greater than 0",
    "trainer.max_steps=0": "trainer.max_steps=0: must be greater than 0",
    "trainer.val_check_interval=0": "trainer.val_check_interval=0: must be greater than 0",
    "trainer.gradient_clip_val=-1": "trainer.gradient_clip_val=-1: must be greater than 0",
    "trainer.max_steps=ten": "trainer.max_steps=ten: must be int",
    "seed=-1": "seed=-1: must be from 0",
    "seed=x": "seed=x: must be int",
    "resume=nowhere": "resume=nowhere: there is no nowhere",
    f"resume={__file__}": "test_runner.py is not a checkpoint of a run",
    "model=null": "model=null: must be one of ",
    "~model": "model=null: must be set",
    "~seed": "seed=null: must be set",
    "model._target_=foo.Bar": "model._target_=foo.Bar: there is no such class or function",
    "model.name=a/b": "model.name=a/b: must be a word",
    "run_dir=null": "run_dir=null: must be str",
    "data.seed=-1": "data.seed=-1: must be from 0",
    "callbacks.last=null": "callbacks.last=null: must be set",
    "callbacks.early_stopping.patience=-1": "callbacks.early_stopping.patience=-1: must be greater than 0",
    "trainer.limit_val_batches=2": "+ in front adds a key",
    "+callbacks.foo=1": "callbacks.foo=1: must be a mapping",
    "callbacks.early_stopping.monitor=Val/lss": "callbacks.early_stopping.monitor=Val/lss: did you mean Val/loss?",
    "+grammar.max_length=3": "grammar.max_length=3: no such key",
    "grammar.name=foo": "grammar.name=foo: the language's name is aNbN",
    "+logger.project=x": "logger.project=x: no such key; logger=csv has no settings",
    "logger=tensorbord": "logger=tensorbord: must be one of csv, wandb",
    "model=lstm,linear": "Ambiguous value for argument 'model=lstm,linear'",
    "callbacks.best.monitr=x": "callbacks.best.monitr=x: no such key; did you mean monitor?",
    "model=transformer model.dim_model=10 model.num_heads=3": "model.num_heads=3: must divide dim_model=10: 1, 2, 5",
    "model=transformer model.max_len=8": "model reads 8",
    "model=linear model.max_data_length=4": "model reads 5",
    "model=mamba model.backend=mamba_ssm trainer.accelerator=cpu": "model.backend=mamba_ssm: needs a CUDA GPU",
    "model=mamba model.backend=cuda": "model.backend=cuda: must be one of auto, torch, mamba_ssm",
    "model=mamba model.d_state=0": "model.d_state=0: must be greater than 0",
    "model=xlstm model.backend=cuda trainer.accelerator=cpu": "model.backend=cuda: needs a CUDA GPU",
    "model=xlstm model.slstm_at=[9]": "model.slstm_at=[9]: num_blocks=7 has the blocks 0 to 6",
    "model=xlstm model.slstm_at=1": "model.slstm_at=1: must be list or all",
    "model=xlstm model.num_heads=3": "model.num_heads=3: sLSTM blocks need a divisor of embedding_dim=128",
    "model=xlstm model.context_length=8": "model reads 8",
    "model=xlstm data.max_length=long": "data.max_length=long: must be int",
    "model=mamba +model.accelerator=cpu": "model.accelerator=cpu: no such key",
    "decoding=sample decoding.temperature=0": "decoding.temperature=0: must be greater than 0",
    "grammar.only_even=true grammar.only_odd=true": "grammar.only_even=true: only_odd is true as well",
    "grammar=L5 grammar.test_prompt_length=5": "grammar.test_prompt_length=5: must be even",
    "grammar=L4 data.max_length=2": "data.max_length=2: aNbNcN has no word that short; use 3 or more",
    "logger=wandb logger.projct=x": "logger.projct=x: no such key; did you mean project?",
    "logger=wandb logger.tags=x": "logger.tags=x: must be list",
}


class TestErrors:
    @pytest.mark.parametrize(("overrides", "message"), ERRORS.items())
    def test_one_line_exit_2_and_no_folder(self, cli, tmp_path, overrides, message):
        status, out, err = cli(*SHORT, *overrides.split())
        assert status == 2
        assert err.startswith("error: ")
        assert message in err
        assert err.count("\n") == 1
        assert out == ""
        assert list(tmp_path.iterdir()) == []

    def test_one_bad_job_stops_a_multirun_before_any_work(self, cli, tmp_path):
        status, _, err = cli("-m", *SHORT, "model=transformer", "model.num_heads=1,3")
        assert (status, err.count("\n")) == (2, 1)
        assert "model.num_heads=3: must divide dim_model=64" in err
        assert not runs(tmp_path)

    def test_a_typo_in_an_experiment_file(self, cli, tmp_path):
        (tmp_path / "experiment").mkdir()
        (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nmodel:\n  hiden_dim: 3\n")
        status, _, err = cli(*SHORT, f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine")
        assert (status, err.count("\n")) == (2, 1)
        assert "model.hiden_dim=3: no such key; did you mean hidden_dim?" in err
        assert not runs(tmp_path)

    def test_a_run_is_not_overwritten(self, cli, tmp_path):
        assert cli(*TWO_STEPS, "hydra.run.dir=here")[0] == 0
        before = {path: path.read_bytes() for path in (tmp_path / "here").rglob("*") if path.is_file()}
        status, _, err = cli(*TWO_STEPS, "hydra.run.dir=here")
        assert status == 2
        assert "hydra.run.dir=here: already holds a run" in err
        status, _, err = cli("-m", *TWO_STEPS, "seed=1", "hydra.sweep.dir=.", "hydra.sweep.subdir=here")
        assert status == 2
        assert re.search("hydra.sweep.dir=.*here: holds a run with other settings", err)
        assert before == {path: path.read_bytes() for path in (tmp_path / "here").rglob("*") if path.is_file()}


def test_ctrl_c_leaves_a_run_that_goes_on(tmp_path):
    overrides = [
        "logger=csv",
        "grammar=L1",
        "data.num_val=32",
        "trainer.val_check_interval=5",
        "trainer.log_every_n_steps=1",
    ]
    command = [sys.executable, "-u", "-m", "rule_extrapolation.runner", *overrides, "trainer.max_steps=100000"]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment(tmp_path), stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("step 5/"):
            break
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Stopping after this batch" in output
    [run] = runs(tmp_path)
    results = read_results(run)
    assert results["status"] == "interrupted"
    assert "Val/loss" in results["over_training"]
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    step = checkpoint["global_step"]
    assert step >= 5
    logged = [row["step"] for row in read_metrics(run) if "Train/loss" in row]
    # Lightning logs a step after the hook that stops it.
    assert logged in (list(range(step - 1)), list(range(step)))

    more = [f"trainer.max_steps={step + 3}", f"resume={run}", "hydra.run.dir=rest"]
    command = [sys.executable, "-m", "rule_extrapolation.runner", *overrides, *more]
    subprocess.run(command, cwd=tmp_path, env=environment(tmp_path), check=True, capture_output=True)
    resumed = [row["step"] for row in read_metrics(tmp_path / "rest") if "Train/loss" in row]
    assert resumed == [step, step + 1, step + 2]


def test_the_wheel_runs_elsewhere_with_its_configuration(tmp_path):
    source = tmp_path / "source"
    leftovers = shutil.ignore_patterns(".*", "runs", "build", "*.egg-info")
    shutil.copytree(ROOT, source, ignore=lambda folder, names: leftovers(folder, names) if folder == str(ROOT) else ())
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", tmp_path, source], check=True, capture_output=True)
    shutil.rmtree(source)
    [wheel] = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    (tmp_path / "work").mkdir()
    env = environment(tmp_path) | {"PYTHONPATH": str(tmp_path / "site")}
    command = [sys.executable, "-m", "rule_extrapolation.runner", *TWO_STEPS, "experiment=l5", "trainer.max_epochs=2"]
    command += ["trainer.check_val_every_n_epoch=1"]
    done = subprocess.run(command, cwd=tmp_path / "work", env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [run] = runs(tmp_path / "work")
    assert read_results(run)["label"] == "L5"
    files = {path.relative_to(CONF_DIR) for path in CONF_DIR.rglob("*.yaml")}
    installed = tmp_path / "site" / "rule_extrapolation" / "conf"
    assert {path.relative_to(installed) for path in installed.rglob("*.yaml")} == files
