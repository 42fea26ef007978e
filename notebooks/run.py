"""Run notebooks from top to bottom and keep what they show: python notebooks/run.py [notebooks]; by default all."""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient


def main() -> None:
    for path in map(Path, sys.argv[1:] or sorted(Path(__file__).parent.glob("*.ipynb"))):
        notebook = nbformat.read(path, as_version=4)
        # Without times, and a stream's text in one piece, the same outputs make the same file.
        client = NotebookClient(
            notebook,
            timeout=600,
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": str(path.parent)}},
        )
        client.execute()
        notebook.metadata.language_info = {"name": "python"}
        nbformat.write(notebook, path)
        print(path)


if __name__ == "__main__":
    main()
