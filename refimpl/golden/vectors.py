"""Isolated vectors of one operation: small inputs, what it gives, and how far a port may be off.

    FOLDER/index.csv                 case,role,name,class,dtype,shape,file,attributes: a line a file
    FOLDER/<case>/x.npy …            inputs and parameters; `dy`, the gradient that is given back
    FOLDER/<case>/y.npy, dx.npy …    outputs and gradients, computed in float64
    FOLDER/<case>/y.bound.npy …      the most by which float32 arithmetic may differ [SPEC 8.2]

With text beside each file `.hex`, one value a line in the digits of its bits (of packed bits one
64-bit word a line), and `.txt`, one value a line in decimals, none lost. Values are in C order:
Verilog's `$readmemh` and C's `scanf` read them as they are.
"""

from __future__ import annotations

import csv
import difflib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from refimpl import ops
from refimpl.conventions import ConfigError
from refimpl.golden import bounds, record, store, vector_cases
from refimpl.golden.bounded import SECOND_ORDER, Arithmetic, Bounded
from refimpl.golden.vector_cases import Case
from refimpl.models import insides, packing
from refimpl.models.nodes import Node
from refimpl.models.operations import OPERATIONS
from refimpl.models.stage import Stage

INDEX = "index.csv"
COLUMNS = ("case", "role", "name", "class", "dtype", "shape", "file", "attributes")
TEXTS = (".hex", ".txt")  # beside each file of an array
ROLES = ("input", "parameter", "output", "given gradient", "gradient")


class Vector(NamedTuple):
    """One array of a case."""

    role: str  # one of ROLES
    name: str
    value: np.ndarray  # bits are bool
    bound: np.ndarray | None = None  # like value, None of what is given or exact


def write(op: str, folder: Path, *, text: bool = False, overwrite: bool = False) -> int:
    """Write the vectors of an operation into a new folder, whole or not at all; count its files.

    ConfigError for an operation that there is not; GoldenFileError where the folder exists, with
    `overwrite` where it holds no vectors; OSError from the disk.
    """
    require_operation(op)
    store.require_free_folder(folder, _written, overwrite=overwrite)
    files = dict(_files(op, text))
    store.write_folder(folder, files.items(), overwrite)
    return len(files)


def _written(folder: Path) -> set[str]:
    """The names of all files of a folder of vectors; GoldenFileError where it is none."""
    files = [row["file"].removesuffix(".npy") for row in store.rows_of(folder, COLUMNS)]
    return {INDEX, *(f"{file}{suffix}" for file in files for suffix in (".npy", *TEXTS))}


def require_operation(op: str) -> None:
    """Raise ConfigError where this is no operation of the list, with the nearest that are."""
    if op in vector_cases.CASES:
        return
    known = sorted(vector_cases.CASES)
    near = difflib.get_close_matches(op, known, n=3)
    wanted = " or ".join(near) or "one that `refimpl show` names, or a loss"
    raise ConfigError(f"{op}: no such operation; expected {wanted}")


def of(op: str) -> dict[str, list[Vector]]:
    """Compute all vectors of an operation: case -> arrays, in order of computation."""
    return {case.name: list(_vectors(op, case)) for case in vector_cases.of(op)}


# --- what is computed -----------------------------------------------------------------------------


def _vectors(op: str, case: Case) -> Iterator[Vector]:
    for role, given in (("input", case.inputs), ("parameter", case.params)):
        for name, value in given.items():
            yield Vector(role, name, np.asarray(value))
    node = _node(op, case)
    unit = 0.0 if case.exact else bounds.UNITS["float32"] + bounds.REFERENCE
    kind = _Run if op in OPERATIONS else _Loss
    run = kind(node, [*map(_wide, _arguments(case).values())], unit)
    yield from run.forward()
    rng = np.random.default_rng(vector_cases.SEED)
    dys = [rng.standard_normal(y.shape).astype(np.float32) for y in run.outputs]
    if case.exact:
        dys = [vector_cases.eighths(dy) for dy in dys]
    for name, dy in zip(case.outputs, dys, strict=True):
        yield Vector("given gradient", f"d{name}", dy)
    yield from run.backward([dy.astype(np.float64) for dy in dys])


def _arguments(case: Case) -> dict[str, np.ndarray]:
    return {**case.inputs, **case.params}


def _wide(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x)
    return x.astype(np.float64) if x.dtype.kind == "f" else x


def _node(op: str, case: Case) -> Node:
    """The operation as the only node of a list."""
    grid = case.attributes.get("grid", (1, 1))
    stage = Stage(grid, case.first, 1, 1, 0, 0)
    inside = insides.of_operation(op, case.attributes)
    steps = {key: key for key in inside.values} if inside else {}
    return Node(
        case.outputs[0], op, tuple(case.inputs), tuple(case.params), case.attributes,
        case.outputs, "real", steps, "", "", stage, None, False,
    )  # fmt: skip


class _Run:
    """One operation forward and backward, in float64 and on arrays that carry their bound."""

    def __init__(self, node: Node, args: Sequence[np.ndarray], unit: float):
        self.node, self.args = node, list(args)
        self.inside = insides.of(node)
        self.arithmetic = Arithmetic(unit)
        self.evaluator = bounds.evaluator(self.arithmetic)
        count = len(node.inputs)
        self.given = [self._bounded(x) for x in args[:count]] + list(args[count:])
        self.outputs: list[Any] = []

    def forward(self) -> Iterator[Vector]:
        """The steps inside it, then its outputs."""
        if self.inside is None:
            found = self.evaluator.forward(self.node, list(self.given))
            self.outputs = list(found) if len(self.node.outputs) > 1 else [found]
        else:
            self.steps = dict(zip(self.node.keys, self.given, strict=True))
            for key, step in self.inside.values.items():
                self.steps[key] = value = self._step(key, step)
                yield _vector("output", key, value)
            self.outputs = [self._step("output", self.inside.output)]
        for name, value in zip(self.node.outputs, self.outputs, strict=True):
            yield _vector("output", name, value)

    def backward(self, dys: Sequence[np.ndarray]) -> Iterator[Vector]:
        """The gradients of its arguments, and of signs inside it."""
        given = [self._bounded(dy) for dy in dys]
        if self.inside is not None:
            self.steps["d"] = given[0]
            names = dict(zip(self.node.keys, self.node.args, strict=True))
            for key, step in self.inside.gradients.items():
                self.steps[f"d.{key}"] = value = self._step(f"d.{key}", step)
                yield _vector("gradient", f"d{names.get(key, key)}", value)
            return
        operation, dy = OPERATIONS[self.node.op], given[0] if len(given) == 1 else tuple(given)
        output = self.outputs[0]
        for position, name in enumerate(self.node.args):
            needed = () if operation.of_output else operation.needs(position)
            args = [
                self.given[k] if k in needed or k >= len(self.node.inputs) else np.zeros(a.shape)
                for k, a in enumerate(self.args)
            ]
            found = self.evaluator.backward(self.node, dy, args, output, position)
            yield _vector("gradient", f"d{name}", found)

    def _step(self, key: str, step: insides.Step) -> Any:
        args = [self.steps[read] for read in step.reads]
        if step.kind != "real":  # the reference's own: nothing is left open
            return self._bounded(step.function(*(_value(a) for a in args)))
        return self.evaluator.step(self.node, key, step.function, args)

    def _bounded(self, x: np.ndarray) -> Bounded:
        return self.arithmetic.value(x)


class _Loss(_Run):
    """A loss, which stands behind a network and is no node of its list."""

    def forward(self) -> Iterator[Vector]:
        loss, self.cache = getattr(ops, self.node.op).forward(*self.given, **self.node.attributes)
        self.outputs = [loss]
        yield _vector("output", self.node.outputs[0], loss)

    def backward(self, dys: Sequence[np.ndarray]) -> Iterator[Vector]:
        (dlogits,) = getattr(ops, self.node.op).backward(float(dys[0]), self.cache)
        yield _vector("gradient", f"d{self.node.args[0]}", dlogits)


def _value(x: Any) -> np.ndarray:
    return x.value if isinstance(x, Bounded) else x


def _vector(role: str, name: str, found: Any) -> Vector:
    found = bounds.unwrapped(found)
    value = np.asarray(_value(found))
    if record.kind_of(value) != "real":
        return Vector(role, name, value)
    error = found.error() if isinstance(found, Bounded) else np.zeros(value.shape)
    bound = SECOND_ORDER * error + bounds.UNDERFLOW
    return Vector(role, name, value, np.where(error > 0, bound, 0.0))


# --- what is written ------------------------------------------------------------------------------


def _files(op: str, text: bool) -> Iterator[tuple[str, bytes]]:
    """Names of files and what is in them; the index, which names them all, comes last."""
    rows: list[Sequence[str]] = [COLUMNS]
    cases = {case.name: case for case in vector_cases.of(op)}
    for name, vectors in of(op).items():
        attributes = store.attributes_text(cases[name].attributes)
        for vector in vectors:
            kind, shape = record.kind_of(vector.value), " ".join(map(str, vector.value.shape))
            arrays = {vector.name: vector.value}
            if vector.bound is not None:
                arrays[f"{vector.name}.bound"] = vector.bound
            for file, value in arrays.items():
                stored = packing.pack_rows(value) if kind == "bit" else value
                role = vector.role if file == vector.name else "bound"
                path = f"{name}/{file}"
                row = (name, role, file, kind, stored.dtype.name, shape, f"{path}.npy", attributes)
                rows.append(row)
                yield f"{path}.npy", store.to_npy(stored)
                if text:
                    yield f"{path}.hex", to_hex(stored)
                    yield f"{path}.txt", to_decimal(value)
    index = io.StringIO()
    csv.writer(index, lineterminator="\n").writerows(rows)
    yield INDEX, index.getvalue().encode()


def to_hex(stored: np.ndarray) -> bytes:
    """Write one value a line: the digits of its bits, the highest first; of packed bits a word."""
    words = np.ascontiguousarray(stored)
    words = words.reshape(-1).view(f"<u{8 if stored.dtype == np.uint8 else stored.itemsize}")
    digits = 2 * words.itemsize
    return "".join(f"{word:0{digits}x}\n" for word in words.tolist()).encode()


def to_decimal(value: np.ndarray) -> bytes:
    """Write one value a line, in as many decimals as give it again; bits are 0 and 1."""
    digits = {4: 9, 8: 17}.get(value.dtype.itemsize)
    number = f".{digits}g" if value.dtype.kind == "f" else "d"
    return "".join(f"{x:{number}}\n" for x in value.reshape(-1).tolist()).encode()
