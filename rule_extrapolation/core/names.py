"""Names that become names of files and folders."""

from __future__ import annotations

import re

from rule_extrapolation.core.errors import ConfigError

LONGEST = 200
"""Characters, so that a suffix still fits: file systems take 255 bytes."""


def is_file_name(name: str) -> bool:
    """Whether a file of this name lies in the folder that it is put in, and is not hidden there."""
    return len(name) <= LONGEST and re.fullmatch(r"[^./\\\x00-\x1f][^/\\\x00-\x1f]*", name) is not None


def check_file_name(**names: str | None) -> None:
    """Raise a ConfigError for the first name that cannot be that of a file; None is no name."""
    for field, name in names.items():
        if name is not None and not is_file_name(str(name)):
            fix = f"becomes the name of a file; use at most {LONGEST} characters, no slash, and no dot in front"
            raise ConfigError(field, ascii(name)[1:-1], fix)
