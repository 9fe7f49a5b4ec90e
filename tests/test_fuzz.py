"""Damaged and made-up bytes: whatever they are, there is an answer or a RefimplError of one line.

Twenty targets: image files of eleven formats, sound ones with damaged metadata, annotations, idx
files, tar and zip archives (damaged as packed and before they are packed; with odd names), class
lists and names of classes, safetensors (damaged bytes; a sound file with odd JSON in its header),
recipes, ablations, cards, checkpoints, tables of runs, checkpoints of others (as safetensors with
odd JSON beside them, and as pickles), dumps of a port and the map of their names. The profile ci
draws 300 examples a target, the same on every run; explore draws 10,000 a target, other ones on
every run:

    HYPOTHESIS_PROFILE=explore pytest tests/test_fuzz.py
"""

from __future__ import annotations

import bz2
import dataclasses
import functools
import gzip
import io
import json
import lzma
import struct
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import refimpl
from refimpl.classifiers import Evaluation
from refimpl.conventions import RefimplError, shown
from refimpl.data import class_names, datasets, idx, images, segmentation
from refimpl.data.preprocessing import Preprocessing
from refimpl.golden import candidate
from refimpl.importing import checkpoint as importing_checkpoint
from refimpl.models import cards, files, flatten
from refimpl.training import ablation, ablation_table, checkpoints, recipes
from tests import oracles
from tests.checkpoint_files import DATA, timm
from tests.test_bad_input import ANIMALS, ANIMALS_PARAMS, tar, zipped
from tests.test_data import encoded, idx_bytes, png_chunk

fuzz = settings(
    max_examples=10 * settings.default.max_examples,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
RNG = np.random.default_rng(80)
PICTURE = Image.fromarray(RNG.integers(0, 256, (9, 14, 3), dtype=np.uint8))
PLAIN = Preprocessing.plain((4, 8), 1)


@pytest.fixture(scope="module", autouse=True)
def small_images() -> Iterator[None]:
    """A damaged header may claim any size: above this one it is refused, so nothing is slow."""
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, 10**6
    yield
    Image.MAX_IMAGE_PIXELS = before


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "fuzz"


def answer_or_one_line(call: Callable[[], Any], name: str) -> Any:
    """What the call returns, None where it refuses, as it should; anything else fails the test."""
    try:
        return call()
    except RefimplError as error:
        assert str(error)
        assert "\n" not in str(error)
        assert name in str(error)
    return None


@st.composite
def damaged(draw: st.DrawFn, corpus: list[bytes]) -> bytes:
    """One of the corpus with a few bytes changed, cut out, doubled or put in."""
    content = bytearray(draw(st.sampled_from(corpus)))
    for _ in range(draw(st.integers(1, 4))):
        # half of the time in the header, where bytes have a meaning
        last = draw(st.sampled_from([min(64, len(content)), len(content)]))
        start = draw(st.integers(0, last))
        stop = min(start + draw(st.sampled_from([0, 1, 2, 4, 40])), len(content))
        content[start:stop] = draw(
            st.one_of(
                st.binary(min_size=stop - start, max_size=stop - start),
                st.binary(max_size=4),
                st.just(2 * bytes(content[start:stop])),
                st.sampled_from([b"\0" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff"]),
            )
        )
    return bytes(content[: draw(st.integers(0, len(content)))] if draw(st.booleans()) else content)


# --- images ---------------------------------------------------------------------------------------

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA", "PCX", "JPEG2000")
IMAGES = [encoded(PICTURE, format) for format in FORMATS]
IMAGES += [encoded(PICTURE, "ICO", sizes=[PICTURE.size])]
IMAGES += [encoded(PICTURE.convert(mode)) for mode in ("1", "L", "LA", "P", "RGBA", "I;16")]
IMAGES += [
    encoded(PICTURE, "TIFF", compression=method) for method in ("tiff_lzw", "tiff_deflate", "jpeg")
]
IMAGES += [encoded(PICTURE, "GIF", save_all=True, append_images=[PICTURE.rotate(180)])]


@fuzz
@given(st.one_of(damaged(IMAGES), st.binary(max_size=200)))
def test_images(content: bytes) -> None:
    image = answer_or_one_line(lambda: images.decode(content, "fuzz"), "fuzz")
    if image is not None:
        assert image.mode in ("L", "RGB")
        assert PLAIN.pixels(image).shape == (4, 8)


# --- metadata: whatever it is, the pixels stay ----------------------------------------------------

KINDS = [b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"iCCP", b"pHYs", b"gAMA", b"cHRM", b"sBIT", b"acTL"]
SEGMENTS = [0xE1, 0xE2, 0xED, 0xFE]  # of JPEG
ENTRY = st.builds(
    lambda order, *fields: struct.pack(f"{order}HHII", *fields),
    st.sampled_from("<>"),
    st.sampled_from([271, 274, 282, 305, 330, 34665, 34853, 37500, 40965, 65535]),
    st.integers(0, 14),
    st.sampled_from([0, 1, 2, 8, 2**16, 2**32 - 1]),
    st.sampled_from([0, 1, 6, 8, 30, 200, 2**32 - 1]),
)
EXIF = st.builds(
    lambda head, count, entries, tail: b"Exif\0\0" + head + count + b"".join(entries) + tail,
    st.sampled_from([b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08", b"II+\0", b"junk", b""]),
    st.sampled_from([b"\1\0", b"\0\1", b"\2\0", b"\0\3", b"\xff\xff"]),
    st.lists(ENTRY, max_size=4),
    st.binary(max_size=24),
)
PLAIN_PNG, PLAIN_JPEG = encoded(PICTURE), encoded(PICTURE, "JPEG")


def chunk(kind: bytes, body: bytes, good: bool) -> bytes:
    made = png_chunk(kind, body)
    return made if good else made[:-4] + b"junk"


def pixels_of(image: Image.Image) -> np.ndarray:
    """Rows and columns in some order: metadata may turn a picture."""
    values = np.asarray(image).reshape(-1, 3)
    return values[np.lexsort(values.T)]


@fuzz
@given(
    chunks=st.lists(
        st.builds(
            chunk,
            st.sampled_from(KINDS),
            st.one_of(st.binary(max_size=60), EXIF.map(lambda block: block[6:])),
            st.booleans(),
        ),
        max_size=3,
    ),
    segments=st.lists(
        st.tuples(st.sampled_from(SEGMENTS), st.one_of(EXIF, st.binary(max_size=60))), max_size=3
    ),
)
def test_metadata(chunks: list[bytes], segments: list[tuple[int, bytes]]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        content = PLAIN_PNG[:33] + b"".join(chunks) + PLAIN_PNG[33:]
        found = images.decode(content, "fuzz")
        np.testing.assert_array_equal(pixels_of(found), pixels_of(PICTURE))
        size, turned = (f(content, "fuzz") for f in (images.picture_size, images.orientation_of))
        assert (size, turned >= 5) == (found.size[::-1], size == (14, 9))
        packed = [struct.pack(">BBH", 0xFF, kind, len(body) + 2) + body for kind, body in segments]
        content = PLAIN_JPEG[:2] + b"".join(packed) + PLAIN_JPEG[2:]
        plain = images.decode(PLAIN_JPEG, "plain")
        np.testing.assert_array_equal(pixels_of(images.decode(content, "fuzz")), pixels_of(plain))


# --- annotations ----------------------------------------------------------------------------------

LABELS = Image.fromarray(RNG.integers(0, 3, (9, 14), dtype=np.uint8))
ANNOTATIONS = [encoded(LABELS, format) for format in ("PNG", "BMP", "TIFF", "GIF", "PPM", "JPEG")]
ANNOTATIONS += [encoded(LABELS.convert(mode)) for mode in ("1", "P", "RGB", "I;16")]
ANNOTATIONS += [encoded(LABELS, bits=bits) for bits in (1, 2, 4)]


@fuzz
@given(damaged(ANNOTATIONS), st.integers(1, 8))
def test_annotations(place: Path, content: bytes, turned: int) -> None:
    folder = place.with_name("maps")
    folder.mkdir(exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = turned
    pair = segmentation.Pair(folder / "a.png", folder / "b.png")
    pair.image.write_bytes(encoded(PICTURE, exif=exif))
    pair.annotation.write_bytes(content)
    classes = segmentation.Classes((0, 1, 2), ("a", "b", "c"))
    read = answer_or_one_line(lambda: pair.read(classes), str(pair.annotation))
    if read is not None:
        image, labels = read
        assert labels.shape == image.size[::-1]
        assert set(np.unique(labels)) <= {0, 1, 2, 255}


# --- idx ------------------------------------------------------------------------------------------

IDX = [idx_bytes(8, (2, 3), bytes(6)), idx_bytes(13, (2,), bytes(8)), idx_bytes(8, (0,), b"")]


@fuzz
@given(
    content=st.one_of(damaged(IDX), st.binary(max_size=40).map(lambda end: b"\0\0\x08" + end)),
    pack=st.sampled_from([bytes, gzip.compress]),
)
def test_idx(place: Path, content: bytes, pack: Callable[[bytes], bytes]) -> None:
    place.write_bytes(pack(content))
    array = answer_or_one_line(lambda: idx.read(place), str(place))
    if array is not None:
        assert array.nbytes == len(content) - 4 - 4 * content[3]


# --- archives -------------------------------------------------------------------------------------

TREE = {f"train/{name}/1.png": encoded(PICTURE) for name in ("ant", "bee")} | {"notes.txt": b"?"}
ARCHIVES = [tar(TREE), zipped(TREE), tar(TREE, "w:gz"), tar(TREE, "w:bz2"), tar(TREE, "w:xz")]


def load(place: Path, content: bytes) -> None:
    place.write_bytes(content)
    data = answer_or_one_line(lambda: datasets.load(place, "train", PLAIN), str(place))
    if data is not None:
        assert data.images.shape == (len(data.labels), 4, 8)
        assert set(data.labels) <= set(range(len(data.class_names)))


@fuzz
@given(st.one_of(damaged(ARCHIVES), st.binary(max_size=600)))
def test_archives(place: Path, content: bytes) -> None:
    load(place, content)


@fuzz
@given(damaged(ARCHIVES[:1]), st.sampled_from([bytes, gzip.compress, bz2.compress, lzma.compress]))
def test_archives_damaged_before_they_are_packed(place: Path, content: bytes, pack) -> None:
    load(place, pack(content))


@fuzz
@given(
    st.dictionaries(
        st.lists(st.text(max_size=3) | st.sampled_from(["train", "test", "..", "é"]), max_size=4)
        .map("/".join)
        .map(lambda name: f"{name}.png"),
        st.sampled_from([encoded(PICTURE), b"?"]),
        max_size=4,
    ),
    st.sampled_from([tar, zipped]),
)
def test_archives_of_odd_names(place: Path, tree: dict[str, bytes], pack) -> None:
    try:
        content = pack(tree) if tree else tar({})
    except (UnicodeError, ValueError):  # no name of a file
        return
    load(place, content)


# --- class lists ----------------------------------------------------------------------------------

LISTS = [b"1 wall\n2 floor\n", b"Idx\tName\n1\twall\n2\tfloor\n", b'{"1": "wall", "2": "floor"}']
LISTS += [b"\xef\xbb\xbf" + LISTS[0], LISTS[0].replace(b"\n", b"\r\n"), "1 é\n2 天空\n".encode()]


@fuzz
@given(
    content=st.one_of(
        damaged(LISTS),
        st.binary(max_size=60),
        st.text(max_size=60).map(lambda text: text.encode(errors="replace")),
        st.lists(st.tuples(st.integers(0, 300), st.text(max_size=4)), max_size=5).map(
            lambda rows: "".join(f"{i} {name}\n" for i, name in rows).encode(errors="replace")
        ),
    ),
    suffix=st.sampled_from([".txt", ".json"]),
)
def test_class_lists(place: Path, content: bytes, suffix: str) -> None:
    path = place.with_suffix(suffix)
    path.write_bytes(content)
    found = answer_or_one_line(lambda: segmentation.read_classes(path), str(path))
    if found is not None:
        assert len(set(found.names)) == len(found.names) == len(found.indices)
    names = answer_or_one_line(lambda: class_names.read(path), str(path))
    if names is not None:
        folders = list(names)[:2]
        assert len(set(class_names.apply(path, folders))) == len(folders)


@fuzz
@given(st.lists(st.text(max_size=4), max_size=6))
def test_names(names: list[str]) -> None:
    found = class_names.distinct(names, range(len(names)))
    assert len(set(found)) == len(names)
    assert all(made.startswith(name) for made, name in zip(found, names, strict=True))
    for name in names:
        text = shown(name)
        assert shown(text) == text == text.encode().decode()
        assert len(text.splitlines()) <= 1


# --- model files ----------------------------------------------------------------------------------


def model_files() -> list[bytes]:
    """A latent and a packed file, as bytes."""
    kinds = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "write_atomically", lambda path, data: kinds.update({path: data}))
        options = {"class_names": ["ant", "bee", "cow"], "preprocessing": PLAIN.to_json()}
        refimpl.save("latent.safetensors", ANIMALS, ANIMALS_PARAMS, **options)
        files.save_packed("packed.safetensors", ANIMALS, ANIMALS_PARAMS, **options)
    return list(kinds.values())


WEIGHTS = model_files()
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=4,
)


@st.composite
def odd_header(draw: st.DrawFn) -> bytes:
    """A model file with another JSON value somewhere in its header, or in the JSON inside that."""
    content = draw(st.sampled_from(WEIGHTS))
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    metadata = header["__metadata__"]
    for key in ("config", "class_names", "preprocessing"):
        metadata[key] = json.loads(metadata[key])
    for _ in range(draw(st.integers(1, 2))):
        inner: Any = header
        while True:
            key = draw(st.sampled_from(sorted(inner) if isinstance(inner, dict) else [0]))
            if not (isinstance(inner[key], (dict, list)) and inner[key] and draw(st.booleans())):
                break
            inner = inner[key]
        if isinstance(inner, dict) and draw(st.integers(0, 9)) == 0:
            del inner[key]
        else:
            inner[key] = draw(VALUES)
    if isinstance(header.get("__metadata__"), dict):
        for key, value in header["__metadata__"].items():
            as_it_is = isinstance(value, str) and key not in ("config", "class_names")
            header["__metadata__"][key] = value if as_it_is else json.dumps(value)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[end:]


def read(place: Path, content: bytes) -> None:
    place.write_bytes(content)
    file = answer_or_one_line(lambda: files.read_any(place), str(place))
    if isinstance(file, files.ModelFile):
        ask = answer_or_one_line(lambda: refimpl.classifier(place), str(place))
        if ask is not None:
            for prediction in answer_or_one_line(lambda: ask(PICTURE), "") or []:
                assert prediction.label in ask.class_names
                assert 0 < prediction.probability <= 1


@fuzz
@given(st.one_of(damaged(WEIGHTS), st.binary(max_size=100)))
def test_model_files(place: Path, content: bytes) -> None:
    read(place, content)


@fuzz
@given(odd_header())
def test_model_files_with_odd_headers(place: Path, content: bytes) -> None:
    read(place, content)


# --- recipes --------------------------------------------------------------------------------------

FIELDS = st.dictionaries(st.sampled_from(list(recipes.Recipe().to_json())), VALUES, max_size=3)
RECIPES = [json.dumps(recipes.Recipe().to_json()).encode(), b"epochs = 3\nflip = true\n[more]\n"]


@fuzz
@given(
    content=st.one_of(damaged(RECIPES), FIELDS.map(lambda fields: json.dumps(fields).encode())),
    suffix=st.sampled_from([".json", ".toml"]),
)
def test_recipes(place: Path, content: bytes, suffix: str) -> None:
    path = place.with_suffix(suffix)
    path.write_bytes(content)
    recipe = answer_or_one_line(lambda: recipes.read(path), str(path))
    if recipe is not None:
        assert recipe.epochs >= 1


ROW = {"name": "one", "model": "react_micro", "fields": {"depth": 2}, "seeds": [3]}
ABLATION = {"recipe": {"epochs": 2}, "rows": [ROW, ROW | {"name": "two"}], "images": 40}
ABLATIONS = [json.dumps(ABLATION | {"seeds": [0, 1], "baseline": "one"}).encode()]


@st.composite
def odd_json(draw: st.DrawFn, corpus: list[bytes]) -> bytes:
    """One of the corpus with another JSON value somewhere in it, or without a key."""
    content = json.loads(draw(st.sampled_from(corpus)))
    for _ in range(draw(st.integers(1, 2))):
        inner: Any = content
        while inner:
            keys = sorted(inner) if isinstance(inner, dict) else range(len(inner))
            key = draw(st.sampled_from(keys))
            if not isinstance(inner[key], (dict, list)) or draw(st.booleans()):
                break
            inner = inner[key]
        if not inner:
            continue
        if isinstance(inner, dict) and draw(st.integers(0, 4)) == 0:
            del inner[key]
        else:
            inner[key] = draw(VALUES)
    return json.dumps(content).encode()


@fuzz
@given(st.one_of(damaged(ABLATIONS), odd_json(ABLATIONS)))
def test_ablations(place: Path, content: bytes) -> None:
    path = place.with_suffix(".json")
    path.write_bytes(content)
    asked = answer_or_one_line(lambda: ablation.read(path), str(path))
    if asked is not None:
        assert all(run.row.config.num_blocks >= 1 for run in asked.runs())


# --- cards, checkpoints, tables -------------------------------------------------------------------


EVALUATION = Evaluation(7, 0.5, 1.0, {"ant": 0.5}, {"ant": 7}, 100.0)
CARDS = [
    json.dumps({"data": "mnist", "config": {"depth": 2}, "evaluation": evaluation}).encode()
    for evaluation in (None, {"count": 5, "top1": 0.25, "data": "before"})
]


@fuzz
@given(st.one_of(damaged(CARDS), odd_json(CARDS), VALUES.map(lambda v: json.dumps(v).encode())))
def test_cards(place: Path, content: bytes) -> None:
    """The figures are in the card and nothing is lost, or it stays as it was."""
    model = place.with_suffix(".safetensors")
    model.write_bytes(WEIGHTS[0])
    card = cards.path_of(model)
    card.write_bytes(content)
    if answer_or_one_line(lambda: cards.record(model, EVALUATION, "fuzz"), str(card)) is None:
        assert card.read_bytes() == content
        return
    before, after = json.loads(content), json.loads(card.read_bytes())
    assert after.pop("evaluation") == {"data": "fuzz", **dataclasses.asdict(EVALUATION)}
    before.pop("evaluation", None)
    assert json.dumps(after, sort_keys=True) == json.dumps(before, sort_keys=True)


def checkpoint() -> bytes:
    """A checkpoint, as bytes."""
    written = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "write_atomically", lambda path, data: written.append(data))
        state = {"weight": np.arange(6, dtype=np.float32)}
        progress = {"recipe": {}, "history": [{"epoch": 1}]}
        checkpoints.save(Path("x"), checkpoints.Checkpoint(state, state, progress))
    return written[0]


CHECKPOINTS = [checkpoint()]


@fuzz
@given(st.one_of(damaged(CHECKPOINTS), st.binary(max_size=100)))
def test_checkpoints(place: Path, content: bytes) -> None:
    place.write_bytes(content)
    found = answer_or_one_line(lambda: checkpoints.load(place), str(place))
    if found is not None:
        assert isinstance(found.progress["history"], list)


FILLED = {"fields": "{}", "recipe": "{}", "curve": "[0.5]"}
CELLS = [FILLED.get(name, "1") for name in ablation.Result._fields]
TABLES = [f"{','.join(ablation.Result._fields)}\n{','.join(CELLS)}\n".encode()]


@fuzz
@given(st.one_of(damaged(TABLES), st.binary(max_size=100)))
def test_tables(place: Path, content: bytes) -> None:
    place.write_bytes(content)
    answer_or_one_line(lambda: ablation_table.read_results(place), str(place))


# --- checkpoints of others ------------------------------------------------------------------------

_, TENSORS, SAID = timm(dim=4, heads=2, depth=1)
IMPORTED = [safetensors.numpy.save(TENSORS)]
PREPROCESSOR = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": 4, "width": 4},
                "do_center_crop": True, "crop_size": 4}  # fmt: skip
BESIDE = {
    "config.json": [json.dumps({**SAID, **DATA, "id2label": {"0": "a", "1": "b"}}).encode(),
                    json.dumps({"model_args": SAID, "pretrained_cfg": DATA}).encode()],
    "preprocessor_config.json": [json.dumps(PREPROCESSOR).encode()],
    "args.json": [json.dumps(SAID).encode()],
}  # fmt: skip


@st.composite
def odd_tensors(draw: st.DrawFn) -> bytes:
    """The checkpoint with a tensor of another name, shape or type, or without one."""
    arrays = dict(TENSORS)
    for _ in range(draw(st.integers(0, 2))):
        name = draw(st.sampled_from(sorted(arrays)))
        value = arrays.pop(name)
        name = draw(st.sampled_from([name, "", name + "x", "swin." + name, name.replace("0", "9")]))
        change = draw(st.sampled_from([None, "gone", "T", "flat", "empty", "int8", "nan"]))
        if change == "gone":
            continue
        kinds = {"T": value.T.copy(), "flat": value.ravel(), "empty": value[..., :0],
                 "int8": np.zeros(value.shape, np.int8), "nan": value * np.nan}  # fmt: skip
        arrays[name] = np.ascontiguousarray(kinds.get(change, value))
    return safetensors.numpy.save(arrays)


def imported(path: Path) -> None:
    """What is imported can be written, and read again."""
    found = answer_or_one_line(lambda: importing_checkpoint.read(path), str(path.parent))
    if found is not None:
        saved = path.with_name("saved.safetensors")
        refimpl.save(saved, found.model, found.params)
        again = flatten(refimpl.load(saved)[1])
        for name, value in flatten(found.params).items():
            np.testing.assert_array_equal(again[name], value)


@fuzz
@given(
    content=st.one_of(damaged(IMPORTED), odd_tensors()),
    beside=st.fixed_dictionaries({}, optional={
        name: st.one_of(damaged(corpus), odd_json(corpus)) for name, corpus in BESIDE.items()
    }),
)  # fmt: skip
def test_imported(tmp_path_factory, content: bytes, beside: dict[str, bytes]) -> None:
    with tempfile.TemporaryDirectory(dir=tmp_path_factory.getbasetemp()) as folder:
        for name, data in beside.items():
            Path(folder, name).write_bytes(data)
        path = Path(folder, "model.safetensors")
        path.write_bytes(content)
        imported(path)


@functools.cache
def pickles() -> list[bytes]:
    """The checkpoint as PyTorch writes it today and as it once did, bare and wrapped."""
    torch = oracles.require("torch")
    tensors = {name: torch.from_numpy(value.copy()) for name, value in TENSORS.items()}
    written = []
    for what in (tensors, {"model": tensors, "args": SAID, "epoch": 3}):
        for as_zip in (True, False):
            file = io.BytesIO()
            torch.save(what, file, _use_new_zipfile_serialization=as_zip)
            written.append(file.getvalue())
    return written


@fuzz
@given(data=st.data())
def test_imported_pickles(place: Path, data: st.DataObject) -> None:
    content = data.draw(st.one_of(damaged(pickles()), st.binary(max_size=100)))
    path = place.with_suffix(".pth")
    path.write_bytes(content)
    imported(path)


# --- dumps of a port ------------------------------------------------------------------------------

DUMP = {"blocks.0.attn.q.z": np.ones((2, 3)), "taps/7.logits": np.zeros((1, 2), np.float32)}


def dumps() -> dict[str, list[bytes]]:
    plain, packed, single = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.savez(plain, **DUMP)
    np.savez_compressed(packed, **DUMP)
    np.save(single, DUMP["blocks.0.attn.q.z"])
    return {
        ".npz": [plain.getvalue(), packed.getvalue()],
        ".safetensors": [safetensors.numpy.save(DUMP)],
        ".npy": [single.getvalue()],
    }


DUMPS = dumps()


@fuzz
@given(st.sampled_from(sorted(DUMPS)).flatmap(
    lambda suffix: st.tuples(st.just(suffix), damaged(DUMPS[suffix]))
))  # fmt: skip
def test_candidates(place: Path, dump: tuple[str, bytes]) -> None:
    suffix, content = dump
    path = place.with_name(f"dump{suffix}")
    if suffix == ".npy":  # which only a folder holds
        folder = place.with_name("dump")
        folder.mkdir(exist_ok=True)
        (folder / "logits.npy").write_bytes(content)
        path = folder
    else:
        path.write_bytes(content)
    found = answer_or_one_line(lambda: candidate.read(path), str(path))
    for name in found or ():
        array = answer_or_one_line(lambda name=name: found[name], str(path))
        assert array is None or array.dtype.kind in "biuf"


NAMES = [json.dumps({"a": "logits", "b/c": "blocks.0.attn.q.z"}).encode()]


@fuzz
@given(st.one_of(damaged(NAMES), odd_json(NAMES), VALUES.map(lambda v: json.dumps(v).encode())))
def test_names_of_taps(place: Path, content: bytes) -> None:
    place.write_bytes(content)
    found = answer_or_one_line(lambda: candidate.read_names(place), str(place))
    assert found is None or all(isinstance(name, str) for pair in found.items() for name in pair)


def test_the_corpus_is_sound(place: Path) -> None:
    """Damage to what was broken before would prove nothing."""
    for content in IMAGES:
        assert images.decode(content, "sound").size == (14, 9)
    for content in ARCHIVES:
        place.write_bytes(content)
        assert len(datasets.load(place, "train", PLAIN).images) == 2
    for content in IDX:
        place.write_bytes(content)
        idx.read(place)
    for content in WEIGHTS:
        place.write_bytes(content)
        files.read_any(place)
    for content in ABLATIONS:
        path = place.with_suffix(".json")
        path.write_bytes(content)
        assert len(ablation.read(path).runs()) == 3 - 1
    for content in CHECKPOINTS:
        place.write_bytes(content)
        checkpoints.load(place)
    path, said = place.with_suffix(".safetensors"), place.with_suffix(".json")
    said.write_bytes(json.dumps(SAID).encode())
    for content in IMPORTED:
        path.write_bytes(content)
        assert importing_checkpoint.read(path, size=(4, 4), config=said).family
    for suffix, corpus in DUMPS.items():
        for content in corpus if suffix != ".npy" else ():
            dump = place.with_suffix(suffix)
            dump.write_bytes(content)
            assert set(candidate.read(dump)) == {"blocks.0.attn.q.z", "logits"}
    for content in TABLES:
        place.write_bytes(content)
        assert len(ablation_table.read_results(place)) == 1
    buffer = io.BytesIO(IMAGES[0])
    assert Image.open(buffer).format == "PNG"
