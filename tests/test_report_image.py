"""The page of one image: what it embeds is what the network computed, and nothing else gets in."""

from __future__ import annotations

import base64
import errno
import hashlib
import html.parser
import io
import json
import os
import re
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import threadpoolctl
from PIL import Image

import refimpl
from refimpl import ops
from refimpl.classifiers import Classifier
from refimpl.data.preprocessing import Preprocessing
from refimpl.models import Config, VisionTransformer, files, summary
from refimpl.report import image, timing, trace
from tests import networks
from tests.command_line import SEVEN, assert_one_line, process, run, save_model

CONFIGS = {
    name: config
    for name, config in networks.covering().items()
    if config.task == "classification"  # a segmenter has an overlay, not a page
}
ASSETS = Path(image.__file__).parent / "assets"
HOSTILE = '</script><script>alert("1")</script><img src=x onerror=alert(2)>&amp;\u2028"\'${x}$label'


def asker(config: Config, names: list[str] | None = None) -> Classifier:
    """A classifier whose thresholds are busy, with parameters drawn from a fixed seed."""
    params = networks.parameters(config, np.random.default_rng(60))
    names = names or [f"class {i}" for i in range(config.num_classes)]
    plain = Preprocessing.plain(config.image_size, config.channels)
    return Classifier(VisionTransformer(config), params, plain, names)


def photo(seed: int = 61) -> Image.Image:
    """A colour image of a size that no model reads."""
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (9, 13, 3), dtype=np.uint8))


def page_of(ask: Classifier, name: str = "photo.png", model: str = "mine") -> str:
    return image.page(ask, photo(), name, model).content.decode()


def taps_of(ask: Classifier) -> dict[str, np.ndarray]:
    """Every tap of the network on the photo, without the axis of the batch."""
    x = ask.preprocessing.apply(photo())[None].astype(ask.dtype)
    seen = {}
    ask.model.forward(
        ask.params, x, tap=lambda name, value, op, inputs: seen.update({name: value[0]})
    )
    return seen


class Reader(html.parser.HTMLParser):
    """Every element with its attributes, and the text of scripts and styles."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.elements:
            self.texts.setdefault(self.elements[-1][0], []).append(data)

    def every(self, tag: str) -> list[dict]:
        return [attributes for found, attributes in self.elements if found == tag]


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return json.loads(found[1])


def decoded(tap: dict[str, Any], dtype: Any, key: str = "data") -> np.ndarray:
    return np.frombuffer(base64.b64decode(tap[key]), dtype)


def bits_of(tap: dict[str, Any]) -> np.ndarray:
    count = int(np.prod(tap["shape"]))
    bits = np.unpackbits(decoded(tap, np.uint8), bitorder="little")
    assert not bits[count:].any()
    return bits[:count].reshape(tap["shape"]).astype(bool)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "tiny.safetensors")


# --- what is embedded -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_the_page_holds_the_taps(name) -> None:
    ask = asker(CONFIGS[name])
    config = ask.model.config
    page = page_of(ask)
    data, seen = data_of(page), taps_of(ask)
    assert data["grid"] == list(config.grid)
    assert data["first"] == (1 if config.pool == "cls" else 0)
    for tap_name, tap in data["taps"].items():
        if tap_name.endswith("bit"):
            np.testing.assert_array_equal(bits_of(tap), seen[tap_name], err_msg=tap_name)
    drawn = [canvas["data-tap"] for canvas in Reader(page).every("canvas")]
    assert set(drawn) == set(data["taps"])  # nothing missing, nothing for nothing
    for block in range(config.depth):
        prefix = f"blocks.{block}.attn."
        binary = config.block == "binary" and config.binarize != "none"
        expected = {f"{prefix}prob.z", f"{prefix}prob.bit"} if binary else {f"{prefix}prob"}
        if binary:
            queries_and_keys = config.attention_inputs[:-1]
            expected |= {f"{prefix}{t}.head_bit" for t in queries_and_keys}
        if config.similarity == "haar" and config.haar_mode != "none":
            expected |= {f"blocks.{block}.norm1.out", f"{prefix}low", f"{prefix}high"}
        if config.attention == "differential":
            expected |= {f"{prefix}{t}" for t in ("v.out", "neighbour_mean", "differential")}
        assert {tap for tap in drawn if tap.startswith(f"blocks.{block}.")} == expected
        assert page.count(f'id="block-{block}"') == 1
    assert ("Margins:" in page) == binary
    kicker = {"full": "A 1-bit", "activations": "1-bit activations", "none": "A 32-bit"}
    assert kicker[config.binarize if config.block == "binary" else "none"] in page


@pytest.fixture(scope="module")
def didb() -> SimpleNamespace:
    ask = asker(networks.small(**networks.DIDB, dim=70, heads=5))
    page = page_of(ask)
    return SimpleNamespace(ask=ask, page=page, taps=data_of(page)["taps"], seen=taps_of(ask))


def test_tokens_are_to_scale_and_comparable(didb) -> None:
    seen = dict(didb.seen)
    for i, block in didb.ask.params["blocks"].items():
        attn, prefix = block["attn"], f"blocks.{i}.attn"
        seen[f"{prefix}.differential"] = (
            attn["shortcut"] * seen[f"{prefix}.v.out"]
            - attn["neighbour"] * seen[f"{prefix}.neighbour_mean"]
        )
    for group in (
        ("norm1.out", "attn.low", "attn.high"),
        ("attn.v.out", "attn.neighbour_mean", "attn.differential"),
    ):
        for i in range(2):
            names = [f"blocks.{i}.{name}" for name in group]
            (scale,) = {didb.taps[name]["scale"] for name in names}
            sizes = np.abs([seen[name][:, : trace.CHANNELS] for name in names])
            assert 0.9 < np.mean(sizes <= scale) < 1  # most have a colour of their own
            for name in names:
                value = seen[name][:, : trace.CHANNELS]
                assert didb.taps[name]["shape"] == list(value.shape)
                shown = decoded(didb.taps[name], np.int8).reshape(value.shape) * scale / 127
                expected = np.clip(value, -scale, scale)
                np.testing.assert_allclose(shown, expected, atol=0.51 * scale / 127)
    assert didb.page.count("Shown are the first 64 of 70 channels.") == 4


def test_margins_of_queries_and_keys(didb) -> None:
    for t in ("q_low", "k_low", "q_high", "k_high"):
        name = f"blocks.1.attn.{t}"
        z = didb.seen[f"{name}.head_z"]
        tap = didb.taps[f"{name}.head_bit"]
        shown = decoded(tap, np.uint8, "margins").reshape(tap["shape"])
        margin = np.abs(z) / np.sqrt(np.mean(z**2)) / trace.REACH
        np.testing.assert_allclose(shown, 255 * np.minimum(margin, 1), atol=0.51)


def test_probabilities(didb) -> None:
    tap = didb.taps["blocks.0.attn.prob.z"]
    shown = decoded(tap, np.uint8).reshape(tap["shape"])
    ratio = np.minimum(didb.seen["blocks.0.attn.prob.z"], 1)
    np.testing.assert_allclose(shown, 255 * ratio, atol=0.51)
    real = asker(CONFIGS["deit-pool-cls"])
    tap = data_of(page_of(real))["taps"]["blocks.0.attn.prob"]
    shown = decoded(tap, np.uint8).reshape(tap["shape"])
    prob = taps_of(real)["blocks.0.attn.prob"]
    np.testing.assert_allclose(shown, 255 * prob / prob.max(axis=-1, keepdims=True), atol=0.51)
    assert (shown.max(axis=-1) == 255).all()


def test_margins_in_numbers() -> None:
    config = networks.small(**networks.DIDB)
    ask = asker(config)
    network, taps = ask.model.network, trace.look(ask, ask.preprocessing.apply(photo())[None])
    taps["blocks.0.attn.v.z"] = np.array([[0.0, -0.0], [3.0, -4.0], [0.01, 0.1]])
    taps["blocks.0.attn.prob.z"] = np.array([[[0.5, 0.5], [0.4, 0.8]]])
    found = {row.name: row for row in trace.margins(network, taps, 0)}
    projections = [f"attn.{t}" for t in (*config.attention_inputs, "proj")] + ["mlp.up", "mlp.down"]
    heads = [f"attn.{t}.head_z" for t in config.attention_inputs]
    expected = [f"{p}.z" for p in projections] + heads + ["attn.prob.z"]
    assert sorted(found) == sorted(f"blocks.0.{name}" for name in expected)
    assert trace.margins(network, taps, 1)[0].name == "blocks.1.attn.q_low.z"

    row = found["blocks.0.attn.v.z"]  # root mean square 2.04...
    assert (row.count, row.zero, row.closest) == (6, 2, 0.0)
    assert row.near == pytest.approx(3 / 6)
    assert row.histogram.sum() == 6
    assert row.histogram[: trace.BINS // 2].sum() == 1  # zero is on the side of +1
    row = found["blocks.0.attn.prob.z"]
    assert (row.count, row.zero) == (4, 2)
    assert row.near == pytest.approx(2 / 4)


# --- what gets in, and what does not --------------------------------------------------------------


def test_the_page_is_one_file() -> None:
    page = page_of(asker(CONFIGS["didb-pool-cls"]))
    found = Reader(page)
    for tag, attributes in found.elements:
        for key in ("src", "href", "srcset", "action", "data", "poster"):
            value = attributes.get(key)
            assert value is None or value.startswith(("data:", "#")), (tag, key, value)
        assert not [key for key in attributes if key.startswith("on") or key == "style"], tag
    assert not re.search(r"https?:|url\(|@import|fetch\(|XMLHttp|import\(", page)
    assert "$" not in re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)  # all filled in


def test_the_policy_lets_only_this_script_and_style_run() -> None:
    page = page_of(asker(CONFIGS["react-pool-cls"]))
    (policy,) = (m["content"] for m in Reader(page).every("meta") if "http-equiv" in m)
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    scripts = ("drawing.js", "image.js")
    for assets, directive in ((scripts, "script-src"), (("image.css",), "style-src")):
        content = b"".join((ASSETS / asset).read_bytes() for asset in assets)
        assert content.decode() in page
        digest = base64.b64encode(hashlib.sha256(content).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy


def test_hostile_names_are_text() -> None:
    config = CONFIGS["didb-pool-cls"]
    tame = Reader(page_of(asker(config)))
    names = [f"{HOSTILE}{i}" for i in range(config.num_classes)]
    page = page_of(asker(config, names), HOSTILE, HOSTILE)
    hostile = Reader(page)
    assert [tag for tag, _ in hostile.elements] == [tag for tag, _ in tame.elements]
    assert page.count("&lt;/script&gt;&lt;script&gt;") >= 4 + config.num_classes
    assert "onerror=alert" in page and "${x}$label" in page  # as they are, only escaped
    assert data_of(page)["taps"]


def test_nothing_of_the_path_is_told(tmp_path) -> None:
    model = save_model(tmp_path / "tiny.safetensors")
    done = run("report", SEVEN, "--model", model, "-o", tmp_path / "page.html")
    assert done.status == 0
    page = (tmp_path / "page.html").read_text()
    assert "How <bdi>tiny</bdi> sees <bdi>7_0000.png</bdi>" in page
    assert str(tmp_path) not in page and str(SEVEN.parent) not in page


def test_what_a_camera_noted_is_not_told(model, tmp_path) -> None:
    exif = Image.Exif()
    exif[0x010E] = "taken at a secret place"
    Image.open(SEVEN).save(tmp_path / "seven.jpg", exif=exif, comment=b"a secret comment")
    done = run("report", tmp_path / "seven.jpg", "--model", model, "-o", tmp_path / "page.html")
    assert done.status == 0
    for picture in Reader((tmp_path / "page.html").read_text()).every("img"):
        content = base64.b64decode(picture["src"].split(",")[1])
        assert b"secret" not in content and not Image.open(io.BytesIO(content)).info


# --- the answer, the budget -----------------------------------------------------------------------


def test_the_answer_is_the_classifiers() -> None:
    config = networks.small(num_classes=12)
    ask = asker(config)
    (prediction,) = ask([photo()])
    page = page_of(ask)
    section = re.search(r'<section id="answer">(.*?)</section>', page, re.DOTALL)[1]
    shown = re.findall(r"<bdi>(.*?)</bdi></th>.*?<td>([\d.]+)%</td></tr>", section)
    assert [name for name, _ in shown] == [name for name, _ in prediction.top(10)]
    for (_, percent), (_, p) in zip(shown, prediction.top(10), strict=True):
        assert float(percent) == pytest.approx(100 * p, abs=0.006)
    assert "2 classes more" in section
    assert "Careful" not in page
    ask.caution = "a <word> of caution"
    assert "Careful: a &lt;word&gt; of caution." in page_of(ask)


def test_the_page_shows_what_the_network_reads() -> None:
    ask = asker(CONFIGS["didb-pool-cls"])
    pixels = ask.preprocessing.pixels(photo())
    for some, expected in ((ask, pixels), (ask.inverted(), 255 - pixels)):
        (picture,) = (i for i in Reader(page_of(some)).every("img") if i.get("id") == "picture")
        header, encoded = picture["src"].split(",")
        assert header == "data:image/png;base64"
        shown = Image.open(io.BytesIO(base64.b64decode(encoded)))
        np.testing.assert_array_equal(np.asarray(shown), expected)


@pytest.mark.parametrize("name", ["didb-pool-cls", "react-binarize-activations", "deit-pool-cls"])
def test_the_budget_is_that_of_the_summary(name) -> None:
    config = CONFIGS[name]
    page = page_of(asker(config))
    parts, layers = re.findall(r"<tbody>(.*?)</tfoot>", page[page.index('id="budget"') :])
    found = summary.summarise(config)
    for row in (*found.rows, found.total):
        cells = f"<code>{row.name}</code></th><td>{row.macs_1bit:,}</td><td>{row.macs_32bit:,}</td>"
        assert cells in layers
    one = sum(row.macs_1bit for row in found.rows if row.name.startswith("blocks.1."))
    assert f"<code>blocks.1</code></th><td>{one:,}</td>" in parts
    assert ("operations in all instead of" in page) == (found.total.macs_1bit > 0)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_clock_knows_every_call(name) -> None:
    """The n-th call belongs to the n-th node, whatever that is called."""
    made = networks.make(CONFIGS[name], seed=62)
    called = []

    class Recorder:
        def __getattr__(self, operation: str):
            function = getattr(ops, operation).forward  # the operations have no whole units

            def forward(*args, **kwargs):
                called.append(operation)
                return function(*args, **kwargs)

            return SimpleNamespace(forward=forward)

    made.model.predict(made.params, made.images, backend=Recorder())
    network = made.model.network
    assert [node.op for node in network.nodes] == called
    layers = timing.by_layer(network, range(len(called)))
    assert list(layers) == [row.name for row in summary.summarise(CONFIGS[name]).rows]
    assert sum(layers.values()) == sum(range(len(called)))
    for i, node in enumerate(network.nodes):
        if node.op == "softmax":
            assert layers[node.layer] == i  # the layer's only operation
    renamed = networks.list_renamed(network, lambda old: f"other.{old}")
    assert timing.by_layer(renamed, range(len(called))) == layers


def test_time_is_counted_where_it_is_spent() -> None:
    """A slow softmax: the attention of each block takes its time, and nothing else does."""
    network = networks.make(CONFIGS["didb-pool-cls"], seed=63)

    def slow(*arguments):
        time.sleep(0.02)
        return ops.softmax.forward(*arguments)

    backend = SimpleNamespace(**{name: getattr(ops, name) for name in ops.__all__})
    backend.softmax = SimpleNamespace(forward=slow)
    timed = timing.measure(network.model, network.params, network.images, backend)
    rows = [row.name for row in summary.summarise(network.model.config).rows]
    assert list(timed.layers) == rows
    above = {name for name, seconds in timed.layers.items() if seconds >= 0.02}
    assert above >= {"blocks.0.attn.prob", "blocks.1.attn.prob"}
    assert sum(timed.layers.values()) - timed.layers["blocks.0.attn.prob"] < 0.9 * timed.seconds
    assert timed.seconds >= 0.04 and timed.runs >= 1


def test_images_of_another_size_are_timed_too() -> None:
    """Parameters that are interpolated first are operations, too."""
    made = networks.make(CONFIGS["didb-pool-cls"], seed=64)
    other = networks.with_images_of(made, (1, 2))
    timed = timing.measure(made.model, made.params, other.images)
    assert list(timed.layers) == [row.name for row in summary.summarise(made.model.config).rows]


# --- the command ----------------------------------------------------------------------------------


def test_a_picture_of_the_standard_input_is_called_so(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(SEVEN.read_bytes())))
    assert run("report", "-", "-o", tmp_path / "page.html").status == 0
    assert "sees <bdi>standard input</bdi>" in (tmp_path / "page.html").read_text()


def test_the_shipped_model(tmp_path) -> None:
    done = run("report", SEVEN, "-o", tmp_path / "page.html")
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith(f"{tmp_path / 'page.html'}: 7 0.9")
    assert os.listdir(tmp_path) == ["page.html"]
    assert (tmp_path / "page.html").stat().st_size < 2e6


def test_json(model, tmp_path) -> None:
    out = tmp_path / "page.html"
    done = run("report", SEVEN, "--model", model, "-o", out, "--json")
    (answer,) = refimpl.classifier(model)(SEVEN)
    assert (done.status, done.err) == (0, "")
    found = json.loads(done.out)
    assert found.pop("probability") == pytest.approx(answer.probability, rel=1e-5)
    assert found == {
        "file": str(SEVEN),
        "page": str(out),
        "bytes": out.stat().st_size,
        "label": answer.label,
        "warning": None,
    }


def test_an_image_unlike_those_of_the_training(tmp_path) -> None:
    light = tmp_path / "light.png"
    Image.eval(Image.open(SEVEN), lambda pixel: 255 - pixel).save(light)
    done = run("report", light, "-o", tmp_path / "page.html")
    assert done.status == 0
    assert done.err.startswith(f"refimpl: warning: {light}: brightness")
    assert "Careful: brightness" in (tmp_path / "page.html").read_text()
    done = run("report", light, "-o", tmp_path / "page.html", "--invert", "--force")
    assert (done.status, done.err) == (0, "")
    assert ": 7 0.9" in done.out


def test_file_names_need_not_be_text(model, tmp_path) -> None:
    name = os.fsdecode(os.fsencode(tmp_path) + b"/\xff<b>.png")
    try:
        Path(name).write_bytes(SEVEN.read_bytes())
    except OSError:
        pytest.skip("this file system wants names to be text")
    out = tmp_path / "page.html"
    done = process("report", name, "--model", model, "-o", out)
    assert (done.returncode, done.stderr) == (0, "")
    assert "sees <bdi>\\udcff&lt;b&gt;.png</bdi>" in out.read_text(encoding="utf-8")


def test_bad_input(model, tmp_path, monkeypatch) -> None:
    out = tmp_path / "page.html"
    broken = tmp_path / "broken.png"
    broken.write_bytes(SEVEN.read_bytes()[:100])
    packed = tmp_path / "packed.safetensors"
    assert run("pack", model, "-o", packed).status == 0
    before = sorted(os.listdir(tmp_path))
    for arguments, words in (
        (("none.png", "-o", out), ("none.png", "No such file")),
        ((broken, "-o", out), ("broken.png", "broken or truncated")),
        ((tmp_path, "-o", out), (str(tmp_path), "Is a directory")),
        ((SEVEN, "-o", tmp_path / "no" / "page.html", "--model", model), ("page.html", "no such")),
        ((SEVEN, "-o", tmp_path, "--model", model), (str(tmp_path), "folder")),
        ((SEVEN, "-o", out, "--model", "didb_tiny"), ("didb_tiny", "untrained")),
        ((SEVEN, "-o", out, "--model", packed), ("packed.safetensors", "packed")),
        ((SEVEN, "-o", out, "--model", "nothing"), ("nothing", "no such file or model")),
    ):
        assert_one_line(run("report", *arguments), *words)
    assert sorted(os.listdir(tmp_path)) == before

    out.write_text("the page before")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    done = run("report", SEVEN, "--model", model, "-o", out, "--force")
    assert_one_line(done, "page.html", "No space left")
    assert out.read_text() == "the page before"
    assert sorted(os.listdir(tmp_path)) == sorted([*before, "page.html"])


def test_it_overwrites_neither_image_nor_model(tmp_path) -> None:
    model = save_model(tmp_path / "tiny.safetensors")
    seven = tmp_path / "seven.png"
    seven.write_bytes(SEVEN.read_bytes())
    (tmp_path / "link.html").symlink_to(seven)
    kept = {path: path.read_bytes() for path in (model, seven)}
    for out, what in ((seven, "image"), (tmp_path / "link.html", "image"), (model, "model")):
        done = run("report", seven, "--model", model, "-o", out)
        assert_one_line(done, out.name, f"is the {what} itself", "expected another file to write")
    assert {path: path.read_bytes() for path in kept} == kept


def test_weights_of_absurd_size(tmp_path) -> None:
    config = networks.small(channels=1)
    flat = refimpl.flatten(networks.parameters(config, np.random.default_rng(64), np.float32))
    flat["patch_embed.weight"] = np.full_like(flat["patch_embed.weight"], 3e38)
    params = refimpl.unflatten(flat)
    files.save(tmp_path / "huge.safetensors", VisionTransformer(config), params)
    done = run("report", SEVEN, "--model", tmp_path / "huge.safetensors", "-o", tmp_path / "p.html")
    assert_one_line(done, "blocks.0.attn.q: sign", "expected a finite number")
    assert os.listdir(tmp_path) == ["huge.safetensors"]


@pytest.mark.parametrize("level", [0, 255])
def test_an_image_of_one_colour(level, tmp_path) -> None:
    """Constant fields: bands and differences that are 0 everywhere, ties at every threshold."""
    model = VisionTransformer(networks.small(**networks.DIDB, channels=1))
    flat = refimpl.flatten(model.init(np.random.default_rng(65)))
    zero = {"pos_embed", "cls_token", "patch_embed.weight"}
    flat = {path: np.zeros_like(v) if path in zero else v for path, v in flat.items()}
    files.save(tmp_path / "flat.safetensors", model, refimpl.unflatten(flat))
    Image.new("L", (4, 4), level).save(tmp_path / "plain.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        done = run("report", tmp_path / "plain.png", "--model", tmp_path / "flat.safetensors",
                   "-o", tmp_path / "page.html")  # fmt: skip
    assert done.status == 0
    page = (tmp_path / "page.html").read_text()
    assert "nan" not in re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL).lower()


# --- colours --------------------------------------------------------------------------------------


def palettes() -> dict[str, dict[str, str]]:
    style = (ASSETS / "image.css").read_text(encoding="utf-8")
    light, dark = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    read = [dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", text)) for text in (light, dark)]
    assert read[0].keys() == read[1].keys()
    return dict(zip(("light", "dark"), read, strict=True))


def luminance(colour: str) -> float:
    """Relative luminance, as WCAG 2 defines it."""
    levels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in levels]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def contrast(a: str, b: str) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(scheme) -> None:
    """WCAG 2 AA: 4.5 for text, 3 for what a picture says by colour."""
    colour = palettes()[scheme]
    for text in ("text", "quiet"):
        for ground in ("page", "card"):
            assert contrast(colour[text], colour[ground]) >= 4.5, (text, ground)
    assert contrast(colour["text"], colour["zero"]) >= 4.5
    for mark in ("minus", "plus", "one", "share", "full"):
        assert contrast(colour[mark], colour["card"]) >= 3, mark
    assert contrast(colour["one"], colour["zero"]) >= 3


def test_layers_are_timed_with_one_thread(monkeypatch) -> None:
    """Threads of BLAS that waited for each other made one layer a hundred times slower."""
    threads, measure = [], image.timing.measure

    def measured(*arguments: object) -> object:
        threads.extend(pool["num_threads"] for pool in threadpoolctl.threadpool_info())
        return measure(*arguments)

    monkeypatch.setattr(image.timing, "measure", measured)
    with threadpoolctl.threadpool_limits(2):
        image.page(asker(networks.small(**networks.DIDB)), photo(), "photo", "model")
    assert threads and set(threads) == {1}
