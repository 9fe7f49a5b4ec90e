"""What a verb prints: answers to stdout, what went wrong to stderr."""

import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TextIO

from refimpl.conventions import shown

BOLD, RED, YELLOW = "1", "31", "33"  # of a terminal


def complain(error: Exception) -> None:
    """One line that says what was wrong."""
    text = str(error)
    if isinstance(error, OSError):  # without a name it is no file: those have one
        text = f"{error.filename or 'standard output'}: {error.strerror or error}"
    print(paint("refimpl:", RED, sys.stderr), shown(text), file=sys.stderr)


def require_other(output: Path, read: str | Path, error: type[Exception], what: str) -> None:
    """`error` where an output is the very file that is read, or another output."""
    same = output.samefile(read) if output.exists() and Path(read).exists() else False
    if same or output.absolute() == Path(read).absolute():
        raise error(f"{output}: is {what} itself, expected another file to write")


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
