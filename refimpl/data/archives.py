"""The files of a folder, a tar (plain, .gz, .bz2, .xz) or a zip, one after the other.

Nothing is unpacked to disk. What an archive is, is read from its first bytes; its name says
nothing. Refused with one line that names archive and member:

    paths that are absolute or leave the archive, control characters in them, links, devices, pipes
    encrypted members, members above MAX_BYTES
    archives that end early or are damaged, also where `tarfile` would stop without a word
    archives that go on after their end, as two do that were joined: the half would be read

In a folder links are followed, since its owner made them. Hidden files, and what systems leave
beside those of a user, are passed over in both, be it a link or a folder that nobody may read.
A file may be there twice, as `tar -r` leaves it: the later one is the one that counts.
In a zip, names that do not say how they are written are taken for UTF-8 where they are (Finder
writes them so), and backslashes for the slashes that old packers meant.
"""

import bz2
import contextlib
import lzma
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from refimpl import disk
from refimpl.conventions import DataError, is_lfs_pointer, lfs_error

MAX_BYTES = 256 * 2**20  # of a member, unpacked
MAX_DEPTH = 16  # of folders; a link to a folder above would never end

_CONTROL = frozenset(map(chr, (*range(32), *range(127, 160), 0x2028, 0x2029)))
_ICON = "Icon\r"  # what macOS calls the picture of a folder
# What Windows, macOS, Linux and Synology make on a disk or in a folder, beside names with a dot.
_OF_SYSTEMS = {
    *("$RECYCLE.BIN", "System Volume Information", "__MACOSX", _ICON),
    *("lost+found", "@eaDir", "#recycle"),
}
_ZIP = (b"PK\3\4", b"PK\5\6")  # a file comes first, or the archive is empty
_ZIP_UTF8 = 0x800  # a flag


_GOES_ON = (
    "the archive goes on after its end, as if several were joined; expected a single one: unpack "
    "and give the folder"
)


class Member(NamedTuple):
    """One file."""

    name: str  # relative path with forward slashes
    read: Callable[[], bytes]  # its content; to be called before the next member is asked for


def members(path: str | Path) -> Iterator[Member]:
    """All files in a folder or archive that are not hidden, in any order; DataError as above."""
    path = Path(path)
    if path.is_dir():
        found = _folder(path)
    elif path.is_file():
        with _told(path), open(path, "rb") as file:
            begin = file.read(128)
            if is_lfs_pointer(begin):
                raise DataError(lfs_error(path))
            found = _zip(path) if begin.startswith(_ZIP) else _tar(path)
    else:
        found = "is neither a file nor a folder" if path.exists() else "no such file or folder"
        raise DataError(f"{path}: {found}, expected a data set")
    yield from found


def _folder(path: Path) -> Iterator[Member]:
    def fail(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot read the folder: {error.strerror}") from None

    for folder, folders, files in os.walk(path, onerror=fail, followlinks=True):
        here = Path(folder).relative_to(path)
        if len(here.parts) > MAX_DEPTH:
            raise DataError(f"{path}: {here}: folders are nested deeper than {MAX_DEPTH}")
        folders[:] = sorted(name for name in folders if not _hidden(name))
        for name in sorted(name for name in files if not _hidden(name)):
            yield Member((here / name).as_posix(), lambda file=Path(folder, name): read_file(file))


def read_file(path: Path) -> bytes:
    """The content of a file in a folder; DataError where it is none, too large or unreadable."""
    if not path.is_file():
        raise DataError(f"{path}: found a device or a link to nothing, expected a file")
    with _told(path), open(path, "rb") as file:
        return _bounded(file, str(path))


def _tar(path: Path) -> Iterator[Member]:
    with contextlib.ExitStack() as stack:
        try:
            archive = stack.enter_context(tarfile.open(path))
        except Exception:  # each way of unpacking meets bad bytes with exceptions of its own
            what = "expected a folder, or a readable tar (.gz, .bz2, .xz) or zip archive"
            raise DataError(f"{path}: {what}") from None
        end, found = -1, iter(archive)
        while (member := _next(path, found)) is not None:
            name = _safe(path, member.name)
            if member.offset_data <= end or member.size < 0:  # tarfile would go round in circles
                raise DataError(f"{path}: {name}: the archive is broken: it points backwards")
            end = member.offset_data
            if _hidden(name):
                continue
            if not (member.isfile() or member.isdir()):
                raise DataError(f"{path}: {name}: found a link or device, expected a plain file")
            _require_size(path, name, member.size)
            if member.isfile():
                yield Member(name, lambda member=member: _read_tar(path, archive, member))
        _require_end(path, archive)


def _next(path: Path, found: Iterator[tarfile.TarInfo]) -> tarfile.TarInfo | None:
    with _told(path):
        return next(found, None)


def _read_tar(path: Path, archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    with _told(path, member.name), archive.extractfile(member) as file:
        return _bounded(file, f"{path}: {member.name}")


def _require_end(path: Path, archive: tarfile.TarFile) -> None:
    """After the last member a block of zeros, at least, and nothing else; then the checksums."""
    with _told(path):
        archive.fileobj.seek(archive.offset)
        block = archive.fileobj.read(tarfile.BLOCKSIZE)
        if block != bytes(tarfile.BLOCKSIZE):
            raise DataError(
                f"{path}: the archive is truncated or broken at byte {archive.offset} "
                "of what it unpacks to"
            )
        for _ in range(MAX_BYTES // tarfile.RECORDSIZE):
            rest = archive.fileobj.read(tarfile.RECORDSIZE)
            if rest.strip(b"\0"):
                raise DataError(f"{path}: {_GOES_ON}")
            if not rest:
                break
        if not _is_read_up(archive.fileobj):
            raise DataError(f"{path}: {_GOES_ON}")


def _is_read_up(file: object) -> bool:
    """Whether a bz2 or xz file that was read to its end ends there, too.

    Python passes over what follows and is none of its kind; only its unpacker knows of it, a new
    one that has met no end.
    """
    if not isinstance(file, (bz2.BZ2File, lzma.LZMAFile)):  # gzip itself refuses what follows
        return True
    unpacker = getattr(getattr(getattr(file, "_buffer", None), "raw", None), "_decompressor", None)
    return getattr(unpacker, "eof", True)


def _zip(path: Path) -> Iterator[Member]:
    with _told(path):
        archive = zipfile.ZipFile(path)
    with archive:
        with _told(path):
            if not disk.is_single(archive):
                raise DataError(f"{path}: {_GOES_ON}")
        for info in archive.infolist():
            name = _safe(path, _zip_name(info))
            if _hidden(name):
                continue
            kind = stat.S_IFMT(info.external_attr >> 16)  # 0 where it was not packed under Unix
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise DataError(f"{path}: {name}: found a link or device, expected a plain file")
            if info.flag_bits & 1:
                raise DataError(f"{path}: {name}: the file is encrypted, expected a plain one")
            _require_size(path, name, info.file_size)
            if not info.is_dir():
                yield Member(name, lambda info=info: _read_zip(path, archive, info))


def _zip_name(info: zipfile.ZipInfo) -> str:
    name = info.filename
    if not info.flag_bits & _ZIP_UTF8:
        # zipfile took the bytes for cp437, in which every byte is a character
        with contextlib.suppress(UnicodeError):
            name = name.encode("cp437").decode()
    return name.replace("\\", "/")


def _read_zip(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    name = _zip_name(info)
    with _told(path, name), archive.open(info) as file:
        return _bounded(file, f"{path}: {name}")


def _bounded(file: BinaryIO, name: str) -> bytes:
    content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise DataError(f"{name}: more than {MAX_BYTES >> 20} MB, expected an image file")
    return content


def _safe(path: Path, name: str) -> str:
    parts = name.split("/")  # pathlib would take as long as the images
    if not name or _CONTROL.intersection(name.replace(_ICON, "")):
        raise DataError(f"{path}: {name!r}: expected a name of printable characters")
    if name.startswith("/") or ".." in parts or "\\" in name or ":" in name[:2]:
        raise DataError(f"{path}: {name!r}: expected a relative path that stays inside the archive")
    return "/".join(part for part in parts if part not in ("", "."))


def _require_size(path: Path, name: str, size: int) -> None:
    if size > MAX_BYTES:
        raise DataError(
            f"{path}: {name}: claims {size} bytes, expected at most {MAX_BYTES >> 20} MB"
        )


def _hidden(name: str) -> bool:
    """Whether a path is hidden, or what a system adds of its own: .DS_Store, __MACOSX/..."""
    return any(part.startswith(".") or part in _OF_SYSTEMS for part in name.split("/"))


@contextlib.contextmanager
def _told(path: Path, member: str = "") -> Iterator[None]:
    """Whatever goes wrong inside becomes a DataError that names the file and the member."""
    name = f"{path}: {member}" if member else f"{path}"
    try:
        yield
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {error.strerror or error}") from None
    except Exception as error:  # unpackers meet bad bytes with nearly every built-in exception
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataError(f"{name}: the archive is truncated or broken ({what})") from None
