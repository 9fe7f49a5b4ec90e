"""Mode replay: the reference's ops on what the candidate dumped [SPEC 8.2].

A tap is held against what follows from its nearest dumped ancestors, in float64: only the stretch
between them is judged, and not what came before it. The image, the gradient of the logits and the
parameters are the bundle's. How far a right port may be off:

    one op       the worst case of its roundings, gamma_n * sum |terms|
    a stretch    as in mode free, but begun anew at the dumped taps, which are known exactly
    open bits    a bit inside a stretch that is within its tau may be either one in a right port.
                 What follows from it is open: more than what both may give is wrong, and no less
                 than that can be said, so such a tap is not judged unless it fails
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from refimpl.golden import bounds, record
from refimpl.golden.bounded import SECOND_ORDER, Arithmetic, Bounded
from refimpl.golden.bounds import CORRELATED, NOISE, UNDERFLOW, UNKNOWN, Reference
from refimpl.golden.precision import Units

# Of the sum of the magnitudes of a value's terms: a bound that is wider says nothing of a tap.
WIDE = 1 / 8
# Of what files lost: independent errors, each uniform up to e_i, add up to more than four times the
# root of the sum of e_i^2 once in 10^10 (Hoeffding's inequality).
FILED = 4.0
HOPS = 4  # from a bit by way of its z and inputs to the terms that these have


class Judge(NamedTuple):
    """What the output of a tap is held against."""

    expected: np.ndarray  # logical
    tolerance: np.ndarray | None  # of every element: bound, of a bit tau; None: exact
    z: np.ndarray | None  # of a bit
    reason: str | None = None  # why the tap cannot be judged, though nothing of it was found wrong
    threshold: float = 0.0  # of a bit


class CannotReplayError(Exception):
    """The tap follows from `name`, which the candidate has in a form that cannot be read."""

    def __init__(self, name: str):
        super().__init__(f"input {name}: cannot be read")
        self.name = name


class _Known(NamedTuple):
    """A step inside a stretch."""

    value: np.ndarray
    squares: np.ndarray  # of the error that the stretch up to it has left in it
    opened: np.ndarray | None  # what open bits may make of it, in the worst case; None: nothing


class _Bound(NamedTuple):
    """How far a value that follows may be off."""

    rounding: np.ndarray
    opened: np.ndarray | None
    size: np.ndarray  # sum |terms|


class Replay:
    """Judges of the taps of one candidate, to be asked for in order of computation.

    candidate: logical arrays of the right shapes, finite; broken: taps that it has otherwise;
    margin: of mode free. With `forced` an input that the candidate lacks is the reference's value:
    one op is judged.
    """

    def __init__(
        self,
        reference: Reference,
        candidate: Mapping[str, np.ndarray],
        units: Units,
        broken: frozenset[str] = frozenset(),
        forced: bool = False,
        margin: float = bounds.FREE_MARGIN,
    ):
        self.reference, self.steps = reference, reference.steps
        self.candidate, self.units = candidate, units
        self.broken, self.forced, self.margin = broken, forced, margin
        self._place = {name: i for i, name in enumerate(self.steps)}
        self._is_parameter = _parameters(reference)
        self._needed = _needed(reference)
        self._known: dict[str, _Known] = {}
        self._origins: dict[str, str] = {}  # step -> the first open bit that it follows from

    def judge(self, name: str) -> Judge:
        """Run what lies between tap `name` and its nearest dumped ancestors.

        A bit is held against the candidate's own z; where it has none, against the z that follows.
        CannotReplayError where it follows from a tap that cannot be read.
        """
        self._compute(name)
        self._forget(name)
        step = self.steps[name]
        if record.kind_of(step.value) == "bit":
            z, bound = self._threshold(name)
            return self._judge(step.z, step.op(z), bound, z, step.threshold)
        value = step.value if step.op is None else step.op(*self._values(name))
        if record.kind_of(step.value) == "real":
            bound = self._bound(name, value)
            return self._judge(name, value, bound._replace(
                rounding=bound.rounding + self.units.storing(name, value)))  # fmt: skip
        opened = self._opened(name)
        reason = None if opened is None else self._why(name, opened)
        return Judge(value, opened, None, reason)

    def _judge(
        self,
        name: str,
        expected: np.ndarray,
        bound: _Bound,
        z: np.ndarray | None = None,
        threshold: float = 0.0,
    ) -> Judge:
        tolerance = bound.rounding
        if bound.opened is not None:
            tolerance = tolerance + SECOND_ORDER * bound.opened
            return Judge(expected, tolerance, z, self._why(name, bound.opened), threshold)
        allowed = WIDE * bounds.rms(bound.size) + UNDERFLOW
        if not np.isfinite(tolerance).all() or bounds.rms(tolerance) > allowed:
            return Judge(expected, tolerance, z, "its bound is as wide as its values", threshold)
        return Judge(expected, tolerance, z, threshold=threshold)

    def _why(self, name: str, opened: np.ndarray) -> str:
        origins = [self._origins[read] for read in (name, *self.steps[name].inputs)
                   if read in self._origins]  # fmt: skip
        first = min(origins, key=self._place.get)
        share = f"{int((opened > 0).sum()):,} of {opened.size:,} elements follow"
        return f"{share} from bits that rounding may flip, the first of them in {first}: dump that"

    # --- what lies between dumped taps ------------------------------------------------------------

    def _compute(self, name: str) -> None:
        """Everything undumped before a tap: in order, since a chain is deeper than calls go."""
        for step in sorted(self._missing(name), key=self._place.get):
            bit = record.kind_of(self.steps[step].value) == "bit"
            self._known[step] = self._bit(step) if bit else self._number(step)
            origins = [self._origins[read] for read in (step, *self.steps[step].inputs)
                       if read in self._origins]  # fmt: skip
            if origins and self._known[step].opened is not None:
                self._origins[step] = min(origins, key=self._place.get)

    def _missing(self, name: str) -> set[str]:
        """Undumped steps between a tap and its nearest dumped ancestors, not known yet."""
        found: set[str] = set()
        stack = list(self.steps[name].inputs)
        while stack:
            step = stack.pop()
            if step in found or step in self._known or self._is_given(step):
                continue
            if step in self.broken:
                raise CannotReplayError(step)
            found.add(step)
            stack += self.steps[step].inputs
        return found

    def _forget(self, name: str) -> None:
        """What no tap needs any more."""
        here = self._place[name]
        for known in [k for k in self._known if self._needed[k] < here]:
            del self._known[known]

    def _is_given(self, name: str) -> bool:
        """Known exactly: dumped; with `forced` the reference's, but for what rounds by itself."""
        if name in self.candidate or not self.forced:
            return name in self.candidate
        return name not in self._is_parameter or record.kind_of(self.steps[name].value) == "bit"

    def _number(self, name: str) -> _Known:
        """A whole number or a real inside a stretch."""
        step = self.steps[name]
        value = step.value if step.op is None else step.op(*self._values(name))
        if record.kind_of(step.value) == "int":
            return _Known(value, np.zeros(()), self._opened(name))
        return _Known(value, self._history(name), self._opened(name))

    def _bit(self, name: str) -> _Known:
        """A bit inside a stretch: open where its z is within tau."""
        z, bound = self._threshold(name, noise_alone=name in self._is_parameter)
        tau = bound.rounding if bound.opened is None else bound.rounding + bound.opened
        is_open = (np.abs(z - self.steps[name].threshold) <= tau) & (tau > 0)
        if is_open.any():
            self._origins[name] = name
        opened = is_open.astype(np.float64) if is_open.any() else None
        return _Known(self.steps[name].op(z), np.zeros(()), opened)

    def _threshold(self, name: str, noise_alone: bool = False) -> tuple[np.ndarray, _Bound]:
        """The z of a bit, the candidate's own where it has one, and tau.

        With `noise_alone` that of weights, of which most ports have the bundle's bits: what
        rounding does as a rule, and not what it may do in the worst case.
        """
        z_name = self.steps[name].z
        if z_name not in self.candidate:
            z = self._value(z_name)
            if noise_alone:
                return z, _Bound(np.sqrt(self._history(z_name)) + UNDERFLOW, None, np.abs(z))
            if self.forced and self._is_given(z_name):
                z = self.steps[z_name].op(*self._values(z_name))
            return z, self._bound(z_name, z)
        z = _real(self.candidate[z_name])
        if not all(r in self.candidate or self._is_given(r) or r in self._is_parameter
                   for r in self.steps[z_name].inputs):  # fmt: skip
            return z, _Bound(np.zeros(z.shape), None, np.abs(z))  # no rounding of it is known
        # the port's own z may be another rounding than the one behind its bit
        return z, self._bound(z_name, z)._replace(opened=None)

    # --- values and bounds of one step ------------------------------------------------------------

    def _value(self, name: str) -> np.ndarray:
        if name in self.candidate:
            return _real(self.candidate[name])
        if name in self._known:
            return self._known[name].value
        assert self.forced or name in self._is_parameter, f"{name} was forgotten"
        return self.steps[name].value

    def _values(self, name: str) -> list[np.ndarray]:
        return [self._value(read) for read in self.steps[name].inputs]

    def _bound(self, name: str, value: np.ndarray) -> _Bound:
        """Of a real that follows; `value`: what follows."""
        is_one_op = all(
            self._is_given(read) or read in self._is_parameter for read in self.steps[name].inputs
        )
        if is_one_op:
            found = self._worst_case(name)
            rounding = SECOND_ORDER * _no_nan(found.error()) + UNDERFLOW
            return _Bound(rounding, self._opened(name), found.size)
        spread = self.margin * self._coarsest(name)
        arriving = np.minimum(np.sqrt(self._history(name)), UNKNOWN)
        if self.steps[name].is_gradient:
            size = np.abs(value)
            rounding = _spread_out(np.maximum(arriving, spread * size))
        else:
            terms = self._terms(name, composed=True)
            size = terms.size
            own = _spread_out(np.maximum(terms.error(), spread * np.abs(value)))
            rounding = np.maximum(arriving, own)
        return _Bound(rounding + UNDERFLOW, self._opened(name), size)

    def _worst_case(self, name: str) -> Bounded:
        """One op, on inputs that are known exactly or computed from parameters alike."""
        arithmetic = Arithmetic(self._unit(name))
        given = []
        for read in self.steps[name].inputs:
            if not self._is_given(read) and record.kind_of(self.steps[read].value) == "real":
                given.append(self._worst_case(read))
                continue
            given.append(arithmetic.value(self._value(read)))
            if read in self.candidate:
                given[-1].inherited = given[-1].inherited + self._stored(read)
        return self._run(name, given, arithmetic)

    def _stored(self, name: str) -> np.ndarray:
        """What the file of a dumped real may have lost of what the port went on with."""
        return self.units.storing(name, self.candidate[name]).astype(np.float64)

    def _history(self, name: str) -> np.ndarray:
        """Squares of the error that the stretch leaves in a real, as `bounds.Free` has them."""
        unit = self._coarsest(name)
        backward = self.steps[name].is_gradient
        if backward:
            arithmetic = Arithmetic(unit, self.margin * unit, power=2, jump=CORRELATED)
        else:
            arithmetic = Arithmetic(0.0, NOISE * self.margin * unit, power=2)
        given = []
        for read in self.steps[name].inputs:
            found = arithmetic.value(self._value(read))
            if backward and not self.steps[read].is_gradient:
                found.inherited = _spread_out(found.inherited)
            if read in self._known:
                found.inherited = found.inherited + self._known[read].squares
            elif read in self.candidate:
                found.inherited = found.inherited + np.square(FILED * self._stored(read))
            given.append(found)
        squares = self._run(name, given, arithmetic).inherited
        return np.fmin(_no_nan(squares), UNKNOWN**2)

    def _terms(self, name: str, composed: bool) -> Bounded:
        """margin * u * sum |terms| of the op; with `composed` its inputs have terms, too."""
        arithmetic = Arithmetic(0.0, self.margin * self._coarsest(name))
        given = []
        for read in self.steps[name].inputs:
            found = arithmetic.value(self._value(read))
            is_real = record.kind_of(self.steps[read].value) == "real"
            if composed and is_real and read in self._known and read not in self._is_parameter:
                terms = self._terms(read, composed=False)
                found.inherited = np.maximum(found.inherited, terms.error())
            given.append(found)
        return self._run(name, given, arithmetic)

    def _opened(self, name: str) -> np.ndarray | None:
        """What open bits may make of a step, in the worst case; None where there are none."""
        step, arithmetic = self.steps[name], Arithmetic(0.0)
        before = [self._known[r].opened if r in self._known else None for r in step.inputs]
        if all(opened is None for opened in before):
            return None
        given = [arithmetic.value(value) for value in self._values(name)]
        for found, opened in zip(given, before, strict=True):
            if opened is not None:
                found.inherited = opened
        if record.kind_of(step.value) == "int":
            opened = _of_product(*given)
        else:
            opened = _no_nan(self._run(name, given, arithmetic).inherited)
        return opened if opened.any() else None

    def _run(self, name: str, given: Sequence[Bounded], arithmetic: Arithmetic) -> Bounded:
        # on absurd inputs everything may be off: exp of an error of 1000 is more than float64 holds
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            return bounds.bounded(self.steps[name], given, arithmetic)

    def _coarsest(self, name: str) -> float:
        """Of a step inside a stretch or at its end: undumped inputs have rounded in their own."""
        inside = [read for read in self.steps[name].inputs if read in self._known]
        return max(map(self._unit, (name, *inside)))

    def _unit(self, name: str) -> float:
        # the reference rounds, too
        return self.units.of(name) + bounds.REFERENCE


def _parameters(reference: Reference) -> set[str]:
    """What follows from parameters alone; also the image and the gradient of the logits."""
    found: set[str] = set()
    for name, step in reference.steps.items():
        if all(read in found and read != record.INPUT for read in step.inputs):
            found.add(name)
    return found


def _needed(reference: Reference) -> dict[str, int]:
    """Place of the last step that asks for a step: of a bit's z, its inputs and their terms."""
    needed = {name: place for place, name in enumerate(reference.steps)}
    for _ in range(HOPS):
        before = dict(needed)
        for name, step in reference.steps.items():
            for read in step.inputs:
                needed[read] = max(needed[read], before[name])
    return needed


def _of_product(a: Bounded, b: Bounded) -> np.ndarray:
    """A whole number is a product of bits over their last axes; each open one counts 2."""
    closed = [(x.inherited == 0).astype(np.float64) for x in (a, b)]
    return 2 * (a.shape[-1] - closed[0] @ closed[1].swapaxes(-1, -2))


def _real(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64) if array.dtype.kind == "f" else array


def _no_nan(error: np.ndarray) -> np.ndarray:
    """What came out of infinities is no better known."""
    return np.where(np.isnan(error), np.inf, error)


def _spread_out(error: np.ndarray) -> np.ndarray:
    """Earlier errors mix along the last axis: each element may have the largest of its row."""
    if not error.ndim:
        return error
    return np.broadcast_to(error.max(axis=-1, keepdims=True), error.shape)
