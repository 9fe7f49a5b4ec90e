"""The comparison of a candidate with a bundle, which knows that signs flip [SPEC 8.2].

    comparison = compare(read("bundle"), {"blocks.0.attn.q.bit": ...}, mode="replay")
    comparison.outcome, comparison.first

A bit that differs is a tie where the golden |z - threshold| is 0, near where it is at most tau,
else hard. Whole numbers are exact. A real differs by at most its bound. What is computed from a bit
that flipped, or from a tap that failed, is tainted in mode free: it says nothing about its own op.
Nothing passes that was not judged: where something dumped was not, the outcome is INCOMPLETE.
"""

from __future__ import annotations

import difflib
import fnmatch
import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from refimpl.conventions import ConfigError, GoldenFileError, require_choice
from refimpl.golden import bounds, npy, precision, record, store
from refimpl.golden.bounds import UNDERFLOW
from refimpl.golden.logical import Tap, wrong_shape
from refimpl.golden.places import Places, places_of
from refimpl.golden.precision import Declared, Units
from refimpl.golden.replay import WIDE, CannotReplayError, Judge, Replay
from refimpl.golden.store import Bundle
from refimpl.models.replay import GRADS

MODES = ("free", "replay")
JUDGED = ("EXACT", "TIES-ONLY", "NEAR", "FAIL")  # the verdicts that say something of a tap
UNJUDGED = ("UNJUDGED", "TAINTED")  # those of taps that were dumped for nothing
BLUNT = "in so coarse a precision its bound is as wide as its values: --mode replay has closer ones"
GUESSED = 20  # unknown names for which a tap is proposed
COARSEST = 2.0**-7  # of the largest input: what bfloat16 leaves of one, cut off
ENOUGH = 4  # taps of which most have wrong shapes: a candidate for another bundle


class Divergence(NamedTuple):
    """The worst element of a tap that differs."""

    index: tuple[int, ...]
    golden: bool | int | float  # in mode replay what follows from the candidate's own taps
    candidate: bool | int | float
    z: float | None  # of a bit
    margin: float | None  # |z - threshold|
    tolerance: float | None  # tau of a bit, bound of a real


class Verdict(NamedTuple):
    """What is said of one tap."""

    name: str
    kind: str  # "bit", "int", "real"
    verdict: str  # one of JUDGED or UNJUDGED, or MISSING
    count: int = 0  # elements
    differing: int = 0
    ties: int = 0  # of a bit
    near: int = 0  # differ, within the tolerance
    hard: int = 0  # beyond it
    worst_ulp: float | None = None  # of a real, in units of the candidate's type
    reason: str | None = None  # why it cannot be judged, or fails whatever its values are
    divergence: Divergence | None = None
    flips: np.ndarray | None = None  # bool: where it differs hard
    expected: np.ndarray | None = None  # logical: the golden value, or what follows in replay
    candidate: np.ndarray | None = None  # logical, or as it came where its shape or type is wrong
    differs: np.ndarray | None = None  # bool: where it differs at all
    tolerance: np.ndarray | None = None  # of every element: tau of a bit, bound of a real
    z: np.ndarray | None = None  # of a bit
    threshold: float = 0.0  # of a bit
    places: Places | None = None  # what its axes are

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
    suggested: Mapping[str, str] = field(default_factory=dict)  # of unknown names: the tap meant
    absent: Sequence[str] = ()  # taps that were required and not dumped
    notes: Sequence[str] = ()  # of the candidate's precision, of --forced
    taps: Mapping[str, np.ndarray] = field(default_factory=dict)  # bits in words as in a bundle

    def __repr__(self) -> str:
        first = f", first {self.first.name!r}" if self.first else ""
        of = f"{self.judged} of {len(self.verdicts)} taps judged"
        return f"Comparison({self.outcome}: {of}{first}, mode={self.mode!r})"

    @property
    def missing(self) -> list[str]:
        return [v.name for v in self.verdicts if v.verdict == "MISSING"]

    @property
    def unjudged(self) -> list[str]:
        """Taps that were dumped, and of which nothing is known."""
        return [v.name for v in self.verdicts if v.verdict in UNJUDGED]

    @property
    def outcome(self) -> str:
        """ "FAIL" where something is wrong; "INCOMPLETE" where not all that was dumped was judged,
        or nothing; else "PASS".
        """
        if self.absent or any(failed(v, self.strict) for v in self.verdicts):
            return "FAIL"
        incomplete = self.unjudged or self.unknown or not self.judged
        return "INCOMPLETE" if incomplete else "PASS"

    @property
    def passed(self) -> bool:
        return self.outcome == "PASS"

    @property
    def judged(self) -> int:
        """How many taps have a verdict that says something about them."""
        return sum(v.verdict in JUDGED for v in self.verdicts)

    @property
    def first(self) -> Verdict | None:
        """The first tap that failed; where none did, the first with a bit that flipped."""
        wrong = [v for v in self.verdicts if v.verdict == "FAIL"]
        flipped = [v for v in self.verdicts if v.flipped and v.verdict not in UNJUDGED]
        return next(iter(wrong or flipped), None)


def failed(verdict: Verdict, strict: bool) -> bool:
    """Whether this tap alone makes a comparison fail."""
    flipped = verdict.flipped and verdict.verdict in JUDGED
    return verdict.verdict == "FAIL" or (strict and flipped)


def compare(
    bundle: Bundle,
    candidate: Mapping[str, np.ndarray],
    *,
    mode: str = "free",
    forced: bool = False,
    strict: bool = False,
    fail_fast: bool = False,
    require: str | Sequence[str] = (),
    complete: bool = False,
    ignore: str | Sequence[str] = (),
    unit_roundoff: Declared | None = None,
) -> Comparison:
    """Judge a candidate's taps: arrays by name, bits as in the bundle or as `logical` takes them.

    mode "free": as they are; "replay": each from what was dumped before it. A tap that the bundle
    does not store is recomputed from its weights and input. `forced`: the candidate was fed the
    bundle's inputs at every segment, so nothing is tainted, and replay takes an input that the
    candidate lacks from the bundle. `strict`: bits must be equal. `fail_fast`: nothing is judged
    after the first tap that failed. `require`, a pattern of taps or several, and `complete`, all
    taps of the bundle: those that are absent fail. `ignore`: likewise, of names that are no taps.
    `unit_roundoff`: of the port's arithmetic, as `precision.Units` takes it.
    GoldenFileError where the candidate has no tap of the model, or those of another bundle;
    ConfigError where a pattern of `require` or `unit_roundoff` fits no tap.

    >>> from importlib import resources
    >>> bundle = store.read(resources.files("refimpl.weights") / "golden" / "react_micro")
    >>> port = {"blocks.0.out": bundle.value("blocks.0.out") + 0.01}
    >>> found = compare(bundle, port)
    >>> found.outcome, [verdict.name for verdict in found.verdicts if verdict.verdict == "FAIL"]
    ('FAIL', ['blocks.0.out'])
    """
    require_choice("golden compare", "mode", mode, MODES)
    steps = bundle.reference.steps
    names = [name for name in steps if name != record.INPUT]
    required = _required(bundle, names, require, complete)
    ignored = {n for pattern in _patterns(ignore) for n in fnmatch.filter(candidate, pattern)}
    if record.INPUT in candidate and record.INPUT not in ignored:
        _require_same_input(bundle, candidate)
    precision.require_fitting(unit_roundoff, names)
    taps = _taps(bundle, candidate, names)
    session = _Session(bundle, taps, mode, forced, unit_roundoff)
    verdicts: list[Verdict] = []
    for name in names:
        verdict = session.judge(name)
        if name in taps or name in bundle.entries:
            verdicts.append(verdict)
        if fail_fast and failed(verdict, strict):
            break
    unknown = sorted(set(candidate) - set(steps) - ignored)
    gradients = [n for n in unknown if n.startswith(GRADS) and not bundle.manifest["grads"]]
    path = getattr(candidate, "path", None)
    return Comparison(
        os.fspath(bundle.path),
        None if path is None else os.fspath(path),
        mode,
        strict,
        verdicts,
        unknown,
        _suggested(
            [name for name in unknown if name not in gradients],
            [name for name in names if name not in taps],
        ),
        [name for name in names if name in required and name not in taps],
        [
            *_unread(candidate),
            *_without_gradients(bundle, gradients),
            *_grids(session),
            *_coarse_files(session, verdicts),
            *_fed(session, verdicts),
        ],
        {name: tap.dumped for name, tap in taps.items()},
    )


def _patterns(given: str | Sequence[str]) -> Sequence[str]:
    return [given] if isinstance(given, str) else given


def _required(
    bundle: Bundle, names: Sequence[str], require: str | Sequence[str], complete: bool
) -> set[str]:
    found = set(bundle.entries) if complete else set()
    for pattern in _patterns(require):
        fitting = fnmatch.filter(names, pattern)
        if not fitting:
            close = difflib.get_close_matches(pattern, names, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ConfigError(f"{pattern!r} is required and fits no tap of {bundle.path}{hint}")
        found.update(fitting)
    return found


def _require_same_input(bundle: Bundle, candidate: Mapping[str, np.ndarray]) -> None:
    """GoldenFileError where a port that says what it was fed was fed something else."""
    path = getattr(candidate, "path", None)
    where = "candidate" if path is None else os.fspath(path)
    right = bundle.input
    hint = "the port was fed something else (--ignore input compares all the same)"
    shape = _header(candidate, record.INPUT).shape
    if shape != right.shape:
        raise GoldenFileError(
            f"{where}: input: shape {shape}; the bundle's is {right.shape}: {hint}"
        )
    given = np.asarray(candidate[record.INPUT]).astype(np.float64)
    near = np.abs(given - right) <= COARSEST * np.abs(right).max(initial=0)
    if not near.all():
        at = tuple(np.argwhere(~near)[0].tolist())
        raise GoldenFileError(
            f"{where}: input: {given[at]:g} at {list(at)}; the bundle has {right[at]:g}: {hint}"
        )


def _taps(
    bundle: Bundle, candidate: Mapping[str, np.ndarray], names: Sequence[str]
) -> dict[str, Tap]:
    """The candidate's arrays that are taps, checked; shapes before any of them is read."""
    path = getattr(candidate, "path", None)
    where = "candidate" if path is None else os.fspath(path)
    dtypes, steps = getattr(candidate, "dtypes", {}), bundle.reference.steps
    given = [name for name in names if name in candidate]
    if not given:
        close = _suggested(sorted(candidate)[:1], names)
        hint = "".join(f"; did you mean {tap} by {name}?" for name, tap in close.items())
        raise GoldenFileError(f"{where}: has no tap of {bundle.path}; expected some, by name{hint}")
    wrong = {}
    for name in given:
        header = _header(candidate, name)
        reason = wrong_shape(steps[name].value, header.shape, header.dtype)
        if reason is not None:
            wrong[name] = reason
    if len(given) >= ENOUGH and len(wrong) > len(given) / 2:
        first = next(iter(wrong))
        raise GoldenFileError(
            f"{where}: {len(wrong)} of {len(given)} taps have other shapes than in {bundle.path}, "
            f"the first {first}: {wrong[first]}; is it for another bundle?"
        )
    return {name: Tap(steps[name], candidate[name], dtypes.get(name)) for name in given}


def _header(candidate: Mapping[str, np.ndarray], name: str) -> npy.Header | np.ndarray:
    """What has shape and type of an array, without reading it from a file."""
    headers = getattr(candidate, "headers", None)
    return np.asarray(candidate[name]) if headers is None else headers[name]


def _suggested(unknown: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    found = {name: difflib.get_close_matches(name, names, n=1) for name in unknown[:GUESSED]}
    return {name: close[0] for name, close in found.items() if close}


def _unread(candidate: Mapping[str, np.ndarray]) -> Iterator[str]:
    """A line where a folder has arrays that are not looked at."""
    name = getattr(candidate, "unread", None)
    if name is not None:
        yield (
            f"{name} was not read, nor what else lies as deep: taps are looked for in the folder "
            "itself, in its taps/ and its grads/"
        )


def _without_gradients(bundle: Bundle, gradients: Sequence[str]) -> Iterator[str]:
    """A line where gradients were dumped, and there are none to hold them against."""
    if gradients:
        yield (
            f"{bundle.path} has no gradients: the {len(gradients)} that were dumped, the first "
            f"{gradients[0]}, are not judged; bundles that are made with --grads have some"
        )


def _grids(session: _Session) -> Iterator[str]:
    """A line for each grid that is coarser than the type of the files whose values lie on it."""
    reals = [name for name in session.usable if session.kind(name) == "real"]
    found: dict[tuple[str, str], list[str]] = {}
    for name in reals:
        dtype = session.taps[name].dtype
        grid = precision.coarser_grid(session.usable[name], dtype, session.steps[name].value)
        if grid is not None:
            found.setdefault((dtype, grid), []).append(name)
    for (dtype, grid), names in found.items():
        count = sum(session.taps[name].dtype == dtype for name in reals)
        unit = max(map(session.units.of, names))
        advice = ""
        if unit < precision.UNITS[grid]:
            advice = f", as {dtype}; if the port computes so, say --unit-roundoff {grid}"
        yield (
            f"these are {grid} values in {dtype} files: {len(names)} of {count}, the first "
            f"{names[0]}. They are judged with a unit roundoff of {unit:.3g}{advice}"
        )


def _coarse_files(session: _Session, verdicts: Sequence[Verdict]) -> Iterator[str]:
    """A line where replay took types of files for that of the arithmetic, and not all pass."""
    types = sorted(set(session.units.types.values()), key=precision.UNITS.get)
    if session.mode == "free" or session.units.declared or not types:
        return
    if not any(verdict.verdict in ("FAIL", "UNJUDGED") for verdict in verdicts):
        return
    finest, coarsest = types[0], types[-1]
    if precision.UNITS[coarsest] > precision.UNITS["float32"]:
        yield (
            f"these are {coarsest} files, judged as of a port that computes in {coarsest}; if it "
            "computes in float32 and rounds what it dumps, say --unit-roundoff float32"
        )
    elif finest != coarsest:
        yield (
            f"some files are {finest} and some {coarsest}, each judged as of a port that computes "
            f"in its type; if it computes in {finest} and rounds what it dumps, say "
            f"--unit-roundoff {finest}"
        )
    else:
        yield from _finer(session, verdicts)


def _finer(session: _Session, verdicts: Sequence[Verdict]) -> Iterator[str]:
    """A line where the first tap that fails would not, had float32 files been rounded float64."""
    first = _first_failed(verdicts)
    if first is None or first.kind != "real":
        return
    found = session.again(first.name, session.forced, "float64")
    if found.verdict != "FAIL":
        yield (
            f"{first.name} fails as of a port that computes in float32; if it computes in float64 "
            "and rounds what it dumps, say --unit-roundoff float64: with it the tap is "
            f"{found.verdict}"
        )


def _fed(session: _Session, verdicts: Sequence[Verdict]) -> Iterator[str]:
    """A line where the first tap that fails in replay does so because of --forced."""
    first = _first_failed(verdicts)
    if first is None or session.mode == "free" or not session.forced:
        return
    found = session.again(first.name, False, session.units.declared)
    if found.verdict != "FAIL":
        yield (
            f"{first.name} fails because of --forced, which says that the port was fed the "
            "bundle's values of all that it did not dump; if it went on with its own, leave "
            f"--forced out: without it the tap is {found.verdict}"
        )


def _first_failed(verdicts: Sequence[Verdict]) -> Verdict | None:
    return next((verdict for verdict in verdicts if verdict.verdict == "FAIL"), None)


def selfcheck(path: str | os.PathLike) -> Comparison:
    """Recompute a bundle from its own weights and input, and compare.

    Errors as `store.read`; GoldenFileError also where its logits, or the bits and scales beside its
    weights, are others than these give.

    >>> from importlib import resources
    >>> selfcheck(resources.files("refimpl.weights") / "golden" / "react_micro").outcome
    'PASS'
    """
    bundle = store.read(path)
    _require_copies(bundle)
    values = {name: step.value for name, step in bundle.retrace().items()}
    return compare(bundle, {name: values[name] for name in bundle.entries})


def _require_copies(bundle: Bundle) -> None:
    """What lies in a file of its own, and is a tap, too."""
    logits = {bundle.model.network.output: bundle.output}
    for file, copies in ((store.OUTPUT_FILE, logits), (store.WEIGHTS, bundle.binarized)):
        taps = {name: copy for name, copy in copies.items() if name in bundle.reference.steps}
        wrong = compare(bundle, taps).first if taps else None
        if wrong is not None and wrong.verdict == "FAIL":
            raise GoldenFileError(
                f"{bundle.path / file}: {wrong.name}: {wrong.hard} of {wrong.count} values differ; "
                "expected what weights and input give"
            )


class _Session:
    """One comparison: the candidate's taps, and what has gone wrong so far."""

    def __init__(
        self,
        bundle: Bundle,
        taps: dict[str, Tap],
        mode: str,
        forced: bool,
        unit_roundoff: Declared | None,
    ):
        self.bundle, self.taps, self.steps = bundle, taps, bundle.reference.steps
        self.mode, self.forced = mode, forced
        self.usable = {name: tap.array for name, tap in taps.items() if tap.reason is None}
        real = {name: taps[name].dtype for name in self.usable if self.kind(name) == "real"}
        self.units = Units(unit_roundoff, real)
        # errors of all steps before arrive, also of storing them; and the golden values' own
        coarsest = max([*map(self.units.of, self.steps), *map(self.units.in_file, real)])
        both = coarsest + precision.UNITS[bundle.input.dtype.name]
        margin = bundle.manifest["free_margin"]
        self.bounds = bounds.Free(bundle.reference, both, margin)
        self.is_coarse = coarsest > precision.UNITS["float32"]
        self.is_blunt = margin * both > WIDE
        broken = frozenset(taps) - set(self.usable)
        self.replay = Replay(bundle.reference, self.usable, self.units, broken, forced, margin)
        self.wrong: set[str] = set()  # taps whose readers are tainted

    def kind(self, name: str) -> str:
        return record.kind_of(self.steps[name].value)

    def judge(self, name: str) -> Verdict:
        """The verdict of a tap; those of all that it reads were asked for before."""
        places = places_of(self.bundle.model.network, self.steps[name])
        if self.mode == "replay":
            return self._replay(name)._replace(places=places)
        if not self.forced and not self.wrong.isdisjoint(self.steps[name].inputs):
            word = "TAINTED" if name in self.taps else "MISSING"
            verdict = Verdict(name, self.kind(name), word)
            self.wrong.add(name)
        else:
            verdict = self._free(name)
        return verdict._replace(places=places)

    def again(self, name: str, forced: bool, units: Declared | None) -> Verdict:
        """The verdict of a tap under other assumptions."""
        return _Session(self.bundle, self.taps, self.mode, forced, units).judge(name)

    def _free(self, name: str) -> Verdict:
        verdict = self._unusable(name)
        if verdict is None:
            kind, expected = self.kind(name), self._golden(name)
            step = self.steps[name]
            z = self._golden(step.z) if kind == "bit" else None
            tolerance = None if kind == "int" else self.bounds[name]
            if kind == "real":
                tolerance = tolerance + self.units.storing(name, expected)
            threshold = step.threshold if kind == "bit" else 0.0
            reason = BLUNT if kind != "int" and self._is_blunt(name, tolerance) else None
            verdict = self._judged(name, Judge(expected, tolerance, z, reason, threshold))
        if verdict.verdict == "FAIL" or verdict.flipped:
            self.wrong.add(name)
        return verdict

    def _is_blunt(self, name: str, tolerance: np.ndarray) -> bool:
        """Whether the precision makes of the bound one that holds garbage, and not open kinks."""
        return self.is_blunt or (self.is_coarse and self.bounds.is_blunt(name, tolerance))

    def _replay(self, name: str) -> Verdict:
        verdict = self._unusable(name)
        if verdict is not None:
            return verdict
        try:
            return self._judged(name, self.replay.judge(name))
        except CannotReplayError as error:
            reason = f"input {error.name}: {self.taps[error.name].reason}"
            array = self.usable[name]
            return Verdict(name, self.kind(name), "UNJUDGED", reason=reason, candidate=array)

    def _judged(self, name: str, judge: Judge) -> Verdict:
        return _judge(name, self.kind(name), judge, self.usable[name], self.taps[name].dtype)

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
        return self.bundle.value(name) if stored else self._unstored[name].value

    @functools.cached_property
    def _unstored(self) -> dict[str, record.Step]:
        """In the bundle's own precision: what is not stored follows from the bits that are."""
        return self.bundle.retrace()


class _Differences(NamedTuple):
    """Where an array differs from what was expected; like the array, each."""

    differs: np.ndarray
    ties: np.ndarray  # differs, exactly at the threshold
    hard: np.ndarray  # differs, beyond the tolerance
    badness: np.ndarray  # the largest is the worst
    worst_ulp: float | None = None  # of reals


def _judge(name: str, kind: str, judge: Judge, array: np.ndarray, dtype: str) -> Verdict:
    if kind == "real":
        found = _of_reals(judge, array, dtype)
    elif kind == "bit":
        found = _of_bits(judge, array, judge.threshold)
    else:
        found = _of_integers(judge, array)
    differs, ties, hard, badness, worst_ulp = found
    near = differs & ~ties & ~hard
    reason = None if hard.any() else judge.reason
    return Verdict(
        name=name,
        kind=kind,
        verdict=_word(found, near, reason),
        count=judge.expected.size,
        differing=int(differs.sum()),
        ties=int(ties.sum()),
        near=int(near.sum()),
        hard=int(hard.sum()),
        worst_ulp=worst_ulp,
        reason=reason,
        divergence=_divergence(judge, array, hard if hard.any() else differs, badness),
        flips=hard if hard.any() else None,
        expected=judge.expected,
        candidate=array,
        differs=differs,
        tolerance=judge.tolerance,
        z=judge.z,
        threshold=judge.threshold,
    )


def _word(found: _Differences, near: np.ndarray, reason: str | None) -> str:
    if found.hard.any():
        return "FAIL"
    if reason is not None:
        return "UNJUDGED"
    return "NEAR" if near.any() else "TIES-ONLY" if found.ties.any() else "EXACT"


def _of_reals(judge: Judge, array: np.ndarray, dtype: str) -> _Differences:
    difference = np.abs(array.astype(np.float64) - judge.expected)
    differs = array != precision.as_stored(judge.expected, dtype)
    hard = differs & (difference > judge.tolerance)
    worst_ulp = _worst_ulp(difference, judge.expected, precision.UNITS[dtype])
    return _Differences(
        differs, np.zeros_like(differs), hard, difference / judge.tolerance, worst_ulp
    )


def _of_bits(judge: Judge, array: np.ndarray, threshold: float) -> _Differences:
    differs, margin = array != judge.expected, np.abs(judge.z - threshold)
    within = margin <= judge.tolerance
    return _Differences(differs, differs & (margin == 0), differs & ~within, margin)


def _of_integers(judge: Judge, array: np.ndarray) -> _Differences:
    differs = array != judge.expected
    distance = np.abs(array.astype(np.float64) - judge.expected)  # no type of ours overflows there
    hard = differs if judge.tolerance is None else distance > judge.tolerance
    return _Differences(differs, np.zeros_like(differs), hard, distance)


def _worst_ulp(difference: np.ndarray, expected: np.ndarray, unit: float) -> float:
    """In units in the last place of the largest value of the row: one near 0 has hardly any."""
    largest = np.abs(expected)
    if largest.ndim:
        largest = largest.max(axis=-1, keepdims=True)
    place = 2 * unit * np.exp2(np.floor(np.log2(np.maximum(largest, UNDERFLOW))))
    with np.errstate(over="ignore"):  # a difference beside a row of zeros
        return float((difference / place).max())


def _divergence(
    judge: Judge, array: np.ndarray, differs: np.ndarray, badness: np.ndarray
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
        None if z is None else abs(z - judge.threshold),
        None if judge.tolerance is None else float(judge.tolerance[index]),
    )
