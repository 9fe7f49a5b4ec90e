"""The file of a model [SPEC 7]: what is written comes back, and what is not right is refused.

Bad files are put together byte by byte: eight bytes with the length of the header, the header as
JSON, the numbers. So neither `refimpl.save` nor the safetensors library has a hand in them.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import refimpl
from refimpl.conventions import ModelFileError, RefimplError, ShapeError
from refimpl.models import files

MODEL = refimpl.create_model("didb_micro", image_size=(8, 12), dim=6, depth=1, num_classes=3)
PARAMS = MODEL.init(np.random.default_rng(30))
METADATA = {
    "format": "refimpl",
    "format_version": "1",
    "kind": "latent",
    "config": json.dumps(MODEL.config.to_json()),
    "class_names": json.dumps(["one", "two", "three"]),
    "preprocessing": "null",
}
TYPES = {"float32": "F32", "float64": "F64", "float16": "F16", "int32": "I32"}


def raw(arrays: dict[str, np.ndarray], metadata: dict | None = METADATA) -> bytes:
    """A safetensors file, byte by byte."""
    header: dict = {} if metadata is None else {"__metadata__": metadata}
    body = b""
    for name, array in arrays.items():
        end = len(body) + array.nbytes
        header[name] = {
            "dtype": TYPES[array.dtype.name],
            "shape": array.shape,
            "data_offsets": [len(body), end],
        }
        body += array.tobytes()
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def changed(**arrays: np.ndarray | None) -> bytes:
    """The good file with other arrays in some places (dots written as two underscores)."""
    flat = refimpl.flatten(PARAMS)
    for name, array in arrays.items():
        path = name.replace("__", ".")
        flat = {k: v for k, v in flat.items() if k != path}
        if array is not None:
            flat[path] = array
    return raw(flat)


def described(**metadata: str | None) -> bytes:
    """The good file with other metadata."""
    merged = METADATA | metadata
    return raw(refimpl.flatten(PARAMS), {k: v for k, v in merged.items() if v is not None})


def config(**fields) -> str:
    return json.dumps(MODEL.config.to_json() | fields)


def assert_same(params, expected) -> None:
    params, expected = refimpl.flatten(params), refimpl.flatten(expected)
    assert list(params) == list(expected)
    for name, array in params.items():
        assert array.dtype == expected[name].dtype, name
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


# --- what is written comes back -------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_round_trip(tmp_path: Path, dtype) -> None:
    path = tmp_path / "model.safetensors"
    params = MODEL.init(np.random.default_rng(31), dtype)
    preprocessing = {"size": [8, 12], "mode": "grey", "mean": [0.1], "std": [0.25]}
    names = ["Hase", "Igel", "Zebra, groß"]
    refimpl.save(path, MODEL, params, class_names=names, preprocessing=preprocessing)
    file = files.read(path)
    assert file.path == path
    assert file.model.config == MODEL.config
    assert file.class_names == names
    assert file.preprocessing == preprocessing
    assert_same(file.params, params)
    model, loaded = refimpl.load(str(path))
    assert model.config == MODEL.config
    assert_same(loaded, params)


def test_a_file_without_names_and_preprocessing(tmp_path: Path) -> None:
    path = tmp_path / "bare.safetensors"
    refimpl.save(path, MODEL, PARAMS)
    file = files.read(path)
    assert (file.class_names, file.preprocessing) == (None, None)
    assert [p.name for p in tmp_path.iterdir()] == ["bare.safetensors"]  # no card unless given


def test_arrays_in_any_memory_layout(tmp_path: Path) -> None:
    """Some versions of safetensors write an array's memory as it lies, whatever its strides."""

    def every_other(array: np.ndarray) -> np.ndarray:
        wide = np.zeros((*array.shape, 2), array.dtype)
        wide[..., 0] = array
        return wide[..., 0]

    def backwards(array: np.ndarray) -> np.ndarray:
        return array[::-1].copy()[::-1] if array.ndim else array

    def columns_first(array: np.ndarray) -> np.ndarray:
        return np.array(array, order="F")

    flat = refimpl.flatten(PARAMS)
    layouts = [every_other, backwards, columns_first]
    for number, layout in enumerate(layouts):
        path = tmp_path / f"{number}.safetensors"
        arranged = {name: layout(array) for name, array in flat.items()}
        assert not all(array.flags.c_contiguous for array in arranged.values())
        refimpl.save(path, MODEL, refimpl.unflatten(arranged))
        assert_same(refimpl.load(path)[1], PARAMS)


def test_the_file_is_plain_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    refimpl.save(path, MODEL, PARAMS, class_names=["a", "b", "c"])
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    metadata = header.pop("__metadata__")
    assert (metadata["format"], metadata["format_version"]) == ("refimpl", "1")
    assert metadata["kind"] == "latent"
    assert json.loads(metadata["config"])["image_size"] == [8, 12]
    assert json.loads(metadata["class_names"]) == ["a", "b", "c"]
    flat = refimpl.flatten(PARAMS)
    assert set(header) == set(flat)
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        values = np.frombuffer(content[8 + length + begin : 8 + length + end], "<f4")
        np.testing.assert_array_equal(values.reshape(entry["shape"]), flat[name])


def test_a_file_written_by_hand_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(changed())
    file = files.read(path)
    assert file.class_names == ["one", "two", "three"]
    assert_same(file.params, PARAMS)


def test_the_card_repeats_what_the_file_says(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    card = {"recipe": {"epochs": 3}, "figures": {"accuracy": 0.5}}
    refimpl.save(path, MODEL, PARAMS, class_names=["a", "b", "ö"], card=card)
    written = json.loads((tmp_path / "model.json").read_text(encoding="utf-8"))
    assert written["recipe"] == {"epochs": 3}
    assert written["figures"] == {"accuracy": 0.5}
    assert written["config"] == MODEL.config.to_json()
    assert written["class_names"] == ["a", "b", "ö"]
    assert written["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_shipped_models_are_found_by_name() -> None:
    for name in files.shipped():
        file = files.read(name)
        assert file.path.name == f"{name}.safetensors"
        card = json.loads(file.path.with_suffix(".json").read_text(encoding="utf-8"))
        assert card["sha256"] == hashlib.sha256(file.path.read_bytes()).hexdigest()
        assert card["config"] == file.model.config.to_json()


# --- what is not right is refused -----------------------------------------------------------------

GOOD = changed()
NAN = np.array([0, 0, np.nan, 0, 0, 0], np.float32)
BAD = {
    "empty": (b"", "safetensors"),
    "text": (b"these are no weights", "safetensors"),
    "pickle": (pickle.dumps({"weights": [1.0]}), "safetensors"),
    "seven bytes": (GOOD[:7], "safetensors"),
    "cut in the header": (GOOD[:200], "safetensors"),
    "cut in the numbers": (GOOD[:-100], "safetensors"),
    "bytes too many": (GOOD + bytes(8), "safetensors"),
    "absurd header length": (struct.pack("<Q", 2**60) + GOOD[8:], "safetensors"),
    "header length beyond the file": (struct.pack("<Q", len(GOOD)) + GOOD[8:], "safetensors"),
    "header is no JSON": (struct.pack("<Q", 4) + b"{{{{" + GOOD[8:], "safetensors"),
    "nothing in it": (raw({}), "missing"),
    "no metadata": (raw(refimpl.flatten(PARAMS), None), "no refimpl metadata"),
    "format": (described(format="pt"), "no refimpl metadata"),
    "format version": (described(format_version="99"), "format_version '99'; expected '1'"),
    "packed": (described(kind="packed"), "kind 'packed'"),
    "no config": (described(config=None), "'config' is missing"),
    "config is no JSON": (described(config="{"), "'config' is missing or no JSON"),
    "config is a list": (described(config="[1]"), "config"),
    "config of two blocks": (described(config=config(depth=2)), "blocks.1.norm1.weight: missing"),
    "config of more classes": (described(config=config(num_classes=4)), "head."),
    "config of another family": (described(config=config(similarity="plain")), "attn.q"),
    "config with an odd field": (described(config=config(colour="red")), "'colour'"),
    "config that contradicts itself": (described(config=config(heads=4)), "heads"),
    "patch does not divide": (described(config=config(image_size=[9, 12])), "patch_size"),
    "no class names": (described(class_names=None), "'class_names' is missing"),
    "too few class names": (described(class_names='["a", "b"]'), "2 class names; expected 3"),
    "class names a number": (described(class_names="3"), "class"),
    "class names of numbers": (described(class_names="[1, 2, 3]"), "class"),
    "class names in one string": (described(class_names='"abc"'), "class"),
    "preprocessing is no JSON": (described(preprocessing="?"), "'preprocessing' is missing or no"),
    "missing name": (changed(pos_embed=None), "pos_embed: missing; expected shape (1, 7, 6)"),
    "unknown name": (changed(extra__weight=np.ones(3, np.float32)), "extra.weight: unknown"),
    "shape": (changed(norm__bias=np.zeros(7, np.float32)), "norm.bias: shape (7,); expected (6,)"),
    "transposed": (changed(head__weight=np.zeros((6, 3), np.float32)), "head.weight: shape (6, 3)"),
    "NaN": (changed(norm__bias=NAN), "norm.bias: holds NaN"),
    "infinity": (changed(norm__bias=np.full(6, -np.inf, np.float32)), "norm.bias: holds NaN"),
    "integers": (changed(norm__bias=np.zeros(6, np.int32)), "norm.bias: int32; expected float32"),
    "half precision": (changed(norm__bias=np.zeros(6, np.float16)), "norm.bias: float16"),
    "mixed precision": (changed(norm__bias=np.zeros(6, np.float64)), "norm.bias: float64"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files(tmp_path: Path, case: str) -> None:
    content, message = BAD[case]
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    refused(path, message, str(path))


@pytest.mark.parametrize("case", ["missing", "folder", "unknown name", "architecture"])
def test_nothing_to_read(tmp_path: Path, case: str) -> None:
    names = {
        "missing": (tmp_path / "none.safetensors", "no such file"),
        "folder": (tmp_path, "no such file"),
        "unknown name": ("didb_gigantic", "no such file or model"),
        "architecture": ("didb_micro", "untrained"),
    }
    name, message = names[case]
    refused(name, message, str(name))


def refused(path: str | Path, message: str, name: str) -> None:
    with pytest.raises(ModelFileError) as caught:
        files.read(path)
    text = str(caught.value)
    assert message in text
    assert name in text
    assert "\n" not in text


@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), max_size=4))
def test_damaged_files_raise_only_model_file_error(tmp_path_factory, damages) -> None:
    content = bytearray(GOOD)
    for place, value in damages:
        content[place % 2500] = value  # the header, where damage can be seen
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    path.write_bytes(content)
    try:
        files.read(path)
    except ModelFileError as error:
        assert "\n" not in str(error)


# --- what cannot be written -----------------------------------------------------------------------


def test_parameters_of_another_model_are_not_written(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"as it was")
    with pytest.raises(ShapeError, match="head.weight"):
        refimpl.save(path, MODEL.replace(num_classes=4), PARAMS)
    assert path.read_bytes() == b"as it was"
    assert len(list(tmp_path.iterdir())) == 1


def test_unwritable_places(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="'.npz'; expected '.safetensors'"):
        refimpl.save(tmp_path / "model.npz", MODEL, PARAMS)
    with pytest.raises((OSError, RefimplError), match="none"):
        refimpl.save(tmp_path / "none" / "model.safetensors", MODEL, PARAMS)
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises((OSError, RefimplError), match="folder"):
        refimpl.save(tmp_path / "folder.safetensors", MODEL, PARAMS)
    assert [p.name for p in tmp_path.iterdir()] == ["folder.safetensors"]
