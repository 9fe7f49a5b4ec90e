"""The bundle [SPEC 8.1]: what it holds, that others can read it, and what is refused."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save

from refimpl import disk
from refimpl.conventions import (
    ConfigError,
    GoldenFileError,
    NonFiniteError,
    OutputError,
    ShapeError,
)
from refimpl.golden import compare, make, read, record, store, vectors
from refimpl.models import flatten
from refimpl.models.packing import binary_matrices, pack_rows
from tests import golden_networks, networks

NETWORK = golden_networks.network()


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("golden") / "bundle"
    golden_networks.bundle(path, NETWORK)
    return path


@pytest.fixture
def path(original, tmp_path) -> Path:
    """A copy, to be broken."""
    return Path(shutil.copytree(original, tmp_path / "bundle"))


def exact_taps() -> dict[str, record.Step]:
    dlogits = np.random.default_rng(0).standard_normal((2, 4))
    exact = networks.as_type(NETWORK, np.float64)
    return record.trace(exact.model, exact.params, exact.images, dlogits)


# What it holds


def test_a_round_trip(original):
    bundle, steps = read(original), exact_taps()
    assert list(bundle.entries) == [name for name in steps if name != record.INPUT]
    for name, entry in bundle.entries.items():
        value, golden = bundle.value(name), steps[name].value
        assert value.dtype == golden.dtype and entry.inputs == steps[name].inputs
        np.testing.assert_array_equal(value, golden, err_msg=name)
    assert bundle.model == NETWORK.model
    for name, value in flatten(bundle.params).items():
        assert value.dtype == np.float64
        np.testing.assert_array_equal(value, flatten(NETWORK.params)[name])
    np.testing.assert_array_equal(bundle.input, NETWORK.images)
    np.testing.assert_array_equal(bundle.output, steps["logits"].value)


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((path / "index.csv").read_text())))


def test_it_needs_no_library_of_ours(original):
    """The csv module, NumPy's own loader, safetensors and bits by hand."""
    steps = exact_taps()
    header = (original / "index.csv").read_text().splitlines()[0]
    assert header == (
        "number,name,class,dtype,shape,file,op,attributes,inputs,threshold,tolerance,ties,margin,"
        "sha256"
    )
    for row in rows(original):
        data = (original / row["file"]).read_bytes()
        assert data.startswith(b"\x93NUMPY\x01\x00")
        assert hashlib.sha256(data).hexdigest() == row["sha256"]
        array, golden = np.load(original / row["file"]), steps[row["name"]].value
        assert array.flags.c_contiguous and array.dtype.byteorder in "=|<"
        shape = tuple(map(int, row["shape"].split()))
        assert array.dtype.name == row["dtype"] and shape == golden.shape
        if row["class"] == "bit":
            K = shape[-1]
            assert array.shape == (*shape[:-1], -(-K // 64) * 8)
            bits = [(array[..., k // 8] >> (k % 8)) & 1 for k in range(8 * array.shape[-1])]
            np.testing.assert_array_equal(np.stack(bits[:K], -1), golden)
            assert not np.any(bits[K:])
        else:
            np.testing.assert_array_equal(array, golden)


def test_the_tie_census(original):
    """Recounted from the files alone."""
    values = {row["name"]: np.load(original / row["file"]) for row in rows(original)}
    bits = [row for row in rows(original) if row["class"] == "bit"]
    assert len(bits) == 22
    for row in bits:
        z = values[row["name"].removesuffix("bit") + "z"]
        threshold = 0.5 if row["name"].endswith("prob.bit") else 0.0
        assert float(row["threshold"]) == threshold
        margin = np.abs(z - threshold)
        assert (int(row["ties"]), float(row["margin"])) == ((margin == 0).sum(), margin.min())
        assert 0 < float(row["tolerance"]) < 1e-2
    assert {row["tolerance"] for row in rows(original) if row["class"] == "int"} == {""}


def test_numbers_and_files(original):
    found = [(row["number"], row["name"], row["file"]) for row in rows(original)]
    assert found[0] == ("0", "patch_embed.out", "taps/000.patch_embed.out.npy")
    assert found[3] == (
        "3", "blocks.0.attn.low", "taps/003.blocks.0.attn.low.npy"
    )  # fmt: skip
    gradients = [f for f in found if f[1].startswith("grads/")]
    assert gradients[0] == ("0", "grads/logits", "grads/000.logits.npy")
    assert found[-1][1] == "grads/input"


def test_the_manifest(original):
    manifest = json.loads((original / "manifest.json").read_text())
    assert manifest["format_version"] == "2" and manifest["free_margin"] == 64
    assert manifest["config"] == NETWORK.model.config.to_json()
    assert (manifest["dtype"], manifest["taps"], manifest["grads"]) == ("float64", "all", True)
    assert set(manifest["tool"]) == {"refimpl", "numpy", "python"}
    assert "least significant bit first" in manifest["conventions"]["layout"]
    for name, sha256 in manifest["sha256"].items():
        if name != "config":
            assert hashlib.sha256((original / name).read_bytes()).hexdigest() == sha256


def test_weights_are_latent_with_bits_and_scales(original):
    with safe_open(original / "weights.safetensors", framework="numpy") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    binary = binary_matrices(NETWORK.model.config)
    assert len(binary) == 8
    for name, value in flatten(NETWORK.params).items():
        np.testing.assert_array_equal(stored.pop(name), value)
        if name in binary:
            weight, stem = value.astype(np.float64), name.removesuffix("weight")
            centred = weight - weight.mean(axis=1, keepdims=True)
            np.testing.assert_array_equal(stored.pop(f"{stem}bits"), pack_rows(centred >= 0))
            scale = stored.pop(f"{stem}scale")
            np.testing.assert_array_equal(scale, np.abs(weight).mean(axis=1))
    assert not stored


def test_the_same_arguments_give_the_same_bytes(original, tmp_path):
    golden_networks.bundle(tmp_path / "again", NETWORK)
    names = sorted(p.relative_to(original) for p in original.rglob("*") if p.is_file())
    assert names == sorted(
        p.relative_to(tmp_path / "again") for p in (tmp_path / "again").rglob("*") if p.is_file()
    )
    for name in names:
        assert (original / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_single_precision(tmp_path):
    bundle = golden_networks.bundle(tmp_path / "b", NETWORK, dtype="float32")
    assert {e.dtype for e in bundle.entries.values()} == {"uint8", "int32", "float32"}
    assert bundle.input.dtype == bundle.output.dtype == np.float32
    assert bundle.reference.steps["logits"].value.dtype == np.float64


SHELL = ["patch_embed.out", "tokens", "blocks.0.mid", "blocks.0.out", "norm.out", "logits"]


def test_taps_of_blocks_and_of_the_ends(tmp_path):
    block = golden_networks.bundle(tmp_path / "block", NETWORK, taps="block", grads=False)
    assert [n for n, e in block.entries.items() if e.kind == "real"] == SHELL
    bits = [n for n, e in block.entries.items() if e.kind == "bit"]
    steps = [n for n, s in exact_taps().items() if s.value.dtype == bool and ".weight." not in n]
    assert bits == steps
    # the nearest that are stored
    mid = block.entries["blocks.0.mid"].inputs
    assert mid[0] == "tokens" and "blocks.0.attn.proj.bit" in mid and "norm1" not in str(mid)
    assert block.entries["blocks.0.attn.v.bit"].inputs == ("tokens",)
    ends = golden_networks.bundle(tmp_path / "io", NETWORK, taps="io", grads=False)
    assert list(ends.entries) == ["logits"] and ends.entries["logits"].inputs == ("input",)
    gradients = golden_networks.bundle(tmp_path / "grads", NETWORK, taps="io").entries
    assert len(gradients) == len(flatten(NETWORK.params)) + 3
    assert {"grads/logits", "grads/input", "grads/param.cls_token"} < set(gradients)


# Writing


def test_nothing_is_overwritten(path):
    before = (path / "index.csv").read_bytes()
    with pytest.raises(GoldenFileError, match=r"bundle: exists; expected a new folder or an empty"):
        golden_networks.bundle(path, NETWORK)
    (path.parent / "file").write_text("")
    with pytest.raises(GoldenFileError, match="file: exists"):
        golden_networks.bundle(path.parent / "file", NETWORK)
    assert (path / "index.csv").read_bytes() == before


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "empty").mkdir()
    golden_networks.bundle(tmp_path / "empty", NETWORK, taps="io")
    assert os.listdir(tmp_path) == ["empty"]
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "empty").stat().st_mode & 0o777 == 0o777 & ~umask


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        golden_networks.bundle(tmp_path / "bundle", NETWORK, taps="io")
    assert os.listdir(tmp_path) == []


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(OutputError, match="nowhere/bundle: no such folder"):
        golden_networks.bundle(tmp_path / "nowhere" / "bundle", NETWORK, taps="io")


@pytest.mark.parametrize("option, value", [
    ("dtype", "float16"), ("kind", "nice"), ("dtype", np.float32),
])  # fmt: skip
def test_unknown_options(tmp_path, option, value):
    with pytest.raises(ConfigError, match=f"golden make: {option} is .*; expected one of"):
        golden_networks.bundle(tmp_path / "b", NETWORK, **{option: value})


def test_taps_by_patterns(tmp_path):
    """Those that fit any, in order of computation; the logits and their gradient always."""
    made = golden_networks.bundle(tmp_path / "a", NETWORK, taps=["*.mid", "*.mlp.*.int", "g*.mid"])
    assert list(made.entries) == [
        "blocks.0.mid", "blocks.0.mlp.up.int", "blocks.0.mlp.down.int", "logits",
        "grads/logits", "grads/blocks.0.mid",
    ]  # fmt: skip
    stored = {"blocks.0.mid", "blocks.0.mlp.up.int", "blocks.0.mlp.down.int"}
    assert set(made.entries["logits"].inputs) == stored
    assert made.manifest["taps"] == ["*.mid", "*.mlp.*.int", "g*.mid"]
    with_preset = golden_networks.bundle(tmp_path / "b", NETWORK, taps=["io", "*.mid"], grads=False)
    assert list(with_preset.entries) == ["blocks.0.mid", "logits"]
    one = golden_networks.bundle(tmp_path / "c", NETWORK, taps=["io"], grads=False)
    assert one.manifest["taps"] == "io"


@pytest.mark.parametrize("taps, grads, words", [
    ("some", True, "'some' fits no tap of the model; expected all, block, io or a pattern"),
    ("blok", True, "did you mean 'block'?"),
    ("grads/*", False, "'grads/.' fits gradients alone; expected --grads, too"),
    (["io", "blocks.7.*"], True, "'blocks.7..' fits no tap"),
])  # fmt: skip
def test_a_pattern_that_fits_nothing(tmp_path, taps, grads, words):
    with pytest.raises(ConfigError, match=words):
        golden_networks.bundle(tmp_path / "b", NETWORK, taps=taps, grads=grads)
    assert os.listdir(tmp_path) == []


def test_a_bundle_is_replaced_only_by_one(tmp_path):
    first = golden_networks.bundle(tmp_path / "b", NETWORK, taps="io")
    again = golden_networks.bundle(tmp_path / "b", NETWORK, taps="block", overwrite=True)
    assert len(again.entries) > len(first.entries)
    assert os.listdir(tmp_path) == ["b"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "words").write_text("kept")
    with pytest.raises(GoldenFileError, match="mine: holds no index.csv of ours; expected"):
        golden_networks.bundle(tmp_path / "mine", NETWORK, overwrite=True)
    assert (tmp_path / "mine" / "words").read_text() == "kept"


@pytest.mark.parametrize("header", ["file,sha256", "case,file", ",".join(store.COLUMNS["2"])])
def test_an_index_of_somebody_else_is_none_of_ours(tmp_path, header):
    """Many programs list their files in such a table."""
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "holiday.jpg").write_bytes(b"kept")
    line = ",".join("holiday.jpg" for _ in header.split(","))
    (mine / "index.csv").write_text(f"{header}\n{line}\n")
    with pytest.raises(GoldenFileError, match="mine: holds no index.csv of ours"):
        golden_networks.bundle(mine, NETWORK, overwrite=True)
    with pytest.raises(GoldenFileError, match="mine: holds no index.csv of ours"):
        vectors.write("softmax", mine, overwrite=True)
    assert (mine / "holiday.jpg").read_bytes() == b"kept"


def test_what_no_run_has_written_is_never_replaced(tmp_path):
    """A project may have files of these names; a bundle may hold notes of its user."""
    golden_networks.bundle(tmp_path / "b", NETWORK, taps="io")
    (tmp_path / "b" / "src").mkdir()
    (tmp_path / "b" / "src" / "main.py").write_text("kept")
    project = tmp_path / "project"
    project.mkdir()
    (project / "manifest.json").write_text('{"name": "my web app"}')
    (project / "index.csv").write_text("id,label\n0,cat\n")
    for folder, words in ((tmp_path / "b", "b: holds src/main.py, which"), (project, "of ours")):
        before = {path: path.is_dir() or path.read_bytes() for path in folder.rglob("*")}
        with pytest.raises(GoldenFileError, match=words):
            golden_networks.bundle(folder, NETWORK, overwrite=True)
        with pytest.raises(GoldenFileError, match="of ours"):  # a bundle is no folder of vectors
            vectors.write("softmax", folder, overwrite=True)
        after = {path: path.is_dir() or path.read_bytes() for path in folder.rglob("*")}
        assert after == before
    vectors.write("softmax", tmp_path / "v", text=True)
    (tmp_path / "v" / "link").symlink_to(project, target_is_directory=True)
    with pytest.raises(GoldenFileError, match="v: holds link, which no earlier run"):
        vectors.write("softmax", tmp_path / "v", overwrite=True)
    (tmp_path / "v" / "link").unlink()
    (tmp_path / "v" / "notes.txt").write_text("kept")
    with pytest.raises(GoldenFileError, match="v: holds notes.txt, which no earlier run"):
        vectors.write("softmax", tmp_path / "v", overwrite=True)


def test_a_full_disk_names_the_folder(tmp_path):
    with pytest.raises(OSError, match="No space left.*whole'"), disk.new_folder(tmp_path / "whole"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert os.listdir(tmp_path) == []


def test_images_that_do_not_fit(tmp_path):
    """Another size, too: what a bundle says of its network must be what ran."""
    wider = networks.with_images_of(NETWORK, (3, 4)).images
    for images, error in (
        (NETWORK.images[:, :1], ShapeError), (NETWORK.images * np.nan, NonFiniteError),
        (wider, ShapeError),
    ):  # fmt: skip
        with pytest.raises(error, match="images"):
            make(tmp_path / "b", NETWORK.model, NETWORK.params, images)
    assert os.listdir(tmp_path) == []


# Reading what is broken


def refuse(path: Path, *parts: str) -> None:
    with pytest.raises(GoldenFileError) as error:
        read(path)
    text = str(error.value)
    assert "\n" not in text
    for part in parts:
        assert part in text, text


TAP = "taps/003.blocks.0.attn.low.npy"


def forge(path: Path, name: str, data: bytes) -> None:
    """Another content of a file, with the hashes that belong to it."""
    index = (path / "index.csv").read_text()
    if (path / name).is_file() and name != "index.csv":
        old = hashlib.sha256((path / name).read_bytes()).hexdigest()
        index = index.replace(old, hashlib.sha256(data).hexdigest())
    if name == "index.csv":
        index = data.decode("latin-1")
    else:
        (path / name).write_bytes(data)
    (path / "index.csv").write_bytes(index.encode("latin-1"))
    manifest = json.loads((path / "manifest.json").read_text())
    for hashed in store.HASHED:
        content = (path / hashed).read_bytes()
        manifest["sha256"][hashed] = hashlib.sha256(content).hexdigest()
    (path / "manifest.json").write_text(json.dumps(manifest))


def edit_index(path: Path, old: str, new: str) -> None:
    text = (path / "index.csv").read_text()
    assert old in text
    forge(path, "index.csv", text.replace(old, new, 1).encode())


def array_bytes(array: np.ndarray, version=(1, 0)) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version=version)
    return file.getvalue()


def test_a_forged_file_with_its_hashes_is_read(path):
    """So what the next tests find is what they have broken."""
    forge(path, TAP, array_bytes(np.zeros((2, 7, 10))))
    assert not read(path).value("blocks.0.attn.low").any()


@pytest.mark.parametrize("name", [TAP, "index.csv", "input_0.npy", "output_0.npy",
                                  "weights.safetensors", "manifest.json"])  # fmt: skip
def test_a_file_that_is_missing_truncated_or_changed(path, name):
    content = (path / name).read_bytes()
    for spoilt in (content[:-7], b"", content + b" "):
        (path / name).write_bytes(spoilt)
        if not (name == "manifest.json" and spoilt):
            refuse(path, name)
    (path / name).unlink()
    refuse(path, name, "cannot be read")


@pytest.mark.parametrize("array, part", [
    (np.zeros((2, 10, 7)), "shape (2, 10, 7); expected (2, 7, 10)"),
    (np.zeros((2, 7, 10), np.float32), "dtype float32; expected float64"),
    (np.zeros((2, 7, 10), ">f8"), "big-endian"),
    (np.full((2, 7, 10), np.inf), "NaN or infinity"),
    (np.zeros((2, 7, 10), object), "pickle"),
])  # fmt: skip
def test_a_tap_that_is_not_what_the_index_says(path, array, part):
    forge(path, TAP, array_bytes(array))
    refuse(path, TAP, part)


def test_a_pickle_is_not_loaded(path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(path / "loaded"),))

    forge(path, TAP, array_bytes(np.array([Evil()], dtype=object)))
    refuse(path, TAP, "pickle")
    assert not (path / "loaded").exists()


def test_truncated_values(path):
    forge(path, TAP, (path / TAP).read_bytes()[:-8])
    refuse(path, TAP, "truncated")


def test_padding(path):
    (row,) = [r for r in rows(path) if r["name"] == "blocks.0.attn.v.bit"]
    packed = np.load(path / row["file"])
    packed[1, 2, -1] |= 128
    forge(path, row["file"], array_bytes(packed))
    refuse(path, row["file"], "a padding bit is 1; expected 0 from 10 on")


@pytest.mark.parametrize("old, new, part", [
    ("tokens,real", "patch_embed.out,real", "a name that came before"),
    ("taps/003", "../003", "file '../003.blocks.0.attn.low.npy'; expected 'taps/003"),
    ("taps/003.", "/etc/", "file '/etc/blocks"),
    ("3,blocks.0.attn.low", "4,blocks.0.attn.low", "number 4; expected 3"),
    ("blocks.0.attn.low,real", "blocks/0,real", "name 'blocks/0'"),
    ("blocks.0.attn.low,real", "blocks.0.attn.low,int", "dtype 'float64'; expected 'int32'"),
    ("blocks.0.attn.low,real", "blocks.0.attn.low,word", "class 'word'"),
    ("2 7 10,taps/003", "2 7 ten,taps/003", "line 5: invalid literal"),
    ("2 7 10,taps/003", "2 -7 10,taps/003", "shape (2, -7, 10); expected sizes of at least 1"),
    ("2 7 10,taps/003", "2 10 7,taps/003", "shape (2, 7, 10); expected (2, 10, 7)"),
    (",taps/003", ",,taps/003", "15 columns; expected 14"),
    ("number,", "n,", "line 1: expected number,name"),
    ("eps=1e-05,tokens,", "eps=1e-05,tokens.out,", "input 'tokens.out' is no line before it"),
    (",0.0,", ",0.5,", "threshold 0.5; expected 0.0"),
    ("\n0,grads/logits", "\n1,grads/logits", "number 1; expected 0"),
])  # fmt: skip
def test_an_index_that_is_wrong(path, old, new, part):
    edit_index(path, old, new)
    refuse(path, "bundle/", part)


def test_operations_stand_in_the_index(original):
    found = {row["name"]: (row["op"], row["attributes"]) for row in rows(original)}
    block = "blocks.0."
    assert found["patch_embed.out"] == ("patch_embed", "")
    assert found[f"{block}attn.low"] == ("bands", "grid=2x3 mode=edge cls=both")
    assert found[f"{block}norm1.out"] == ("layer_norm", "eps=1e-05")
    assert found[f"{block}mlp.up.bit"] == ("binary_linear", "binarize=full ste=polynomial")
    assert found[f"{block}attn.v.head_bit"] == ("sign", "ste=polynomial")
    assert found["grads/logits"] == ("", "")


def test_a_bundle_of_version_1_is_read(path):
    """It has no columns `op` and `attributes`."""
    new = read(path)
    table = rows(path)
    columns = [c for c in table[0] if c not in ("op", "attributes")]
    lines = [",".join(columns), *(",".join(row[c] for c in columns) for row in table)]
    forge(path, "index.csv", ("\n".join(lines) + "\n").encode())
    refuse(path, "index.csv", "line 1: expected number,name,class,dtype,shape,file,op,")
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "format_version": "1"}))
    old = read(path)
    assert old.entries == {n: e._replace(op="", attributes="") for n, e in new.entries.items()}
    assert compare(old, {name: old.value(name) for name in old.entries}).passed


@pytest.mark.parametrize("data", [b"", b"\xff\xfe", b'"', b"a,b\n1,2\n"])
def test_an_index_that_is_none(path, data):
    forge(path, "index.csv", data)
    refuse(path, "index.csv")


@pytest.mark.parametrize("key, value, part", [
    ("format", "other", "no manifest of a golden bundle"),
    ("format_version", "3", "format_version '3'; expected '1' or '2'"),
    ("format_version", 1, "format_version 1; expected '1' or '2'"),
    ("dtype", "float16", "dtype 'float16'; expected 'float64' or 'float32'"),
    ("taps", "some", "taps 'some'; expected 'all' or 'block' or 'io', or a list of patterns"),
    ("taps", ["*", 3], "taps ['*', 3]"),
    ("free_margin", -1, "free_margin -1"),
    ("free_margin", True, "free_margin True"),
    ("sha256", None, "sha256 is missing"),
    ("grads", 1, "grads 1; expected true or false"),
    ("search", [], "search []; expected an object or null"),
    ("conventions", "none", "conventions 'none'; expected an object"),
    ("tool", None, "tool None; expected an object"),
    ("config", {}, "config has another sha256"),
])  # fmt: skip
def test_a_manifest_that_is_wrong(path, key, value, part):
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, key: value}))
    refuse(path, "manifest.json", part)


@pytest.mark.parametrize("key", ["grads", "search", "conventions", "tool"])
def test_a_manifest_without_a_key(path, key):
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest[key]
    (path / "manifest.json").write_text(json.dumps(manifest))
    refuse(path, "manifest.json", f"{key} is missing")


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"null", b"[" * 100_000, b"\xff"])
def test_a_manifest_that_is_none(path, data):
    (path / "manifest.json").write_bytes(data)
    refuse(path, "manifest.json")


def test_a_config_that_the_weights_are_not_of(path):
    manifest = json.loads((path / "manifest.json").read_text())
    for fields, part in (({"depth": 2}, "blocks.1"),
                         ({"depth": 10**9}, "expected at most 1,000 blocks"),
                         ({"dim": 20}, "shape"), ({"heads": 0}, "heads"),
                         ({"similarity": "plain"}, "missing")):  # fmt: skip
        config = {**manifest["config"], **fields}
        sha256 = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
        changed = {**manifest, "config": config, "sha256": {**manifest["sha256"], "config": sha256}}
        (path / "manifest.json").write_text(json.dumps(changed))
        refuse(path, part)


@pytest.mark.parametrize("spoil, part", [
    (lambda a: a.pop("blocks.0.attn.q_low.scale"), "q_low.scale: missing"),
    (lambda a: a.pop("head.bias"), "head.bias: missing"),
    (lambda a: a.update(extra=np.zeros(1)), "extra: unknown array"),
    (lambda a: a.update({"head.bias": np.zeros(4, np.int32)}), "head.bias: int32"),
    (lambda a: a.update({"head.bias": np.full(4, np.nan)}), "head.bias: holds NaN"),
    (lambda a: a.update({"blocks.0.mlp.up.bits": np.full((30, 8), 255, np.uint8)}), "padding bit"),
    (lambda a: a.update({"blocks.0.mlp.up.scale": np.zeros(29)}), "shape (29,); expected (30,)"),
])  # fmt: skip
def test_weights_that_are_wrong(path, spoil, part):
    with safe_open(path / "weights.safetensors", framework="numpy") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    spoil(arrays)
    forge(path, "weights.safetensors", save(arrays))
    refuse(path, "weights.safetensors", part)


@pytest.mark.parametrize("name", [TAP, "index.csv", "manifest.json", "weights.safetensors"])
def test_a_link_out_of_the_folder_is_not_followed(path, name):
    outside = path.parent / "outside"
    shutil.move(path / name, outside)
    (path / name).symlink_to(outside)
    refuse(path, name, "is a link")


def test_a_folder_of_taps_that_is_a_link(path):
    shutil.move(path / "taps", path.parent / "elsewhere")
    (path / "taps").symlink_to(path.parent / "elsewhere")
    refuse(path, "taps", "is a link")


def test_a_pipe_in_the_place_of_a_tap(path):
    (path / TAP).unlink()
    os.mkfifo(path / TAP)
    refuse(path, TAP, "no ordinary file")


@pytest.mark.parametrize("name", ["manifest.json", "index.csv", "weights.safetensors", TAP])
def test_a_pointer_of_git_lfs(path, name):
    (path / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\n")
    refuse(path, name, "a pointer of Git LFS")


def test_a_path_that_is_no_bundle(path, tmp_path):
    refuse(path / "nowhere", "nowhere: no such folder; expected a golden bundle")
    refuse(path / "index.csv", "index.csv: is no folder; expected a golden bundle")
    refuse(tmp_path, "manifest.json: cannot be read")


def test_a_tap_that_the_model_does_not_have(path):
    """Found when the reference is run: its names are those of the configuration."""
    edit_index(path, "patch_embed.out,real", "patch_embed.in,real")
    index = (path / "index.csv").read_text().replace(",patch_embed.out,", ",patch_embed.in,")
    index = index.replace("000.patch_embed.out", "000.patch_embed.in").replace(
        "grads/patch_embed.in input", "grads/patch_embed.out input"
    )
    (path / "taps/000.patch_embed.out.npy").rename(path / "taps/000.patch_embed.in.npy")
    forge(path, "index.csv", index.encode())
    with pytest.raises(GoldenFileError, match=r"patch_embed.in: the model has no such tap"):
        read(path).reference  # noqa: B018
