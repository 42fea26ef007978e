"""Prompts that a person types, as tokens for a model, and back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rule_extrapolation.core.errors import ConfigError
from rule_extrapolation.grammars.titles import title

if TYPE_CHECKING:
    from torch import Tensor

    from rule_extrapolation.core.task import Task
    from rule_extrapolation.models.language_model import LanguageModel


@dataclass(frozen=True)
class Completion:
    """What a model adds to a prompt.

    ``rules`` says of each of the language's rules whether prompt and completion together keep it; it is empty for text.
    """

    prompt: str
    text: str
    finished: bool
    """Whether the model wrote EOS."""
    probability: float
    """The probability of exactly these tokens under the model."""
    rules: dict[str, bool] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        verdicts = "".join(f"  {title(rule)} {'kept' if kept else 'broken'}" for rule, kept in self.rules.items())
        line = f"{self.prompt}|{self.text}".replace("\n", "\\n")
        return f"{line}{verdicts}{'' if self.finished else '  unfinished'}"


def encode_prompt(task: Task, model: LanguageModel, prompt: str) -> Tensor:
    """A prompt as (1, P) tokens: SOS and its symbols for a language, the text's tokens for a text.

    Raises:
        ConfigError: no string, a symbol outside the alphabet or vocabulary, or more tokens than the model reads.
    """
    if not isinstance(prompt, str):
        raise ConfigError("prompt", prompt, "must be a string")
    tokens = task.encode_prompt(prompt)
    length, most = tokens.shape[1], model.max_context
    if most is not None and length > most:
        added = length - len(prompt) if task.kind == "language" else 0
        fix = f"has {length - added} {task.unit}; use {most - added} or less, the model reads no more"
        raise ConfigError("prompt", prompt, fix)
    return tokens
