"""LightningDataModules: words of a language, prompts with completions, and texts."""

from pathlib import Path


def text_name(path: str | None) -> str:
    """The name of a text: its file's name without the suffix, or pydoc_topics for the default text."""
    return "pydoc_topics" if path is None else Path(path).stem
