"""The interface of what a run trains on: a language or a text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Task(Protocol):
    """What the parts of a run need to know about their task. Grammar and TextTask implement it."""

    kind: str
    """``language`` or ``text``. It decides which LightningModule trains on the task and how results are printed."""
    name: str
    label: str | None
    """A short second name such as L3, if there is one."""
    rules: Mapping[str, str]
    """The language's rules in words, by name; empty for a text."""
    process: Any
    """The exact distribution of the language's words (``grammars.exact.process.Process``), or None if it is unknown."""

    @property
    def level(self) -> str:
        """The language's complexity class, or what a text's tokens are."""

    @property
    def num_tokens(self) -> int:
        """Size of the vocabulary, SOS, EOS and PAD included."""

    unit: str
    """What the length of a prompt counts: symbols, characters or words."""

    def encode_prompt(self, prompt: str) -> Any:
        """A prompt as (1, P) tokens.

        Raises:
            ConfigError: a symbol outside the alphabet or vocabulary.
        """

    def judge_completion(self, tokens: Any, prompt_length: int) -> tuple[str, bool, dict[str, bool]]:
        """Judge a completion.

        Args:
            tokens: (1, P + new) prompt and completion.
            prompt_length: P in tokens.

        Returns:
            The completion as text, whether it contains EOS, and which rules prompt and completion together keep.
        """

    def about(self) -> dict[str, Any]:
        """The entries that describe the task in results.json."""
