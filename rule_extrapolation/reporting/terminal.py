"""What a person sees in the terminal: the languages, and the end of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from rule_extrapolation.grammars import LANGUAGES, get_grammar
from rule_extrapolation.grammars.grammar import Grammar
from rule_extrapolation.seeding import generator

COLUMNS = {
    "finished": "finished",
    "rule_1": "R1",
    "rule_2": "R2",
    "rule_2_completion": "R2 completion",
    "grammatical": "grammatical",
}
OOD_EXAMPLES = 5


def print_languages(console: Console) -> None:
    """Label, name, level, rules, an example word and prompts of every language."""
    console.print("grammar=<name or label>", style="dim")
    for name in LANGUAGES:
        grammar = get_grammar(name, max_length=12)
        words = grammar.to_text(grammar.sample(16, generator(0))[:, 1:])
        prompts = {kind: grammar.to_text(tokens[-1:, 1:]) for kind, tokens in grammar.prompts.items()}
        examples = {"word": max(words, key=len), "ID": prompts["ID"][0], "OOD": (prompts["OOD"] or ["none"])[0]}
        console.print(Text.assemble(f"{grammar.label or '':4}", (name, "bold"), f"  {grammar.level}"), soft_wrap=True)
        console.print(Text(f"    {rules_in_words(grammar)}"), soft_wrap=True)
        console.print(Text("    " + "   ".join(f"{kind} {text}" for kind, text in examples.items())), soft_wrap=True)


def rules_in_words(grammar: Grammar) -> str:
    return "   ".join(f"R{rule[-1]}: {text}" for rule, text in grammar.rules.items())


def describe_run(results: dict[str, Any], grammar: Grammar) -> str:
    """One line on what is about to be trained."""
    label = f"{grammar.label}, " if grammar.label else ""
    return f"{results['model']} ({results['num_parameters']:,} parameters) on {grammar.name} ({label}{grammar.level})"


def print_run(
    console: Console, grammar: Grammar, results: dict[str, Any], rows: list[dict[str, Any]], folder: Path
) -> None:
    """Accuracies by prompt set beside chance, the loss beside the optimum, some OOD completions, and the folder."""
    title = f"{results['model']} on {grammar.name}, {results['tested']} checkpoint"
    table = Table(title=title, caption=escape(rules_in_words(grammar)))
    table.add_column("prompts")
    for column in COLUMNS.values():
        table.add_column(column, justify="right")
    for name in ("ID", "OOD", "SOS"):
        table.add_row(name, *(figure(results["test"].get(f"Test/{name}/{key}_accuracy")) for key in COLUMNS))
        chance = [figure(results["chance_levels"].get(f"{name}/{key}_accuracy")) for key in COLUMNS]
        table.add_row("  chance", *chance, style="dim", end_section=True)
    console.print(table)
    optimal = grammar.optimal_loss
    beside = "optimal loss not known for this language" if optimal is None else f"optimal loss {optimal:.4f}"
    console.print(f"Test loss {results['test']['Test/loss']:.4f}, {beside}")
    ood = [row for row in rows if row["prompt_set"] == "OOD"]
    if ood:
        console.print("OOD prompts, their completions, and the rules that the whole keeps:")
        # Evenly over the set: its first prompts are much alike.
        for row in ood[:: max(1, len(ood) // OOD_EXAMPLES)][:OOD_EXAMPLES]:
            console.print(Text.assemble("  ", (row["prompt"], "dim"), "|", (row["completion"], "bold"), *marks(row)))
    console.print(f"Run folder: {folder}", soft_wrap=True)


def figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def marks(row: dict[str, Any]) -> list[Any]:
    """R1 and R2 with a green tick or a red cross, and whether EOS never came."""
    parts: list[Any] = [" "]
    for rule in ("rule_1", "rule_2"):
        if rule in row:
            kept = row[rule]
            parts += ["  ", (f"R{rule[-1]} {'✓' if kept else '✗'}", "green" if kept else "red")]
    return parts if row["finished"] else [*parts, "  ", ("unfinished", "yellow")]
