"""Mode replay: the reference's op on the candidate's own inputs of a tap [SPEC 8.2].

The op runs in float64, so only the one operation is judged and not what came before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from refimpl.golden import bounds
from refimpl.golden.bounds import Reference
from refimpl.golden.record import INPUT


class Judge(NamedTuple):
    """What the output of a tap is held against."""

    expected: np.ndarray  # logical
    tolerance: np.ndarray | None  # of every element: bound, of a bit tau; None of a whole number
    z: np.ndarray | None  # of a bit


class CannotReplayError(Exception):
    """`name` is read by the tap and not among the candidate's taps."""

    def __init__(self, name: str):
        super().__init__(f"input {name}: missing")
        self.name = name


def judge(
    reference: Reference, name: str, candidate: Mapping[str, np.ndarray], unit: float
) -> Judge:
    """Run the op of tap `name`. `candidate`: logical arrays of the right shapes, finite.

    A bit is held against the candidate's own z, and where it has none against the z that its
    inputs give. CannotReplayError names the input that is missing.
    """
    kind = reference.steps[name].kind
    if kind == "bit":
        return _judge_bit(reference, name, candidate, unit)
    inputs = _inputs(reference, name, candidate)
    expected = _run(reference, name, inputs)
    tolerance = None if kind == "int" else bounds.replay(reference, name, inputs, unit)
    return Judge(expected, tolerance, None)


def _judge_bit(
    reference: Reference, name: str, candidate: Mapping[str, np.ndarray], unit: float
) -> Judge:
    z_name = reference.steps[name].z
    try:
        inputs = _inputs(reference, z_name, candidate)
    except CannotReplayError:
        inputs = None
        if z_name not in candidate:
            raise
    z = _real(candidate[z_name]) if z_name in candidate else _run(reference, z_name, inputs)
    # without the inputs of z its rounding is not known, and none is forgiven
    tau = np.zeros(z.shape) if inputs is None else bounds.replay(reference, name, inputs, unit)
    return Judge(reference.steps[name].op(z), tau, z)


def _run(reference: Reference, name: str, inputs: list[np.ndarray]) -> np.ndarray:
    step = reference.steps[name]
    return step.value if step.op is None else step.op(*inputs)


def _inputs(
    reference: Reference, name: str, candidate: Mapping[str, np.ndarray]
) -> list[np.ndarray]:
    return [_input(reference, read, candidate) for read in reference.steps[name].inputs]


def _input(reference: Reference, name: str, candidate: Mapping[str, np.ndarray]) -> np.ndarray:
    if name in candidate:
        return _real(candidate[name])
    if _is_given(reference, name):
        return reference.steps[name].value
    raise CannotReplayError(name)


def _is_given(reference: Reference, name: str) -> bool:
    """The image, the gradient of the logits, and what depends on the parameters alone."""
    inputs = reference.steps[name].inputs
    return all(read != INPUT and _is_given(reference, read) for read in inputs)


def _real(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64) if array.dtype.kind == "f" else array
