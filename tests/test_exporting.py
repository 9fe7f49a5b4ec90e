"""`refimpl export`: what is written is there whole or not at all, and hex files are the network."""

from __future__ import annotations

import csv
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import refimpl
from refimpl.conventions import ExportError, OutputError
from refimpl.exporting import c, hexfiles, source
from refimpl.models import files, flatten, packing
from tests import exported_c, networks
from tests.command_line import MODEL, assert_one_line, run, save_model

TARGETS = ("--c", "--hex")
HEX_FILES = ("blocks.0.attn.v.weight.hex", "head.bias.hex", "index.csv", "row.signs.hex", "row.v")


@pytest.fixture
def model(tmp_path) -> Path:
    save_model(tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


# --- the folder -----------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
def test_a_folder_that_is_there_is_refused_and_written_again_with_force(model, tmp_path, target):
    out = tmp_path / "out"
    result = run("export", model, target, out)
    assert result.status == 0 and str(out) in result.out and not result.err
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert_one_line(run("export", model, target, out), str(out), "exists", "expected")
    for path in out.iterdir():  # as after an export of other values
        path.write_bytes(path.read_bytes().partition(b"\n")[0] + b"\r\nold")
    assert run("export", model, target, out, "--force").status == 0
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert {path.name for path in tmp_path.iterdir()} == {"model.json", "model.safetensors", "out"}


@pytest.mark.parametrize("target", TARGETS)
def test_a_folder_with_other_things_in_it_stays_even_with_force(model, tmp_path, target):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    words = str(out), "thesis.txt, which would not be written again"
    assert_one_line(run("export", model, target, out, "--force"), *words)
    assert_one_line(run("export", model, target, out), str(out), "exists")
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]
    # the model's own folder holds the model
    assert_one_line(run("export", model, target, tmp_path, "--force"), "would not be written again")
    (tmp_path / "file").write_text("mine")
    assert_one_line(run("export", model, target, tmp_path / "file", "--force"), "exists")


@pytest.mark.parametrize("kind", ["file", "empty", "folder", "other name"])
@pytest.mark.parametrize("target", TARGETS)
def test_a_file_of_the_users_stays_whatever_its_name(model, tmp_path, target, kind):
    """Even with --force, and when all others in the folder are of an earlier export."""
    out = tmp_path / "out"
    assert run("export", model, target, out).status == 0
    for name in ("model.c", "model.h") if target == "--c" else HEX_FILES:
        whole, mine = (out / name).read_bytes(), out / name
        mine.unlink()
        if kind == "folder":
            mine.mkdir()
            (mine / "thesis.txt").write_text("mine")
        else:
            data = {"file": b"int mine;\n", "empty": b"", "other name": b"//" + whole}[kind]
            mine.write_bytes(data)
        words = f"{out}: holds {name}, which no earlier run has written; expected a new folder"
        assert_one_line(run("export", model, target, out, "--force"), words)
        if kind == "folder":
            assert (mine / "thesis.txt").read_text() == "mine"
            shutil.rmtree(mine)
        else:
            assert mine.read_bytes() == data
        mine.write_bytes(whole)
    assert run("export", model, target, out, "--force").status == 0


def test_hex_files_of_another_word_and_format_are_those_of_an_earlier_run(model, tmp_path):
    out = tmp_path / "out"
    assert run("export", model, "--hex", out).status == 0
    again = ("export", model, "--hex", out, "--word", 8, "--floats", "fixed", "--force")
    assert run(*again).status == 0
    assert "words of 8 a row" in next(out.glob("*.weight.hex")).read_text()


@pytest.mark.parametrize("target", TARGETS)
def test_where_the_disk_fails_nothing_stays(model, tmp_path, monkeypatch, target):
    written = []

    def full(path, data):
        written.append(path)
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        return len(data)

    run("export", model, target, tmp_path / "old")
    before = {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()}
    monkeypatch.setattr(Path, "write_bytes", full)
    for out, force in (("new", ()), ("old", ("--force",))):
        written.clear()
        assert_one_line(run("export", model, target, tmp_path / out, *force), "No space left")
    assert {path.name for path in tmp_path.iterdir()} == {"model.json", "model.safetensors", "old"}
    assert {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()} == before


def test_a_folder_in_no_folder_is_told(model, tmp_path):
    result = run("export", model, "--c", tmp_path / "none" / "out")
    assert_one_line(result, "none/out", "no such folder as")


def test_one_target_is_asked_for(model):
    assert run("export", model).status == 2
    assert run("export", model, "--c", "a", "--hex", "b").status == 2


@pytest.mark.parametrize("option", [("--word", 8), ("--floats", "fixed")])
def test_options_of_hex_files_belong_to_them(model, tmp_path, option):
    result = run("export", model, "--c", tmp_path / "out", *option)
    assert result.status == 2 and f"{option[0]}: belongs to --hex" in result.err
    assert not (tmp_path / "out").exists()
    assert run("export", model, "--hex", tmp_path / "out", *option).status == 0


def test_a_file_that_is_no_model_is_told(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"12")
    assert_one_line(run("export", tmp_path / "x.safetensors", "--c", tmp_path / "out"), "x.saf")
    assert not (tmp_path / "out").exists()


# --- what cannot be exported ----------------------------------------------------------------------


def test_an_operation_that_is_not_held_is_named(model, tmp_path, monkeypatch):
    monkeypatch.delitem(c.OPS, "bands")
    words = "blocks.0.attn.low", "operation 'bands' cannot be exported to C", "expected one of"
    assert_one_line(run("export", model, "--c", tmp_path / "out"), *words)
    assert not (tmp_path / "out").exists()


def test_a_network_without_binary_matrices_has_no_hex_files(tmp_path):
    for fields in ({"block": "real"}, {"binarize": "activations"}):
        net = networks.make(networks.small(**fields), 0, np.float32)
        files.save(tmp_path / "net.safetensors", net.model, net.params)
        words = "operation 'binary_linear'", "expected a network of binary blocks"
        assert_one_line(
            run("export", tmp_path / "net.safetensors", "--hex", tmp_path / "out"), *words
        )
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("target", [*TARGETS, "--onnx"])
def test_a_value_beyond_float32_is_named_with_its_file(tmp_path, target):
    net = networks.make(networks.small(), 0)
    path = tmp_path / "wide.safetensors"
    files.save(path, net.model, networks.with_values(net.params, {"head.bias": 1e300}))
    words = f"{path}: head.bias: a value is beyond float32; expected at most 3.40282e+38"
    assert_one_line(run("export", path, target, tmp_path / "out"), words)
    assert not (tmp_path / "out").exists()


# --- what is read ---------------------------------------------------------------------------------


def test_a_packed_file_gives_the_same_as_a_latent_one(model, tmp_path):
    """But for the rounding of the scales, which a packed file has in float32 already."""
    packed = tmp_path / "packed.safetensors"
    assert run("pack", model, "-o", packed).status == 0
    latent, bits = source.read(model), source.read(packed)
    assert list(latent.stored) == list(bits.stored)
    for name, array in latent.stored.items():
        tolerance = 1e-6 if name.endswith(".scale") else 0
        np.testing.assert_allclose(bits.stored[name], array, rtol=tolerance)
    assert run("export", packed, "--c", tmp_path / "out").status == 0
    assert latent.sha256 != bits.sha256 and bits.sha256 in (tmp_path / "out/packed.c").read_text()


def test_names_are_identifiers(tmp_path):
    names = {"7 segments-é": "_7_segments__", "int": "int", "a.b": "a_b", "stdint": "stdint_",
             "Math": "Math_", "string": "string_"}  # fmt: skip
    for stem, name in names.items():
        save_model(tmp_path / f"{stem}.safetensors")
        assert source.read(tmp_path / f"{stem}.safetensors").name == name
    if shutil.which("cc"):
        for stem in ("7 segments-é", "int", "stdint", "Math", "string"):
            code = exported_c.export_file(tmp_path / f"{stem}.safetensors", tmp_path / f"{stem}.c")
            exported_c.compile(code, tmp_path / "program", "-O0", "-DTAPS")


def test_bits_are_those_of_the_reference_in_float64(tmp_path):
    net = networks.make(networks.small(), 3)
    files.save(tmp_path / "net.safetensors", net.model, net.params)
    read, flat = source.read(tmp_path / "net.safetensors"), flatten(net.params)
    for path in packing.binary_matrices(net.model.config):
        weight = flat[path]
        bit, scale = read.matrix(path)
        assert np.array_equal(bit, weight - weight.mean(axis=1, keepdims=True) >= 0)
        np.testing.assert_allclose(scale, np.abs(weight).mean(axis=1), rtol=1e-6)


# --- hex files ------------------------------------------------------------------------------------


def memory(path: Path) -> list[int]:
    """What `$readmemh` makes of a file."""
    lines = path.read_text().splitlines()
    return [int(line, 16) for line in lines if not line.startswith("//")]


@pytest.mark.parametrize("floats", ["float", "fixed"])
@pytest.mark.parametrize("word", [8, 16, 32, 64])
def test_hex_files_are_the_network(tmp_path, word, floats):
    """Read again by their index alone, they are what a packed file holds."""
    net = networks.make(networks.small(**networks.DIDB, dim=70), 4, np.float32)
    files.save(tmp_path / "net.safetensors", net.model, net.params)
    out = tmp_path / "out"
    hexfiles.write(out, source.read(tmp_path / "net.safetensors"), word=word, floats=floats)
    entries = list(csv.DictReader((out / "index.csv").open()))
    files_there = {path.name for path in out.iterdir()}
    examples = {"index.csv", "row.v", "row.signs.hex", "row.products.hex"}
    assert files_there == {entry["file"] for entry in entries} | examples
    expected = {path: np.array(a, np.float64) for path, a in flatten(net.params).items()}
    seen = set()
    for entry in entries:
        values, path = memory(out / entry["file"]), entry["parameter"]
        shape = tuple(map(int, entry["shape"].split("x")))
        weight = expected[path]
        if entry["format"] == "bits":
            bits = [value >> i & 1 for value in values for i in range(int(entry["word"]))]
            rows = np.array(bits).reshape(shape[0], -1)
            centred = weight - weight.mean(axis=1, keepdims=True)
            assert np.array_equal(rows[:, : shape[1]], centred >= 0)
            assert not rows[:, shape[1] :].any()
            assert int(entry["words"]) * int(entry["word"]) == rows.shape[1]
        else:
            is_scale = entry["role"] == "scale"
            numbers = np.abs(weight).mean(axis=1) if is_scale else weight.reshape(shape)
            raw = np.array(values, np.uint32)
            if floats == "float":
                found, tolerance = raw.view(np.float32), 1e-6 * np.abs(numbers).max()
            else:
                found = raw.view(np.int32) * 2.0 ** -int(entry["fraction"])
                tolerance = 2.0 ** -int(entry["fraction"]) + 1e-6 * np.abs(numbers).max()
            np.testing.assert_allclose(found.reshape(shape), numbers, rtol=0, atol=tolerance)
        seen.add(path)
    assert seen == set(expected)


def test_fixed_numbers_use_all_bits_and_never_overflow():
    for largest in (0.0, 1e-9, 0.4, 0.999999999, 1.0, 1.5, 2.0, 3.99999976, 1e6, 2.0**40):
        values = np.array([largest, -largest / 3], np.float32)
        places = hexfiles._fraction(values)
        whole = np.rint(np.ldexp(values.astype(np.float64), places))
        assert np.abs(whole).max() < 2**31 and places <= 31
        assert places == 31 or np.abs(whole).max() >= 2**29


@exported_c.needs("iverilog")
@pytest.mark.parametrize(("dim", "word"), [(10, 32), (70, 8), (70, 64)])
def test_the_test_bench_multiplies_a_row(tmp_path, dim, word):
    net = networks.make(networks.small(dim=dim), 5, np.float32)
    files.save(tmp_path / "net.safetensors", net.model, net.params)
    out = tmp_path / "out"
    hexfiles.write(out, source.read(tmp_path / "net.safetensors"), word=word)
    assert len((out / "row.v").read_text().splitlines()) <= 32
    assert simulate(out) == f"PASS: {dim} products\n"
    # one bit of the matrix the other way
    matrix = out / "blocks.0.attn.q.weight.hex"
    lines = matrix.read_text().splitlines()
    lines[2] = f"{int(lines[2], 16) ^ 1:0{word // 4}x}"
    matrix.write_text("\n".join(lines))
    assert "FAIL: 1 of" in simulate(out)


def simulate(folder: Path) -> str:
    subprocess.run(["iverilog", "-Wall", "-o", "row", "row.v"], cwd=folder, check=True)
    done = subprocess.run(["vvp", "row"], cwd=folder, capture_output=True, text=True)
    return "".join(line for line in done.stdout.splitlines(keepends=True) if "$finish" not in line)


# --- from Python ----------------------------------------------------------------------------------


def test_writers_raise_typed_errors(model, tmp_path):
    read = source.read(model)
    assert read.model.config == MODEL.config and read.path == model
    c.write(tmp_path / "out", read)
    with pytest.raises(OutputError, match="exists"):
        c.write(tmp_path / "out", read)
    with pytest.raises(OutputError, match="would not be written again"):
        hexfiles.write(tmp_path / "out", read, overwrite=True)
    with pytest.raises(ExportError, match="operation 'add'"):
        source.require_ops(read.network.nodes, {"shift"} | set(c.OPS) - {"add"}, "C")
    assert issubclass(ExportError, refimpl.conventions.RefimplError)
