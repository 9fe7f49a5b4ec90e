"""The file of a model [SPEC 7]: what is written comes back, and nothing is half written.

Bad files are in `test_bad_input` and `test_fuzz`. Files are put together byte by byte here: eight
bytes with the length of the header, the header as JSON, the numbers. So neither `refimpl.save` nor
the safetensors library has a hand in them.
"""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

import numpy as np
import pytest

import refimpl
from refimpl.conventions import ModelFileError, RefimplError, ShapeError
from refimpl.data.preprocessing import Preprocessing
from refimpl.models import Config, files

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
    assert file.model.class_names == tuple(names)
    assert file.model.preprocessing == Preprocessing.from_json(preprocessing)
    assert_same(file.params, params)
    model, loaded = refimpl.load(str(path))
    assert model.config == MODEL.config
    assert_same(loaded, params)


def test_a_file_without_names_and_preprocessing(tmp_path: Path) -> None:
    path = tmp_path / "bare.safetensors"
    refimpl.save(path, MODEL, PARAMS)
    file = files.read(path)
    assert (file.model.class_names, file.model.preprocessing) == (None, None)
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
    assert file.model.class_names == ("one", "two", "three")
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
        assert Config.from_json(card["config"]) == file.model.config


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
