"""A network's parameters as files for `$readmemh`, an index of them, and a test bench.

One file a binary matrix: a word a line, row by row, least significant bit first as everywhere
[SPEC 1], every row padded with 0 to whole words; 1 is +1, 0 is -1. One file for its scales and one
for every other parameter: a number a line, the bits of float32, or of a whole number of 32 bits in
two's complement that counts steps of 2^-fraction.
"""

from __future__ import annotations

import csv
import io
import math
import os
import string
from collections.abc import Iterator
from importlib import resources
from typing import NamedTuple

import numpy as np

from refimpl import disk
from refimpl.conventions import ExportError
from refimpl.exporting.source import Matrix, Source

BITS = 32  # of a number that is no word of signs
MARK = "// written by refimpl export"  # a line by which `--force` knows its own files


class Entry(NamedTuple):
    """A line of the index."""

    file: str
    parameter: str  # its dotted name [SPEC 6.4]; of a binary matrix it has two files
    role: str  # what it is for: "binary_matrix", its "scale", "move", "shift", …
    format: str  # "bits", "float" or "fixed"
    shape: str  # as 64x64
    word: int  # bits of a line
    words: int  # lines of a row, or of all where the format is not "bits"
    fraction: str  # of "fixed" numbers: a number is a line's times 2^-fraction


class File(NamedTuple):
    """What a file holds."""

    entry: Entry
    lines: list[str]


def write(
    path: str | os.PathLike,
    source: Source,
    *,
    word: int = 32,
    floats: str = "float",
    overwrite: bool = False,
) -> str:
    """Write the files, `index.csv` and `row.v` with its two examples into a folder -> a line on it.

    `word` is the bits of a word of signs, `floats` "float" or "fixed". ExportError for a network
    without binary matrices; OutputError where the folder exists, with `overwrite` where it is no
    such export. Nothing is written then.
    """
    declared = source.network.parameters.values()
    matrices = [parameter.path for parameter in declared if parameter.traits.binary]
    if not matrices:
        raise ExportError(
            f"{source.path}: no operation 'binary_linear' has bits in it; "
            "expected a network of binary blocks, binarize 'full'"
        )
    made = list(_files(source, word, floats))
    contents = {file.entry.file: _text(file) for file in made}
    contents["index.csv"] = _index(made)
    contents |= _bench(source.matrix(matrices[0]), f"{matrices[0]}.hex", word)
    disk.write_folder(path, {k: v.encode() for k, v in contents.items()}, overwrite=overwrite)
    return f"{os.fspath(path)}: {len(matrices)} binary matrices, {len(made)} files in index.csv"


def _files(source: Source, word: int, floats: str) -> Iterator[File]:
    for parameter in source.network.parameters.values():
        path = parameter.path
        if not parameter.traits.binary:
            yield _numbers(path, path, parameter.role, source.array(path), floats)
            continue
        bit, scale = source.matrix(path)
        rows = [_words(row, word) for row in bit]
        shape = "x".join(map(str, bit.shape))
        entry = Entry(f"{path}.hex", path, parameter.role, "bits", shape, word, len(rows[0]), "")
        yield File(entry, [line for row in rows for line in row])
        yield _numbers(f"{path}.scale", path, "scale", scale, floats)


def _words(bit: np.ndarray, word: int) -> list[str]:
    """A row of bits as words in hex."""
    padded = np.pad(bit, (0, -len(bit) % word)).reshape(-1, word)
    values = [int("".join("01"[b] for b in reversed(row)), 2) for row in padded.tolist()]
    return [f"{value:0{word // 4}x}" for value in values]


def _numbers(name: str, path: str, role: str, array: np.ndarray, floats: str) -> File:
    values, fraction = array.astype(np.float32).ravel(), ""
    if floats == "fixed":
        places = _fraction(values)
        fraction, whole = str(places), np.rint(np.ldexp(values.astype(np.float64), places))
        bits = whole.astype(np.int64) & (2**BITS - 1)
    else:
        bits = values.view(np.uint32)
    shape = "x".join(map(str, array.shape)) or "1"
    entry = Entry(f"{name}.hex", path, role, floats, shape, BITS, values.size, fraction)
    return File(entry, [f"{int(value):08x}" for value in bits])


def _fraction(values: np.ndarray) -> int:
    """Binary places behind the point, as many as the largest of the numbers leaves; at most 31."""
    largest = float(np.abs(values).max(initial=0.0))
    places = BITS - 1 - max(math.frexp(largest)[1], 0)
    # what rounds up to a power of two does not fit
    return places - (round(math.ldexp(largest, places)) == 2 ** (BITS - 1))


def _text(file: File) -> str:
    parameter, role, format, shape = file.entry[1:5]
    how = {
        "bits": f"{file.entry.words} words of {file.entry.word} a row, least significant bit "
        "first, 1 is +1 and 0 is -1",
        "float": "float32",
        "fixed": f"two's complement, times 2^-{file.entry.fraction}",
    }[format]
    return "\n".join([MARK, f"// {parameter} {role} {shape}: {how}", *file.lines, ""])


def _index(made: list[File]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Entry._fields)
    writer.writerows(file.entry for file in made)
    return text.getvalue()


def _bench(matrix: Matrix, file: str, word: int) -> dict[str, str]:
    """The test bench, a row of signs, and its products with a matrix."""
    rows, length = matrix.bit.shape
    signs = np.random.default_rng(0).integers(0, 2, length).astype(bool)
    products = length - 2 * (matrix.bit ^ signs).sum(axis=1)
    template = (resources.files("refimpl.exporting") / "row.v").read_text(encoding="utf-8")
    sizes = {"rows": rows, "length": length, "word": word, "matrix": file}
    lines = [f"{int(value) & 0xFFFFFFFF:08x}" for value in products]
    return {
        "row.v": string.Template(template).substitute(sizes),
        "row.signs.hex": "\n".join([MARK, *_words(signs, word), ""]),
        "row.products.hex": "\n".join([MARK, *lines, ""]),
    }
