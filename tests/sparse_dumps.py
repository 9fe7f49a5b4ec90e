"""Sparse dumps: the subsets of taps that porters begin with, and wrong ports that they may hide."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from refimpl.golden import Bundle, record
from refimpl.golden.logical import Tap

SHELL = re.compile(
    r"patch_embed\.out|tokens|norm\.out|logits|(blocks\.\d+\.(mid|out)|decoder\.gelu\.out"
    r"|merges\.\d+\.proj\.out|grads/(param\..*|input))"
)


def subsets(bundle: Bundle, seed: int) -> Iterator[tuple[str, set[str]]]:
    """Bits, whole numbers and logits, as README advises; the shell; logits; random ones."""
    steps = {n: s for n, s in bundle.reference.steps.items() if n != record.INPUT}
    kinds = {name: record.kind_of(step.value) for name, step in steps.items()}
    yield "bits, ints, logits", {n for n in steps if kinds[n] != "real" or n == "logits"}
    yield "ints, logits", {n for n in steps if kinds[n] == "int" or n == "logits"}
    yield "shell", {name for name in steps if SHELL.fullmatch(name)}
    yield "logits", {"logits"}
    rng = np.random.default_rng(seed)
    for share in (0.5, 0.2, 0.05):
        yield f"random {share}", {name for name in steps if rng.random() < share} | {"logits"}


def shows(bundle: Bundle, dump: Mapping[str, np.ndarray]) -> bool:
    """Whether anything dumped is visibly wrong: a bit, a whole number, or a real by a hundredth."""
    for name, raw in dump.items():
        step = bundle.reference.steps[name]
        right, array = step.value, Tap(step, raw).array
        if array.shape != right.shape:
            return True
        if array.dtype.kind != "f":
            if (array != right).any():
                return True
        elif np.abs(array - right).max() > 0.01 * np.abs(right).max():
            return True
    return False


class Wrong(NamedTuple):
    """One op that is wrong: all taps whose names match, `of` of their right value."""

    pattern: str
    of: Callable[[np.ndarray], np.ndarray]


def taps(bundle: Bundle, wrong: Wrong, dtype: type = np.float64) -> dict[str, np.ndarray]:
    """What a port computes in which these ops are wrong and all others right."""
    values: dict[str, np.ndarray] = {}
    for name, step in bundle.reference.steps.items():
        reads = (values[read] for read in step.inputs)
        found = step.value if step.op is None else step.op(*reads)
        values[name] = wrong.of(found) if re.fullmatch(wrong.pattern, name) else found
    del values[record.INPUT]
    return {n: v.astype(dtype) if v.dtype.kind == "f" else v for n, v in values.items()}


# Every op of the forward pass, done wrongly in ways that leave shapes and types as they are.
STAGES = (
    r"patch_embed\.out", r"tokens", r".*\.norm[12]\.out", r".*\.low", r".*\.high", r".*\.weight\.z",
    r".*\.weight\.scale", r".*(?<!head_|prob\.)\bz", r".*\.linear", r".*\.(up|down|v|proj)\.norm",
    r".*\.(q|k|v)(_low|_high)?\.out", r".*\.head_z", r".*\.scores", r".*\.prob\.z", r".*\.context",
    r".*\.attn\.norm\.out", r".*\.neighbour_mean", r".*\.attn\.out", r".*\.mid", r".*\.proj\.out",
    r".*\.(up|down)\.out", r"blocks\.\d\.out", r"norm\.out", r"logits",
)  # fmt: skip
MISTAKES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "sign": lambda x: -x,
    "channels rolled": lambda x: np.roll(x, 1, axis=-1),
    "tokens rolled": lambda x: np.roll(x, 1, axis=-2) if x.ndim > 1 else np.roll(x, 1),
    "an offset": lambda x: x + 0.05 * np.abs(x).max(),
    "image 0 for all": lambda x: np.broadcast_to(x[:1], x.shape).copy(),
}
