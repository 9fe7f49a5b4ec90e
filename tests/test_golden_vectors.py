"""Isolated vectors of every operation: right in float32, small where they say so, files as said."""

from __future__ import annotations

import csv
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from refimpl import ops
from refimpl.conventions import ConfigError, GoldenFileError
from refimpl.golden import record, vector_cases, vectors
from refimpl.golden.vector_cases import Case
from refimpl.golden.vectors import Vector
from refimpl.models.operations import OPERATIONS
from tests import c_port
from tests.command_line import run

Found = dict[str, np.ndarray]
LOSSES = {"cross_entropy", "soft_cross_entropy"}
EVERY = sorted({*OPERATIONS, *LOSSES})


def computed(op: str, case: Case, dys: list[np.ndarray]) -> Found:
    """What `refimpl.ops` gives in float32, by the names of the vectors: outputs and gradients."""
    args = {**case.inputs, **case.params}
    y, cache = getattr(ops, op).forward(*args.values(), **case.attributes)
    ys = y if len(case.outputs) > 1 else (y,)
    dy = tuple(dys) if len(case.outputs) > 1 else dys[0]
    gradients = getattr(ops, op).backward(float(dy) if op in LOSSES else dy, cache)
    named = {f"d{name}": g for name, g in zip(args, gradients, strict=False) if g is not None}
    return dict(zip(case.outputs, ys, strict=True)) | named


def given(found: list[Vector]) -> list[np.ndarray]:
    return [vector.value for vector in found if vector.role == "given gradient"]


def off(vector: Vector, value: np.ndarray) -> bool:
    """Whether a port that has this value is beyond the bound."""
    bound = 0.0 if vector.bound is None else vector.bound
    return bool((np.abs(value.astype(np.float64) - vector.value) > bound).any())


def test_every_operation_has_cases():
    assert set(vector_cases.CASES) == set(OPERATIONS) | LOSSES


@pytest.mark.parametrize("op", EVERY)
def test_single_precision_is_within_the_bounds(op):
    found = vectors.of(op)
    cases = {case.name: case for case in vector_cases.of(op)}
    assert list(found) == list(cases)
    for name, case in cases.items():
        by_name = {vector.name: vector for vector in found[name]}
        for key, value in computed(op, case, given(found[name])).items():
            assert value.dtype == np.float32
            assert value.shape == by_name[key].value.shape, (name, key)
            assert not off(by_name[key], value), (name, key)


@pytest.mark.parametrize("op", EVERY)
def test_bounds_say_something(op):
    """Of an ordinary case every bound is small beside the values, so that a mistake shows."""
    for name, case in vectors.of(op).items():
        for vector in case:
            if vector.bound is None:
                assert vector.role in ("input", "parameter", "given gradient") or (
                    record.kind_of(vector.value) != "real"
                )
                continue
            assert np.isfinite(vector.bound).all()
            size = np.abs(vector.value).max()
            if name in ("ordinary", "channel", "token", "full_clip", "sum", "edge_both"):
                assert vector.bound.max() <= 2e-4 * max(size, 1), (name, vector.name)


@pytest.mark.parametrize("op", EVERY)
def test_no_bit_hangs_on_rounding(op):
    """Each is decided: exactly at its threshold, or farther away than a right port may be off."""
    for case in vectors.of(op).values():
        by_name = {vector.name: vector for vector in case}
        for bit, z, threshold in (("weight.bit", "weight.z", 0.0), ("prob.bit", "prob.z", 0.5)):
            if bit in by_name:
                distance = np.abs(by_name[z].value - threshold)
                assert ((distance == 0) | (distance > by_name[z].bound)).all()


def swapped(op: str, replacement: Callable[..., np.ndarray], name: str, output: str = "y") -> bool:
    """Whether a wrong forward is seen in a case."""
    (case,) = (case for case in vector_cases.of(op) if case.name == name)
    (vector,) = (vector for vector in vectors.of(op)[name] if vector.name == output)
    return off(vector, replacement(*case.inputs.values(), *case.params.values()))


def one_pass(x, weight, bias):
    mean = x.mean(-1, keepdims=True)
    variance = np.square(x).mean(-1, keepdims=True) - np.square(mean)
    return (x - mean) / np.sqrt(np.abs(variance) + np.float32(1e-5)) * weight + bias


def softmax_as_it_stands(x):
    with np.errstate(over="ignore", invalid="ignore"):
        e = np.exp(x)
        return np.nan_to_num(e / e.sum(-1, keepdims=True))


def tanh_gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def wrapped_product(x, weight):
    """A popcount of different bits in 8 bits with a sign."""
    signs = np.where(x >= 0, 1, -1) @ np.where(weight - weight.mean(1, keepdims=True) >= 0, 1, -1).T
    return x.shape[-1] - 2 * ((x.shape[-1] - signs) // 2).astype(np.int8).astype(int)


WRONG = {
    "one pass": ("layer_norm", one_pass, "hard", "y"),
    "softmax without the maximum": ("softmax", softmax_as_it_stands, "hard", "y"),
    "GELU by tanh": ("gelu", tanh_gelu, "hard", "y"),
    "sign(0) is -1": ("sign", lambda z: np.where(z > 0, 1, -1), "clip_hard", "y"),
    "sign of -0.0 is -1": ("sign", lambda z: 1 - 2 * np.signbit(z), "clip_hard", "y"),
    "smallest numbers flushed": (
        "sign", lambda z: np.where(np.where(np.abs(z) < 1e-30, 0, z) >= 0, 1, -1), "clip_hard", "y",
    ),
    "q = 1/2 gives 1": ("boolean_attention", lambda p, v, a: p / a >= 0.5, "ties", "prob.bit"),
    "alpha by its size": (
        "boolean_attention", lambda p, v, a: p / np.abs(a) > 0.5, "alpha_below_minimum", "prob.bit",
    ),
    "products of 8 bits": (
        "binary_linear",
        lambda x, w: np.clip(np.where(x >= 0, 1, -1) @ np.where(w - w.mean(1, keepdims=True) >= 0,
                                                                1, -1).T, -128, 127),
        "hard_clip", "int",
    ),
    "popcount of 8 bits": ("binary_linear", wrapped_product, "hard_clip", "int"),
    "fit by repeat": ("fit", lambda x: np.repeat(x, 3, axis=-1), "tiled", "y"),
    "a product with 1 / sqrt(3)": ("divide", lambda x: x * np.float32(0.5774), "ordinary", "y"),
    "queries and keys exchanged": (
        "position_bias",
        lambda x, t: vectors.of("position_bias")["numbered"][2].value.swapaxes(-1, -2),
        "numbered", "y",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_shows(name):
    op, replacement, case, output = WRONG[name]
    assert swapped(op, replacement, case, output)


# --- files ----------------------------------------------------------------------------------------


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "index.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("op", ["layer_norm", "binary_linear", "boolean_attention", "bands"])
def test_files_are_as_the_index_says(tmp_path, op):
    made = run("golden", "vectors", op, "--text", "-o", tmp_path / op)
    assert (made.status, made.err) == (0, "")
    listed = rows(tmp_path / op)
    files = {str(path.relative_to(tmp_path / op)) for path in (tmp_path / op).rglob("*.*")}
    assert f"{len(files)} files" in made.out
    text = {row["file"][:-3] + end for row in listed for end in ("hex", "txt")}
    assert files == {row["file"] for row in listed} | text | {"index.csv"}
    expected = vectors.of(op)
    for row in listed:
        path = tmp_path / op / row["file"]
        stored = np.load(path)
        assert stored.dtype == row["dtype"]
        shape = tuple(map(int, row["shape"].split()))
        if row["role"] == "bound":
            continue
        (vector,) = (v for v in expected[row["case"]] if v.name == row["name"])
        assert vector.role == row["role"] and vector.value.shape == shape
        assert_text(path, stored, vector.value)


def assert_text(path: Path, stored: np.ndarray, value: np.ndarray) -> None:
    """Hexadecimal digits and decimals, read as a test bench would, are the numbers again."""
    digits = path.with_suffix(".hex").read_text().split("\n")[:-1]
    width = {"uint8": 16}.get(stored.dtype.name, 2 * stored.itemsize)
    assert {len(line) for line in digits} == {width}
    code = {"float32": "<f", "float64": "<d", "int32": "<i"}.get(stored.dtype.name)
    if code:
        words = [struct.unpack(code, int(line, 16).to_bytes(width // 2, "little"))[0]
                 for line in digits]  # fmt: skip
        np.testing.assert_array_equal(np.array(words, stored.dtype), stored.reshape(-1))
    else:  # word w of a row holds bits 64 w to 64 w + 63
        found = [[int(line, 16) >> i & 1 for i in range(64)] for line in digits]
        padded = np.array(found).reshape(*value.shape[:-1], -1)
        np.testing.assert_array_equal(padded[..., : value.shape[-1]], value)
        assert not padded[..., value.shape[-1] :].any()
    decimals = np.loadtxt(path.with_suffix(".txt"), ndmin=1)
    np.testing.assert_array_equal(decimals.astype(value.dtype), value.reshape(-1))


LAYER_NORM_IN_C = """
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static void read(const char *folder, const char *name, int count, double *values)
{
    char path[1000];
    snprintf(path, sizeof path, "%s/%s.txt", folder, name);
    FILE *file = fopen(path, "r");
    for (int i = 0; i < count; i++)
        if (file == NULL || fscanf(file, "%lf", values + i) != 1)
            exit(2);
    fclose(file);
}

int main(int argc, char **argv)
{
    double x[96], weight[16], bias[16], y[96], bound[96];
    read(argv[1], "x", 96, x);
    read(argv[1], "weight", 16, weight);
    read(argv[1], "bias", 16, bias);
    read(argv[1], "y", 96, y);
    read(argv[1], "y.bound", 96, bound);
    int beyond = 0;
    for (int row = 0; row < 6; row++) {
        float mean = 0, variance = 0;
        for (int i = 0; i < 16; i++)
            mean += (float)x[16 * row + i] / 16;
        for (int i = 0; i < 16; i++) {
            float d = (float)x[16 * row + i] - mean;
            variance += ONE_PASS ? (float)(x[16 * row + i] * x[16 * row + i]) : d * d;
        }
        variance = variance / 16 - (ONE_PASS ? mean * mean : 0);
        for (int i = 0; i < 16; i++) {
            float n = ((float)x[16 * row + i] - mean) / sqrtf(fabsf(variance) + 1e-5f);
            float found = n * (float)weight[i] + (float)bias[i];
            beyond += !(fabs(found - y[16 * row + i]) <= bound[16 * row + i]);
        }
    }
    return beyond > 0;
}
"""


@c_port.needs_cc
@pytest.mark.parametrize("one_pass", [0, 1])
def test_a_bench_in_c_reads_the_text_with_scanf(tmp_path, one_pass):
    vectors.write("layer_norm", tmp_path / "v", text=True)
    (tmp_path / "bench.c").write_text(LAYER_NORM_IN_C)
    command = ["cc", f"-DONE_PASS={one_pass}", "bench.c", "-o", "bench", "-lm"]
    subprocess.run(command, cwd=tmp_path, check=True)
    for case in ("ordinary", "hard"):
        done = subprocess.run(["./bench", f"v/{case}"], cwd=tmp_path)
        assert done.returncode == (one_pass if case == "hard" else 0)


PRODUCT_IN_VERILOG = """
module bench;
    reg [63:0] a [0:23], w [0:15];            // 6 rows and 4 rows of 256 bits: 4 words each
    reg signed [31:0] y [0:23];
    integer row, o, k, i, different, wrong;
    reg [63:0] word;
    initial begin
        $readmemh("v/hard_clip/bit.hex", a);
        $readmemh("v/hard_clip/weight.bit.hex", w);
        $readmemh("v/hard_clip/int.hex", y);
        wrong = 0;
        for (row = 0; row < 6; row = row + 1)
            for (o = 0; o < 4; o = o + 1) begin
                different = 0;
                for (k = 0; k < 4; k = k + 1) begin
                    word = a[4 * row + k] ^ w[4 * o + k];
                    for (i = 0; i < 64; i = i + 1) different = different + word[i];
                end
                if (256 - 2 * different != y[4 * row + o]) wrong = wrong + 1;
            end
        $display("%0d of 24 wrong", wrong);
        $finish;
    end
endmodule
"""


@pytest.mark.skipif(shutil.which("iverilog") is None, reason="needs Icarus Verilog")
def test_a_bench_in_verilog_reads_the_text_with_readmemh(tmp_path):
    vectors.write("binary_linear", tmp_path / "v", text=True)
    (tmp_path / "bench.v").write_text(PRODUCT_IN_VERILOG)
    subprocess.run(["iverilog", "-o", "bench", "bench.v"], cwd=tmp_path, check=True)
    done = subprocess.run(["vvp", "bench"], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.startswith("0 of 24 wrong") and done.stderr == ""


def test_the_same_vectors_each_time(tmp_path):
    for name in ("a", "b"):
        vectors.write("rprelu", tmp_path / name)
    for path in (tmp_path / "a").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()


def test_the_folder_is_named_as_the_operation(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("golden", "vectors", "pool").status == 0
    assert {row["case"] for row in rows(tmp_path / "pool")} == {"cls", "mean"}
    again = run("golden", "vectors", "pool")
    assert again.status == 2 and again.err.endswith("; --force replaces one of an earlier run\n")
    assert run("golden", "vectors", "pool", "--force").status == 0
    assert run("golden", "vectors", "-o", tmp_path / "other", "pool").status == 0
    assert rows(tmp_path / "other") == rows(tmp_path / "pool")


@pytest.mark.parametrize("op, nearest", [
    ("layernorm", "expected layer_norm"), ("softmax2", "softmax"),
    ("zzz", "expected one that `refimpl show` names"),
])  # fmt: skip
def test_an_unknown_operation_is_one_line(tmp_path, op, nearest):
    made = run("golden", "vectors", op, "-o", tmp_path / "x")
    assert (made.status, made.out) == (2, "")
    assert made.err.count("\n") == 1 and nearest in made.err
    assert not (tmp_path / "x").exists()
    with pytest.raises(ConfigError):
        vectors.write(op, tmp_path / "x")


def test_nothing_is_overwritten_unasked(tmp_path):
    (tmp_path / "words").write_text("kept")
    for options in ((), ("--force",)):  # what it has not written it does not replace
        made = run("golden", "vectors", "pool", "-o", tmp_path, *options)
        assert made.status == 2 and made.err.count("\n") == 1
    assert (tmp_path / "words").read_text() == "kept"
    folder = tmp_path / "pool"
    vectors.write("add", folder)
    with pytest.raises(GoldenFileError, match="exists"):
        vectors.write("pool", folder)
    assert run("golden", "vectors", "pool", "-o", folder, "--force").status == 0
    assert {row["case"] for row in rows(folder)} == {"cls", "mean"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pool", "words"]


def test_the_kernels_are_within_the_bounds():
    """The twins of Numba, which share no loop with the equations."""
    backend = pytest.importorskip("refimpl.kernels.backend")
    judged = 0
    for op in OPERATIONS:
        twin = getattr(backend, op)
        if twin is getattr(ops, op):
            continue
        for case in vector_cases.of(op):
            found = vectors.of(op)[case.name]
            y, cache = twin.forward(*case.inputs.values(), *case.params.values(), **case.attributes)
            values = dict(zip(case.outputs, y if len(case.outputs) > 1 else (y,), strict=True))
            dys = given(found)
            names = [f"d{name}" for name in (*case.inputs, *case.params)]
            gradients = twin.backward(tuple(dys) if len(dys) > 1 else dys[0], cache)
            values |= dict(zip(names, gradients, strict=False))
            for vector in found:
                if vector.name in values and values[vector.name] is not None:
                    assert not off(vector, values[vector.name]), (op, case.name, vector.name)
                    judged += 1
    assert judged > 100
