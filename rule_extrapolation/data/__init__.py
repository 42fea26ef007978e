"""Words, texts and pairs as batches."""

from pathlib import Path


def text_name(path: str | None) -> str:
    """What a text is called: by its file's name, pydoc_topics where none is given."""
    return "pydoc_topics" if path is None else Path(path).stem
