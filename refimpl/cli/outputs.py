"""The options that name files to write, and the one check of them all before a verb runs.

What exists is refused unless `--force` is given, and even then no input is overwritten, nor one
output by another. A verb that writes more than its options name says so in its default `beside`.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from refimpl import disk
from refimpl.conventions import OutputError

# What shtab reads from an option of the parser to let the shell complete names of files.
FILES = {"bash": "_shtab_compgen_files", "zsh": "_files", "tcsh": "f"}


def add(parser: argparse.ArgumentParser, *flags: str, **options: Any) -> None:
    """Add an option that names a file to write, or with action="append" several."""
    action = parser.add_argument(*flags, type=Path, **{"metavar": "FILE", **options})
    action.complete, action.writes = FILES, True
    if "--force" not in parser._option_string_actions:
        parser.add_argument(
            "--force", action="store_true", help="overwrite files that exist (default: refuse)"
        )


def add_folder(parser: argparse.ArgumentParser, help: str, metavar: str) -> None:
    """Add the option -o for a folder that the verb itself looks at before it writes into it."""
    action = parser.add_argument(
        "-o", "--output", required=True, type=Path, metavar=metavar, help=help
    )
    action.complete, action.writes = FILES, None


def check(args: argparse.Namespace, *inputs: tuple[str, Path]) -> None:
    """Raise OutputError where the outputs of a verb would destroy something.

    args: as parsed; `args.parser` is the verb's parser. inputs: what it reads besides the files
    that its options name, such as ("teacher", path).
    """
    read = [*_paths(args, writes=False), *_models(args), *inputs]
    seen: list[Path] = []
    for path, own in _written(args):
        for what, other in read:
            _require_no_input(path, what, other, own)
        if any(_same(path, other) for other in seen):
            raise OutputError(f"{path}: is named for two outputs; expected a file of its own")
        seen.append(path)
        disk.require_free(path, overwrite=own or args.force)


def answers(args: argparse.Namespace) -> contextlib.AbstractContextManager:
    """Print answers to stderr where a file is written to the standard output, as in a pipe."""
    if any(disk.is_stdout(path) for _, path in _paths(args, writes=True)):
        return contextlib.redirect_stdout(sys.stderr)
    return contextlib.nullcontext()


def _written(args: argparse.Namespace) -> Iterator[tuple[Path, bool]]:
    """Every file that the verb writes, and whether one that is there is of the same run."""
    resumed = getattr(args, "resume", False)
    for _, path in _paths(args, writes=True):
        yield path, resumed
    if "beside" in args:
        yield from args.beside(args)


def _paths(args: argparse.Namespace, writes: bool) -> Iterator[tuple[str, Path]]:
    """What the options of the verb name, by the option: what it writes, or what it reads."""
    for action in args.parser._actions:
        if not hasattr(action, "complete") or getattr(action, "writes", False) != writes:
            continue
        values = getattr(args, action.dest, None)
        for value in values if isinstance(values, list) else [values]:
            if value == "-":
                yield action.dest, Path("/dev/stdin")
            elif value is not None:
                yield action.dest, Path(value)


def _models(args: argparse.Namespace) -> Iterator[tuple[str, Path]]:
    """Files of the shipped models, which have names instead of paths."""
    from refimpl.models import files

    shipped = files.shipped()
    for what, path in _paths(args, writes=False):
        if str(path) in shipped:
            yield what, files.find(str(path))


def _require_no_input(path: Path, what: str, read: Path, own: bool) -> None:
    """OutputError where an output is a file that is read, or one in a folder that is."""
    if _same(path, read):
        raise OutputError(f"{path}: is the {what} itself, expected another file to write")
    inside = Path(os.path.realpath(read)) in Path(os.path.realpath(path)).parents
    if inside and path.is_file() and not own:
        raise OutputError(f"{path}: is in the {what} {read}, expected another file to write")


def _same(path: Path, other: Path) -> bool:
    """Whether two names are of one file, there or not; a device can take several outputs."""
    if path.exists() and other.exists():
        return path.samefile(other) and path.is_file()
    return os.path.realpath(path) == os.path.realpath(other)
