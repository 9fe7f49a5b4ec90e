"""The live page: its engine is a port like any other, its pixels are those of the model."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import refimpl
from refimpl import golden
from refimpl.conventions import ConfigError
from refimpl.data import bundled, mnist
from refimpl.data.preprocessing import RESAMPLINGS, Preprocessing
from refimpl.live import export
from refimpl.live.page import DIGITS, page
from refimpl.models import Config, packing
from tests import live_port, networks
from tests.command_line import assert_one_line, run, save_model, save_segmenter
from tests.live_port import BUNDLES, GOLDEN, needs_node

EVERY = networks.covering() | networks.imported()
COVERING = {config: name for name, config in reversed(EVERY.items())}  # each network once
HELD = {
    name: config
    for config, name in COVERING.items()
    if config.block == "binary" and config.binarize == "full" and "-ste-" not in name
    and not config.window and config.task == "classification"
}  # fmt: skip
MODES = ("free", "replay")


def bundle_of(config: Config, folder: Path, seed: int = 31) -> Path:
    """A bundle with one image of a small network whose thresholds are busy."""
    network = networks.make(config, seed)
    golden.make(folder / "bundle", network.model, network.params, network.images[:1])
    return folder / "bundle"


# --- the engine is a port -------------------------------------------------------------------------


@needs_node
@pytest.mark.parametrize("name", BUNDLES)
def test_every_tap_of_the_shipped_bundles_passes(tmp_path, name):
    bundle = GOLDEN / name
    network = live_port.written(bundle)
    files = [
        live_port.port(network, image, tmp_path / f"{i}.safetensors")
        for i, image in enumerate(live_port.images_of(bundle))
    ]
    taps = live_port.together(files)
    for mode in MODES:
        live_port.assert_every_tap_passes(live_port.compared(bundle, taps, mode))
    if len(files) == 1:
        assert run("golden", "compare", name, files[0], "--quiet").status == 0


@needs_node
@pytest.mark.parametrize("name", HELD)
def test_every_reading_passes(tmp_path, name):
    bundle = bundle_of(HELD[name], tmp_path)
    image = live_port.image_of(bundle)
    taps = live_port.port(live_port.written(bundle), image, tmp_path / "taps.safetensors")
    live_port.assert_every_tap_passes(live_port.compared(bundle, taps, "replay"))


@needs_node
@pytest.mark.parametrize(
    ("op", "fields"),
    [
        ("bands", {"haar_mode": "none"}),
        ("differential", {"neighbours": "none"}),
        ("rprelu", {"rprelu": "channel"}),
    ],
)
def test_an_idea_taken_away_is_the_network_without_it(tmp_path, op, fields):
    """At strength 0 every tap is that of another configuration, with the same parameters."""
    whole = networks.make(networks.small(**networks.DIDB), 32)
    model = whole.model.replace(**fields)
    paths = model.network.parameters
    flat = {path: value for path, value in refimpl.flatten(whole.params).items() if path in paths}
    bundle = tmp_path / "bundle"
    golden.make(bundle, model, refimpl.unflatten(flat), whole.images[:1])
    network = export.export(whole.model.config, packing.pack(whole.model.config, whole.params))
    image = live_port.image_of(bundle)
    taps = live_port.port(network, image, tmp_path / "taps.safetensors", **{op: 0})
    found = dict(golden.candidate.read(taps))
    if op == "differential":  # the page still computes the mean that it does not use
        found = {name: value for name, value in found.items() if "neighbour_mean" not in name}
    comparison = live_port.compared(bundle, found, "replay")
    assert comparison.outcome == "PASS", comparison.first
    kept = dict(golden.candidate.read(live_port.port(network, image, tmp_path / "all.safetensors")))
    assert not np.array_equal(kept["logits"], found["logits"])


@needs_node
def test_the_operations_are_those_of_the_exporter():
    assert sorted(json.loads(live_port.node("ops.js"))) == sorted(export.OPS)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"block": "real", "pool": "cls"}, "blocks.0.attn.scores.int: found matmul"),
        ({"binarize": "activations"}, "found binary_linear with binarize='activations'"),
        ({"binarize": "none"}, "found binary_linear with binarize='none'"),
        ({"decoder": "linear"}, "found to_grid"),
        ({"image_size": (8, 8), "window": 2, "pool": "mean", "depth": (1, 1)}, "found windows"),
    ],
)
def test_what_the_engine_has_not_is_named(fields, words):
    config = networks.small(**fields)
    arrays = packing.pack(config, networks.parameters(config, np.random.default_rng(33)))
    if fields.get("block") == "real":
        words = "found split"
    with pytest.raises(ConfigError, match=re.escape(words)):
        export.export(config, arrays)


# --- pictures and strokes to pixels ---------------------------------------------------------------


def pixels(*calls: tuple[str, list]) -> list:
    """Results of functions of pixels.js."""
    work = json.dumps([{"name": name, "args": args} for name, args in calls])
    return json.loads(live_port.node("pixels.js", stdin=work))


def random_pictures() -> list[np.ndarray]:
    rng = np.random.default_rng(34)
    sizes = ((7, 9), (28, 28), (61, 40), (3, 90), (28, 15))
    noise = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    step = np.zeros((50, 40, 3), np.uint8)
    step[10:30, 20:] = 255  # what rings under a filter with negative weights
    return [*noise, step]


@needs_node
@pytest.mark.parametrize("mode", ["grey", "rgb"])
def test_a_picture_becomes_what_the_model_reads_to_the_bit(mode):
    channels = 1 if mode == "grey" else 3
    calls, expected = [], []
    for resampling in RESAMPLINGS:
        for crop in (1.0, 0.875):
            plain = Preprocessing(
                (28, 20), mode, (0.5,) * channels, (0.5,) * channels, resampling, crop
            )
            for picture in random_pictures():
                opaque = np.full((*picture.shape[:2], 1), 255, np.uint8)
                rgba = np.concatenate([picture, opaque], axis=-1).ravel().tolist()
                calls.append(("apply", [rgba, picture.shape[:2], plain.to_json()]))
                expected.append(plain.pixels(Image.fromarray(picture)))
    for found, wanted, call in zip(pixels(*calls), expected, calls, strict=True):
        shape, how = call[1][1], call[1][2]
        message = f"{shape} {how['resampling']} {how['crop']}"
        np.testing.assert_array_equal(found, wanted.ravel(), err_msg=message)


# Ten digits as a hand would draw them, in the corners of a square.
DRAWN = {
    "0": [[(5, 1), (3, 2), (2, 5), (3, 8), (5, 9), (7, 8), (8, 5), (7, 2), (5, 1)]],
    "1": [[(5, 1), (5, 9)]],
    "2": [[(2, 3), (3, 1), (6, 1), (7, 3), (6, 5), (2, 9), (8, 9)]],
    "3": [[(2, 2), (4, 1), (7, 2), (7, 4), (4, 5), (7, 6), (7, 8), (5, 9), (2, 8)]],
    "4": [[(4, 1), (2, 6), (8, 6)], [(6, 3), (6, 9)]],
    "5": [[(7, 1), (3, 1), (3, 5), (6, 5), (7, 7), (6, 9), (2, 9)]],
    "6": [[(6, 1), (3, 4), (2, 7), (4, 9), (7, 8), (7, 6), (4, 5), (2, 7)]],
    "7": [[(2, 1), (8, 1), (4, 9)]],
    "8": [[(5, 5), (3, 3), (5, 1), (7, 3), (5, 5), (3, 7), (5, 9), (7, 7), (5, 5)]],
    "9": [[(7, 3), (5, 1), (3, 3), (4, 5), (7, 4), (7, 3), (6, 9)]],
}


def strokes(digit: str, scale: float = 0.1, shift: float = 0.0) -> list[dict]:
    """A digit of DRAWN as white strokes on the board."""
    lines = [[[x * scale + shift, y * scale + shift] for x, y in line] for line in DRAWN[digit]]
    return [{"points": line, "colour": [255]} for line in lines]


def read_as_mnist(*drawings: list[dict]) -> np.ndarray:
    """Drawings, each of strokes, as the page centres them: uint8 (n, 28, 28)."""
    size = [28, 28]
    places = pixels(*(("placed", [drawing, size, True]) for drawing in drawings))
    calls = [("drawn", [d, size, place, [0]]) for d, place in zip(drawings, places, strict=True)]
    return np.array(pixels(*calls), np.uint8).reshape(-1, 28, 28)


@needs_node
def test_drawn_digits_are_read():
    seen = read_as_mnist(*map(strokes, DRAWN))
    found = refimpl.classifier("didb_micro_mnist", backend="numpy")(seen)
    assert [prediction.label for prediction in found] == list(DRAWN)


@needs_node
def test_a_drawing_is_centred_and_scaled_like_mnist():
    """Wherever and however large it is drawn; the pen has the same width."""
    large, small = read_as_mnist(strokes("3"), strokes("3", scale=0.05, shift=0.42))
    for seen in (large, small):
        rows, columns = np.nonzero(seen > 127)
        assert max(np.ptp(rows), np.ptp(columns)) + 1 == pytest.approx(20, abs=1)
        share = seen / seen.sum()
        for axis in (0, 1):
            middle = share.sum(axis=1 - axis) @ (np.arange(28) + 0.5)
            assert middle == pytest.approx(14, abs=0.1)
    np.testing.assert_allclose(large.astype(float), small, atol=2)
    digits = mnist.load(bundled.mnist() / "small", "test")[0]
    assert large.mean() == pytest.approx(digits.mean(), rel=0.5)  # a pen like theirs


@needs_node
def test_without_centring_a_drawing_lies_where_it_was_drawn():
    (place,) = pixels(("placed", [strokes("1"), [20, 40], False]))
    ((seen),) = pixels(("drawn", [strokes("1"), [20, 40], place, [0]]))
    rows, columns = np.nonzero(np.reshape(seen, (20, 40)) > 127)
    assert (rows.min(), rows.max()) == (1, 18)
    assert (columns.min(), columns.max()) == (19, 20)


# --- the page -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped(tmp_path_factory) -> dict[str, str]:
    """The pages of the shipped networks that the engine can run."""
    folder, found = tmp_path_factory.mktemp("live"), {}
    for name in ("didb_micro_mnist", "didb_cifar10"):
        file = folder / f"{name}.html"
        done = run("live", "--model", name, "-o", file)
        assert done.status == 0, done.err
        assert done.out == f"{file}: {file.stat().st_size:,} bytes\n"
        found[name] = file.read_text(encoding="utf-8")
    return found


@pytest.mark.parametrize("name", ["didb_micro_mnist", "didb_cifar10"])
def test_it_is_one_small_file_that_asks_nobody(shipped, name):
    text = shipped[name]
    assert len(text.encode()) < 1_500_000
    assert not re.search(r"https?:|url\(|@import|fetch\(|XMLHttp|import\(|\bsrc=[^\"]", text)
    outside = re.sub(r"<(script|style)\b.*?</\1>", "", text, flags=re.DOTALL)
    assert "$" not in outside and "style=" not in outside and "onerror" not in outside


def test_the_policy_lets_only_its_own_script_and_style_run(shipped):
    text = shipped["didb_micro_mnist"]
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy
    for tag in ("style", "script"):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_parts_that_a_network_has_not_are_not_on_its_page():
    config = networks.small(pool="mean", channels=1)
    arrays = packing.pack(config, networks.parameters(config, np.random.default_rng(35)))
    plain = Preprocessing.plain(config.image_size, 1)
    text = page(config, arrays, plain, ["a", "b", "c", "d"], "mine").decode()
    body = re.sub(r"<(script|style)\b.*?</\1>", "", text, flags=re.DOTALL)
    for words in ("Haar", "differential", "Take one idea", 'id="centre"', "class-token"):
        assert words not in body, words
    assert "Planes of bits" in body and "Draw a digit" not in body


def test_hostile_names_are_text():
    config = networks.small(channels=1, num_classes=1, **networks.DIDB)
    arrays = packing.pack(config, networks.parameters(config, np.random.default_rng(36)))
    hostile = "</script><script>alert(1)</script>&amp;${x}$label"
    plain = Preprocessing.plain(config.image_size, 1)
    text = page(config, arrays, plain, [hostile], hostile).decode()
    assert text.count("<script") == 2 and "<script>alert" not in text
    assert "&lt;script&gt;alert(1)" in text and "${x}$label" in text


def test_a_digit_model_is_known_by_its_classes():
    assert tuple(mnist.CLASS_NAMES) == DIGITS


def test_a_packed_file_gives_the_same_page(tmp_path, shipped):
    run("pack", "didb_micro_mnist", "-o", tmp_path / "didb_micro_mnist.safetensors")
    file = tmp_path / "page.html"
    model = tmp_path / "didb_micro_mnist.safetensors"
    assert run("live", "--model", model, "-o", file).status == 0
    assert file.read_text(encoding="utf-8") == shipped["didb_micro_mnist"]


# --- bad input ------------------------------------------------------------------------------------


def test_a_page_that_is_there_is_refused(tmp_path):
    file = tmp_path / "page.html"
    file.write_text("mine")
    model = save_model(tmp_path / "model.safetensors")
    assert_one_line(run("live", "--model", model, "-o", file), str(file), "exists")
    assert file.read_text() == "mine"
    assert run("live", "--model", model, "-o", file, "--force").status == 0
    assert_one_line(run("live", "--model", model, "-o", model, "--force"), str(model))


def test_a_network_that_the_page_cannot_run_is_one_line(tmp_path):
    file = tmp_path / "page.html"
    done = run("live", "--model", "deit_cifar10", "-o", file)
    assert_one_line(done, "deit_cifar10: blocks.0.attn.", "found split")
    model = save_segmenter(tmp_path / "model.safetensors")
    assert_one_line(run("live", "--model", model, "-o", file), str(model), "found to_grid")
    assert_one_line(run("live", "--model", tmp_path / "none", "-o", file), "none")
    assert not file.exists()
