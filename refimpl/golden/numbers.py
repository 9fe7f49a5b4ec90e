"""What the numbers of a tap say by themselves, where no known mistake gives them.

A sum whose terms do not count once each, bits of a product that are not counted, numbers that lie
on a grid, rounding of a coarser type. Each is solved for, not tried, and given only if it leaves
no more than rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from refimpl.golden import bounds, precision
from refimpl.golden.mistakes import binary
from refimpl.golden.mistakes.declared import OUTPUT, Call
from refimpl.golden.mistakes.general import parameter
from refimpl.golden.stretch import Stretch

if TYPE_CHECKING:
    from refimpl.golden.hypotheses import Target

ROWS = 4  # times as many elements as terms, to solve for their weights
WHOLE = 1e-3  # of 1, within which a solution is a whole number, or one that has a name
FINEST = 16  # bits behind the point of a grid of numbers
# Of rounding in a coarser type: the share of elements that are off, how little their errors go with
# the values, and how far they may be below the worst case.
MANY, NOISY, BELOW = 0.5, 0.3, 200.0

FAR = 16.0  # times the tolerance, up to which numbers are not looked at

Meets = Callable[[np.ndarray], bool]


def cause(stretch: Stretch, target: Target, meets: Meets) -> str | None:
    """In words; `meets` says whether a value is the candidate's, within the bound."""
    if stretch.reference.steps[target.name].op is None:  # the gradient of the logits is given
        return None
    if target.kind == "real":
        off = np.abs(target.found - stretch.right).max()
        if off <= FAR * target.tolerance.max():  # little more than rounding has no cause
            return None
    for look in (weights, blend, counted, threshold, clipped, on_grid, coarse):
        with np.errstate(all="ignore"):
            words = look(stretch, target, meets)
        if words is not None:
            return words
    return None


# --- terms of a sum -------------------------------------------------------------------------------


class Term(NamedTuple):
    name: str
    value: np.ndarray  # broadcast to the shape of the sum


def weights(stretch: Stretch, target: Target, meets: Meets) -> str | None:
    """How often each term of the last sum counts, where it is not once."""
    if target.kind != "real":
        return None
    terms = list(_terms(stretch, target))
    if not terms or target.found.size < ROWS * len(terms):
        return None
    columns = np.stack([np.ravel(term.value) for term in terms], axis=-1)
    found, *_ = np.linalg.lstsq(columns, np.ravel(target.found), rcond=None)
    factors = [_named(factor, stretch, target, len(terms)) for factor in found]
    if all(factor == 1 for factor, _ in factors):
        return None
    is_param = stretch.reference.steps[target.name].what == "d.param"
    value = columns @ np.array([factor for factor, _ in factors])
    if not meets(value.reshape(target.found.shape)):
        return None
    if is_param:
        return _of_decay(terms[1].name, *factors)
    off = [f"{t.name} counts {words}" for t, (f, words) in zip(terms, factors) if f != 1]
    if len(off) > 1 and len(off) == len(terms) and len({words for _, words in factors}) == 1:
        times = {"twice": "2 times"}.get(factors[0][1], factors[0][1])
        return f"scale missing: every value is {times} too large"
    return "; ".join(off)


def _of_decay(path: str, own: tuple[float, str], decay: tuple[float, str]) -> str | None:
    """The gradient of a parameter that counts itself: of a number alone another mistake is said."""
    if decay[0] == 0:
        return None
    much = "" if own[0] == 1 else f", the gradient counts {own[1]}"
    return f"{path} is added to its gradient {decay[0]:.4g} times: weight decay{much}"


def _named(factor: float, stretch: Stretch, target: Target, terms: int) -> tuple[float, str]:
    """A factor, and how it is said; exactly the number that it is near to."""
    stage = stretch.reference.steps[target.name].op.node.stage
    roots = {"C": stage.dim, "2": 2, "d": stage.dim // stage.heads, "3": 3}
    known = {1.0: "once", 0.0: "not at all", 2.0: "twice", -1.0: "with the wrong sign"}
    known |= {1 / n: f"1/{n}" for n in range(2, 10)} | {
        float(n): f"{n} times" for n in range(3, 10)
    }
    for name, number in roots.items():
        known.setdefault(math.sqrt(number), f"sqrt({name}) times")
        known.setdefault(1 / math.sqrt(number), f"1 / sqrt({name}) times")
    near = min(known, key=lambda number: abs(number - factor))
    if abs(near - factor) <= WHOLE * max(abs(near), 1.0):
        return near, known[near]
    return float(factor), f"{factor:.4g} times"


def _terms(stretch: Stretch, target: Target) -> Iterator[Term]:
    shown = stretch.reference.steps[target.name].op.shown
    shape = target.found.shape
    if shown.what == "d.param":
        yield Term("the gradient", stretch.right)
        yield Term(shown.source, stretch.reference.params[shown.source].reshape(shape))
        return
    calls = _calls(stretch, target)
    if shown.what == "d.value":
        parts = [c for c in calls if c.site.is_backward and _sends_to(c, shown.source)]
        for call in parts if len(parts) > 1 else ():
            yield Term(f"what comes back through {call.node.name}", call.right())
        return
    for call in calls:
        if call.node.name == target.name and call.site.what == OUTPUT:
            yield from _of_sum(call, shape)


def _sends_to(call: Call, source: str) -> bool:
    return call.site.name(call.site.what.removeprefix("d.")) == source


def _of_sum(call: Call, shape: tuple[int, ...]) -> Iterator[Term]:
    """Terms of a node: its inputs, or what its inputs give and each parameter that is added."""
    if call.node.op == "add":
        for key in call.keys:
            yield Term(call.site.name(key), call[key])
        return
    added = [key for key in call.keys if _is_added(call, key)]
    if not added or call.node.op == "rprelu":
        return
    without = call.right({key: np.zeros_like(call[key]) for key in added})
    yield Term(" and ".join(call.site.name(k) for k in call.keys if k not in added), without)
    for key in added:
        zeros = {other: np.zeros_like(call[other]) for other in added if other != key}
        yield Term(call.site.name(key), np.broadcast_to(call.right(zeros) - without, shape))


def _is_added(call: Call, key: str) -> bool:
    declared = parameter(call.site, key)
    return declared is not None and not declared.traits.factor


def _calls(stretch: Stretch, target: Target) -> list[Call]:
    """What the last operations of a stretch are called with."""
    calls: list[Call] = []

    def seen(call: Call) -> None:  # done rightly: it gives no other value
        calls.append(call)

    last = stretch.reference.steps[target.name].op.shown
    names = {stretch.reference.network.nodes[i].name for i in (*last.nodes, last.node)}
    stretch.changed({key: seen for key in stretch.sites if key[0] in names})
    return calls


def blend(stretch: Stretch, target: Target, meets: Meets) -> str | None:
    """The right values and what they are made of, in one sum."""
    if target.kind != "real" or target.found.size < MANY_NUMBERS:
        return None
    step = stretch.reference.steps[target.name]
    for name in step.inputs:
        value = stretch.value(name)
        if value.shape != target.found.shape or value.dtype.kind != "f":
            continue
        columns = np.stack([np.ravel(stretch.right), np.ravel(value)], axis=-1)
        found, *_ = np.linalg.lstsq(columns, np.ravel(target.found), rcond=None)
        if meets((columns @ found).reshape(target.found.shape)):
            (_, own), (factor, other) = (_named(f, stretch, target, 2) for f in found)
            if factor:
                return f"the right value counts {own}, and {name} counts {other} beside it"
    return None


# --- one number of an operation -------------------------------------------------------------------


def threshold(stretch: Stretch, target: Target, meets: Meets) -> str | None:
    """Another threshold of a bit."""
    step = stretch.reference.steps[target.name]
    if target.kind != "bit" or not step.inputs or len(stretch.steps) > 1:
        return None
    z, found = stretch.value(step.z), target.found
    if z.shape != found.shape or z.dtype.kind != "f" or found.all() or not found.any():
        return None
    highest, lowest = z[~found].max(), z[found].min()
    if highest > lowest:
        return None
    return (
        f"the threshold lies between {highest:.4g} and {lowest:.4g}, not at {step.threshold:g}: "
        "is z rounded or moved in front of it?"
    )


def clipped(stretch: Stretch, target: Target, meets: Meets) -> str | None:
    """The right values, cut off where the candidate's end."""
    right, found = stretch.right, target.found
    if target.kind == "bit" or not found.ndim:
        return None
    low, high = found.min(), found.max()
    if low == high:  # nothing of the right values is left in one number
        return None
    at_ends = (found == low).sum() if right.min() < low else 0
    at_ends += (found == high).sum() if right.max() > high else 0
    if at_ends < SEVERAL or not meets(np.clip(right, low, high)):
        return None
    return f"clipped to {low:.6g} to {high:.6g}"


SEVERAL = 3  # numbers that lie exactly at the end of a range


# --- bits of a product ----------------------------------------------------------------------------


def counted(stretch: Stretch, target: Target, meets: Meets) -> str | None:
    """How often each bit of a row counts in a product of bits, where it is not once."""
    if target.kind != "int":
        return None
    call = next((c for c in _calls(stretch, target) if _makes(stretch, target, c)), None)
    found = None if call is None else binary.operands(call)
    if found is None or found[2]:
        return None
    a, b = (np.where(bits, 1.0, -1.0) for bits in found[:2])
    length = a.shape[-1]
    a, b = (np.concatenate([x, np.ones_like(x[..., :1])], axis=-1) for x in (a, b))
    matrix = _summed(a.swapaxes(-1, -2) @ a * (b.swapaxes(-1, -2) @ b), 2)
    row = _summed(((target.found @ b) * a).sum(axis=-2), 1)
    if np.linalg.matrix_rank(matrix) <= length:
        return None
    times = np.rint(np.linalg.solve(matrix, row))
    if not times[:-1].any():  # one number everywhere: of bits it says nothing
        return None
    if not meets(np.einsum("...ik,...jk,k->...ij", a, b, times)):
        return None
    return _spoken_bits(times[:-1], int(times[-1]), length)


def _makes(stretch: Stretch, target: Target, call: Call) -> bool:
    return call.site.key == (
        stretch.reference.steps[target.name].op.node.name,
        _what(stretch, target),
    )


def _what(stretch: Stretch, target: Target) -> str:
    what = stretch.reference.steps[target.name].what
    return OUTPUT if what == "output" else what


def _summed(x: np.ndarray, kept: int) -> np.ndarray:
    return x.reshape(-1, *x.shape[x.ndim - kept :]).sum(axis=0)


def _spoken_bits(times: np.ndarray, more: int, length: int) -> str:
    words = []
    for number in np.unique(times[times != 1]):
        places = spoken_places(np.flatnonzero(times == number))
        how = {0: "are not counted", 2: "are counted twice", -1: "count with the wrong sign"}
        words.append(
            f"bits {places} of {length} {how.get(int(number), f'count {int(number)} times')}"
        )
    if more:
        words.append(f"every product is {abs(more)} too {'large' if more > 0 else 'small'}")
    return "; ".join(words)


# --- grids, coarser types -------------------------------------------------------------------------


def on_grid(stretch: Stretch, target: Target, meets: Meets) -> str | None:
    """Numbers that all are whole multiples of a power of 2: fixed point."""
    found, right = target.found, stretch.right
    if target.kind != "real" or found.size < MANY_NUMBERS:
        return None
    for bits in range(FINEST):
        scaled = found * 2.0**bits
        if (scaled == np.rint(scaled)).all():
            if (right * 2.0**bits == np.rint(right * 2.0**bits)).all():  # as it should be
                return None
            error = (found - right) * 2.0**bits
            if np.abs(error).max() > 1 + WHOLE or np.unique(scaled).size < FEW_NUMBERS:
                return None
            how = "rounded" if np.abs(error).max() <= 0.5 + WHOLE else "cut off"
            how = "rounded down" if how == "cut off" and error.max() <= WHOLE else how
            return f"{how} to whole multiples of 1/{2**bits}: fixed point, {bits} bits behind it"
    return _on_steps(right, found)


def _on_steps(right: np.ndarray, found: np.ndarray) -> str | None:
    """Numbers of 8 bits: whole multiples of 1/255, or of a fraction of the largest."""
    largest = np.abs(found).max()
    for step, words in (
        (1 / 255, "1/255"),
        (1 / 127, "1/127"),
        (1 / 100, "1/100"),
        (largest / 255, "1/255 of the largest"),
        (largest / 127, "1/127 of the largest"),
    ):
        scaled = found / step
        error = np.abs(found - right).max() / step
        if _off_steps(right / step) <= ON_STEP:  # as it should be
            continue
        is_on_steps = _off_steps(scaled) <= ON_STEP and error <= 1 + WHOLE
        if is_on_steps and np.unique(np.rint(scaled)).size >= FEW_NUMBERS:
            return f"rounded to whole multiples of {words}: kept in 8 bits"
    return None


def _off_steps(scaled: np.ndarray) -> float:
    return float(np.abs(scaled - np.rint(scaled)).max())


ON_STEP = 1e-4  # of a step, that a number of 8 bits may be off in float32


MANY_NUMBERS, FEW_NUMBERS = 32, 4  # that lie on a grid; different ones


def coarse(stretch: Stretch, target: Target, meets: Meets) -> str | None:
    """Rounding of a coarser type, where the errors of one operation are as large and no rule.

    Few of them, or some that go with the values, are another mistake.
    """
    if target.kind != "real" or len(stretch.steps) > 1:
        return None
    right, error = stretch.right, target.found - stretch.right
    if (np.abs(error) > target.tolerance).mean() < MANY:
        return None
    in_order = error.reshape(-1)[np.argsort(right, axis=None)]  # a rule of values is smooth
    if max(_likeness(error, right), _likeness(in_order[1:], in_order[:-1])) > NOISY:
        return None
    reference = stretch.reference
    inputs = [stretch.value(n) for n in reference.steps[target.name].inputs]
    if _follows(error, inputs):
        return None
    for name, words in (("float16", "float16, or of TF32"), ("bfloat16", "bfloat16")):
        bound = bounds.replay(reference, target.name, inputs, precision.UNITS[name])
        if (np.abs(error) <= bound).all() and _rms(error) > _rms(bound) / BELOW:
            return f"rounding as of {words}: is something summed or kept in it there?"
    return None


def _follows(error: np.ndarray, inputs: Sequence[np.ndarray]) -> bool:
    """Whether the errors of a channel are sums of what the operation reads: no rounding then."""
    alike = [x for x in inputs if x.shape == error.shape]
    rows = (
        error.reshape(-1, error.shape[-1]).T[..., None] if error.ndim > 1 else error[None, :, None]
    )
    count = rows.shape[1]
    columns = [np.ones_like(rows)] + [x.reshape(-1, x.shape[-1]).T[..., None] for x in alike]
    terms = np.concatenate(columns[: 1 + (len(alike) if error.ndim > 1 else 0)], axis=-1)
    free = count - terms.shape[-1]
    if free < 2:
        return True
    left = rows - terms @ (np.linalg.pinv(terms) @ rows)
    return bool(np.square(left).mean() < RANDOM * free / count * np.square(rows).mean())


RANDOM = 0.5  # of the square of errors, that must not be a sum of what was read


def _likeness(a: np.ndarray, b: np.ndarray) -> float:
    """How much two arrays go with each other: 1 of a factor, about 0 of what has no rule."""
    size = np.linalg.norm(a) * np.linalg.norm(b)
    return float(np.abs(np.vdot(a, b)) / size) if size else 1.0


def _rms(array: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(array)))) if array.size else 0.0


# --- a part of a tap ------------------------------------------------------------------------------


def box(differs: np.ndarray) -> np.ndarray:
    """The smallest part, cut along the axes, in which all that differs lies."""
    part = np.ones(differs.shape, bool)
    for axis, places in enumerate(_places(differs)):
        shape = [1] * differs.ndim
        shape[axis] = len(places)
        part &= places.reshape(shape)
    return part


def _places(differs: np.ndarray) -> list[np.ndarray]:
    """For every axis, at which of its places anything differs."""
    axes = range(differs.ndim)
    return [differs.any(axis=tuple(a for a in axes if a != axis)) for axis in axes]


def spoken_part(part: np.ndarray, axes: Sequence[str]) -> str:
    """Of each axis the places, where they are not all."""
    whose = zip(axes, _places(part))
    return ", ".join(
        f"{name} {spoken_places(np.flatnonzero(places))}"
        for name, places in whose
        if not places.all()
    )


def spoken_places(places: Iterable[int]) -> str:
    """Whole numbers as ranges: 0, 3 to 7, 31."""
    ranges: list[list[int]] = []
    for place in places:
        if ranges and place == ranges[-1][1] + 1:
            ranges[-1][1] = int(place)
        else:
            ranges.append([int(place)] * 2)
    spoken = [str(a) if a == b else f"{a} to {b}" for a, b in ranges]
    return ", ".join(spoken[:MOST_RANGES]) + (", ..." if len(spoken) > MOST_RANGES else "")


MOST_RANGES = 6
