"""The likely cause of a difference, where the error has a fingerprint [SPEC 8.2].

A fingerprint says what a mistake would have made of the expected array. It explains a candidate
if it leaves at most a twentieth of the difference: of bits and whole numbers, of the entries that
differ; of real numbers, of the norms of difference and candidate. Noise has no cause: a guess
must meet at least EVIDENCE differing entries, and the first that explains them is the answer.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from refimpl.golden import alternatives, coordinates, fingerprints
from refimpl.golden.alternatives import Operation
from refimpl.golden.fingerprints import Case, Guess, unpack
from refimpl.models.packing import pack_rows

if TYPE_CHECKING:
    from refimpl.golden.compare import Comparison, Verdict
    from refimpl.golden.store import Bundle

LEFT = 0.05  # of the difference, that a cause may leave
EVIDENCE = {"bit": 8, "int": 3, "real": 3}  # differing entries
RIGHT = "the golden value, but not what the candidate's own inputs give: were they dumped rightly?"
MOST = 10  # taps of a comparison whose cause is looked for
EXPLAINED = ("FAIL", "TIES-ONLY", "NEAR")  # verdicts that have something to explain

Fingerprint = Callable[[Case], Iterator[Guess]]

# The first that explains the candidate is the answer: the simplest stand first.
PLACES: tuple[Fingerprint, ...] = (
    fingerprints.head_order,
    fingerprints.grid_order,
    fingerprints.shifted,
    fingerprints.patches_shifted,
    fingerprints.mirrored,
    fingerprints.transposed,
)
OPERATIONS: tuple[Fingerprint, ...] = (
    alternatives.haar,
    alternatives.fields_changed,
    alternatives.softmax,
    alternatives.layer_norm,
    alternatives.merged_heads,
    alternatives.rprelu,
    alternatives.weights,
    alternatives.mask,
    alternatives.weight_gradient,
    alternatives.inputs_changed,
    alternatives.params_changed,
    alternatives.kernels_turned,
)
TABLE: dict[str, tuple[Fingerprint, ...]] = {
    "int": (
        fingerprints.constant,
        fingerprints.negated,
        fingerprints.popcounts,
        fingerprints.padding_counted,
        fingerprints.narrow_integers,
        alternatives.operands,
        *PLACES,
        alternatives.inputs_changed,
        fingerprints.offset,
    ),
    "real": (fingerprints.constant, *OPERATIONS, fingerprints.scale, *PLACES, fingerprints.offset),
}


def cause(verdict: Verdict, bundle: Bundle, candidate: Mapping[str, Any]) -> str | None:
    """In words, what probably made this tap differ; None where no fingerprint fits.

    `candidate` has the values as they were dumped, by name of the tap, as for `compare`.
    """
    if verdict.verdict not in EXPLAINED or verdict.candidate is None:
        return None
    with np.errstate(all="ignore"):  # a candidate may hold anything
        if np.shape(verdict.candidate) != np.shape(verdict.expected):
            return _other_shape(verdict.expected, verdict.candidate)
        case = _case(verdict, bundle, candidate)
        right = Guess(RIGHT, _widen(bundle.reference.steps[verdict.name].value))
        if explains(case, right):  # in replay alone: it was held against what its inputs give
            return right.cause
        if case.kind == "bit":
            return _sign_of_zero(case) or _padding(case) or _explain_bits(case)
        return _explain(case, TABLE[case.kind])


def causes(comparison: Comparison, bundle: Bundle, candidate: Mapping[str, Any]) -> dict[str, str]:
    """Name of the tap -> cause, of the first taps that differ; those without a cause are left out.

    Only MOST are asked: one mistake in every block differs in every block.
    """
    asked = [v for v in comparison.verdicts if v.verdict == "FAIL" or v.flipped]
    if comparison.first in asked:
        asked.remove(comparison.first)
        asked.insert(0, comparison.first)
    found = {verdict.name: cause(verdict, bundle, candidate) for verdict in asked[:MOST]}
    return {name: words for name, words in found.items() if words is not None}


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
    return bool(np.isfinite(whole) and left <= allowed)


def _explain(case: Case, table: Sequence[Fingerprint]) -> str | None:
    guesses = (guess for fingerprint in table for guess in fingerprint(case))
    return next((guess.cause for guess in guesses if explains(case, guess)), None)


def _explain_bits(case: Case) -> str | None:
    """Bits in their order; in that of their bytes, with the padding; then what made their z."""
    padded = case
    if case.packed is not None:
        expected = unpack(pack_rows(case.expected))
        padded = case._replace(expected=expected, candidate=unpack(case.packed))
    return (
        _explain(case, (fingerprints.constant, fingerprints.polarity))
        or _explain(padded, (fingerprints.layout,))
        or _explain(case, (*PLACES, alternatives.weights, _thresholded))
    )


def _thresholded(case: Case) -> Iterator[Guess]:
    """The operation that made z, done wrongly, where the candidate has no z to show it."""
    if case.z_case is not None:
        for fingerprint in OPERATIONS:
            for guess in fingerprint(case.z_case):
                z = guess.value
                yield guess._replace(value=z > 0.5 if case.threshold else z >= 0)


def _sign_of_zero(case: Case) -> str | None:
    """Every differing bit has a z that is exactly the threshold."""
    differing = case.expected != case.candidate
    if case.z is None or not differing.any() or (case.z[differing] != case.threshold).any():
        return None
    if case.threshold:
        return "rounding half up: q = 1/2 rounds to 0, half to even"
    if np.signbit(case.z[differing]).all() and (case.candidate & (case.z == 0)).any():
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
    for order in itertools.permutations(range(expected.ndim)):
        value = expected.transpose(order)
        if expected.dtype == bool and found.dtype == np.uint8:
            value = pack_rows(value)
        if value.shape == found.shape and _alike(value, found):
            return f"transposed: axes in the order {order}"
    value = pack_rows(expected) if found.dtype == np.uint8 else expected
    if value.size == found.size and _alike(value.reshape(found.shape), found):
        return "the right values in another shape"
    return None


def _alike(value: np.ndarray, found: np.ndarray) -> bool:
    if value.dtype.kind != "f":
        return bool((value == found).mean() >= 1 - LEFT)
    return bool(np.linalg.norm(value - found) <= LEFT * np.linalg.norm(value))


# --- what a fingerprint may look at ---------------------------------------------------------------


def _case(verdict: Verdict, bundle: Bundle, candidate: Mapping[str, Any]) -> Case:
    step = bundle.reference.steps[verdict.name]

    def inputs() -> list[np.ndarray]:
        return [_read(read, bundle, candidate) for read in step.inputs]

    sizes = tuple(bundle.reference.steps[read].value.shape[-1] for read in step.inputs)
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
        inputs=inputs,
        sizes=sizes,
        operation=Operation(step),
    )
    return _with_z(case, bundle, candidate) if case.kind == "bit" else case


def _with_z(case: Case, bundle: Bundle, candidate: Mapping[str, Any]) -> Case:
    """A bit's case with the z behind it, and how that was made if the candidate does not say."""
    bit = bundle.reference.steps[case.name]
    z, z_case = _read(bit.z, bundle, candidate), None
    if bit.z not in candidate:
        step = bundle.reference.steps[bit.z]
        z_case = case._replace(
            name=bit.z,
            kind="real",
            expected=z,
            candidate=z,
            inputs=lambda: [_read(read, bundle, candidate) for read in step.inputs],
            operation=Operation(step),
        )
    raw = np.asarray(candidate[case.name]) if case.name in candidate else None
    packed = raw if raw is not None and raw.shape == pack_rows(case.expected).shape else None
    if packed is not None and packed.dtype != np.uint8:
        packed = None
    return case._replace(packed=packed, z=z, threshold=bit.threshold, z_case=z_case)


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
