"""Rule extrapolation: which rules a sequence model keeps when a prompt has already broken one of them."""

from pathlib import Path

__version__ = "0.1.0"

# python -m rule_extrapolation.evaluate, and the other commands by the names that they have had.
__path__.append(str(Path(__file__).parent / "cli"))
