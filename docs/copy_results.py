"""Copy results/mini/tables/overview.md into README.md and docs/results.md: python docs/copy_results.py"""

from pathlib import Path

ROOT = Path(__file__).parent.parent
OVERVIEW = ROOT / "results" / "mini" / "tables" / "overview.md"
BEGIN, END = "<!-- Copied from results/mini/tables/overview.md. -->\n\n", "\n<!-- End of the copy. -->"
SECTIONS = {"README.md": 2, "docs/results.md": None}
"""How many of the overview's sections each page shows; None: all. A table and the sentence above it are two."""


def excerpt(page: str) -> str:
    """What a page shows of the overview."""
    return "\n\n".join(OVERVIEW.read_text().strip().split("\n\n")[: SECTIONS[page]]) + "\n"


def main() -> None:
    for page in SECTIONS:
        before, rest = (ROOT / page).read_text().split(BEGIN)
        (ROOT / page).write_text(before + BEGIN + excerpt(page) + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
