"""What is exported: a network, its list of nodes, and its parameters as a device holds them."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from refimpl.conventions import ExportError, NonFiniteError
from refimpl.models import VisionTransformer, files, operations, packing
from refimpl.models.nodes import Network, Node
from refimpl.models.params import flatten, unflatten

# Of C99: a file of such a name would be included in the place of the library's.
HEADERS = (
    "assert", "complex", "ctype", "errno", "fenv", "float", "inttypes", "iso646", "limits",
    "locale", "math", "setjmp", "signal", "stdarg", "stdbool", "stddef", "stdint", "stdio",
    "stdlib", "string", "tgmath", "time", "wchar", "wctype",
)  # fmt: skip


class Matrix(NamedTuple):
    """A binary matrix: its bits, True for +1, and a scale a row."""

    bit: np.ndarray  # (O, I) bool
    scale: np.ndarray  # (O,) float32


class Source(NamedTuple):
    """A model file, read for a device: see `read`."""

    path: Path
    model: VisionTransformer
    sha256: str  # of the file
    stored: Mapping[str, np.ndarray]  # by the names of `packing.shapes`; floats are float32

    @property
    def network(self) -> Network:
        return self.model.network

    @property
    def name(self) -> str:
        """The stem of the file as an identifier of C and Verilog, and no header of C's library."""
        name = re.sub(r"\W", "_", self.path.stem, flags=re.ASCII)
        name = f"{name}_" if name.lower() in HEADERS else name
        return f"_{name}" if name[0].isdigit() else name

    def matrix(self, path: str) -> Matrix:
        """The binary matrix `<path>`, a parameter with the role "binary_matrix"."""
        bits, scale = (self.stored[name] for name in packing.bits_and_scale(path))
        inputs = self.network.parameters[path].shape[1]
        bits = np.unpackbits(bits, axis=1, count=inputs, bitorder="little")
        return Matrix(bits.astype(bool), scale)

    def array(self, name: str) -> np.ndarray:
        """Any other parameter by its path, or a value that the list makes of one, float32."""
        made = self.network.of_parameters.get(name)
        if made is None:
            return self.stored[name]
        node = self.network.nodes[made]
        return operations.forward(node, [self.array(arg) for arg in node.args])


def read(name_or_path: str | os.PathLike) -> Source:
    """A shipped model or a model file, latent or packed -> Source.

    Bits and scales of latent parameters are computed in float64, as golden bundles have them, then
    all floats are rounded to float32. Errors as `files.read_any`; ExportError where that is too
    small for a value.
    """
    file = files.read_any(name_or_path)
    if isinstance(file, files.PackedFile):
        stored = dict(file.arrays)
    else:
        latent = {path: array.astype(np.float64) for path, array in flatten(file.params).items()}
        try:
            stored = packing.pack(file.model.config, unflatten(latent))
        except NonFiniteError as error:
            raise ExportError(f"{file.path}: {error}") from None
    floats = {k: v if v.dtype == np.uint8 else v.astype(np.float32) for k, v in stored.items()}
    sha256 = hashlib.sha256(file.path.read_bytes()).hexdigest()
    return Source(file.path, file.model, sha256, floats)


def require_ops(nodes: Collection[Node], known: Collection[str], target: str) -> None:
    """Raise ExportError for the first node whose operation a target does not know."""
    for node in nodes:
        if node.op not in known:
            raise ExportError(
                f"{node.name}: operation {node.op!r} cannot be exported to {target}; "
                f"expected one of {', '.join(sorted(known))}"
            )
