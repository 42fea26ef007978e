"""What can be said of a configuration without importing torch."""

import inspect
import pydoc
import re
import subprocess
import sys
import textwrap

import pytest
from conftest import environment

from rule_extrapolation.config.composing import CONF_DIR
from rule_extrapolation.config.outline import outline
from rule_extrapolation.grammars import LANGUAGES, target

WRITTEN = [re.findall(r"^ *_target_: (.*)$", path.read_text(), re.M) for path in CONF_DIR.glob("*/*.yaml")]
TARGETS = {name for names in WRITTEN for name in names} | {target(name) for name in LANGUAGES}

REFUSED = {
    "model=lst": "did you mean lstm?",
    "modle=lstm": "modle",
    "model.hiden_dim=3": "did you mean hidden_dim?",
    "+model.foo=3": "model.foo=3: no such key",
    "model.hidden_dim=big": "must be int",
    "model.hidden_dim=0": "must be greater than 0",
    "model=transformer model.num_heads=3": "must divide dim_model=64: 1, 2, 4, 8, 16, 32, 64",
    "model=xlstm model.act_fn=foo": "must be one of gelu",
    "model=ngram model.smoothing=kneserney": "did you mean kneser_ney?",
    "model=ffnn model.order=1": "must be 2 or more",
    "grammar.only_even=3": "must be bool",
    "optimizer.lr=x": "must be float",
    "scheduler.warmup=0": "must be 1 or more",
    "decoding=sample decoding.temperature=-1": "must be greater than 0",
    "trainer.max_steps=0": "must be greater than 0",
    "trainer.max_steps=ten": "must be int",
    "+trainer.foo=1": "trainer.foo=1: no such key",
    "callbacks.early_stopping.patience=x": "must be int",
    "logger.project=1": "must be str",
    "seed=-1": "must be from 0",
    "seeds=0": "must be greater than 0",
    "optimizer.lr=-1": "must be greater than 0",
    "-m model=lstm model.num_layers=2,0": "model.num_layers=0: must be greater than 0",
}


def test_help_and_errors_do_without_torch(tmp_path):
    script = f"""
        import sys
        from hydra.core.global_hydra import GlobalHydra
        from rule_extrapolation.cli.train import main

        for command in ["--help", "--help model=lstm", "--cfg job", *{list(REFUSED)}]:
            sys.argv = ["runner", *command.split()]
            GlobalHydra.instance().clear()
            print("###", command, file=sys.stderr, flush=True)
            try:
                main()
            except SystemExit as stop:
                assert stop.code == 2, command
            assert not {{"torch", "lightning", "numba", "wandb"}} & set(sys.modules), command
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    printed = dict(part.split("\n", 1) for part in done.stderr.split("### ")[1:])
    assert "model: ffnn, linear, lstm" in done.stdout and "hidden_dim: 256" in done.stdout
    for command, message in REFUSED.items():
        assert printed[command].startswith("error: ") and message in printed[command], command
        assert len(printed[command].splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_an_outline_has_the_parameters_of_what_it_outlines(name):
    outlined, real = (inspect.signature(of).parameters for of in (outline(name), pydoc.locate(name)))
    assert list(outlined) == list(real)
    for parameter, expected in zip(outlined.values(), real.values()):
        assert parameter.kind == expected.kind
        assert (parameter.default is parameter.empty) == (expected.default is expected.empty)


def test_what_cannot_be_outlined_is_left_to_the_import():
    for name in ("nowhere.Nothing", "rule_extrapolation.models.lstm.Nothing", "math.sqrt", "lstm"):
        assert outline(name) is None


def test_an_outline_stops_where_the_constructor_does_more_than_check(tmp_path, monkeypatch):
    (tmp_path / "elsewhere.py").write_text(
        textwrap.dedent("""
            from __future__ import annotations

            import torch
            from rule_extrapolation.core.errors import ConfigError, check_positive

            LIMIT = 5
            RATES = {"slow": torch.nn.Identity}


            class Base:
                def __init__(self, size: int, rate: str = "slow", *, weight: torch.Tensor | None = None):
                    super().__init__()
                    check_positive(size=size)
                    if rate not in RATES:
                        raise ConfigError("rate", rate, "unknown")
                    if size > LIMIT:
                        raise ConfigError("size", size, f"at most {LIMIT}")
                    self.size = size
                    check_positive(later=-1)


            class Model(Base):
                pass
        """)
    )
    (tmp_path / "pack").mkdir()
    (tmp_path / "elsewhere.py").rename(tmp_path / "pack" / "elsewhere.py")
    (tmp_path / "pack" / "__init__.py").write_text("from pack.elsewhere import Model as Renamed\n")
    monkeypatch.syspath_prepend(tmp_path)
    check = outline("pack.Renamed")
    assert check(3) is None and check(3, rate="fast", weight=1) is None
    for size, message in {0: "size=0: must be greater than 0", 6: "size=6: at most 5"}.items():
        with pytest.raises(ValueError, match=message):
            check(size)
    assert "pack" not in sys.modules
