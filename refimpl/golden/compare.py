"""The comparison of a candidate with a bundle, which knows that signs flip [SPEC 8.2].

    comparison = compare(read("bundle"), {"blocks.0.attn.q.bit": ...}, mode="replay")
    comparison.passed, comparison.first

A bit that differs is a tie where the golden |z - threshold| is 0, near where it is at most tau,
else hard. Whole numbers are exact. A real differs by at most its bound. What is computed from a bit
that flipped, or from a tap that failed, is tainted in mode free: it says nothing about its own op.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from refimpl.conventions import GoldenFileError, require_choice
from refimpl.golden import bounds, record, replay, store
from refimpl.golden.bounds import UNDERFLOW
from refimpl.golden.record import Step
from refimpl.golden.replay import CannotReplayError, Judge
from refimpl.golden.store import Bundle

MODES = ("free", "replay")
JUDGED = ("EXACT", "TIES-ONLY", "NEAR", "FAIL")  # the verdicts that say something of a tap
LARGEST = 1e20  # memory that was never written to, read as floats, is beyond it


class Divergence(NamedTuple):
    """The worst element of a tap that differs."""

    index: tuple[int, ...]
    golden: bool | int | float  # in mode replay the result of the op
    candidate: bool | int | float
    z: float | None  # of a bit
    margin: float | None  # |z - threshold|
    tolerance: float | None  # tau of a bit, bound of a real


class Verdict(NamedTuple):
    """What is said of one tap."""

    name: str
    kind: str  # "bit", "int", "real"
    verdict: str  # EXACT, TIES-ONLY, NEAR, FAIL, TAINTED, MISSING, NOT REPLAYED
    count: int = 0  # elements
    differing: int = 0
    ties: int = 0  # of a bit
    near: int = 0  # differ, within the tolerance
    hard: int = 0  # beyond it
    worst_ulp: float | None = None  # of a real, in units of the candidate's type
    reason: str | None = None
    divergence: Divergence | None = None
    flips: np.ndarray | None = None  # bool: where it differs hard
    expected: np.ndarray | None = None  # logical: the golden value, or the result of the op
    candidate: np.ndarray | None = None  # logical, or as it came where its shape or type is wrong

    @property
    def flipped(self) -> bool:
        """A bit that differs, however small its margin."""
        return self.kind == "bit" and self.differing > 0


@dataclass(frozen=True)
class Comparison:
    """Verdicts of the taps of a bundle and of a candidate, in order of computation."""

    bundle_path: str
    candidate_path: str | None
    mode: str
    strict: bool
    verdicts: list[Verdict]
    unknown: list[str]  # names of the candidate that the model has no tap for

    @property
    def missing(self) -> list[str]:
        return [v.name for v in self.verdicts if v.verdict == "MISSING"]

    @property
    def passed(self) -> bool:
        """Some taps were judged and none failed; with `strict`, no bit differs either."""
        failed = any(v.verdict == "FAIL" or (self.strict and v.flipped) for v in self.verdicts)
        return self.judged > 0 and not failed

    @property
    def judged(self) -> int:
        """How many taps have a verdict that says something about them."""
        return sum(v.verdict in JUDGED for v in self.verdicts)

    @property
    def first(self) -> Verdict | None:
        """The first tap that failed; where none did, the first with a bit that flipped."""
        failed = [v for v in self.verdicts if v.verdict == "FAIL"]
        flipped = [v for v in self.verdicts if v.flipped and v.verdict != "TAINTED"]
        return next(iter(failed or flipped), None)


def compare(
    bundle: Bundle,
    candidate: Mapping[str, np.ndarray],
    *,
    mode: str = "free",
    forced: bool = False,
    strict: bool = False,
    fail_fast: bool = False,
) -> Comparison:
    """Judge a candidate's taps: arrays by name, bits packed as in the bundle or plain bool.

    mode "free": as they are; "replay": each op alone, on the candidate's own inputs. A tap that the
    bundle does not store is recomputed from its weights and input. `forced`: the candidate was fed
    the bundle's inputs at every segment, so nothing is tainted. `strict`: bits must be equal.
    `fail_fast`: nothing is judged after the first tap that failed.
    GoldenFileError where the candidate has no tap of the model.
    """
    require_choice("golden compare", "mode", mode, MODES)
    path = getattr(candidate, "path", None)
    where = "candidate" if path is None else os.fspath(path)
    steps = bundle.reference.steps
    names = [name for name in steps if name != record.INPUT]
    taps = {name: _Tap(steps[name].value, candidate[name]) for name in names if name in candidate}
    if not taps:
        raise GoldenFileError(f"{where}: has no tap of {bundle.path}; expected some, by name")
    session = _Session(bundle, taps)
    judge = session.free if mode == "free" else session.replay
    verdicts: list[Verdict] = []
    for name in names:
        if mode == "free" and not forced and session.is_tainted(name):
            verdict = Verdict(name, session.kind(name), "TAINTED" if name in taps else "MISSING")
            session.wrong.add(name)
        else:
            verdict = judge(name)
        if name in taps or name in bundle.entries:
            verdicts.append(verdict)
        if fail_fast and verdict.verdict == "FAIL":
            break
    unknown = sorted(set(candidate) - set(steps))
    return Comparison(
        os.fspath(bundle.path), None if path is None else where, mode, strict, verdicts, unknown
    )


def selfcheck(path: str | os.PathLike) -> Comparison:
    """Recompute a bundle from its own weights and input, and compare."""
    bundle = store.read(path)
    values = {name: step.value for name, step in bundle.retrace().items()}
    return compare(bundle, {name: values[name] for name in bundle.entries})


class _Tap:
    """One array of a candidate: logical, or with the reason why it cannot be judged."""

    def __init__(self, golden: np.ndarray, array: np.ndarray):
        self.raw = self.array = array
        self.reason = self._problem(golden)

    def _problem(self, golden: np.ndarray) -> str | None:
        if golden.dtype == bool and self.raw.dtype == np.uint8:
            return self._unpack(golden.shape)
        if self.raw.shape != golden.shape:
            return f"shape {self.raw.shape}; expected {golden.shape}"
        kind = record.kind_of(golden)
        fits = {
            "bit": self.raw.dtype == bool,
            "int": self.raw.dtype.kind in "iu",
            "real": self.raw.dtype.name in bounds.UNITS,
        }[kind]
        if not fits:
            wanted = {
                "bit": "uint8, packed, or bool",
                "int": "int32",
                "real": "float32 or float64",
            }[kind]
            return f"dtype {self.raw.dtype}; expected {wanted}"
        return self._wild() if kind == "real" else None

    def _wild(self) -> str | None:
        """NaN, infinity, or a number that no port computes and no bound could be computed with."""
        if not np.isfinite(self.raw).all():
            return f"NaN or infinity at {_first(~np.isfinite(self.raw))}"
        too_large = np.abs(self.raw) > LARGEST
        if too_large.any():
            return f"above {LARGEST:g} in magnitude at {_first(too_large)}"
        return None

    def _unpack(self, shape: tuple[int, ...]) -> str | None:
        if self.raw.shape != store.packed_shape(shape):
            packed = store.packed_shape(shape)
            return (
                f"shape {self.raw.shape}; expected {packed}, the bits of {shape} packed, "
                f"or bool {shape}"
            )
        self.array = store.unpack(self.raw, shape)
        return None if store.padding_is_clear(self.raw, shape) else "padding bits set"


def _first(mask: np.ndarray) -> list[int]:
    return [int(i) for i in np.argwhere(mask)[0]]


class _Session:
    """One comparison: the candidate's taps, and what has gone wrong so far."""

    def __init__(self, bundle: Bundle, taps: dict[str, _Tap]):
        self.bundle, self.taps, self.steps = bundle, taps, bundle.reference.steps
        self.usable = {name: tap.array for name, tap in taps.items() if tap.reason is None}
        reals = [array for array in self.usable.values() if array.dtype.kind == "f"]
        self.unit = max(map(_unit, reals), default=bounds.UNITS["float32"])
        # the golden values have roundings of their own
        both = self.unit + _unit(bundle.input)
        self.bounds = bounds.Free(bundle.reference, both, bundle.manifest["free_margin"])
        self.wrong: set[str] = set()  # taps whose readers are tainted

    def kind(self, name: str) -> str:
        return record.kind_of(self.steps[name].value)

    def is_tainted(self, name: str) -> bool:
        return not self.wrong.isdisjoint(self.steps[name].inputs)

    def free(self, name: str) -> Verdict:
        verdict = self._unusable(name)
        if verdict is None:
            kind, expected = self.kind(name), self._golden(name)
            z = self._golden(self.steps[name].z) if kind == "bit" else None
            tolerance = None if kind == "int" else self.bounds[name]
            judge = Judge(expected, tolerance, z)
            verdict = _judge(self.steps[name], name, kind, judge, self.usable[name])
        if verdict.verdict == "FAIL" or verdict.flipped:
            self.wrong.add(name)
        return verdict

    def replay(self, name: str) -> Verdict:
        verdict = self._unusable(name)
        if verdict is not None:
            return verdict
        array, kind = self.usable[name], self.kind(name)
        unit = _unit(array) if kind == "real" else self.unit
        try:
            judge = replay.judge(self.bundle.reference, name, self.usable, unit)
        except CannotReplayError as error:
            tap = self.taps.get(error.name)
            reason = f"input {error.name}: {tap.reason if tap else 'missing'}"
            return Verdict(name, kind, "NOT REPLAYED", reason=reason, candidate=array)
        return _judge(self.steps[name], name, kind, judge, array)

    def _unusable(self, name: str) -> Verdict | None:
        if name not in self.taps:
            return Verdict(name, self.kind(name), "MISSING")
        tap, golden = self.taps[name], self.steps[name].value
        if tap.reason is None:
            return None
        return Verdict(
            name, self.kind(name), "FAIL", golden.size,
            reason=tap.reason, expected=self._golden(name), candidate=tap.array,
        )  # fmt: skip

    def _golden(self, name: str) -> np.ndarray:
        stored = name in self.bundle.entries
        return self.bundle.value(name) if stored else self.steps[name].value


def _unit(array: np.ndarray) -> float:
    return bounds.UNITS[array.dtype.name]


class _Differences(NamedTuple):
    """Where an array differs from what was expected; like the array, each."""

    differs: np.ndarray
    ties: np.ndarray  # differs, exactly at the threshold
    hard: np.ndarray  # differs, beyond the tolerance
    badness: np.ndarray  # the largest is the worst
    worst_ulp: float | None = None  # of reals


def _judge(step: Step, name: str, kind: str, judge: Judge, array: np.ndarray) -> Verdict:
    if kind == "real":
        found = _of_reals(judge, array)
    elif kind == "bit":
        found = _of_bits(judge, array, step.threshold)
    else:
        found = _of_integers(judge, array)
    differs, ties, hard, badness, worst_ulp = found
    near = differs & ~ties & ~hard
    word = (
        "FAIL" if hard.any() else "NEAR" if near.any() else "TIES-ONLY" if ties.any() else "EXACT"
    )
    return Verdict(
        name=name,
        kind=kind,
        verdict=word,
        count=judge.expected.size,
        differing=int(differs.sum()),
        ties=int(ties.sum()),
        near=int(near.sum()),
        hard=int(hard.sum()),
        worst_ulp=worst_ulp,
        divergence=_divergence(step, judge, array, hard if hard.any() else differs, badness),
        flips=hard if hard.any() else None,
        expected=judge.expected,
        candidate=array,
    )


def _of_reals(judge: Judge, array: np.ndarray) -> _Differences:
    difference = np.abs(array.astype(np.float64) - judge.expected)
    differs = array != judge.expected.astype(array.dtype)
    hard = differs & (difference > judge.tolerance)
    worst_ulp = _worst_ulp(difference, judge.expected, array.dtype)
    return _Differences(
        differs, np.zeros_like(differs), hard, difference / judge.tolerance, worst_ulp
    )


def _of_bits(judge: Judge, array: np.ndarray, threshold: float) -> _Differences:
    differs, margin = array != judge.expected, np.abs(judge.z - threshold)
    within = margin <= judge.tolerance
    return _Differences(differs, differs & (margin == 0), differs & ~within, margin)


def _of_integers(judge: Judge, array: np.ndarray) -> _Differences:
    differs = array != judge.expected
    distance = np.abs(array.astype(np.int64) - judge.expected)
    return _Differences(differs, np.zeros_like(differs), differs, distance)


def _worst_ulp(difference: np.ndarray, expected: np.ndarray, dtype: np.dtype) -> float:
    """In units in the last place of the largest value of the row: one near 0 has hardly any."""
    largest = np.abs(expected)
    if largest.ndim:
        largest = largest.max(axis=-1, keepdims=True)
    unit = np.spacing(np.maximum(largest, UNDERFLOW).astype(dtype))
    with np.errstate(over="ignore"):  # a difference beside a row of zeros
        return float((difference / unit).max())


def _divergence(
    step: Step, judge: Judge, array: np.ndarray, differs: np.ndarray, badness: np.ndarray
) -> Divergence | None:
    """Of the elements that differ the one that is furthest off."""
    if not differs.any():
        return None
    flat = np.where(differs, badness, -1).argmax()
    index = tuple(int(i) for i in np.unravel_index(flat, differs.shape))
    z = None if judge.z is None else float(judge.z[index])
    return Divergence(
        index,
        judge.expected[index].item(),
        array[index].item(),
        z,
        None if z is None else abs(z - step.threshold),
        None if judge.tolerance is None else float(judge.tolerance[index]),
    )
