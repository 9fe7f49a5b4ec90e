"""`refimpl golden` in this process: what it prints, its exit status, and what hostile files do."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from refimpl.golden import candidate, compare, elements, store, text
from refimpl.golden.compare import Verdict
from refimpl.golden.places import Places
from refimpl.models import files
from tests import golden_bundles
from tests.command_line import PATIENCE, SEVEN, Result, run, save_model
from tests.golden_bundles import BUNDLE, change_array, change_line, copy, read_index, rehash

BIT, REAL, INT = "blocks.0.mlp.up.bit", "blocks.0.mlp.up.linear", "blocks.0.mlp.up.int"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(save_model(tmp_path_factory.mktemp("model") / "tiny.safetensors"))


def dump(folder: Path, changes: dict[str, np.ndarray]) -> Path:
    """A candidate, right but for some taps."""
    np.savez(folder / "port.npz", **{**golden_bundles.arrays(), **changes})
    return folder / "port.npz"


def one_line(result: Result, status: int, *words: str) -> None:
    assert result.status == status, result
    assert result.out == ""
    assert re.fullmatch(r"refimpl: [^\n]+\n", result.err), result.err
    for word in words:
        assert word in result.err, result.err


def test_what_the_port_was_fed_is_looked_at(tmp_path) -> None:
    right = store.read(BUNDLE).input
    port = dump(tmp_path, {"input": right.astype(np.float16)})
    assert run("golden", "compare", BUNDLE, port).status == 0
    for wrong in (np.zeros_like(right), right[:1, ..., 1:]):
        port = dump(tmp_path, {"input": wrong})
        one_line(run("golden", "compare", BUNDLE, port), 3, "input", "was fed something else")
        for verb in ("compare", "diff"):
            tap = ["logits"] if verb == "diff" else []
            assert run("golden", verb, BUNDLE, port, *tap, "--ignore", "input").status == 0


def test_diff_of_a_tap_that_nobody_has(tmp_path) -> None:
    io = tmp_path / "io"
    made = ("--model", "react_micro", "--set", "depth=1", "--random", 1, "--taps", "io")
    assert run("golden", "make", *made, "-o", io).status == 0
    np.savez(tmp_path / "port.npz", logits=np.load(io / "output_0.npy"))
    result = run("golden", "diff", io, tmp_path / "port.npz", "blocks.0.out")
    assert (result.status, result.err) == (4, "")
    assert result.out.startswith("blocks.0.out: MISSING: neither")


# --- make -----------------------------------------------------------------------------------------


def test_make_from_an_image_as_the_model_prepares_it(model, tmp_path) -> None:
    from refimpl.classifiers import classifier
    from refimpl.data.images import open_image

    result = run("golden", "make", "--model", model, "--image", SEVEN, SEVEN, "-o", tmp_path / "b")
    assert result.status == 0
    assert re.fullmatch(r".*/b: \d+ taps, [\d,]+ bytes\n", result.out)
    made = store.read(tmp_path / "b")
    expected = classifier(model).preprocessing.apply(open_image(SEVEN))
    assert made.input.dtype == np.float64
    np.testing.assert_array_equal(made.input, np.stack([expected] * 2))
    assert made.manifest["kind"] == "ordinary"
    assert not any(name.startswith("grads/") for name in made.entries)
    assert run("golden", "selfcheck", tmp_path / "b").status == 0


def test_make_random_from_an_architecture_is_the_same_each_time(tmp_path) -> None:
    options = ("--model", "react_micro", "--taps", "block", "--grads", "--dtype", "float32")
    for name in ("a", "b"):
        made = run("golden", "make", *options, "--random", 5, "-o", tmp_path / name)
        assert made.status == 0, made
    first, second = ((tmp_path / name / "index.csv").read_bytes() for name in ("a", "b"))
    assert first == second
    bundle = store.read(tmp_path / "a")
    assert bundle.input.dtype == np.float32
    assert "grads/input" in bundle.entries
    assert "blocks.0.attn.q.linear" not in bundle.entries
    run("golden", "make", *options, "--random", 6, "-o", tmp_path / "c")
    assert (tmp_path / "c" / "index.csv").read_bytes() != first


def test_make_random_keeps_the_parameters_of_a_file(model, tmp_path) -> None:
    import refimpl

    options = ("--taps", "io", "--random", 5)
    assert run("golden", "make", "--model", model, *options, "-o", tmp_path / "a").status == 0
    made = store.read(tmp_path / "a")
    assert list(made.entries) == ["logits"]
    _, params = refimpl.load(model)
    np.testing.assert_array_equal(made.params["head"]["weight"], params["head"]["weight"])


def test_make_from_an_architecture_with_other_fields(tmp_path) -> None:
    options = ("--set", "depth=1", "--set", "haar_mode=periodic", "--images", 3, "--random", 5)
    taps = ("--taps", "*.bit", "--taps", "blocks.0.mid")
    made = run("golden", "make", "--model", "didb_micro", *options, *taps, "-o", tmp_path / "a")
    assert (made.status, made.err) == (0, "")
    bundle = store.read(tmp_path / "a")
    assert (bundle.model.config.depth, bundle.model.config.haar_mode) == (1, "periodic")
    assert len(bundle.input) == len(bundle.output) == 3
    assert not np.array_equal(bundle.input[0], bundle.input[2])
    assert {n.rsplit(".")[-1] for n in bundle.entries} == {"bit", "mid", "logits"}
    again = run("golden", "make", "--model", "didb_micro", "--random", 6, "-o", tmp_path / "a")
    one_line(again, 2, "exists; expected a new folder")
    options = ("--random", 6, "--taps", "io", "--force")
    assert run("golden", "make", "--model", "react_micro", *options, "-o", tmp_path / "a") == (
        0, f"{tmp_path / 'a'}: 1 tap, {size(tmp_path / 'a'):,} bytes\n", ""
    )  # fmt: skip
    assert list(store.read(tmp_path / "a").entries) == ["logits"]


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_make_warns_of_what_a_fresh_network_does_not_show(tmp_path) -> None:
    """Kind by kind, of those that all are at their start; none where one entry has moved."""
    import refimpl

    model = refimpl.create_model("didb_micro", depth=1)
    params = model.init(np.random.default_rng(0))
    params["blocks"]["0"]["attn"]["q_low"]["rprelu"]["slope"][3] = 0.26
    params["norm"]["bias"][0] = 1e-3
    refimpl.save(tmp_path / "fresh.safetensors", model, params)
    options = ("--model", tmp_path / "fresh.safetensors", "--random", 1, "--taps", "io")
    made = run("golden", "make", *options, "-o", tmp_path / "a")
    assert made.status == 0 and made.err.count("\n") == 1
    assert "weights of norms (1), moves (0), shifts of RPReLU (0), token shifts" in made.err
    assert "band weights (0.5), lam_s (1), lam_n (0): a bundle cannot show whether" in made.err
    assert "slopes" not in made.err and "biases" not in made.err
    options = ("--model", "didb_micro_mnist", "--random", 1, "--taps", "io")
    assert run("golden", "make", *options, "-o", tmp_path / "b").err == ""


def test_make_tie_free_says_how_long_it_searched(tmp_path) -> None:
    small = golden_bundles.bundle()
    files.save(tmp_path / "small.safetensors", small.model, small.params)
    options = ("--model", tmp_path / "small.safetensors", "--random", 0, "--tie-free")
    made = run("golden", "make", *options, "-o", tmp_path / "a")
    assert made.status == 0, made
    assert re.match(r"tie-free: input \d+ of the search, \d+\.\d s\n", made.out)
    manifest = store.read(tmp_path / "a").manifest
    assert manifest["kind"] == "tie-free"
    assert manifest["search"]["attempts"] >= 1
    shown = json.loads(run("golden", "inspect", tmp_path / "a", "--json").out)
    assert shown["ties"]["taps_with_margin_in_tolerance"] == 0


def test_make_adversarial(tmp_path) -> None:
    made = run("golden", "make", "--random", 2, "--adversarial", "-o", tmp_path / "a")
    assert made.status == 0, made
    shown = json.loads(run("golden", "inspect", tmp_path / "a", "--json").out)
    assert shown["kind"] == "adversarial"
    assert shown["ties"]["ties"] > 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--model", "didb_micro", "--image", SEVEN), "an untrained architecture"),
        (("--model", "nothing", "--random", 1), "no such file or model"),
        (("--random", 1), "--model is missing"),
        (("--image", SEVEN), "--model is missing"),
        (("--adversarial", "--random", 1, "--model", "react_micro"), "expected --random and no"),
        (("--adversarial", "--image", SEVEN), "expected --random and no --model"),
        (("--adversarial", "--random", 1, "--images", 2), "expected --random and no --model"),
        (("--adversarial", "--random", 1, "--set", "depth=1"), "expected --random and no --model"),
        (("--model", "didb_micro_mnist", "--image", SEVEN, "--images", 2), "expected --random"),
        (("--model", "didb_micro_mnist", "--random", 1, "--set", "depth=1"), "an architecture"),
        (("--model", "react_micro", "--random", 1, "--set", "dept=1"), "dept"),
        (("--model", "react_micro", "--random", 1, "--taps", "bloc"), "did you mean 'block'?"),
        (("--model", "didb_micro_mnist", "--image", "none.png"), "none.png"),
        (("--model", "didb_micro_mnist", "--image", __file__), "not an image"),
    ],
)
def test_make_refuses_in_one_line(tmp_path, options, words) -> None:
    one_line(run("golden", "make", *options, "-o", tmp_path / "a"), 2, words)
    assert not (tmp_path / "a").exists()


def test_make_overwrites_nothing(tmp_path) -> None:
    (tmp_path / "mine").write_text("words")
    options = ("--model", "react_micro", "--taps", "io", "--random", 1)
    one_line(run("golden", "make", *options, "-o", tmp_path), 2, "an empty one")
    one_line(run("golden", "make", *options, "-o", tmp_path / "mine"), 2, "an empty one")
    one_line(run("golden", "make", *options, "-o", tmp_path / "no" / "b"), 2, "no such folder as")
    assert (tmp_path / "mine").read_text() == "words"


@pytest.mark.parametrize(
    "options",
    [
        ("make", "--model", "react_micro", "-o", "x"),
        ("make", "--model", "react_micro", "--random", "1", "--image", "x", "-o", "x"),
        ("make", "--random", "-1", "-o", "x"),
        ("make", "--random", "1", "--tie-free", "--adversarial", "-o", "x"),
        ("make", "--random", "1", "--images", "0", "-o", "x"),
        ("make", "--random", "1", "--set", "depth", "-o", "x"),
        ("compare", "small_tie_free"),
        ("compare", "small_tie_free", "x", "--mode", "loose"),
        ("inspect",),
        ("selfcheck", "a", "b"),
    ],
)
def test_bad_usage(options) -> None:
    result = run("golden", *options)
    assert (result.status, result.out) == (2, "")
    assert result.err.startswith("usage: ")


# --- inspect and selfcheck ------------------------------------------------------------------------


def test_inspect_shows_conventions_ties_and_every_tap() -> None:
    status, out, err = run("golden", "inspect", "small_tie_free")
    assert (status, err) == (0, "")
    assert "tie-free, float64" in out
    assert "ties: 0 of 19,788 bits, in 0 taps" in out
    assert "least significant bit first" in out
    for name, entry in golden_bundles.bundle().entries.items():
        assert re.search(rf"^{re.escape(name)} +{entry.kind} ", out, re.MULTILINE)


def test_inspect_of_a_bundle_as_json() -> None:
    found = json.loads(run("golden", "inspect", BUNDLE, "--json").out)
    entries = golden_bundles.bundle().entries
    assert [tap["name"] for tap in found["taps"]] == list(entries)
    assert sum(found["classes"].values()) == len(entries)
    assert found["config"]["dim"] == 21
    assert found["ties"]["smallest_margin"] == min(e.margin for e in entries.values() if e.margin)


@pytest.mark.parametrize("name", [BIT, INT, REAL, "blocks.0.attn.prob.bit", "grads/input"])
def test_inspect_of_a_tap(name) -> None:
    value = golden_bundles.bundle().value(name)
    found = json.loads(run("golden", "inspect", BUNDLE, name, "--json").out)
    assert found["shape"] == list(value.shape)
    assert found["statistics"]["count"] == value.size
    out = run("golden", "inspect", BUNDLE, name).out
    if value.dtype != bool:
        assert found["statistics"]["max"] == value.max()
        assert re.search(rf"max +{re.escape(str(value.max().item()))}\n", out)
        return
    assert found["statistics"]["ones"] == value.sum()
    row = value[(0,) * (value.ndim - 1)]
    bits = "".join(re.findall(r"bits  ([01. ]+)\n", out)).replace(" ", "").rstrip(".")
    assert bits == "".join("1" if bit else "0" for bit in row)
    stored = golden_bundles.arrays()[name].reshape(-1, 8)[0]
    drawn = re.findall(r"hex   ([0-9a-f ]+)\n", out)[0].split()
    assert drawn == [f"{byte:02x}" for byte in stored[: len(drawn)]]
    z = golden_bundles.bundle().value(name.removesuffix("bit") + "z").reshape(-1, len(row))[0]
    assert f"{z[0]:.6g}  {z[1]:.6g}" in out
    assert ("1 where z > 1/2" in out) == name.endswith("prob.bit")


def test_inspect_of_a_tap_that_is_not_there() -> None:
    result = run("golden", "inspect", BUNDLE, "blocks.0.mlp.up.bits")
    one_line(result, 2, "has no tap blocks.0.mlp.up.bits; did you mean blocks.0.mlp.up.bit?")


def test_selfcheck_passes_and_says_so() -> None:
    status, out, err = run("golden", "selfcheck", "small_tie_free")
    assert (status, err) == (0, "")
    assert out.startswith("NO DIVERGENCE\n\nPASS: 529 of 529 taps judged, 0 failed\n")
    assert json.loads(run("golden", "selfcheck", BUNDLE, "--json").out)["passed"] is True


def test_selfcheck_finds_a_value_that_the_weights_do_not_give(tmp_path) -> None:
    folder = copy(tmp_path)
    change_array(folder, INT, lambda x: np.where(np.arange(x.shape[-1]) == 5, -x, x))
    rehash(folder)
    status, out, err = run("golden", "selfcheck", folder)
    assert (status, err) == (1, "")
    assert out.startswith(f"FIRST DIVERGENCE: {INT}\n")
    assert "likely cause" not in out


def test_selfcheck_finds_logits_bits_and_scales_that_are_not_those_of_the_network(tmp_path) -> None:
    """They lie in files of their own, beside the taps that they are."""
    path = "blocks.0.attn.q_low"
    for name, spoil in (("bits", lambda bits: bits[::-1]), ("scale", lambda scale: 2 * scale)):
        folder = copy(tmp_path / name)
        arrays = load_file(folder / store.WEIGHTS)
        arrays[f"{path}.{name}"] = np.ascontiguousarray(spoil(arrays[f"{path}.{name}"]))
        save_file(arrays, folder / store.WEIGHTS)
        rehash(folder)
        tap = f"{path}.weight.{name.removesuffix('s')}"
        result = run("golden", "selfcheck", folder)
        one_line(result, 3, f"{store.WEIGHTS}: {tap}: ", "values differ")
    folder = copy(tmp_path / "logits")
    np.save(folder / store.OUTPUT_FILE, np.load(folder / store.OUTPUT_FILE)[:, ::-1].copy())
    rehash(folder)
    one_line(run("golden", "selfcheck", folder), 3, f"{store.OUTPUT_FILE}: logits: ")


# --- compare --------------------------------------------------------------------------------------


def test_compare_passes(tmp_path) -> None:
    for options in (("--strict",), ("--mode", "replay", "--forced", "--fail-fast")):
        status, out, err = run("golden", "compare", BUNDLE, dump(tmp_path, {}), *options)
        assert (status, err) == (0, "")
        assert "PASS: 529 of 529 taps judged, 0 failed" in out


def test_compare_fails_and_names_the_tap_and_the_cause(tmp_path) -> None:
    right = golden_bundles.arrays()
    port = dump(
        tmp_path, {BIT: ~right[BIT], "blocks.1.attn.scores": right["blocks.1.attn.scores"] * 2}
    )
    status, out, err = run("golden", "compare", "small_tie_free", port)
    assert (status, err) == (1, "")
    assert f"\nFIRST DIVERGENCE: {BIT}\n" in out
    assert re.search("likely cause +polarity inverted", out)
    assert "blocks.1.attn.scores: " not in out  # tainted
    _, out, _ = run("golden", "compare", "small_tie_free", port, "--forced")
    assert "  blocks.1.attn.scores: scale missing" in out
    _, out, _ = run("golden", "compare", "small_tie_free", port, "--mode", "replay", "--fail-fast")
    assert f"\nFIRST DIVERGENCE: {BIT}\n" in out
    assert "not looked at, after the first tap that failed" in out


def test_compare_writes_every_kind_of_report(tmp_path) -> None:
    port = dump(tmp_path, {REAL: 2 * golden_bundles.arrays()[REAL]})
    paths = {kind: tmp_path / f"report.{kind}" for kind in ("junit", "html")}
    options = [part for kind, path in paths.items() for part in (f"--{kind}", path)]
    result = run("golden", "compare", BUNDLE, port, *options, "--json")
    assert result.status == 1
    found = json.loads(result.out)
    assert (found["first_divergence"], found["candidate"]) == (REAL, str(port))
    assert (found["outcome"], found["unjudged"][0]) == ("FAIL", "blocks.0.mlp.up.norm")
    assert f"FIRST DIVERGENCE: {REAL}" in result.err  # the words go where they harm no pipe
    assert ElementTree.parse(paths["junit"]).getroot().get("failures") == "1"
    page = paths["html"].read_text()
    assert "scale missing: every value is 2 times too large" in page
    assert "Heat map" in page
    one_line(
        run("golden", "compare", BUNDLE, port, "--html", tmp_path / "no" / "f")._replace(out=""),
        2, "no such folder",
    )  # fmt: skip


@pytest.mark.parametrize("place", ["before", "behind"])
def test_json_is_a_flag_as_everywhere(tmp_path, place) -> None:
    port = dump(tmp_path, {})
    options = ("--json", BUNDLE, port) if place == "before" else (BUNDLE, port, "--json")
    assert json.loads(run("golden", "compare", *options, "--quiet").out)["passed"] is True
    file = tmp_path / "f.json"
    for given in (("--json", file), (f"--json={file}",)):
        given = (*given, BUNDLE, port) if place == "before" else (BUNDLE, port, *given)
        result = run("golden", "compare", *given)
        assert (result.status, result.out) == (2, "")
        words = f"error: --json prints and takes no file; expected --json > {file}\n"
        assert result.err.endswith(words)
    assert not file.exists()
    result = run("golden", "compare", BUNDLE, port, "and_one_more", "--json")
    assert result.status == 2
    assert result.err.endswith("error: unrecognized arguments: and_one_more\n")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("--json=", "--json prints and takes no file; expected --json > FILE"),
        ("--quiet=1", "--quiet takes no value; found --quiet=1"),
        ("--comp=it's", "--complete takes no value; found --complete=it's"),
    ],
)
def test_a_flag_with_a_value_is_told_in_our_words(given, words) -> None:
    result = run("golden", "compare", BUNDLE, BUNDLE, given)
    assert (result.status, result.out) == (2, "")
    assert result.err.splitlines()[-1] == f"refimpl golden compare: error: {words}"


def test_reports_overwrite_nothing_that_is_read_nor_one_another(tmp_path) -> None:
    port = tmp_path / "port"
    shutil.copytree(BUNDLE, port)
    names, units = tmp_path / "names.json", tmp_path / "units.json"
    names.write_text("{}")
    units.write_text('{"*": "float32"}')
    tap = port / "taps" / "001.tokens.npy"
    link = tmp_path / "link"
    link.symlink_to(tap)
    before = {path: path.read_bytes() for path in (tap, names, units)}
    options = (BUNDLE, port, "--map", names, "--unit-roundoff", units)
    for kind in ("--html", "--junit"):
        for output in (tap, link, names, units, BUNDLE / "manifest.json", port):
            result = run("golden", "compare", *options, kind, output, "--force")
            one_line(result, 2, str(output), "expected a")
    both = ("--html", tmp_path / "x", "--junit", tmp_path / "." / "x")
    one_line(run("golden", "compare", *options, *both), 2, "is named for two outputs")
    assert {path: path.read_bytes() for path in before} == before
    assert not (tmp_path / "x").exists()
    new = port / "report.html"  # beside the taps, where nothing is
    assert run("golden", "compare", *options, "--html", new).status == 0 and new.exists()


@pytest.mark.parametrize("kind", ["--html", "--junit"])
def test_a_report_that_is_there_is_overwritten_by_who_asks_for_it(tmp_path, kind) -> None:
    mine, options = tmp_path / "mine", ("golden", "compare", BUNDLE, BUNDLE)
    mine.write_text("mine")
    one_line(run(*options, kind, mine), 2, f"{mine}: exists")
    assert mine.read_text() == "mine"
    assert run(*options, kind, mine, "--force").status == 0
    assert mine.read_text() != "mine"
    result = run(*options, kind, "/dev/null")
    assert result.status == 0 and not Path("/dev/null").is_file()


def test_compare_with_names_of_its_own(tmp_path) -> None:
    np.savez(tmp_path / "port.npz", theirs=golden_bundles.arrays()[REAL], other=np.zeros(2))
    (tmp_path / "names.json").write_text(json.dumps({"theirs": REAL}))
    options = (BUNDLE, tmp_path / "port.npz", "--map", tmp_path / "names.json")
    status, out, _ = run("golden", "compare", *options)
    assert status == 4
    assert "INCOMPLETE: 1 of 529 taps judged, 0 failed; 1 name is no tap of the model" in out
    assert "missing from the candidate, not judged (528):" in out
    assert re.search(r"^  blocks\.0: \d+ of \d+$", out, re.MULTILINE)
    assert "  blocks.1: all 98\n" in out
    assert "unknown, no tap of the model (1):\n  other\n" in out
    status, out, _ = run("golden", "compare", *options, "--ignore", "oth*", "--verbose")
    words = "\nPASS: 1 of 529 taps judged, 0 failed; 528 taps are missing, which --complete fails\n"
    assert status == 0 and words in out
    assert " blocks.1.attn.scores " in out  # by name
    (tmp_path / "names.json").write_text("words")
    one_line(run("golden", "compare", *options), 2, "names.json", "not a readable map")


def test_a_name_that_is_none_comes_first_with_what_was_meant(tmp_path) -> None:
    arrays = golden_bundles.arrays()
    misnamed = {name.replace("blocks.1.", "block.1."): value for name, value in arrays.items()}
    np.savez(tmp_path / "port.npz", **misnamed)
    for strict in ((), ("--strict",)):
        status, out, _ = run("golden", "compare", BUNDLE, tmp_path / "port.npz", *strict)
        assert status == 4
        first = out.split("\n\n")[1].splitlines()
        assert first[0].startswith("unknown, no tap of the model (")
        assert first[1].endswith("?") and "did you mean blocks.1." in first[1]
        assert first[-1].endswith(" more") and len(first) == 22


def test_required_taps_and_a_complete_dump(tmp_path) -> None:
    arrays = golden_bundles.arrays()
    del arrays[REAL]
    np.savez(tmp_path / "port.npz", **arrays)
    options = (BUNDLE, tmp_path / "port.npz")
    assert run("golden", "compare", *options, "--require", "*.int").status == 0
    for wanted in (("--complete",), ("--require", "logits", "--require", "*.up.linear")):
        status, out, _ = run("golden", "compare", *options, *wanted, "--quiet")
        words = f"FAIL: 528 of 529 taps judged, 0 failed; 1 tap is required and absent: {REAL}\n"
        assert (status, out) == (1, words)
    wrong = run("golden", "compare", *options, "--require", "blocks.0.mlp.up.linea")
    one_line(wrong, 2, "fits no tap", f"did you mean {REAL}?")


def test_quiet_says_the_verdict_the_first_divergence_and_the_cause(tmp_path) -> None:
    port = dump(tmp_path, {BIT: ~golden_bundles.arrays()[BIT]})
    status, out, err = run("golden", "compare", BUNDLE, port, "--mode", "replay", "--quiet")
    assert (status, err) == (1, "")
    verdict, first, cause = out.splitlines()
    assert verdict == "FAIL: 527 of 529 taps judged, 1 failed"  # the padding is inverted as well
    assert first == f"FIRST DIVERGENCE: {BIT}"
    assert cause.startswith("  likely cause  polarity inverted")


def test_quiet_says_of_what_precision_values_are_that_nothing_explains(tmp_path) -> None:
    """Float32 values in float64 files are judged as float64, and fail."""
    arrays = {n: v for n, v in golden_bundles.arrays().items() if not n.startswith("grads/")}
    rounded = {n: v.astype(np.float32).astype(v.dtype) if v.dtype == np.float64 else v
               for n, v in arrays.items()}  # fmt: skip
    np.savez(tmp_path / "port.npz", **rounded)
    status, out, _ = run("golden", "compare", BUNDLE, tmp_path / "port.npz", "--quiet")
    assert status == 1
    assert "note       these are float32 values in float64 files" in out.splitlines()[-1]


def test_of_bfloat16_the_verdict_names_the_mode_that_judges_it(tmp_path) -> None:
    names = ("patch_embed.out", "tokens")
    for name in names:
        upper = golden_bundles.arrays()[name].astype(np.float32).view(np.uint32) >> 16
        np.save(tmp_path / f"{name}.npy", upper.astype(np.uint16).view("V2"))
    status, out, _ = run("golden", "compare", BUNDLE, tmp_path)
    assert status == 4
    verdict = "INCOMPLETE: 0 of 529 taps judged, 0 failed; 2 taps are dumped and not judged: in so"
    assert f"\n{verdict} coarse a precision --mode replay judges them; a comparison that" in out
    status, out, _ = run("golden", "compare", BUNDLE, tmp_path, "--mode", "replay")
    assert "2 of 529 taps judged" in out


def test_what_could_not_be_judged_has_a_status_of_its_own(tmp_path) -> None:
    """Behind a tap of another shape nothing is known; a tie taints what follows from it."""
    arrays = golden_bundles.arrays()
    few = {"tokens": arrays["tokens"], "extra": np.zeros(3)}
    np.savez(tmp_path / "port.npz", **few)
    junit = tmp_path / "junit.xml"
    options = (BUNDLE, tmp_path / "port.npz", "--mode", "replay", "--junit", junit)
    status, out, err = run("golden", "compare", *options, "--quiet")
    assert (status, err) == (4, "")
    assert "INCOMPLETE: 1 of 529 taps judged, 0 failed; 1 name is no tap of the model" in out
    root = ElementTree.parse(junit).getroot()
    assert (root.get("failures"), root.get("errors")) == ("0", "1")  # no build server shows a pass


def test_unit_roundoffs(tmp_path) -> None:
    half = {n: v.astype(np.float16) for n, v in golden_bundles.arrays().items()
            if v.dtype.kind == "f" and n in ("tokens", "blocks.0.norm1.out")}  # fmt: skip
    np.savez(tmp_path / "port.npz", **half)
    options = (BUNDLE, tmp_path / "port.npz", "--mode", "replay", "--unit-roundoff")
    units = tmp_path / "units.json"
    units.write_text('{"blocks.*": "float32", "*": 1e-6}')
    for unit in ("float32", "1e-6", units):
        assert run("golden", "compare", *options, unit).status == 0, unit
    status, out, _ = run("golden", "compare", *options, "float16")
    assert status == 4 and "its bound is as wide as its values" in out  # nothing is shown so
    one_line(run("golden", "compare", *options, "single"), 2, "'single': expected a number above 0")
    for words in ("[]", "words", "{}"):
        units.write_text(words)
        one_line(run("golden", "compare", *options, units), 2, "units.json", "JSON")
    for unit in ('"single"', "[1]", '{"a": 1}', f"1{400 * '0'}", "null"):
        units.write_text(f'{{"*": {unit}}}')
        one_line(run("golden", "compare", *options, units), 2, "units.json: '*'", "above 0")
    units.write_text('{"*": "float32", "*": "float16"}')
    one_line(run("golden", "compare", *options, units), 2, "units.json", "field '*' is there twice")
    units.write_text('{"blocks.0.norm1.aut": "float16", "*": "float32"}')
    result = run("golden", "compare", *options, units)
    one_line(result, 2, "units.json: 'blocks.0.norm1.aut' fits no tap", "'blocks.0.norm1.out'?")


@pytest.mark.skipif(os.name == "nt", reason="closes a pipe")
@pytest.mark.parametrize("kind", [(), ("--json",)])
def test_reports_are_written_where_nobody_reads_the_answer(tmp_path, kind) -> None:
    """As in `refimpl golden compare … | head -1`; the table is longer than what is buffered."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "refimpl", "golden", "compare", BUNDLE, BUNDLE, *kind]
    outputs = ["--junit", tmp_path / "x.xml", "--html", tmp_path / "x.html"]
    with os.fdopen(write, "wb") as nobody:
        done = subprocess.run(
            [*command, *outputs], stdout=nobody, stderr=subprocess.PIPE, timeout=PATIENCE
        )
    assert done.returncode == 141
    assert sorted(os.listdir(tmp_path)) == ["x.html", "x.xml"]


# --- diff -----------------------------------------------------------------------------------------


def test_diff_shows_the_worst_elements_and_where_they_are(tmp_path) -> None:
    value = golden_bundles.arrays()[REAL].copy()
    value[0, 7, 5] += 3
    value[0, 0, 2] -= 1
    port = dump(tmp_path, {REAL: value})
    status, out, err = run("golden", "diff", BUNDLE, port, REAL)
    assert (status, err) == (1, "")
    assert "the worst 2 of 2 that differ" in out
    rows = out[out.index("index ") :].splitlines()[1:]
    assert rows[0].startswith("0 7 5") and "hard" in rows[0]
    assert rows[0].endswith("image 0, grid row 1, column 2, channel 5")
    assert rows[1].endswith("image 0, the class token, channel 2")
    assert str(float(value[0, 7, 5])) in rows[0]
    found = json.loads(run("golden", "diff", BUNDLE, port, REAL, "--count", 1, "--json").out)
    (element,) = found["elements"]
    assert (element["index"], element["candidate"]) == ([0, 7, 5], value[0, 7, 5])
    assert run("golden", "diff", BUNDLE, port, "tokens").status == 0


def test_diff_shows_those_that_fail_first() -> None:
    """Also where one that may flip has the larger margin, as its tolerance is larger."""
    z, tolerance = np.array([0.5, 0.1, 0.2, 0.3, 4.0]), np.array([1.0, 0.01, 0.01, 1.0, 1.0])
    differs = np.array([True, True, True, True, False])
    verdict = Verdict(
        "x.bit", "bit", "FAIL", z=z, tolerance=tolerance, expected=z > 0, candidate=z < 0,
        differs=differs, flips=differs & (z > tolerance), places=Places(("axis 0",)),
    )  # fmt: skip
    found = elements.worst(verdict, 3)
    assert [(e.index, e.failed) for e in found] == [([2], True), ([1], True), ([0], False)]


def test_names_in_files_of_others_reach_no_terminal(tmp_path) -> None:
    folder = golden_bundles.copy(tmp_path)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["conventions"]["\x1b[2J"] = "a\nb\x1b[31m"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    hostile = folder.rename(tmp_path / "b\x1b[2Jc")
    result = run("golden", "inspect", hostile)
    assert result.status == 0 and "\x1b" not in result.out
    assert "  \\x1b[2J" in result.out and " a\\nb\\x1b[31m\n" in result.out
    bundle = store.read(hostile)
    found = compare(bundle, {REAL: bundle.value(REAL), "y\x1b[2J\n": np.zeros(2)})
    assert "\x1b" not in text.report(found, {}, 3)
    result = run("golden", "vectors", "gelu", "-o", tmp_path / "v\x1b[2J")
    assert result.status == 0 and "\x1b" not in result.out


def test_diff_of_a_bit_has_margins_and_of_no_tap_a_hint(tmp_path) -> None:
    bit = golden_bundles.arrays()[BIT].copy()
    bit[0, 4, 0] ^= 0b11
    port = dump(tmp_path, {BIT: bit})
    found = json.loads(run("golden", "diff", BUNDLE, port, BIT, "--json").out)
    z = golden_bundles.bundle().value("blocks.0.mlp.up.z")[0, 4, :2]
    assert [e["margin"] for e in found["elements"]] == sorted(abs(z), reverse=True)
    one_line(run("golden", "diff", BUNDLE, port, f"{BIT}s"), 2, f"did you mean {BIT}?")
    np.savez(tmp_path / "few.npz", **{REAL: golden_bundles.arrays()[REAL]})
    assert run("golden", "diff", BUNDLE, tmp_path / "few.npz", BIT).status == 4


def test_a_candidate_without_any_tap_is_no_candidate(tmp_path) -> None:
    np.savez(tmp_path / "port.npz", theirs=np.zeros(2))
    one_line(run("golden", "compare", BUNDLE, tmp_path / "port.npz"), 3, "port.npz")


# --- what cannot be read: status 3 and one line ---------------------------------------------------


def truncate(folder: Path) -> None:
    path = folder / read_index(folder)[3]["file"]
    path.write_bytes(path.read_bytes()[:-8])


def pickled(folder: Path) -> None:
    change_array(folder, REAL, lambda x: np.array([{}], object), allow_pickle=True)


def leave(target: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        np.save(folder.parent / "secret.npy", golden_bundles.arrays()[REAL])
        change_line(folder, REAL, file=target.format(outside=folder.parent))

    return change


def link(folder: Path) -> None:
    path = folder / next(row["file"] for row in read_index(folder) if row["name"] == REAL)
    shutil.move(path, folder.parent / "secret.npy")
    path.symlink_to(folder.parent / "secret.npy")


def twice(folder: Path) -> None:
    rows = read_index(folder)
    golden_bundles.write_index(folder, [*rows, rows[5]])


def set_padding(folder: Path) -> None:
    change_array(folder, BIT, lambda x: x | np.uint8(128) * (np.arange(8) == 7).astype(np.uint8))


def flip_a_value(folder: Path) -> None:
    change_array(folder, REAL, lambda x: -x)


def drop(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def write(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text)


# name -> (how to break it, whether all hashes are put right afterwards)
BROKEN_BUNDLES: dict[str, tuple[Callable[[Path], object], bool]] = {
    "truncated": (truncate, True),
    "pickled": (pickled, True),
    "shape": (lambda f: change_array(f, REAL, lambda x: x[:, 1:]), True),
    "shape in the index": (lambda f: change_line(f, REAL, shape="1 9 9"), True),
    "dtype": (lambda f: change_array(f, REAL, lambda x: x.astype(np.float32)), True),
    "dtype of whole numbers": (lambda f: change_array(f, INT, lambda x: x.astype(np.int64)), True),
    "endianness": (lambda f: change_array(f, REAL, lambda x: x.astype(">f8")), True),
    "path above": (leave("../secret.npy"), True),
    "absolute path": (leave("{outside}/secret.npy"), True),
    "link": (link, True),
    "duplicate name": (twice, True),
    "missing tap": (lambda f: (f / read_index(f)[7]["file"]).unlink(), False),
    "missing index": (drop("index.csv"), False),
    "missing manifest": (drop("manifest.json"), False),
    "missing weights": (drop("weights.safetensors"), False),
    "missing input": (drop("input_0.npy"), False),
    "hash of a tap": (flip_a_value, False),
    "hash of the weights": (lambda f: (f / "weights.safetensors").open("ab").write(b" "), False),
    "hash of the index": (lambda f: change_line(f, REAL, tolerance="1e9"), False),
    "padding": (set_padding, True),
    "manifest is no JSON": (write("manifest.json", "words"), False),
    "manifest is a list": (write("manifest.json", "[]"), False),
    "manifest is deep": (write("manifest.json", "[" * 100_000), False),
    "index is empty": (write("index.csv", ""), False),
    "kind of the index": (lambda f: change_line(f, REAL, **{"class": "bit"}), True),
    "unknown tap": (lambda f: change_line(f, REAL, name="blocks.0.nothing"), True),
}


@pytest.mark.parametrize("kind", BROKEN_BUNDLES)
def test_a_broken_bundle_is_one_line_and_status_3(tmp_path, kind) -> None:
    change, put_right = BROKEN_BUNDLES[kind]
    folder = copy(tmp_path)
    change(folder)
    if put_right:
        rehash(folder)
    port = tmp_path / "port.npz"
    np.savez(port, **{REAL: golden_bundles.arrays()[REAL]})
    one_line(run("golden", "compare", folder, port), 3, "bundle")


@pytest.mark.parametrize("verb", ["inspect", "selfcheck"])
def test_the_other_verbs_say_it_too(tmp_path, verb) -> None:
    folder = copy(tmp_path)
    assert run("golden", verb, folder).status == 0
    truncate(folder)
    one_line(run("golden", verb, folder), 3, "bundle")


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


BROKEN_ARRAYS: dict[str, tuple[bytes, str]] = {
    "truncated": (npy(golden_bundles.arrays()[REAL])[:-1], "truncated"),
    "pickled": (npy(np.array([{}], object)), "pickle"),
    "endianness": (npy(golden_bundles.arrays()[REAL].astype(">f4")), "big-endian"),
    "no npy": (b"words", "not a readable .npy file"),
}


@pytest.mark.parametrize("kind", BROKEN_ARRAYS)
def test_a_broken_candidate_is_one_line_and_status_3(tmp_path, kind) -> None:
    data, words = BROKEN_ARRAYS[kind]
    (tmp_path / "port" / "taps").mkdir(parents=True)
    (tmp_path / "port" / "taps" / f"000.{REAL}.npy").write_bytes(data)
    one_line(run("golden", "compare", BUNDLE, tmp_path / "port"), 3, REAL, words)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda x: x[:, 1:], "shape (1, 12, 63); expected (1, 13, 63)"),
        (lambda x: x.astype(np.int32), "dtype int32; expected float"),
        (lambda x: np.where(x > 1, np.nan, x), "NaN or infinity at [0, "),
    ],
)
def test_an_array_that_cannot_be_judged_is_a_named_failure(tmp_path, change, reason) -> None:
    port = dump(tmp_path, {REAL: change(golden_bundles.arrays()[REAL])})
    status, out, err = run("golden", "compare", BUNDLE, port)
    assert (status, err) == (1, "")
    assert f"\nFIRST DIVERGENCE: {REAL}\n" in out
    assert reason in out and "likely cause" not in out
    status, out, err = run("golden", "compare", BUNDLE, port, "--quiet")
    assert f"FIRST DIVERGENCE: {REAL}\n  reason        {reason}" in out


def test_padding_that_is_set_is_a_named_failure(tmp_path) -> None:
    bit = golden_bundles.arrays()[BIT].copy()
    bit[..., 7] |= 128
    status, out, err = run("golden", "compare", BUNDLE, dump(tmp_path, {BIT: bit}))
    assert (status, err) == (1, "")
    assert re.search("reason +padding bits set\n", out)
    assert re.search("likely cause +padding counted", out)


@pytest.mark.parametrize("verb", ["inspect", "selfcheck", "compare"])
def test_a_bundle_that_is_not_there(tmp_path, verb) -> None:
    port = (dump(tmp_path, {}),) if verb == "compare" else ()
    one_line(run("golden", verb, "nothing", *port), 3, "shipped bundles:", "small_tie_free")
    one_line(run("golden", verb, SEVEN, *port), 3, "7_0000.png")
    one_line(run("golden", verb, tmp_path, *port), 3, str(tmp_path))


def test_a_bundle_is_itself_a_candidate() -> None:
    assert set(candidate.read(BUNDLE)) == {"input", *golden_bundles.bundle().entries}
