"""Bounds [SPEC 8.2]: rigorous in any order of summation, as narrow as their formulas say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refimpl.golden import bounded, bounds, record
from refimpl.models import create_model
from tests import networks, oracles, strategies

COVERING = networks.covering()
SINGLE, DOUBLE = bounds.UNITS["float32"], bounds.UNITS["float64"]


def gamma(n: int, unit: float = SINGLE + DOUBLE) -> float:
    return n * unit / (1 - n * unit)


def reference(net: networks.Network) -> bounds.Reference:
    return bounds.reference(net.model, net.params, net.images, net.dlogits)


def inputs(steps: dict, name: str) -> list[np.ndarray]:
    values = (steps[read].value for read in steps[name].inputs)
    return [v.astype(np.float64) if v.dtype.kind == "f" else v for v in values]


def reals(steps: dict) -> list[str]:
    return [n for n, s in steps.items() if n != record.INPUT and record.kind_of(s.value) == "real"]


# Every tap has one


def assert_bounds(found: np.ndarray, value: np.ndarray, name: str) -> None:
    assert found.shape == value.shape, name
    assert np.isfinite(found).all() and (found >= 0).all(), name


@pytest.mark.parametrize("name", COVERING)
def test_every_tap_has_bounds(name):
    ref = reference(networks.make(COVERING[name], 1))
    free = bounds.Free(ref, SINGLE)
    for tap, step in ref.steps.items():
        if tap == record.INPUT:
            continue
        assert_bounds(free[tap], step.value, tap)
        source = step.z if step.value.dtype == bool else tap
        found = bounds.replay(ref, tap, inputs(ref.steps, source), SINGLE)
        assert_bounds(found, step.value, tap)


@given(networks.all_configs(), strategies.seeds())
def test_single_precision_is_within_them(config, seed):
    """The reference's ops in float32, each on what float32 gave: what a port does, tap by tap."""
    net = networks.make(config, seed, np.float32)
    ref = reference(net)
    single = record.trace(net.model, net.params, net.images, net.dlogits)
    for name in reals(ref.steps):
        step, given_values = ref.steps[name], inputs(single, name)
        expected = step.value if step.op is None else step.op(*given_values)
        allowed = bounds.replay(ref, name, given_values, SINGLE)
        ratio = (np.abs(single[name].value - expected) / allowed).max()
        oracles.note("golden: float32 against replay, / bound", ratio, name)
        assert ratio <= 1, name


@given(networks.all_configs(), strategies.seeds())
def test_what_is_written_out_is_what_the_op_gives(config, seed):
    ref = reference(networks.make(config, seed))
    arithmetic = bounded.Arithmetic(SINGLE)
    for name, step in ref.steps.items():
        given_values = [arithmetic.value(ref.steps[read].value) for read in step.inputs]
        if step.kind == "real" and name != record.INPUT:
            found = bounds.bounded(step, given_values, arithmetic)
            np.testing.assert_allclose(found.value, step.value, rtol=1e-9, atol=1e-12)


# The formulas of the spec


@pytest.fixture(scope="module")
def didb() -> bounds.Reference:
    return reference(networks.make(COVERING["didb-pool-cls"], 3))


def test_replayed_tau_of_a_sum(didb):
    """gamma_2 (|x| + |move|): one rounding of the move's cast, one of the sum."""
    name, source = "blocks.1.attn.v.bit", "blocks.1.norm1.out"
    x = didb.steps[source].value
    move = didb.params["blocks.1.attn.v.move"]
    found = bounds.replay(didb, name, [x], SINGLE)
    expected = bounded.SECOND_ORDER * gamma(2) * (np.abs(x) + np.abs(move))
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_free_tau_of_a_sum(didb):
    """Where less arrives from further back than its own terms are worth."""
    x = didb.steps["blocks.0.norm1.out"].value
    move = didb.params["blocks.0.attn.v.move"]
    largest = (np.abs(x) + np.abs(move)).max(axis=-1, keepdims=True)
    found = bounds.Free(didb, SINGLE)["blocks.0.attn.v.bit"]
    np.testing.assert_allclose(found, np.broadcast_to(64 * SINGLE * largest, x.shape), rtol=1e-9)
    twice = bounds.Free(didb, SINGLE, margin=128)["blocks.0.attn.v.bit"]
    np.testing.assert_allclose(twice, 2 * found, rtol=1e-9)


def test_the_terms_of_the_high_band_are_its_pixels(didb):
    """Three details of four pixels each, a quarter of them: the details themselves cancel."""
    x = np.abs(didb.steps["blocks.0.norm1.out"].value)
    move = np.abs(didb.params["blocks.0.attn.q_high.move"])
    grid = x[:, 1:].reshape(3, 2, 3, 10)
    padded = np.pad(grid, ((0, 0), (0, 1), (0, 1), (0, 0)), mode="edge")
    pixels = padded[:, :-1, :-1] + padded[:, :-1, 1:] + padded[:, 1:, :-1] + padded[:, 1:, 1:]
    largest = (3 / 4 * pixels + move).max(axis=-1).reshape(3, 6)
    found = bounds.Free(didb, SINGLE)["blocks.0.attn.q_high.bit"]
    np.testing.assert_allclose(found[:, 1:, 0], 64 * SINGLE * largest, rtol=1e-9)


def test_tau_of_probabilities(didb):
    name, source = "blocks.1.attn.prob.bit", "blocks.1.attn.scores"
    scores, q = didb.steps[source].value, didb.steps["blocks.1.attn.prob.z"].value
    size = np.abs(scores) + np.abs(scores).max(axis=-1, keepdims=True)
    expected = q * (gamma(scores.shape[-1] + 8) + 4 * (SINGLE + DOUBLE) * size)
    found = bounds.replay(didb, name, [scores], SINGLE)
    np.testing.assert_allclose(found, bounded.SECOND_ORDER * expected, rtol=1e-9)
    np.testing.assert_allclose(bounds.Free(didb, SINGLE)[name], 64 * SINGLE * q, rtol=1e-9)


def test_free_tau_of_probabilities_with_large_scores():
    """exp turns what the scores are off by, 8 u |s| and more, into a share of q."""
    net = networks.make(networks.small(similarity="haar"), 3)
    params = networks.with_values(net.params, {"attn.band_weight": 30.0})
    ref = bounds.reference(net.model, params, net.images)
    scores, q = (ref.steps[f"blocks.0.attn.{t}"].value for t in ("scores", "prob.z"))
    size = np.abs(scores) + np.abs(scores).max(axis=-1, keepdims=True)
    found = bounds.Free(ref, SINGLE)["blocks.0.attn.prob.bit"]
    assert (8 * size > 2 * 64).any()
    assert (found >= np.maximum(64, 8 * size) * SINGLE * q).all()


def test_what_a_norm_makes_of_an_error_arrives():
    """A context of equal numbers: its mean is off by some u, LayerNorm divides that by sqrt(eps).

    The terms of z know nothing of it: 64 u times their sum is less than float32 is off by.
    """
    config = networks.swin(window=1, dim=6, depth=(1, 1), image_size=(4, 8), norm_eps=1e-6)
    net = networks.make(config, 0, np.float32, batch=34)
    exact = bounds.reference(net.model, net.params, net.images)
    single = record.trace(net.model, net.params, net.images)
    name = "blocks.0.attn.proj.z"
    error = np.abs(single[name].value - exact.steps[name].value)
    x, move = exact.steps["blocks.0.attn.out"].value, exact.params["blocks.0.attn.proj.move"]
    terms = (np.abs(x) + np.abs(move)).max(axis=-1, keepdims=True)
    context = exact.steps["blocks.0.attn.context"].value  # (B nW, heads, 1, d)
    same = (np.ptp(context, axis=(1, 2, 3)) == 0).reshape(x.shape[:2])
    assert (error > 64 * SINGLE * terms)[same].any()
    found = bounds.Free(exact, SINGLE)[name]
    assert (error <= found).all()
    # no more than it has to: sqrt(1 / eps) = 1000, and the noise of a context is 8 u
    assert found[same].max() < 1000 * 64 * SINGLE * terms.max()


def narrow_examples():
    """Rows of two channels that hardly differ, before a merge and the levels of a pyramid."""
    shape = {"window": 1, "depth": (1, 1), "image_size": (4, 8), "dim": 2, "heads": 1}
    for fields in ({}, {"block": "real"}, {"block": "real", "decoder": "fpn"}):
        yield networks.swin(**{**shape, **fields})


def worst_in_free(net: networks.Network) -> float:
    """Largest error of float32, over its bound, in all taps and gradients before a flip."""
    exact = reference(net)
    free = bounds.Free(exact, SINGLE + DOUBLE)
    single = record.trace(net.model, net.params, net.images, net.dlogits)
    worst, wrong = 0.0, set()
    for name, step in exact.steps.items():
        found, kind = single[name].value, record.kind_of(step.value)
        if not wrong.isdisjoint(step.inputs) or (kind == "bit" and (found != step.value).any()):
            wrong.add(name)
        elif kind == "real" and name != record.INPUT:
            worst = max(worst, float((np.abs(found - step.value) / free[name]).max()))
    return worst


@given(st.one_of(networks.narrow(), st.sampled_from(list(narrow_examples()))), strategies.seeds())
def test_free_margin_leaves_room_in_narrow_networks(config, seed):
    """Errors that LayerNorms enlarge a thousandfold and more, and gradients of them."""
    worst = worst_in_free(networks.make(config, seed, np.float32, batch=16))
    oracles.note("golden: free, narrow networks, error / bound", worst, f"seed {seed}")
    assert worst < 1


def test_whole_numbers_have_no_room(didb):
    assert not bounds.Free(didb, SINGLE)["blocks.1.mlp.up.int"].max() > bounds.UNDERFLOW


# Narrow


@pytest.mark.parametrize("name", ["didb-pool-cls", "react-binarize-none", "deit-pool-mean"])
def test_an_error_of_a_thousandth_is_beyond_them(name):
    """In every tap whose values are not the noise of a gradient that is 0."""
    ref = reference(networks.make(COVERING[name], 2))
    noise = 1e-9 * max(np.abs(s.value).max() for n, s in ref.steps.items() if n.startswith("grads"))
    free = bounds.Free(ref, SINGLE)
    for tap in reals(ref.steps):
        share = 2e-2 if "param" in tap else 1e-3  # a sum over all tokens may cancel
        error = share * np.abs(ref.steps[tap].value)
        if error.max() < share * noise:
            continue
        assert (error > bounds.replay(ref, tap, inputs(ref.steps, tap), SINGLE)).any(), tap
        assert (error > free[tap]).any(), tap


# free_margin


def measured(net: networks.Network) -> float:
    """Largest error of float32 at a z, in units of the bound at a margin of 1, before any flip."""
    exact = bounds.reference(net.model, net.params, net.images)
    unit = bounds.Free(exact, SINGLE, margin=1)
    single = record.trace(net.model, net.params, net.images)
    worst = 0.0
    for name, step in exact.steps.items():
        if step.value.dtype != bool:
            continue
        z = step.z
        error = np.abs(single[z].value - exact.steps[z].value)
        worst = max(worst, float((error / unit[name]).max()))
        if (single[name].value != step.value).any():
            break
    return worst


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["didb_micro", "react_micro", "didb_cifar"])
def test_free_margin_leaves_room(name, seed):
    """Measured anew: between an unused margin and a tight one, at full depth."""
    config = create_model(name).config
    worst = measured(networks.make(config, seed, np.float32, batch=1))
    oracles.note("golden: free_margin, largest ratio measured", worst, f"{name}, seed {seed}")
    assert 1 < worst < bounds.FREE_MARGIN


# The arithmetic


def orders(rng: np.random.Generator, terms: np.ndarray):
    """float32 sums of the last axis: forward, backward, shuffled, pairwise, by size."""
    shuffled = rng.permutation(terms, axis=-1)
    for way in (terms, terms[..., ::-1], shuffled, np.sort(terms, axis=-1)):
        yield np.add.accumulate(way, axis=-1, dtype=np.float32)[..., -1]
    yield terms.sum(axis=-1, dtype=np.float32)


@given(strategies.sizes(2, high=300), strategies.seeds())
def test_sums_in_any_order(sizes, seed):
    rng = np.random.default_rng(seed)
    terms = (rng.standard_normal(sizes) * 10.0 ** rng.integers(-3, 4, sizes)).astype(np.float32)
    exact = bounded.Arithmetic(SINGLE).value(terms.astype(np.float64))
    for total in orders(rng, terms):
        found = exact.sum(axis=-1)
        assert (np.abs(total - found.value) <= found.error()).all()


@given(strategies.sizes(3, high=90), strategies.seeds())
def test_products_in_any_order(sizes, seed):
    rows, K, columns = sizes
    rng = np.random.default_rng(seed)
    a, b = (rng.standard_normal(s).astype(np.float32) for s in ((rows, K), (K, columns)))
    arithmetic = bounded.Arithmetic(SINGLE)
    found = arithmetic.value(a.astype(np.float64)) @ arithmetic.value(b.astype(np.float64))
    for total in orders(rng, a[:, None] * b.T):
        assert (np.abs(total - found.value) <= found.error()).all()


def test_a_chain_of_additions_may_be_reordered():
    """((a + b) + c) + d in the reference; a + (b + (c + d)) in a port."""
    terms = np.array([1.0, 1e-3, 3e5, -3e5])
    a, b, c, d = map(np.float32, terms)
    arithmetic = bounded.Arithmetic(SINGLE)
    x = [arithmetic.value(np.array(float(t))) for t in (a, b, c, d)]
    found = ((x[0] + x[1]) + x[2]) + x[3]
    for total in (((a + b) + c) + d, a + (b + (c + d)), (a + c) + (b + d)):
        assert abs(float(total) - found.value) <= found.error()
    assert found.error() == pytest.approx(3 * SINGLE * np.abs(terms).sum(), rel=1e-4)


@given(strategies.seeds(), st.sampled_from(["exp", "sqrt", "square", "divide", "erf", "multiply"]))
def test_what_is_not_linear(seed, name):
    """Inputs off by their error and the operation in float32 stay within the result's error."""
    from scipy.special import erf

    rng = np.random.default_rng(seed)
    arithmetic = bounded.Arithmetic(SINGLE)
    x, y = rng.uniform(0.5, 3, 50), rng.uniform(0.5, 3, 50)
    e, f = 1e-4 * rng.random(50), 1e-4 * rng.random(50)
    a, b = arithmetic.value(x), arithmetic.value(y)
    a.inherited, b.inherited = e, f
    function = {"erf": erf}.get(name) or getattr(np, name)
    two = name in ("divide", "multiply")
    result = function(a, b) if two else function(a)
    for signs in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
        moved = [v + s * g for v, s, g in zip((x, y), signs, (e, f))]
        off = function(*(m.astype(np.float32) for m in moved[: 1 + two]))
        assert (np.abs(off - result.value) <= bounded.SECOND_ORDER * result.error()).all()


def test_a_comparison_is_open_where_rounding_decides():
    arithmetic = bounded.Arithmetic(SINGLE)
    exact = arithmetic.value(np.array([-1.0, 0.0, 1.0]))
    assert (exact > 0.0).error().tolist() == [0, 0, 0]  # nothing rounds here
    near = arithmetic.value(np.array([3.0, 3.0])) + np.array([-3.0, -2.9])
    assert (near > 0.0).error().tolist() == [1, 0]
    chosen = np.where(near > 0.0, arithmetic.value(np.full(2, 5.0)), 1.0)
    assert chosen.error()[0] >= 4 and chosen.error()[1] < 1e-6


def test_gamma():
    assert bounded.Arithmetic(0.01).gamma(10) == pytest.approx(0.1 / 0.9)
    assert math.isclose(bounded.Arithmetic(SINGLE).gamma(1), 2**-24, rel_tol=1e-6)


@pytest.mark.parametrize("refused", [
    lambda x: np.linalg.norm(x), lambda x: np.tan(x), lambda x: np.add.reduce(x),
    lambda x: np.add(1.0, x, where=False),
])  # fmt: skip
def test_what_it_does_not_know_it_refuses(refused):
    """A wrong bound would be worse than none."""
    with pytest.raises(TypeError):
        refused(bounded.Arithmetic(SINGLE).value(np.ones(3)))


def test_an_array_that_would_lose_the_error_is_not_written_to():
    plain = np.zeros(3)
    with pytest.raises((TypeError, ValueError)):
        plain += bounded.Arithmetic(SINGLE).value(np.ones(3))


def test_parameters_are_cast_and_constants_are_not():
    arithmetic = bounded.Arithmetic(SINGLE)
    x = arithmetic.value(np.ones(2))
    assert (x * 0.5).roundings == 1 and (x * math.sqrt(5)).roundings == 2
    assert (x * np.full(2, 0.5)).roundings == 2 and (x * np.float64(0.5)).roundings == 2
