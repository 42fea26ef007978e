"""A package of somebody else's, installed, adds a language and a model."""

import subprocess
import sys

import pytest
from conftest import environment

PACKAGE = {
    "pyproject.toml": """
        [build-system]
        requires = ["setuptools"]
        build-backend = "setuptools.build_meta"

        [project]
        name = "outside"
        version = "0.1"

        [project.entry-points."rule_extrapolation.languages"]
        all_alike = "outside.all_alike:AllAlike"
        long_only = "outside.all_alike:LongOnly"
        renamed = "outside.all_alike:AllAlike"
        gone = "outside.gone:Gone"
        aNbN = "outside.all_alike:AllAlike"
        L3 = "outside.all_alike:AllAlike"

        [project.entry-points."rule_extrapolation.models"]
        outside_gru = "outside.gru:GRU"
        plain_gru = "outside.gru:GRU"
        lstm = "outside.gru:GRU"

        [tool.setuptools.package-data]
        outside = ["conf/**/*.yaml"]
    """,
    "outside/__init__.py": "",
    "outside/all_alike.py": '''
        """a^n or b^n."""
        import torch

        from rule_extrapolation.core.tokens import FIRST_SYMBOL, PAD
        from rule_extrapolation.grammars.grammar import Grammar


        class AllAlike(Grammar):
            """Words of one letter."""

            name = "all_alike"
            level = "regular"
            alphabet = "ab"
            rules = {"rule_1": "all symbols are alike"}
            min_max_length = 1

            def rule_1(self, symbols):
                return ((symbols == symbols[:, :1]) | (symbols == PAD)).all(1)

            def is_prefix_of_word(self, symbols):
                return self.rule_1(symbols)

            def sample_symbols(self, num, generator):
                lengths = torch.randint(1, self.max_length + 1, (num, 1), generator=generator)
                letters = torch.randint(FIRST_SYMBOL, FIRST_SYMBOL + 2, (num, 1), generator=generator)
                return letters.where(torch.arange(self.max_length) < lengths, PAD)


        class LongOnly(AllAlike):
            name = "long_only"
            min_max_length = 14
    ''',
    "outside/gru.py": '''
        """A GRU."""
        from torch import nn

        from rule_extrapolation import LanguageModel


        class GRU(LanguageModel):
            def __init__(self, num_tokens: int, hidden_dim: int = 16):
                super().__init__()
                self.embedding = nn.Embedding(num_tokens, hidden_dim)
                self.gru = nn.GRU(hidden_dim, hidden_dim, batch_first=True)
                self.head = nn.Linear(hidden_dim, num_tokens)

            def init_state(self, batch_size):
                return self.head.weight.new_zeros(1, batch_size, self.gru.hidden_size)

            def advance(self, tokens, state):
                output, state = self.gru(self.embedding(tokens), state)
                return self.head(output), state
    ''',
    "outside/conf/model/outside_gru.yaml": """
        # A GRU of somebody else's
        name: outside_gru
        _target_: outside.gru.GRU
        hidden_dim: 8
        width_key: hidden_dim
    """,
}

# Another package, as pip would install it, without __init__.py.
WITHOUT_INIT = {
    "spaced-0.1.dist-info/METADATA": "Name: spaced\nVersion: 0.1\n",
    "spaced-0.1.dist-info/entry_points.txt": "[rule_extrapolation.models]\nspaced_gru = spaced.gru:GRU\n",
    "spaced/gru.py": "from outside.gru import GRU\n",
    "spaced/conf/model/spaced_gru.yaml": "name: spaced_gru\n_target_: spaced.gru.GRU\nhidden_dim: 3\n",
}


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """Run the command in a process that has the package installed; returns exit status, stdout and stderr."""
    import textwrap

    home = tmp_path_factory.mktemp("outside")
    for name, content in PACKAGE.items():
        (home / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (home / "source" / name).write_text(textwrap.dedent(content))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    target = ["--disable-pip-version-check", "--target", str(home / "site"), str(home / "source")]
    subprocess.run([*pip, *target], check=True, capture_output=True)
    for name, content in WITHOUT_INIT.items():
        (home / "site" / name).parent.mkdir(parents=True, exist_ok=True)
        (home / "site" / name).write_text(content)
    env = environment(home)
    env["PYTHONPATH"] = f"{home / 'site'}:{env['PYTHONPATH']}"

    def command(*arguments: str) -> tuple[int, str, str]:
        line = [sys.executable, "-m", "rule_extrapolation", *arguments]
        done = subprocess.run(line, cwd=home, env=env, capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr

    return command


def test_they_are_listed_and_suggested(command):
    _, languages, _ = command("languages")
    assert "all_alike  regular" in languages
    _, help_, _ = command("train", "--help")
    assert "outside_gru, plain_gru" in help_ and "all_alike" in help_
    status, _, error = command("train", "model=outside_gro")
    assert status == 2 and "did you mean outside_gru?" in error
    status, _, error = command("train", "grammar=all_alik")
    assert status == 2 and "did you mean all_alike?" in error


SHORT = ["logger=csv", "trainer.max_steps=2", "data.max_length=10", "data.num_train=16", "decoding.max_new_tokens=2"]


def test_they_train_together_with_the_settings_of_their_yaml(command):
    status, out, error = command("train", *SHORT, "grammar=all_alike", "model=outside_gru", "hydra.run.dir=run")
    assert status == 0, error
    assert out.startswith("outside_gru (517 parameters) on all_alike (regular)")
    status, out, _ = command("complete", "run=run", "prompt=aa", "samples=0")
    assert status == 0 and "R1" in out


def test_a_model_without_yaml_has_its_own_defaults(command):
    status, out, error = command("train", *SHORT, "model=plain_gru", "+model.hidden_dim=4", "hydra.run.dir=plain")
    assert status == 0, error
    assert out.startswith("plain_gru (")
    status, out, error = command("complete", "run=plain", "prompt=ab", "samples=0")
    assert (status, error) == (0, "") and out.startswith("plain_gru on aNbN")


def test_width_sets_the_key_that_its_yaml_names(command):
    status, out, _ = command("train", *SHORT, "grammar=all_alike", "model=outside_gru", "width=4", "hydra.run.dir=wide")
    assert status == 0
    assert out.startswith("outside_gru (165 parameters)")


def test_one_that_does_not_work_leaves_the_lists_of_the_others(command):
    status, out, err = command("train", "--list")
    assert status == 0
    assert "L6  not_nested_parentheses_and_brackets" in out and "long_only  regular" in out
    [line] = [line for line in out.splitlines() if "gone" in line]
    assert "gone = outside.gone.Gone does not work" in line and "No module named 'outside.gone'" in line
    assert "renamed = outside.all_alike.AllAlike does not work: ValueError: the language's name is all_alike" in out
    models = [line.split(maxsplit=1) for line in out.split("model=<name>")[1].splitlines()]
    assert ["outside_gru", "A GRU of somebody else's"] in models
    assert ["lstm", "LSTM, Hochreiter & Schmidhuber 1997"] in models
    assert err.splitlines() == [
        "warning: rule_extrapolation.languages: L3 = outside.all_alike:AllAlike is left out, the name is taken",
        "warning: rule_extrapolation.languages: aNbN = outside.all_alike:AllAlike is left out, the name is taken",
        "warning: rule_extrapolation.models: lstm = outside.gru:GRU is left out, the name is taken",
    ]


def test_an_entry_point_has_the_name_of_its_language(command):
    status, _, err = command("train", "grammar=renamed")
    [line] = [line for line in err.splitlines() if not line.startswith("warning: ")]
    assert (status, line) == (
        2,
        "error: grammar.name=renamed: the language's name is all_alike; use grammar=all_alike, "
        "and the same name for an entry point",
    )


def test_ours_keep_their_names(command):
    status, out, _ = command("train", *SHORT, "grammar=L3", "model=lstm", "hydra.run.dir=ours")
    assert status == 0
    assert out.startswith("lstm (2,") and "on aNbN (L3, context-free)" in out


def test_the_settings_of_a_package_without_init_are_found(command):
    status, out, error = command("train", *SHORT, "model=spaced_gru", "hydra.run.dir=spaced")
    assert status == 0, error
    assert out.startswith("spaced_gru (")
    assert "hidden_dim: 3" in command("train", "model=spaced_gru", "--cfg", "job")[1]
