"""The options that name files to write, and the one check of them all before a verb runs.

What exists is refused unless `--force` is given, and even then no input is overwritten, nor one
output by another. A verb that writes more than its options name says so in its default `beside`.
"""

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from refimpl import disk
from refimpl.cli.output import say
from refimpl.conventions import ConfigError, OutputError, shown

# What shtab reads from an option of the parser to let the shell complete names of files.
FILES = {"bash": "_shtab_compgen_files", "zsh": "_files", "tcsh": "f"}


def add(
    parser: argparse.ArgumentParser,
    *flags: str,
    suffixes: tuple[str, ...] = (),
    beside_answer: bool = False,
    **options: Any,
) -> None:
    """Add an option that names a file to write, or with action="append" several.

    suffixes: one of them the name of a file must have, where there are any ("": or none); a device
    or a pipe is called anything.
    beside_answer: what is printed is no word about the file, but what the verb was asked for.
    """
    action = parser.add_argument(*flags, type=Path, **{"metavar": "FILE", **options})
    declare(action, suffixes)
    action.beside_answer = beside_answer
    if "--force" not in parser._option_string_actions:
        parser.add_argument(
            "--force", action="store_true", help="overwrite files that exist (default: refuse)"
        )


def declare(action: argparse.Action, suffixes: tuple[str, ...]) -> None:
    """Say of an option that it names a file to write, and which suffixes that may have."""
    action.complete, action.writes, action.suffixes = FILES, True, suffixes


def add_folder(
    parser: argparse.ArgumentParser, help: str, metavar: str, required: bool = True
) -> None:
    """Add the option -o for a folder that the verb itself looks at before it writes into it."""
    action = parser.add_argument(
        "-o", "--output", required=required, type=Path, metavar=metavar, help=help
    )
    action.complete, action.writes = FILES, None


def add_replace(parser: argparse.ArgumentParser) -> None:
    """Add the option --force for such a folder."""
    parser.add_argument(
        "--force", action="store_true",
        help="replace a folder that this verb has written (default: refuse)",
    )  # fmt: skip


def check(args: argparse.Namespace, *inputs: tuple[str, Path]) -> None:
    """Raise OutputError where the outputs of a verb would destroy something.

    args: as parsed; `args.parser` is the verb's parser. inputs: what it reads besides the files
    that its options name, such as ("teacher", path).
    """
    _require_use(args)
    read = [*_paths(args, writes=False), *_models(args), *inputs]
    seen: list[Path] = []
    written = list(_written(args))
    for path, own in written:
        for what, other in read:
            _require_no_input(path, what, other, own)
        if any(_same(path, other) for other in seen):
            raise OutputError(f"{path}: is named for two outputs; expected a file of its own")
        seen.append(path)
    _require_suffixes(args)
    for path, own in written:
        disk.require_free(path, overwrite=own or args.force)


def drop_card(model: Path) -> None:
    """Remove the card of weights that a file had before it was overwritten, and say so."""
    from refimpl.models import cards

    if cards.remove_stale(model):
        say(f"{cards.path_of(model)}: removed, it was the card of other weights", sys.stderr)


def hint(args: argparse.Namespace, error: Exception) -> str:
    """What a verb can do about an output that exists; nothing about any other error."""
    named = [path for _, path in _named(args)]
    named += [path for path, _ in args.beside(args)] if "beside" in args else []
    found = [p for p in named if str(error).startswith(f"{shown(p)}: exists;")]
    if not found or getattr(args, "force", True):
        return ""
    if found[0].is_dir():
        return "; --force replaces one of an earlier run"
    is_folder = found[0] in (path for _, path in _paths(args, writes=None))
    return "" if is_folder else "; --force overwrites it"  # a file in a folder's place stays


def _require_use(args: argparse.Namespace) -> None:
    """ConfigError for `--force` where no option names an output that it could overwrite."""
    outputs = [a for a in args.parser._actions if getattr(a, "writes", False) is not False]
    if not (getattr(args, "force", False) and outputs):
        return
    if not any(getattr(args, action.dest, None) for action in outputs):
        options = " or ".join(action.option_strings[0] for action in outputs)
        raise ConfigError(f"--force: nothing is written; expected {options} with it")


def _require_suffixes(args: argparse.Namespace) -> None:
    """ConfigError where a file that is written would be called like another kind."""
    for action in args.parser._actions:
        suffixes = getattr(action, "suffixes", ())
        values = getattr(args, action.dest, None) if suffixes else None
        for path in values if isinstance(values, list) else filter(None, [values]):
            is_file = not path.exists() or (path.is_file() and not disk.is_stdout(path))
            if path.suffix.lower() not in suffixes and is_file:
                wanted = " or ".join(map(repr, filter(None, suffixes)))
                raise ConfigError(f"{path}: suffix {path.suffix!r}, expected {wanted}")


def answers(args: argparse.Namespace) -> contextlib.AbstractContextManager:
    """Print answers to stderr where a file is written to the standard output, as in a pipe.

    Where the standard output is closed, what is said of files that are written goes nowhere.
    """
    named = list(_named(args))
    if any(disk.is_stdout(path) for _, path in named):
        return contextlib.redirect_stdout(sys.stderr)
    beside = {a.dest for a in args.parser._actions if getattr(a, "beside_answer", False)}
    if any(what not in beside for what, _ in named) and disk.is_closed(sys.stdout):
        return contextlib.redirect_stdout(io.StringIO())
    return contextlib.nullcontext()


def _written(args: argparse.Namespace) -> Iterator[tuple[Path, bool]]:
    """Every file that the verb writes, and whether one that is there is of the same run."""
    resumed = getattr(args, "resume", False)
    for _, path in _paths(args, writes=True):
        yield path, resumed
    if "beside" in args:
        yield from args.beside(args)


def _named(args: argparse.Namespace) -> Iterator[tuple[str, Path]]:
    """The files and folders that the options name to be written, by the option."""
    yield from _paths(args, writes=True)
    yield from _paths(args, writes=None)


def _paths(args: argparse.Namespace, writes: bool | None) -> Iterator[tuple[str, Path]]:
    """What the options of the verb name, by the option: files it writes, folders (None), inputs."""
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
