"""What import rule_extrapolation gives, and the command rule-extrapolation."""

import subprocess
import sys

import pytest
from conftest import ROOT

import rule_extrapolation
from rule_extrapolation.__main__ import COMMANDS, main


def test_importing_the_package_imports_no_torch():
    code = "import sys, rule_extrapolation; print('torch' in sys.modules, *dir(rule_extrapolation))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", *sorted(rule_extrapolation.__all__)]


@pytest.mark.parametrize("name", rule_extrapolation.__all__)
def test_every_public_name_is_there(name):
    value = getattr(rule_extrapolation, name)
    assert value == "0.1.0" if name == "__version__" else value.__name__ == name


def test_a_misspelt_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        rule_extrapolation.trian  # noqa: B018


def test_help_names_every_command(call):
    status, out, _ = call(main, "--help")
    assert status == 0
    assert all(f"\n  {command} " in out for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(call, command):
    status, out, err = call(main, command, "--help")
    assert (status, err) == (0, "")
    assert len(out.splitlines()) > 2


def test_a_misspelt_command_is_one_line(call):
    status, out, err = call(main, "trian")
    assert (status, out) == (2, "")
    assert err.startswith("error: trian: no such command; did you mean train? (one of train, ")
    assert err.count("\n") == 1


def test_languages_lists_them(call):
    status, out, _ = call(main, "languages")
    assert status == 0
    assert "L3  aNbN  context-free" in out
    assert "not_nested_parentheses_and_brackets" in out


def test_train_is_the_runner(cli, call, tmp_path):
    status, out, _ = call(main, "train", "--list")
    assert status == 0
    assert "aNbN" in out
