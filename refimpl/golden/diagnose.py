"""The likely cause of a difference: a known mistake, or what was written wrongly [SPEC 8.2].

How a tap was written comes first: polarity and layout of bits, padding, ties. Then `hypotheses`
looks for the known mistake of an operation that gives these numbers; last come places of the right
values, and one number by which all are off. A guess of what was written explains a candidate if it
leaves at most a twentieth of the difference, of real numbers no more than rounding. Noise has no
cause: a guess must meet at least EVIDENCE differing entries.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from refimpl.golden import coordinates, fingerprints, hypotheses, logical
from refimpl.golden.fingerprints import Case, Guess, unpack
from refimpl.golden.hypotheses import EVIDENCE, LEFT
from refimpl.golden.mistakes import general
from refimpl.models.packing import pack_rows

if TYPE_CHECKING:
    from refimpl.golden.compare import Comparison, Verdict
    from refimpl.golden.store import Bundle

RIGHT = "the golden value, but not what the candidate's own inputs give: were they dumped rightly?"
SECONDS_OF_OTHERS = 0.1  # enough for what was done between dumped taps
FOLLOWED = 0.95  # part of the ties that a rule for them decides, where rounding may spoil some
MOST = 10  # taps of a comparison whose cause is looked for
EXPLAINED = ("FAIL", "TIES-ONLY", "NEAR")  # verdicts that have something to explain

Fingerprint = Callable[[Case], Iterator[Guess]]

# What was written wrongly of the right values; the first that explains the candidate is the answer.
PLACES: tuple[Fingerprint, ...] = (
    fingerprints.head_order,
    fingerprints.grid_order,
    fingerprints.shifted,
    fingerprints.patches_shifted,
    fingerprints.mirrored,
    fingerprints.transposed,
)


def cause(
    verdict: Verdict, bundle: Bundle, candidate: Mapping[str, Any], seconds: float | None = None
) -> str | None:
    """In words, what probably made this tap differ; None where no known mistake does.

    `candidate` has the values as they were dumped, by name of the tap, as for `compare`. `seconds`
    of the processor are searched, of their own accord 4, with a large network 50.
    """
    if verdict.verdict not in EXPLAINED or verdict.candidate is None:
        return None
    with np.errstate(all="ignore"):  # a candidate may hold anything
        if np.shape(verdict.candidate) != np.shape(verdict.expected):
            return _other_shape(verdict.expected, verdict.candidate)
        if not _is_readable(verdict):
            return None
        case = _case(verdict, bundle, candidate)
        right = Guess(RIGHT, _widen(bundle.reference.steps[verdict.name].value))
        if explains(case, right):  # in replay alone: it was held against what its inputs give
            return right.cause
        if case.kind == "bit":
            written = _sign_of_zero(case) or _padding(case) or _layout(case)
            if written:
                return written
        return _searched(case, verdict, bundle, candidate, seconds)


def causes(comparison: Comparison, bundle: Bundle, candidate: Mapping[str, Any]) -> dict[str, str]:
    """Name of the tap -> cause, of the first taps that differ; those without a cause are left out.

    Only MOST are asked: one mistake in every block differs in every block. The first divergence is
    searched for as long as it takes, the others for SECONDS_OF_OTHERS each.
    """
    asked = [v for v in comparison.verdicts if v.verdict == "FAIL" or v.flipped]
    first = comparison.first
    if first in asked:
        asked.remove(first)
        asked.insert(0, first)
    found = {}
    for verdict in asked[:MOST]:
        seconds = None if verdict is first else SECONDS_OF_OTHERS
        found[verdict.name] = cause(verdict, bundle, candidate, seconds)
    return {name: words for name, words in found.items() if words is not None}


def _is_readable(verdict: Verdict) -> bool:
    """Whether a tap holds numbers of its class, in whatever type; else its reason says it all."""
    found = verdict.candidate
    if verdict.kind == "real":  # without a bound it was held against nothing
        return verdict.tolerance is not None
    if verdict.kind == "bit":  # also one whose padding is set
        return found.dtype == bool
    return found.dtype.kind in "iuf" and bool((found == np.rint(found)).all())


def explains(case: Case, guess: Guess) -> bool:
    """Whether the guess meets the candidate where it differs, and where it does not."""
    expected, found = case.expected[guess.part], case.candidate[guess.part]
    differing = expected != found
    if np.shape(guess.value) != found.shape or differing.sum() < EVIDENCE[case.kind]:
        return False
    if case.kind != "real":
        return bool((guess.value != found).sum() <= LEFT * differing.sum())
    left, whole = np.linalg.norm(guess.value - found), np.linalg.norm(expected - found)
    # beside a far too large expectation anything small would be near the candidate
    allowed = LEFT * min(whole, np.linalg.norm(found))
    return bool(np.isfinite(whole) and left <= allowed) and _within(case, guess)


def _within(case: Case, guess: Guess) -> bool:
    """Whether what it leaves of a real is rounding."""
    found, right = case.candidate[guess.part], case.expected[guess.part]
    allowed = hypotheses.allowed(guess.value, right, case.tolerance[guess.part])
    return bool((np.abs(guess.value - found) > allowed).mean() <= hypotheses.FEW)


def _explain(case: Case, table: Sequence[Fingerprint]) -> str | None:
    guesses = (guess for fingerprint in table for guess in fingerprint(case))
    return next((guess.cause for guess in guesses if explains(case, guess)), None)


def _searched(
    case: Case,
    verdict: Verdict,
    bundle: Bundle,
    candidate: Mapping[str, Any],
    seconds: float | None,
) -> str | None:
    """The known mistake of an operation that gives these numbers; else what was written wrongly."""
    if verdict.verdict != "FAIL":  # rounding that flips has no cause
        return None
    target = hypotheses.target_of(verdict, bundle.reference)
    search = hypotheses.Search(bundle.reference, _given(bundle, candidate), target, seconds)
    found = search.cause()
    if target.found.any():
        # of the right values in other places the axes of the tap say more
        is_of_operation = found is not None and search.rank < general.PLACE
        if is_of_operation:
            return found
        return _explain(case, PLACES) or found or _constant(case) or _number(case)
    written = "all zero: was it ever written?"  # which says little of why
    return written if found is None or found.startswith("all zero") else f"{written} Or: {found}"


def _constant(case: Case) -> str | None:
    """One number everywhere, where there should be several."""
    first, right = case.candidate.reshape(-1)[0], case.expected.reshape(-1)[0]
    is_thin = case.candidate.size < hypotheses.EVIDENCE_OF_PART[case.kind]
    several = (case.candidate != first).any() or (case.expected == right).all()
    if is_thin or several or not np.isfinite(first):
        return None
    return f"every value is {first.item():.6g}: was it ever written?"


def _number(case: Case) -> str | None:
    """One number by which all values are off."""
    numbers = {"bit": (), "int": (fingerprints.offset,)}
    return _explain(case, numbers.get(case.kind, (fingerprints.scale, fingerprints.offset)))


def _given(bundle: Bundle, candidate: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """What was dumped and can be computed with: logical, reals in float64."""
    found = {}
    for name, array in candidate.items():
        step = bundle.reference.steps.get(name)
        tap = None if step is None else logical.Tap(step, np.asarray(array))
        if tap is not None and tap.reason is None:
            found[name] = tap.array.astype(step.value.dtype)
    return found


def _layout(case: Case) -> str | None:
    """Bits in their order, or in that of their bytes with the padding."""
    padded = case
    if case.packed is not None:
        expected = unpack(pack_rows(case.expected))
        padded = case._replace(expected=expected, candidate=unpack(case.packed))
    return _explain(case, (fingerprints.polarity,)) or _explain(padded, (fingerprints.layout,))


def _sign_of_zero(case: Case) -> str | None:
    """Every differing bit has a z that is exactly the threshold, and nearly all that have differ.

    A right port may be beside a tie here and there; who decides them by another rule, is at all.
    """
    differing = case.expected != case.candidate
    if case.z is None or not differing.any() or (case.z[differing] != case.threshold).any():
        return None
    ties = case.z == case.threshold
    negative = ties & np.signbit(case.z)
    of_negative = not (differing & ~negative).any() and (case.candidate & ties & ~negative).any()
    if differing[negative if of_negative else ties].mean() < FOLLOWED:
        return None
    if case.threshold:
        return "rounding half up: q = 1/2 rounds to 0, half to even"
    if of_negative:
        return "sign of zero: sign(-0.0) is +1, like that of 0.0"
    return "sign of zero: sign(0) is +1, the candidate takes -1"


def _padding(case: Case) -> str | None:
    if case.packed is None or (case.expected != case.candidate).any():
        return None
    padding = unpack(case.packed)[..., case.expected.shape[-1] :]
    if not padding.any():
        return None
    return f"padding counted: bits beyond {case.expected.shape[-1]} are set, expected zeros"


def _other_shape(expected: np.ndarray, found: np.ndarray) -> str | None:
    """The right values with axes in another order, or in another shape."""
    if found.dtype.kind not in "biuf":
        return None
    pack = pack_rows if expected.dtype == bool and found.dtype == np.uint8 else np.asarray
    for order in itertools.permutations(range(expected.ndim)):
        value = pack(expected.transpose(order))
        if value.shape == found.shape and _alike(value, found):
            return f"transposed: axes in the order {order}"
    value = pack(expected)
    if value.size == found.size and _alike(value.reshape(found.shape), found):
        return "the right values in another shape"
    return None


def _alike(value: np.ndarray, found: np.ndarray) -> bool:
    if value.dtype.kind != "f":
        return bool((value == found).mean() >= 1 - LEFT)
    return bool(np.linalg.norm(value - found) <= LEFT * np.linalg.norm(value))


# --- what a guess may look at ---------------------------------------------------------------------


def _case(verdict: Verdict, bundle: Bundle, candidate: Mapping[str, Any]) -> Case:
    step = bundle.reference.steps[verdict.name]
    network = bundle.model.network
    stage = coordinates.stage(network, step)
    case = Case(
        verdict.name,
        verdict.kind,
        _widen(np.asarray(verdict.expected)),
        _widen(np.asarray(verdict.candidate)),
        heads=stage.heads,
        grid=stage.grid,
        axes=coordinates.axes(network, step),
        tolerance=verdict.tolerance,
    )
    return _with_z(case, bundle, candidate) if case.kind == "bit" else case


def _with_z(case: Case, bundle: Bundle, candidate: Mapping[str, Any]) -> Case:
    """A bit's case with the z behind it and the bytes in which it came."""
    bit = bundle.reference.steps[case.name]
    z = _read(bit.z, bundle, candidate)
    raw = np.asarray(candidate[case.name]) if case.name in candidate else None
    packed = raw if raw is not None and raw.shape == pack_rows(case.expected).shape else None
    if packed is not None and packed.dtype != np.uint8:
        packed = None
    return case._replace(packed=packed, z=z, threshold=bit.threshold)


def _read(name: str, bundle: Bundle, candidate: Mapping[str, Any]) -> np.ndarray:
    """A tap as the candidate has it; the reference's where it is missing or of another shape."""
    golden = bundle.reference.steps[name].value
    if name not in candidate:
        return golden
    found = np.asarray(candidate[name])
    if golden.dtype == bool and found.dtype == np.uint8 and found.shape == pack_rows(golden).shape:
        found = unpack(found)[..., : golden.shape[-1]]
    usable = found.shape == golden.shape and np.isfinite(found).all()
    return found.astype(golden.dtype) if usable else golden


def _widen(value: np.ndarray) -> np.ndarray:
    """Wide enough that no guess overflows."""
    return value.astype({"b": bool, "f": np.float64}.get(value.dtype.kind, np.int64))
