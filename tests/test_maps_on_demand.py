"""Segmentation folders of more pairs than memory holds: images and label maps read on demand.

Oracle: the same pairs as arrays in memory, whose bits training must end in.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image

import refimpl
from refimpl.conventions import DataError
from refimpl.data import datasets, scenes, segmentation
from refimpl.data.image_folder import FolderArray, Workers, in_batches, slices, subset
from refimpl.data.images import decode, picture_size
from refimpl.data.preprocessing import Preprocessing
from refimpl.training import Recipe, ablation, hold_out, train
from refimpl.training.history import EpochResult
from refimpl.training.holdout import draw_evenly
from refimpl.training.journal import fingerprint
from tests.command_line import SMALL, Result, assert_one_line, run, save_segmenter
from tests.test_data import encoded

SIZE = (10, 12)
PLAIN = Preprocessing.plain(SIZE, 3)
COUNT = 21  # more than two parts
BYTES = COUNT * 10 * 12 * (3 + 1)  # of images and labels


def write(folder: Path, count: int = COUNT, suffix: str = "jpg") -> Path:
    """Pairs of several sizes, none alike; the annotation has the picture's brightness in it."""
    for kind in ("images", "annotations"):
        (folder / kind / "train").mkdir(parents=True)
    (folder / "classes.txt").write_text("1 dark\n2 dim\n3 bright\n")
    for number in range(count):
        rng = np.random.default_rng([31, number])
        height, width = 15 + number % 3, 30 - number % 4
        pixels = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
        indices = np.asarray(image.convert("L")) // 64  # 0 has no label
        image.save(folder / "images" / "train" / f"{number:02d}.{suffix}")
        Image.fromarray(indices).save(folder / "annotations" / "train" / f"{number:02d}.png")
    return folder


@pytest.fixture(scope="module")
def maps(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("maps") / "data")


# --- arrays ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_images_and_labels_are_those_in_memory(maps, workers) -> None:
    expected = segmentation.load(maps, "train", PLAIN)
    data = segmentation.load(maps, "train", PLAIN, workers=workers)
    order = np.random.default_rng(0).permutation(COUNT)
    for name in ("images", "labels"):
        whole, found = getattr(expected, name), getattr(data, name)
        assert (type(whole), type(found)) == (np.ndarray, FolderArray)
        assert (found.shape, len(found)) == (whole.shape, COUNT)
        np.testing.assert_array_equal(found[:], whole)
        np.testing.assert_array_equal(found[4], whole[4])
        np.testing.assert_array_equal(subset(found, order)[3:20], whole[order][3:20])
        batches = [order[some] for some in slices(COUNT, 10)]
        for batch, some in zip(in_batches(found, batches), batches, strict=True):
            np.testing.assert_array_equal(batch, whole[some])
    assert data.class_names == expected.class_names == ("dark", "dim", "bright")
    assert (data.split, data.broken) == (expected.split, expected.broken) == ("train", ())
    few = segmentation.load(maps, "train", PLAIN, workers=workers, limit=5)
    for name in ("images", "labels"):
        spread = getattr(expected.spread(5), name)
        np.testing.assert_array_equal(getattr(few, name)[:], spread)
        np.testing.assert_array_equal(getattr(data.spread(5), name)[:], spread)


def test_images_and_labels_are_read_by_the_same_processes(maps) -> None:
    before = set(multiprocessing.active_children())
    data = segmentation.load(maps, "train", PLAIN, workers=1)
    assert data.images.workers is data.labels.workers
    kept = hold_out(data.images, data.labels, 3, seed=1).training
    assert kept[0].workers is kept[1].workers is data.images.workers
    assert (len(kept[0][:]), len(kept[1][:])) == (COUNT - 3, COUNT - 3)
    assert len(set(multiprocessing.active_children()) - before) == 1


def test_a_large_folder_is_read_on_demand_without_being_asked(maps, monkeypatch) -> None:
    monkeypatch.setattr(datasets, "ARRAY_BYTES", BYTES)
    assert isinstance(segmentation.load(maps, "train", PLAIN).labels, np.ndarray)
    monkeypatch.setattr(datasets, "ARRAY_BYTES", BYTES - 1)
    data = segmentation.load(maps, "train", PLAIN)
    assert isinstance(data.images, FolderArray)
    assert isinstance(data.labels, FolderArray)
    limited = segmentation.load(maps, "train", PLAIN, limit=COUNT - 1)
    assert isinstance(limited.labels, np.ndarray)


def test_pairs_are_held_out_and_drawn_alike_without_being_read(maps, monkeypatch) -> None:
    whole = segmentation.load(maps, "train", PLAIN)
    data = segmentation.load(maps, "train", PLAIN, workers=0)
    expected = hold_out(whole.images, whole.labels, 6, seed=3)
    with monkeypatch.context() as patch:
        patch.setattr(segmentation.Pair, "picture", lambda pair: pytest.fail("it was read"))
        patch.setattr(segmentation.Pair, "labels", lambda *a: pytest.fail("it was read"))
        split = hold_out(data.images, data.labels, 6, seed=3)
        drawn = draw_evenly(data.labels, (5, 4), seed=2)
    for found, given_ in zip(split.training, expected.training, strict=True):
        np.testing.assert_array_equal(found[:], given_)
    for found, given_ in zip(split.validation, expected.validation, strict=True):
        np.testing.assert_array_equal(found[:], given_)
    for found, given_ in zip(drawn, draw_evenly(whole.labels, (5, 4), seed=2), strict=True):
        np.testing.assert_array_equal(found, given_)


def test_a_fingerprint_reads_no_pair(maps, tmp_path, monkeypatch) -> None:
    path = shutil.copytree(maps, tmp_path / "data")

    def found(**options: Any) -> str:
        data = segmentation.load(path, "train", PLAIN, **{"workers": 0} | options)
        return fingerprint(data.images, data.labels)

    monkeypatch.setattr(segmentation, "decode", lambda *a: pytest.fail("it was read"))
    monkeypatch.setattr(segmentation, "decode_indices", lambda *a: pytest.fail("it was read"))
    first = found()
    assert found(workers=3) == first
    seen = {first, found(limit=5)}
    for change in ("annotations/train/05.png", "images/train/05.jpg"):
        content = (path / change).read_bytes()
        (path / change).write_bytes(content + b"\0")
        seen.add(found())
        (path / change).write_bytes(content)
    assert found() == first
    (path / "classes.txt").write_text("2 dim\n1 dark\n4 bright\n")
    assert len(seen | {found()}) == 5


# --- broken pairs ---------------------------------------------------------------------------------

FAULTS = {  # file, content and what is said of it
    "image": ("images/train/03.jpg", b"<html>", r"03\.jpg: not an image"),
    "annotation": ("annotations/train/04.png", b"", r"04\.png: the file is empty"),
    "size": ("annotations/train/05.png", (9, 9, 1), r"05\.png: 9 x 9 pixels, expected 29 x 17"),
    "index": ("annotations/train/06.png", (28, 15, 77), r"06\.png: index 77 is in no line"),
    "both": ("images/train/03.jpg", b"", r"03\.jpg: the file is empty"),
}


def spoil(path: Path, kind: str) -> str:
    """Breaks a pair; what is said of it."""
    name, content, said = FAULTS[kind]
    if isinstance(content, bytes):
        (path / name).write_bytes(content)
    else:
        Image.new("L", content[:2], content[2]).save(path / name)
    if kind == "both":
        (path / "annotations" / "train" / "03.png").write_bytes(b"")
    return said


@pytest.mark.parametrize(
    ("kind", "workers"),
    [*((kind, workers) for kind in FAULTS for workers in (None, 0)), ("both", 2), ("size", 2)],
)
def test_a_broken_pair_is_named_and_left_out_only_when_asked(maps, tmp_path, kind, workers):
    path = shutil.copytree(maps, tmp_path / "data")
    said = spoil(path, kind)
    with pytest.raises(DataError, match=said) as caught:
        data = segmentation.load(path, "train", PLAIN, workers=workers)
        for _ in zip(data.images[:], data.labels[:]):
            pass
    whole = segmentation.load(maps, "train", PLAIN)
    data = segmentation.load(path, "train", PLAIN, workers=workers, skip_broken=True)
    assert data.broken == (str(caught.value),)
    left = np.delete(np.arange(COUNT), int(FAULTS[kind][0][-6:-4]))
    np.testing.assert_array_equal(data.images[:], whole.images[left])
    np.testing.assert_array_equal(data.labels[:], whole.labels[left])
    limited = segmentation.load(path, "train", PLAIN, workers=workers, skip_broken=True, limit=7)
    assert len(limited.images) + len(limited.broken) == 7  # the broken ones count


def test_nothing_but_broken_pairs(tmp_path) -> None:
    path = write(tmp_path / "data", 2)
    (path / "classes.txt").write_text("9 none\n")
    with pytest.raises(DataError, match=r"train: all 2 images are broken; .*00\.png: index"):
        segmentation.load(path, "train", PLAIN, skip_broken=True)


@given(st.integers(1, 8), st.sampled_from(["JPEG", "PNG", "TIFF", "WEBP"]))
def test_the_size_of_a_picture_is_that_of_the_decoded_one(orientation, kind) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    content = encoded(Image.new("RGB", (7, 4)), kind, exif=exif)
    width, height = decode(content, "x").size
    assert picture_size(content, "x") == (height, width)
    assert (height, width) == ((7, 4) if orientation > 4 else (4, 7))


def test_an_annotation_fits_the_picture_as_it_is_seen(tmp_path) -> None:
    """A picture that its EXIF data turn has the annotation of the turned one."""
    path = write(tmp_path / "data", 1)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (15, 30)).save(path / "images" / "train" / "00.jpg", exif=exif)
    (pair,) = segmentation.find(path, "train").pairs
    assert pair.picture().size == (30, 15)
    assert pair.labels(segmentation.find(path, "train").classes).shape == (15, 30)


# --- training -------------------------------------------------------------------------------------

MODEL = ("--model", "segmenter_react_micro", "--set", "dim=8", "--set", "depth=1")
MODEL += ("--set", "image_size=8", "--set", "num_classes=3", "--set", "channels=3")
TRAINING = (*MODEL, "--epochs", 2, "--batch-size", 5, "--flip", "--shift", 1, "--crop", 0.7)
TRAINING += ("--validation", 4, "--limit", 18, "--skip-broken")


def test_training_on_demand_ends_in_the_same_bits(maps, tmp_path, monkeypatch) -> None:
    """In memory; on demand; by processes; and by processes, interrupted and resumed."""
    data = shutil.copytree(maps, tmp_path / "data")
    for kind in ("image", "size"):
        spoil(data, kind)
    ways = {"memory": (), "demand": ("--workers", 0), "two": ("--workers", 2)}
    ways["resumed"] = ("--workers", 1)

    def trained(name: str, *more: str) -> Result:
        out = tmp_path / f"{name}.safetensors"
        return run("train", "--data", data, *TRAINING, "-o", out, *ways[name], *more)

    as_before = EpochResult.__str__

    def stop_at_two(self: EpochResult) -> str:
        if self.epoch == 2:
            raise KeyboardInterrupt
        return as_before(self)

    with monkeypatch.context() as patch:
        patch.setattr(EpochResult, "__str__", stop_at_two)
        assert trained("resumed").status == 130
    for name in ways:
        status, _, err = trained(name, *(["--resume"] if name == "resumed" else []))
        assert status == 0, err
        assert [line.split(": ")[1:3] for line in err.splitlines()[:2]] == [
            ["warning", str(data / FAULTS[kind][0])] for kind in ("image", "size")
        ]
    files = [tmp_path / f"{name}.safetensors" for name in ways]
    assert len({file.read_bytes() for file in files}) == 1
    cards = [json.loads(file.with_suffix(".json").read_text()) for file in files]
    for what in ("training_images", "broken_images_left_out", "preprocessing", "held_out"):
        assert all(card[what] == cards[0][what] for card in cards)
    assert (cards[0]["training_images"], cards[0]["broken_images_left_out"]) == (12, 2)
    curves = [[{**epoch, "elapsed": 0, "images_per_second": 0} for epoch in card["history"]]
              for card in cards]  # fmt: skip
    assert all(curve == curves[0] for curve in curves)


def test_training_on_demand_needs_the_memory_of_a_few_batches(tmp_path, monkeypatch) -> None:
    """Sixty pairs that take 15.7 MB as arrays, 0.8 MB three at a time and 3 MB as floats."""
    path, size = write(tmp_path / "data", 60), (256, 256)
    fields = {"image_size": size, "patch_size": 64, "channels": 3, "dim": 8, "depth": 1}
    model = refimpl.create_model("segmenter_react_micro", **fields, num_classes=3)
    plain = Preprocessing.plain(size, 3)
    # the room that is asked for to read the largest file allowed is never filled, but is counted
    monkeypatch.setattr(segmentation, "read_file", Path.read_bytes)

    def peak(name: str, workers: int | None) -> int:
        tracemalloc.start()
        data = segmentation.load(path, "train", plain, workers=workers)
        split = hold_out(data.images, data.labels, 10, seed=0)
        train(
            model, Recipe(epochs=1, batch_size=3, shards=1, flip=True), *split.training,
            preprocessing=plain.to_json(), class_names=list(data.class_names),
            out=tmp_path / f"{name}.safetensors", validation=split.validation, threads=1,
        )  # fmt: skip
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    saved = peak("memory", None) - peak("demand", 0)
    assert saved > 1.5 * 60 * 256 * 256 * 4  # holding out takes a copy of arrays


def test_a_broken_pair_ends_training_before_the_first_step(maps, tmp_path) -> None:
    out = tmp_path / "m.safetensors"
    command = ("train", *MODEL, "-o", out, "--epochs", 1, "--data")
    for kind in ("image", "annotation"):
        path = shutil.copytree(maps, tmp_path / kind)
        spoil(path, kind)
        for workers in ((), ("--workers", 0), ("--workers", 1)):
            assert_one_line(run(*command, path, *workers), FAULTS[kind][0])
            assert not out.with_suffix(".checkpoint").exists()


def test_python_refuses_labels_of_the_other_kind(maps, tmp_path) -> None:
    def start(name: str, labels: np.ndarray | FolderArray) -> None:
        train(
            refimpl.create_model(name, image_size=(10, 12), patch_size=2, channels=3,
                                 num_classes=3),
            Recipe(), data.images, labels, preprocessing=PLAIN.to_json(),
            class_names=list(data.class_names), out=tmp_path / "x.safetensors",
        )  # fmt: skip

    data = segmentation.load(maps, "train", PLAIN, workers=0)
    with pytest.raises(DataError, match=r"labels are \(21, 10, 12\), expected one an image"):
        start("react_micro", data.labels)
    with pytest.raises(DataError, match=r"labels are \(21,\), expected a map of 10 x 12 an image"):
        start("segmenter_react_micro", np.zeros(COUNT, np.int64))


def test_no_label_at_all_is_told_before_the_first_step(tmp_path) -> None:
    path = write(tmp_path / "data", 3)
    for annotation in (path / "annotations" / "train").iterdir():
        Image.new("L", Image.open(annotation).size).save(annotation)
    command = ("train", *MODEL, "-o", tmp_path / "m.safetensors", "--data", path)
    for workers in ((), ("--workers", 0)):
        assert_one_line(run(*command, *workers), "no pixel has a label")


def test_an_ablation_reads_no_more_than_a_batch(maps) -> None:
    """What it trains on and evaluates on are parts of the same FolderArrays."""
    row = {"image_size": list(SIZE), "patch_size": 2, "channels": 3, "num_classes": 3}
    asked = ablation.Ablation.from_json(
        {"images": 12, "held_out": 6, "seeds": [0], "recipe": {"epochs": 1},
         "rows": [{"name": "a", "model": "segmenter_react_micro", "fields": row}]}
    )  # fmt: skip

    def load(split: str, plain: Preprocessing, workers: int | None) -> datasets.Dataset:
        return segmentation.load(maps, split, plain, workers=workers)

    expected, found = (
        ablation.read_images(asked, ablation.HELD_OUT, functools.partial(load, workers=workers))
        for workers in (None, 0)
    )
    assert found.preprocessing == expected.preprocessing
    for part in ("training", "evaluated"):
        for array, whole in zip(getattr(found, part), getattr(expected, part), strict=True):
            assert isinstance(array, FolderArray)
            np.testing.assert_array_equal(array[:], whole)


# --- evaluation -----------------------------------------------------------------------------------


def test_evaluate_with_processes_and_without_what_is_broken(tmp_path) -> None:
    data, model = tmp_path / "scenes", save_segmenter(tmp_path / "model.safetensors")
    scenes.write(SMALL, data, {"train": 1, "test": 5})
    command = ("evaluate", "--data", data, "--model", model, "--json")
    results = [json.loads(run(*command, *more).out) for more in ((), ("--workers", 2))]
    assert results[0]["confusion"] == results[1]["confusion"]
    assert results[0]["broken"] == []

    (data / "annotations" / "test" / "00002.png").write_bytes(b"?")
    assert_one_line(run(*command, "--workers", 1), "annotations/test/00002.png: not an image")
    (data / "images" / "test" / "00004.png").write_bytes(b"")
    for workers in ((), ("--workers", 2)):
        status, out, err = run(*command, "--skip-broken", "--record", *workers)
        assert (status, err.count("warning")) == (0, 2)
        answer = json.loads(out)
        assert answer["count"] == 3
        assert ["00002.png" in answer["broken"][0], "00004.png" in answer["broken"][1]] == [1, 1]
        card = json.loads(model.with_suffix(".json").read_text())
        assert card["evaluation"]["data"] == "scenes, 3 images of the test split, 2 broken left out"
    folder = segmentation.find(data, "test").without_broken(Workers(0))
    ask = refimpl.segmenter(model, backend="numpy")
    assert ask.evaluate(folder, workers=1).confusion == ask.evaluate(folder).confusion
