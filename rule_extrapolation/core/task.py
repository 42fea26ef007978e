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

    unit: str
    """What it counts prompts in: symbols, characters or words."""

    def encode_prompt(self, prompt: str) -> Any:
        """A prompt as (1, P) tokens. Raises a ConfigError that names a symbol which is not in the alphabet."""

    def judge_completion(self, tokens: Any, prompt_length: int) -> tuple[str, bool, dict[str, bool]]:
        """(1, P + new) tokens -> what was added as text, whether it has ended, and which rules the whole keeps."""

    def about(self) -> dict[str, Any]:
        """The entries that describe the task in results.json."""
