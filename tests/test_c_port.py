"""A port that shares no code with this project: one block in C, judged by golden bundles."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from refimpl import golden
from refimpl.golden import candidate
from refimpl.golden.compare import Comparison, Verdict
from tests import c_port, networks

pytestmark = c_port.needs_cc

# What the port computes: every value of every field, each network once. What matters for the
# backward pass alone is left out, and what needs a switch of DIDB-ViT in a network without it.
IDLE = ("-ste-", "-band_weights-", "react-haar_", "react-neighbours-")
CONTROL = "didb-haar_mode-none"
FULL = {
    name: config
    for config, name in {c: n for n, c in reversed(networks.covering().items())}.items()
    if config.block == "binary" and config.binarize == "full" and not any(i in name for i in IDLE)
}


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    return c_port.compile(c_port.SOURCE, tmp_path_factory.mktemp("cc") / "didb_block")


def compared(program: Path, bundle: Path, block: int, out: Path, mode: str) -> Comparison:
    folder = c_port.port(program, bundle, block, out)
    return golden.compare(golden.read(bundle), candidate.read(folder), mode=mode)


def judged(comparison: Comparison, block: int) -> list[Verdict]:
    """The verdicts of the block's own taps: all of them must be there."""
    names = f"blocks.{block}."
    found = [v for v in comparison.verdicts if v.name.startswith(names)]
    assert found and all(v.verdict not in ("MISSING", "UNJUDGED") for v in found)
    assert not comparison.unknown
    return found


# --- the bundles in weights/golden ----------------------------------------------------------------


@pytest.mark.parametrize("mode", ["free", "replay"])
@pytest.mark.parametrize("block", [0, 1])
def test_every_bit_is_exact_where_no_margin_is_narrow(program, tmp_path, block, mode):
    bundle = c_port.GOLDEN / "small_tie_free"
    comparison = compared(program, bundle, block, tmp_path / "out", mode)
    for verdict in judged(comparison, block):
        allowed = ("EXACT", "NEAR") if verdict.kind == "real" else ("EXACT",)
        assert verdict.verdict in allowed, verdict
    assert comparison.first is None


@pytest.mark.parametrize("mode", ["free", "replay"])
@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("small_adversarial", 0),
        ("didb_micro_mnist", 0),
        ("didb_micro_mnist", 3),
        ("react_micro", 2),
    ],
)
def test_no_hard_flip_elsewhere(program, tmp_path, name, block, mode):
    comparison = compared(program, c_port.GOLDEN / name, block, tmp_path / "out", mode)
    found = [v for v in comparison.verdicts if v.name.startswith(f"blocks.{block}.")]
    assert found and all(v.verdict not in ("FAIL", "MISSING") for v in found)
    if mode == "replay":  # its own z decide its own bits
        exact = {v.verdict for v in found if v.kind != "real"}
        assert exact <= {"EXACT", "UNJUDGED"}


# --- every reading --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in FULL if name != CONTROL])
def test_each_value_of_each_field(program, tmp_path, name):
    network = networks.make(FULL[name], seed=23)
    bundle = tmp_path / "bundle"
    golden.make(bundle, network.model, network.params, network.images)
    comparison = compared(program, bundle, 1, tmp_path / "out", "replay")
    assert all(v.verdict in ("EXACT", "NEAR") for v in judged(comparison, 1))


def test_the_control_of_an_ablation_is_refused(program, tmp_path):
    """It is a network without Haar bands, which is not what is ported."""
    network = networks.make(FULL[CONTROL], seed=23)
    bundle = tmp_path / "bundle"
    golden.make(bundle, network.model, network.params, network.images)
    result = c_port.run(program, bundle, 1, tmp_path / "out")
    assert result.returncode != 0
    assert '"haar_mode" is neither "edge" nor "periodic"' in result.stderr


# --- bad files and arguments ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    bundle = tmp_path_factory.mktemp("good") / "bundle"
    network = networks.make(FULL["didb-pool-cls"].replace(depth=1), seed=24)
    golden.make(bundle, network.model, network.params, network.images, taps="block")
    return bundle


def halved(data: bytes) -> bytes:
    return data[: len(data) // 2]


def longer(data: bytes) -> bytes:
    return data + b"\0\0\0\0"


def replaced(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        assert old in data
        return data.replace(old, new, 1)

    return change


def header(text: bytes, data: bytes = b"") -> Callable[[bytes], bytes]:
    return lambda _: struct.pack("<Q", len(text)) + text + data


MANIFEST, INDEX, WEIGHTS, TOKENS = "manifest.json", "index.csv", "weights.safetensors", "tokens.npy"
SHIFT = b'"blocks.0.attn.q_low.move":{"dtype":"F64","shape":[10],'
BAD = {
    "manifest: missing": (MANIFEST, None, "No such file"),
    "manifest: empty": (MANIFEST, lambda _: b"", "expected a value"),
    "manifest: half": (MANIFEST, halved, "malformed JSON"),
    "manifest: deep": (MANIFEST, lambda _: b"[" * 10000, "nested too deeply"),
    "manifest: no config": (MANIFEST, replaced(b'"config"', b'"konfig"'), 'no "config"'),
    "manifest: stage": (MANIFEST, replaced(b'"full"', b'"none"'), '"binarize" is not "full"'),
    "manifest: no heads": (MANIFEST, replaced(b'"heads": 2', b'"heads": 0'), "do not fit"),
    "manifest: huge": (MANIFEST, replaced(b'"dim": 10', b'"dim": 99999999999999999999'), "large"),
    "manifest: reading": (MANIFEST, replaced(b'"edge"', b'"mirror"'), 'neither "edge" nor'),
    "index: missing": (INDEX, None, "No such file"),
    "index: other columns": (INDEX, replaced(b"file", b"path"), "no column is called file"),
    "index: no such tap": (INDEX, replaced(b",tokens,", b",token,"), "no tap is called tokens"),
    "index: leaves the folder": (
        INDEX, replaced(b"taps/001.tokens.npy", b"../001.tokens.npy"), "outside the bundle",
    ),
    "tokens: half": (TOKENS, halved, "bytes of values"),
    "tokens: longer": (TOKENS, longer, "bytes of values"),
    "tokens: in the header": (TOKENS, lambda data: data[:20], "truncated in its header"),
    "tokens: no npy": (TOKENS, lambda _: b"P5 28 28 255 and so on", "not an .npy file"),
    "tokens: big-endian": (TOKENS, replaced(b"<f8", b">f8"), "little-endian"),
    "tokens: Fortran order": (TOKENS, replaced(b"False", b"True "), "not in C order"),
    "tokens: shape": (TOKENS, replaced(b"7, 10)", b"10, 7)"), "does not have the shape"),
    "weights: empty": (WEIGHTS, lambda _: b"", "not a safetensors file"),
    "weights: half": (WEIGHTS, halved, "truncated or misplaced"),
    "weights: longer": (WEIGHTS, longer, "bytes of data"),
    "weights: header too long": (WEIGHTS, lambda data: b"\xff" * 8 + data[8:], "in its header"),
    "weights: no JSON": (WEIGHTS, header(b"hello"), "malformed JSON"),
    "weights: nothing in it": (WEIGHTS, header(b"{}"), "no parameter is called blocks.0.norm1"),
    "weights: type": (WEIGHTS, replaced(SHIFT, SHIFT.replace(b"F64", b"I64")), "the type"),
    "weights: shape": (WEIGHTS, replaced(SHIFT, SHIFT.replace(b"10", b"11")), "misplaced"),
    "weights: twice": (
        WEIGHTS,
        header(b'{"blocks.0.norm1.weight":{"dtype":"F32","shape":[],"data_offsets":[0,4]},'
               b'"blocks.0.norm1.weight":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}',
               b"\0" * 8),
        "stands there twice",
    ),
    "weights: offsets": (
        WEIGHTS,
        header(b'{"blocks.0.norm1.weight":{"dtype":"F32","shape":[10],"data_offsets":[40,0]}}'),
        "misplaced",
    ),
    "weights: shape that wraps around": (
        WEIGHTS,
        header(b'{"x":{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,0]}}'),
        "a size of more than",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_one_line(program, good, tmp_path, name):
    file, change, words = BAD[name]
    bundle = shutil.copytree(good, tmp_path / "bundle")
    path = bundle / file if file != TOKENS else next((bundle / "taps").glob("*.tokens.npy"))
    if change is None:
        path.unlink()
    else:
        path.write_bytes(change(path.read_bytes()))
    assert_refused(c_port.run(program, bundle, 0, tmp_path / "out"), words)


@pytest.mark.parametrize(("block", "words"), [("first", "BLOCK"), ("-1", "BLOCK"), (7, "no tap")])
def test_a_bad_block_is_one_line(program, good, tmp_path, block, words):
    assert_refused(c_port.run(program, good, block, tmp_path / "out"), words)


def test_a_value_that_is_not_finite_is_one_line(program, good, tmp_path):
    bundle = shutil.copytree(good, tmp_path / "bundle")
    path = next((bundle / "taps").glob("*.tokens.npy"))
    tokens = np.load(path)
    tokens[0, 0, 0] = np.nan
    np.save(path, tokens)
    assert_refused(c_port.run(program, bundle, 0, tmp_path / "out"), "not finite")


def assert_refused(result, words: str) -> None:
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("didb_block: ") and result.stderr.count("\n") == 1
    assert words in result.stderr
