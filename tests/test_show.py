"""`refimpl show`: a port made of nothing but what it says computes the same, and it looks well."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import refimpl
from refimpl import ops
from refimpl.conventions import ConfigError
from refimpl.models import architectures, binary, files, listing, packing, summary
from tests import networks
from tests.command_line import assert_one_line, run


def squeezed(lines) -> list[str]:
    return [" ".join(line.text.split()) for line in lines]


# --- by hand --------------------------------------------------------------------------------------

# C = 10 in 2 heads of 5, N = 7, r = 3
REAL_BLOCK = """\
blocks.0.norm1
.out layer_norm(tokens; .weight, .bias; eps=1e-05) (B, 7, 10)
blocks.0.attn.qkv
.out linear(blocks.0.norm1.out; .weight, .bias) (B, 7, 10) -> (B, 7, 30)
- ..q, ..k, ..v split(.out; parts=3) (B, 7, 30) -> (B, 7, 10)
- ..q.heads split_heads(..q; heads=2, transposed=False) (B, 7, 10) -> (B, 2, 7, 5)
- ..k.heads split_heads(..k; heads=2, transposed=False) (B, 7, 10) -> (B, 2, 7, 5)
- ..v.heads split_heads(..v; heads=2, transposed=True) (B, 7, 10) -> (B, 2, 5, 7)
blocks.0.attn.scores
- ..products matmul(..q.heads, ..k.heads) (B, 2, 7, 5) -> (B, 2, 7, 7)
..scores divide(..products; divisor=2.23607) (B, 2, 7, 7)
blocks.0.attn.prob
..prob softmax(..scores) (B, 2, 7, 7)
blocks.0.attn.context
..context matmul(..prob, ..v.heads) (B, 2, 7, 7), (B, 2, 5, 7) -> (B, 2, 7, 5)
- ..joined merge_heads(..context) (B, 2, 7, 5) -> (B, 7, 10)
blocks.0.attn.proj
.out linear(..joined; .weight, .bias) (B, 7, 10)
blocks.0.mid add(tokens, .out) (B, 7, 10)
blocks.0.norm2
.out layer_norm(..mid; .weight, .bias; eps=1e-05) (B, 7, 10)
blocks.0.mlp.fc1
.out linear(blocks.0.norm2.out; .weight, .bias) (B, 7, 10) -> (B, 7, 30)
blocks.0.mlp.gelu
.out gelu(..fc1.out) (B, 7, 30)
blocks.0.mlp.fc2
.out linear(..gelu.out; .weight, .bias) (B, 7, 30) -> (B, 7, 10)
blocks.0.out add(blocks.0.mid, .out) (B, 7, 10)"""

FROM_BEHIND = """\
blocks.0.mlp.fc2
d(blocks.0.out) add(blocks.1.mid + blocks.1.norm1.out) -> blocks.0.mid, .out (B, 7, 10)
d(.out) linear(blocks.0.out; ..gelu.out) -> ..gelu.out, .weight, .bias (B, 7, 10) -> (B, 7, 30)
blocks.0.mlp.gelu
d(.out) gelu(..fc2.out; ..fc1.out) -> ..fc1.out (B, 7, 30)
blocks.0.mlp.fc1
d(.out) linear(..gelu.out; blocks.0.norm2.out) -> blocks.0.norm2.out, .weight, .bias \
(B, 7, 30) -> (B, 7, 10)
blocks.0.norm2
d(.out) layer_norm(..mlp.fc1.out; ..mid) -> ..mid, .weight, .bias (B, 7, 10)
blocks.0.attn.proj
d(blocks.0.mid) add(blocks.0.out + blocks.0.norm2.out) -> tokens, .out (B, 7, 10)
d(.out) linear(blocks.0.mid; ..joined) -> ..joined, .weight, .bias (B, 7, 10)
blocks.0.attn.context
- d(..joined) merge_heads(..proj.out) -> ..context (B, 7, 10) -> (B, 2, 7, 5)
d(..context) matmul(..joined; ..prob, ..v.heads) -> ..prob, ..v.heads \
(B, 2, 7, 5) -> (B, 2, 7, 7), (B, 2, 5, 7)
blocks.0.attn.prob
d(..prob) softmax(..context; ..prob) -> ..scores (B, 2, 7, 7)
blocks.0.attn.scores
d(..scores) divide(..prob) -> ..products (B, 2, 7, 7)
- d(..products) matmul(..scores; ..q.heads, ..k.heads) -> ..q.heads, ..k.heads \
(B, 2, 7, 7) -> (B, 2, 7, 5)
blocks.0.attn.qkv
- d(..v.heads) split_heads(..context) -> ..v (B, 2, 5, 7) -> (B, 7, 10)
- d(..k.heads) split_heads(..products) -> ..k (B, 2, 7, 5) -> (B, 7, 10)
- d(..q.heads) split_heads(..products) -> ..q (B, 2, 7, 5) -> (B, 7, 10)
- d(..q, ..k, ..v) split(..q.heads, ..k.heads, ..v.heads) -> .out (B, 7, 10) -> (B, 7, 30)
d(.out) linear(..q; blocks.0.norm1.out) -> blocks.0.norm1.out, .weight, .bias \
(B, 7, 30) -> (B, 7, 10)
blocks.0.norm1
d(.out) layer_norm(..attn.qkv.out; tokens) -> tokens, .weight, .bias (B, 7, 10)"""

# Of an attention with windows: a grid of 4 x 8 is 8 windows of 2 x 2, shifted by 1 in block 1.
PROJECTION = """\
blocks.1.attn.v
- .x identity(blocks.1.norm1.out) (B, 32, 10)
.z shift(.x; .move) (B, 32, 10)
.linear binary_linear(.z; .weight; binarize=full, ste=polynomial) (B, 32, 10)
.weight.z of .weight (10, 10)
.weight.bit of .weight.z bit (10, 10)
.weight.scale of .weight (10)
.bit of .z bit (B, 32, 10)
.int of .bit, .weight.bit int (B, 32, 10)
.norm layer_norm(.linear; .norm.{weight,bias}; eps=1e-05) (B, 32, 10)
- .fit fit(.x; outputs=10) (B, 32, 10)
- .sum add(.norm, .fit) (B, 32, 10)
.out rprelu(.sum; .rprelu.{shift_in,slope,shift_out}) (B, 32, 10)
- .moved shift(.out; ..v_move) (B, 32, 10)
- .head_z.windows windows(.moved; grid=4x8, window=2, shift=1) (B, 32, 10) -> (B*8, 4, 10)
.head_z split_heads(.head_z.windows; heads=2, transposed=True) (B*8, 4, 10) -> (B*8, 2, 5, 4)
.head_bit sign(.head_z; ste=polynomial) (B*8, 2, 5, 4) -> bit (B*8, 2, 5, 4)"""

CONTEXT_FROM_BEHIND = """\
blocks.1.attn.context
d(..context) boolean_attention(..joined; ..prob, ..v.head_bit) -> ..prob, ..v.head_bit, ..alpha \
(B*8, 2, 4, 5) -> (B*8, 2, 4, 4), (B*8, 2, 5, 4)
d(..prob) of d(..context), ..prob.z, ..v.head_bit, ..alpha (B*8, 2, 4, 4)
d(..v.head_bit) of d(..context), ..prob.z, ..v.head_bit, ..alpha (B*8, 2, 5, 4)
d(..alpha) of d(..context), ..prob.z, ..v.head_bit, ..alpha ()
blocks.1.attn.prob"""


@pytest.mark.parametrize("backward, expected", [(False, REAL_BLOCK), (True, FROM_BEHIND)])
def test_a_real_block_by_hand(backward, expected):
    network = binary.network(networks.small(block="real"))
    assert squeezed(listing.lines(network, 0, backward)) == expected.splitlines()


def test_parts_of_a_binary_block_by_hand():
    network = binary.network(networks.swin())
    assert PROJECTION in "\n".join(squeezed(listing.lines(network, 1)))
    assert CONTEXT_FROM_BEHIND in "\n".join(squeezed(listing.lines(network, 1, backward=True)))


def test_columns_are_aligned():
    lines = [line.text for line in listing.lines(binary.network(networks.small()), 0)]
    assert lines[2:7] == [
        "blocks.0.attn.q",
        f"- .x{'':18}identity(blocks.0.norm1.out){'':40}(B, 7, 10)",
        f"  .z{'':18}shift(.x; .move){'':52}(B, 7, 10)",
        f"  .linear{'':13}binary_linear(.z; .weight; binarize=full, ste=polynomial){'':11}"
        "(B, 7, 10)",
        f"    .weight.z{'':9}of .weight{'':58}(10, 10)",
    ]


# --- a port of what it says -----------------------------------------------------------------------


def attributes_of(entry: dict) -> dict[str, Any]:
    values = entry["attributes"].items()
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values}


class Port:
    """Forward and backward from the JSON and the operations alone."""

    def __init__(self, network, params: dict[str, np.ndarray]):
        forward, backward = (
            json.loads(json.dumps(listing.entries(network, backward=way))) for way in (False, True)
        )
        self.forward_nodes, self.backward_nodes, self.params = forward, backward, params

    def forward(self, images: np.ndarray) -> np.ndarray:
        values, self.caches = {"input": images, **self.params}, {}
        for node in self.forward_nodes:
            args = [values[name] for name in (*node["inputs"], *node["parameters"])]
            y, self.caches[node["name"]] = getattr(ops, node["op"]).forward(
                *args, **attributes_of(node)
            )
            outputs = y if len(node["outputs"]) > 1 else [y]
            values |= dict(zip(node["outputs"], outputs, strict=True))
        return outputs[0]

    def backward(self, dlogits: np.ndarray) -> dict[str, np.ndarray]:
        sent, gradients = {("loss", "logits"): dlogits}, {}
        for node in self.backward_nodes:
            dys = []
            for output, senders in zip(node["outputs"], node["sums"], strict=True):
                first, *others = (sent.pop((sender, output)) for sender in senders)
                dys.append(sum(others, start=first))
            dy = dys[0] if len(dys) == 1 else tuple(dys)
            found = getattr(ops, node["op"]).backward(dy, self.caches[node["name"]])
            for name, gradient in zip([*node["inputs"], *node["parameters"]], found, strict=False):
                sent[node["name"], name] = gradient
        for (_, name), gradient in sent.items():  # nobody else was to read them
            assert name == "input" or name in self.params
            assert name not in gradients
            gradients[name] = gradient
        return gradients


@given(networks.all_configs(), st.booleans())
def test_a_port_computes_the_same_to_the_bit(config, resized):
    made, network = networks.make(config, seed=70), binary.network(config)
    if resized and not config.window:
        made = networks.with_images_of(made, (2, 3))
        network = binary.network(config, made.images.shape[2:])
    logits, dimages, grads = made.run()
    port = Port(network, refimpl.flatten(made.params))
    np.testing.assert_array_equal(port.forward(made.images), logits)
    found = port.backward(made.dlogits)
    np.testing.assert_array_equal(found.pop("input"), dimages)
    assert found.keys() == grads.keys()
    for path, gradient in grads.items():
        np.testing.assert_array_equal(found[path], gradient, err_msg=path)


# --- against a listener ---------------------------------------------------------------------------


def concrete(shape: list[Any], batch: int) -> tuple[int, ...]:
    """A shape as it is written, for a batch."""
    if shape and str(shape[0])[0] == "B":
        return (batch * int(str(shape[0])[2:] or 1), *shape[1:])
    return tuple(shape)


@given(st.one_of(networks.all_configs(), networks.pyramids()))
def test_taps_kinds_and_shapes_are_those_that_a_listener_hears(config):
    made, heard = networks.make(config, seed=71), {}
    made.run(tap=lambda name, value, op, inputs: heard.update({name: (value.dtype, value.shape)}))
    network, found = binary.network(config), {}
    for backward, prefix in ((False, ""), (True, "grads/")):
        for entry in listing.entries(network, backward=backward):
            shapes = zip(entry["outputs"], entry["shapes"]["outputs"], strict=True)
            if entry["tap"]:
                found |= {prefix + name: (entry["tap"], shape) for name, shape in shapes}
            found |= {step["name"]: (step["kind"], step["shape"]) for step in entry["inside"]}
    dtypes = {"bit": np.dtype(bool), "int": np.dtype(np.int32), "real": made.images.dtype}
    expected = {
        name: (dtypes[kind], concrete(shape, len(made.images)))
        for name, (kind, shape) in found.items()
    }
    # the gradients of the image and of parameters are sums like all others, without a line
    others = {"grads/input": made.images.shape} | {
        f"grads/param.{path}": value.shape for path, value in refimpl.flatten(made.params).items()
    }
    assert expected | {name: (dtypes["real"], shape) for name, shape in others.items()} == heard


# --- every architecture, every node ---------------------------------------------------------------


@pytest.mark.parametrize("name", architectures.NAMES)
def test_every_node_has_a_line(name):
    network = binary.network(architectures.named(name))
    layers = list(summary.layers(network))
    for backward in (False, True):
        lines = list(listing.lines(network, backward=backward))
        assert {line.text for line in lines if not line.name} == set(layers)
        names = [entry["name"] for entry in listing.entries(network, backward=backward)]
        assert sorted(names) == sorted(node.name for node in network.nodes)
        assert set(names) <= {line.name for line in lines}
        assert all("\n" not in line.text for line in lines)
    known = {"input", *network.parameters}
    for entry in listing.entries(network):  # what is read stands above
        assert known.issuperset(entry["inputs"] + entry["parameters"])
        known.update(entry["outputs"])
    blocks = architectures.named(name).num_blocks
    count = sum(len(listing.entries(network, block)) for block in range(blocks))
    assert count == sum(node.block is not None for node in network.nodes)
    with pytest.raises(ConfigError, match=f"block is {blocks}; .* from 0 to {blocks - 1}$"):
        next(listing.lines(network, blocks))


# --- the command ----------------------------------------------------------------------------------


def test_show_prints_how_to_read_it_and_the_lines():
    network = binary.network(architectures.named("didb_micro"))
    for options, how in (((), listing.FORWARD), (("--backward",), listing.BACKWARD)):
        done = run("show", "didb_micro", "--block", 2, *options)
        assert (done.status, done.err) == (0, "")
        lines = listing.lines(network, 2, bool(options))
        assert done.out == f"{how}\n" + "".join(f"{line.text}\n" for line in lines)
    assert max(map(len, run("show", "didb_micro").out.splitlines())) <= 150


def test_show_json():
    done = run("show", "react_swin_micro", "--json", "--backward")
    assert (done.status, done.err) == (0, "")
    found, config = json.loads(done.out), architectures.named("react_swin_micro")
    assert found["config"] == config.to_json()
    assert found["nodes"][0] == {
        "name": "logits",
        "op": "linear",
        "attributes": {},
        "inputs": ["pooled"],
        "parameters": ["head.weight", "head.bias"],
        "outputs": ["logits"],
        "shapes": {"inputs": [["B", 64]], "parameters": [[10, 64], [10]], "outputs": [["B", 10]]},
        "layer": "head",
        "tap": "real",
        "sums": [["loss"]],
        "reads": ["pooled"],
        "inside": [],
    }


def test_show_files_and_images_of_another_size(tmp_path):
    made = networks.make(networks.small(**networks.DIDB), seed=72, dtype=np.float32)
    latent, packed = tmp_path / "latent.safetensors", tmp_path / "packed.safetensors"
    refimpl.save(latent, made.model, made.params)
    files.save_packed(packed, made.model, made.params)
    outputs = [run("show", path, "--image-size", "2x4") for path in (latent, packed)]
    assert outputs[0] == outputs[1]
    assert (outputs[0].status, outputs[0].err) == (0, "")
    assert "resize_tokens(pos_embed; grid=2x3, new_grid=1x2)" in outputs[0].out
    assert "(1, 7, 10) -> (1, 3, 10)" in outputs[0].out


STAGES = {"window": 1, "pool": "mean", "patch_size": 1, "depth": [1] * 4000}


@pytest.mark.parametrize("kind", ["latent", "packed"])
@pytest.mark.parametrize(
    "fields, words",
    [
        ({"depth": 10**9}, "depth is 1000000000; expected at most 1,000 blocks"),
        ({**STAGES, "image_size": 2**4000}, "expected at most 1,000,000"),
    ],
)
def test_a_hostile_number_of_blocks_is_refused_before_they_are_listed(
    tmp_path, kind, fields, words
):
    """With the list this test would take all memory."""
    made, path = networks.make(networks.small(), 73, dtype=np.float32), tmp_path / "m.safetensors"
    arrays = refimpl.flatten(made.params)
    if kind == "packed":
        arrays = packing.join(packing.pack(made.model.config, made.params))
    metadata = {"format": "refimpl", "format_version": files.FORMAT_VERSION, "kind": kind}
    config = json.dumps({**made.model.config.to_json(), **fields})
    metadata |= {"config": config, "class_names": "null", "preprocessing": "null"}
    path.write_bytes(files.to_bytes(arrays, metadata))
    for verb in ("show", "summary"):
        assert_one_line(run(verb, path), str(path), words)


def test_what_show_refuses():
    assert_one_line(run("show", "didb_mcro"), "didb_mcro: no such", "did you mean 'didb_micro'?")
    assert_one_line(run("show", "didb_micro", "--block", 4), "block is 4; expected", "0 to 3")
    assert_one_line(run("show", "didb_micro", "--image-size", 30), "30; expected a multiple of")
    assert_one_line(run("show", "swin_micro", "--image-size", 30), "15 x 15; expected multiples")
