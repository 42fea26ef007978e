"""The colour and marker of each architecture, the same in all figures.

They can be told apart in grey print and by colour-blind readers. Colours are those of Okabe and Ito (2008) where they
contrast with white. Grey is chance, and a dotted black line the completion that is EOS alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from rule_extrapolation.reporting.comparison import ARCHITECTURES, Group, rank

KNOWN = {
    "transformer": ("#0072B2", "o"),
    "lstm": ("#D55E00", "s"),
    "linear": ("#CC79A7", "D"),
    "mamba": ("#009E73", "^"),
    "xlstm": ("#E69F00", "v"),
    "minlstm": ("#56B4E9", "P"),
    "mingru": ("#6F4E00", "X"),
    "ffnn": ("#882255", "<"),
    "seq2seq": ("#117733", ">"),
    "oracle": ("#000000", "*"),
    "ngram": ("#999933", "h"),
    "normative": ("#661100", "H"),
}
OTHERS = (
    ("#332288", "p"),
    ("#AA4499", "d"),
    ("#44AA99", "8"),
)
LINES = ("-", "--", ":", "-.")
FILLS = ("full", "none", "left", "bottom")
CHANCE = "#9A9A9A"
STOP = {"color": "black", "ls": (0, (1, 1)), "lw": 1.4}
"""The line of the completion that is EOS alone."""

RC = {
    "font.size": 8,
    "font.family": "DejaVu Sans",
    "axes.titlesize": 6.5,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "savefig.dpi": 200,
    "pdf.fonttype": 42,
    "svg.hashsalt": "rule_extrapolation",
    "figure.facecolor": "white",
}


@dataclass(frozen=True)
class Look:
    color: str
    marker: str
    line: str
    fill: str


def looks(groups: list[Group]) -> dict[str, Look]:
    """Each row's look by its name: colour and marker depend on the architecture, line and filling on the settings."""
    unknown = sorted({group.model for group in groups} - set(KNOWN))
    base = KNOWN | {name: OTHERS[i % len(OTHERS)] for i, name in enumerate(unknown)}
    found: dict[str, Look] = {}
    variants: dict[str, int] = {}
    for group in sorted(groups, key=lambda group: (*rank(group.model, ARCHITECTURES), group.name)):
        if group.name not in found:
            i = variants.get(group.model, 0)
            variants[group.model] = i + 1
            found[group.name] = Look(*base[group.model], LINES[i % len(LINES)], FILLS[i % len(FILLS)])
    return found
