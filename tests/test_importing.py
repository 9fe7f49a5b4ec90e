"""Checkpoints of others [SPEC 6.8]: logits and gradients of their own code, and what is refused.

Oracles: `transformers`, where it is installed; a folder of BinaryViT's own numbers in
tests/checkpoints; all families where REFIMPL_CHECKPOINTS names a folder of such folders.
"""

from __future__ import annotations

import json
import os
import pickle
import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import refimpl
from refimpl.conventions import RefimplError
from refimpl.data import bundled
from refimpl.importing import checkpoint
from refimpl.importing.families import family_of
from refimpl.models import flatten, unflatten
from tests import networks, oracles, strategies
from tests.checkpoint_files import DATA, FOLDERS, HERE, timm, write
from tests.command_line import assert_one_line, run

IMAGES = ("--mean", "0.5", "0.5", "0.5", "--std", "0.2", "0.3", "0.4", "--crop", "0.9",
          "--resample", "bicubic")  # fmt: skip
LOGITS, GRADIENTS = 1e-9, 1e-8


def as_float64(params):
    return unflatten({path: value.astype(np.float64) for path, value in flatten(params).items()})


def assert_gradients(model, params, images, dlogits, theirs) -> None:
    """Every gradient of theirs by our names, relative to its largest entry."""
    _, cache = model.forward(params, images)
    ours = flatten(model.backward(dlogits, cache)[1])
    expected = checkpoint.translate(family_of(list(theirs)), model.config, theirs)
    frozen = {path for path in ours if path.rpartition(".")[2].startswith("running_")}
    assert set(expected) == set(ours) - frozen
    assert sum(v.size for v in expected.values()) == sum(v.size for v in theirs.values())
    largest = max(np.abs(value).max() for value in expected.values())
    for path, value in expected.items():
        scale = max(np.abs(value).max(), 1e-6 * largest)
        assert np.abs(ours[path] - value).max() <= GRADIENTS * scale, path
    assert all(not ours[path].any() for path in frozen)


# --- their own numbers ----------------------------------------------------------------------------


def test_there_are_checkpoints_to_read():
    assert HERE / "binaryvit_react_mb" in FOLDERS


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_folders_with_numbers_of_their_own_code(folder):
    for path in sorted(folder.iterdir()):
        if path.suffix not in (".safetensors", ".pth", ".bin"):
            continue
        if path.suffix != ".safetensors":
            oracles.require("torch")
        if "pyramid" in folder.name:
            with pytest.raises(RefimplError, match="BinaryViT's pyramid"):
                refimpl.load_checkpoint(path)
            continue
        model, params = refimpl.load_checkpoint(path)
        params, images = as_float64(params), np.load(folder / "input_f64.npy")
        logits = model.predict(params, images)
        np.testing.assert_allclose(logits, np.load(folder / "logits_f64.npy"), atol=LOGITS)
        if (folder / "grads_f64.npz").exists():
            labels = np.load(folder / "labels.npy")
            probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
            dlogits = (probabilities - np.eye(logits.shape[1])[labels]) / len(labels)
            theirs = dict(np.load(folder / "grads_f64.npz"))
            assert_gradients(model, params, images, dlogits, theirs)


@pytest.mark.parametrize("kind", ["vit", "deit", "teacher", "swin"])
@pytest.mark.parametrize("bias", [True, False])
def test_transformers(kind, bias, tmp_path):
    theirs = oracles.require("transformers", "tests.torch_models.transformers_checkpoints")
    saved = theirs.save(kind, tmp_path, seed=7, qkv_bias=bias, layer_norm_eps=1e-3)
    model, params = refimpl.load_checkpoint(tmp_path)
    params = as_float64(params)
    np.testing.assert_allclose(model.predict(params, saved.images), saved.logits, atol=LOGITS)
    assert_gradients(model, params, saved.images, saved.dlogits, saved.gradients)


@st.composite
def sizes(draw, kind: str) -> dict[str, Any]:
    """Fields of a configuration of `transformers`, all of different sizes."""
    heads, d, ratio, classes = draw(st.permutations((2, 3, 4, 5, 6)))[:4]
    fields = {"num_labels": classes, "patch_size": draw(st.integers(1, 4)),
              "num_channels": draw(st.integers(1, 4)),
              "layer_norm_eps": draw(st.sampled_from((1e-12, 1e-6, 1e-5, 1e-3)))}  # fmt: skip
    if kind == "swin":
        depths = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
        window, last = draw(st.integers(1, 3)), draw(st.integers(1, 2))
        side = fields["patch_size"] * window * last * 2 ** (len(depths) - 1)
        ratio += draw(st.sampled_from((0.0, 0.3, 0.5, 0.55)))
        return {**fields, "depths": depths, "window_size": window, "image_size": side,
                "embed_dim": heads * d, "num_heads": [heads * 2**s for s in range(len(depths))],
                "mlp_ratio": ratio}  # fmt: skip
    grid = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    return {**fields, "image_size": [fields["patch_size"] * side for side in grid],
            "hidden_size": heads * d, "num_attention_heads": heads,
            "intermediate_size": draw(st.integers(1, 40)),
            "num_hidden_layers": draw(st.integers(1, 3))}


@pytest.mark.parametrize("kind", ["vit", "deit", "teacher", "swin"])
@settings(max_examples=12)
@given(data=st.data(), seed=strategies.seeds())
def test_drawn_sizes_of_transformers(kind, data, seed):
    theirs = oracles.require("transformers", "tests.torch_models.transformers_checkpoints")
    fields = data.draw(sizes(kind))
    with tempfile.TemporaryDirectory() as folder:
        saved = theirs.save(kind, folder, seed % 2**31, **fields)
        model, params = refimpl.load_checkpoint(folder)
    params = as_float64(params)
    logits = model.predict(params, saved.images)
    np.testing.assert_allclose(logits, saved.logits, rtol=LOGITS, atol=LOGITS)
    assert_gradients(model, params, saved.images, saved.dlogits, saved.gradients)


@pytest.mark.parametrize("kind", ["vit", "teacher", "swin"])
def test_names_in_memory_are_those_of_the_file(kind, tmp_path):
    """Whoever saves `state_dict()` of transformers 5 publishes other names than its files have."""
    theirs = oracles.require("transformers", "tests.torch_models.transformers_checkpoints")
    theirs.save(kind, tmp_path, seed=1)
    tensors = {key: value.numpy() for key, value in theirs.state_dict(tmp_path).items()}
    assert set(tensors) != set(load_file(tmp_path / "model.safetensors"))
    (tmp_path / "memory").mkdir()
    save_file(tensors, tmp_path / "memory" / "model.safetensors")
    config = tmp_path / "config.json"
    expected = flatten(refimpl.load_checkpoint(tmp_path)[1])
    found = flatten(refimpl.load_checkpoint(tmp_path / "memory", config=config)[1])
    assert set(found) == set(expected)
    for path, value in expected.items():
        np.testing.assert_array_equal(found[path], value, err_msg=path)


# --- a small network of timm ----------------------------------------------------------------------


@pytest.mark.parametrize("name", [
    "timm-avg", "timm-avg-no-class-token", "timm-avg-norm-before", "deit3", "distilled",
    "distilled-patches"])  # fmt: skip
def test_options_of_timm_are_read_off_its_keys(name, tmp_path):
    fields = {k: v for k, v in networks.imported()[name].to_json().items() if k != "image_size"}
    net, arrays, config = timm(**fields)
    model, params = refimpl.load_checkpoint(write(tmp_path, arrays, config))
    expected = net.model.config
    if expected.pool == "mean":  # without a token in front the two are the same
        expected = expected.replace(position="usual")
    assert model.config == expected
    images = networks.make(expected, 1, np.float32).images
    np.testing.assert_array_equal(
        model.predict(params, images), net.model.predict(net.params, images)
    )


def test_heads_of_an_architecture_are_known_by_its_name(tmp_path):
    _, arrays, _ = timm(dim=192, heads=3, depth=1)
    folder = write(tmp_path, arrays, {"architecture": "deit_tiny_patch16_224"})
    assert refimpl.load_checkpoint(folder)[0].config.heads == 3
    write(tmp_path, arrays, {"architecture": "deit_small_patch16_224"})
    with pytest.raises(RefimplError, match="'deit_small_patch16_224'; expected one with 192"):
        refimpl.load_checkpoint(folder)


def test_what_a_script_hands_on_to_the_class_is_nested(tmp_path):
    _, arrays, _ = timm(dim=192, heads=6, depth=1)
    folder, named = write(tmp_path, arrays), {"model": "vit_tiny_patch16_224"}  # which has 3
    said = {**named, "model_kwargs": {"num_heads": 6, "norm_eps": 1e-3}}
    (folder / "args.json").write_text(json.dumps(said))
    config = refimpl.load_checkpoint(folder)[0].config
    assert (config.heads, config.norm_eps) == (6, 1e-3)
    said["model_kwargs"]["act_layer"] = "relu"
    (folder / "args.json").write_text(json.dumps(said))
    with pytest.raises(RefimplError, match=r"args\.json: act_layer"):
        refimpl.load_checkpoint(folder)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"architecture": "vit_base_patch16_rpn_224"}, "a network with norms in front"),
        ({"model_args": {"pool_include_prefix": True}}, "pool_include_prefix is True"),
    ],
)
def test_networks_of_timm_with_the_same_keys_are_told(said, words, tmp_path):
    _, arrays, config = timm()
    with pytest.raises(RefimplError, match=words):
        refimpl.load_checkpoint(write(tmp_path, arrays, {**config, **said}))


def swin(after: int):
    """A Swin with an absolute position embedding, merging before or behind a stage's end."""
    net = networks.make(
        networks.swin(block="real", position="patches", mlp_ratio=2.55), 0, np.float32
    )
    arrays, config = {}, net.model.config
    for path, value in flatten(net.params).items():
        key, parts = path, path.split(".")
        if parts[0] == "blocks":
            stage, block = config.place_of(int(parts[1]))
            rest = ".".join(parts[2:]).replace("position_bias", "relative_position_bias_table")
            key = f"layers.{stage}.blocks.{block}.{rest}"
        elif parts[0] == "merges":
            rest = ".".join(parts[2:]).replace("proj", "reduction")
            key = f"layers.{int(parts[1]) + after}.downsample.{rest}"
        key = key.replace("patch_embed.", "patch_embed.proj.")
        key = key.replace("embed_norm.", "patch_embed.norm.")
        key = key.replace("pos_embed", "absolute_pos_embed")
        arrays[key.replace("head.", "head.fc.") if after else key] = np.array(value)
    if not after:  # microsoft's buffers
        arrays["layers.0.blocks.1.attn_mask"] = np.zeros((8, 4, 4), np.float32)
        arrays["layers.0.blocks.0.attn.relative_position_index"] = np.zeros((4, 4), np.int64)
    return net, arrays


@pytest.mark.parametrize("after", [0, 1])
def test_both_layouts_of_swin(after, tmp_path):
    net, arrays = swin(after)
    folder = write(tmp_path, arrays)
    with pytest.raises(RefimplError, match="the size of the images .* expected --size"):
        refimpl.load_checkpoint(folder)
    size = net.model.config.image_size
    model, params = refimpl.load_checkpoint(folder, size=size)
    assert model.config == net.model.config.replace(norm_eps=1e-5)
    np.testing.assert_array_equal(
        model.predict(params, net.images), net.model.predict(net.params, net.images)
    )


def test_stages_of_different_ratios_are_told(tmp_path):
    _, arrays = swin(0)
    key = "layers.0.blocks.0.mlp.fc1.weight"
    folder = write(tmp_path, {**arrays, key: np.ones((17, 10), np.float32)})
    words = f"{key}: 17 hidden channels for 10, an mlp_ratio of 1.7; expected 25, as that of an"
    asked = ("import", folder, *IMAGES, "--size", "8x16", "-o", tmp_path / "out.safetensors")
    assert_one_line(run(*asked), words, "other stage, 2.55, gives")


# --- containers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [
    "bare", "old", "model", "script", "timm", "ema", "module", "lightning", "double"])  # fmt: skip
def test_wrappers(how, tmp_path):
    theirs = oracles.require("torch", "tests.torch_models.transformers_checkpoints")
    _, arrays, config = timm()
    theirs.pickled(tmp_path / "best.pth", arrays, how)
    (tmp_path / "config.json").write_text(json.dumps(config))
    _, params = refimpl.load_checkpoint(tmp_path / "best.pth")
    _, expected = refimpl.load_checkpoint(write(tmp_path / "plain", arrays, config))
    for path, value in flatten(expected).items():
        found = flatten(params)[path]
        assert found.dtype == (np.float64 if how == "double" else np.float32)
        np.testing.assert_array_equal(found, value, err_msg=path)


def test_parts_of_a_checkpoint_are_never_overwritten(tmp_path):
    path, part = in_parts(tmp_path), tmp_path / "model-1.safetensors"
    before = part.read_bytes()
    asked = ("import", path, *IMAGES, "--force", "-o")
    assert_one_line(run(*asked, part), "model-1.safetensors: is the checkpoint itself")
    assert part.read_bytes() == before
    for _ in range(2):  # what lies beside them may go
        assert run(*asked, tmp_path / "mine.safetensors").status == 0


def in_parts(folder, **index):
    """The small network in two files, with other fields of the index, or other places of keys."""
    _, arrays, config = timm()
    places = {key: f"model-{1 + i % 2}.safetensors" for i, key in enumerate(arrays)}
    for name in set(places.values()):
        part = {key: value for key, value in arrays.items() if places[key] == name}
        save_file(part, folder / name)
    (folder / "config.json").write_text(json.dumps(config))
    said = {"metadata": {"total_size": 1}, "weight_map": {**places, **index.pop("places", {})}}
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({**said, **index}))
    return path


@pytest.mark.parametrize("named", ["folder", "index"])
def test_a_checkpoint_in_several_files(named, tmp_path):
    path = in_parts(tmp_path)
    model, params = refimpl.load_checkpoint(tmp_path if named == "folder" else path)
    net, _, _ = timm()
    assert model.config == net.model.config
    for name, value in flatten(net.params).items():
        np.testing.assert_array_equal(flatten(params)[name], value, err_msg=name)


@pytest.mark.parametrize(("index", "message"), [
    ({"weight_map": None}, "no weight_map; expected the file of each tensor"),
    ({"weight_map": {}}, "no weight_map; expected"),
    ({"weight_map": {"norm.weight": "../model.safetensors"}}, "expected a file beside it"),
    ({"weight_map": {"norm.weight": 3}}, "norm.weight is in 3; expected a file beside it"),
    ({"weight_map": {"norm.weight": "x.safetensors"}}, "x.safetensors: no such file"),
    ({"places": {"more": "model-1.safetensors"}}, "more is not in model-1.safetensors; expected"),
    ({"places": {"norm.weight": "config.json"}}, "suffix '.json'; expected one of"),
    ({"weight_map": {"norm.weight": "model-1.safetensors"}}, "; expected it to be said there"),
])  # fmt: skip
def test_bad_indices_are_one_line(index, message, tmp_path):
    in_parts(tmp_path, **index)
    asked = ("import", tmp_path, "-o", tmp_path / "out.safetensors", *IMAGES)
    assert_one_line(run(*asked), message)


@pytest.mark.parametrize(("how", "bits"), [("bfloat16", 8), ("float16", 11)])
def test_half_precision_is_widened(how, bits, tmp_path):
    theirs = oracles.require("torch", "tests.torch_models.transformers_checkpoints")
    _, arrays, config = timm()
    theirs.pickled(tmp_path / "best.pth", arrays, how)
    (tmp_path / "config.json").write_text(json.dumps(config))
    _, params = refimpl.load_checkpoint(tmp_path / "best.pth")
    for path, value in flatten(timm()[0].params).items():
        found = flatten(params)[path]
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, value, rtol=2.0**-bits, atol=1e-7)


def test_bfloat16_without_torch(tmp_path):
    _, arrays, config = timm()
    whole = {key: np.round(8 * value) / 8 for key, value in arrays.items()}  # exact in bfloat16
    header, data = {}, b""
    for key, value in whole.items():
        raw = (np.ascontiguousarray(value).view(np.uint32) >> 16).astype("<u2").tobytes()
        header[key] = {"dtype": "BF16", "shape": value.shape,
                       "data_offsets": [len(data), len(data) + len(raw)]}  # fmt: skip
        data += raw
    text = json.dumps(header).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    (tmp_path / "config.json").write_text(json.dumps(config))
    _, params = refimpl.load_checkpoint(path)
    np.testing.assert_array_equal(params["head"]["weight"], whole["head.weight"])


def test_without_torch_a_line_says_how_to_go_on(tmp_path, monkeypatch):
    (tmp_path / "best.pth").write_bytes(b"PK")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RefimplError, match=r"pip install refimpl\[torch\].*save_file"):
        refimpl.load_checkpoint(tmp_path / "best.pth")


# --- the command ----------------------------------------------------------------------------------


def test_the_result_is_a_model_file_like_any_other(tmp_path):
    _, arrays, config = timm(num_classes=3)
    folder, output = write(tmp_path / "timm", arrays, config), tmp_path / "out.safetensors"
    (tmp_path / "names.txt").write_text("cat\ndog\ncat\n")
    asked = ("import", folder, "-o", output, "--classes", tmp_path / "names.txt")
    assert_one_line(run(*asked), "expected --mean, --std, --crop, --resample")
    assert not output.exists()
    status, out, err = run(*asked, *IMAGES)
    assert (status, err) == (0, "")
    assert out.startswith(f"{output}: ViT and DeiT of timm, 2 blocks, 3 classes")
    model, _ = refimpl.load(output)
    assert model.class_names == ("cat (0)", "dog", "cat (2)")
    made = model.preprocessing
    assert (made.crop, made.resampling, made.std) == (0.9, "bicubic", (0.2, 0.3, 0.4))
    assert_one_line(run(*asked, *IMAGES), "exists")
    card = output.with_suffix(".json")
    card.write_text('{"sha256": "of other weights"}')
    assert run(*asked, *IMAGES, "--force").status == 0
    assert not card.exists()
    assert run("summary", output).status == run("show", output).status == 0
    status, out, _ = run("classify", bundled.digits()[0], "--model", output)
    assert status == 0 and out.split()[1] in ("cat", "dog")
    bundle = tmp_path / "bundle"
    made = run("golden", "make", "--model", output, "--random", "1", "--grads", "-o", bundle)
    assert made.status == 0
    assert run("golden", "compare", bundle, bundle, "--complete").status == 0


def test_preprocessing_of_a_configuration(tmp_path):
    _, arrays, config = timm()
    data = {"pretrained_cfg": {**DATA, "input_size": [3, 4, 4]}}
    folder = write(tmp_path, arrays, {**config, **data})
    made = refimpl.load_checkpoint(folder)[0].preprocessing
    assert (made.size, made.mean, made.crop) == ((4, 4), (0.5,) * 3, 0.875)
    assert refimpl.load_checkpoint(folder, crop=0.5)[0].preprocessing.crop == 0.5
    (folder / "preprocessor_config.json").write_text(json.dumps({
        "do_center_crop": True, "size": {"height": 256, "width": 256}, "resample": 3,
        "crop_size": 224, "image_mean": [0.1] * 3, "image_std": [0.2] * 3}))  # fmt: skip
    made = refimpl.load_checkpoint(folder)[0].preprocessing
    assert (made.crop, made.resampling, made.mean) == (0.875, "bicubic", (0.1,) * 3)


@pytest.mark.parametrize(("side", "share", "crop"), [
    (224, 0.875, 0.875), (383, 0.9, 0.9), (384, 0.875, 1.0), (224, None, 1.0)])  # fmt: skip
def test_the_crop_of_convnexts_processor(side, share, crop, tmp_path):
    _, arrays, config = timm()
    folder = write(tmp_path, arrays, config)
    (folder / "preprocessor_config.json").write_text(json.dumps({
        "size": {"shortest_edge": side}, "crop_pct": share, "resample": 3,
        "image_mean": [0.1] * 3, "image_std": [0.2] * 3}))  # fmt: skip
    assert refimpl.load_checkpoint(folder)[0].preprocessing.crop == crop


def test_grey_images_that_are_not_normalised(tmp_path):
    _, arrays, config = timm(channels=1)
    folder = write(tmp_path, arrays, config)
    (folder / "preprocessor_config.json").write_text(json.dumps({"do_normalize": False}))
    made = refimpl.load_checkpoint(folder)[0].preprocessing
    assert (made.mode, made.mean, made.std) == ("grey", (0.0,), (1.0,))


@pytest.mark.parametrize(("field", "value"), [
    ("do_resize", False),
    ("rescale_factor", "x"), ("rescale_factor", 1.0), ("resample", [3]), ("resample", 5),
    ("crop_size", {"height": 2, "width": 3}), ("crop_size", [1]), ("crop_size", 512),
    ("crop_pct", 0), ("crop_pct", "x"), ("crop_pct", [1.0]),
    ("image_mean", "x"), ("image_std", [0.0] * 3), ("image_std", [10**400] * 3)])  # fmt: skip
def test_bad_preprocessing_is_named(field, value, tmp_path):
    _, arrays, config = timm()
    fields = {"do_center_crop": field != "crop_pct", "size": 256, "crop_size": 224, "resample": 3,
              "image_mean": [0.1] * 3, "image_std": [0.2] * 3}  # fmt: skip
    folder = write(tmp_path, arrays, config)
    (folder / "preprocessor_config.json").write_text(json.dumps({**fields, field: value}))
    with pytest.raises(RefimplError, match=field.removeprefix("image_").removesuffix("_pct")):
        refimpl.load_checkpoint(folder)


def test_class_names_of_a_configuration(tmp_path):
    theirs = oracles.require("transformers", "tests.torch_models.transformers_checkpoints")
    names = {0: "ant", 1: "bee", 2: "cow", 3: "dog", 4: "elk"}
    theirs.save("vit", tmp_path, 0, id2label=names, label2id={v: k for k, v in names.items()})
    assert refimpl.load_checkpoint(tmp_path)[0].class_names == tuple(names.values())


# --- what is refused ------------------------------------------------------------------------------


class Evil:
    def __reduce__(self):
        return os.mkdir, ("broken_into",)


def change(**changes):
    """A checkpoint in which tensors are others; None takes one away."""

    def write_changed(folder):
        _, arrays, config = timm()
        for key, value in changes.items():
            key = key.replace("__", ".")
            if value is None:
                del arrays[key]
            else:
                arrays[key] = value(arrays.get(key)) if callable(value) else value
        return write(folder / "x", arrays, config)

    return write_changed


def said(*without, **fields):
    """A configuration with other fields."""

    def write_said(folder):
        _, arrays, config = timm()
        found = {k: v for k, v in {**config, **fields}.items() if k not in without}
        return write(folder / "x", arrays, found)

    return write_said


def raw(name, data):
    def write_raw(folder):
        (folder / name).write_bytes(data)
        return folder / name

    return write_raw


def truncated(folder):
    path = write(folder / "x", timm()[1]) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    return path


def pickled(how):
    def write_pickled(folder):
        theirs = oracles.require("torch", "tests.torch_models.transformers_checkpoints")
        theirs.pickled(folder / "x.pth", timm()[1], how)
        return folder / "x.pth"

    return write_pickled


def evil(folder):
    oracles.require("torch")
    return raw("x.pth", pickle.dumps({"model": Evil()}, protocol=2))(folder)


def spoilt(value):
    return lambda array: np.where(np.arange(array.size).reshape(array.shape) == 0, value, array)


BAD = {
    "nothing there": (lambda folder: folder / "none.pth", "no such file"),
    "an empty folder": (lambda folder: folder, "a folder without model.safetensors or pytorch_mo"),
    "another suffix": (raw("x.onnx", b"x"), "suffix '.onnx'; expected one of .safetensors, .pth"),
    "truncated": (truncated, "not a readable safetensors file"),
    "a pointer": (raw("x.safetensors", b"version https://git-lfs.github.com/spec/v1\n"), "Git LFS"),
    "code in a pickle": (evil, "mkdir, which is more than tensors and could run code"),
    "no pickle": (raw("x.pth", b"not a pickle"), "not a readable checkpoint"),
    "a list": (pickled("list"), "holds list; expected a state dict"),
    "a number": (pickled("number"), "holds int; expected a state dict"),
    "no tensors": (pickled("nothing"), "holds nothing; expected a state dict"),
    "floats of 8 bits": (pickled("float8"), "float8_e4m3fn; expected floats of 16, 32 or 64 bits"),
    "a loss beside the network": (
        lambda folder: write(folder / "x", {
            **{f"model.{key}": value for key, value in timm()[1].items()},
            "criterion.weight": np.ones(3, np.float32)}),
        "criterion.weight: stands beside the network, in model.*; expected a state dict of the"),
    "a count beside an average": (pickled("averaged"), "n_averaged: stands beside the network, in"),
    "dicts in dicts": (pickled("nested"), "a: dict; expected a tensor, as in a state dict"),
    "another family": (
        lambda folder: write(folder / "x", {"conv1.weight": np.ones((2, 2), np.float32)}),
        "conv1.weight: a key of no known family; expected BinaryViT, Swin of transf"),
    "a missing key": (change(blocks__1__mlp__fc2__bias=None),
                      "blocks.1.mlp.fc2.bias: missing; expected shape (10,)"),
    "no head": (change(head__weight=None), "head.weight: missing; expected a tensor of 2 axes"),
    "an extra key": (change(reg_token=np.ones((1, 4, 10), np.float32)),
                     "reg_token: no place for it in a network of ViT and DeiT of timm"),
    "a wrong shape": (change(blocks__0__norm1__weight=np.ones(9, np.float32)),
                      "blocks.0.norm1.weight: shape (9,); expected (10,)"),
    "whole numbers": (change(head__bias=np.ones(4, np.int32)), "head.bias: int32; expected floats"),
    "NaN": (change(norm__bias=spoilt(np.float32(np.nan))), "norm.bias: holds NaN or infinity"),
    "infinity": (change(pos_embed=spoilt(np.float32(np.inf))), "pos_embed: holds NaN or infinity"),
    "no number of heads": (said("num_heads"), "the number of heads is not in the checkpoint"),
    "heads that do not divide": (said(num_heads=3), "dim is 10; expected a multiple of heads 3"),
    "another depth": (said(depth=5), "depth is 5; expected 2, as blocks has it"),
    "another width": (said(embed_dim=12), "embed_dim is 12; expected 10, as patch_embed.proj."),
    "other classes": (said(num_classes=9), "num_classes is 9; expected 4, as head.weight has it"),
    "another size": (said(img_size=64), "img_size is 64; expected one for the 5 tokens of pos_em"),
    "another activation": (said(act_layer="quick_gelu"), "act_layer is 'quick_gelu'; expected 'ge"),
    "another pooling": (said(global_pool="map"), "global_pool is 'map'; expected 'token' or 'avg'"),
    "heads in words": (said(num_heads="two"), "num_heads is 'two'; expected a whole number of at"),
    "a ratio of one tensor": (
        change(blocks__0__mlp__fc1__weight=np.ones((15, 10), np.float32)),
        "blocks.0.mlp.fc1.bias: shape (30,); expected (15,)"),
    "a ratio of endless digits": (said(mlp_ratio=10**400), "mlp_ratio is 1000000"),
    "an eps of endless digits": (said(norm_eps=10**400), "norm_eps is 100000"),
    "another ratio": (said(mlp_ratio=2.5), "mlp_ratio is 2.5; expected one that gives 30 hidden"),
    "a block out of thin air": (change(blocks__99999__x=np.ones(1, np.float32)),
                                "depth is 100000; expected at most 1,000 blocks"),
    "two names of one tensor": (
        lambda folder: write(folder / "x", {
            "vit.embeddings.patch_embeddings.projection.weight": np.ones((4, 3, 2, 2), np.float32),
            "vit.encoder.layer.0.attention.output.dense.bias": np.ones(4, np.float32),
            "vit.layers.0.attention.o_proj.bias": np.ones(4, np.float32)}),
        "another name of vit."),
    "a number of endless digits": (
        lambda folder: change(**{f"blocks__{'9' * 5000}__x": np.ones(1, np.float32)})(folder),
        ".x: no place for it in a network of ViT and DeiT of timm"),
    "tokens that are no square": (
        change(pos_embed=np.ones((1, 8, 10), np.float32)),
        "pos_embed: 8 tokens are no square; expected the images' size, by --size"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_checkpoints_are_one_line_and_status_2(name, tmp_path, monkeypatch):
    make, message = BAD[name]
    monkeypatch.chdir(tmp_path)
    path, output = make(tmp_path), tmp_path / "out.safetensors"
    assert_one_line(run("import", path, "-o", output, *IMAGES), message, str(path))
    assert not output.exists() and not Path("broken_into").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [("[1]", "found list; expected an object"), ("{", "not JSON"), (None, "cannot be read")],
)
def test_bad_configurations(text, message, tmp_path):
    folder = write(tmp_path / "x", timm()[1])
    config = tmp_path / "named.json"
    if text is not None:
        config.write_text(text)
    asked = ("import", folder, "--config", config, "-o", tmp_path / "o.safetensors")
    assert_one_line(run(*asked), message, str(config))


def test_the_bits_of_weights_are_in_no_tensor(tmp_path):
    source = HERE / "binaryvit_react_mb"
    config = json.loads((source / "config.json").read_text())
    folder = write(tmp_path / "x", load_file(source / "model.safetensors"), config)
    with pytest.raises(RefimplError, match="number of bits of weights .* expected weight_bits"):
        refimpl.load_checkpoint(folder)
    write(folder, load_file(source / "model.safetensors"), {**config, "weight_bits": 32})
    assert refimpl.load_checkpoint(folder)[0].config.binarize == "activations"
    real = load_file(source / "model.safetensors")
    real = {key: value for key, value in real.items() if not key.endswith("att_prob_clip")}
    for bits, stage in ((1, "weights"), (32, "none")):
        write(folder, real, {**config, "weight_bits": bits})
        assert refimpl.load_checkpoint(folder)[0].config.binarize == stage
    odd = {**load_file(source / "model.safetensors")}
    key = "vit.encoder.layer.0.intermediate.dense.weight"
    write(folder, {**odd, key: odd[key][:-1]}, {**config, "weight_bits": 1})
    with pytest.raises(RefimplError, match=f"{key}: .* channels; expected a multiple of them"):
        refimpl.load_checkpoint(folder)
    write(folder, load_file(source / "model.safetensors"), {**config, "weight_bits": 2})
    with pytest.raises(RefimplError, match="weight_bits is 2; expected 1 or 32"):
        refimpl.load_checkpoint(folder)
