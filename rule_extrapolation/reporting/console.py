from __future__ import annotations

from rich.console import Console


def plain_console(stderr: bool = False) -> Console:
    """A console that prints text as it is.

    Paths, names, prompts and completions may contain what rich would read as markup, such as [/b], or as an emoji.
    """
    return Console(stderr=stderr, markup=False, emoji=False)
