"""The disk: files and folders that are there whole or not at all, and outputs that destroy nothing.

The rule of every output: what exists is overwritten only by whoever asked for that. A link is
followed, so the file that it names is written and the link stays. What is no regular file, such as
`/dev/null`, a pipe or the standard output, is written through and never replaced.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from refimpl.conventions import LFS, OutputError, is_lfs_pointer

MOST = 2**24  # bytes of a file of text
_ZIP_END, _ZIP_LAST = 22, b"PK\x05\x06"  # the last record of a zip: its size, how it begins
LONGEST = 200  # bytes of a name that a temporary one repeats: file systems take 255 in all


def require_free(path: str | os.PathLike, *, overwrite: bool = False) -> None:
    """Raise OutputError where writing to `path` would destroy something, or cannot succeed.

    Ask before the work whose result is to be written. `overwrite`: a file that exists may go. A
    folder may not, and a disk (a block device) as little as a file.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        require_parent(path)
        return
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror or error}; expected a file to write") from None
    if stat.S_ISDIR(mode):
        raise OutputError(f"{path}: is a folder; expected a file to write")
    if (stat.S_ISREG(mode) or stat.S_ISBLK(mode)) and not overwrite and _stream(path) is None:
        raise OutputError(f"{path}: exists; expected the name of a new file")
    if stat.S_ISREG(mode):
        require_parent(path)


def is_stdout(path: str | os.PathLike) -> bool:
    """Tell whether a path is what this process has open as its standard output, and is read."""
    return _stream(Path(path)) == 1


def is_closed(stream: object) -> bool:
    """Tell whether nothing can be written to a stream: its file is closed, or open for reading."""
    try:
        number = stream.fileno()  # type: ignore[attr-defined]
    except (AttributeError, OSError, ValueError):  # no file is behind it
        return False
    try:
        os.write(number, b"")
    except OSError:
        return True
    return False


def read_text(path: str | os.PathLike, encoding: str = "utf-8-sig") -> str:
    """Read a small file of text, without an editor's mark at its start.

    Raises OSError, also where it has more than MOST bytes (nothing that people write does) or is a
    pointer of Git LFS, UnicodeDecodeError where it is no text.
    """
    with open(path, "rb") as file:
        content = file.read(MOST + 1)
    if len(content) > MOST:
        raise OSError(errno.EFBIG, f"more than {MOST >> 20} MB, expected text", os.fspath(path))
    if is_lfs_pointer(content):
        raise OSError(errno.EINVAL, LFS, os.fspath(path))
    return content.decode(encoding)


def unique_names(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of JSON of its names and values; the `object_pairs_hook` of json.loads.

    ValueError where a name is there twice: of two values one would count, unseen.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        ((name, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"field {name!r:.60} is there twice")
    return found


def is_single(archive: zipfile.ZipFile) -> bool:
    """Tell whether a zip is all that its file holds: of joined ones Python reads the last alone."""
    archive.fp.seek(-_ZIP_END - len(archive.comment), os.SEEK_END)
    last = archive.fp.read(len(_ZIP_LAST)) == _ZIP_LAST
    begin = min((info.header_offset for info in archive.infolist()), default=0)
    return begin == 0 and last


def write_atomically(path: str | os.PathLike, data: bytes) -> None:
    """Write a file so that at every moment the old one or the whole new one is there.

    A link, a device and a pipe as the module says. Raises OSError, and leaves nothing behind, where
    the folder cannot be written or is full.
    """
    path = Path(path)
    try:
        if (stream := _stream(path)) is not None:
            _write_stream(stream, data)
        elif path.exists() and not path.is_file():
            path.write_bytes(data)
        else:
            _replace(_target(path), data)
    except OSError as error:
        # a full disk names no file, and the name of the temporary one says little
        raise OSError(error.errno, error.strerror or str(error), os.fspath(path)) from error


@contextlib.contextmanager
def new_folder(path: str | os.PathLike, *, overwrite: bool = False) -> Iterator[Path]:
    """Fill the folder that this yields; at the end it is `path`, after an error it is gone.

    So no half of a folder is ever there. `path` does not exist, or is an empty folder; with
    `overwrite` any folder, which goes when the new one is whole. Raises OutputError where it is
    something else, or the folder that this process works in, which would work in none then, or
    there is no folder to put it into, OSError from the disk.
    """
    path = Path(path)
    require_parent(path)
    free = path.is_dir() if overwrite else _is_empty_folder(path)
    if os.path.lexists(path) and not free:
        raise OutputError(f"{path}: exists; expected the name of a new folder or an empty one")
    target = _target(path)
    if free and target in (Path.cwd(), *Path.cwd().parents):
        raise OutputError(
            f"{path}: is the folder that you are in, and would be replaced; expected another one"
        )
    temporary, old = _temporary(target), _temporary(target)
    try:
        os.mkdir(temporary)
        yield temporary
        if target.is_dir():  # no os.replace over a folder on every system
            target.rename(old)
        temporary.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException as error:
        if old.is_dir() and not target.exists():
            old.rename(target)
        for hidden in (temporary, old):  # an interrupt may have come between any two lines
            shutil.rmtree(hidden, ignore_errors=True)
        if isinstance(error, OSError) and _is_inside(error.filename, temporary):
            raise OSError(error.errno, error.strerror or str(error), os.fspath(path)) from error
        raise


def write_folder(
    path: str | os.PathLike, contents: Mapping[str, bytes], *, overwrite: bool = False
) -> None:
    """Write a folder of these files, by name, so that it is there whole or not at all.

    `overwrite`: a folder that exists may go where every file in it has one of these names and the
    first line of the one that takes its place, as after an earlier run; what else is in it is
    nobody's to delete. Raises OutputError before anything is written, OSError from the disk.
    """
    path = Path(path)
    for file in sorted(path.iterdir()) if overwrite and path.is_dir() else ():
        again = file.name in contents
        if not again or not _begins_like(file, contents[file.name]):
            what = "no earlier run has written" if again else "would not be written again"
            raise OutputError(
                f"{path}: holds {file.name}, which {what}; "
                "expected a new folder or one of an earlier run"
            )
    with new_folder(path, overwrite=overwrite) as folder:
        for name, data in contents.items():
            (folder / name).write_bytes(data)


def _begins_like(file: Path, data: bytes) -> bool:
    """Whether a file has the first line of this data, however its lines end."""
    if not file.is_file():
        return False
    line = data.partition(b"\n")[0]
    with open(file, "rb") as opened:
        return opened.readline(len(line) + 2).rstrip() == line


def remove_leftovers(path: str | os.PathLike) -> None:
    """Delete what a process that was killed left when it was writing the file `path`."""
    target = _target(Path(path))
    pattern = re.compile(re.escape(_stem(target)) + r"[0-9a-f]{16}\.part")
    with contextlib.suppress(FileNotFoundError):
        for found in target.parent.iterdir():
            if pattern.fullmatch(found.name):
                found.unlink(missing_ok=True)


def require_parent(path: Path) -> None:
    """Raise OutputError where the folder in which `path` would be is none, or cannot be written."""
    folder = _target(path).parent
    if not folder.is_dir():
        raise OutputError(f"{path}: no such folder as {folder}; expected one to write into")
    if not os.access(folder, os.W_OK):
        raise OutputError(f"{path}: {folder} cannot be written; expected a folder that can")


def _target(path: Path) -> Path:
    """What a chain of links ends at, whether it is there or not."""
    return Path(os.path.realpath(path))


def _is_inside(name: object, folder: Path) -> bool:
    """Whether an error is of a file in the folder: a full disk names none at all."""
    return name is None or os.fspath(folder) in str(name)


def _stem(target: Path) -> str:
    return f".{os.fsdecode(os.fsencode(target.name)[:LONGEST])}."


def _temporary(target: Path) -> Path:
    """A name beside the target that nobody else has."""
    return target.with_name(f"{_stem(target)}{secrets.token_hex(8)}.part")


def _replace(target: Path, data: bytes) -> None:
    temporary = _temporary(target)
    try:
        # 0666 without the bits of the umask, which the system takes off by itself
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY, 0o666)
        with os.fdopen(handle, "wb") as file:
            with contextlib.suppress(OSError):  # a private file stays private
                os.chmod(temporary, stat.S_IMODE(target.stat().st_mode))
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


_BINARY = getattr(os, "O_BINARY", 0)  # on Windows


def _stream(path: Path) -> int | None:
    """1 or 2 where `path` is what this process has open as its standard output or error.

    `/dev/stdout` may be a file that the shell appends to: opening it by name would cut it. Of the
    null device nobody reads, whoever else has it open.
    """
    for number in (1, 2):
        with contextlib.suppress(OSError):
            if os.path.samestat(path.stat(), os.fstat(number)) and not path.samefile(os.devnull):
                return number
    return None


def _write_stream(number: int, data: bytes) -> None:
    for text in (sys.stdout, sys.stderr):  # what was printed before comes before
        if text is not None:
            text.flush()
    with os.fdopen(os.dup(number), "wb") as file:
        file.write(data)


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())
