"""What a port dumped, to be compared with a bundle [SPEC 8.2].

A candidate is a folder of .npy files, an .npz or a .safetensors, with any subset of the taps. A
name may carry its number and its folder as in a bundle: `taps/007.blocks.0.attn.low.npy`,
`007.blocks.0.attn.low` and `blocks.0.attn.low` are one tap; gradients are `grads/<tap>`. A map
gives names of a port's own a meaning: {"block0/attention/low": "blocks.0.attn.low"}.
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

import numpy as np

from refimpl.conventions import GoldenFileError
from refimpl.golden import npy

FOLDERS = ("", "taps", "grads")  # of a folder, where .npy files are looked for
NOT_TAPS = ("input_0", "output_0")  # a bundle's copies beside its taps
EXPECTED = "expected a folder of .npy files, an .npz or a .safetensors"
SAFETENSORS_DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64",
    "F16": "float16", "F32": "float32", "F64": "float64",
}  # fmt: skip

Load = Callable[[], np.ndarray]


class Candidate(Mapping[str, np.ndarray]):
    """Arrays by name of the tap, as they were stored; each is read when it is asked for.

    All headers were checked before. To read values can still raise GoldenFileError.
    """

    def __init__(self, path: Path, loads: Mapping[str, Load]):
        self.path = path
        self._loads = dict(loads)

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
    elif path.suffix == ".npz":
        found = _npz(path)
    elif path.suffix == ".safetensors":
        found = _safetensors(path)
    else:
        raise GoldenFileError(f"{path}: suffix {path.suffix!r}; {EXPECTED}")
    loads: dict[str, Load] = {}
    origin: dict[str, str] = {}
    for raw, load in found:
        name = _tap_name(path, raw, names or {})
        if name in loads:
            raise GoldenFileError(
                f"{path}: {origin[name]!r} and {raw!r} both give {name!r}; expected one of them"
            )
        loads[name], origin[name] = load, raw
    if not loads:
        raise GoldenFileError(f"{path}: no arrays in it; {EXPECTED}")
    return Candidate(path, loads)


def read_names(path: str | os.PathLike) -> dict[str, str]:
    """The JSON file of a map, an object of strings -> dict; GoldenFileError if it is none."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")  # an editor may mark it
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
    if not raw.isprintable():
        raise GoldenFileError(f"{path}: the name {raw!r} cannot be printed; expected a tap's")
    clean = re.sub(r"^(taps/|(grads/)|)([0-9]+\.)?", r"\2", raw)
    return names.get(raw, names.get(clean, clean))


# --- containers: (name, how to load it), headers checked ------------------------------------------


def _folder(path: Path) -> Iterator[tuple[str, Load]]:
    for folder in FOLDERS:
        try:
            files = sorted(os.listdir(path / folder)) if (path / folder).is_dir() else []
        except OSError as error:
            raise GoldenFileError(f"{path / folder}: cannot be read: {error.strerror}") from None
        for file in files:
            name, suffix = os.path.splitext(file)
            if suffix != ".npy" or (not folder and name in NOT_TAPS):
                continue
            relative = f"{folder}/{file}" if folder else file
            with npy.open_inside(path, relative) as opened:
                npy.header(opened, os.fstat(opened.fileno()).st_size, os.fspath(path / relative))
            yield relative.removesuffix(".npy"), partial(npy.read, path, relative)


def _npz(path: Path) -> Iterator[tuple[str, Load]]:
    with _reading(path), zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.filename.endswith(".npy"):
                _check_member(path, member)
                with archive.open(member) as file:
                    npy.header(file, member.file_size, f"{path}: {member.filename}")
                yield member.filename.removesuffix(".npy"), partial(_npz_values, path, member)


def _npz_values(path: Path, member: zipfile.ZipInfo) -> np.ndarray:
    with _reading(path), zipfile.ZipFile(path) as archive, archive.open(member) as file:
        found = npy.header(file, member.file_size, f"{path}: {member.filename}")
        return npy.values(file.read(), found)


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


def _safetensors(path: Path) -> Iterator[tuple[str, Load]]:
    from safetensors import SafetensorError, safe_open

    try:
        file = safe_open(path, framework="numpy")
    except (SafetensorError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise GoldenFileError(f"{path}: not a readable safetensors file: {reason}") from None
    for name in file.keys():  # noqa: SIM118 - it is no dict
        stored = file.get_slice(name)
        dtype = stored.get_dtype()
        if dtype not in SAFETENSORS_DTYPES:
            raise GoldenFileError(
                f"{path}: {name}: dtype {dtype}; expected one of {', '.join(SAFETENSORS_DTYPES)}"
            )
        header = npy.Header(np.dtype(SAFETENSORS_DTYPES[dtype]), tuple(stored.get_shape()), False)
        npy.check(header, f"{path}: {name}")
        yield name, partial(file.get_tensor, name)
