"""Bad input, case by case: what the command says of it, and what Python raises.

Every case goes both ways. The command ends with status 2 and one line on stderr that names the
file or layer, what was found and what was expected; it prints no answer and leaves nothing behind.
In Python the same call raises a RefimplError of the stated type, with the same text.
"""

from __future__ import annotations

import gzip
import io
import itertools
import os
import pickle
import re
import shlex
import signal
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

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
)
from refimpl.data import archives, datasets, idx, images, mnist, segmentation
from refimpl.data.preprocessing import Preprocessing
from refimpl.models import cards, files, summary
from refimpl.training import Recipe, checkpoints, hold_out, recipes, train
from tests.command_line import (
    PATIENCE,
    SEVEN,
    SMALL,
    assert_one_line,
    process,
    run,
    save_model,
    save_segmenter,
    wanting_signals,
    write_mnist,
)
from tests.test_data import encoded, idx_bytes, png
from tests.test_data_sets import TREE, picture, write_folder, write_tar, write_zip
from tests.test_files import PARAMS, changed, config, described, raw

ANIMALS = refimpl.create_model("didb_micro", image_size=(4, 8), dim=6, depth=1, num_classes=3)
PLAIN = Preprocessing.plain((4, 8), 1)


class Case(NamedTuple):
    """Something bad, how to meet it, and what is said of it."""

    write: Callable[[Path], object]  # makes the bad file, or folder
    command: str  # {bad} is its path; see `places` for the others
    error: type[RefimplError]
    call: Callable[[Path], object]
    words: tuple[str, ...]  # all of them are on the line, beside the name of the bad file
    name: str = "{bad}"  # what the line must name
    same: bool = True  # the line is the text of the error


def written(content: bytes | Callable[[Path], object]) -> Callable[[Path], object]:
    return (lambda path: path.write_bytes(content)) if isinstance(content, bytes) else content


def image(content: bytes | Callable[[Path], object], *words: str) -> Case:
    return Case(
        written(content), "classify {bad} --model {model}", DataError, images.open_image, words
    )


def idx_file(content: bytes, *words: str) -> Case:
    """The images of a folder like MNIST's, whose labels are in order."""

    def write(folder: Path) -> None:
        folder.mkdir()
        (folder / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(8, (2,), b"\1\2"))
        (folder / "t10k-images-idx3-ubyte").write_bytes(content)

    name = "{bad}/t10k-images-idx3-ubyte"
    return Case(
        write,
        "evaluate --data {bad} --model {model}",
        DataError,
        lambda folder: idx.read(folder / "t10k-images-idx3-ubyte"),
        words,
        name,
    )


def data_set(content: bytes | Callable[[Path], object], *words: str, split: str = "test") -> Case:
    return Case(
        written(content),
        f"evaluate --data {{bad}} --model {{animals}} --split {split}",
        DataError,
        lambda path: datasets.load(path, split, PLAIN),
        words,
    )


def weights(content: bytes | Callable[[Path], object], *words: str) -> Case:
    return Case(
        written(content),
        "classify {digit} --model {bad}",
        ModelFileError,
        refimpl.classifier,
        words,
    )


def architecture(fields: dict[str, Any], *words: str) -> Case:
    options = " ".join(f"--set {name}={value}" for name, value in fields.items())
    return Case(
        lambda path: None,
        f"train --data {{small}} --model didb_micro -o {{out}} {options}",
        ConfigError,
        lambda path: refimpl.create_model("didb_micro", **fields),
        words,
        "",
    )


def recipe(fields: dict[str, Any], *words: str) -> Case:
    options = " ".join(f"--{n.replace('_', '-')} {value}" for n, value in fields.items())
    return Case(
        lambda path: None,
        f"train --data {{small}} --model didb_micro -o {{out}} {options}",
        ConfigError,
        lambda path: Recipe(**fields),
        words,
        "",
    )


# --- images ---------------------------------------------------------------------------------------

RNG = np.random.default_rng(70)
PNG = encoded(Image.fromarray(RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)))
JPEG = encoded(Image.fromarray(RNG.integers(0, 256, (45, 63, 3), dtype=np.uint8)), "JPEG")
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
FLOATS = encoded(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF")
IMAGES = {
    "missing": image(lambda path: None, "cannot read the image: No such file"),
    "link to nothing": image(lambda path: path.symlink_to("nothing"), "No such file"),
    "folder of none": image(Path.mkdir, "no images in it, expected files such as")._replace(
        call=images.in_folder
    ),
    "device": image(lambda path: path.symlink_to(os.devnull), "the file is empty"),
    "empty": image(b"", "the file is empty, expected an image"),
    "text": image(b"not an image, just words\n", "not an image in a format that Pillow can read"),
    "zeros": image(bytes(1000), "not an image"),
    "pickle": image(pickle.dumps([1, 2]), "not an image"),
    "html": image(b"<!doctype html><title>404</title>", "not an image"),
    "half a png": image(PNG[: len(PNG) // 2], "broken or truncated"),
    "half a jpeg": image(JPEG[: len(JPEG) // 2], "broken or truncated"),
    "png signature only": image(PNG[:8], "image"),
    "png without pixels": image(png(3, 2, 8, 0, b""), "broken or truncated"),
    "png of no size": image(png(0, 0, 8, 0, b""), "image"),
    "png damaged": image(PNG[:45] + bytes(20) + PNG[65:], "not those of their checksum"),
    "bomb": image(png(60_000, 60_000, 8, 0, b"\0"), "too many pixels", "3600000000"),
    "half a bomb": image(png(10_000, 10_000, 8, 0, b"\0"), "too many pixels"),
    "postscript": image(POSTSCRIPT, "EPS is a program for Ghostscript, expected pixels"),
    "floats": image(FLOATS, "the pixels are floats, expected 8 or 16 bits"),
    "32 bits": image(
        encoded(Image.new("I", (2, 2), 70_000), "TIFF"), "pixels from 70000 to 70000, expected"
    ),
    "gigantic file": image(
        lambda path: (path.touch(), os.truncate(path, images.MAX_BYTES + 1)),
        "more than 256 MB, expected an image file",
    ),
}

# --- idx files ------------------------------------------------------------------------------------

IDX = idx_bytes(8, (2, 28, 28), bytes(2 * 784))
ZIPPED = gzip.compress(IDX, mtime=0)
IDX_FILES = {
    "empty": idx_file(b"", "not an idx file: starts with nothing, expected 00 00 TYPE NDIM"),
    "two bytes": idx_file(b"\0\0", "starts with 00 00"),
    "text": idx_file(b"words", "starts with 77 6f 72 64"),
    "magic": idx_file(b"\1" + IDX[1:], "starts with 01 00 08 03"),
    "type": idx_file(idx_bytes(10, (2, 3), bytes(6)), "starts with 00 00 0a 02"),
    "no dimensions": idx_file(idx_bytes(8, (), b"\1"), "starts with 00 00 08 00"),
    "header cut": idx_file(IDX[:9], "ends inside the header, expected 3 dimensions"),
    "elements cut": idx_file(IDX[:-1], "(2, 28, 28) needs 1568 bytes of elements, found 1567"),
    "trailing byte": idx_file(IDX + b"\0", "needs 1568 bytes of elements, found more"),
    "claims too much": idx_file(idx_bytes(8, (2**32 - 1,) * 3, b""), "the header claims"),
    "claims much": idx_file(idx_bytes(8, (2**30,), b"ab"), "found 2 bytes"),
    "40 dimensions": idx_file(idx_bytes(8, (1,) * 40, b"a"), "the header claims 40 dimensions"),
    "gzip cut": idx_file(ZIPPED[:-12], "gzip"),
    "gzip checksum": idx_file(ZIPPED[:-8] + b"abcd" + ZIPPED[-4:], "gzip"),
    "gzip of nothing": idx_file(gzip.compress(b""), "starts with nothing"),
    "gzip magic only": idx_file(b"\x1f\x8b", "gzip"),
}


def mnist_folder(folder: Path, pixels=(3, 28, 28), labels=(3, 1, 4), code=8) -> None:
    folder.mkdir()
    count = int(np.prod(pixels))
    (folder / "t10k-images-idx3-ubyte").write_bytes(idx_bytes(8, pixels, bytes(count)))
    content = bytes(labels) if code == 8 else struct.pack(f">{len(labels)}i", *labels)
    (folder / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(code, (len(labels),), content))


MNIST_FOLDERS = {
    "no labels": data_set(
        lambda path: (mnist_folder(path), (path / "t10k-labels-idx1-ubyte").unlink()),
        "found none of t10k-labels-idx1-ubyte, t10k-labels-idx1-ubyte.gz",
    ),
    "no training images": data_set(
        mnist_folder, "found none of train-images-idx3-ubyte", split="train"
    ),
    "more images than labels": data_set(
        lambda path: mnist_folder(path, labels=(3, 1)),
        "/t10k-labels-idx1-ubyte",
        "found 2 labels for the 3 images of t10k-images-idx3-ubyte",
    ),
    "label 10": data_set(
        lambda path: mnist_folder(path, labels=(3, 1, 10)), "found label 10, expected 0 to 9"
    ),
    "no images": data_set(
        lambda path: mnist_folder(path, pixels=(0, 28, 28), labels=()), "expected one each and at"
    ),
    "another size": data_set(
        lambda path: mnist_folder(path, pixels=(3, 2, 2)),
        "found uint8 (3, 2, 2), expected uint8 (n, 28, 28)",
    ),
    "labels of another type": data_set(
        lambda path: mnist_folder(path, code=12), "found int32 (3,), expected uint8 (n,)"
    ),
}

# --- archives and folders of class folders --------------------------------------------------------

GOOD = {name: content for name, content in TREE.items() if name.startswith("test/")}
FIRST = next(iter(GOOD))


def tar(tree: dict[str, bytes], mode: str = "w", **member: Any) -> bytes:
    """A tar; `member` are fields of one more entry, without content."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, format=tarfile.GNU_FORMAT) as archive:
        for name, content in tree.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        if member:
            info = tarfile.TarInfo(FIRST.replace("0000", "9999"))
            for name, value in member.items():
                setattr(info, name, value)
            # the bare header: addfile wants the content that a size promises
            header = info.tobuf(archive.format)
            archive.fileobj.write(header)
            archive.offset += len(header)
    return buffer.getvalue()


def zipped(tree: dict[str, bytes], mode: int = 0, flags: int = 0, **fields: Any) -> bytes:
    """A zip; the last file gets this mode and these flags, the latter in the directory too."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in tree.items():
            archive.writestr(zipfile.ZipInfo(name), content)
        last = archive.infolist()[-1]
        last.external_attr = mode << 16
        last.flag_bits |= flags
        for name, value in fields.items():
            setattr(last, name, value)
    return buffer.getvalue()


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :]


TAR, XZ, ZIP = tar(GOOD), tar(GOOD, "w:xz"), zipped(GOOD)
SECOND_HEADER = 2 * tarfile.BLOCKSIZE  # the first image takes less than a block
ARCHIVES = {
    "missing": data_set(lambda path: None, "no such file or folder, expected a data set"),
    "pipe": data_set(os.mkfifo, "is neither a file nor a folder"),
    "empty file": data_set(b"", "expected a folder, or a readable tar"),
    "text": data_set(b"words\n" * 300, "expected a folder, or a readable tar"),
    "an image": data_set(PNG, "expected a folder, or a readable tar"),
    "gzip of text": data_set(gzip.compress(b"words" * 300), "or a readable tar"),
    "tar of nothing": data_set(tar({}), "found no image, expected [test/]CLASS/IMAGE"),
    "zip of nothing": data_set(zipped({"a.txt": b""}), "found no image"),
    "empty zip": data_set(b"PK\5\6" + bytes(18), "found no image"),
    "tar of pickles": data_set(
        tar({"cifar-10-batches-py/test_batch": pickle.dumps({b"data": b""})}), "found no image"
    ),
    "other split only": data_set(tar(GOOD), "found a test split only", split="train"),
    "path to above": data_set(
        tar({"../../cat/1.png": picture()}), "'../../cat/1.png': expected a relative path"
    ),
    "path up and down": data_set(
        tar(GOOD | {"test/ant/../../../x.png": b"?"}), "'test/ant/../../../x.png'"
    ),
    "absolute path": data_set(tar({"/test/ant/1.png": picture()}), "'/test/ant/1.png'"),
    "absolute path in a zip": data_set(zipped({"/test/ant/1.png": picture()}), "'/test/ant/1.png'"),
    "path to above in a zip": data_set(zipped({"test/../../1.png": b""}), "'test/../../1.png'"),
    "drive in a zip": data_set(zipped({"C:/ant/1.png": b""}), "'C:/ant/1.png'"),
    "backslashes": data_set(zipped({"..\\ant\\1.png": b""}), "'../ant/1.png': expected a rel"),
    "bad path of another file": data_set(tar(GOOD | {"/etc/passwd": b""}), "'/etc/passwd'"),
    "line break in a name": data_set(
        tar({"ant/1\n.png": b""}), r"'ant/1\n.png': expected a name of"
    ),
    "colours in a name": data_set(
        zipped({"ant/\033[31m.png": b""}), r"'ant/\x1b[31m.png': expected"
    ),
    "no name in a zip": data_set(
        ZIP.replace(b"test/ant/0000.png", bytes(17)), "'': expected a name"
    ),
    "symbolic link": data_set(
        tar(GOOD, type=tarfile.SYMTYPE, linkname="/etc/passwd"), "9999.png: found a link or device"
    ),
    "hard link": data_set(
        tar(GOOD, type=tarfile.LNKTYPE, linkname=FIRST), "9999.png: found a link or device"
    ),
    "device": data_set(tar(GOOD, type=tarfile.CHRTYPE), "9999.png: found a link or device"),
    "pipe in it": data_set(tar(GOOD, type=tarfile.FIFOTYPE), "9999.png: found a link or device"),
    "symbolic link in a zip": data_set(
        zipped(GOOD, mode=0o120777), "0002.png: found a link or device, expected a plain file"
    ),
    "member that claims a lot": data_set(tar(GOOD, size=2**40), "9999.png: claims 1099511627776"),
    "member of negative size": data_set(tar(GOOD, size=-1024), "9999.png: the archive is broken"),
    "bomb in a zip": data_set(
        zipped(GOOD, file_size=2**31), "0002.png: claims 2147483648 bytes, expected at most 256 MB"
    ),
    "encrypted": data_set(zipped(GOOD, flags=1), "0002.png: the file is encrypted"),
    "unknown compression": data_set(zipped(GOOD, compress_type=77), "0002.png", "compress"),
    "checksum of a zip": data_set(
        zipped(GOOD).replace(GOOD[FIRST], flipped(GOOD[FIRST], 60)), FIRST, "Bad CRC-32"
    ),
    "tar cut in an image": data_set(TAR[:540], f"{FIRST}: the archive is truncated"),
    "tar cut in a header": data_set(TAR[: SECOND_HEADER + 100], "truncated or broken at byte 1024"),
    "tar cut between images": data_set(TAR[:SECOND_HEADER], "truncated or broken at byte 1024"),
    "tar damaged in a header": data_set(
        flipped(TAR, SECOND_HEADER + 4), "truncated or broken at byte 1024"
    ),
    "xz cut": data_set(XZ[:-40], "truncated or broken"),
    "xz damaged": data_set(flipped(XZ, len(XZ) // 2), "or a readable tar"),
    "xz checksum": data_set(flipped(XZ, len(XZ) - 30), "truncated or broken"),
    "gz cut": data_set(tar(GOOD, "w:gz")[:-4], "truncated or broken"),
    "zip cut": data_set(ZIP[:-30], "truncated or broken (BadZipFile"),
    "zip magic only": data_set(b"PK\3\4", "truncated or broken"),
    "broken image": data_set(tar(GOOD | {FIRST: PNG[:60]}), f"{FIRST}: the image is broken"),
    "empty image": data_set(zipped(GOOD | {FIRST: b""}), f"{FIRST}: the file is empty"),
    "image in no class": data_set(tar({"1.png": picture()}), "1.png: an image in no class folder"),
    "images in splits and in no class": data_set(
        tar({"train/1.png": picture(), "test/2.png": picture()}),
        "test/2.png lies in a split and in no class folder, expected [train/]CLASS/IMAGE",
    ),
    "images at two depths": data_set(
        tar(GOOD | {"test/ant/more/1.png": picture()}),
        "test/ant/more/1.png is not arranged as test/ant/0000.png, expected all images as",
    ),
    "images in and out of a split": data_set(
        tar(GOOD | {"ant/1.png": picture()}), "ant/1.png is not arranged as test/ant/0000.png"
    ),
}
FOLDERS = {
    "empty folder": data_set(Path.mkdir, "found no image, expected [test/]CLASS/IMAGE, or MNIST's"),
    "images in no class": data_set(
        lambda path: write_folder(path, {"1.png": picture()}), "1.png: an image in no class folder"
    ),
    "broken image in a class": data_set(
        lambda path: write_folder(path, GOOD | {FIRST: b"?"}), f"{FIRST}: not an image"
    ),
    "link to nothing in a class": data_set(
        lambda path: (write_folder(path, GOOD), (path / "test/ant/z.png").symlink_to("none")),
        "/test/ant/z.png: found a device or a link to nothing, expected a file",
    ),
    "fewer classes than the model": data_set(
        lambda path: write_folder(path, GOOD), "found 2 classes (ant, bee), expected those of the"
    )._replace(
        call=lambda path: datasets.require_classes(path, ("ant", "bee"), ("ant", "bee", "cow"))
    ),
    "classes of other names": data_set(
        lambda path: write_zip(path, {n.replace("ant", "cat"): c for n, c in TREE.items()}),
        "found 3 classes (bee, cat, cow), expected those of the model, 3 classes (ant, bee, cow)",
    )._replace(
        call=lambda path: datasets.require_classes(
            path, ("bee", "cat", "cow"), ("ant", "bee", "cow")
        )
    ),
    "digits for animals": Case(
        lambda path: write_mnist(path, {"test": 3}),
        "evaluate --data {bad} --model {animals}",
        DataError,
        lambda path: datasets.require_classes(path, mnist.CLASS_NAMES, ("ant", "bee", "cow")),
        ("found 10 classes (0, 1, 2, 3, 4, 5, 6, 7, 8, 9), expected those of the model, 3",),
    ),
    "class count in training": Case(
        lambda path: write_tar(path, TREE),
        "train --data {bad} --model didb_micro -o {out}",
        ConfigError,
        lambda path: train(
            refimpl.create_model("didb_micro"),
            Recipe(),
            *datasets.load(path, "train", Preprocessing.plain((28, 28), 1))[:2],
            preprocessing=Preprocessing.plain((28, 28), 1).to_json(),
            class_names=["ant", "bee", "cow"],
            out=path.with_name("never.safetensors"),
        ),
        ("found 3 classes, didb_micro has 10: add --set num_classes=3",),
        same=False,
    ),
}

# --- label maps for a classifier, classes for a segmenter -----------------------------------------

MAPS = {
    f"{kind}/{split}{name}.png": encoded(Image.new("L", (4, 4), 1))
    for kind in ("images", "annotations")
    for split in ("train/", "test/")
    for name in "ab"
} | {"classes.txt": b"1 ground\n"}
FLAT = {name.replace("train/", ""): content for name, content in MAPS.items() if "test" not in name}


def of_maps(write: Callable[[Path], object], command: str = "evaluate") -> Case:
    """A classifier asked of label maps."""
    commands = {
        "train": "train --data {bad} --model didb_micro -o {out}",
        "evaluate": "evaluate --data {bad} --model {model}",
    }
    split = {"train": "train", "evaluate": "test"}[command]
    return Case(
        write,
        commands[command],
        DataError,
        lambda path: datasets.load(path, split, PLAIN),
        (
            "found images/ and annotations/, label maps for a segmenter such as "
            "segmenter_didb_micro; a classifier expects [train/]CLASS/IMAGE, or MNIST's idx files",
        ),
    )


def of_classes(write: Callable[[Path], object], found: str, command: str = "evaluate") -> Case:
    """A segmenter asked of images that have one class each."""
    commands = {
        "train": "train --data {bad} --model segmenter_didb_micro -o {out}",
        "evaluate": "evaluate --data {bad} --model {segmenter}",
    }
    return Case(
        write,
        commands[command],
        DataError,
        lambda path: segmentation.find(path, "test"),
        (found, "expected images/ and annotations/ in a folder, label maps for a segmenter; a cla"),
    )


NOTHING_OF_MAPS = "found no images/ and no annotations/"
KINDS = {
    "maps to train on": of_maps(lambda path: write_folder(path, MAPS), "train"),
    "maps": of_maps(lambda path: write_folder(path, MAPS)),
    "maps without splits": of_maps(lambda path: write_folder(path, FLAT)),
    "maps without splits to train on": of_maps(lambda path: write_folder(path, FLAT), "train"),
    "maps in a zip": of_maps(lambda path: write_zip(path, MAPS)),
    "maps without splits in a tar": of_maps(lambda path: write_tar(path, FLAT)),
    "classes to train on": of_classes(
        lambda path: write_folder(path, TREE), NOTHING_OF_MAPS, "train"
    ),
    "classes": of_classes(lambda path: write_folder(path, TREE), NOTHING_OF_MAPS),
    "classes in a tar": of_classes(lambda path: write_tar(path, TREE), "found a file"),
    "digits": of_classes(lambda path: write_mnist(path, {"test": 3}), "found idx files"),
    "digits to train on": of_classes(
        lambda path: write_mnist(path, {"train": 3}), "found idx files", "train"
    ),
    "no annotations": of_classes(
        lambda path: write_folder(path, {n: c for n, c in MAPS.items() if n[0] == "i"}),
        "found no annotations/, expected",
    ),
    "nothing": of_classes(lambda path: None, "")._replace(
        words=("no such folder, expected images/ and annotations/ in it",)
    ),
}

# --- model files ----------------------------------------------------------------------------------

LATENT = changed()
NAN = np.array([0, 0, np.nan, 0, 0, 0], np.float32)
UNREADABLE = "not a readable safetensors file"
PREPROCESSING = '{"size": [8, 8], "mode": "grey", "mean": [0], "std": [1]}'
WEIGHTS = {
    "missing": weights(
        lambda path: None, "no such file or model; shipped models: deit_cifar10, didb_cifar10, "
    ),
    "folder": weights(Path.mkdir, "is a folder; expected a model's name or its .safetensors file"),
    "empty": weights(b"", UNREADABLE),
    "text": weights(b"these are no weights", UNREADABLE),
    "an image": weights(PNG, UNREADABLE),
    "pickle": weights(pickle.dumps({"weights": [1.0]}), UNREADABLE),
    "seven bytes": weights(LATENT[:7], UNREADABLE),
    "cut in the header": weights(LATENT[:200], UNREADABLE),
    "cut in the numbers": weights(LATENT[:-100], UNREADABLE),
    "bytes too many": weights(LATENT + bytes(8), UNREADABLE),
    "absurd header length": weights(struct.pack("<Q", 2**60) + LATENT[8:], UNREADABLE),
    "header length beyond the file": weights(
        struct.pack("<Q", len(LATENT)) + LATENT[8:], UNREADABLE
    ),
    "header is no JSON": weights(struct.pack("<Q", 4) + b"{{{{" + LATENT[8:], UNREADABLE),
    "nothing in it": weights(raw({}), "missing"),
    "no metadata": weights(raw(refimpl.flatten(PARAMS), None), "no refimpl metadata"),
    "format": weights(described(format="pt"), "no refimpl metadata; expected a file that refimpl"),
    "format version": weights(described(format_version="99"), "'99'; expected '1'"),
    "kind": weights(described(kind="quantum"), "kind 'quantum'"),
    "no config": weights(described(config=None), "'config' is missing"),
    "config is no JSON": weights(described(config="{"), "'config' is missing or no JSON"),
    "config is a list": weights(described(config="[1]"), "config: found list; expected an object"),
    "config of two blocks": weights(
        described(config=config(depth=2)), "blocks.1.norm1.weight: missing"
    ),
    "config of a billion blocks": weights(described(config=config(depth=10**9)), "blocks"),
    "config of more classes": weights(
        described(config=config(num_classes=4), class_names="null"), "head."
    ),
    "config of another family": weights(described(config=config(similarity="plain")), "attn.q"),
    "config with an odd field": weights(described(config=config(colour="red")), "'colour'"),
    "config that contradicts itself": weights(described(config=config(heads=4)), "heads"),
    "patch does not divide": weights(described(config=config(image_size=[9, 12])), "patch_size"),
    "no class names": weights(described(class_names=None), "'class_names' is missing"),
    "too few class names": weights(
        described(class_names='["a", "b"]'), "2 class names; expected 3"
    ),
    "class names a number": weights(described(class_names="3"), "class_names is 3"),
    "class names of numbers": weights(
        described(class_names="[1, 2, 3]"), "class_names is [1, 2, 3]"
    ),
    "class names in one string": weights(described(class_names='"abc"'), "class_names is 'abc'"),
    "preprocessing is no JSON": weights(described(preprocessing="?"), "'preprocessing' is missing"),
    "preprocessing is a list": weights(described(preprocessing="[1, 2]"), "[1, 2], expected an"),
    "preprocessing of another size": weights(
        described(preprocessing=PREPROCESSING), "makes (1, 8, 8), the model reads (1, 8, 12)"
    ),
    "preprocessing of no spread": weights(
        described(preprocessing=PREPROCESSING.replace("[1]", "[0]")), "std is (0,), expected"
    ),
    "missing name": weights(
        changed(pos_embed=None), "pos_embed: missing; expected shape (1, 7, 6)"
    ),
    "unknown name": weights(changed(extra__weight=np.ones(3, np.float32)), "extra.weight: unknown"),
    "shape": weights(
        changed(norm__bias=np.zeros(7, np.float32)), "norm.bias: shape (7,); expected (6,)"
    ),
    "transposed": weights(
        changed(head__weight=np.zeros((6, 3), np.float32)), "head.weight: shape (6, 3)"
    ),
    "NaN": weights(changed(norm__bias=NAN), "norm.bias: holds NaN or infinity; expected finite"),
    "infinity": weights(changed(norm__bias=np.full(6, -np.inf, np.float32)), "norm.bias: holds"),
    "integers": weights(changed(norm__bias=np.zeros(6, np.int32)), "norm.bias: int32; expected"),
    "half precision": weights(changed(norm__bias=np.zeros(6, np.float16)), "norm.bias: float16"),
    "mixed precision": weights(changed(norm__bias=np.zeros(6, np.float64)), "norm.bias: float64"),
    "absurdly large": weights(
        changed(head__weight=np.full((3, 6), 3e38, np.float32)),
        "classifier: logits[0, 0] is ",
        "expected a finite number",
    )._replace(
        error=NonFiniteError, call=lambda path: refimpl.classifier(path)(SEVEN), name="logits"
    ),
    "unknown name of a model": weights(lambda path: None, "no such file or model")._replace(
        command="classify {digit} --model mobilenet",
        call=lambda path: refimpl.load("mobilenet"),
        name="mobilenet",
    ),
    "untrained architecture": weights(
        lambda path: None, "an untrained architecture; expected trained weights"
    )._replace(
        command="evaluate --data {small} --model react_tiny",
        call=lambda path: refimpl.load("react_tiny"),
        name="react_tiny",
    ),
    "no card to record in": Case(
        lambda path: save_model(path.with_suffix(".safetensors")).with_suffix(".json").unlink(),
        "evaluate --data {small} --model {bad}.safetensors --limit 3 --record",
        ModelFileError,
        lambda path: cards.read(Path(f"{path}.safetensors")),
        ("cannot read the card",),
        "{bad}.json",
    ),
}

# --- settings of a training -----------------------------------------------------------------------

SETTINGS = {
    "patch does not divide the image": architecture(
        {"image_size": 30}, "image_size has a side of 30; expected a multiple of patch_size 4"
    ),
    "heads do not divide the channels": architecture(
        {"heads": 3}, "dim is 64; expected a multiple"
    ),
    "unknown field": architecture({"colour": "red"}, "unknown field 'colour'; expected one of"),
    "value of another type": architecture({"depth": "two"}, "depth is 'two'; expected a whole"),
    "no blocks": architecture({"depth": 0}, "depth is 0; expected a whole number of at least 1"),
    "unknown choice": architecture({"haar_mode": "mirror"}, "haar_mode is 'mirror'; expected one"),
    "five channels": Case(
        lambda path: None,
        "train --data {small} --model didb_micro -o {out} --set channels=5",
        ConfigError,
        lambda path: Preprocessing.plain((28, 28), 5),
        ("the model reads 5 channels, expected 1 (grey) or 3 (RGB)",),
        "",
    ),
    "unknown architecture": Case(
        lambda path: None,
        "train --data {small} --model didb_giant -o {out}",
        ConfigError,
        lambda path: refimpl.create_model("didb_giant"),
        ("unknown architecture 'didb_giant'; expected one of didb_micro",),
        "",
    ),
    "no epochs": recipe({"epochs": 0}, "epochs is 0, expected an integer of at least 1"),
    "learning rate not a number": recipe({"learning_rate": float("nan")}, "learning_rate is nan"),
    "too much smoothing": recipe({"smoothing": 2.0}, "smoothing is 2.0, expected"),
    "negative seed": recipe({"seed": -1}, "seed is -1, expected an integer of at least 0"),
    "nothing to clip to": recipe({"clip_norm": 0.0}, "clip_norm is 0.0, expected"),
}


def recipe_file(suffix: str, content: str | None, *words: str) -> Case:
    def write(path: Path) -> None:
        if content is not None:
            Path(f"{path}{suffix}").write_text(content)

    return Case(
        write,
        f"train --data {{small}} --model didb_micro -o {{out}} --recipe {{bad}}{suffix}",
        ConfigError,
        lambda path: recipes.read(f"{path}{suffix}"),
        words,
        f"{{bad}}{suffix}",
    )


RECIPE_FILES = {
    "missing": recipe_file(".toml", None, "cannot be read: No such file"),
    "another suffix": recipe_file(".yaml", "epochs: 3", "suffix '.yaml', expected '.json' or"),
    "no JSON": recipe_file(".json", "{epochs: 3}", "no JSON: Expecting property name"),
    "no TOML": recipe_file(".toml", "epochs: 3", "no TOML: "),
    "a list": recipe_file(".json", "[3]", "found [3], expected an object with fields"),
    "unknown field": recipe_file(".json", '{"speed": 3}', "unknown field 'speed', expected epochs"),
    "bad value": recipe_file(".toml", "epochs = 'few'", "epochs is 'few', expected an integer"),
}


def training(options: str, error: type, call: Callable, *words: str, name: str = "") -> Case:
    command = "train --data {small} --limit 4 --model didb_micro -o {out} --epochs 1 " + options
    return Case(lambda path: None, command, error, call, words, name)


def start(path: Path, **options: Any) -> None:
    """What a command of `training` calls, with a model of animals."""
    train(
        ANIMALS,
        options.pop("recipe", Recipe(epochs=1)),
        np.zeros((4, 4, 8), np.uint8),
        np.zeros(4, np.int64),
        preprocessing=PLAIN.to_json(),
        class_names=["ant", "bee", "cow"],
        out=path.with_name("out.safetensors"),
        **options,
    )


STARTS = {
    "nothing to resume": training(
        "--resume",
        ModelFileError,
        lambda path: start(path, resume=True),
        "no such checkpoint; there is nothing to resume",
        name="out.checkpoint",
    ),
    "broken checkpoint": training(
        "--resume",
        ModelFileError,
        lambda path: start(path, resume=True),
        "not a readable checkpoint",
        name="out.checkpoint",
    )._replace(write=lambda path: path.with_name("out.checkpoint").write_bytes(LATENT[:300])),
    "a model for a checkpoint": training(
        "--resume",
        ModelFileError,
        lambda path: start(path, resume=True),
        "checkpoint version is None, expected",
        name="out.checkpoint",
    )._replace(write=lambda path: path.with_name("out.checkpoint").write_bytes(LATENT)),
    "no such teacher": training(
        "--teacher nobody --distillation 0.5",
        ModelFileError,
        lambda path: start(path, recipe=Recipe(teacher="nobody", distillation=0.5)),
        "nobody: no such file or model",
    ),
    "teacher of no weight": training(
        "--teacher didb_micro_mnist",
        ConfigError,
        lambda path: Recipe(teacher="didb_micro_mnist"),
        "distillation is 0.0, expected a number above 0: teacher is 'didb_micro_mnist'",
    ),
    "no teacher": training(
        "--distillation 0.5",
        ConfigError,
        lambda path: start(path, recipe=Recipe(epochs=1, distillation=0.5)),
        "distillation is 0.5, expected 0.0: there is no teacher",
    ),
    "teacher of other classes": training(
        "--teacher {animals} --distillation 0.5",
        ConfigError,
        lambda path: start(path, recipe=Recipe(teacher="didb_micro_mnist", distillation=0.5)),
        "the teacher has 3 classes (ant, bee, cow), expected those of the data, 10 classes (0, 1",
        name="animals.safetensors",
    )._replace(same=False),
}


def packing(command: str, call: Callable[[Path], object], *words: str, name: str) -> Case:
    def write(path: Path) -> None:
        refimpl.save(path.with_name("latent.safetensors"), ANIMALS, ANIMALS_PARAMS)
        files.save_packed(path.with_name("packed.safetensors"), ANIMALS, ANIMALS_PARAMS)

    return Case(write, command, ModelFileError, call, words, name)


PACKED = {
    "packed once more": packing(
        "pack {tmp}/packed.safetensors -o {out}",
        lambda path: files.read(path.with_name("packed.safetensors")),
        "kind 'packed' (bits for the engine, no latent weights); expected 'latent'",
        name="packed.safetensors",
    )._replace(same=False),
    "onto itself": packing(
        "pack {tmp}/latent.safetensors -o {tmp}/latent.safetensors",
        lambda path: files.read_packed(path.with_name("latent.safetensors")),
        "is the model itself, expected another file to write",
        name="latent.safetensors",
    )._replace(same=False),
    "another suffix": packing(
        "pack {tmp}/latent.safetensors -o {tmp}/x.onnx",
        lambda path: files.save_packed(path.with_name("x.onnx"), ANIMALS, ANIMALS_PARAMS),
        "suffix '.onnx'; expected '.safetensors'",
        name="x.onnx",
    ),
    "packed for NumPy": packing(
        "classify {digit} --backend numpy --model {tmp}/packed.safetensors",
        lambda path: refimpl.classifier(path.with_name("packed.safetensors"), backend="numpy"),
        "packed, so only the engine can run it; expected a latent file",
        name="packed.safetensors",
    ),
    "summary of nothing": packing(
        "summary {bad}",
        lambda path: summary.of(path),
        "no such file or model",
        name="{bad}",
    ),
}


def place_out(command: str, *words: str, name: str) -> Case:
    """The output cannot be written; Python's own OSError says so."""
    return Case(
        lambda path: None,
        f"train --data {{small}} --limit 4 --model didb_micro --epochs 1 {command}",
        OSError,
        lambda path: refimpl.save(path / "x.safetensors", ANIMALS, ANIMALS_PARAMS),
        words,
        name,
        same=False,
    )


ANIMALS_PARAMS = ANIMALS.init(np.random.default_rng(71))
OUTPUTS = {
    "another suffix": place_out(
        "-o {bad}.npz", "suffix '.npz'; expected '.safetensors'", name="{bad}.npz"
    )._replace(
        error=ModelFileError,
        call=lambda path: refimpl.save(f"{path}.npz", ANIMALS, ANIMALS_PARAMS),
        same=True,
    ),
    "no such folder": place_out(
        "-o {bad}/x.safetensors", "no such folder", name="{bad}/x.safetensors"
    ),
    "below a file": place_out(
        "-o {digit}/x.safetensors", "Not a directory", name="{digit}/x.safetensors"
    ),
    "a folder": Case(
        lambda path: path.with_suffix(".safetensors").mkdir(),
        "train --data {small} --limit 4 --model didb_micro --epochs 1 -o {bad}.safetensors",
        (RefimplError, OSError),
        lambda path: refimpl.save(path.with_suffix(".safetensors"), ANIMALS, ANIMALS_PARAMS),
        ("is a folder; expected a file to write",),
        "{bad}.safetensors",
        same=False,
    ),
    "too many to hold out": Case(
        lambda path: None,
        "train --data {small} --model didb_micro -o {out} --validation 2000",
        DataError,
        lambda path: hold_out(np.zeros((2000, 1, 1)), np.zeros(2000), 2000),
        ("2000 images, too few to hold out 2000",),
        "",
    ),
}

FAMILIES = {
    "image": IMAGES,
    "idx": IDX_FILES,
    "mnist": MNIST_FOLDERS,
    "archive": ARCHIVES,
    "folder": FOLDERS,
    "kind": KINDS,
    "weights": WEIGHTS,
    "settings": SETTINGS,
    "recipe": RECIPE_FILES,
    "training": STARTS,
    "packing": PACKED,
    "output": OUTPUTS,
}
CASES = {
    f"{family}: {name}": case for family, table in FAMILIES.items() for name, case in table.items()
}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    """A model of digits, one of three animals, and a segmenter."""
    folder = tmp_path_factory.mktemp("models")
    save_model(folder / "digits.safetensors")
    refimpl.save(
        folder / "animals.safetensors",
        ANIMALS,
        ANIMALS_PARAMS,
        class_names=["ant", "bee", "cow"],
        preprocessing=PLAIN.to_json(),
    )
    save_segmenter(folder / "segmenter.safetensors")
    return {
        "model": folder / "digits.safetensors",
        "animals": folder / "animals.safetensors",
        "segmenter": folder / "segmenter.safetensors",
    }


@pytest.mark.parametrize("name", CASES)
def test_one_line_and_a_typed_exception(tmp_path: Path, models: dict[str, Path], name: str) -> None:
    case = CASES[name]
    bad = tmp_path / "bad"
    places = {"tmp": tmp_path, "bad": bad, "out": tmp_path / "out.safetensors"}
    places |= {"small": SMALL, "digit": SEVEN, **models}
    case.write(bad)
    before = sorted(tmp_path.rglob("*"))

    result = run(*shlex.split(case.command.format(**places)))
    assert_one_line(result, case.name.format(**places), *case.words)
    with pytest.raises(case.error) as caught:
        case.call(bad)
    if case.same:
        line = f"{' '.join(str(caught.value).split())}\n"
        # before it there may be the option that set the field
        assert re.fullmatch(rf"refimpl: (--[a-z-]+( \w+)?: )?{re.escape(line)}", result.err)
        assert isinstance(caught.value, RefimplError)
    assert sorted(tmp_path.rglob("*")) == before  # nothing half written


def test_there_are_many_cases() -> None:
    assert len(CASES) >= 40


def test_every_file_of_several_is_tried(tmp_path, models) -> None:
    for name in ("empty", "half a png", "bomb"):
        IMAGES[name].write(tmp_path / f"{name}.png")
    paths = [*sorted(tmp_path.iterdir()), SEVEN]
    status, out, err = run("classify", *paths, "--model", models["model"])
    assert status == 2
    assert out.startswith(str(SEVEN))
    assert [line.split(": ")[1] for line in err.splitlines()] == [str(p) for p in paths[:3]]


def test_a_pickle_is_never_opened(tmp_path, models) -> None:
    """A pickle that is opened runs what it likes: this one writes a file."""
    trap = tmp_path / "opened"

    class Bomb:
        def __reduce__(self):
            return Path.touch, (trap,)

    bomb = pickle.dumps(Bomb())
    pickle.loads(bomb)
    trap.unlink()  # the bomb works
    for name in ("bomb.safetensors", "bomb.png", "bomb.npy", "bomb.tar"):
        (tmp_path / name).write_bytes(bomb)
    write_tar(tmp_path / "of.tar", {"train/cat/bomb.png": bomb, "train/cat/bomb.pkl": bomb})
    for command in (
        "classify {digit} --model {tmp}/bomb.safetensors",
        "classify {tmp}/bomb.png --model {model}",
        "evaluate --data {tmp}/bomb.tar --model {model}",
        "evaluate --data {tmp}/of.tar --model {model} --split train",
        "classify {digit} --model {tmp}/bomb.npy",
    ):
        args = command.format(digit=SEVEN, tmp=tmp_path, model=models["model"])
        assert_one_line(run(*shlex.split(args)), "bomb" if "of.tar" not in args else "of.tar")
    assert not trap.exists()


def test_more_images_than_memory(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(datasets, "MAX_BYTES", 3 * PLAIN.size[0] * PLAIN.size[1])
    path = write_zip(tmp_path / "data.zip", TREE)
    with pytest.raises(DataError, match=r"data\.zip: more than 3 images, the most that"):
        datasets.load(path, "test", PLAIN)


def test_a_member_that_unpacks_to_more_than_it_claims(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(archives, "MAX_BYTES", 50)
    folder = write_folder(tmp_path / "folder", GOOD)
    with pytest.raises(DataError, match="more than 0 MB, expected an image file"):
        datasets.load(folder, "test", PLAIN)


# --- what cannot be written -----------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch) -> Iterator[Callable[[int], Path]]:
    """A folder on a disk of so many bytes: a tmpfs, or where nobody may mount one, fsync fails."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def make(size: int) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True).returncode:

            def fsync(file: int) -> None:
                used = sum(path.stat().st_size for path in folder.iterdir())
                if used > size:
                    raise OSError(28, "No space left on device")

            monkeypatch.setattr(os, "fsync", fsync)
        return folder

    yield make
    subprocess.run(["umount", str(folder)], capture_output=True)


TRAINING = f"train --data {SMALL} --limit 8 --batch-size 4 --model didb_micro --set dim=8".split()
TRAINING += ["--set", "depth=1"]


def test_a_full_disk_at_the_first_checkpoint(small_disk) -> None:
    out = small_disk(2**12) / "x.safetensors"
    assert_one_line(
        run(*TRAINING, "-o", out), f"{out.with_suffix('.checkpoint')}: No space left on device"
    )
    assert list(out.parent.iterdir()) == []


def test_a_full_disk_leaves_the_last_checkpoint_whole(small_disk, tmp_path) -> None:
    """There is room for one checkpoint, and not for the next one beside it."""
    measured = tmp_path / "x.safetensors"
    assert run(*TRAINING, "--epochs", 1, "-o", measured).status == 0
    checkpoint = 3 * measured.stat().st_size  # parameters and AdamW's two moments
    out = small_disk(checkpoint * 3 // 2) / "x.safetensors"
    status, printed, err = run(*TRAINING, "--epochs", 2, "-o", out)
    assert (status, printed) == (2, "")
    assert (
        err.splitlines()[-1]
        == f"refimpl: {out.with_suffix('.checkpoint')}: No space left on device"
    )
    assert [path.name for path in out.parent.iterdir()] == ["x.checkpoint"]
    assert checkpoints.load(out.with_suffix(".checkpoint")).params


def test_a_full_disk_when_a_card_is_written(small_disk, models) -> None:
    disk = small_disk(2**16)
    model = disk / "digits.safetensors"
    model.write_bytes(models["model"].read_bytes())
    card = models["model"].with_suffix(".json").read_bytes()
    model.with_suffix(".json").write_bytes(card)
    (disk / "filler").write_bytes(bytes(2**16 - model.stat().st_size - 2**13))
    with (disk / "rest").open("wb", buffering=0) as rest, pytest.raises(OSError):
        while True:
            rest.write(bytes(2**12))
    result = run("evaluate", "--data", SMALL, "--limit", 3, "--model", model, "--record")
    assert result.status == 2
    assert "top-1" in result.out  # the figures, at least
    assert re.fullmatch(r"refimpl: .*digits\.json: No space left on device\n", result.err)
    assert model.with_suffix(".json").read_bytes() == card


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_answers_that_nobody_has_room_for() -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "refimpl", "models"]
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=PATIENCE
        )
    assert done.returncode == 2
    assert done.stderr == "refimpl: standard output: No space left on device\n"


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
def test_an_interrupt_leaves_the_last_checkpoint_whole(tmp_path: Path) -> None:
    out = tmp_path / "x.safetensors"
    command = ["train", "--data", SMALL, "--model", "didb_micro", "-o", out, "--limit", 8]
    training = subprocess.Popen(
        [sys.executable, "-m", "refimpl", *map(str, command), "--epochs", "1000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=wanting_signals,
    )
    try:
        # a first line may say that kernels are compiled; it goes on after the first epoch
        lines = iter(training.stderr.readline, "")
        assert len(list(itertools.islice((x for x in lines if "epoch" in x), 2))) == 2
        training.send_signal(signal.SIGINT)
        printed, err = training.communicate(timeout=PATIENCE)
    finally:
        training.kill()
    assert (training.returncode, printed) == (130, "")
    assert err.splitlines()[-1].startswith("refimpl: interrupted")
    assert [path.name for path in tmp_path.iterdir()] == ["x.checkpoint"]
    assert len(checkpoints.load(tmp_path / "x.checkpoint").progress["history"]) >= 2


def test_no_traceback_in_a_process() -> None:
    done = process("classify", "none.png", "--model", "none.safetensors")
    assert done.returncode == 2
    assert done.stderr.startswith("refimpl: none.safetensors")
    assert "Traceback" not in done.stderr
