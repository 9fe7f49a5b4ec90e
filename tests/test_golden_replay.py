"""Replay from the nearest dumped taps: never PASS for a wrong port, never FAIL for a right one."""

from __future__ import annotations

import functools
import sys

import numpy as np
import pytest
from hypothesis import given

from refimpl.golden import bounds, compare, store
from refimpl.golden.precision import Units
from refimpl.golden.replay import Replay
from tests import c_port, golden_networks, networks, sparse_dumps, strategies
from tests.sparse_dumps import MISTAKES, STAGES, Wrong
from tests.test_golden_compare import MIRRORED, bundle_of

BIT, Z = "blocks.0.attn.k_low.bit", "blocks.0.attn.k_low.z"
INT, NORM = "blocks.0.attn.k_low.int", "blocks.0.attn.k_low.norm"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> store.Bundle:
    return golden_networks.bundle(tmp_path_factory.mktemp("golden") / "bundle")


@pytest.fixture
def candidate(bundle) -> dict[str, np.ndarray]:
    return golden_networks.taps(bundle, np.float32)


def verdict(comparison, name: str):
    (found,) = [v for v in comparison.verdicts if v.name == name]
    return found


def only(arrays: dict[str, np.ndarray], names) -> dict[str, np.ndarray]:
    return {name: array for name, array in arrays.items() if name in names}


@functools.cache
def forward() -> store.Bundle:
    """Without gradients, in memory."""
    return bundle_of(golden_networks.network()._replace(dlogits=None))


# The two promises


@given(MIRRORED, strategies.seeds())
def test_no_subset_of_a_right_port_fails(config, seed):
    net = networks.make(config, seed, np.float32, batch=3)
    found = bundle_of(net)
    right = golden_networks.taps_of(found, net.dlogits, np.float32)
    for name, subset in sparse_dumps.subsets(found, seed):
        compared = compare(found, only(right, subset), mode="replay")
        failed = [(v.name, v.hard, v.divergence) for v in compared.verdicts if v.verdict == "FAIL"]
        assert not failed, (name, failed[0])


@pytest.mark.parametrize("stage", STAGES)
def test_no_subset_of_a_wrong_port_passes(stage):
    """Whatever it hides: where something dumped is visibly wrong, the outcome is no PASS."""
    bundle, seen = forward(), 0
    for mistake, of in MISTAKES.items():
        wrong = sparse_dumps.taps(bundle, Wrong(stage, of), np.float32)
        for name, subset in sparse_dumps.subsets(bundle, seed=len(stage)):
            dump = only(wrong, subset)
            if sparse_dumps.shows(bundle, dump):
                seen += 1
                assert not compare(bundle, dump, mode="replay").passed, (mistake, name)
    assert seen >= 4  # such mistakes are gross


@pytest.mark.parametrize("name", ["small_tie_free", "react_micro", "didb_micro_mnist"])
def test_bits_whole_numbers_and_logits_of_a_right_port_pass(name):
    """What README advises to begin with is judged to the end: every bit is known."""
    found = store.read(c_port.GOLDEN / name)
    right = golden_networks.taps(found, np.float32)
    _, subset = next(sparse_dumps.subsets(found, 0))
    compared = compare(found, only(right, subset), mode="replay", strict=True)
    assert compared.outcome == "PASS" and compared.judged == len(subset)


# A stretch


def test_a_tap_is_replayed_from_its_nearest_dumped_ancestors(bundle, candidate):
    """Everything before them is wrong, and the stretch behind them is right."""
    few = only(candidate, ("blocks.0.attn.low", NORM))
    few["blocks.0.attn.low"] = few["blocks.0.attn.low"] * np.float32(1.5) + np.float32(0.25)
    values = {"blocks.0.attn.low": few["blocks.0.attn.low"].astype(np.float64)}
    for name in (Z, BIT, INT, "blocks.0.attn.k_low.linear", NORM):
        step = bundle.reference.steps[name]
        inputs = [values.get(read, bundle.reference.steps[read].value) for read in step.inputs]
        values[name] = step.op(*inputs)
    few[NORM] = values[NORM].astype(np.float32)
    compared = compare(bundle, few, mode="replay")
    assert verdict(compared, NORM).verdict in ("EXACT", "NEAR")
    assert [v.name for v in compared.verdicts if v.verdict == "FAIL"] == ["blocks.0.attn.low"]
    few[NORM] = candidate[NORM]
    assert verdict(compare(bundle, few, mode="replay"), NORM).verdict == "FAIL"


def test_the_bound_of_a_stretch_is_less_than_that_of_the_whole_network(bundle):
    candidate = golden_networks.taps(bundle, np.float64)
    name, before = "blocks.0.mlp.up.norm", "blocks.0.mid"
    names = {n: candidate[n] for n in (before, name)}
    units = Units("float32", dict.fromkeys(names, "float64"))
    judge = Replay(bundle.reference, names, units).judge(name)
    whole = bounds.Free(bundle.reference, units.of(name) + bounds.REFERENCE)[name]
    assert (judge.tolerance <= 1.01 * whole).all() and judge.reason is None
    one_op = Replay(bundle.reference, candidate, Units("float32", {})).judge(name)
    assert one_op.tolerance.max() < judge.tolerance.max()


def test_a_gross_error_inside_a_stretch_is_seen_from_behind_it(bundle, candidate):
    wrong = sparse_dumps.taps(bundle, Wrong(r"blocks\.0\.attn\.scores", lambda x: 3 * x))
    few = only(wrong, ("tokens", "blocks.0.mid", "blocks.0.out"))
    compared = compare(bundle, few, mode="replay")
    assert compared.outcome == "FAIL" and compared.first.name == "blocks.0.mid"
    assert verdict(compared, "blocks.0.out").verdict != "FAIL"  # follows rightly from a wrong mid


# Bits that rounding may flip


def near(bundle: store.Bundle, candidate: dict, distance: float) -> tuple[dict, tuple[int, ...]]:
    """The low band such that one z of the keys lies at this share of its tau; what follows."""
    index, low = (1, 2, 3), "blocks.0.attn.low"
    given = {low: candidate[low].astype(np.float64)}
    step = bundle.reference.steps[Z]
    given[low][index] -= step.op(given[low])[index]
    tau = Replay(bundle.reference, given, Units("float32", {})).judge(Z).tolerance[index]
    given[low][index] += distance * tau
    given[low] = given[low].astype(np.float64)
    for name in (Z, BIT, INT):
        step = bundle.reference.steps[name]
        reads = [given.get(read, bundle.reference.steps[read].value) for read in step.inputs]
        given[name] = step.op(*reads)
    return given, index


@pytest.mark.parametrize("distance, is_open", [(0.5, True), (-0.5, True), (3.0, False)])
def test_what_follows_from_a_bit_within_its_tau_is_open(bundle, candidate, distance, is_open):
    given, index = near(bundle, candidate, distance)
    sparse = {"blocks.0.attn.low": given["blocks.0.attn.low"], INT: given[INT]}
    options = {"mode": "replay", "unit_roundoff": "float32"}
    right = verdict(compare(bundle, sparse, **options), INT)
    assert right.verdict == ("UNJUDGED" if is_open else "EXACT")
    if is_open:
        row = given[INT].shape[-1]
        assert right.reason.startswith(f"{row} of {given[INT].size} elements follow from bits")
        assert right.reason.endswith(f"the first of them in {BIT}: dump that")
    # the other side of the threshold: as good where it is open
    other = given[BIT].copy()
    other[index] = ~other[index]
    step = bundle.reference.steps[INT]
    flipped = {**sparse, INT: step.op(other, bundle.reference.steps[step.inputs[1]].value)}
    word = verdict(compare(bundle, flipped, **options), INT).verdict
    assert word == ("UNJUDGED" if is_open else "FAIL")
    # more than that bit can do is wrong in any case, and so is another row
    for place in ((*index[:2], 0), (0, 0, 0)):
        wrong = {**sparse, INT: given[INT].copy()}
        wrong[INT][place] += 4
        assert verdict(compare(bundle, wrong, **options), INT).verdict == "FAIL"
    # the bit itself ends the doubt
    dumped = {**flipped, BIT: other}
    assert verdict(compare(bundle, dumped, **options), INT).verdict == "EXACT"


def test_an_open_bit_counts_in_the_worst_case(bundle, candidate):
    """Of a real behind it: what either value of the bit gives is within the tolerance."""
    given, index = near(bundle, candidate, 0.2)
    low = {"blocks.0.attn.low": given["blocks.0.attn.low"]}
    replay = Replay(bundle.reference, low, Units("float32", {}))
    judge, steps = replay.judge(NORM), bundle.reference.steps
    other = given[BIT].copy()
    other[index] = ~other[index]
    whole = steps[INT].op(other, steps[steps[INT].inputs[1]].value)
    linear = steps["blocks.0.attn.k_low.linear"]
    value = steps[NORM].op(linear.op(whole, steps[linear.inputs[1]].value))
    assert "dump that" in judge.reason
    difference = np.abs(value - judge.expected)
    assert (difference <= judge.tolerance).all() and difference[index[:2]].max() > 0.01
    assert (judge.tolerance[0] < 1e-3).all()  # the other image knows nothing of it


def test_what_a_port_did_not_dump_it_computed_in_its_own_precision(bundle):
    """One tap as float64, cast behind float32 ops: only that it was cast is known of it."""
    single = golden_networks.taps(bundle, np.float32)
    names = ("blocks.0.norm1.out", NORM)
    few = {names[0]: single[names[0]], NORM: single[NORM].astype(np.float64)}
    units = {NORM: "float64", "*": "float32"}
    found = verdict(compare(bundle, few, mode="replay", unit_roundoff=units), NORM)
    assert found.verdict == "NEAR"


# What cannot be read; forced


def test_what_follows_from_a_tap_that_cannot_be_read_is_unjudged(bundle, candidate):
    few = only(candidate, (Z, INT, NORM))
    few[Z] = np.full_like(few[Z], np.nan)
    compared = compare(bundle, few, mode="replay")
    assert verdict(compared, INT).verdict == "UNJUDGED"
    assert verdict(compared, INT).reason.startswith(f"input {Z}: NaN or infinity")
    assert verdict(compared, NORM).verdict == "NEAR"
    assert compared.outcome == "FAIL"


def test_forced_takes_missing_inputs_from_the_bundle(bundle, candidate):
    """One op at its strict bound, whatever lies before it."""
    one_op = {NORM: candidate[NORM], BIT: candidate[BIT], "logits": candidate["logits"]}
    compared = compare(bundle, one_op, mode="replay", forced=True)
    assert compared.outcome == "PASS"
    inputs = [bundle.reference.steps[read].value for read in bundle.reference.steps[NORM].inputs]
    strict = bounds.replay(bundle.reference, NORM, inputs, bounds.UNITS["float32"])
    np.testing.assert_allclose(verdict(compared, NORM).tolerance, strict)
    z = bundle.reference.steps[Z].value
    np.testing.assert_array_equal(verdict(compared, BIT).z, z)


def test_a_small_error_of_one_op_fails_when_forced(bundle):
    exact = golden_networks.taps(bundle, np.float64)
    name = "blocks.0.attn.scores"
    wrong = {name: (exact[name] * (1 + 1e-5)).astype(np.float32)}
    assert compare(bundle, wrong, mode="replay", forced=True).outcome == "FAIL"


@pytest.mark.parametrize("error, notes", [(0.0, 1), (0.1, 0)])
def test_of_a_port_that_was_not_fed_forced_says_what_it_means(bundle, candidate, error, notes):
    """What leaves a block alone, by a port that went on with its own values: right, and wrong."""
    few = only(candidate, ("tokens", "blocks.0.mid", "blocks.0.out", "logits"))
    few["blocks.0.mid"] = few["blocks.0.mid"] + np.float32(error)
    compared = compare(bundle, few, mode="replay", forced=True)
    assert compared.outcome == "FAIL" and compared.first.name == "blocks.0.mid"
    assert len(compared.notes) == notes
    running = compare(bundle, few, mode="replay")
    assert running.notes == [] and (verdict(running, "blocks.0.mid").hard > 0) == (not notes)
    for note in compared.notes:
        assert note.startswith("blocks.0.mid fails because of --forced, which says that the port")
        word = verdict(running, "blocks.0.mid").verdict
        assert note.endswith(f"leave --forced out: without it the tap is {word}")
    assert compare(bundle, candidate, mode="replay", forced=True).notes == []


# Outcomes


def test_what_was_dumped_and_not_judged_is_no_pass(bundle, candidate):
    given, _ = near(bundle, candidate, 0.5)
    sparse = {"blocks.0.attn.low": given["blocks.0.attn.low"], INT: given[INT]}
    compared = compare(bundle, {INT: sparse[INT]}, mode="replay", unit_roundoff="float32")
    assert compared.outcome in ("INCOMPLETE", "FAIL")
    right = compare(bundle, {**candidate, "debug": candidate[NORM]})
    assert (right.outcome, right.unknown) == ("INCOMPLETE", ["debug"])
    assert compare(bundle, {**candidate, "debug": candidate[NORM]}, ignore=["deb*"]).passed


def test_a_chain_that_is_deeper_than_python_calls():
    net = golden_networks.network(depth=28)._replace(dlogits=None)
    found = bundle_of(net)
    assert len(found.reference.steps) > 2 * sys.getrecursionlimit()
    right = golden_networks.taps_of(found, None, np.float32)
    compared = compare(found, {"logits": right["logits"]}, mode="replay")
    assert compared.outcome in ("PASS", "INCOMPLETE")
