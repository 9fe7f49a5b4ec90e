"""What a port dumped, to be compared with a bundle [SPEC 8.2].

A candidate is a folder of .npy files, an .npz or a .safetensors, with any subset of the taps. A
name may carry its number and its folder as in a bundle: `taps/007.blocks.0.attn.low.npy`,
`007.blocks.0.attn.low` and `blocks.0.attn.low` are one tap; gradients are `grads/<tap>`. A map
gives names of a port's own a meaning: {"block0/attention/low": "blocks.0.attn.low"}. In a folder
the files themselves, those of taps/ and of grads/ are read; that some lie deeper is noted.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from refimpl.conventions import GoldenFileError, is_lfs_pointer, lfs_error
from refimpl.disk import is_single, read_text
from refimpl.golden import npy
from refimpl.models import arrays

FOLDERS = ("", "taps", "grads")  # of a folder, where .npy files are looked for
# How a bundle calls copies beside its taps: of a folder they are these, where it has no others.
COPIES = {"input_0": "input", "output_0": "logits"}
EXPECTED = "expected a folder of .npy files, an .npz or a .safetensors"
SAFETENSORS_DTYPES = {
    "BOOL": "bool", "U8": "uint8", "U16": "uint16", "U32": "uint32", "U64": "uint64",
    "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64",
    "F16": "float16", "BF16": npy.BFLOAT16, "F32": "float32", "F64": "float64",
}  # fmt: skip

Load = Callable[[], np.ndarray]


class Found(NamedTuple):
    """An array of a container, whose header has been checked."""

    name: str
    header: npy.Header  # bfloat16 is loaded as float32
    load: Load


class Candidate(Mapping[str, np.ndarray]):
    """Arrays by name of the tap, as they were stored; each is read when it is asked for.

    All headers were checked before. To read values can still raise GoldenFileError.
    """

    def __init__(self, path: Path, found: Mapping[str, Found], unread: str | None = None):
        self.path = path
        self.unread = unread  # the first array in a folder where no tap is looked for
        self.headers = {name: array.header for name, array in found.items()}
        self.dtypes = {name: header.type for name, header in self.headers.items()}
        self._loads = {name: array.load for name, array in found.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        return self._loads[name]()

    def __contains__(self, name: object) -> bool:  # without reading it
        return name in self._loads

    def __iter__(self) -> Iterator[str]:
        return iter(self._loads)

    def __len__(self) -> int:
        return len(self._loads)


def read(path: str | os.PathLike, names: Mapping[str, str] | None = None) -> Candidate:
    """A folder, .npz or .safetensors -> Candidate; `names` maps its names to those of taps.

    GoldenFileError, one line with the file, for what is missing, broken, links or leads out of
    the folder, holds a pickle, is big-endian or no type of number that a tap may have, claims more
    than is there, or gives one tap twice.
    """
    path = Path(path)
    if path.is_dir():
        found = _folder(path)
    elif not path.exists():
        raise GoldenFileError(f"{path}: not found; {EXPECTED}")
    elif not path.is_file():  # to open a pipe would wait for somebody who writes
        raise GoldenFileError(f"{path}: is no ordinary file; {EXPECTED}")
    elif _is_lfs_pointer(path):
        raise GoldenFileError(lfs_error(path))
    elif path.suffix == ".npz":
        found = _npz(path)
    elif path.suffix == ".safetensors":
        found = _safetensors(path)
    else:
        raise GoldenFileError(f"{path}: suffix {path.suffix!r}; {EXPECTED}")
    taps: dict[str, Found] = {}
    copies: dict[str, Found] = {}
    for array in found:
        if path.is_dir() and array.name in COPIES and array.name not in (names or {}):
            copies[COPIES[array.name]] = array
            continue
        name = _tap_name(path, array.name, names or {})
        if name in taps:
            raise GoldenFileError(
                f"{path}: {taps[name].name!r} and {array.name!r} both give {name!r}; "
                "expected one of them"
            )
        taps[name] = array
    taps = copies | taps
    if not taps:
        raise GoldenFileError(f"{path}: no arrays in it; {EXPECTED}")
    return Candidate(path, taps, _unread(path))


def _is_lfs_pointer(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return is_lfs_pointer(file.read(128))
    except OSError:  # told by whoever reads it
        return False


def read_names(path: str | os.PathLike) -> dict[str, str]:
    """The JSON file of a map, an object of strings -> dict; GoldenFileError if it is none."""
    try:
        text = read_text(path)
        pairs = json.loads(text, object_pairs_hook=list)
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise GoldenFileError(f"{path}: not a readable map of names: {reason}") from None
    if not (text.lstrip().startswith("{") and all(isinstance(ours, str) for _, ours in pairs)):
        raise GoldenFileError(
            f'{path}: expected a JSON object of strings: {{"name in the candidate": "tap"}}'
        )
    for side in zip(*pairs):
        name, count = Counter(side).most_common(1)[0]
        if count > 1:
            raise GoldenFileError(f"{path}: {name!r} stands there {count} times; expected once")
    return dict(pairs)


def _tap_name(path: Path, raw: str, names: Mapping[str, str]) -> str:
    """The name of the tap behind a name of the candidate."""
    clean = re.sub(r"^(taps/|(grads/)|)([0-9]+\.)?", r"\2", raw)
    name = names.get(raw, names.get(clean, clean))
    for given in (raw, name):
        if not given.isprintable():
            raise GoldenFileError(f"{path}: the name {given!r} cannot be printed; expected a tap's")
    return name


# --- containers, headers checked ------------------------------------------------------------------


def _is_litter(name: str) -> bool:
    """What a Mac's Finder lays beside files and into archives: `._x.npy`, __MACOSX."""
    parts = name.split("/")
    return parts[-1].startswith("._") or "__MACOSX" in parts[:-1]


def _folder(path: Path) -> Iterator[Found]:
    for folder in FOLDERS:
        try:
            files = sorted(os.listdir(path / folder)) if (path / folder).is_dir() else []
        except OSError as error:
            raise GoldenFileError(f"{path / folder}: cannot be read: {error.strerror}") from None
        for file in files:
            if not _is_array(file):
                continue
            relative = f"{folder}/{file}" if folder else file
            with npy.open_inside(path, relative) as opened:
                size = os.fstat(opened.fileno()).st_size
                header = npy.header(opened, size, os.fspath(path / relative))
            load = partial(npy.read, path, relative)
            yield Found(os.path.splitext(relative)[0], header, load)


def _is_array(file: str) -> bool:
    return os.path.splitext(file)[1].lower() == ".npy" and not _is_litter(file)


def _unread(path: Path) -> str | None:
    """The first array of a folder that lies deeper than taps do."""
    for where, folders, files in os.walk(path):
        folders.sort()
        inside = Path(where).relative_to(path)
        if inside.parts and inside.as_posix() not in FOLDERS and "__MACOSX" not in inside.parts:
            for file in sorted(filter(_is_array, files)):
                return (inside / file).as_posix()
    return None


def _npz(path: Path) -> Iterator[Found]:
    with _reading(path):
        archive = zipfile.ZipFile(path)  # stays open while arrays of it may be asked for
        if not is_single(archive):
            raise GoldenFileError(f"{path}: goes on after its end; expected a single .npz")
        for member in archive.infolist():
            if member.filename.endswith(".npy") and not _is_litter(member.filename):
                _check_member(path, member)
                with archive.open(member) as file:
                    header = npy.header(file, member.file_size, f"{path}: {member.filename}")
                load = partial(_npz_values, path, archive, member)
                yield Found(member.filename.removesuffix(".npy"), header, load)


def _npz_values(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    where = f"{path}: {member.filename}"
    with _reading(path), archive.open(member) as file:
        found = npy.header(file, member.file_size, where)
        return npy.values(file.read(), found, where)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """What can be wrong with a zip, as a GoldenFileError."""
    try:
        yield
    except GoldenFileError:  # which is a ValueError, too
        raise
    except (
        zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError,
    ) as error:  # fmt: skip
        raise GoldenFileError(f"{path}: not a readable .npz file: {error}") from None


def _check_member(path: Path, member: zipfile.ZipInfo) -> None:
    name = member.filename
    if name.startswith(("/", "\\")) or ":" in name or ".." in name.split("/"):
        raise GoldenFileError(f"{path}: {name!r} leaves the archive; expected a plain name")
    if stat.S_ISLNK(member.external_attr >> 16):
        raise GoldenFileError(f"{path}: {name!r} is a link; expected the file itself")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise GoldenFileError(
            f"{path}: {name!r} has compression {member.compress_type}; "
            "expected 0 or 8, as numpy.savez writes"
        )


def _safetensors(path: Path) -> Iterator[Found]:
    with _reading_safetensors(path):
        found = arrays.header(path)[1]
    for name, array in found.items():
        if array.type not in SAFETENSORS_DTYPES:
            raise GoldenFileError(
                f"{path}: {name}: dtype {array.type}; expected one of "
                f"{', '.join(SAFETENSORS_DTYPES)}"
            )
        header = npy.Header(np.dtype(SAFETENSORS_DTYPES[array.type]), array.shape, False)
        npy.check(header, f"{path}: {name}")
        yield Found(name, header, partial(_safetensors_values, array, header))


def _safetensors_values(array: arrays.InFile, header: npy.Header) -> np.ndarray:
    with _reading_safetensors(array.path):
        return npy.values(bytes(array.read()), header, f"{array.path}: {array.name}")


@contextlib.contextmanager
def _reading_safetensors(path: Path) -> Iterator[None]:
    """What can be wrong with a safetensors file, as a GoldenFileError."""
    try:
        yield
    except GoldenFileError:  # which is a ValueError, too
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise GoldenFileError(f"{path}: not a readable safetensors file: {reason}") from None
