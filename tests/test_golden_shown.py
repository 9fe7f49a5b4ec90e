"""Each of these mistakes of a port is shown by a bundle in git, and right ports pass them all.

They are mistakes that ordinary networks hide: no sum leaves 8 bits, no alpha is negative, no row of
a LayerNorm lies far from 0, there is one image. The port computes in float32, as ports do.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from refimpl import engine, golden
from refimpl.golden import candidate, diagnose, record, search, store
from refimpl.kernels import backend
from refimpl.models import Config, create_model
from tests import c_port, make_golden_bundles
from tests.float32_ports import FLOAT, Flat, Other, taps


@functools.cache
def read(name: str) -> golden.Bundle:
    return golden.read(make_golden_bundles.FOLDER / name)


class Mistake(NamedTuple):
    bundle: str  # that shows it
    tap: str  # where it shows first
    pattern: str  # of the taps that are computed wrongly
    wrong: Callable[..., np.ndarray]  # see `Other`


def port(bundle: golden.Bundle, mistake: Mistake | None) -> dict[str, np.ndarray]:
    return taps(bundle, mistake and Other(mistake.pattern, mistake.wrong))


def one_pass(name: str, params: Flat, right: Callable, x: np.ndarray, *rest) -> np.ndarray:
    """The variance as a difference of two large numbers."""
    path = name.removesuffix(".out")
    mean = x.mean(-1, keepdims=True)
    variance = np.square(x).mean(-1, keepdims=True) - np.square(mean)
    normed = (x - mean) / np.sqrt(np.maximum(variance, 0) + FLOAT(1e-5))
    return normed * params[f"{path}.weight"] + params[f"{path}.bias"]


def size_of_alpha(name: str, params: Flat, right: Callable, *inputs) -> np.ndarray:
    """|alpha| in the place of max(alpha, 1e-5)."""
    alpha = params[name.removesuffix("prob.z") + "alpha"]
    q = right(*inputs)
    return q * np.maximum(alpha, FLOAT(1e-5)) / np.maximum(np.abs(alpha), FLOAT(1e-5))


def clamped(name: str, params: Flat, right: Callable, *inputs) -> np.ndarray:
    """A product in 8 bits, saturating."""
    return np.clip(right(*inputs), -128, 127)


def wrapped(name: str, params: Flat, right: Callable, bit: np.ndarray, weight: np.ndarray):
    """A popcount of different bits that an int8 cannot hold."""
    length = bit.shape[-1]
    different = (length - right(bit, weight)) // 2
    return (length - 2 * different.astype(np.int8).astype(np.int32)).astype(np.int32)


def unsigned(name: str, params: Flat, right: Callable, bit: np.ndarray, weight: np.ndarray):
    """The same in a uint8: 256 is 0."""
    length = bit.shape[-1]
    different = (length - right(bit, weight)) // 2
    return (length - 2 * different.astype(np.uint8).astype(np.int32)).astype(np.int32)


def first_image(name: str, params: Flat, right: Callable, *inputs) -> np.ndarray:
    """Every image reads what belongs to the first one."""
    return right(*(np.broadcast_to(x[:1], x.shape) for x in inputs))


def keys_of_the_first(name: str, params: Flat, right: Callable, q, k) -> np.ndarray:
    """Queries of their own, keys of the first image."""
    return right(q, np.broadcast_to(k[:1], k.shape))


def unclipped(name: str, params: Flat, right: Callable, dlinear, bit) -> np.ndarray:
    """The gradient of a weight passes where |Wc| > 1."""
    rows = dlinear.reshape(-1, dlinear.shape[-1])
    signs = np.where(bit, FLOAT(1), FLOAT(-1)).reshape(-1, bit.shape[-1])
    dused = rows.T @ signs
    return dused - dused.mean(1, keepdims=True)


WEIGHTS = r"grads/param\..*\.(q|k|v|q_low|k_low|q_high|k_high|proj|up|down)\.weight"
INT = r".*\.(q|k|v|proj|up|down)\.int"
CONTEXT = r".*\.context\.int"
MISTAKES = {
    "one-pass variance": Mistake(
        "small_wide", "blocks.0.norm1.out", r"blocks\.0\.norm[12]\.out|norm\.out", one_pass
    ),
    "abs(alpha)": Mistake("small_batch", "blocks.0.attn.prob.z", r".*\.prob\.z", size_of_alpha),
    "products clamped to int8": Mistake("small_wide", "blocks.0.mlp.down.int", INT, clamped),
    "popcount wraps at 128": Mistake("small_wide", "blocks.0.mlp.down.int", INT, wrapped),
    "popcount wraps at 256": Mistake("small_wide", "blocks.0.mlp.down.int", INT, unsigned),
    "scores clamped to int8": Mistake(
        "small_wide", "blocks.0.attn.scores.int", r".*\.scores\.int", clamped
    ),
    "context clamped to int8": Mistake(
        "small_long", "blocks.0.attn.context.int", CONTEXT, clamped
    ),
    "image b reads image 0": Mistake(
        "small_batch", "blocks.0.norm1.out", r"blocks\.0\.norm1\.out", first_image
    ),
    "image b reads the keys of image 0": Mistake(
        "small_batch", "blocks.0.attn.scores_low.int", r".*\.scores_low\.int", keys_of_the_first
    ),
    "weight gradients not clipped": Mistake(
        "small_tie_free", "grads/param.blocks.1.mlp.down.weight", WEIGHTS, unclipped
    ),
    "weight gradients not clipped, three images": Mistake(
        "small_batch", "grads/param.blocks.0.mlp.down.weight", WEIGHTS, unclipped
    ),
}


@pytest.mark.parametrize("mode", ["free", "replay"])
@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_shown(name, mode):
    mistake = MISTAKES[name]
    bundle = read(mistake.bundle)
    found = golden.compare(bundle, port(bundle, mistake), mode=mode)
    assert found.outcome == "FAIL"
    assert (found.first.name, found.first.verdict) == (mistake.tap, "FAIL")


def test_a_cause_is_looked_for_where_values_have_no_tap():
    """Of real blocks queries and keys are none; a mistake that would read them is no cause."""
    bundle = read("small_deit")
    other = Other(r"grads/blocks\.1\.attn\.qkv\.out", lambda name, params, right, *x: -right(*x))
    found = golden.compare(bundle, taps(bundle, other), mode="replay")
    assert found.first.name == "grads/blocks.1.attn.qkv.out"
    causes = diagnose.causes(found, bundle, found.taps)
    assert set(causes) <= {verdict.name for verdict in found.verdicts}


FORWARD = [name for name, mistake in MISTAKES.items() if not mistake.tap.startswith("grads")]


@pytest.mark.parametrize("name", FORWARD)
def test_bits_whole_numbers_and_logits_show_it(name):
    """What a port is told to dump first [SPEC 8.3]; the first divergence is not far behind."""
    bundle, dump = read(MISTAKES[name].bundle), port(read(MISTAKES[name].bundle), MISTAKES[name])
    kinds = {tap: step.kind for tap, step in bundle.reference.steps.items()}
    few = {n: v for n, v in dump.items() if kinds[n] in ("bit", "int") or n == "logits"}
    found = golden.compare(bundle, few, mode="replay")
    assert found.outcome == "FAIL"
    order = list(bundle.reference.steps)
    assert order.index(found.first.name) >= order.index(MISTAKES[name].tap)
    right = port(bundle, None)
    assert golden.compare(bundle, {n: right[n] for n in few}, mode="replay").outcome != "FAIL"


@pytest.mark.parametrize("name", sorted({m.bundle for m in MISTAKES.values()}))
@pytest.mark.parametrize("mode", ["free", "replay"])
def test_the_same_port_without_a_mistake_passes(name, mode):
    bundle = read(name)
    assert golden.compare(bundle, port(bundle, None), mode=mode).passed


def test_a_drawn_bundle_shows_unclipped_weight_gradients(tmp_path):
    """As `golden make --model didb_micro --random 7 --grads` draws its parameters."""
    model = create_model("didb_micro", depth=1)
    params, images = search.draw(model.config, 7)
    patterns = ["io", "grads/param.blocks.0.mlp.*"]
    store.make(tmp_path / "b", model, params, images, grads=True, taps=patterns)
    bundle, mistake = golden.read(tmp_path / "b"), MISTAKES["weight gradients not clipped"]
    dump = {n: v for n, v in port(bundle, mistake).items() if not n.endswith("attn.prob.bit")}
    found = golden.compare(bundle, dump, mode="replay", fail_fast=True)
    assert found.first.name == "grads/param.blocks.0.mlp.down.weight"


# --- what makes them show -------------------------------------------------------------------------


def test_the_wide_bundle_has_what_it_is_for():
    steps = read("small_wide").reference.steps
    bit, weight = (steps[f"blocks.0.mlp.down.{n}"].value for n in ("bit", "weight.bit"))
    assert bit.shape[-1] == 256
    assert bit[0, 1].all() and not bit[0, 4].any() and weight[3].all()
    product = steps["blocks.0.mlp.down.int"].value
    assert product[0, 1, 3] == 256 and product[0, 4, 3] == -256
    scores = steps["blocks.0.attn.scores.int"].value
    assert scores[0, 0, 1, 1] == 128 and scores[0, 0, 1, 4] == -128
    x = steps["tokens"].value[0]
    for row in (2, 5):
        assert abs(x[row].mean()) > 100 * x[row].std() > 0


def test_the_long_bundle_has_what_it_is_for():
    steps = read("small_long").reference.steps
    bit, context = (steps[f"blocks.0.attn.{n}"].value for n in ("prob.bit", "context.int"))
    ones = bit.sum(axis=-1)
    assert ones.max() > 255 and ones.min() < 180
    assert context.max() > 127 and context.min() < -128


def test_the_batch_has_what_it_is_for():
    bundle = read("small_batch")
    assert len(bundle.input) == 3 and bundle.params["blocks"]["0"]["attn"]["alpha"].min() < -0.1
    config = bundle.model.config
    assert (config.haar_mode, config.pool, config.ste) == ("periodic", "mean", "clip")
    for name, step in bundle.reference.steps.items():
        if step.value.ndim > 1 and not name.startswith("grads/param") and "weight" not in name:
            assert len(step.value) == 3
    first, second, third = bundle.value("blocks.0.out")
    assert not np.array_equal(first, second) and not np.array_equal(second, third)
    inner = bundle.reference.steps["blocks.0.mlp.up.weight.z"].value
    assert (np.abs(inner) > 1).mean() > 0.05


def test_the_windows_are_shifted_and_merged():
    bundle = read("small_swin")
    config = bundle.model.config
    assert [config.stage_of(i).shift for i in range(3)] == [0, 1, 0]
    assert [config.stage_of(i).grid for i in range(3)] == [(4, 8), (4, 8), (2, 4)]
    assert len(bundle.input) == 2
    wanted = {"merges.0.proj.out", "grads/blocks.1.attn.prob", "blocks.1.attn.scores", "logits"}
    assert wanted <= set(bundle.entries)


# --- right ports ----------------------------------------------------------------------------------


def twins(bundle: golden.Bundle) -> dict[str, np.ndarray]:
    """Numba's operations, forward and backward."""
    found: dict[str, np.ndarray] = {}

    def tap(name: str, value: np.ndarray, op: object, inputs: object) -> None:
        found[name] = value.copy()

    params, images = record.cast(bundle.params, FLOAT), bundle.input.astype(FLOAT)
    _, cache = bundle.model.forward(params, images, tap=tap, backend=backend)
    if bundle.manifest["grads"]:
        bundle.model.backward(bundle.value("grads/logits").astype(FLOAT), cache, tap=tap)
    return found


def engine_taps(bundle: golden.Bundle) -> dict[str, np.ndarray]:
    built = engine.compile(bundle.model, record.cast(bundle.params, FLOAT))
    return built.taps(bundle.input.astype(FLOAT))


@pytest.mark.parametrize("mode", ["free", "replay"])
@pytest.mark.parametrize("name", make_golden_bundles.BUNDLES)
def test_the_twins_and_the_engine_pass(name, mode):
    bundle = read(name)
    assert golden.compare(bundle, twins(bundle), mode=mode).passed
    if bundle.model.config.block == "binary":  # the engine runs no others
        assert golden.compare(bundle, engine_taps(bundle), mode=mode).passed


def c_blocks() -> list[tuple[str, int]]:
    """Blocks that the port in C computes: binary ones without windows; for others see its test."""
    found = []
    for name in make_golden_bundles.BUNDLES:
        config: Config = read(name).model.config
        if name.startswith("small") and config.block == "binary" and not config.window:
            found += [(name, block) for block in range(config.num_blocks)]
    return found


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    return c_port.compile(c_port.SOURCE, tmp_path_factory.mktemp("cc") / "didb_block")


@c_port.needs_cc
@pytest.mark.parametrize(("name", "block"), c_blocks())
def test_the_port_in_c_passes(program, tmp_path, name, block):
    folder = c_port.port(program, read(name).path, block, tmp_path / "out")
    found = golden.compare(read(name), candidate.read(folder), mode="replay")
    judged = [v for v in found.verdicts if v.name.startswith(f"blocks.{block}.")]
    assert judged and not [v for v in judged if v.verdict in ("FAIL", "MISSING")]
    assert found.outcome != "FAIL"
