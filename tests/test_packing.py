"""Packed parameters and their file [SPEC 1, 7]: bits, scales, layout, and what is refused.

Bad files are put together byte by byte, with the help of `test_files`.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import refimpl
from refimpl import ops
from refimpl.conventions import (
    ConfigError,
    DtypeError,
    ModelFileError,
    NonFiniteError,
    ShapeError,
)
from refimpl.data.preprocessing import Preprocessing
from refimpl.models import files, packing
from refimpl.models import params as parameters
from tests import networks, strategies

DIDB = networks.small(**networks.DIDB)
FIRST = "blocks.0.attn.q_low"


def network(config=DIDB, dtype=np.float32) -> networks.Network:
    return networks.make(config, seed=40, dtype=dtype)


def unpacked(arrays: dict[str, np.ndarray], name: str, inputs: int) -> np.ndarray:
    """The signs of a packed matrix, bit by bit as [SPEC 1] says it, (O, I) of +-1."""
    rows = [int.from_bytes(row.tobytes(), "little") for row in arrays[name]]
    return np.array([[1 if row >> i & 1 else -1 for i in range(inputs)] for row in rows])


def assert_same(arrays: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert list(arrays) == list(expected)
    for name, array in arrays.items():
        assert array.dtype == expected[name].dtype, name
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


# --- bits and scales ------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 7, 8, 9, 63, 64, 65, 127, 128, 192])
def test_a_row_of_bits_is_a_number_with_bit_i_worth_2_to_the_i(length):
    bit = np.random.default_rng(length).random((2, 3, length)) < 0.5
    rows = packing.pack_rows(bit)
    assert rows.dtype == np.uint8
    assert rows.shape == (2, 3, 8 * math.ceil(length / 64))
    for index in np.ndindex(2, 3):
        number = sum(1 << i for i in range(length) if bit[index][i])
        assert int.from_bytes(rows[index].tobytes(), "little") == number


def test_bits_and_scales_by_hand():
    """The mean of a row is taken off before the sign, a tie is +1, the scale is the mean of |W|."""
    params = networks.with_values(network().params, {"attn.q_low.weight": 0.0})
    weight = refimpl.flatten(params)[f"{FIRST}.weight"]
    weight[0] = [5, 1, 1, 1, 1, 1, 1, 1, 1, 7]  # mean 2
    weight[1] = [3, 2, 1, 2, 2, 2, 2, 2, 2, 2]  # mean 2
    arrays = packing.pack(DIDB, params)
    assert arrays[f"{FIRST}.bits"][:3].tolist() == [
        [0b1, 0b10, 0, 0, 0, 0, 0, 0],
        [0b11111011, 0b11, 0, 0, 0, 0, 0, 0],
        [0b11111111, 0b11, 0, 0, 0, 0, 0, 0],
    ]
    assert arrays[f"{FIRST}.scale"].tolist() == [2, 2, 0, 0, 0, 0, 0, 0, 0, 0]


@given(networks.configs(binarize="full"), strategies.seeds(), strategies.floats())
def test_bits_and_scales_are_those_of_the_weight_binarizer(config, seed, dtype):
    made = networks.make(config, seed, dtype)
    arrays, flat = packing.pack(config, made.params), refimpl.flatten(made.params)
    binary = packing.binary_matrices(config)
    assert bool(binary) == (config.block == "binary")
    for path in binary:
        name = path.removesuffix("weight")
        _, signs, scale = ops.weight_binarizer.binarize(flat[path])
        np.testing.assert_array_equal(unpacked(arrays, f"{name}bits", signs.shape[1]), signs)
        np.testing.assert_array_equal(arrays[f"{name}scale"], scale.astype(np.float32))
    others = {path: value.astype(np.float32) for path, value in flat.items() if path not in binary}
    assert_same({k: v for k, v in arrays.items() if not k.endswith((".bits", ".scale"))}, others)
    assert {name: array.shape for name, array in arrays.items()} == packing.shapes(config)
    assert list(arrays) == list(packing.shapes(config))


@pytest.mark.parametrize(
    "fields", [{"block": "real"}, {"binarize": "activations"}, {"binarize": "none"}]
)
def test_real_matrices_stay_floats(fields):
    made = network(networks.small(**fields))
    arrays = packing.pack(made.model.config, made.params)
    assert_same(arrays, refimpl.flatten(made.params))


def test_the_binary_matrices_are_those_of_the_projections():
    expected = [f"attn.{t}" for t in ("q_low", "k_low", "q_high", "k_high", "v", "proj")]
    expected += ["mlp.up", "mlp.down"]
    assert packing.binary_matrices(DIDB) == {
        f"blocks.{i}.{name}.weight" for i in range(2) for name in expected
    }


# --- a network computes the same with them --------------------------------------------------------


def binary_linear_of_parts(x, weight, *, binarize, ste):
    """The projection's product when `weight` is W_b: its signs and scale can be read off."""
    signs, scale = np.where(weight >= 0, x.dtype.type(1), x.dtype.type(-1)), np.abs(weight[:, 0])
    return (ops.sign.forward(x)[0] @ signs.T) * scale, None


def rebuilt(config, arrays: dict[str, np.ndarray]) -> dict:
    """Parameters from packed arrays alone, with W_b = scale * sign for each binary matrix."""
    flat, binary = {}, packing.binary_matrices(config)
    for path, shape in parameters.shapes(config).items():
        if path in binary:
            name = path.removesuffix("weight")
            signs = unpacked(arrays, f"{name}bits", shape[1])
            flat[path] = arrays[f"{name}scale"][:, None] * signs.astype(np.float32)
        else:
            flat[path] = arrays[path]
    return refimpl.unflatten(flat)


@pytest.mark.parametrize("family", ["didb", "react", "deit"])
def test_logits_from_packed_arrays_are_the_same_to_the_bit(family):
    fields = {"didb": networks.DIDB, "react": {}, "deit": {"block": "real"}}[family]
    made = network(networks.small(**fields))
    backend = SimpleNamespace(**{name: getattr(ops, name) for name in ops.__all__})
    backend.binary_linear = SimpleNamespace(forward=binary_linear_of_parts)
    params = rebuilt(made.model.config, packing.pack(made.model.config, made.params))
    logits = made.model.predict(params, made.images, backend=backend)
    np.testing.assert_array_equal(logits, made.model.predict(made.params, made.images))


# --- float types ----------------------------------------------------------------------------------


def test_half_precision_rounds_each_float_and_no_bit():
    made = network()
    full, half = (packing.pack(DIDB, made.params, floats) for floats in ("float32", "float16"))
    expected = {k: v if k.endswith(".bits") else v.astype(np.float16) for k, v in full.items()}
    assert_same(half, expected)


@pytest.mark.parametrize(
    ("value", "floats", "message"),
    [
        (7e4, "float16", "norm.bias: a value is beyond float16; expected at most 65504"),
        (-1e39, "float32", "norm.bias: a value is beyond float32; expected at most 3.40282e+38"),
        (np.nan, "float32", "norm.bias[0] is nan; expected a finite number"),
        (np.inf, "float16", "norm.bias[0] is inf; expected a finite number"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(value, floats, message):
    flat = refimpl.flatten(network(dtype=np.float64).params)
    flat["norm.bias"] = np.full(10, value)
    with pytest.raises(NonFiniteError) as caught:
        packing.pack(DIDB, refimpl.unflatten(flat), floats)
    assert message in str(caught.value)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("signs", ["one", "mixed"])
def test_weights_whose_sums_no_float_holds_are_refused_by_name(signs):
    flat = refimpl.flatten(network().params)
    path = sorted(packing.binary_matrices(DIDB))[-1]
    shape = flat[path].shape
    drawn = np.random.default_rng(3).choice([-3e38, 3e38], shape)
    flat[path] = np.full(shape, 3e38, np.float32) if signs == "one" else drawn.astype(np.float32)
    with pytest.raises(NonFiniteError, match=rf"^{path}: .*expected a finite number"):
        packing.pack(DIDB, refimpl.unflatten(flat))


def test_other_bad_input():
    made = network()
    with pytest.raises(ConfigError, match="floats is 'float64'; expected one of 'float32', 'flo"):
        packing.pack(DIDB, made.params, "float64")
    with pytest.raises(ShapeError, match="attn.q.move: missing"):
        packing.pack(networks.small(), made.params)
    with pytest.raises(DtypeError, match="norm.bias"):
        flat = {**refimpl.flatten(made.params), "norm.bias": np.zeros(10)}
        packing.pack(DIDB, refimpl.unflatten(flat))


# --- the file -------------------------------------------------------------------------------------

METADATA = {
    "format": "refimpl",
    "format_version": "1",
    "kind": "packed",
    "config": json.dumps(DIDB.to_json()),
    "class_names": json.dumps(["a", "b", "c", "ö"]),
    "preprocessing": "null",
}
TYPES = {"float16": "F16", "float32": "F32", "float64": "F64", "int8": "I8", "uint8": "U8"}
ARRAYS = packing.pack(DIDB, network().params)
STORED = packing.join(ARRAYS)


def raw(stored: dict[str, np.ndarray] = STORED, **metadata: str) -> bytes:
    """A safetensors file, byte by byte."""
    header: dict = {"__metadata__": METADATA | metadata}
    body = b""
    for name, array in stored.items():
        offsets = [len(body), len(body) + array.nbytes]
        dtype = TYPES[array.dtype.name]
        header[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": offsets}
        body += array.tobytes()
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def config(**fields) -> str:
    return json.dumps(DIDB.to_json() | fields)


def with_value(name: str, value: float, place: int = -1) -> dict[str, np.ndarray]:
    """The good file's arrays with one entry of one packed array changed."""
    arrays = {key: array.copy() for key, array in ARRAYS.items()}
    arrays[name].flat[place] = value
    return packing.join(arrays)


@pytest.mark.parametrize("floats", packing.FLOATS)
@pytest.mark.parametrize("name", ["didb", "deit"])
def test_round_trip(tmp_path: Path, name: str, floats: str):
    made = network(DIDB if name == "didb" else networks.small(block="real"))
    path, names = tmp_path / "packed.safetensors", ["a", "b", "c", "ö"]
    config = made.model.config
    preprocessing = Preprocessing.plain(config.image_size, config.channels).to_json()
    files.save_packed(
        path, made.model, made.params, floats=floats, class_names=names, preprocessing=preprocessing
    )
    file = files.read_packed(path)
    assert_same(file.arrays, packing.pack(made.model.config, made.params, floats))
    assert (file.path, file.model, file.model.class_names) == (path, made.model, tuple(names))
    assert file.model.preprocessing == Preprocessing.from_json(preprocessing)
    assert [p.name for p in tmp_path.iterdir()] == ["packed.safetensors"]


def test_the_file_is_two_flat_arrays_in_the_order_of_the_names(tmp_path: Path):
    path = tmp_path / "packed.safetensors"
    files.save_packed(path, network().model, network().params)
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, body = json.loads(content[8 : 8 + length]), content[8 + length :]
    assert header.pop("__metadata__")["kind"] == "packed"
    assert {name: entry["dtype"] for name, entry in header.items()} == {
        "bits": "U8",
        "floats": "F32",
    }
    for name, kind in (("bits", "u1"), ("floats", "<f4")):
        begin, end = header[name]["data_offsets"]
        values = np.frombuffer(body[begin:end], kind)
        for key, array in ARRAYS.items():
            if key.endswith(".bits") == (name == "bits"):
                np.testing.assert_array_equal(values[: array.size], array.ravel(), err_msg=key)
                values = values[array.size :]
        assert values.size == 0


def test_the_order_of_the_floats_by_hand():
    """The list of SPEC 7, in a block without and with every option."""
    names = [n.removeprefix("blocks.1.") for n in packing.shapes(DIDB) if "blocks.1." in n]
    rprelu = ["shift_in", "slope", "shift_out", "token_shift_in", "token_shift_out"]

    def unit(name: str) -> list[str]:
        leaves = ["move", "bits", "scale", "norm.weight", "norm.bias"]
        return [f"{name}.{leaf}" for leaf in leaves] + [f"{name}.rprelu.{leaf}" for leaf in rprelu]

    t = ["q_low", "k_low", "q_high", "k_high", "v"]
    assert names == [
        *["norm1.weight", "norm1.bias"],
        *[leaf for name in t for leaf in unit(f"attn.{name}")],
        *[f"attn.{name}_move" for name in t],
        *["attn.alpha", "attn.band_weight", "attn.shortcut", "attn.neighbour"],
        *["attn.norm.weight", "attn.norm.bias", *(f"attn.rprelu.{leaf}" for leaf in rprelu)],
        *unit("attn.proj"),
        *["norm2.weight", "norm2.bias"],
        *unit("mlp.up"),
        *unit("mlp.down"),
    ]
    scaled = list(packing.shapes(DIDB.replace(layer_scale=True)))
    assert scaled.index("blocks.0.scale1.alpha") == scaled.index("blocks.0.norm2.weight") - 2
    assert scaled.index("blocks.0.scale2.alpha") == scaled.index("blocks.1.norm1.weight") - 2


def test_a_file_written_by_hand_is_read(tmp_path: Path):
    path = tmp_path / "packed.safetensors"
    path.write_bytes(raw())
    assert_same(files.read_packed(path).arrays, ARRAYS)


def test_the_same_content_gives_the_same_bytes(tmp_path: Path):
    contents = set()
    for i in range(8):
        path = tmp_path / f"{i}.safetensors"
        files.save_packed(path, network().model, network().params)
        contents.add(path.read_bytes())
    assert len(contents) == 1


def test_the_card_repeats_what_the_file_says(tmp_path: Path):
    path = tmp_path / "packed.safetensors"
    files.save_packed(path, network().model, network().params, card={"figures": {"top1": 0.5}})
    card = json.loads((tmp_path / "packed.json").read_text(encoding="utf-8"))
    assert card["figures"] == {"top1": 0.5}
    assert card["config"] == DIDB.to_json()
    assert card["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


# --- what is not right is refused -----------------------------------------------------------------

FLOAT_COUNT, BIT_COUNT = STORED["floats"].size, STORED["bits"].size
BAD = {
    "a latent file": (
        raw(refimpl.flatten(network().params), kind="latent"),
        "kind 'latent' (parameters, to train on); expected 'packed'",
    ),
    "an unknown kind": (raw(kind="zipped"), "kind 'zipped'; expected 'packed'"),
    "format version": (raw(format_version="2"), "format_version '2'; expected '1'"),
    "cut": (raw()[:-5], "not a readable safetensors file"),
    "config is no JSON": (raw(config="{"), "'config' is missing or no JSON"),
    "an odd field": (raw(config=config(colour=1)), "unknown field 'colour'"),
    "another config": (
        raw(config=config(num_classes=5), class_names="null"),
        f"floats: shape ({FLOAT_COUNT},); expected ({FLOAT_COUNT + 11},)",
    ),
    "deeper": (raw(config=config(depth=3)), f"bits: shape ({BIT_COUNT},); expected (2400,)"),
    "absurdly deep": (raw(config=config(depth=10**15)), "expected at most 1,000 blocks"),
    "another stage": (raw(config=config(binarize="none")), f"bits: shape ({BIT_COUNT},); expec"),
    "class names": (raw(class_names='["a"]'), "1 class names; expected 4"),
    "preprocessing": (raw(preprocessing="?"), "'preprocessing' is missing or no JSON"),
    "no bits": (raw({"floats": STORED["floats"]}), "bits: missing; expected shape (1600,)"),
    "no floats": (raw({"bits": STORED["bits"]}), "floats: missing; expected shape"),
    "one array more": (raw({**STORED, "more": STORED["bits"]}), "more: unknown array; expected"),
    "signed bits": (
        raw({**STORED, "bits": STORED["bits"].view(np.int8)}),
        "bits: int8; expected uint8",
    ),
    "double precision": (
        raw({**STORED, "floats": STORED["floats"].astype(np.float64)}),
        "floats: float64; expected float32 or float16",
    ),
    "rows": (
        raw({**STORED, "bits": STORED["bits"].reshape(200, 8)}),
        "bits: shape (200, 8); expected (1600,)",
    ),
    "padding": (
        raw(with_value("blocks.1.mlp.up.bits", 128)),
        "blocks.1.mlp.up.bits: a padding bit is 1; expected 0 from bit 10 on",
    ),
    "padding in the byte of the last bit": (
        raw(with_value("blocks.0.attn.v.bits", 0b100, place=-7)),
        "blocks.0.attn.v.bits: a padding bit is 1; expected 0 from bit 10 on",
    ),
    "NaN": (
        raw(with_value("blocks.0.attn.k_high.scale", np.nan)),
        "blocks.0.attn.k_high.scale: holds NaN or infinity; expected finite numbers",
    ),
    "infinity": (raw(with_value("blocks.1.attn.alpha", np.inf)), "blocks.1.attn.alpha: holds NaN"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files(tmp_path: Path, case: str):
    content, message = BAD[case]
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    refused(files.read_packed, path, message)


@pytest.mark.parametrize("reader", [files.read, files.load])
def test_a_packed_file_has_nothing_to_train_on(tmp_path: Path, reader):
    path = tmp_path / "packed.safetensors"
    path.write_bytes(raw())
    message = "kind 'packed' (bits for the engine, no latent weights); expected 'latent'"
    refused(reader, path, message)


def test_either_kind_can_be_asked_for(tmp_path: Path):
    made, path = network(), tmp_path / "model.safetensors"
    files.save_packed(path, made.model, made.params)
    assert isinstance(files.read_any(path), files.PackedFile)
    files.save(path, made.model, made.params)
    assert isinstance(files.read_any(path), files.ModelFile)
    path.write_bytes(raw(kind="zipped"))
    refused(files.read_any, path, "kind 'zipped'; expected 'latent' or 'packed'")


def refused(reader, path: Path, message: str) -> None:
    with pytest.raises(ModelFileError) as caught:
        reader(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert message in text
    assert "\n" not in text


GOOD = raw()


@given(st.lists(st.tuples(st.integers(0, 1500), st.integers(0, 255)), max_size=4))
def test_damaged_files_raise_only_model_file_error(tmp_path_factory, damages):
    content = bytearray(GOOD)
    for place, value in damages:
        content[place] = value
    path = tmp_path_factory.getbasetemp() / "damaged_packed.safetensors"
    path.write_bytes(content)
    try:
        files.read_packed(path)
    except ModelFileError as error:
        assert "\n" not in str(error)


def test_what_cannot_be_written_leaves_the_old_file(tmp_path: Path):
    made, path = network(), tmp_path / "packed.safetensors"
    path.write_bytes(b"as it was")
    with pytest.raises(ShapeError, match="head.weight"):
        files.save_packed(path, made.model.replace(num_classes=5), made.params)
    with pytest.raises(NonFiniteError, match="norm.bias"):
        huge = networks.with_values(made.params, {"norm.bias": 1e6})
        files.save_packed(path, made.model, huge, floats="float16")
    with pytest.raises(ModelFileError, match="'.bin'; expected '.safetensors'"):
        files.save_packed(tmp_path / "packed.bin", made.model, made.params)
    assert path.read_bytes() == b"as it was"
    assert len(list(tmp_path.iterdir())) == 1
