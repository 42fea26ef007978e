"""Complete prompts with a trained model: rule-extrapolation complete run=<folder>"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rule_extrapolation.cli.arguments import TRUST_RUN, command
from rule_extrapolation.cli.pipes import ends_with_pipe
from rule_extrapolation.core.errors import ConfigError, check_positive, check_seed
from rule_extrapolation.experiment.prompts import encode_prompt
from rule_extrapolation.experiment.trained_run import TrainedRun, find_config, load_run

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from rule_extrapolation.cli.text_completion import TextPrompts

USAGE = """\
Complete a prompt with a run's best checkpoint, and show which rules prompt and completion keep together.

  rule-extrapolation complete run=<folder> prompt=bbaaa
  rule-extrapolation complete run=<folder> 'prompt=([' samples=10 temperature=0.8
  rule-extrapolation complete run=<folder> prompt=ROMEO: temperature=0.8    a run on text
  rule-extrapolation complete run=<folder>                     asks for prompts until exit or Ctrl-D
  rule-extrapolation complete run=<folder> prompt=aaab attention=attention.png"""


SAMPLES = 5
"""Completions that are drawn by default."""


@dataclass
class Arguments:
    run: Annotated[str, "the run's folder"]
    prompt: Annotated[str | None, "symbols or text, possibly empty; default: ask for prompts"] = None
    samples: Annotated[int | None, "completions to draw besides the greedy one; default: 5, for text 1"] = None
    temperature: Annotated[float, "temperature of the draws"] = 1.0
    seed: Annotated[int, "seed of the draws"] = 0
    max_new_tokens: Annotated[int | None, "most tokens of a completion; default: the run's"] = None
    attention: Annotated[str | None, "a .png, .svg or .pdf file to draw the greedy completion's attention to"] = None
    trust_run: Annotated[bool, TRUST_RUN] = False


def check(arguments: Arguments) -> None:
    """Check the arguments as far as possible before torch is imported."""
    find_config(arguments.run)
    if (arguments.samples or 0) < 0:
        raise ConfigError("samples", arguments.samples, "must be 0 or more")
    check_positive(temperature=arguments.temperature)
    check_seed(seed=arguments.seed)
    if arguments.max_new_tokens is not None:
        check_positive(max_new_tokens=arguments.max_new_tokens)
    if arguments.attention is not None:
        check_figure(arguments.attention, arguments.prompt)


def check_figure(file: str, prompt: str | None) -> None:
    from rule_extrapolation.reporting.figures import FORMATS

    if prompt is None:
        raise ConfigError("attention", file, "is drawn for one prompt; give prompt= too")
    if Path(file).suffix[1:] not in FORMATS:
        raise ConfigError("attention", file, f"must end in one of .{', .'.join(FORMATS)}")
    if not Path(file).parent.is_dir():
        raise ConfigError("attention", file, "there is no such folder; make it first")


ROW_DEPENDENT = (
    "A completion depends on its row in the batch: here the greedy one is row 0 and draws are rows 0, 1, ...; in "
    "completions.csv the row is the prompt's number."
)
"""What is said of a model whose rows are not independent, such as the transformer with positions=by_row."""


def most_new_tokens(cfg: DictConfig, arguments: Arguments) -> int:
    """The most tokens that a completion can have."""
    return arguments.max_new_tokens or cfg.decoding.max_new_tokens


class RulePrompts:
    """How ``complete`` treats prompts of a run on a language."""

    @staticmethod
    def heading(run: TrainedRun) -> str:
        return f"alphabet {' '.join(run.grammar.alphabet)}"

    @staticmethod
    def check_attends(run: TrainedRun, file: str) -> None:
        """Raise a ConfigError if the model has no attention to draw."""
        start = encode_prompt(run.task, run.model, "")
        if run.model.attention_weights(start, start) is None:
            others = "train with model=seq2seq model.attention=dot, or with model=transformer"
            raise ConfigError("attention", file, f"{run.cfg.model.name} has no attention to its prompt; {others}")

    @staticmethod
    def complete(
        run: TrainedRun, prompt: str, new_tokens: int | None, samples: int | None, temperature: float, seed: int
    ) -> None:
        complete_prompt(run, prompt, new_tokens, SAMPLES if samples is None else samples, temperature, seed)


def complete_prompt(
    run: TrainedRun, prompt: str, new_tokens: int | None, samples: int, temperature: float, seed: int
) -> None:
    """Print the greedy completion and the drawn ones.

    Args:
        new_tokens: the most tokens of a completion; None: the run's limits.

    Raises:
        ConfigError: the prompt cannot be completed.
    """
    from rule_extrapolation.grammars.judging import judged
    from rule_extrapolation.inference import evaluation
    from rule_extrapolation.inference.decoding import decoding_limits, greedy_and_sampled
    from rule_extrapolation.reporting.console import plain_console
    from rule_extrapolation.reporting.terminal import print_completions

    grammar, model = run.grammar, run.model
    tokens = encode_prompt(grammar, model, prompt)
    rows = []
    limits = decoding_limits(run.decoder, new_tokens)
    for name, (decoder, number) in greedy_and_sampled(limits, samples, temperature, seed).items():
        completions = evaluation.complete(model, tokens, decoder, number)
        probable = evaluation.probabilities(model, completions, tokens.shape[1]).tolist()
        verdicts = judged(grammar, completions, tokens.shape[1])
        rows += [{"decoding": name, "probability": p, **row} for p, row in zip(probable, verdicts)]
    could_begin_a_word = grammar.is_prefix(tokens[:, 1:]).item()
    print_completions(plain_console(), grammar, prompt, could_begin_a_word, rows)


def draw_attention(run: TrainedRun, arguments: Arguments) -> None:
    """Draw what the greedy completion attends to in the prompt, to a file."""
    from rule_extrapolation.core.tokens import EOS, SOS
    from rule_extrapolation.inference.decoding import Greedy, decoding_limits
    from rule_extrapolation.reporting.attention_figure import attention
    from rule_extrapolation.reporting.figures import save_as, styled

    prompt = encode_prompt(run.task, run.model, arguments.prompt)
    decoder = Greedy(**decoding_limits(run.decoder, arguments.max_new_tokens))
    completion = decoder(run.model, prompt)[:, prompt.shape[1] :]
    [weights] = run.model.attention_weights(prompt, completion).tolist()
    names = {SOS: "SOS", EOS: "EOS"}
    labels = [
        [names.get(t) or run.grammar.to_text(tokens.new_tensor([[t]]))[0] for t in tokens[0].tolist()]
        for tokens in (prompt, completion)
    ]
    with styled():
        figure = attention(weights, *labels)
    save_as(figure, Path(arguments.attention))
    print(f"Attention: {arguments.attention}")


def prompts_of(run: TrainedRun) -> type[RulePrompts] | type[TextPrompts]:
    from rule_extrapolation.cli.text_completion import TextPrompts

    return TextPrompts if run.task.kind == "text" else RulePrompts


def complete_one(run: TrainedRun, arguments: Arguments, prompt: str) -> None:
    drawn = (arguments.samples, arguments.temperature, arguments.seed)
    prompts_of(run).complete(run, prompt, arguments.max_new_tokens, *drawn)


def session(run: TrainedRun, arguments: Arguments) -> None:
    """Complete prompts until the input ends."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - lets input() edit the line and go back to earlier ones
    while (prompt := input("prompt> ").strip()) != "exit":
        try:
            complete_one(run, arguments, prompt)
        except ConfigError as error:
            print(f"error: {error}")


def complete(arguments: Arguments) -> None:
    check(arguments)
    prompt_length = 1 + len(arguments.prompt or "")
    run = load_run(
        arguments.run,
        trust_run=arguments.trust_run,
        min_context=lambda cfg: prompt_length + most_new_tokens(cfg, arguments),
    )

    from rule_extrapolation.reporting.terminal import model_title

    prompts, asked = prompts_of(run), arguments.prompt is not None
    if asked:
        encode_prompt(run.task, run.model, arguments.prompt)
    if arguments.attention is not None:
        prompts.check_attends(run, arguments.attention)
    print(f"{model_title(run.header())}; {prompts.heading(run)}")
    if not run.model.rows_are_independent:
        print(ROW_DEPENDENT)
    if asked:
        complete_one(run, arguments, arguments.prompt)
        return draw_attention(run, arguments) if arguments.attention is not None else None
    print("Type a prompt, or nothing for the empty one; exit or Ctrl-D ends.")
    try:
        session(run, arguments)
    except (EOFError, KeyboardInterrupt):
        print()


@ends_with_pipe
def main() -> None:
    command(complete, Arguments, USAGE)


if __name__ == "__main__":
    main()
