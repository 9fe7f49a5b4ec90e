"""What a verb prints: answers to stdout, what went wrong to stderr."""

import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

from refimpl.conventions import ClusterError, shown

BOLD, RED, YELLOW = "1", "31", "33"  # of a terminal


def complain(error: Exception, before: str = "", behind: str = "") -> None:
    """One line that says what was wrong, between what the options have to do with it."""
    text = f"{before}{error}{behind}"
    if isinstance(error, OSError):  # without a name it is no file: those have one
        text = f"{error.filename or 'standard output'}: {error.strerror or error}"
    is_address = re.match(r"[a-z][a-z0-9+.-]+:/", text)
    if is_address and not isinstance(error, ClusterError):  # that of a scheduler is meant
        text += "; addresses are not read: download it, and name the file"
    print(paint("refimpl:", RED, sys.stderr), shown(text), file=sys.stderr)


def say(text: object, stream: TextIO | None = None) -> None:
    """One line to stdout, or to `stream`, whatever names of the user are in it."""
    print(shown(text), file=stream or sys.stdout)


def warn(text: str) -> None:
    print(paint("refimpl: warning:", YELLOW, sys.stderr), shown(text), file=sys.stderr)


def paint(text: str, style: str, stream: TextIO) -> str:
    """Colour on a terminal only, and not where NO_COLOR is set (see no-color.org)."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not stream.isatty()
    return text if plain else f"\033[{style}m{text}\033[0m"


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """First column to the left, the others to the right."""
    table = [header, *([shown(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for first, *others in table:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        print(first.ljust(widths[0]), *cells, sep="  ")


def progress_bar(title: str, total: int | None = None, unit: str = "img") -> Any:
    """A tqdm bar over images, or over something else, on a terminal only."""
    from tqdm import tqdm

    return tqdm(total=total, desc=title, unit=unit, leave=False, disable=not sys.stderr.isatty())
