"""Networks as C: compiled, run, and judged by golden bundles like any port."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refimpl
from refimpl import engine, golden
from refimpl.data import bundled, datasets
from refimpl.exporting import c
from refimpl.importing import load_checkpoint
from refimpl.models import Config, files, insides
from tests import exported_c, networks
from tests.exported_c import STRICT, classify, compile, export, export_file, judge, needs, show

pytestmark = needs("cc")
GOLDEN = Path(__file__).parent.parent / "weights" / "golden"
CHECKPOINTS = Path(os.environ.get("REFIMPL_CHECKPOINTS", Path(__file__).parent / "checkpoints"))
MNIST = Path(os.environ.get("REFIMPL_MNIST", bundled.mnist() / "small"))
QUICK = "-O0"  # most time goes into compiling

DIDB = networks.DIDB
# All operations, and every value of every field that changes what is computed.
CHOSEN = {
    "react": networks.small(layer_scale=True, alpha_scope="head"),
    "didb": networks.small(**DIDB),
    "readings": networks.small(
        **DIDB, neighbours="eight", haar_mode="periodic", haar_cls="low", band_weights="fixed",
        pool="mean", context="differences",
    ),
    "control": networks.small(**DIDB, neighbours="none", haar_mode="none", haar_cls="low"),
    "activations": networks.small(**DIDB, binarize="activations", context="differences"),
    "real numbers": networks.small(**DIDB, binarize="none", context="differences"),
    "pixels": networks.small(**DIDB, decoder="linear"),
    "deit": networks.small(block="real", norm_eps=1e-6),
    "windows": networks.swin(**DIDB, **networks.SWINS[1]),
    "swin": networks.swin(block="real", **networks.SWINS[2]),
    "pyramid": networks.swin(**networks.SWINS[6]),
    **{name: config for name, config in networks.imported().items() if name != "binaryvit"},
}  # fmt: skip


def judged(bundle: Path, taps: Path, mode: str) -> None:
    """Everything passes, and all is there that a device has: no latent weights, no gradients."""
    comparison = judge(bundle, taps, mode)
    assert comparison.outcome == "PASS", comparison.first
    missing = [v.name for v in comparison.verdicts if v.verdict == "MISSING"]
    assert all(n.endswith(".weight.z") or n.startswith("grads/") for n in missing), missing
    assert not comparison.unknown


def check(folder: Path, config: Config, seed: int) -> None:
    """Export, compile, run, compare each operation with the reference in float64."""
    net = networks.make(config, seed, batch=2)
    golden.make(folder / "bundle", net.model, net.params, net.images)
    program = compile(export(folder, net.model, net.params), folder / "net", QUICK, "-DTAPS")
    judged(folder / "bundle", show([program], folder / "bundle/input_0.npy", folder / "taps"),
           "replay")


@pytest.mark.parametrize("name", CHOSEN)
def test_every_operation_passes(tmp_path, name):
    check(tmp_path, CHOSEN[name], seed=23)


def test_every_operation_is_among_them():
    used = {n.op for config in CHOSEN.values() for n in refimpl.models.binary.network(config).nodes}
    assert set(c.OPS) <= used


@settings(max_examples=3)
@given(networks.all_configs(), st.integers(0, 2**16))
def test_drawn_networks_pass(tmp_path_factory, config, seed):
    check(tmp_path_factory.mktemp("drawn"), config, seed)


@pytest.mark.parametrize("name", sorted(path.name for path in GOLDEN.iterdir()))
def test_the_bundles_of_the_package(tmp_path, name):
    bundle = golden.read(GOLDEN / name)
    code = export(tmp_path, bundle.model, bundle.params)
    program = compile(code, tmp_path / "net", QUICK, "-DTAPS")
    taps = show([program], GOLDEN / name / "input_0.npy", tmp_path / "taps")
    judged(GOLDEN / name, taps, "replay")
    free = judge(GOLDEN / name, taps)
    assert free.outcome == "PASS" or not any(v.verdict == "FAIL" for v in free.verdicts)
    if name == "small_tie_free":
        kinds = {v.verdict for v in free.verdicts if v.kind != "real"}
        assert kinds == {"EXACT"}


@pytest.mark.parametrize(
    "folder",
    sorted(
        path.parent
        for path in CHECKPOINTS.glob("*/model.safetensors")
        if "pyramid" not in path.parent.name  # of BinaryViT, which is not imported
    ),
    ids=lambda path: path.name,
)
def test_from_a_checkpoint_of_others_to_c(tmp_path, folder):
    """Imported, exported, run: the logits of the family's code, every value of the reference."""
    model, params = load_checkpoint(folder)
    images = _input_of(folder)
    golden.make(tmp_path / "bundle", model, params, images)
    code = export(tmp_path, model, params)
    program = compile(code, tmp_path / "net", QUICK, "-DTAPS")
    taps = show([program], tmp_path / "bundle/input_0.npy", tmp_path / "taps")
    judged(tmp_path / "bundle", taps, "free")
    logits = np.load(folder / "logits_f64.npy")
    found = np.load(taps / "logits.npy")
    np.testing.assert_allclose(found, logits, rtol=1e-4, atol=1e-5 * np.abs(logits).max())


def _input_of(folder: Path) -> np.ndarray:
    if (folder / "input_f64.npy").exists():
        return np.load(folder / "input_f64.npy")
    return np.load(folder / "input_i8.npy") / 64.0


# --- the language ---------------------------------------------------------------------------------

WIDE = networks.small(dim=320, heads=1, mlp_ratio=1, depth=1, **DIDB)  # rows of five words
COUNTS = ((), ("-DPOPCOUNT_TABLE",), ("-DPOPCOUNT_BUILTIN",))


@pytest.mark.parametrize("cc", [pytest.param(cc, marks=needs(cc)) for cc in ("gcc", "clang")])
@pytest.mark.parametrize("name", ["didb", "deit", "windows", "pyramid", "binaryvit-boxes"])
def test_no_compiler_warns(tmp_path, cc, name):
    net = networks.make(CHOSEN[name], 1)
    code = export(tmp_path, net.model, net.params)
    for flags in ("-DPOPCOUNT_TABLE",), ("-DTAPS",), *([("-mavx2",)] if _is_x86() else []):
        command = [cc, *STRICT, "-O1", *flags, "-c", str(code), "-o", str(tmp_path / "net.o")]
        made = subprocess.run(command, capture_output=True, text=True)
        assert (made.returncode, made.stderr) == (0, "")


def test_bits_are_counted_alike_by_builtin_table_and_vectors(tmp_path):
    net = networks.make(WIDE, 2, np.float32)
    code = export(tmp_path, net.model, net.params)
    options = [*COUNTS, *([("-mavx2",)] if _has_avx2() else [])]
    found = [classify(code, tmp_path, net.images, QUICK, *flags)[1] for flags in options]
    assert all(np.array_equal(logits, found[0]) for logits in found)
    expected = net.model.predict(net.params, net.images)
    np.testing.assert_allclose(found[0], expected, rtol=1e-3, atol=1e-3)


def _is_x86() -> bool:
    return platform.machine() in ("x86_64", "AMD64")


def _has_avx2() -> bool:
    cpu = Path("/proc/cpuinfo")
    return _is_x86() and cpu.exists() and " avx2 " in cpu.read_text()


@pytest.mark.parametrize("name", ["didb", "deit", "windows", "pyramid", "binaryvit-boxes", "wide"])
def test_sanitizers_find_nothing(tmp_path, name):
    net = networks.make({**CHOSEN, "wide": WIDE}[name], 3, batch=1)
    code = export(tmp_path, net.model, net.params)
    np.save(tmp_path / "images.npy", net.images)
    flags = "-g", "-O1", "-DTAPS", "-fsanitize=address,undefined", "-fno-sanitize-recover"
    vectors = ["-mavx2"] if name in ("windows", "wide") and _has_avx2() else []
    program = compile(code, tmp_path / "net", *flags, *vectors)
    show([program], tmp_path / "images.npy", tmp_path / "taps")


@needs("valgrind")
@pytest.mark.parametrize("name", ["didb", "windows"])
def test_valgrind_finds_nothing(tmp_path, name):
    net = networks.make(CHOSEN[name], 3, batch=1)
    code = export(tmp_path, net.model, net.params)
    np.save(tmp_path / "images.npy", net.images)
    program = compile(code, tmp_path / "net", "-g", "-O1", "-DTAPS")
    command = ["valgrind", "-q", "--error-exitcode=9", "--leak-check=full", program]
    show(command, tmp_path / "images.npy", tmp_path / "taps")


@needs("g++")
def test_a_program_in_cpp_calls_it(tmp_path):
    net = networks.make(CHOSEN["didb"], 1)
    code = export(tmp_path, net.model, net.params)
    (tmp_path / "main.cpp").write_text(
        '#include "net.h"\nfloat image[NET_PIXELS], logits[NET_LOGITS];\n'
        "int main() { return net_classify(image, logits) < 0; }\n"
    )
    made = tmp_path / "net.o", tmp_path / "main"
    subprocess.run(["cc", *STRICT, QUICK, "-c", code, "-o", made[0]], check=True)
    command = ["g++", "-Wall", "-Wextra", "-Werror", "-pedantic", f"-I{code.parent}"]
    subprocess.run([*command, tmp_path / "main.cpp", made[0], "-lm", "-o", made[1]], check=True)
    assert subprocess.run([made[1]]).returncode == 0


def test_it_needs_memcpy_and_mathematics_alone(tmp_path):
    allowed = {"memcpy", "sqrtf", "erff", "isfinite"}
    for name in ("didb", "deit", "pyramid"):
        folder = tmp_path / name
        folder.mkdir()
        net = networks.make(CHOSEN[name], 1)
        code = export(folder, net.model, net.params)
        text = re.sub(r"#ifdef TAPS.*?#endif", "", code.read_text(), flags=re.DOTALL)
        text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
        headers = set(re.findall(r"#include <(\S+)>", text))
        assert headers == {"immintrin.h", "math.h", "stddef.h", "stdint.h", "string.h"}
        called = set(re.findall(r"\b([a-z_][a-z0-9_]*)\(", text))
        defined = set(re.findall(r"\b(\w+)\(", "".join(re.findall(r"^\w[^;{}]*\(", text, re.M))))
        own = {"if", "for", "sizeof", "defined", "net_classify", "net_segment"}
        found = {f for f in called - defined - own if not f.startswith(("_mm", "__"))}
        assert found <= allowed


# --- what the first comment says ------------------------------------------------------------------

DEVICES = {
    "arm": ("arm-none-eabi-gcc", "-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard",
            "-mfpu=fpv4-sp-d16"),
    "riscv": ("riscv64-unknown-elf-gcc", "--specs=picolibc.specs", "-march=rv32imac",
              "-mabi=ilp32"),
}  # fmt: skip


@pytest.mark.parametrize("device", DEVICES)
def test_it_compiles_for_a_device_and_is_as_large_as_it_says(tmp_path, device, record_property):
    cc, *flags = DEVICES[device]
    if shutil.which(cc) is None:
        pytest.skip(f"{cc} is not installed")
    code, made = export_file("didb_micro_mnist", tmp_path / "c"), tmp_path / "net.o"
    command = [cc, *STRICT, "-Os", *flags, "-c", str(code), "-o", str(made)]
    result = subprocess.run(command, capture_output=True, text=True)
    if "picolibc.specs" in result.stderr or "math.h" in result.stderr:
        pytest.skip(f"{cc} has no picolibc: {result.stderr.splitlines()[0]}")
    assert (result.returncode, result.stderr) == (0, "")
    size = [cc.replace("gcc", "size"), str(made)]
    text, data, bss = subprocess.run(size, capture_output=True, text=True).stdout.split()[6:9]
    record_property("size", f"{device}: {text} bytes of flash, {bss} of RAM")
    comment = code.read_text().split("*/")[0]
    ram, constants = (int(n.replace(",", "")) for n in re.findall(r"([\d,]+) bytes", comment)[:2])
    assert (int(data), int(bss)) == (0, ram)
    assert constants < int(text) < constants + 40_000


def test_values_that_are_read_later_are_never_written_over(tmp_path):
    """Blocks of the plan that live at the same time lie apart."""
    for config in (CHOSEN["didb"], CHOSEN["pyramid"], CHOSEN["distilled"]):
        folder = tmp_path / str(config.decoder + config.distillation)
        folder.mkdir()
        net = networks.make(config, 0)
        files.save(folder / "net.safetensors", net.model, net.params)
        program = c.Program(exported_c.source.read(folder / "net.safetensors"))
        lives = [b for b in program.blocks if b.begin >= 0]
        for i, one in enumerate(lives):
            for other in lives[:i]:
                at_once = one.begin <= other.end and other.begin <= one.end
                apart = (one.offset + one.size <= other.offset
                         or other.offset + other.size <= one.offset)
                assert one.array != other.array or not at_once or apart
        assert len(lives) > 10


def test_what_is_no_number_is_told(tmp_path):
    net = networks.make(CHOSEN["didb"], 5, np.float32)
    code = export(tmp_path, net.model, net.params)
    images = np.repeat(net.images[:1], 3, axis=0)
    images[1, 0, 0, 0], images[2, -1, -1, -1] = np.nan, np.inf
    answers, _ = classify(code, tmp_path, images, QUICK)
    assert answers[0] >= 0 and answers[1] == answers[2] == -1


def test_the_exponential_is_as_close_as_it_says(tmp_path):
    code = tmp_path / "exponential.c"
    ops = Path(c.__file__).with_name("ops.c").read_text()
    code.write_text(ops + """
#include <stdio.h>
int main(void)
{
    float x[4096];
    while (fread(x, sizeof x, 1, stdin) == 1) {
        exponential(x, 0.0f, 4096);
        fwrite(x, sizeof x, 1, stdout);
    }
    return 0;
}
""")
    program = compile(code, tmp_path / "exponential", QUICK, "-Wno-unused-function")
    x = np.concatenate([-np.geomspace(1e-9, 200, 8191), [0.0]]).astype(np.float32)
    out = subprocess.run([program], input=x.tobytes(), capture_output=True).stdout
    found, expected = np.frombuffer(out, np.float32), np.exp(x.astype(np.float64))
    ulp = np.spacing(np.maximum(expected, np.finfo(np.float32).tiny).astype(np.float32))
    assert (np.abs(found - expected) <= 2 * ulp).all()


# --- a data set -----------------------------------------------------------------------------------


def test_mnist_is_classified_as_by_the_engine(tmp_path):
    """The digits of the package, or all of MNIST where REFIMPL_MNIST names its folder."""
    file = files.read("didb_micro_mnist")
    data = datasets.load(MNIST, "test", file.model.preprocessing)
    images = file.model.prepare(np.asarray(data.images))
    code = export_file("didb_micro_mnist", tmp_path / "c")
    answers, logits = classify(code, tmp_path, images, "-O2")
    assert np.array_equal(answers, logits.argmax(axis=1))
    run = engine.load("didb_micro_mnist", threads=1)
    expected = np.concatenate([run(images[i : i + 500]) for i in range(0, len(images), 500)])
    other = np.flatnonzero(answers != expected.argmax(axis=1))
    assert len(images) >= 100 and len(other) <= len(images) / 1000
    if len(other):  # no bit of them is one that a right port could not have
        program = compile(code, tmp_path / "net", "-O2", "-DTAPS")
        golden.make(tmp_path / "bundle", file.model, file.params, images[other])
        taps = show([program], tmp_path / "bundle/input_0.npy", tmp_path / "taps")
        assert not any(v.verdict == "FAIL" for v in judge(tmp_path / "bundle", taps).verdicts)
    found = np.sort(logits, axis=1)
    assert (found[:, -1] > found[:, -2]).all()


# --- the program that shows values ----------------------------------------------------------------


@pytest.fixture(scope="module")
def shower(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shower")
    net = networks.make(CHOSEN["didb"], 6)
    return compile(export(folder, net.model, net.params), folder / "net", QUICK, "-DTAPS")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"no array", "expected images as .npy"),
        (golden.store.to_npy(np.zeros((2, 3, 4, 6), np.int32)), "expected float32 or float64"),
        (golden.store.to_npy(np.zeros((2, 3, 4, 7))), "of the shape (B, 3, 4, 6)"),
        (golden.store.to_npy(np.zeros((2, 3, 4, 6)))[:-8], "cut off in an image"),
        (golden.store.to_npy(np.zeros((2, 3, 4, 6)))[:40], "cut off in its header"),
    ],
)
def test_files_that_are_no_images_are_refused(shower, tmp_path, content, words):
    (tmp_path / "images.npy").write_bytes(content)
    (tmp_path / "out").mkdir()
    command = [shower, tmp_path / "images.npy", tmp_path / "out"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2 and words in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_folder_that_is_not_there_is_told(shower, tmp_path):
    np.save(tmp_path / "images.npy", np.zeros((1, 3, 4, 6)))
    command = [shower, tmp_path / "images.npy", tmp_path / "none"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2 and result.stderr.endswith("cannot be written\n")
    assert subprocess.run([shower], capture_output=True).returncode == 2


def test_a_wrong_device_fails(tmp_path):
    """The comparison is one that can fail: a matrix gets the scales of its neighbours."""
    net = networks.make(CHOSEN["react"], 7)
    golden.make(tmp_path / "bundle", net.model, net.params, net.images)
    code = export(tmp_path, net.model, net.params)
    call = re.compile(r"(binary_linear\(.*, blocks__1__mlp__up__weight__scale)")
    wrong, count = call.subn(r"\1 + 1", code.read_text())
    assert count == 1
    code.write_text(wrong)
    program = compile(code, tmp_path / "net", QUICK, "-DTAPS")
    taps = show([program], tmp_path / "bundle/input_0.npy", tmp_path / "taps")
    comparison = judge(tmp_path / "bundle", taps, "replay")
    assert comparison.outcome == "FAIL"
    assert comparison.first.name == "blocks.1.mlp.up.linear"


KINDS = ("real", "reader", "bit", "int")


def test_kinds_of_taps_are_those_of_the_reference(tmp_path):
    """Every value inside an operation has its line: none is forgotten by all networks."""
    config = CHOSEN["didb"]
    net = networks.make(config, 8, batch=1)
    code = export(tmp_path, net.model, net.params)
    shown = set(re.findall(r'tap\("([^"]+)"', code.read_text()))
    network = net.model.network
    inside = {n.inside[k] for n in network.nodes if insides.of(n) for k in insides.of(n).values}
    assert inside - shown == {name for name in inside if name.endswith("weight.z")}
    assert shown >= {name for n in network.nodes if n.tap in KINDS for name in n.outputs}
