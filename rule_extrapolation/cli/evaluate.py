"""Test a trained model further: rule-extrapolation evaluate run=<folder>"""

from __future__ import annotations

import dataclasses
import inspect
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rule_extrapolation.cli.arguments import TRUST_RUN, command
from rule_extrapolation.cli.pipes import ends_with_pipe
from rule_extrapolation.core.errors import ConfigError, check_choice, check_positive, check_seed
from rule_extrapolation.experiment.trained_run import TrainedRun, find_config, load_run
from rule_extrapolation.runs.evaluations import write_evaluation
from rule_extrapolation.runs.run_folder import check_links

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import Tensor

    from rule_extrapolation.grammars.grammar import Grammar
    from rule_extrapolation.inference.decoding import Decoder

USAGE = """\
Test a run's best checkpoint with other prompts, other decoding and longer words.

  rule-extrapolation evaluate run=<folder>
  rule-extrapolation evaluate run=<folder> prompt_length=4,6,8,10 max_new_tokens=200
  rule-extrapolation evaluate run=<folder> decoding=sample temperature=0.8 samples=10

Results go to a new folder, <run>/evaluations/<time>; the run itself is not changed."""

WORDS = 256
"""Words drawn of each length."""


@dataclass
class Arguments:
    run: Annotated[str, "the run's folder"]
    prompt_length: Annotated[list[int] | None, "lengths of prompts, such as 4,6,8,10; default: the run's"] = None
    max_new_tokens: Annotated[int | None, "most tokens to add; default: the run's, or 2 L for words of length L"] = None
    decoding: Annotated[str | None, "greedy or sample; default: the run's"] = None
    temperature: Annotated[float | None, "for decoding=sample; default: the run's, or 1"] = None
    samples: Annotated[int, "completions of each prompt, with decoding=sample"] = 1
    seed: Annotated[int | None, "seed of words and samples; default: the run's data.seed and decoding.seed"] = None
    lengths: Annotated[list[int] | None, "lengths of words, such as 16,32,64; default: by max_length_factor"] = None
    max_length_factor: Annotated[float, "longest words as a multiple of the run's max_length; 0: no longer words"] = 4.0
    trust_run: Annotated[bool, TRUST_RUN] = False


def check(arguments: Arguments) -> None:
    """Check the arguments as far as possible before torch is imported."""
    find_config(arguments.run)
    if arguments.decoding is not None:
        check_choice(("greedy", "sample"), decoding=arguments.decoding)
    numbers = {name: getattr(arguments, name) for name in ("max_new_tokens", "temperature", "samples")}
    check_positive(**{name: number for name, number in numbers.items() if number is not None})
    for name in ("prompt_length", "lengths"):
        for number in getattr(arguments, name) or ():
            check_positive(**{name: number})
    if arguments.seed is not None:
        check_seed(seed=arguments.seed)
    if not 0 <= arguments.max_length_factor <= 256:
        raise ConfigError("max_length_factor", arguments.max_length_factor, "must be from 0 to 256")
    if not os.access(arguments.run, os.W_OK):
        raise ConfigError("run", arguments.run, "cannot be written to, but evaluations are stored there")
    check_links(Path(arguments.run, "evaluations"), "run", Path(arguments.run))


def prompt_grammars(run: TrainedRun, lengths: list[int] | None) -> Iterator[Grammar]:
    """The run's language with each length of prompts.

    Raises:
        ConfigError: a length of which the language has no prompts, or that the model cannot read.
    """
    for length in dict.fromkeys(lengths or [run.grammar.test_prompt_length]):
        same = length == run.grammar.test_prompt_length
        try:
            grammar = run.grammar if same else run.grammar_with(test_prompt_length=length)
        except ConfigError as error:
            raise ConfigError("prompt_length", length, error.fix) from error
        tokens = max(prompts.shape[1] for prompts in grammar.prompts.values())
        most = run.model.max_context
        if most is not None and tokens > most:
            raise ConfigError("prompt_length", length, f"makes {tokens} tokens, and the model reads {most}; use less")
        yield grammar


def tokens_needed(cfg: DictConfig, arguments: Arguments) -> int:
    """The most tokens that a prompt and its completion can have together."""
    longest = max(arguments.lengths or [int(cfg.data.max_length * arguments.max_length_factor)])
    prompt = max(arguments.prompt_length or [cfg.data.max_length])
    budget = max(arguments.max_new_tokens or 0, cfg.decoding.max_new_tokens)
    return 3 + max(longest, prompt) + max(budget, 2 * longest)


def context(run: TrainedRun) -> str:
    return f"{run.cfg.model.name} reads at most {run.model.max_context} tokens"


def words_by_length(run: TrainedRun, arguments: Arguments, seed: int) -> tuple[list[Tensor], list[str]]:
    """(N, L + 2) framed words of each length L, and a line for each length that could not be had."""
    from rule_extrapolation.core.random import generator
    from rule_extrapolation.inference.evaluation import evaluation_lengths, words_of_length

    grammar, model, notes = run.grammar, run.model, []
    lengths = arguments.lengths or evaluation_lengths(grammar.max_length, arguments.max_length_factor)
    if model.max_context is not None and max(lengths, default=0) >= model.max_context:
        most = model.max_context - 1
        notes.append(f"{context(run)}: lengths above {most} are omitted")
        lengths = [length for length in lengths if length <= most]

    def longer(max_length: int) -> Grammar:
        # The prompts are not used, but must fit max_length.
        if "test_prompt_length" not in inspect.signature(type(grammar)).parameters:
            return run.grammar_with(max_length=max(max_length, grammar.test_prompt_length))
        return run.grammar_with(max_length=max(max_length, 2 + grammar.min_max_length), test_prompt_length=2)

    def nearest(length: int) -> Tensor | None:
        """Words of that length, or of the nearest below it that has words."""
        downwards = (words_of_length(grammar, longer, n, WORDS, generator(seed, n)) for n in range(length, 0, -1))
        return next((words for words in downwards if len(words)), None)

    found: dict[int, Tensor] = {}
    for length in sorted(set(lengths)):
        words = nearest(length)
        instead = None if words is None else words.shape[1] - 2
        if words is not None:
            found[instead] = words
        if arguments.lengths and instead != length:
            remedy = "omitted" if instead is None else f"{instead} instead"
            notes.append(f"{grammar.name} has no words of length {length}: {remedy}")
    return list(found.values()), notes


def evaluate(arguments: Arguments) -> None:
    check(arguments)
    run = load_run(arguments.run, trust_run=arguments.trust_run, min_context=lambda cfg: tokens_needed(cfg, arguments))
    if run.task.kind == "text":
        fix = f"{run.task.name} is a text, which has no rules; its perplexity is in results.json"
        raise ConfigError("run", arguments.run, fix)

    from rule_extrapolation.inference.decoding import make_decoder
    from rule_extrapolation.reporting.console import plain_console
    from rule_extrapolation.reporting.terminal import print_evaluation

    started = time.perf_counter()
    given = {name: getattr(arguments, name) for name in ("max_new_tokens", "temperature", "seed")}
    decoder = make_decoder(run.decoder, arguments.decoding, **given)
    check_samples(arguments.samples, decoder)
    grammars = list(prompt_grammars(run, arguments.prompt_length))
    words_seed = run.cfg.data.seed if arguments.seed is None else arguments.seed
    words, notes = words_by_length(run, arguments, words_seed)
    if arguments.max_new_tokens is not None or arguments.prompt_length is not None:
        notes += limited_budgets(run, grammars, decoder)
    figures, completions = evaluate_all(run, grammars, words, decoder, arguments.samples)
    results = {
        **run.header(),
        "run": str(run.folder.resolve()),
        "checkpoint": run.checkpoint and str(run.checkpoint.relative_to(run.folder)),
        "arguments": dataclasses.asdict(arguments),
        "decoding": describe(decoder),
        "max_length": run.grammar.max_length,
        **figures,
        "notes": notes,
        "seconds": time.perf_counter() - started,
    }
    folder = write_evaluation(run.folder, results, completions)
    print_evaluation(plain_console(), grammars, results, folder)


def evaluate_all(
    run: TrainedRun, grammars: list[Grammar], words: list[Tensor], decoder: Decoder, samples: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The figures by length of prompt and by length of word, their means over words longer than in training, and the
    judged completions."""
    from rule_extrapolation.inference.decoding import make_decoder
    from rule_extrapolation.inference.evaluation import evaluate_length, evaluate_prompts, mean_of_longer

    prompts: dict[str, Any] = {}
    completions: list[dict[str, Any]] = []
    for grammar in grammars:
        length = grammar.test_prompt_length
        prompts[str(length)], rows = evaluate_prompts(grammar, run.model, decoder, samples)
        completions += [{"prompt_length": length, **row} for row in rows]
    lengths: dict[str, Any] = {}
    for rows in words:
        length = rows.shape[1] - 2
        # Room for the prompt, of up to length + 2 tokens, and for 2 L new tokens, whatever limits the run had.
        room = {"max_new_tokens": 2 * length, "max_tokens": 3 * length + 2}
        own = {name: getattr(decoder, name) for name in room}
        raised = {name: max(own[name], room[name]) for name in room if own[name] is not None}
        with_room = make_decoder(decoder, None, **raised, temperature=None)
        lengths[str(length)] = evaluate_length(run.grammar, run.model, rows, with_room, samples)
    longer_words = mean_of_longer([*lengths.values()], run.grammar.max_length)
    return {"prompt_length": prompts, "lengths": lengths, "longer": longer_words}, completions


def limited_budgets(run: TrainedRun, grammars: list[Grammar], decoder: Decoder) -> list[str]:
    """A line for each prompt length at which fewer new tokens are allowed than asked for, and what limits them."""
    widths = [max(prompts.shape[1] for prompts in grammar.prompts.values()) for grammar in grammars]
    lines = []
    for tokens in dict.fromkeys(widths):
        budget = decoder.budget(run.model, tokens)
        if budget < decoder.max_new_tokens:
            limits_total = decoder.max_tokens is not None and budget == max(decoder.max_tokens - tokens, 1)
            total = f"the run has decoding.max_tokens={decoder.max_tokens}, for prompt and completion together"
            cause = total if limits_total else context(run)
            lines.append(f"{cause}: prompts of {tokens} get at most {budget} new ones")
    return lines


def check_samples(samples: int, decoder: Decoder) -> None:
    if samples > 1 and decoder.make_generator() is None:
        raise ConfigError("samples", samples, "greedy decoding gives one completion per prompt; set decoding=sample")


def describe(decoder: Decoder) -> dict[str, Any]:
    """The name and settings of a decoder."""
    return {"name": type(decoder).__name__.lower(), **vars(decoder)}


@ends_with_pipe
def main() -> None:
    command(evaluate, Arguments, USAGE)


if __name__ == "__main__":
    main()
