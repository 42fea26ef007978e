"""What is said of a command line before the heavy imports: help without torch, most errors without Lightning."""

import subprocess
import sys
import textwrap

from conftest import environment

WITHOUT_TORCH = {
    "model=lst": "did you mean lstm?",
    "lstm": "lstm: settings are key=value; did you mean model=lstm?",
    "--model lstm": "--model: settings are key=value; did you mean model=lstm?",
    "--model=lstm": "--model=lstm: settings are key=value; did you mean model=lstm?",
    "--grammar": "--grammar: settings are key=value; did you mean grammar=...?",
    "-m nonsense": "nonsense: settings are key=value",
    "modle=lstm": "modle",
    "model.hiden_dim=3": "did you mean hidden_dim?",
}
WITHOUT_LIGHTNING = {
    "seed=-1": "must be from 0",
    "seeds=0": "must be greater than 0",
    "trainer.max_steps=0": "must be greater than 0",
    "optimizer.lr=-1": "must be greater than 0",
    "+model.foo=3": "model.foo=3: no such key",
    "model.hidden_dim=big": "must be int",
    "model.hidden_dim=0": "must be greater than 0",
    "model=transformer model.num_heads=3": "must divide dim_model=64: 1, 2, 4, 8, 16, 32, 64",
    "model=xlstm model.act_fn=foo": "must be one of gelu",
    "model=ngram model.smoothing=kneserney": "did you mean kneser_ney?",
    "model=ffnn model.order=1": "must be 2 or more",
    "grammar.only_even=3": "must be bool",
    "data.max_length=1": "aNbN has no word that short",
    "optimizer.lr=x": "must be float",
    "decoding=sample decoding.temperature=-1": "must be greater than 0",
    "-m model=ffnn,lstm,linear depth=2": "depth=2: no depth to set in ffnn, linear; sweep over them apart",
    "-m model=lstm model.num_layers=2,0": "model.num_layers=0: must be greater than 0",
}
LATER = {
    "scheduler.warmup=0": "must be 1 or more",
    "trainer.max_steps=ten": "must be int",
    "+trainer.foo=1": "trainer.foo=1: no such key",
    "callbacks.early_stopping.patience=x": "must be int",
    "logger.project=1": "must be str",
}


def test_help_and_errors_come_before_heavy_imports(tmp_path):
    # In one process, so that each command finds loaded what those before it have imported: the heaviest come last.
    script = f"""
        import sys
        from hydra.core.global_hydra import GlobalHydra
        from rule_extrapolation.cli.train import main

        def run(command):
            sys.argv = ["runner", *command.split()]
            GlobalHydra.instance().clear()
            print("###", command, file=sys.stderr, flush=True)
            try:
                main()
            except SystemExit as stop:
                assert stop.code == 2, command

        for command in ["--help", "--help model=lstm", "--cfg job", *{list(WITHOUT_TORCH)}]:
            run(command)
            assert not {{"torch", "lightning", "numba", "wandb"}} & set(sys.modules), command
        for command in {list(WITHOUT_LIGHTNING)}:
            run(command)
            assert not {{"lightning", "wandb"}} & set(sys.modules), command
        for command in {list(LATER)}:
            run(command)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    (work := tmp_path / "work").mkdir()
    done = subprocess.run(command, cwd=work, env=environment(tmp_path), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    printed = dict(part.split("\n", 1) for part in done.stderr.split("### ")[1:])
    assert ", linear, lstm, mamba" in done.stdout and "hidden_dim: 256" in done.stdout
    for command, message in {**WITHOUT_TORCH, **WITHOUT_LIGHTNING, **LATER}.items():
        assert printed[command].startswith("error: ") and message in printed[command], (command, printed[command])
        assert len(printed[command].splitlines()) == 1
    assert not list(work.iterdir())
