"""Every notebook runs from top to bottom, and what is committed is a whole run's, with the same kinds of output."""

import re

import pytest
from conftest import ROOT, environment

nbclient = pytest.importorskip("nbclient")
import nbformat  # noqa: E402

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
QUICK = "03_lstm_from_scratch"
"""The one that a run of all tests executes; the others are slow."""
BY_STEM = [
    pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if path.stem != QUICK else []) for path in NOTEBOOKS
]


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def streams(notebook):
    return [output for cell in code_cells(notebook) for output in cell.outputs if output.output_type == "stream"]


@pytest.mark.parametrize("path", BY_STEM)
def test_it_runs(path, tmp_path, monkeypatch):
    for key, value in environment(tmp_path).items():
        monkeypatch.setenv(key, value)
    # tqdm's, where what the benchmarks are held against is installed, and imports it.
    monkeypatch.setenv("PYTHONWARNINGS", "ignore:IProgress not found")
    committed = nbformat.read(path, as_version=4)
    executed = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
        executed, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
    )
    client.execute()  # raises at the first cell that does
    assert not [output.text for output in streams(executed) if output.name == "stderr"]
    for now, then in zip(code_cells(executed), code_cells(committed)):
        kinds = [{output.output_type for output in cell.outputs} for cell in (now, then)]
        assert kinds[0] == kinds[1], f"run {path.name} again, and commit its outputs: {now.source}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_committed_is_one_run(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]
    assert not [output.text for output in streams(notebook) if output.name == "stderr"]
    text = path.read_text()
    assert not re.search(r"(?<![\w.<])/(home|tmp|work|root|Users|var)/", text), "a path of the machine that it ran on"
    assert '"execution": {' not in text, "the times at which its cells ran"
    assert len(text) < 500_000


def test_the_docs_have_a_line_for_each():
    section = (ROOT / "docs" / "python.md").read_text().split("\n## Notebooks\n")[1].split("\n## ")[0]
    assert re.findall(r"`(\d\d_\w+)\.ipynb`", section) == [path.stem for path in NOTEBOOKS]
