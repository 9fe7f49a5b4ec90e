"""Data sets as they are met in the field: joined archives, superseded files, names of all kinds.

Oracles: what was packed, by tarfile, zipfile and struct; the same data set without the fault.
"""

from __future__ import annotations

import gzip
import io
import os
import struct
import tarfile
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import refimpl
from refimpl.conventions import (
    ConfigError,
    DataError,
    ModelFileError,
    NonFiniteError,
    RefimplError,
    shown,
)
from refimpl.data import archives, class_names, datasets, idx, images, mnist, segmentation
from refimpl.data.preprocessing import Preprocessing
from refimpl.golden.candidate import read_names
from refimpl.models import files
from refimpl.training import recipes
from refimpl.training.journal import Journal
from tests import oracles
from tests.command_line import SEVEN, SMALL, run, save_model, save_segmenter
from tests.test_bad_input import tar, zipped
from tests.test_data import encoded, idx_bytes, png
from tests.test_data_sets import LEVELS, PLAIN, TREE, WRITERS, assert_tree, picture, write_folder
from tests.test_segmentation_data import LINES

COMPOSED, PARTED = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


# --- archives -------------------------------------------------------------------------------------

TRAIN = {name: content for name, content in TREE.items() if name.startswith("train")}
TEST = {name: content for name, content in TREE.items() if name.startswith("test")}
JOINED = {
    "tars": tar(TRAIN) + tar(TEST),
    "tars, packed": tar(TRAIN, "w:gz") + tar(TEST, "w:gz"),
    "tars, packed by xz": tar(TRAIN, "w:xz") + tar(TEST, "w:xz"),
    "tars, packed by bz2 and gzip": tar(TRAIN, "w:bz2") + tar(TEST, "w:gz"),
    "tars, packed by xz and bz2": tar(TRAIN, "w:xz") + tar(TEST, "w:bz2"),
    "a tar, packed by bz2, and words": tar(TREE, "w:bz2") + b"words",
    "zips": zipped(TRAIN) + zipped(TEST),
    "a zip and half of one": zipped(TRAIN) + zipped(TEST)[:200],
    "a tar and words": tar(TRAIN) + b"words",
}


@pytest.mark.parametrize("content", JOINED.values(), ids=JOINED)
@pytest.mark.parametrize("split", ["train", "test"])
def test_an_archive_that_goes_on_after_its_end_is_refused(tmp_path, content, split):
    path = written(tmp_path / "joined", content)
    with pytest.raises(DataError, match=r"joined: the archive goes on after its end"):
        datasets.load(path, split, PLAIN)


def test_zeros_after_the_end_and_a_comment_are_no_fault(tmp_path):
    assert_tree(datasets.load(written(tmp_path / "a", tar(TREE) + bytes(99_999)), "test", PLAIN),
                "test")  # fmt: skip
    with zipfile.ZipFile(written(tmp_path / "b", zipped(TREE)), "a") as archive:
        archive.comment = b"zipped by hand"
    assert_tree(datasets.load(tmp_path / "b", "test", PLAIN), "test")


def appended(tree: dict[str, bytes], more: dict[str, bytes], form: str) -> bytes:
    """An archive with a second copy of some files, as `tar -r` leaves it."""
    buffer = io.BytesIO(tar(tree) if form == "tar" else zipped(tree))
    if form == "tar":
        with tarfile.open(fileobj=buffer, mode="a") as archive:
            for name, content in more.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    else:
        with zipfile.ZipFile(buffer, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
            for name, content in more.items():
                archive.writestr(name, content)
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["tar", "zip"])
@pytest.mark.parametrize("skip_broken", [False, True])
def test_the_later_copy_of_a_file_counts(tmp_path, form, skip_broken):
    name = "train/ant/0000.png"
    good = {name: TREE[name]}
    options = {"skip_broken": skip_broken}
    path = written(tmp_path / "a", appended(TREE | {name: b"broken"}, good, form))
    data = datasets.load(path, "train", PLAIN, **options)
    assert data.broken == ()
    assert_tree(data, "train")
    path = written(tmp_path / "b", appended(TREE | {name: picture(77)}, good, form))
    assert_tree(datasets.load(path, "train", PLAIN, **options), "train")
    path = written(tmp_path / "c", appended(TREE, {name: b"broken"}, form))
    if skip_broken:
        data = datasets.load(path, "train", PLAIN, **options)
        assert data.images[:, 0, 0, 0].tolist() == LEVELS["train"][1:]
        assert len(data.broken) == 1
        return
    with pytest.raises(DataError, match=f"c: {name}: not an image"):
        datasets.load(path, "train", PLAIN)


@pytest.mark.parametrize("form", WRITERS)
def test_a_limit_reads_no_more_than_it_takes(tmp_path, form):
    tree = TREE | {"train/bee/0000.png": b"broken, and not one of the three"}
    path = WRITERS[form](tmp_path / "data", tree)
    done: list[int] = []
    data = datasets.load(path, "train", PLAIN, done.append, limit=3)
    assert data.images[:, 0, 0, 0].tolist() == [LEVELS["train"][i] for i in (0, 1, 3)]
    assert sum(done) == 3


def stored_without_flag(names: dict[str, bytes]) -> bytes:
    """A zip whose names are UTF-8 and do not say so, as Finder writes them."""
    content = zipped({f"{'x' * len(name.encode())}{i}": body for i, (name, body) in
                      enumerate(names.items())})  # fmt: skip
    for i, name in enumerate(names):
        content = content.replace(f"{'x' * len(name.encode())}{i}".encode(), name.encode() + b"g")
    return content


def test_names_of_a_zip_that_do_not_say_they_are_utf_8(tmp_path):
    tree = {f"{name}/1.pn": picture(i) for i, name in enumerate((COMPOSED, "日本", "plain"))}
    data = datasets.load(written(tmp_path / "finder.zip", stored_without_flag(tree)), "test", PLAIN)
    assert data.class_names == (COMPOSED, "plain", "日本")
    old = zipped({f"{'x' * 4}/1.png": picture()}).replace(b"xxxx", b"caf\x82")  # DOS: é is 82
    assert [m.name for m in archives.members(written(tmp_path / "dos.zip", old))] == ["café/1.png"]


def test_backslashes_of_a_zip_are_slashes(tmp_path):
    tree = {name.replace("/", "\\"): content for name, content in TREE.items()}
    path = written(tmp_path / "windows.zip", zipped(tree))
    assert_tree(datasets.load(path, "train", PLAIN), "train")
    for name in ("..\\a\\1.png", "C:\\a\\1.png", "\\a\\1.png", "a\\..\\..\\1.png"):
        with pytest.raises(DataError, match="expected a relative path"):
            list(archives.members(written(tmp_path / "bad.zip", zipped({name: b""}))))


# --- Git LFS --------------------------------------------------------------------------------------

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


def test_a_pointer_of_git_lfs_is_told(tmp_path):
    for name, call, kind in (
        ("a.png", images.open_image, DataError),
        ("images-idx3-ubyte", idx.read, DataError),
        ("data.tar.gz", lambda path: datasets.load(path, "train", PLAIN), DataError),
        ("model.safetensors", files.read_any, ModelFileError),
    ):
        path = written(tmp_path / name, POINTER)
        with pytest.raises(kind, match=f"{name}: a pointer of Git LFS, .*git lfs pull"):
            call(path)
    folder = write_folder(tmp_path / "data", {"ant/1.png": picture(), "bee/1.png": POINTER})
    with pytest.raises(DataError, match=r"bee/1\.png: a pointer of Git LFS"):
        datasets.load(folder, "train", PLAIN)


# --- folders --------------------------------------------------------------------------------------


def test_what_macos_leaves_hides_no_class_folders(tmp_path):
    tree = {**TREE, "._train-images-idx3-ubyte.gz": b"\0\5\x16\7", "__MACOSX/._x": b"?"}
    assert_tree(datasets.load(write_folder(tmp_path / "data", tree), "train", PLAIN), "train")
    assert not mnist.found_in(tmp_path / "data")
    assert mnist.found_in(SMALL)


OF_SYSTEMS = ("$RECYCLE.BIN/S-1-5/$R1.png", "System Volume Information/a.png", "lost+found/#12.png",
              "train/ant/@eaDir/1.png/SYNO_THUMB_M.png", "#recycle/1.png", "train/ant/Icon\r",
              ".Trash-1000/files/1.png")  # fmt: skip


@pytest.mark.parametrize("form", WRITERS)
def test_what_systems_leave_is_no_part_of_a_data_set(tmp_path, form):
    tree = {name: picture(9) for name in OF_SYSTEMS}
    WRITERS[form](tmp_path / "data", {**tree, **TREE})
    found = datasets.load(tmp_path / "data", "train", PLAIN)
    assert_tree(found, "train")
    assert found.notes == ()


def test_what_is_passed_over_may_be_of_any_kind(tmp_path):
    """A link below a hidden folder; a folder at the root of a disk that only root may read."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        link = tarfile.TarInfo(".git/hooks/x")
        link.type, link.linkname = tarfile.SYMTYPE, "/bin/true"
        archive.addfile(link)
        for name, image in TREE.items():
            member = tarfile.TarInfo(name)
            member.size = len(image)
            archive.addfile(member, io.BytesIO(image))
    assert_tree(datasets.load(written(tmp_path / "a", content.getvalue()), "train", PLAIN), "train")
    folder = write_folder(tmp_path / "data", TREE)
    (folder / "lost+found").mkdir(mode=0)
    assert_tree(datasets.load(folder, "train", PLAIN), "train")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 0}, "limit is 0, expected a whole number of at least 1"),
        ({"limit": -1}, "limit is -1, expected"),
        ({"limit": 1.5}, "limit is 1.5, expected"),
        ({"workers": -1}, "workers is -1, expected a whole number of at least 0"),
    ],
)
def test_numbers_of_images_and_workers(tmp_path, options, message):
    folder = write_folder(tmp_path / "data", TREE)
    for load in (datasets.load, segmentation.load):
        with pytest.raises(ConfigError, match=message):
            load(folder, "train", PLAIN, **options)
    if "limit" in options:
        for load in (datasets.listed, segmentation.find):
            with pytest.raises(ConfigError, match=message):
                load(folder, "train", **options)
        with pytest.raises(ConfigError, match=message):
            datasets.load(SMALL, "train", mnist.PREPROCESSING, **options)


@pytest.mark.parametrize("form", WRITERS)
def test_files_that_are_left_out_for_their_suffix_are_counted(tmp_path, form):
    tree = {**TREE, "README": b"?", "train/notes.txt": b"?", "train/ant/labels.csv": b"?"}
    assert datasets.load(WRITERS[form](tmp_path / "few", tree), "train", PLAIN).notes == ()
    tree |= {f"train/{c}/{i}.heic": b"?" for c in ("ant", "bee") for i in range(600)}
    tree |= {"train/cow/5": b"?", "test/ant/9.heic": b"?", "train/ant/.hidden": b"?"}
    data = datasets.load(WRITERS[form](tmp_path / "data", tree), "train", PLAIN)
    (note,) = data.notes
    expected = "files without the suffix of an image, not read: 1,201 (.heic 1,200, no suffix 1)"
    assert note == f"{tmp_path / 'data'}: {expected}"
    only = {f"train/ant/{i}.heic": b"?" for i in range(3)}
    with pytest.raises(DataError, match=r"found no image, only files of other suffixes: 3 \(.heic"):
        datasets.load(WRITERS[form](tmp_path / "none", only), "train", PLAIN)


def test_the_command_tells_what_is_left_out_and_what_has_no_splits(tmp_path):
    classes = [str(i) for i in range(10)]
    tree = {f"{c}/{i}.png": picture() for c in classes for i in range(2)} | {"3/x.heic": b"?"}
    data, model = write_folder(tmp_path / "data", tree), save_model(tmp_path / "m.safetensors")
    status, _, err = run("evaluate", "--data", data, "--model", model)
    assert status == 0
    left, splits = err.splitlines()
    assert left.endswith("not read: 1 (.heic 1)")
    assert splits == (
        f"refimpl: warning: {data}: no folders train and test: all 20 images are evaluated, those "
        "of a training among them"
    )
    (data / "3" / "a.png").write_bytes(picture())
    status, out, err = run("classify", data / "3", "--model", model)
    assert status == 0 and len(out.splitlines()) == 3
    assert "not read: 1 (.heic 1)" in err.splitlines()[0]


def test_a_folder_is_the_same_training_data_in_memory_and_on_demand(tmp_path):
    path = write_folder(tmp_path / "data", TREE)
    first, second = (datasets.load(path, "train", PLAIN, workers=n).source() for n in (None, 0))
    assert first == second
    others = [datasets.load(path, "test", PLAIN), datasets.load(path, "train", PLAIN, limit=4)]
    others += [datasets.load(path, "train", Preprocessing.plain((4, 6), 1))]
    (path / "train" / "ant" / "0000.png").write_bytes(picture(format="BMP"))
    others += [datasets.load(path, "train", PLAIN)]
    assert len({first, *(data.source() for data in others)}) == 5
    folder = pairs(tmp_path / "maps", np.array([[1, 2]]))
    first, second = (segmentation.load(folder, "train", PLAIN, workers=n) for n in (None, 0))
    assert first.source() == second.source()
    few = [datasets.load(path, "train", PLAIN, workers=n).spread(2) for n in (None, 0)]
    assert few[0].source() == few[1].source() not in (None, first.source())
    assert datasets.load(SMALL, "test", PLAIN, limit=3).source() is None
    data = datasets.load(path, "train", PLAIN)
    (path / "train" / "ant" / "0000.png").unlink()
    with pytest.raises(DataError, match=r"train/ant/0000\.png: cannot be read: No such file"):
        data.source()


@pytest.mark.parametrize(("begun", "resumed"), [((), ("--workers", 0)), (("--workers", 0), ())])
def test_an_interrupted_training_goes_on_however_its_folder_is_read(tmp_path, begun, resumed):
    """Three epochs, one of them before the interruption: the same weights as in one go."""
    tree = {f"train/{i}/{j}.png": encoded(photo(10 * i + j)) for i in range(2) for j in range(6)}
    data = write_folder(tmp_path / "data", tree)
    tiny = ("--model", "react_micro", "--set", "dim=8", "--set", "depth=1", "--set",
            "num_classes=2", "--backend", "numpy", "--threads", 1)  # fmt: skip
    train = ("train", "--data", data, *tiny, "--validation", 2, "--epochs", 3)
    whole, out = tmp_path / "whole.safetensors", tmp_path / "a.safetensors"
    assert run(*train, *begun, "-o", whole).status == 0
    with pytest.MonkeyPatch.context() as patch:
        save, epochs = Journal.save, []

        def interrupted(journal: Journal, *state: object) -> None:
            save(journal, *state)
            epochs.append(1)
            raise KeyboardInterrupt

        patch.setattr(Journal, "save", interrupted)
        assert run(*train, *begun, "-o", out).status == 130
        assert epochs == [1]
    status, _, err = run(*train, *resumed, "--resume", "-o", out)
    assert status == 0, err
    assert out.read_bytes() == whole.read_bytes()
    assert run(*train, *begun, "-o", tmp_path / "b.safetensors").status == 0


def photo(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (28, 28), dtype=np.uint8))


def test_images_of_idx_files_are_chosen_before_they_are_enlarged(monkeypatch):
    monkeypatch.setattr(datasets, "MAX_BYTES", 10 * 560 * 560)
    large = Preprocessing.plain((560, 560), 1)
    assert datasets.load(SMALL, "test", large, limit=10).images.shape == (10, 560, 560)
    with pytest.raises(DataError, match="more than 10 images"):
        datasets.load(SMALL, "test", large, limit=11)


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cat", "日本", "a b", "x-\u200cy", "\U0001f600", "ä", "\xa0"])
def test_plain_names_are_shown_as_they_are(name):
    assert shown(name) == name


@pytest.mark.parametrize(("name", "text"), [
    ("a\nb", "a\\nb"), ("\x1b[31m", "\\x1b[31m"), ("\x9b", "\\x9b"), ("\u2028", "\\u2028"),
    ("\u202egnp.exe", "\\u202egnp.exe"), (os.fsdecode(b"caf\xe9"), "caf\\xe9"), ("\r", "\\r"),
    ("\x7f\0", "\\x7f\\x00"), ("\ud800", "\\ud800"), (Path("a\tb"), "a\\tb"),
])  # fmt: skip
def test_what_a_terminal_obeys_is_shown_as_escapes(name, text):
    assert shown(name) == text
    assert shown(text) == text
    text.encode()
    assert str(RefimplError(f"{name}: wrong")) == f"{text}: wrong"
    assert str(NonFiniteError("wrong", f"{name}")) == f"{text}: wrong"


def test_odd_names_of_files_are_told_in_one_line_each(tmp_path):
    for name in (b"a\nb.png", b"e\x1b[31mred.png", b"caf\xe9.png", b"bro  ken.png"):
        (Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name)))).write_bytes(b"?")
    status, out, err = run("classify", tmp_path)
    assert (status, out) == (2, "")
    told = [line.removeprefix(f"refimpl: {tmp_path}/").split(": ")[0] for line in err.splitlines()]
    assert told == ["a\\nb.png", "bro  ken.png", "caf\\xe9.png", "e\\x1b[31mred.png"]
    for path in tmp_path.iterdir():
        path.write_bytes(encoded(Image.new("L", (28, 28))))
    status, out, err = run("classify", tmp_path)
    assert status == 0
    assert all(line.isprintable() for line in out.splitlines() + err.splitlines())
    assert len(out.splitlines()) == 4


@pytest.mark.parametrize("name", [b"caf\xe9", b"a\nb", b"\x1b[31m"])
def test_a_class_folder_that_no_file_can_name_is_refused_at_once(tmp_path, name):
    folder = os.path.join(os.fsencode(tmp_path), name)
    os.mkdir(folder)
    (tmp_path / "plain").mkdir()
    for where in (folder, os.fsencode(tmp_path / "plain")):
        with open(os.path.join(where, b"1.png"), "wb") as file:
            file.write(picture())
    with pytest.raises(DataError, match="is no printable UTF-8 text") as caught:
        datasets.load(tmp_path, "train", PLAIN)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("form", WRITERS)
def test_accents_of_class_names_are_composed(tmp_path, form):
    tree = {f"train/{PARTED}/1.png": picture(1), f"train/{COMPOSED}/2.png": picture(2)}
    tree |= {"train/cafz/1.png": picture(3), f"test/{PARTED}/1.png": picture(4)}
    data = datasets.load(WRITERS[form](tmp_path / "data", tree), "train", PLAIN)
    assert data.class_names == ("cafz", COMPOSED)
    levels = dict(zip(data.images[:, 0, 0, 0].tolist(), data.labels.tolist(), strict=True))
    assert levels == {1: 1, 2: 1, 3: 0}
    datasets.require_classes("data", data.class_names, ("cafz", PARTED))
    with pytest.raises(DataError):
        datasets.require_classes("data", data.class_names, (PARTED, "cafz"))


def test_accents_of_names_files_and_stems_are_composed(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text(f"{PARTED} {PARTED}\nthe tea\n", encoding="utf-8")
    assert class_names.apply(path, [COMPOSED, "the"]) == (COMPOSED, "tea")
    assert class_names.apply(path, [PARTED, "the"]) == (COMPOSED, "tea")
    path.write_text(f"{PARTED} one\n{COMPOSED} two\n", encoding="utf-8")
    with pytest.raises(DataError, match="a second name"):
        class_names.read(path)
    folder = pairs(tmp_path / "data", np.array([[1, 2]]), image=PARTED, annotation=COMPOSED)
    assert len(segmentation.find(folder, "train").pairs) == 1


# --- label maps -----------------------------------------------------------------------------------


def pairs(
    folder: Path,
    labels: np.ndarray | bytes,
    suffix: str = "png",
    image: str | bytes = "a",
    annotation: str = "a",
) -> Path:
    """A data set of one pair; `image` may be the file itself."""
    for kind in segmentation.MAPS:
        (folder / kind).mkdir(parents=True)
    (folder / "classes.txt").write_text(LINES, encoding="utf-8")
    content = labels if isinstance(labels, bytes) else encoded(
        Image.fromarray(labels.astype(np.uint8)))  # fmt: skip
    (folder / "annotations" / f"{annotation}.{suffix}").write_bytes(content)
    if isinstance(image, str):
        size = (2, 1) if isinstance(labels, bytes) else labels.shape[::-1]
        image, stem = encoded(Image.new("RGB", size)), image
    else:
        stem = "a"
    (folder / "images" / f"{stem}.png").write_bytes(image)
    return folder


def read(folder: Path) -> list[list[int]]:
    found = segmentation.find(folder, "train")
    return found.pairs[0].labels(found.classes).tolist()


NUMBERS = {  # of the classes 0, 1, 2, 7, whose labels are 0 to 3
    "1 bit": (png(2, 1, 1, 0, b"\0\x40"), [[0, 1]]),
    "2 bits": (png(2, 1, 2, 0, b"\0\x60"), [[1, 2]]),
    "4 bits": (png(2, 1, 4, 0, b"\0\x17"), [[1, 3]]),
    "8 bits": (png(2, 1, 8, 0, b"\0\1\7"), [[1, 3]]),
    "plain PGM": (b"P2 2 1 255\n1 7\n", [[1, 3]]),
}


@pytest.mark.parametrize(("content", "labels"), NUMBERS.values(), ids=NUMBERS)
def test_numbers_of_annotations_are_those_that_are_stored(tmp_path, content, labels):
    assert read(pairs(tmp_path, content)) == labels


OTHER_SCALES = {
    "PGM up to 7": b"P5 2 1 7\n\1\7",
    "plain PGM up to 10": b"P2 2 1 10\n1 7\n",
    "PBM, where 1 is black": b"P4 2 1\n\x40",
    "white is 0": encoded(Image.new("L", (2, 1), 7), "TIFF").replace(
        struct.pack("<HHIHH", 262, 3, 1, 1, 0), struct.pack("<HHIHH", 262, 3, 1, 0, 0)
    ),
}


@pytest.mark.parametrize("content", OTHER_SCALES.values(), ids=OTHER_SCALES)
def test_annotations_on_another_scale_are_refused(tmp_path, content):
    with pytest.raises(DataError, match="stored on another scale"):
        read(pairs(tmp_path, content))


@pytest.mark.parametrize("format", ["JPEG", "JPEG2000", "WEBP", "AVIF", "TIFF"])
def test_annotations_that_lose_numbers_are_refused(tmp_path, format):
    if format not in Image.SAVE:
        pytest.skip(f"Pillow has no {format} here")
    options = {"compression": "jpeg"} if format == "TIFF" else {}
    content = encoded(Image.new("L", (2, 1), 7), format, **options)
    with pytest.raises(DataError, match=f"the format is {format}, which may change numbers"):
        read(pairs(tmp_path, content))


def turned(pixels: np.ndarray, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(Image.fromarray(pixels.astype(np.uint8)), exif=exif)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("shape", [(2, 2), (2, 3)])
def test_an_annotation_is_turned_with_its_image(tmp_path, orientation, shape):
    """Pixels that say which label they have, in a file that is turned and in its annotation."""
    labels = np.arange(6).reshape(2, 3)[:, : shape[1]] % 3
    folder = pairs(tmp_path, turned(labels, orientation), image=turned(labels, orientation))
    found = segmentation.find(folder, "train")
    image, read_labels = found.pairs[0].read(found.classes)
    np.testing.assert_array_equal(np.asarray(image), read_labels)
    tiff = tmp_path / "annotations" / "a.tif"
    (tmp_path / "annotations" / "a.png").unlink()
    exif = {0x0112: orientation}
    tiff.write_bytes(encoded(Image.fromarray(labels.astype(np.uint8)), "TIFF", tiffinfo=exif))
    np.testing.assert_array_equal(np.asarray(image), read(tmp_path))


def test_an_image_that_is_turned_alone_is_refused_where_sizes_do_not_tell(tmp_path):
    square, wide = np.arange(4).reshape(2, 2) % 3, np.arange(6).reshape(2, 3) % 3
    for i, (labels, orientation) in enumerate(((square, 6), (square, 2), (wide, 3), (wide, 4))):
        folder = pairs(tmp_path / str(i), labels, image=turned(labels, orientation))
        with pytest.raises(DataError, match=f"orientation is 1, that of a.png is {orientation}"):
            read(folder)
    upright = np.rot90(wide, -1)
    folder = pairs(tmp_path / "upright", upright, image=turned(wide, 6))  # they fit one way only
    assert read(folder) == upright.tolist()
    with pytest.raises(DataError, match="3 x 2 pixels, expected 2 x 3"):
        read(pairs(tmp_path / "stored", wide, image=turned(wide, 6)))


def test_two_classes_of_one_name_are_two(tmp_path):
    (tmp_path / "classes.txt").write_text("1 crane\n2 wall\n7 crane\n")
    names = segmentation.read_classes(tmp_path / "classes.txt").names
    assert names == ("crane (1)", "wall", "crane (7)")
    (tmp_path / "table.txt").write_text("Idx\tName\n3\tcrane\n5\tcrane\n")
    assert segmentation.read_classes(tmp_path / "table.txt").names == ("crane (3)", "crane (5)")


def test_an_evaluation_has_as_many_classes_as_the_model(tmp_path):
    """A model's file may name two classes alike."""
    file = files.read(save_segmenter(tmp_path / "m.safetensors"))
    names = ["crane"] * 2 + [f"c{i}" for i in range(9)]
    refimpl.save(file.path, file.model, file.params, class_names=names,
                 preprocessing=file.model.preprocessing.to_json())  # fmt: skip
    ask = refimpl.segmenter(file.path, backend="numpy")
    labels = np.zeros((56, 56), np.uint8)
    labels[:20] = 1
    folder = pairs(tmp_path / "data", labels)
    lines = (f"{i} {name}\n" for i, name in enumerate(ask.class_names))
    (folder / "classes.txt").write_text("".join(lines))
    found = ask.evaluate(segmentation.find(folder, "test"))
    assert list(found.per_class_iou)[:3] == ["crane (0)", "crane (1)", "c0"]
    assert found.per_class_pixels["crane (1)"] == 20 * 56
    values = [value for value in found.per_class_iou.values() if value is not None]
    assert found.mean_iou == pytest.approx(np.mean(values))


# --- marks that editors put before a text ---------------------------------------------------------


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path):
    path = tmp_path / "file.json"
    path.write_bytes(b"\xef\xbb\xbf" + b'{"epochs": 7}')
    assert recipes.read(path).epochs == 7
    path.with_suffix(".toml").write_bytes(b"\xef\xbb\xbfepochs = 7\n")
    assert recipes.read(path.with_suffix(".toml")).epochs == 7
    path.write_bytes(b"\xef\xbb\xbf" + b'{"mine": "logits"}')
    assert read_names(path) == {"mine": "logits"}
    assert class_names.read(path) == {"mine": "logits"}
    for text in (b"1 wall\n", b"Idx\tName\n1\twall\n"):
        path.with_suffix(".txt").write_bytes(b"\xef\xbb\xbf" + text)
        assert segmentation.read_classes(path.with_suffix(".txt")).names == ("wall",)


def test_an_empty_idx_file_may_not_claim_huge_sides(tmp_path):
    path = written(tmp_path / "x-idx8-ubyte", idx_bytes(8, (2**32 - 1, 0, 2**32 - 1, 2**31), b""))
    with pytest.raises(DataError, match="the header claims 4 dimensions and"):
        idx.read(path)
    assert idx.read(written(path, idx_bytes(8, (3, 0, 5), b""))).shape == (3, 0, 5)


def test_gzip_of_a_pointer_is_no_pointer(tmp_path):
    path = written(tmp_path / "x-idx1-ubyte", gzip.compress(POINTER))
    with pytest.raises(DataError, match="not an idx file"):
        idx.read(path)


VERBS_THAT_WRITE = {
    "pack": (("pack", "didb_micro_mnist", "-o"), ".safetensors"),
    "onnx": (("export", "didb_micro_mnist", "--onnx"), ".onnx"),
    "c": (("export", "didb_micro_mnist", "--c"), ""),
    "hex": (("export", "didb_micro_mnist", "--hex"), ""),
    "live": (("live", "-o"), ".html"),
    "report": (("report", SEVEN, "-o"), ".html"),
    "show": (("show", "didb_micro", "--block", 0, "--diagram"), ".svg"),
    "scenes": (("scenes", "--data", SMALL, "--train", 1, "--test", 1, "-o"), ""),
}


@pytest.mark.parametrize("verb", VERBS_THAT_WRITE)
def test_a_verb_says_in_one_line_where_it_wrote(verb, tmp_path):
    """Names of files are the user's: one may hold a line break, or what turns a terminal red."""
    if verb == "onnx":
        oracles.require("onnx")
    arguments, suffix = VERBS_THAT_WRITE[verb]
    path = tmp_path / f"a\x1b[31m\nb{suffix}"
    done = run(*arguments, path)
    assert done.status == 0, done.err
    assert path.exists()
    assert done.out.count("\n") == 1
    assert done.out.startswith(f"{tmp_path}{os.sep}a\\x1b[31m\\nb{suffix}")
    assert done.out[:-1].isprintable()
