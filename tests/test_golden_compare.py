"""The comparison [SPEC 8.2]: ties, near and hard flips, taint, replay; PyTorch as a candidate."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from refimpl import engine
from refimpl.conventions import ConfigError, GoldenFileError
from refimpl.golden import bounds, compare, logical, npy, precision, record, selfcheck, store
from refimpl.golden import candidate as dumps
from refimpl.golden.compare import BLUNT, Comparison, Verdict
from refimpl.models import flatten, packing, unflatten
from refimpl.models.packing import pack_rows
from tests import golden_networks, networks, oracles, strategies

BIT, Z, INT = "blocks.0.attn.k_low.bit", "blocks.0.attn.k_low.z", "blocks.0.attn.k_low.int"
LOW = "blocks.0.attn.low"
REAL, OTHER_BRANCH = "blocks.0.attn.k_low.out", "blocks.0.attn.v.out"
SINGLE = bounds.UNITS["float32"]
SHIPPED = Path(__file__).parent.parent / "weights" / "golden"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> store.Bundle:
    return golden_networks.bundle(tmp_path_factory.mktemp("golden") / "bundle")


@pytest.fixture
def candidate(bundle) -> dict[str, np.ndarray]:
    return golden_networks.taps(bundle, np.float32)


def verdict(comparison, name: str):
    (found,) = [v for v in comparison.verdicts if v.name == name]
    return found


def words(comparison) -> Counter:
    return Counter(v.verdict for v in comparison.verdicts)


def with_z(bundle: store.Bundle, name: str, index: tuple, z: float, monkeypatch) -> None:
    """Pretend that the golden z at `index` is another number."""
    value = bundle.value(name).copy()
    value[index] = z
    original = store.Bundle.value
    monkeypatch.setattr(
        store.Bundle, "value", lambda self, n: value if n == name else original(self, n)
    )


def flip(candidate: dict, name: str, index: tuple) -> dict:
    """A copy in which one bit has the other value; without the z that would contradict it."""
    value = candidate[name].copy()
    value[index] = ~value[index]
    z = name.removesuffix("bit") + "z"
    return {n: value if n == name else v for n, v in candidate.items() if n != z}


def largest(bundle: store.Bundle, name: str) -> tuple[int, ...]:
    value = np.abs(bundle.value(name))
    return tuple(int(i) for i in np.unravel_index(value.argmax(), value.shape))


# Equal


@pytest.mark.parametrize("mode", ["free", "replay"])
def test_the_reference_passes(bundle, mode):
    found = compare(bundle, golden_networks.taps(bundle), mode=mode, strict=True)
    assert found.passed and found.first is None and not found.missing and not found.unknown
    if mode == "free":
        assert set(words(found)) == {"EXACT"}


@pytest.mark.parametrize("mode", ["free", "replay"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("taps", ["all", "block", "io"])
def test_single_precision_passes_with_every_bundle(tmp_path, mode, dtype, taps):
    bundle = golden_networks.bundle(tmp_path / "b", taps=taps, dtype=dtype)
    candidate = golden_networks.taps(bundle, np.float32)
    found = compare(bundle, candidate, mode=mode)
    assert found.passed
    # what is not stored is recomputed and judged as well
    assert [v.name for v in found.verdicts] == list(candidate)
    exact = {v.verdict for v in found.verdicts if v.kind != "real"}
    assert exact == {"EXACT"}


def test_packed_and_plain_bits_are_the_same(bundle, candidate):
    packed = {n: pack_rows(v) if v.dtype == bool else v for n, v in candidate.items()}
    assert compare(bundle, packed).passed
    wrong = flip(candidate, BIT, (0, 1, 2))
    wrong_packed = {**packed, BIT: pack_rows(wrong[BIT])}
    for mode in ("free", "replay"):
        plain, other = (compare(bundle, c, mode=mode).first for c in (wrong, wrong_packed))
        assert plain.divergence == other.divergence


def test_selfcheck(tmp_path):
    golden_networks.bundle(tmp_path / "b", taps="block")
    found = selfcheck(tmp_path / "b")
    assert found.passed and set(words(found)) == {"EXACT"}
    assert len(found.verdicts) == len(store.read(tmp_path / "b").entries)


# Bits


def test_a_flip_is_a_tie_near_or_hard(bundle, candidate, monkeypatch):
    index = largest(bundle, Z)
    flipped = flip(candidate, BIT, index)
    hard = verdict(compare(bundle, flipped), BIT)
    assert (hard.verdict, hard.differing, hard.hard) == ("FAIL", 1, 1)
    assert hard.flips.sum() == 1 and hard.flips[index]
    tau = hard.divergence.tolerance
    for z, word in ((tau, "NEAR"), (0.0, "TIES-ONLY"), (-0.0, "TIES-ONLY"), (1.01 * tau, "FAIL")):
        with_z(bundle, Z, index, z, monkeypatch)
        found = verdict(compare(bundle, flipped), BIT)
        assert found.verdict == word, z
        assert (found.ties, found.near, found.hard) == tuple(
            int(word == w) for w in ("TIES-ONLY", "NEAR", "FAIL")
        )
        assert found.divergence.index == index
        assert found.divergence.z == z and found.divergence.margin == abs(z)
        assert found.divergence.golden != found.divergence.candidate


def test_only_hard_flips_fail_unless_strict(bundle, candidate, monkeypatch):
    index = largest(bundle, Z)
    with_z(bundle, Z, index, 0.0, monkeypatch)
    flipped = flip(candidate, BIT, index)
    lenient, strict = (compare(bundle, flipped, strict=s) for s in (False, True))
    # what comes from the tie is not judged
    assert (lenient.outcome, strict.outcome) == ("INCOMPLETE", "FAIL")
    judged = {n: flipped[n] for n in (BIT, OTHER_BRANCH)}
    assert compare(bundle, judged).passed and not compare(bundle, judged, strict=True).passed
    assert lenient.first.name == strict.first.name == BIT


def test_no_ratio_decides(bundle, candidate, monkeypatch):
    """All bits of a tap are ties, or one of them is not."""
    zeros = np.zeros_like(bundle.value(Z))
    original = store.Bundle.value
    monkeypatch.setattr(
        store.Bundle, "value", lambda self, n: zeros if n == Z else original(self, n)
    )
    opposite = {BIT: ~candidate[BIT]}
    found = verdict(compare(bundle, opposite), BIT)
    assert (found.verdict, found.ties) == ("TIES-ONLY", zeros.size)
    zeros[0, 3, 4] = 1.0
    found = verdict(compare(bundle, opposite), BIT)
    assert (found.verdict, found.hard, found.divergence.index) == ("FAIL", 1, (0, 3, 4))


def test_the_threshold_of_probabilities_is_a_half(bundle, candidate):
    name = "blocks.0.attn.prob.bit"
    z = bundle.value("blocks.0.attn.prob.z")
    index = tuple(int(i) for i in np.unravel_index(z.argmax(), z.shape))
    found = verdict(compare(bundle, flip(candidate, name, index)), name)
    assert found.divergence.margin == pytest.approx(z.max() - 0.5)
    tau = bounds.Free(bundle.reference, SINGLE + bounds.REFERENCE)[name]
    assert found.divergence.tolerance == tau[index] >= 64 * SINGLE * z.max()


# Taint


def test_what_comes_from_a_flip_is_tainted_and_nothing_else(bundle, candidate):
    wrong = flip(candidate, BIT, largest(bundle, Z))
    # spoilt, too, but nobody's fault any more
    wrong["blocks.0.attn.k_low.linear"] = wrong["blocks.0.attn.k_low.linear"] + 1
    found = compare(bundle, wrong)
    assert found.first.name == BIT
    for name in (INT, REAL, "blocks.0.attn.scores", "logits", "grads/blocks.0.attn.v.out"):
        assert verdict(found, name).verdict == "TAINTED", name
    # k_low, q_low and v are side by side: a flip in one says nothing about the others
    for name in ("blocks.0.attn.q_high.int", OTHER_BRANCH, "blocks.0.attn.high", "grads/logits"):
        assert verdict(found, name).verdict in ("EXACT", "NEAR"), name
    assert [v.name for v in found.verdicts if v.verdict == "FAIL"] == [BIT]


def test_a_tie_taints_as_well(bundle, candidate, monkeypatch):
    index = largest(bundle, Z)
    with_z(bundle, Z, index, 0.0, monkeypatch)
    found = compare(bundle, flip(candidate, BIT, index))
    assert found.outcome == "INCOMPLETE" and INT in found.unjudged
    assert verdict(found, INT).verdict == "TAINTED"


def test_taint_goes_through_taps_that_are_missing(bundle, candidate):
    wrong = flip(candidate, BIT, largest(bundle, Z))
    few = {name: wrong[name] for name in (BIT, "blocks.0.attn.scores", OTHER_BRANCH, "logits")}
    found = compare(bundle, few)
    assert verdict(found, "logits").verdict == verdict(found, "blocks.0.attn.scores").verdict
    assert verdict(found, "logits").verdict == "TAINTED"
    assert verdict(found, INT).verdict == "MISSING" and INT in found.missing
    assert found.missing == [n for n in bundle.entries if n not in few]


def test_forced_taints_nothing(bundle, candidate):
    wrong = flip(candidate, BIT, largest(bundle, Z))
    wrong[INT] = wrong[INT] + 2
    found = compare(bundle, wrong, forced=True)
    assert [v.name for v in found.verdicts if v.verdict == "FAIL"] == [BIT, INT]
    assert "TAINTED" not in words(found)


def test_a_failure_taints_and_fail_fast_stops(bundle, candidate):
    wrong = {**candidate, INT: candidate[INT] + 2}
    found = compare(bundle, wrong)
    assert [v.name for v in found.verdicts if v.verdict == "FAIL"] == [INT]
    assert verdict(found, REAL).verdict == "TAINTED"
    stopped = compare(bundle, wrong, fail_fast=True)
    assert stopped.verdicts[-1].name == INT and not stopped.passed
    assert compare(bundle, wrong, mode="replay", fail_fast=True).verdicts[-1].name == INT


def test_with_strict_fail_fast_stops_at_a_flip(bundle, candidate, monkeypatch):
    index = largest(bundle, Z)
    with_z(bundle, Z, index, 0.0, monkeypatch)
    found = compare(bundle, flip(candidate, BIT, index), strict=True, fail_fast=True)
    last = found.verdicts[-1]
    assert (last.name, last.verdict, found.outcome) == (BIT, "TIES-ONLY", "FAIL")


def test_what_a_bundle_of_float32_does_not_store_is_of_float32(tmp_path):
    """A z that float32 has at 0 and float64 below: whole numbers follow the bit that is stored."""
    net = golden_networks.network()
    low = [
        record.trace(net.model, record.cast(net.params, t), net.images.astype(t))[LOW].value
        for t in (np.float32, np.float64)
    ]
    index = tuple(np.argwhere(low[1] < low[0])[0])
    flat = flatten(net.params)
    move = flat["blocks.0.attn.q_low.move"].copy()
    move[index[-1]] = -low[0][index]
    flat["blocks.0.attn.q_low.move"] = move
    net = net._replace(params=unflatten(flat))
    made = golden_networks.bundle(tmp_path / "b", net, taps="block", grads=False, dtype="float32")
    right = {name: step.value for name, step in made.retrace().items()}
    bit, whole = "blocks.0.attn.q_low.bit", "blocks.0.attn.q_low.int"
    assert bit in made.entries and whole not in made.entries
    assert (right[bit] != made.reference.steps[bit].value)[index]
    assert compare(made, right).outcome == "PASS"


def test_a_pattern_may_stand_alone(bundle, candidate):
    """A string is one pattern, and not one of each of its letters."""
    given = {**candidate, "dbg.clock": np.zeros(3)}
    assert compare(bundle, given).outcome == "INCOMPLETE"
    assert compare(bundle, given, ignore="dbg.*", require="blocks.*.int").outcome == "PASS"
    with pytest.raises(ConfigError, match=r"'nothing\.\*' is required and fits no tap"):
        compare(bundle, given, require="nothing.*")


# Whole numbers and reals


def test_whole_numbers_are_exact(bundle, candidate):
    value = candidate[INT].copy()
    value[1, 2, 3] += 2
    found = verdict(compare(bundle, {**candidate, INT: value}), INT)
    assert (found.verdict, found.hard, found.divergence.index) == ("FAIL", 1, (1, 2, 3))
    assert found.divergence.candidate == found.divergence.golden + 2
    assert (
        verdict(compare(bundle, {**candidate, INT: candidate[INT].astype(np.int64)}), INT).verdict
        == "EXACT"
    )


@pytest.mark.parametrize("mode", ["free", "replay"])
def test_reals_are_judged_by_their_bound(bundle, candidate, mode):
    if mode == "free":
        allowed = bounds.Free(bundle.reference, SINGLE + bounds.REFERENCE)[REAL]
        expected = bundle.value(REAL)
    else:
        step = bundle.reference.steps[REAL]
        inputs = [candidate[i].astype(np.float64) for i in step.inputs]
        allowed, expected = bounds.replay(bundle.reference, REAL, inputs, SINGLE), step.op(*inputs)
    for factor, word in ((0.9, "NEAR"), (1.1, "FAIL")):
        value = expected.astype(np.float32)
        # far enough from 0 that the cast rounds less than the bound
        value[1, 2, 3] = expected[1, 2, 3] + factor * allowed[1, 2, 3]
        found = verdict(compare(bundle, {**candidate, REAL: value}, mode=mode), REAL)
        assert found.verdict == word
    assert found.divergence.index == (1, 2, 3)
    assert found.divergence.tolerance == pytest.approx(allowed[1, 2, 3])
    assert found.worst_ulp > 1


def test_the_worst_ulp_is_that_of_the_candidates_type(bundle):
    exact = bundle.value(REAL)
    row = np.abs(exact[0, 1]).max()
    for dtype in (np.float32, np.float64):
        value = exact.astype(dtype)
        value[0, 1] += 3 * np.spacing(row.astype(dtype))
        found = verdict(compare(bundle, {REAL: value}), REAL)
        assert 2 <= found.worst_ulp <= 4


# What cannot be judged


@pytest.mark.parametrize("mode", ["free", "replay"])
@pytest.mark.parametrize("name, spoil, reason", [
    (REAL, lambda v: v[:, :, :-1], "shape (2, 7, 9); expected (2, 7, 10)"),
    (REAL, lambda v: v[:, :, :, None], "shape (2, 7, 10, 1); expected (2, 7, 10)"),
    (REAL, lambda v: v.astype(np.int32), "dtype int32; expected float32 or float64"),
    (REAL, lambda v: np.where(np.arange(10) == 3, np.nan, v), "NaN or infinity at [0, 0, 3]"),
    (REAL, lambda v: np.where(np.arange(10) == 3, 1e21, v),
     "above 1e+20 in magnitude at [0, 0, 3]"),
    (INT, lambda v: v.astype(np.float32), "dtype float32; expected int32"),
    (BIT, lambda v: v.astype(np.float32),
     f"dtype float32; expected uint8, packed, or bool: {logical.HOW}"),
    (BIT, lambda v: v[..., :9].astype(np.uint8),
     "shape (2, 7, 9); expected (2, 7, 8), the bits of (2, 7, 10) packed, or bool (2, 7, 10): "
     f"{logical.HOW}"),
    (BIT, lambda v: v.astype(np.int8) + np.int8(1),
     f"int8 with 2; expected 0 and 1, or -1 and +1: {logical.HOW}"),
    (BIT, lambda v: np.where(np.arange(10) < 5, np.where(v, 1, -1), 0).astype(np.int8),
     f"int8 with -1, 0, 1; expected 0 and 1, or -1 and +1: {logical.HOW}"),
    (BIT, lambda v: pack_rows(v) | np.uint8(128), "padding bits set"),
])  # fmt: skip
def test_a_tap_that_cannot_be_judged_fails_with_its_reason(
    bundle, candidate, mode, name, spoil, reason
):
    found = compare(bundle, {**candidate, name: spoil(candidate[name])}, mode=mode)
    (failed,) = [v for v in found.verdicts if v.verdict == "FAIL"]
    assert (failed.name, failed.reason) == (name, reason)
    assert not found.passed and failed.expected is not None and failed.candidate is not None
    if mode == "replay":
        readers = [v for v in found.verdicts if v.verdict == "UNJUDGED"]
        assert readers and all(v.reason == f"input {name}: {reason}" for v in readers)


@pytest.mark.parametrize("mode", ["free", "replay"])
@pytest.mark.parametrize("factor", [0, 1e-30, -1e17])
def test_garbage_is_judged_without_overflow(bundle, candidate, mode, factor):
    """A third of the real taps are far too small or large, or 0: a warning is an error here."""
    reals = [name for name, value in candidate.items() if value.dtype.kind == "f"]
    for first, dtype in ((0, np.float32), (1, np.float64), (2, np.float32)):
        spoilt = {name: (candidate[name] * factor).astype(dtype) for name in reals[first::3]}
        found = compare(bundle, {**candidate, **spoilt}, mode=mode, forced=True)
        assert not found.passed and len(found.verdicts) == len(candidate)


def test_unknown_names_are_listed(bundle, candidate):
    found = compare(
        bundle, {**candidate, "blocks.9.out": candidate[REAL], "extra": candidate[REAL]}
    )
    assert found.outcome == "INCOMPLETE" and found.unknown == ["blocks.9.out", "extra"]
    assert found.suggested == {}  # nothing is missing that they could mean
    few = {n: v for n, v in candidate.items() if n != REAL}
    found = compare(bundle, {**few, "block.0.attn.k_low.out": candidate[REAL]})
    assert found.suggested == {"block.0.attn.k_low.out": REAL}


@pytest.mark.parametrize("names", [{}, {"blocks.9.out": np.zeros(3)}])
def test_a_candidate_without_any_tap(bundle, names):
    with pytest.raises(GoldenFileError, match="candidate: has no tap of"):
        compare(bundle, names)


def test_an_unknown_mode(bundle, candidate):
    with pytest.raises(ConfigError, match="mode is 'fast'; expected one of 'free', 'replay'"):
        compare(bundle, candidate, mode="fast")


# Replay


def test_replay_names_the_op_that_is_wrong_and_no_other(bundle, candidate):
    """Everything after a wrong LayerNorm is wrong, but computed rightly from what it was given."""
    steps, wrong = bundle.reference.steps, "blocks.0.attn.v.norm"
    spoilt: dict[str, np.ndarray] = {}
    for name in candidate:
        step = steps[name]
        if step.op is None:
            value = step.value
        else:
            value = step.op(*(spoilt.get(i, steps[i].value) for i in step.inputs))
        spoilt[name] = value * 1.5 if name == wrong else value
    found = compare(bundle, spoilt, mode="replay")
    assert [v.name for v in found.verdicts if v.verdict == "FAIL"] == [wrong]
    assert found.first.name == wrong and not found.passed


def test_a_bit_is_held_against_the_candidates_own_z(bundle, candidate):
    """Another z, and the bits that belong to it."""
    z = -candidate[Z]
    mine = {**candidate, Z: z, BIT: z >= 0}
    found = compare(bundle, mine, mode="replay")
    assert verdict(found, BIT).verdict == "EXACT" and verdict(found, Z).verdict == "FAIL"


def test_without_its_z_a_bit_is_held_against_that_of_its_inputs(bundle, candidate):
    index = largest(bundle, Z)
    few = flip(candidate, BIT, index)
    found = verdict(compare(bundle, few, mode="replay"), BIT)
    assert found.verdict == "FAIL" and found.divergence.index == index
    assert found.divergence.z == pytest.approx(bundle.value(Z)[index], rel=1e-5)
    del few["blocks.0.attn.low"]  # which follows from what is before it
    found = verdict(compare(bundle, few, mode="replay"), BIT)
    assert found.verdict == "FAIL" and found.divergence.index == index


def test_near_and_ties_in_replay(bundle, candidate):
    """z of the candidate at 0, and next to it: tau is that of its own x and move."""
    index = (0, 1, 2)
    tau = bounds.replay(
        bundle.reference, BIT, [candidate["blocks.0.attn.low"].astype(np.float64)], SINGLE
    )[index]
    for z, word in ((0.0, "TIES-ONLY"), (0.9 * tau, "NEAR"), (1.1 * tau, "FAIL")):
        mine = {**candidate, Z: candidate[Z].copy()}
        mine[Z][index] = z
        mine[BIT] = mine[Z] >= 0
        mine[BIT][index] = False
        found = verdict(compare(bundle, mine, mode="replay"), BIT)
        assert (found.verdict, found.differing) == (word, 1), z


def test_weights_come_from_the_bundle_where_the_candidate_has_none(bundle, candidate):
    few = {n: v for n, v in candidate.items() if ".weight." not in n}
    found = compare(bundle, few, mode="replay")
    assert verdict(found, INT).verdict == "EXACT"
    assert found.passed


def test_a_comparison_that_judged_nothing_is_no_pass(bundle, candidate):
    """All that was dumped comes from a tap of another shape."""
    index = largest(bundle, Z)
    wrong = {**flip(candidate, BIT, index), BIT: candidate[BIT]}
    nothing = compare(bundle, {BIT: ~candidate[BIT], INT: candidate[INT]}, mode="free")
    assert (nothing.judged, nothing.outcome) == (1, "FAIL")
    assert wrong.keys() == candidate.keys() - {Z}
    found = Comparison("b", "c", "free", False, [Verdict(INT, "int", "TAINTED", 3)], [])
    assert (found.judged, found.outcome) == (0, "INCOMPLETE")


# Bits as ports have them


def as_words(bit: np.ndarray, dtype: type, whole: bool) -> np.ndarray:
    """Rows of little-endian words; `whole`: padded to 64 bits."""
    width = 64 if whole else 8 * np.dtype(dtype).itemsize
    padded = np.zeros((*bit.shape[:-1], -(-bit.shape[-1] // width) * width), np.uint8)
    padded[..., : bit.shape[-1]] = bit
    data = np.packbits(padded, axis=-1, bitorder="little")
    return data.view(np.dtype(dtype).newbyteorder("<")).astype(dtype)


WAYS = {
    "unpacked uint8": lambda bit: bit.astype(np.uint8),
    "unpacked int64": lambda bit: bit.astype(np.int64),
    "signs": lambda bit: np.where(bit, 1, -1).astype(np.int8),
    **{
        f"{np.dtype(t).name}, whole {whole}": lambda bit, t=t, w=whole: as_words(bit, t, w)
        for t in (np.uint8, np.uint16, np.uint32, np.uint64, np.int32, np.int64)
        for whole in (False, True)
    },
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", [1, 8, 31, 33, 64, 65])
def test_bits_are_taken_in_every_way_that_ports_store_them(bundle, way, size):
    rng = np.random.default_rng(size)
    golden = rng.random((3, 5, size)) < 0.5
    tap = logical.Tap(record.Step(golden, bundle.reference.steps[BIT].op, ()), WAYS[way](golden))
    assert tap.reason is None
    np.testing.assert_array_equal(tap.array, golden)
    packed = pack_rows(golden) if tap.packed is not None else golden
    np.testing.assert_array_equal(tap.dumped, packed)


def test_a_boolean_tensor_has_no_signs(bundle, candidate):
    name = "blocks.0.attn.prob.bit"
    signs = np.where(candidate[name], 1, -1).astype(np.int8)
    found = verdict(compare(bundle, {**candidate, name: signs}), name)
    assert found.reason.startswith("int8 with -1; expected 0 and 1, its bits are no signs: write")
    assert "\n" not in found.reason


# Absent, of another bundle


def test_required_taps_that_are_absent_fail(bundle, candidate):
    few = {n: v for n, v in candidate.items() if n not in (REAL, INT)}
    assert compare(bundle, few, require=["blocks.0.attn.v.*"]).passed
    found = compare(bundle, few, require=["blocks.*.int", "logits"])
    assert (found.outcome, found.absent) == ("FAIL", [INT])
    found = compare(bundle, few, complete=True)
    assert (found.outcome, found.absent) == ("FAIL", [INT, REAL])
    assert compare(bundle, candidate, complete=True).passed
    with pytest.raises(ConfigError, match=f"'{INT}s' is required and fits no tap.*mean {INT}"):
        compare(bundle, candidate, require=[f"{INT}s"])


def test_a_candidate_of_another_bundle_is_one_line(bundle):
    other = golden_networks.network(dim=14)
    found = golden_networks.taps_of(bundle_of(other), other.dlogits)
    words = r"candidate: \d+ of \d+ taps have other shapes.*first .*; is it for another bundle"
    with pytest.raises(GoldenFileError, match=words):
        compare(bundle, found)


def test_more_images_are_refused_before_any_is_read(bundle, candidate, tmp_path, monkeypatch):
    """A dump of a whole data set may be larger than the memory."""
    named = {n: candidate[n] for n in (REAL, INT, Z, BIT)}
    for name, value in named.items():
        np.save(tmp_path / f"{name}.npy", np.concatenate([value] * 3))
    np.savez(tmp_path / "c.npz", **{n: pack_rows(v) if n == BIT else v for n, v in named.items()})
    dumped, right = dumps.read(tmp_path), dumps.read(tmp_path / "c.npz")
    assert compare(bundle, right, mode="replay").outcome != "FAIL"  # also of packed bits
    monkeypatch.setattr(npy, "values", None)
    with pytest.raises(GoldenFileError, match=r"4 of 4 taps have other shapes.*\(6, 7, 10\)"):
        compare(bundle, dumped)
    np.save(tmp_path / "input.npy", np.concatenate([bundle.input] * 3))
    with pytest.raises(GoldenFileError, match="input: shape .* was fed something else"):
        compare(bundle, dumps.read(tmp_path))


def test_arrays_that_are_no_native_ones(bundle, candidate):
    """Numbers are numbers: in a list, in the other byte order, in another memory order."""
    exact = golden_networks.taps(bundle)
    ways = (np.ndarray.tolist, np.asfortranarray, lambda v: v.astype(v.dtype.newbyteorder(">")))
    for way in ways:
        found = compare(bundle, {n: way(exact[n]) for n in (REAL, INT, BIT, Z)})
        assert (found.outcome, found.judged) == ("PASS", 4)
    half = exact[REAL].astype(">f2")
    found = verdict(compare(bundle, {REAL: half}), REAL)
    assert found.verdict == "EXACT" and found.candidate.dtype == np.float32


def test_the_worst_whole_number_is_one_that_differs(bundle, candidate):
    """The smallest of int64 has no magnitude in its type."""
    golden = bundle.value(INT)
    index = tuple(int(i) for i in np.argwhere(golden == 0)[0])
    value = golden.astype(np.int64)
    value[index] = np.iinfo(np.int64).min
    found = verdict(compare(bundle, {**candidate, INT: value}), INT)
    assert (found.differing, found.divergence.index) == (1, index)


def test_gradients_where_the_bundle_has_none(tmp_path):
    """They are taps, and it is the bundle that lacks them."""
    net = golden_networks.network(dim=4)
    found = golden_networks.bundle(tmp_path / "bundle", net, grads=False)
    taps = golden_networks.taps_of(found, net.dlogits)
    comparison = compare(found, taps)
    assert comparison.outcome == "INCOMPLETE" and comparison.suggested == {}
    gradients = sorted(name for name in taps if name.startswith("grads/"))
    assert comparison.unknown == gradients
    (note,) = comparison.notes
    assert f"has no gradients: the {len(gradients)} that were dumped" in note and "--grads" in note


# Precision


@pytest.mark.parametrize("mode", ["free", "replay"])
def test_float16_is_judged_as_such(bundle, mode):
    """A port that stores float16, and one that declares float32 sums; not one that is wrong."""
    exact = golden_networks.taps(bundle)
    names = (REAL, "blocks.0.attn.k_low.norm", "blocks.0.norm1.out", "tokens", "patch_embed.out")
    half = {n: exact[n].astype(np.float16) for n in names}
    found = compare(bundle, half, mode=mode)
    assert "FAIL" not in words(found)
    found = compare(bundle, half, mode=mode, unit_roundoff="float32")
    assert "FAIL" not in words(found) and not found.notes
    wrong = {**half, REAL: half[REAL] * np.float16(1.5)}
    assert verdict(compare(bundle, wrong, mode=mode, unit_roundoff="float32"), REAL).hard


def test_of_coarse_files_replay_says_for_which_arithmetic_it_took_them(bundle):
    """The exact values rounded: as no port gives them that computes in float16."""
    exact = golden_networks.taps(bundle)
    half = {n: v.astype(np.float16) if v.dtype.kind == "f" else v for n, v in exact.items()}
    found = compare(bundle, half, mode="replay")
    assert found.outcome == "FAIL"
    (note,) = found.notes
    assert note.startswith("these are float16 files, judged as of a port that computes in float16")
    assert note.endswith("say --unit-roundoff float32")
    declared = compare(bundle, half, mode="replay", unit_roundoff="float32")
    assert declared.outcome != "FAIL" and declared.notes == []
    assert compare(bundle, {"logits": half["logits"]}).notes == []


def test_of_files_of_two_types_replay_says_how_it_took_them(bundle):
    """A port that computes in float64 and writes some taps as float32."""
    exact = golden_networks.taps(bundle)
    mixed = {**exact, REAL: exact[REAL].astype(np.float32)}
    found = compare(bundle, mixed, mode="replay")
    (note,) = found.notes
    assert found.outcome == "FAIL" and note.endswith("say --unit-roundoff float64")
    declared = compare(bundle, mixed, mode="replay", unit_roundoff="float64")
    assert declared.outcome == "PASS" and declared.notes == []


@pytest.mark.parametrize("name", ["react_micro", "small_batch", "small_deit", "small_swin"])
def test_where_a_bound_holds_garbage_mode_free_judges_nothing(name):
    """Bounds grow from op to op: in float16 those of the logits are as wide as their values."""
    shipped = store.read(SHIPPED / name)
    right = shipped.value("logits")
    garbage = {"reversed": right[:, ::-1], "zeros": 0 * right, "negative": -right}
    for what, logits in garbage.items():
        half = compare(shipped, {"logits": logits.astype(np.float16)})
        assert half.outcome in ("FAIL", "INCOMPLETE"), what
        assert compare(shipped, {"logits": logits.astype(np.float32)}).outcome == "FAIL", what
    half = compare(shipped, {"logits": right.astype(np.float16)})
    assert half.outcome == "INCOMPLETE" and verdict(half, "logits").reason == BLUNT
    assert compare(shipped, {"logits": right.astype(np.float32)}).outcome == "PASS"


@pytest.mark.parametrize("grid", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", ["react_micro", "small_batch", "small_deit", "small_adversarial"])
def test_what_files_lose_is_no_mistake_of_a_stretch(name, grid):
    """Exact values rounded in their files alone; what many of them lost adds up behind them."""
    shipped = store.read(SHIPPED / name)
    every = {n: shipped.value(n) for n in shipped.entries}
    few = {n: v for n, v in every.items() if n.endswith((".bit", ".mid", "logits", "tokens"))}
    for taps in (every, few):
        found = compare(shipped, Files(taps, grid), mode="replay", unit_roundoff="float64")
        assert found.outcome != "FAIL", (found.first.name, found.first.divergence)


class Files(dict):
    """Taps in files whose reals are of this type."""

    def __init__(self, taps: dict[str, np.ndarray], grid: str):
        reals = {n: precision.as_stored(v, grid) for n, v in taps.items() if v.dtype.kind == "f"}
        super().__init__(taps | reals)
        self.dtypes = dict.fromkeys(reals, grid)


def test_of_float32_files_replay_says_where_a_finer_arithmetic_would_pass(bundle):
    exact = golden_networks.taps(bundle)
    rounded = {n: v.astype(np.float32) if v.dtype.kind == "f" else v for n, v in exact.items()}
    found = compare(bundle, rounded, mode="replay")
    (note,) = found.notes
    assert found.outcome == "FAIL" and note.startswith(f"{found.first.name} fails as of a port")
    assert "say --unit-roundoff float64: with it the tap is NEAR" in note
    wrong = {**rounded, REAL: rounded[REAL] + np.float32(1)}
    only = {n: wrong[n] for n in (REAL, "blocks.0.attn.k_low.z", "blocks.0.attn.k_low.norm")}
    assert compare(bundle, only, mode="replay").notes == []


def test_in_bfloat16_mode_free_shows_nothing_and_passes_nothing(bundle):
    exact = golden_networks.taps(bundle)
    coarse = {REAL: precision.as_stored(exact[REAL], "bfloat16")}
    found = compare(bundle, coarse, unit_roundoff="bfloat16")
    assert found.outcome == "INCOMPLETE" and "--mode replay" in verdict(found, REAL).reason
    gross = {REAL: coarse[REAL] + np.float32(1e6)}
    assert compare(bundle, gross, unit_roundoff="bfloat16").outcome == "FAIL"


def test_a_unit_roundoff_by_pattern(bundle, candidate):
    name = "blocks.0.attn.k_low.norm"
    coarse = {**candidate, name: precision.as_stored(candidate[name], "bfloat16")}
    assert verdict(compare(bundle, coarse, mode="replay"), name).verdict == "FAIL"
    units = {"*.k_low.norm": "bfloat16", "*": 2.0**-24}
    assert verdict(compare(bundle, coarse, mode="replay", unit_roundoff=units), name).hard == 0
    units = {"*.q_low.norm": "bfloat16"}
    assert verdict(compare(bundle, coarse, mode="replay", unit_roundoff=units), name).hard
    with pytest.raises(ConfigError, match=r"unit roundoff: '\*\.q_law\.norm' fits no tap"):
        compare(bundle, coarse, unit_roundoff={"*": 2.0**-24, "*.q_law.norm": "bfloat16"})


@pytest.mark.parametrize(
    "unit", [0, -1, 1, "half", "nan", True, "inf", None.__class__, [1], {"*": {}}, 10**400]
)
def test_what_is_no_unit_roundoff(bundle, candidate, unit):
    with pytest.raises(ConfigError, match="unit roundoff .*: expected a number above 0"):
        compare(bundle, candidate, unit_roundoff=unit)


@pytest.mark.parametrize("grid, dtype", [
    ("float32", np.float64), ("bfloat16", np.float32), ("float16", np.float64),
])  # fmt: skip
def test_values_on_a_coarser_grid_than_their_type_are_said_to_be(bundle, grid, dtype):
    exact = golden_networks.taps(bundle)
    coarse = {
        n: precision.as_stored(v, grid).astype(dtype) if v.dtype.kind == "f" else v
        for n, v in exact.items()
    }
    (note,) = compare(bundle, coarse).notes
    assert note.startswith(f"these are {grid} values in {np.dtype(dtype).name} files: ")
    assert f"say --unit-roundoff {grid}" in note
    (note,) = compare(bundle, coarse, unit_roundoff=grid).notes
    assert "say" not in note
    assert not compare(bundle, exact).notes
    assert not compare(bundle, golden_networks.taps(bundle, np.float32)).notes
    for other in (np.zeros_like(exact[REAL]), np.sign(exact[REAL]) * 8):  # on every grid, too
        assert not compare(bundle, {REAL: other}).notes


def test_bfloat16_rounds_half_to_even():
    values = np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -1 - 2**-8, 0.0, 1e-40])
    expected = [1.0, 1.0, 1 + 2**-6, 1 + 2**-7, -1.0, 0.0]
    rounded = precision.as_stored(values, "bfloat16")
    assert rounded[:-1].tolist() == expected
    upper = (rounded.view(np.uint32) >> 16).astype(np.uint16)
    np.testing.assert_array_equal(npy.widen_bfloat16(upper), rounded)
    assert precision.as_stored(values[1], "bfloat16").shape == ()


# PyTorch as a candidate

CASES = 50  # images a network: with the 20 networks of CI's profile 1,000 cases


MIRRORED = st.one_of(
    networks.configs().map(lambda c: c.replace(depth=min(c.depth, 2))),
    networks.swins(),
    networks.narrow(),
)


def mirrored(config, seed: int, dtype, backwards: bool) -> tuple[networks.Network, dict]:
    mirror = oracles.require("torch", "tests.torch_models.taps")
    net = networks.make(config, seed, np.float32, batch=CASES)
    flat = {path: value.astype(dtype) for path, value in flatten(net.params).items()}
    images, dlogits = net.images.astype(dtype), net.dlogits.astype(dtype)
    return net, mirror.run(config.to_json(), flat, images, dlogits, backwards)


def bundle_of(net: networks.Network) -> store.Bundle:
    """In memory: the taps of its reference are all that a comparison needs."""
    found = store.Bundle(
        Path("memory"), {"free_margin": bounds.FREE_MARGIN}, {}, net.model,
        record.cast(net.params, np.float64), net.images.astype(np.float64), np.zeros(0),
    )  # fmt: skip
    reference = bounds.reference(net.model, net.params, net.images, net.dlogits)
    object.__setattr__(found, "reference", reference)
    return found


FLIPS: Counter = Counter()


@pytest.mark.parametrize("dtype, backwards", [
    (np.float64, False), (np.float32, False), (np.float32, True),
])  # fmt: skip
# Kinks that an RPReLU and a clip leave open: two programs may be on different sides of them.
@example(
    networks.small(
        image_size=(2, 3),
        patch_size=1,
        dim=30,
        depth=1,
        heads=5,
        mlp_ratio=1,
        num_classes=7,
        ste="clip",
        similarity="haar",
    ),
    0,
)
@example(networks.small(image_size=(3, 5), patch_size=1, dim=12, heads=6, mlp_ratio=1,
                        num_classes=7, binarize="activations", alpha_scope="head",
                        attention="differential"), 1)  # fmt: skip
@example(networks.swin(**networks.SWINS[-2], **networks.DIDB), 2)  # a pyramid
@example(networks.swin(window=1, dim=6, depth=(1, 1), image_size=(4, 8), norm_eps=1e-6), 0)
@given(MIRRORED, strategies.seeds())
def test_the_mirror_passes(dtype, backwards, config, seed):
    """All taps and gradients of [SPEC 8.1], in both modes; a tie or near flip ends mode free."""
    net, candidate = mirrored(config, seed, dtype, backwards)
    bundle = bundle_of(net)
    assert set(candidate) == set(bundle.reference.steps) - {record.INPUT}
    for mode in ("free", "replay"):
        found = compare(bundle, candidate, mode=mode)
        failed = [(v.name, v.hard, v.divergence) for v in found.verdicts if v.verdict == "FAIL"]
        assert not failed, f"{mode}: {failed[0]}"
        assert not found.missing and "UNJUDGED" not in words(found)
        flips = [v for v in found.verdicts if v.flipped]
        key = f"golden: {mode}, {np.dtype(dtype).name}{' reversed' * backwards}"
        FLIPS[f"{key}, ties"] += sum(v.ties for v in flips)
        FLIPS[f"{key}, near flips"] += sum(v.near for v in flips)
        for what in ("ties", "near flips"):
            oracles.note(f"{key}, {what}", FLIPS[f"{key}, {what}"])


@given(networks.narrow(), strategies.seeds())
def test_the_engine_passes_where_rows_hardly_vary(config, seed):
    assume(packing.for_engine(config))
    net = networks.make(config, seed, np.float32, batch=CASES)
    candidate = engine.compile(net.model, net.params).taps(net.images)
    for mode in ("free", "replay"):
        found = compare(bundle_of(net), candidate, mode=mode)
        assert found.outcome != "FAIL", (mode, found.first.name, found.first.divergence)
