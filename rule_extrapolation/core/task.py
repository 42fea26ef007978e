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

    unit: str
    """What it counts prompts in: symbols, characters or words."""

    def encode_prompt(self, prompt: str) -> Any:
        """A prompt as (1, P) tokens. Raises a ConfigError that names a symbol which is not in the alphabet."""

    def judge_completion(self, tokens: Any, prompt_length: int) -> tuple[str, bool, dict[str, bool]]:
        """(1, P + new) tokens -> what was added as text, whether it has ended, and which rules the whole keeps."""

    def about(self) -> dict[str, Any]:
        """What results.json says of it."""
