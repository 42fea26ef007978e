"""The interface of what a run trains on: a language or a text."""

from __future__ import annotations

from typing import Any, Protocol


class Task(Protocol):
    """What the parts of a run need to know about their task. Grammar and TextTask implement it."""

    kind: str
    """``language`` or ``text``. It decides which LightningModule trains on the task and how results are printed."""
    name: str
    label: str | None
    """A short second name such as L3, if there is one."""
    process: Any
    """The exact distribution of the language's words (``grammars.exact.process.Process``), or None if it is unknown."""

    @property
    def level(self) -> str:
        """The language's complexity class, or what a text's tokens are."""

    @property
    def num_tokens(self) -> int:
        """Size of the vocabulary, SOS, EOS and PAD included."""

    def about(self) -> dict[str, Any]:
        """The entries that describe the task in results.json."""
