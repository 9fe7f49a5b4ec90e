"""Folders of more images than memory holds: ImageNet's layout, a synset a folder.

Oracles: Pillow called directly, the path through arrays in memory (same images, same bits), and
the operating system's word on the memory of a process.
"""

from __future__ import annotations

import gc
import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import refimpl
from refimpl.conventions import ConfigError, DataError
from refimpl.data import class_names, datasets
from refimpl.data.image_folder import (
    FolderArray,
    Pictures,
    Workers,
    in_batches,
    map_ahead,
    slices,
    subset,
)
from refimpl.data.preprocessing import Preprocessing
from refimpl.training import hold_out
from refimpl.training.history import EpochResult
from refimpl.training.journal import fingerprint
from tests.command_line import PATIENCE, Result, assert_one_line, run
from tests.test_data import encoded
from tests.test_data_sets import TREE, write_folder, write_tar, write_zip

SYNSETS = tuple(f"n{1440764 + 1009 * number:08d}" for number in range(100))
PLAIN = Preprocessing.plain((12, 16), 3)
SIDE = 128  # of the images of the model whose memory is measured: 2,000 of them take 98 MB


def photograph(seed: int) -> Image.Image:
    """256 x 256, smooth in places as photographs are, unlike any other."""
    few = np.random.default_rng([62, seed]).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    return Image.fromarray(few).resize((256, 256), Image.Resampling.BICUBIC)


JPEGS = [encoded(photograph(seed), "JPEG") for seed in range(120)]
BROKEN = {
    "truncated": JPEGS[0][: len(JPEGS[0]) // 2],
    "empty": b"",
    "text": b"<html>404 Not Found</html>",
    "header": JPEGS[0][:20],
    "flipped": encoded(photograph(0))[:-200] + bytes(200),  # a PNG
}
UNUSUAL = [
    encoded(photograph(200)),  # a PNG, of whatever suffix
    encoded(photograph(201).convert("CMYK"), "JPEG"),
    encoded(photograph(202).convert("L"), "JPEG"),
]


class Folder(NamedTuple):
    path: Path
    images: dict[str, bytes]  # the good ones of val/, by path, in order
    broken: list[str]


@pytest.fixture(scope="session")
def imagenet(tmp_path_factory) -> Folder:
    """2,000 files in the 100 folders of val/, five of them broken; 200 in those of train/."""
    tree = {
        f"{split}/{synset}/{synset}_{number:08d}.JPEG": JPEGS[(20 * c + 7 * number) % len(JPEGS)]
        for split, count in (("val", 20), ("train", 2))
        for c, synset in enumerate(SYNSETS)
        for number in range(count)
    }
    of_val = sorted(name for name in tree if name.startswith("val"))
    broken = of_val[::450]
    tree |= dict(zip(broken, BROKEN.values(), strict=True))
    tree |= dict(zip(of_val[50::450], UNUSUAL))
    path = write_folder(tmp_path_factory.mktemp("data") / "imagenet", tree)
    return Folder(path, {n: tree[n] for n in of_val if n not in broken}, broken)


def save(path: Path, side: int, names: tuple[str, ...] = SYNSETS) -> Path:
    """A model that tells images apart; its answers are wrong as a rule."""
    fields = {"image_size": side, "patch_size": side // 4, "channels": 3, "num_classes": len(names)}
    model = refimpl.create_model("didb_micro", **fields, dim=8, depth=1)
    params = model.init(np.random.default_rng(63))
    params["head"]["weight"] *= 100
    refimpl.save(path, model, params, class_names=list(names), card={})
    return path


# --- evaluate -------------------------------------------------------------------------------------

# A process reports its own peak: what getrusage says of it begins with that of its parent.
REPORT = """
import sys
from refimpl import cli
if __name__ == "__main__":
    status = cli.main(sys.argv[1:])
    with open("/proc/self/status") as file:
        print(next(line for line in file if line.startswith("VmHWM")), file=sys.stderr)
    sys.exit(status)
"""


def measured(script: Path, *args: object) -> tuple[Result, int]:
    """The command in a process of its own, and the most memory it had, in bytes."""
    script.write_text(REPORT)
    command = [sys.executable, str(script), *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    *err, peak = done.stderr.strip().splitlines()
    return Result(done.returncode, done.stdout, "\n".join(err)), int(peak.split()[1]) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_evaluate_2000_images_in_the_memory_of_200(imagenet, tmp_path) -> None:
    path = save(tmp_path / "model.safetensors", SIDE)
    command = ["evaluate", "--data", imagenet.path, "--model", path, "--workers", 2, "--json"]
    command += ["--skip-broken", "--backend", "numpy", "--batch-size", 20]
    (few, few_bytes) = measured(tmp_path / "run.py", *command, "--limit", 200)
    (all_, all_bytes) = measured(tmp_path / "run.py", *command)
    assert (few.status, all_.status) == (0, 0), few.err + all_.err
    assert all_bytes - few_bytes < 25e6

    result = json.loads(all_.out)
    assert (result["count"], result["split"], json.loads(few.out)["count"]) == (1995, "val", 195)
    assert len(result["broken"]) == 5
    warnings = all_.err.splitlines()
    for name, told, line in zip(imagenet.broken, result["broken"], warnings, strict=True):
        assert told.startswith(f"{imagenet.path}: {name}: ")
        assert line == f"refimpl: warning: {told}"

    model = refimpl.classifier(path, backend="numpy")
    of_content = {
        content: model(Image.open(io.BytesIO(content)))[0].label
        for content in set(imagenet.images.values())
    }
    right = [of_content[content] == name.split("/")[1] for name, content in imagenet.images.items()]
    assert result["top1"] == pytest.approx(np.mean(right))
    assert 0 < np.mean(right) < 1
    assert sum(result["per_class"][s] for s in SYNSETS) == pytest.approx(
        sum(np.mean(right_of) for right_of in by_class(imagenet, right))
    )


def by_class(imagenet: Folder, right: list[bool]) -> Iterator[list[bool]]:
    for synset in SYNSETS:
        yield [r for name, r in zip(imagenet.images, right, strict=True) if synset in name]


def test_evaluate_for_people_counts_what_is_left_out(tmp_path) -> None:
    tree = small_tree() | {"val/b/9.JPEG": BROKEN["text"]}
    data = write_folder(tmp_path / "data", tree)
    model = save(tmp_path / "model.safetensors", 16, ("a", "b"))
    command = ("evaluate", "--data", data, "--model", model, "--backend", "numpy")
    assert_one_line(run(*command), f"{data}: val/b/9.JPEG: not an image")
    for workers in ((), ("--workers", 0), ("--workers", 1)):
        status, out, err = run(*command, "--skip-broken", "--record", *workers)
        assert status == 0
        assert out.startswith(f"{model} on 6 images of the val split, 1 broken left out\n")
        assert err.count("warning") == 1
        card = json.loads(model.with_suffix(".json").read_text())
        assert card["evaluation"]["data"].endswith("1 broken left out")


# --- images on demand -----------------------------------------------------------------------------


def small_tree(split: str = "val/") -> dict[str, bytes]:
    return {f"{split}{c}/{i}.JPEG": JPEGS[10 * n + i] for n, c in enumerate("ab") for i in range(3)}


@pytest.mark.parametrize("workers", [0, 2])
def test_the_arrays_are_those_in_memory(imagenet, workers) -> None:
    given = datasets.load(imagenet.path, "train", PLAIN)
    data = datasets.load(imagenet.path, "train", PLAIN, workers=workers)
    assert isinstance(given.images, np.ndarray)
    assert isinstance(data.images, FolderArray)
    assert data.images.shape == given.images.shape == (200, 12, 16, 3)
    np.testing.assert_array_equal(data.labels, given.labels)
    assert (data.class_names, data.split) == (given.class_names, "train") == (SYNSETS, "train")
    order = np.random.default_rng(0).permutation(200)
    for some in (slice(None), slice(3, 60), slice(9, 9), order[:37], order[:0], np.array([-1])):
        found = data.images[some]
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, given.images[some])
    np.testing.assert_array_equal(data.images[7], given.images[7])
    np.testing.assert_array_equal(
        subset(data.images, order)[5:20], subset(given.images, order)[5:20]
    )
    batches = [order[some] for some in slices(200, 48)]
    for found, some in zip(in_batches(data.images, batches), batches, strict=True):
        np.testing.assert_array_equal(found, given.images[some])
    few = datasets.load(imagenet.path, "train", PLAIN, workers=workers, limit=9)
    np.testing.assert_array_equal(few.images[:], given.spread(9).images)
    np.testing.assert_array_equal(few.images[:], data.spread(9).images[:])


def test_pillow_decodes_the_same(imagenet) -> None:
    data = datasets.load(imagenet.path, "test", PLAIN, workers=0, limit=40, skip_broken=True)
    assert len(data.images) == 35
    for name, pixels in zip(data.images.items, data.images[:], strict=True):
        image = Image.open(io.BytesIO(imagenet.images[name])).convert("RGB")
        expected = np.asarray(image.resize((16, 12), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(pixels, expected)


def test_a_large_folder_is_read_on_demand_without_being_asked(tmp_path, monkeypatch) -> None:
    path = write_folder(tmp_path / "data", small_tree())
    monkeypatch.setattr(datasets, "ARRAY_BYTES", 6 * 12 * 16 * 3)
    assert isinstance(datasets.load(path, "test", PLAIN).images, np.ndarray)
    monkeypatch.setattr(datasets, "ARRAY_BYTES", 6 * 12 * 16 * 3 - 1)
    assert isinstance(datasets.load(path, "test", PLAIN).images, FolderArray)
    assert isinstance(datasets.load(path, "test", PLAIN, limit=5).images, np.ndarray)


def test_processes_end_with_the_images(tmp_path) -> None:
    reader = Pictures(write_folder(tmp_path, small_tree()), PLAIN)
    images = FolderArray(reader, ["val/a/1.JPEG"], Workers(1))
    assert images[:].shape == (1, 12, 16, 3)
    assert len(multiprocessing.active_children()) >= 1
    del images
    gc.collect()
    deadline = time.monotonic() + PATIENCE
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert multiprocessing.active_children() == []


@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal")
def test_processes_leave_ctrl_c_to_the_one_that_started_them() -> None:
    """Also while they start, when Python would print a traceback."""
    workers = Workers(1)
    before = set(multiprocessing.active_children())
    future = workers.submit(os.getpid)
    (child,) = set(multiprocessing.active_children()) - before
    os.kill(child.pid, signal.SIGINT)
    assert future.result(timeout=PATIENCE) == child.pid
    os.kill(child.pid, signal.SIGINT)
    assert workers.submit(os.getpid).result(timeout=PATIENCE) == child.pid


@pytest.mark.parametrize("count", [-1, 1001, 3 * 10**9])
def test_processes_that_no_system_starts(tmp_path, count) -> None:
    message = f"workers is {count}, expected 0 to 1,000 processes"
    with pytest.raises(ConfigError, match=message):
        Workers(count)
    if count > 0:
        data = write_folder(tmp_path, small_tree())
        assert_one_line(run("evaluate", "--data", data, "--workers", count), message)


def test_a_process_that_dies_is_one_error() -> None:
    with pytest.raises(DataError, match="a process that decodes images has died"):
        list(Workers(1).map(os._exit, [1], 0))


def test_map_ahead_keeps_the_order_and_asks_for_no_more_than_it_may() -> None:
    asked, got = [], []

    def given_() -> Iterator[int]:
        for number in range(50):
            asked.append(number)
            yield number

    def slow_at_first(number: int) -> int:
        time.sleep(0.002 * (number % 3 == 0))
        return -number

    with ThreadPoolExecutor(3) as pool:
        for result in map_ahead(pool, slow_at_first, given_(), ahead=4):
            got.append(result)
            assert len(asked) <= len(got) + 4
    assert got == [-number for number in range(50)]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 99))
def test_the_measure_of_images_does_not_depend_on_their_batches(sizes, seed) -> None:
    images = np.random.default_rng(seed).integers(0, 256, (sum(sizes), 3, 5, 3), dtype=np.uint8)
    plain = Preprocessing.plain((3, 5), 3)
    batches = np.split(images, np.cumsum(sizes)[:-1])
    assert plain.measured_over(batches) == plain.measured(images)
    np.testing.assert_allclose(
        plain.measured(images).mean, (images / 255).mean((0, 1, 2)), atol=1e-4
    )
    np.testing.assert_allclose(plain.measured(images).std, (images / 255).std((0, 1, 2)), atol=1e-4)


# --- broken images --------------------------------------------------------------------------------

FORMS = {"folder": write_folder, "zip": write_zip, "tar": write_tar}


@pytest.mark.parametrize("kind", BROKEN)
def test_the_first_broken_image_is_named_alike_wherever_it_is_met(tmp_path, kind) -> None:
    tree = small_tree() | {"val/a/2.JPEG": BROKEN[kind], "val/b/0.JPEG": b"broken too"}
    path = write_folder(tmp_path / "data", tree)
    with pytest.raises(DataError) as caught:
        datasets.load(path, "test", PLAIN)
    assert str(caught.value).startswith(f"{path}: val/a/2.JPEG: ")
    on_demand = datasets.load(path, "test", PLAIN, workers=0).images
    assert on_demand[:2].shape[0] == 2  # before it is met
    with pytest.raises(DataError) as again:
        on_demand[:]
    assert str(again.value) == str(caught.value)


def test_processes_name_the_first_broken_image_too(tmp_path) -> None:
    tree = small_tree() | {"val/a/2.JPEG": BROKEN["truncated"], "val/b/2.JPEG": b"broken too"}
    images = datasets.load(write_folder(tmp_path / "data", tree), "test", PLAIN, workers=2).images
    with pytest.raises(DataError, match="val/a/2.JPEG: the image is broken or truncated"):
        images[:]


@pytest.mark.parametrize("form", FORMS)
def test_what_is_left_is_the_same_wherever_it_lies(tmp_path, form) -> None:
    tree = small_tree() | {"val/a/1.JPEG": BROKEN["text"], "val/c/0.JPEG": BROKEN["truncated"]}
    path = FORMS[form](tmp_path / "data", tree)
    expected = datasets.load(write_folder(tmp_path / "good", small_tree()), "test", PLAIN)
    kept = [0, 2, 3, 4, 5]
    for workers in (None, 0) if form == "folder" else (None,):
        data = datasets.load(path, "test", PLAIN, workers=workers, skip_broken=True)
        np.testing.assert_array_equal(data.images[:], expected.images[kept])
        np.testing.assert_array_equal(data.labels, expected.labels[kept])
        assert data.class_names == ("a", "b", "c")  # a class may be left without images
        assert [text.split(": ")[1] for text in data.broken] == ["val/a/1.JPEG", "val/c/0.JPEG"]
        limited = datasets.load(path, "test", PLAIN, workers=workers, skip_broken=True, limit=4)
        assert [len(limited.images), len(limited.broken)] == [3, 1]  # 0, 1, 3 and 5 of the seven


@pytest.mark.parametrize("workers", [None, 0])
def test_nothing_but_broken_images(tmp_path, workers) -> None:
    tree = {"a/0.jpg": BROKEN["text"], "b/0.jpg": BROKEN["empty"]}
    path = write_folder(tmp_path / "data", tree)
    with pytest.raises(DataError, match="all 2 images are broken; .*a/0.jpg: not an image"):
        datasets.load(path, "test", PLAIN, workers=workers, skip_broken=True)


# --- the layout -----------------------------------------------------------------------------------


def test_both_test_and_val(tmp_path) -> None:
    path = write_folder(tmp_path / "data", small_tree("test/") | small_tree("val/"))
    with pytest.raises(DataError, match="found both val and test, expected one of them"):
        datasets.load(path, "test", PLAIN)
    with pytest.raises(DataError, match=r"found a test split only, expected \[train/\]CLASS/IMAGE"):
        datasets.load(path, "train", PLAIN)


def test_workers_read_from_folders_only(tmp_path) -> None:
    path = write_zip(tmp_path / "data.zip", TREE)
    with pytest.raises(DataError, match="data.zip: found an archive, expected class folders"):
        datasets.load(path, "test", PLAIN, workers=1)
    write_folder(tmp_path / "mnist", {"t10k-images-idx3-ubyte": b"", "t10k-labels-idx1-ubyte": b""})
    with pytest.raises(DataError, match="mnist: found idx files, expected class folders"):
        datasets.load(tmp_path / "mnist", "test", PLAIN, workers=0)


# --- train ----------------------------------------------------------------------------------------

TRAINING = ("--model", "didb_cifar", "--set", "dim=8", "--set", "depth=1", "--batch-size", 16)
TRAINING += ("--set", "num_classes=100", "--epochs", 2, "--flip", "--shift", 2, "--validation", 7)


def test_training_on_demand_ends_in_the_same_bits(imagenet, tmp_path, monkeypatch) -> None:
    """In memory; on demand; and on demand by processes, interrupted and resumed."""
    tree = {f"train/{s}/0.jpg": JPEGS[n] for n, s in enumerate(SYNSETS)}
    tree |= {f"train/{SYNSETS[5]}/1.jpg": BROKEN["text"], f"train/{SYNSETS[50]}/1.jpg": b""}
    data = write_folder(tmp_path / "data", tree)
    command = ("train", "--data", data, "--skip-broken", *TRAINING, "-o")
    outputs = [tmp_path / f"{name}.safetensors" for name in ("memory", "demand", "resumed")]
    for output, workers in zip(outputs, ((), ("--workers", 0))):
        status, _, err = run(*command, output, *workers)
        assert status == 0, err
        assert err.count("warning") == 2

    as_before = EpochResult.__str__

    def stop_at_two(self: EpochResult) -> str:
        if self.epoch == 2:
            raise KeyboardInterrupt
        return as_before(self)

    with monkeypatch.context() as patch:
        patch.setattr(EpochResult, "__str__", stop_at_two)
        assert run(*command, outputs[2], "--workers", 2).status == 130
    status, _, err = run(*command, outputs[2], "--workers", 2, "--resume")
    assert status == 0, err
    assert outputs[0].read_bytes() == outputs[1].read_bytes() == outputs[2].read_bytes()
    cards = [json.loads(output.with_suffix(".json").read_text()) for output in outputs]
    assert {card["training_images"] for card in cards} == {93}
    assert {card["broken_images_left_out"] for card in cards} == {2}
    assert cards[0]["preprocessing"] == cards[1]["preprocessing"] == cards[2]["preprocessing"]
    losses = [[epoch["loss"] for epoch in card["history"]] for card in cards]
    assert losses[0] == losses[1] == losses[2]


def test_a_fingerprint_reads_no_image(tmp_path, monkeypatch) -> None:
    path = write_folder(tmp_path / "data", small_tree())

    def found(split: str = "test", **options: Any) -> str:
        data = datasets.load(path, split, PLAIN, **{"workers": 0} | options)
        return fingerprint(data.images, data.labels)

    first = found()
    monkeypatch.setattr("refimpl.data.image_folder.decode", lambda *a: pytest.fail("it was read"))
    assert found(workers=3) == first
    (path / "val/a/1.JPEG").write_bytes(JPEGS[1] + b"\0")
    longer = found()
    (path / "val/a/1.JPEG").write_bytes(JPEGS[1])
    assert found() == first
    (path / "val/a/1.JPEG").rename(path / "val/a/4.JPEG")
    assert len({first, longer, found(), found(limit=5)}) == 4


def test_images_are_held_out_without_being_read(tmp_path) -> None:
    tree = small_tree("") | {"b/0.JPEG": b"not read"}
    data = datasets.load(write_folder(tmp_path, tree), "train", PLAIN, workers=0)
    split = hold_out(data.images, data.labels, 2)
    assert split.training[0].items.tolist() == ["a/0.JPEG", "a/1.JPEG", "a/2.JPEG", "b/0.JPEG"]
    assert split.validation[0].items.tolist() == ["b/1.JPEG", "b/2.JPEG"]
    assert split.validation[0][:].shape == (2, 12, 16, 3)


# --- names of classes -----------------------------------------------------------------------------

NAMED = {
    "lines.txt": "n01 tench, Tinca tinca\n\nn02  crane \r\nn03 crane\nn04 great white shark\n",
    "names.json": '{"n01": "tench, Tinca tinca", "n02": "crane", "n03": "crane",'
    ' "n04": "great white shark"}',
    "marked.txt": "\ufeffn04 great white shark\nn03 crane\nn02 crane\nn01 tench, Tinca tinca",
}


@pytest.mark.parametrize("name", NAMED)
def test_class_names_of_folders(tmp_path, name) -> None:
    path = tmp_path / name
    path.write_text(NAMED[name], encoding="utf-8")
    expected = ("tench, Tinca tinca", "crane (n02)", "crane (n03)", "great white shark")
    assert class_names.apply(path, ("n01", "n02", "n03", "n04")) == expected
    assert class_names.apply(path, ("n03", "n01")) == (expected[2], expected[0])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt", b"n01 tench\n", "no name for the class folder 'n02'"),
        ("x.txt", b"n01 tench\nn02\n", "line 2 is 'n02', expected FOLDER NAME"),
        ("x.txt", b"n01 tench\nn01 crane\n", "line 2, 'n01': a second name"),
        ("x.txt", b"n01 te\0nch\n", "line 1, 'n01': found the name"),
        ("x.txt", b"n01 \xff\n", "byte 4 is not UTF-8"),
        ("x.txt", b"\n", "no class names in it"),
        ("x.json", b"{", "not JSON: "),
        ("x.json", b"[" * 100_000, "not JSON: "),
        ("x.json", b'["tench"]', "expected an object of texts"),
        ("x.json", b'{"n01": ["tench"]}', "expected an object of texts"),
        ("x.json", b'{"n01": {"n02": "tench"}}', "expected an object of texts"),
        ("x.json", b'{"n01": ""}', "'n01': found the name ''"),
        ("x.json", b'{"n01": "tench", "n01": "crane"}', "'n01': a second name"),
        ("x.json", b"{}", "no class names in it"),
    ],
)
def test_bad_class_names(tmp_path, name, content, message) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        class_names.apply(path, ("n01", "n02"))
    assert str(caught.value).startswith(f"{path}: {message}")
    with pytest.raises(DataError, match="cannot read the class names: No such file"):
        class_names.read(tmp_path / "absent.txt")


def test_the_model_is_told_the_names_and_asked_by_them(tmp_path) -> None:
    data = write_folder(tmp_path / "data", small_tree("train/") | small_tree("val/"))
    names = tmp_path / "names.txt"
    names.write_text("b bee, a kind of insect\na ant\n")
    output = tmp_path / "mine.safetensors"
    training = ["--model", "didb_cifar", "--set", "dim=8", "--set", "depth=1", "--epochs", 1]
    training += ["--set", "num_classes=2", "--class-names", names]
    assert run("train", "--data", data, *training, "-o", output).status == 0
    card = json.loads(output.with_suffix(".json").read_text())
    assert card["class_names"] == ["ant", "bee, a kind of insect"]
    command = ("evaluate", "--data", data, "--model", output, "--json")
    assert_one_line(run(*command), "found 2 classes (a, b), expected those of the model, 2 cl")
    found = json.loads(run(*command, "--class-names", names).out)
    assert list(found["per_class"]) == ["ant", "bee, a kind of insect"]
    names.write_text("a ant\n")
    assert_one_line(run(*command, "--class-names", names), "no name for the class folder 'b'")
