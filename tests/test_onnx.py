"""Networks as ONNX: ONNX Runtime and OpenVINO are ports like any other, judged by bundles."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

import refimpl
from refimpl.conventions import ExportError
from refimpl.exporting import onnx, source
from refimpl.golden import Bundle, compare, make, read
from refimpl.models import files, replay
from refimpl.models.operations import OPERATIONS
from tests import networks, oracles, strategies
from tests.checkpoint_files import FOLDERS
from tests.command_line import assert_one_line, run

GOLDEN = Path(str(resources.files("refimpl.weights") / "golden"))
SHIPPED = sorted(path.name for path in GOLDEN.iterdir() if path.is_dir())
CHECKPOINTS = [path for path in FOLDERS if "pyramid" not in path.name]  # those are refused
RUNTIMES = ("onnxruntime", "openvino")
ANY = networks.all_configs() | networks.pyramids() | networks.others()
NAMED = {  # fields that are seldom drawn; all others the drawn networks have
    **networks.imported(),
    **{f"swin-{i}": networks.swin(**{**f, **networks.DIDB}) for i, f in enumerate(networks.SWINS)},
}


def outputs(runtime: str, path: Path, images: np.ndarray) -> dict[str, np.ndarray]:
    """Outputs of an exported file by name."""
    library, images = oracles.require(runtime), images.astype(np.float32)
    if runtime == "onnxruntime":
        options = library.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        session = library.InferenceSession(str(path), options)
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, {"input": images})))
    options = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = library.Core().compile_model(str(path), "CPU", options)
    found = compiled([images])
    return {output.any_name: np.array(found[output]) for output in compiled.outputs}


def exported(folder: Path, model: Any, params: Any, **options: Any) -> Path:
    files.save(folder / "model.safetensors", model, params)
    onnx.write(folder / "model.onnx", source.read(folder / "model.safetensors"), **options)
    return folder / "model.onnx"


def assert_passes(bundle: Bundle, taps: dict[str, np.ndarray], *modes: str) -> None:
    """Every forward tap is there and right."""
    for mode in modes or ("replay", "free"):
        result = compare(bundle, taps, mode=mode)
        assert result.outcome == "PASS", (mode, result.first, result.unjudged, result.unknown)
        assert [tap for tap in result.missing if not tap.startswith("grads/")] == []


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_bundles_pass(name, runtime, tmp_path):
    bundle = read(GOLDEN / name)
    path = exported(tmp_path, bundle.model, bundle.params, taps=True)
    assert_passes(bundle, outputs(runtime, path, bundle.input))


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("folder", CHECKPOINTS, ids=lambda folder: folder.name)
def test_networks_of_others_pass(folder, runtime, tmp_path):
    """Imported, exported, run elsewhere, and compared with their golden vectors."""
    model, params = refimpl.load_checkpoint(folder / "model.safetensors")
    make(tmp_path / "bundle", model, params, np.load(folder / "input_f64.npy").astype(np.float32))
    path = exported(tmp_path, model, params, taps=True)
    bundle = read(tmp_path / "bundle")
    assert_passes(bundle, outputs(runtime, path, bundle.input))


def assert_drawn(config, seed: int, runtime: str, folder: Path) -> None:
    net = networks.make(config, seed, np.float32)
    make(folder / "bundle", net.model, net.params, net.images)
    path = exported(folder, net.model, net.params, taps=True)
    assert_passes(read(folder / "bundle"), outputs(runtime, path, net.images), "free")


@pytest.mark.parametrize("windows", [False, True])
def test_a_small_network_passes(windows):
    make_config = networks.swin if windows else networks.small
    with tempfile.TemporaryDirectory() as folder:
        assert_drawn(make_config(**networks.DIDB), 1, "onnxruntime", Path(folder))


@pytest.mark.parametrize("name", NAMED)
def test_networks_with_windows_and_of_others(name, tmp_path):
    assert_drawn(NAMED[name], 1, "onnxruntime", tmp_path)


@settings(max_examples=25)
@given(config=ANY, seed=strategies.seeds())
def test_random_networks(config, seed, tmp_path_factory):
    assert_drawn(config, seed, "onnxruntime", tmp_path_factory.mktemp("drawn"))


@settings(max_examples=5)
@given(config=ANY, seed=strategies.seeds())
def test_random_networks_on_openvino(config, seed, tmp_path_factory):
    assert_drawn(config, seed, "openvino", tmp_path_factory.mktemp("drawn"))


def test_every_operation_of_a_list_can_be_exported():
    of_parameters = {"resize_tokens", "weight_binarizer"}  # computed when the file is written
    assert set(OPERATIONS) - of_parameters == set(onnx.OPERATIONS)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> tuple[Path, networks.Network, Any]:
    """A network with windows, its file and its graph with all taps."""
    package = oracles.require("onnx")
    net = networks.make(networks.swin(**networks.DIDB), 5, np.float32)
    folder = tmp_path_factory.mktemp("small")
    exported(folder, net.model, net.params, taps=True)
    return folder, net, package.load(str(folder / "model.onnx"))


def test_operators_are_standard_and_products_of_bits_whole(small):
    _, net, model = small
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", onnx.OPSET)]
    assert not model.functions and all(node.domain == "" for node in model.graph.node)
    kinds = [node.op for node in net.model.network.nodes]
    whole = sum(kinds.count(op) for op in ("binary_linear", "boolean_attention", "matmul"))
    made = [node.op_type for node in model.graph.node]
    assert made.count("MatMulInteger") == whole
    assert made.count("MatMul") == kinds.count("linear")
    assert len({node.name for node in model.graph.node}) == len(model.graph.node)


def test_values_are_called_like_taps(small):
    _, net, model = small
    shown = [tap.name for taps in replay.taps(net.model.network).forward for tap in taps]
    names = [output.name for output in model.graph.output]
    assert names[0] == "logits" and names[1:] == [name for name in shown if name != "logits"]
    kinds = {1: "real", 6: "int", 9: "bit"}
    declared = {o.name: kinds[o.type.tensor_type.elem_type] for o in model.graph.output}
    expected = {t.name: t.kind for taps in replay.taps(net.model.network).forward for t in taps}
    assert declared == expected
    folder, other = small[0], small[0] / "plain.onnx"
    onnx.write(other, source.read(folder / "model.safetensors"))
    plain = oracles.require("onnx").load(str(other))
    assert [output.name for output in plain.graph.output] == ["logits"]
    assert set(shown) - {n for n in shown if n.endswith("weight.z")} <= {
        *(name for node in plain.graph.node for name in node.output),
        *(array.name for array in plain.graph.initializer),
    }


def test_the_file_says_where_it_comes_from(small):
    import hashlib
    import json

    folder, net, model = small
    found = {entry.key: entry.value for entry in model.metadata_props}
    data = (folder / "model.safetensors").read_bytes()
    assert found["sha256"] == hashlib.sha256(data).hexdigest()
    assert json.loads(found["config"]) == net.model.config.to_json()
    onnx.write(folder / "digits.onnx", source.read("didb_micro_mnist"))
    digits = oracles.require("onnx").load(str(folder / "digits.onnx"))
    prepared = {entry.key: entry.value for entry in digits.metadata_props}["preprocessing"]
    assert json.loads(prepared) == refimpl.load("didb_micro_mnist")[0].preprocessing.to_json()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_batch_has_any_size(small, runtime):
    folder, net, _ = small
    many = outputs(runtime, folder / "model.onnx", net.images)
    for i in range(len(net.images)):
        one = outputs(runtime, folder / "model.onnx", net.images[i : i + 1])
        np.testing.assert_allclose(one["logits"], many["logits"][i : i + 1], atol=1e-5)


def test_packed_files_give_the_same(small):
    folder, net, _ = small
    files.save_packed(folder / "packed.safetensors", net.model, net.params)
    onnx.write(folder / "packed.onnx", source.read(folder / "packed.safetensors"), taps=True)
    latent = outputs("onnxruntime", folder / "model.onnx", net.images)
    packed = outputs("onnxruntime", folder / "packed.onnx", net.images)
    lost = {name for name in latent if name.endswith("weight.z")}
    assert lost and set(packed) == set(latent) - lost
    for name in ("logits", "blocks.0.attn.v.int", "blocks.0.attn.v.weight.bit"):
        np.testing.assert_allclose(packed[name], latent[name], atol=1e-5, err_msg=name)


def test_the_same_model_gives_the_same_bytes(small):
    read = source.read(small[0] / "model.safetensors")
    assert onnx.to_bytes(read) == onnx.to_bytes(read)


def test_the_verb_writes_and_refuses(tmp_path):
    oracles.require("onnx")
    path = tmp_path / "digits.onnx"
    found = run("export", "didb_micro_mnist", "--onnx", str(path))
    assert found.status == 0 and "opset 17, images (any, 1, 28, 28) -> logits" in found.out
    data = path.read_bytes()
    path.write_bytes(b"mine")
    assert_one_line(run("export", "didb_micro_mnist", "--onnx", str(path)), "exists; expected")
    assert path.read_bytes() == b"mine"
    assert run("export", "didb_micro_mnist", "--onnx", str(path), "--force").status == 0
    assert path.read_bytes() == data
    assert_one_line(run("export", "none", "--onnx", str(tmp_path / "x")), "no such file or model")
    found = run("export", "didb_micro_mnist", "--c", str(tmp_path / "c"), "--taps")
    assert found.status == 2 and "--taps: belongs to --onnx" in found.err
    assert sorted(tmp_path.iterdir()) == [path]


def test_an_operation_without_a_place_is_named(small, monkeypatch):
    monkeypatch.delitem(onnx.OPERATIONS, "bands")
    path = small[0] / "never.onnx"
    with pytest.raises(ExportError, match="blocks.0.attn.low: operation 'bands' cannot be"):
        onnx.write(path, source.read(small[0] / "model.safetensors"))
    assert not path.exists()


def test_a_network_too_large_for_one_file_is_named(small, monkeypatch):
    """The bound is protobuf's; a lower one stands for a network of gigabytes."""
    read, path = source.read(small[0] / "model.safetensors"), small[0] / "never.onnx"
    found = oracles.require("onnx").load_from_string(onnx.to_bytes(read))
    size = sum(len(tensor.raw_data) for tensor in found.graph.initializer)
    monkeypatch.setattr(onnx, "LARGEST", size)
    assert onnx.to_bytes(read)
    monkeypatch.setattr(onnx, "LARGEST", size - 1)
    words = f"{read.path}: has constants of {size:,} bytes; expected at most {size - 1:,}, "
    with pytest.raises(ExportError, match=re.escape(words)):
        onnx.write(path, read)
    monkeypatch.setattr(onnx, "LARGEST", size)  # which latent weights, shown, exceed
    with pytest.raises(ExportError, match="expected at most"):
        onnx.write(path, read, taps=True)
    assert not path.exists()


def test_a_missing_package_is_named(tmp_path):
    code = (
        "import sys; sys.modules['onnx'] = None; from refimpl import cli; "
        f"sys.exit(cli.main(['export', 'didb_micro_mnist', '--onnx', r'{tmp_path / 'x.onnx'}']))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 2
    assert found.stderr.strip().splitlines() == [
        "refimpl: the package onnx is not installed, expected the extra: "
        "pip install refimpl[onnx]"
    ]
    assert not list(tmp_path.iterdir())
