"""What a run trains on: a language or a text."""

from __future__ import annotations

from typing import Any, Protocol


class Task(Protocol):
    """What every part of a run needs to know of what it trains on. A Grammar is one, and so is a TextTask."""

    kind: str
    """``language`` or ``text``: which LightningModule trains on it, and how its results are printed."""
    name: str
    label: str | None
    """A short second name, such as L3."""
    process: Any
    """The exact distribution of its words, where that is known."""

    @property
    def level(self) -> str: ...

    @property
    def num_tokens(self) -> int: ...

    def about(self) -> dict[str, Any]:
        """What results.json says of it."""
