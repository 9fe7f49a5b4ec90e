"""The packed engine is the same network: tap by tap, image by image, from any thread.

Oracle: the NumPy model. In float32 two right programs may turn a sign over, so whole networks are
judged by replay [SPEC 8.2]: every operation on the engine's own inputs, no hard flip.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given

import refimpl
from refimpl import engine, golden
from refimpl.conventions import ConfigError, DtypeError, NonFiniteError, ShapeError
from refimpl.engine import run
from refimpl.golden import store
from refimpl.models import create_model, files, flatten, unflatten
from refimpl.models.packing import pack_rows
from tests import networks, oracles, strategies

FULL = {"block": "binary", "binarize": "full"}
BINARY = networks.configs(**FULL) | networks.swins(**FULL)
COVERING = {name: c for name, c in networks.covering().items() if c.block == "binary"}
COVERING = {name: c for name, c in COVERING.items() if c.binarize == "full"}
COVERING |= {
    f"{name}-swin-{i}": networks.swin(**fields, **sizes)
    for name, fields in (("didb", networks.DIDB), ("react", {}))
    for i, sizes in enumerate(networks.SWINS)
}
UNCOMPILED = [
    networks.small(depth=1, **networks.DIDB),
    networks.swin(depth=(1, 1), image_size=(8, 8), **networks.DIDB),
    networks.swin(depth=(1, 1), image_size=(8, 16), window=2, decoder="fpn"),
]
SHELLS = ["tokens", "windows", "pyramid"]
DIDB = [
    networks.small(**networks.DIDB),
    networks.swin(**networks.DIDB),
    networks.swin(**networks.DIDB, depth=(1, 2), decoder="fpn"),
]
every_shell = pytest.mark.parametrize("config", DIDB, ids=SHELLS)


def network(config, seed: int = 0, **options) -> networks.Network:
    return networks.make(config, seed, np.float32, **options)


def taps_of(network: networks.Network) -> dict[str, np.ndarray]:
    seen = {}
    network.model.forward(
        network.params,
        network.images,
        tap=lambda name, value, op, inputs: seen.update({name: value}),
    )
    return seen


def replay(network: networks.Network, folder: Path) -> golden.Comparison:
    """The engine's taps of a network against its reference."""
    found = engine.compile(network.model, network.params).taps(network.images)
    packed = {name: pack_rows(v) if v.dtype == bool else v for name, v in found.items()}
    store.make(folder, network.model, network.params, network.images, taps="io")
    return golden.compare(golden.read(folder), packed, mode="replay")


@pytest.mark.parametrize("name", COVERING)
def test_every_reading_in_replay(name: str, tmp_path: Path) -> None:
    compared = replay(network(COVERING[name]), tmp_path / "bundle")
    assert compared.passed, compared.first
    judged = [v for v in compared.verdicts if v.verdict not in ("MISSING", "UNJUDGED")]
    assert {v.kind for v in judged} == {"bit", "int", "real"}
    # what only latent weights have is not in a packed network
    missing = {v.name for v in compared.verdicts} - {v.name for v in judged}
    assert all(name.endswith(".weight.z") for name in missing)


@pytest.mark.parametrize("family", ["didb", "react"])
def test_a_pyramid_of_four_levels_in_replay(family: str, tmp_path: Path) -> None:
    sizes = {"image_size": (32, 96), "window": 1, "depth": [1] * 4, "num_classes": 17}
    config = create_model(f"segmenter_{family}_swin_tiny", **sizes, dim=24).config
    compared = replay(network(config, batch=1), tmp_path / "bundle")
    assert compared.passed, compared.first


@given(networks.pyramids(**FULL), strategies.seeds())
def test_drawn_pyramids_in_replay(tmp_path_factory, config, seed) -> None:
    compared = replay(network(config, seed, batch=1), tmp_path_factory.mktemp("drawn") / "bundle")
    assert compared.passed, compared.first
    judged = {v.name for v in compared.verdicts if v.verdict not in ("MISSING", "UNJUDGED")}
    levels = {f"decoder.{s}.{what}.out" for s in range(len(config.depths))
              for what in ("lateral", "smooth")}  # fmt: skip
    assert {*levels, "decoder.0.top", "decoder.sum", "decoder.gelu.out", "head.out"} <= judged


@given(BINARY, strategies.seeds())
def test_drawn_networks_in_replay(tmp_path_factory, config, seed) -> None:
    compared = replay(network(config, seed), tmp_path_factory.mktemp("drawn") / "bundle")
    assert compared.passed, compared.first


@given(BINARY | networks.pyramids(**FULL), strategies.seeds())
def test_bits_whole_numbers_and_logits(config, seed) -> None:
    """Away from thresholds the engine is not only right but equal: bit for bit, up to rounding."""
    drawn = network(config, seed)
    built = engine.compile(drawn.model, drawn.params)
    found, expected = built.taps(drawn.images), taps_of(drawn)
    exact = [n for n, v in found.items() if v.dtype != np.float32]
    if all(np.array_equal(found[n], expected[n]) for n in exact):
        for name in found.keys() - exact:
            value, scale = found[name], np.abs(expected[name]).max(initial=1e-6)
            assert value.shape == expected[name].shape, name
            oracles.note("engine, float32 taps", np.abs(value - expected[name]).max() / scale, name)
            np.testing.assert_allclose(value, expected[name], rtol=0, atol=1e-4 * scale)
    np.testing.assert_array_equal(found["logits"], built(drawn.images))


@every_shell
def test_taps_have_the_models_names_shapes_and_types(config) -> None:
    drawn = network(config)
    found = engine.compile(drawn.model, drawn.params).taps(drawn.images)
    expected = {n: v for n, v in taps_of(drawn).items() if not n.endswith(".weight.z")}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name].shape, found[name].dtype) == (value.shape, value.dtype), name


@every_shell
def test_scores_far_apart(config) -> None:
    """Beyond what a table of exponentials in float32 can hold."""
    drawn = network(config)
    params = networks.with_values(drawn.params, {"band_weight": 90.0})
    expected = drawn.model.predict(params, drawn.images)
    found = engine.compile(drawn.model, params)(drawn.images)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@every_shell
def test_scores_beyond_float32(config) -> None:
    """The original says so when they enter the softmax; nothing is answered instead."""
    drawn = network(config)
    params = networks.with_values(drawn.params, {"band_weight": 3e38})
    with (
        np.errstate(over="ignore", invalid="ignore"),
        pytest.raises(NonFiniteError, match=r"^blocks\.0\.attn: softmax"),
    ):
        drawn.model.predict(params, drawn.images)
    with pytest.raises(NonFiniteError, match=r"^blocks\.0\.attn: scores of up to"):
        engine.compile(drawn.model, params)


@every_shell
def test_a_batch_gives_the_answers_of_its_images(config) -> None:
    drawn = network(config, batch=13)
    built = engine.compile(drawn.model, drawn.params)
    one_by_one = np.concatenate([built(image[None]) for image in drawn.images])
    np.testing.assert_array_equal(built(drawn.images), one_by_one)
    strided = np.ascontiguousarray(drawn.images.transpose(0, 3, 2, 1)).transpose(0, 3, 2, 1)
    np.testing.assert_array_equal(built(strided), one_by_one)


def test_every_kind_of_array_runs_the_same_machine_code(tmp_path: Path) -> None:
    """A new type of image would compile the whole forward pass again."""
    drawn = network(networks.small(**networks.DIDB), batch=2)
    built, images = engine.compile(drawn.model, drawn.params), drawn.images
    expected, compiled = built(images), len(run.COMPILED[None].signatures)
    np.save(tmp_path / "images.npy", images)
    odd = np.frombuffer(b"x" + images.tobytes(), np.float32, offset=1).reshape(images.shape)
    assert not odd.flags.aligned
    for same in (
        np.frombuffer(images.tobytes(), np.float32).reshape(images.shape),
        np.load(tmp_path / "images.npy", mmap_mode="r"),
        np.load(tmp_path / "images.npy", mmap_mode="c"),
        np.ascontiguousarray(images.transpose(0, 3, 2, 1)).transpose(0, 3, 2, 1),
        odd,
    ):
        np.testing.assert_array_equal(built(same), expected)
    repeated = np.broadcast_to(images[0], images.shape)
    np.testing.assert_array_equal(built(repeated), expected[[0, 0]])
    assert len(run.COMPILED[None].signatures) == compiled


@every_shell
def test_a_clock_changes_nothing_and_counts_all_of_the_time(config) -> None:
    drawn = network(config, batch=1)
    built = engine.compile(drawn.model, drawn.params)
    expected = built(drawn.images)
    built.laps(drawn.images[0])
    begin = time.perf_counter()
    laps = built.laps(drawn.images[0])
    assert 0 < sum(laps.values()) <= time.perf_counter() - begin
    for kind in ("embedding", "layer norm", "bands", "pack", "product", "softmax", "head"):
        assert laps[kind] > 0, kind
    assert (laps["windows"] > 0) == (config.window > 0)
    np.testing.assert_array_equal(built(drawn.images), expected)


@every_shell
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_number_of_threads_changes_nothing(config, threads: int) -> None:
    drawn = network(config, batch=11)
    expected = engine.compile(drawn.model, drawn.params)(drawn.images)
    built = engine.compile(drawn.model, drawn.params, threads=threads)
    np.testing.assert_array_equal(built(drawn.images), expected)


@every_shell
def test_several_threads_may_ask_one_engine(config) -> None:
    drawn = network(config, batch=6)
    built = engine.compile(drawn.model, drawn.params)
    expected, wrong = built(drawn.images), []

    def ask() -> None:
        for _ in range(20):
            if not np.array_equal(built(drawn.images), expected):
                wrong.append(threading.current_thread().name)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@every_shell
@pytest.mark.parametrize("floats", ["float32", "float16"])
def test_a_packed_file(floats: str, config, tmp_path: Path) -> None:
    drawn = network(config)
    path = tmp_path / "packed.safetensors"
    files.save_packed(path, drawn.model, drawn.params, floats=floats)
    found, expected = engine.load(path)(drawn.images), engine.compile(*drawn[:2])(drawn.images)
    if floats == "float32":
        np.testing.assert_array_equal(found, expected)
    else:
        assert 0 < np.abs(found - expected).max() < np.abs(expected).max()


def test_shipped_weights_by_name() -> None:
    model, params = refimpl.load("didb_micro_mnist")
    images = np.random.default_rng(0).random((2, 1, 28, 28), np.float32)
    by_name, by_hand = engine.load("didb_micro_mnist"), engine.compile(model, params)
    np.testing.assert_array_equal(by_name(images), by_hand(images))


def test_double_precision_weights_are_rounded() -> None:
    drawn = networks.make(networks.small(**networks.DIDB), 0)
    single = networks.as_type(drawn, np.float32)
    found = engine.compile(drawn.model, drawn.params)(single.images)
    expected = engine.compile(single.model, single.params)(single.images)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (np.zeros((2, 3, 4, 7), np.float32), ShapeError, r"expected \(any, 3, 4, 6\)"),
        (np.zeros((3, 4, 6), np.float32), ShapeError, r"images has shape \(3, 4, 6\)"),
        (np.zeros((0, 3, 4, 6), np.float32), ShapeError, "expected at least one"),
        (np.zeros((1, 3, 4, 6)), DtypeError, "images is float64; expected float32"),
        (np.zeros((1, 3, 4, 6)).tolist(), DtypeError, "images is list; expected float32"),
        (np.full((1, 3, 4, 6), np.nan, np.float32), NonFiniteError, "blocks.0.attn.q_low"),
        (np.full((1, 3, 4, 6), np.inf, np.float32), NonFiniteError, "blocks.0.attn.q_low"),
    ],
)
def test_images_that_are_refused(images, error, message) -> None:
    drawn = network(networks.small(**networks.DIDB))
    built = engine.compile(drawn.model, drawn.params)
    for ask in (built, built.taps):
        with pytest.raises(error, match=message):
            ask(images)


@pytest.mark.parametrize(
    ("paths", "layer"),
    [
        (["blocks.1.norm1.weight"], "blocks.1.attn.q_low"),
        (["blocks.1.attn.v.rprelu.shift_out", "blocks.1.attn.v_move"], "blocks.1.attn.v"),
        (["merges.0.norm.weight"], "merges.0.proj"),
        (["blocks.3.norm2.weight"], "blocks.3.mlp.up"),
    ],
)
def test_the_layer_of_an_overflow_with_windows(paths, layer) -> None:
    drawn = network(networks.swin(**networks.DIDB))
    flat = flatten(drawn.params)
    flat |= {path: np.full_like(flat[path], 3e38) for path in paths}
    built = engine.compile(drawn.model, unflatten(flat))
    for ask in (built, built.taps):
        with pytest.raises(NonFiniteError, match=rf"{layer}: NaN or infinity"):
            ask(drawn.images)


@every_shell
def test_nothing_of_an_image_reaches_the_next(config) -> None:
    drawn = network(config)
    built = engine.compile(drawn.model, drawn.params)
    expected = built(drawn.images)
    for image in (1e30 * drawn.images[:1], np.full_like(drawn.images[:1], np.nan)):
        with contextlib.suppress(NonFiniteError):
            built(image)
        np.testing.assert_array_equal(built(drawn.images), expected)


def test_one_bad_image_of_a_batch_is_an_error() -> None:
    drawn = network(networks.small(**networks.DIDB), batch=9)
    images = drawn.images.copy()
    images[7, 0, 1, 1] = np.nan
    with pytest.raises(NonFiniteError, match="NaN or infinity entered a sign"):
        engine.compile(drawn.model, drawn.params, threads=3)(images)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"block": "real"}, "found real blocks; expected a binary network"),
        ({"binarize": "activations"}, "found binarize='activations'; expected a binary network"),
        ({"binarize": "none"}, "found binarize='none'; expected a binary network"),
    ],
)
def test_networks_that_are_refused(fields, message, tmp_path: Path) -> None:
    drawn = network(networks.small(**fields))
    with pytest.raises(ConfigError, match=message):
        engine.compile(drawn.model, drawn.params)
    path = tmp_path / "model.safetensors"
    files.save_packed(path, drawn.model, drawn.params)
    with pytest.raises(ConfigError, match=message):
        engine.load(path)


@pytest.mark.parametrize("which", range(len(SHELLS)), ids=SHELLS)
def test_without_compilation(which: int) -> None:
    """The same kernels as plain Python, on a small network."""
    code = (
        "import sys; from refimpl import engine; from tests import networks, test_engine;"
        "drawn = test_engine.network(test_engine.UNCOMPILED[int(sys.argv[1])]);"
        "found = engine.compile(drawn.model, drawn.params)(drawn.images);"
        "sys.stdout.buffer.write(found.tobytes())"
    )
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    command = [sys.executable, "-c", code, str(which)]
    done = subprocess.run(command, capture_output=True, env=environment)
    drawn = network(UNCOMPILED[which])
    expected = engine.compile(drawn.model, drawn.params)(drawn.images)
    assert done.returncode == 0, done.stderr.decode()
    np.testing.assert_array_equal(np.frombuffer(done.stdout, np.float32), expected.reshape(-1))


def test_parameters_are_left_alone() -> None:
    drawn = network(networks.small(**networks.DIDB))
    before = {name: value.copy() for name, value in flatten(drawn.params).items()}
    engine.compile(drawn.model, drawn.params)(drawn.images)
    for name, value in flatten(drawn.params).items():
        np.testing.assert_array_equal(value, before[name])
