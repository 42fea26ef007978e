"""Print languages, the results of runs and evaluations, and completions."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from rule_extrapolation.core.random import generator
from rule_extrapolation.core.task import Task
from rule_extrapolation.grammars import BUILT_IN, LANGUAGES, language_class, target
from rule_extrapolation.grammars.grammar import Grammar
from rule_extrapolation.grammars.judging import metric_names
from rule_extrapolation.grammars.titles import rules_in_words, title

REFERENCES = {"chance_levels": "chance", "stop_at_once": "stop\nat\nonce"}
"""What a run's figures are compared with: the parts of results.json, and the titles of their columns."""
OF_FINISHED = "Accuracies are over finished completions; finished is the share that finish."
OOD_EXAMPLES = 5
SHOWN_COMPLETION = 40


def print_languages(console: Console) -> None:
    """Print every language's label, name, level and rules, with an example word and prompts."""
    console.print("grammar=<name or label>", style="dim")
    for name in LANGUAGES:
        try:
            cls = language_class(name)
            if cls.name != name:
                raise ValueError(f"the language's name is {cls.name}; give the entry point the same name")
            grammar = cls(max_length=max(12, cls.min_max_length, cls.default_prompt_length))
            print_language(console, grammar)
        except Exception as error:
            if name in BUILT_IN:
                raise
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            console.print(Text(f"    {name} = {target(name)} does not work: {reason}", "yellow"), soft_wrap=True)


def print_models(console: Console, models: dict[str, str]) -> None:
    """Print every model with a line about it."""
    console.print("\nmodel=<name>", style="dim")
    width = max(map(len, models))
    for name, about in models.items():
        console.print(Text.assemble("    ", (f"{name:{width}}", "bold"), f"  {about}"), soft_wrap=True)


def print_language(console: Console, grammar: Grammar) -> None:
    """Print a language's label, name, level and rules, with an example word and prompts."""
    words = grammar.to_text(grammar.sample(16, generator(0))[:, 1:])
    prompts = {kind: grammar.to_text(tokens[-1:, 1:]) for kind, tokens in grammar.prompts.items()}
    examples = {"word": max(words, key=len), "ID": prompts["ID"][0], "OOD": (prompts["OOD"] or ["none"])[0]}
    heading = Text.assemble(f"{grammar.label or '':4}", (grammar.name, "bold"), f"  {grammar.level}")
    console.print(heading, soft_wrap=True)
    console.print(Text(f"    {rules_in_words(grammar.rules)}"), soft_wrap=True)
    console.print(Text("    " + "   ".join(f"{kind} {text}" for kind, text in examples.items())), soft_wrap=True)


def describe_run(results: dict[str, Any], task: Task) -> str:
    """A line on what is about to be trained, and a second one if a faster backend is not used."""
    label = f"{task.label}, " if task.label else ""
    backend = f", backend {results['backend']}" if results["backend"] else ""
    model = f"{results['model']} ({results['num_parameters']:,} parameters{backend})"
    start = f", from {results['started_from']}" if results["started_from"] else ""
    reason = f"\nWithout the faster backend: {results['backend_reason']}" if results["backend_reason"] else ""
    return f"{model} on {task.name} ({label}{task.level}){start}{reason}"


def print_run(
    console: Console, grammar: Grammar, results: dict[str, Any], rows: list[dict[str, Any]], folder: Path
) -> None:
    """Print accuracies beside chance and stopping at once, losses, some OOD completions, and the folder."""
    console.print(accuracy_table(grammar, results))
    test_loss, optimal = results["test"]["Test/loss"], results["optimal_loss"]
    optimum = "not known" if optimal is None else f"{optimal:.4f}"
    if optimal is not None and grammar.all_words() is None:
        optimum += f" (on these test words {results['optimal_loss_on_test_words']:.4f})"
    console.print(f"Test loss {test_loss:.4f}, optimal loss {optimum}", highlight=False)
    memorised = results["memorised_loss"]
    if grammar.all_words() is None and memorised is not None:
        console.print(
            f"On its training words, a model that memorised them would have a loss of {memorised:.4f}", highlight=False
        )
    if grammar.all_words() is not None:
        console.print(f"Test words are the {len(grammar.all_words())} training words, each once.", highlight=False)
    ood = [row for row in rows if row["prompt_set"] == "OOD"]
    if ood:
        console.print("OOD prompts | completions, and the rules that prompt and completion together satisfy:")
        # At equal distances in the set, since neighbouring prompts are similar.
        for row in ood[:: max(1, len(ood) // OOD_EXAMPLES)][:OOD_EXAMPLES]:
            completion = shortened(row["completion"])
            line = Text.assemble("  ", (row["prompt"], "dim"), "|", (completion, "bold"), *marks(grammar, row))
            console.print(line, soft_wrap=True)
    print_end_of_run(console, results, folder)


def print_end_of_run(console: Console, results: dict[str, Any], folder: Path) -> None:
    """Print the run's folder, after a warning if the run has diverged."""
    if results["status"] == "diverged":
        console.print("The loss is not finite: training has diverged. Try a lower optimizer.lr.", style="red")
    console.print(f"Run folder: {seen_from_here(folder)}", soft_wrap=True, highlight=False)


def print_seeds(console: Console, task: Task, results: list[dict[str, Any]], folder: Path) -> None:
    """Print a row for each seed, the mean and standard deviation over seeds, and the references."""
    columns = {
        "test loss": "Test/loss",
        "perplexity": "Test/perplexity",
        "bits per character": "Test/bits_per_character",
    }
    columns = {title: key for title, key in columns.items() if key in results[0]["test"]}
    shares = {(name, key): f"{name} {shortened_title(key)}" for name, key in seeds_metrics(task)}
    shares = {of: title for of, title in shares.items() if f"Test/{'/'.join(of)}_accuracy" in results[0]["test"]}
    columns |= {title: f"Test/{logged_name(*of)}" for of, title in shares.items()}
    caption = f"{escape(rules_in_words(task.rules))}\n{OF_FINISHED}" if shares else None
    table = Table(title=f"{model_title(results[0])}s, by seed", caption=caption, padding=(0, 0, 0, 1))
    show_status = any(result["status"] != "finished" for result in results)
    for column in ("seed", *columns, *(["status"] if show_status else [])):
        table.add_column(column, justify="right", no_wrap=column == "seed")
    values = {title: [result["test"].get(key) for result in results] for title, key in columns.items()}

    def cell(title: str, value: float | None) -> str:
        is_accuracy = columns[title].endswith("_accuracy")
        return "-" if value is None else figure(value) if is_accuracy else f"{value:.4f}"

    for i, result in enumerate(results):
        row = [cell(title, values[title][i]) for title in columns]
        row += [result["status"]] if show_status else []
        table.add_row(str(result["seed"]), *row, end_section=i == len(results) - 1)
    if len(results) > 1:
        for name, statistic in {"mean": statistics.mean, "std": statistics.stdev}.items():
            known = {title: [value for value in column if value is not None] for title, column in values.items()}
            row = [cell(title, statistic(column) if len(column) > 1 else None) for title, column in known.items()]
            table.add_row(name, *row, end_section=name == "std")
    for key, reference in REFERENCES.items() if shares else ():
        levels = {title: results[0][key].get(logged_name(*of)) for of, title in shares.items()}
        row = [cell(title, levels.get(title)) for title in columns]
        table.add_row(reference.replace("\n", " "), *row, style="dim")
    console.print(table)
    console.print(f"Run folders: {seen_from_here(folder)}/seed*", soft_wrap=True, highlight=False)


def seeds_metrics(grammar: Grammar) -> list[tuple[str, str]]:
    """Prompt sets and metrics of the columns by seed. A text has none."""
    if not grammar.rules:
        return []
    ood = [*grammar.repairable_rules, *(f"{rule}_completion" for rule in grammar.completion_rules)]
    metrics = {"ID": ["finished", *grammar.rules], "OOD": ["finished", *ood]}
    return [(name, metric) for name, names in metrics.items() for metric in names]


def shortened_title(metric: str) -> str:
    """The title, abbreviated as in the tables of reports, so that a row fits into 80 columns."""
    return title(metric).replace("finished", "fin.").replace("completion", "compl.")


def logged_name(prompts: str, metric: str) -> str:
    """The name in results.json, without Test/, of the accuracy that tables show: over finished completions."""
    return f"{prompts}/{metric}_accuracy" if metric == "finished" else f"{prompts}/finished/{metric}_accuracy"


def seen_from_here(folder: Path) -> Path:
    """The path relative to the working directory if the folder is in it."""
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def model_title(results: dict[str, Any]) -> str:
    """For example, "minlstm on aNbN, best checkpoint"."""
    caveat = f" ({results['caveat']})" if results["caveat"] else ""
    tested = f", {results['tested']} checkpoint" if results["tested"] else ""
    return f"{results['model']}{caveat} on {results['grammar']}{tested}"


def accuracy_table(grammar: Grammar, results: dict[str, Any], more: str = "") -> Table:
    """A row for each metric, over finished completions as in reports.

    Each prompt set has three columns: the run's figures, chance and stopping at once.
    """
    caption = f"{escape(rules_in_words(grammar.rules))}\n{OF_FINISHED}"
    table = Table(title=model_title(results) + more, caption=caption, padding=(0, 0, 0, 1))
    table.add_column()
    columns: list[tuple[str, dict[str, float], str]] = []
    for name in grammar.prompts:
        columns.append((name, results["test"], f"Test/{name}"))
        columns += [(reference, results[key], name) for key, reference in REFERENCES.items()]
    for column, _, path in columns:
        table.add_column(column, justify="right", style="" if path.startswith("Test/") else "dim")
    sizes = grammar.num_prompts()
    table.add_row("prompts", *(str(sizes.get(column, "")) for column, _, _ in columns), end_section=True)
    for metric in metric_names(grammar):
        cells = [figure(figures.get(logged_name(path, metric))) for _, figures, path in columns]
        table.add_row(title(metric), *cells, end_section=metric == "finished")
    return table


def print_evaluation(console: Console, grammars: list[Grammar], results: dict[str, Any], folder: Path) -> None:
    """Print accuracies for each length of prompts, figures for longer words, and the folder."""
    samples = results["arguments"]["samples"]
    each = f", {samples} samples each" if samples > 1 else ""
    for grammar in grammars:
        length = grammar.test_prompt_length
        figures = results | results["prompt_length"][str(length)]
        console.print(accuracy_table(grammar, figures, f", prompt_length={length}{each}"))
    if results["lengths"]:
        console.print(length_table(grammars[0], list(results["lengths"].values()), results))
        console.print(
            "Loss in nats and accuracy of the next token are per symbol and EOS; oracle is the loss of the training "
            "distribution. The other columns are about completions of the words' first halves plus one symbol.",
            soft_wrap=True,
        )
    for note in results["notes"]:
        console.print(note, style="yellow", soft_wrap=True, highlight=False)
    console.print(f"Evaluation folder: {seen_from_here(folder)}", soft_wrap=True, highlight=False)


def print_completions(console: Console, grammar: Grammar, prompt: str, is_id: bool, rows: list[dict[str, Any]]) -> None:
    """Print whether a prompt is ID or OOD, and its completions with their probabilities and the rules they keep."""
    kind = "ID: a prefix of a word" if is_id else "OOD: not a prefix of any word"
    console.print(Text.assemble("prompt ", (prompt or "(empty)", "bold"), f", {kind}"), soft_wrap=True)
    console.print(
        "p: probability of the completion given the prompt, EOS included, at temperature 1", style="dim", soft_wrap=True
    )
    width = max(len(row["completion"]) for row in rows)
    for row in rows:
        parts = [f"{row['decoding']:8}", (row["prompt"], "dim"), "|", (row["completion"].ljust(width), "bold")]
        parts.append(f"  p {row['probability']:<9.4g}")
        for rule, wording in grammar.rules.items():
            kept = row[rule]
            parts.append((f"  {title(rule)} {'✓' if kept else '✗'} {wording}", "green" if kept else "red"))
        word = "in the language" if row["grammatical"] else "not in the language"
        parts.append(f"  {word}")
        parts += [] if row["finished"] else [("  unfinished", "yellow")]
        console.print(Text.assemble(*parts), soft_wrap=True)


def length_table(grammar: Grammar, rows: list[dict[str, Any]], results: dict[str, Any]) -> Table:
    metrics = ["finished", *grammar.rules, "grammatical"]
    title_ = f"{model_title(results)}\nby length of word, in training up to {results['max_length']}"
    table = Table(title=title_, padding=(0, 0, 0, 1))
    for column in ("length", "loss", "oracle", "accuracy", *map(title, metrics)):
        table.add_column(column, justify="right")
    for row in rows:
        losses = ["-" if loss is None else f"{loss:.4f}" for loss in (row["loss"], row["oracle_loss"])]
        held = [figure(row[f"{key}_accuracy"]) for key in metrics]
        table.add_row(str(row["length"]), *losses, figure(row["accuracy"]), *held)
    if longer := results["longer"]:
        table.add_section()
        held = [figure(longer[f"{key}_accuracy"]) for key in metrics]
        table.add_row(f"> {results['max_length']}", "", "", figure(longer["accuracy"]), *held)
    return table


def figure(value: float | None) -> str:
    # Truncated, not rounded, so that 1.00 means all.
    return "-" if value is None else f"{int(value * 100 + 1e-4) / 100:.2f}"


def shortened(text: str) -> str:
    return text if len(text) <= SHOWN_COMPLETION else text[: SHOWN_COMPLETION - 1] + "…"


def marks(grammar: Grammar, row: dict[str, Any]) -> list[Any]:
    """The rules with a tick or a cross, and "unfinished" if there is no EOS."""
    parts: list[Any] = [" "]
    for rule in grammar.rules:
        kept = row[rule]
        parts += ["  ", (f"{title(rule)} {'✓' if kept else '✗'}", "green" if kept else "red")]
    return parts if row["finished"] else [*parts, "  ", ("unfinished", "yellow")]
