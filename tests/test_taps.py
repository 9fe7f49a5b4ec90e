"""Taps [SPEC 8.1]: the table, their ops, bits and whole numbers, and that listening is harmless."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from importlib import resources
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refimpl.models import Config, flatten
from refimpl.models.params import shapes
from tests import networks, oracles, strategies, tolerances

COVERING = networks.covering()
BIT, INT, REAL = "bit", "int", "real"
POPCOUNT = np.array([f"{byte:b}".count("1") for byte in range(256)])

# The op of a tap is the model's own arithmetic; only the split into steps differs.
REPLAY = 1e-12


class Tapped(NamedTuple):
    value: np.ndarray  # a copy
    same: np.ndarray  # the array that the listener was given
    op: Callable | None
    inputs: list[str]


class Listener:
    """Keeps everything it hears; insists on new names, and on inputs that it has heard before."""

    def __init__(self, images: np.ndarray):
        self.taps = {"input": Tapped(images, images, None, [])}

    def __call__(self, name, value, op, inputs):
        assert name not in self.taps, f"{name} came twice"
        for read in inputs:
            assert read in self.taps, f"{name} reads {read}, which was not there before"
        self.taps[name] = Tapped(np.copy(value), value, op, list(inputs))

    def __getitem__(self, name: str) -> np.ndarray:
        return self.taps[name].value

    def ops(self) -> dict[str, Tapped]:
        """Everything that was computed: all but what was given."""
        return {name: tapped for name, tapped in self.taps.items() if tapped.op is not None}


def listen(network: networks.Network) -> Listener:
    listener = Listener(network.images)
    network.run(tap=listener)
    return listener


# The table


def projection(name: str, inputs: int, outputs: int, B: int, config: Config) -> dict:
    """One projection and, in the full stage, its weights."""
    rows = (B, config.tokens)
    found = {f"{name}.z": (REAL, (*rows, inputs))}
    if config.binarize != "none":
        found[f"{name}.bit"] = (BIT, (*rows, inputs))
    if config.binarize == "full":
        found |= {
            f"{name}.int": (INT, (*rows, outputs)),
            f"{name}.weight.z": (REAL, (outputs, inputs)),
            f"{name}.weight.bit": (BIT, (outputs, inputs)),
            f"{name}.weight.scale": (REAL, (outputs,)),
        }
    return found | {f"{name}.{end}": (REAL, (*rows, outputs)) for end in ("linear", "norm", "out")}


def binary_block(name: str, B: int, config: Config) -> dict:
    N, C, hidden = config.tokens, config.dim, config.mlp_ratio * config.dim
    maps, context = (B, config.heads, N, N), (B, config.heads, N, config.head_dim)
    haar, binary = config.similarity == "haar", config.binarize != "none"
    found = {}
    for end in ("norm1.out", "mid", "norm2.out", "out", "attn.norm.out", "attn.out"):
        found[f"{name}.{end}"] = (REAL, (B, N, C))
    for t in ("q_low", "k_low", "q_high", "k_high", "v") if haar else ("q", "k", "v"):
        found |= projection(f"{name}.attn.{t}", C, C, B, config)
        shape = (B, config.heads, config.head_dim, N) if t == "v" else context
        found[f"{name}.attn.{t}.head_z"] = (REAL, shape)
        if binary:
            found[f"{name}.attn.{t}.head_bit"] = (BIT, shape)
    for band in ("low", "high") if haar else ():
        found[f"{name}.attn.{band}"] = (REAL, (B, N, C))
    if config.attention == "differential":
        found[f"{name}.attn.neighbour_mean"] = (REAL, (B, N, C))
    found |= {f"{name}.attn.scores": (REAL, maps), f"{name}.attn.context": (REAL, context)}
    if binary:
        for scores in ("scores_low", "scores_high") if haar else ("scores",):
            found[f"{name}.attn.{scores}.int"] = (INT, maps)
        found |= {
            f"{name}.attn.prob.z": (REAL, maps),
            f"{name}.attn.prob.bit": (BIT, maps),
            f"{name}.attn.context.int": (INT, context),
        }
    else:
        found[f"{name}.attn.prob"] = (REAL, maps)
    found |= projection(f"{name}.attn.proj", C, C, B, config)
    found |= projection(f"{name}.mlp.up", C, hidden, B, config)
    return found | projection(f"{name}.mlp.down", hidden, C, B, config)


def real_block(name: str, B: int, config: Config) -> dict:
    N, C, hidden = config.tokens, config.dim, config.mlp_ratio * config.dim
    maps = (B, config.heads, N, N)
    sizes = {
        "norm1.out": (B, N, C),
        "attn.qkv.out": (B, N, 3 * C),
        "attn.scores": maps,
        "attn.prob": maps,
        "attn.context": (B, config.heads, N, config.head_dim),
        "attn.proj.out": (B, N, C),
        "mid": (B, N, C),
        "norm2.out": (B, N, C),
        "mlp.fc1.out": (B, N, hidden),
        "mlp.gelu.out": (B, N, hidden),
        "mlp.fc2.out": (B, N, C),
        "out": (B, N, C),
    }
    return {f"{name}.{end}": (REAL, shape) for end, shape in sizes.items()}


def forward_table(config: Config, B: int) -> dict:
    """Tap -> class and shape."""
    N, C = config.tokens, config.dim
    found = {
        "patch_embed.out": (REAL, (B, config.grid[0] * config.grid[1], C)),
        "tokens": (REAL, (B, N, C)),
        "norm.out": (REAL, (B, N, C)),
        "logits": (REAL, (B, *config.logits_shape)),
    }
    if config.decoder == "linear":
        found["head.out"] = (REAL, (B, math.prod(config.grid), config.num_classes))
    block = binary_block if config.block == "binary" else real_block
    for i in range(config.depth):
        found |= block(f"blocks.{i}", B, config)
    return found


def backward_table(config: Config, B: int) -> dict:
    """Gradients: of reals, of signs (under the name of the bit), of parameters, of the image."""
    found = {"grads/input": (REAL, (B, config.channels, *config.image_size))}
    for name, (kind, shape) in forward_table(config, B).items():
        if name.endswith(".prob.z"):
            found[f"grads/{name.removesuffix('.z')}"] = (REAL, shape)
        elif kind != INT and ".weight." not in name and not name.endswith(".prob.bit"):
            found[f"grads/{name}"] = (REAL, shape)
    return found | {f"grads/param.{path}": (REAL, shape) for path, shape in shapes(config).items()}


@pytest.mark.parametrize("dtype", strategies.FLOATS, ids=str)
@pytest.mark.parametrize("name", COVERING)
def test_the_table(name, dtype):
    config = COVERING[name]
    network = networks.make(config, seed=1, dtype=dtype)
    B = len(network.images)
    taps = listen(network).taps
    dtypes = {BIT: np.dtype(bool), INT: np.dtype(np.int32), REAL: dtype}
    table = {
        "input": (REAL, network.images.shape),
        **forward_table(config, B),
        **backward_table(config, B),
    }
    assert {tap: (t.value.dtype, t.value.shape) for tap, t in taps.items()} == {
        tap: (dtypes[kind], shape) for tap, (kind, shape) in table.items()
    }


def test_the_table_by_hand():
    """Some lines of it as literals: a network of 3 images, 7 tokens, 2 heads of 5, ratio 3."""
    config = networks.small(**networks.DIDB)
    taps = listen(networks.make(config, seed=1)).taps
    for name, shape, dtype in (
        ("patch_embed.out", (3, 6, 10), float),
        ("tokens", (3, 7, 10), float),
        ("blocks.1.attn.high", (3, 7, 10), float),
        ("blocks.0.attn.q_low.head_bit", (3, 2, 7, 5), bool),
        ("blocks.0.attn.v.head_bit", (3, 2, 5, 7), bool),
        ("blocks.1.attn.scores_high.int", (3, 2, 7, 7), np.int32),
        ("blocks.1.attn.prob.bit", (3, 2, 7, 7), bool),
        ("blocks.1.attn.context.int", (3, 2, 7, 5), np.int32),
        ("blocks.1.mlp.down.bit", (3, 7, 30), bool),
        ("blocks.1.mlp.down.int", (3, 7, 10), np.int32),
        ("blocks.1.mlp.up.weight.bit", (30, 10), bool),
        ("logits", (3, 4), float),
        ("grads/blocks.1.attn.v.head_bit", (3, 2, 5, 7), float),
        ("grads/blocks.0.attn.prob", (3, 2, 7, 7), float),
        ("grads/param.blocks.0.attn.proj.rprelu.token_shift_out", (7,), float),
        ("grads/input", (3, 3, 4, 6), float),
    ):
        assert (taps[name].value.shape, taps[name].value.dtype) == (shape, dtype), name


@pytest.mark.parametrize("name", ["small_tie_free", "small_adversarial"])
def test_order_of_a_shipped_bundle(name):
    """Forward, backward and parameters, as the index of a bundle has them."""
    folder = resources.files("refimpl.weights") / "golden" / name
    config = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["config"]
    with (folder / "index.csv").open(encoding="utf-8", newline="") as file:
        expected = [row["name"] for row in csv.DictReader(file)]
    heard = listen(networks.make(Config.from_json(config), 1)).taps
    assert [tap for tap in heard if tap not in ("input", "grads/logits")] == [
        tap for tap in expected if tap not in ("input", "grads/logits")
    ]
    assert any(tap.startswith("grads/param.") for tap in expected)


def test_order_where_bundles_have_no_windows_and_no_pyramid():
    """The table of a position bias behind both products; a level of the pyramid after another."""
    config = networks.swin(depth=(1, 1), decoder="fpn")
    names = list(listen(networks.make(config, 1)).taps)
    assert [name for name in names if name.startswith("decoder.")] == [
        f"decoder.{end}" for end in (
            "0.norm.out", "0.lateral.out", "1.lateral.out", "0.top", "0.smooth.out", "1.smooth.out",
            "sum", "gelu.out",
        )
    ]  # fmt: skip
    assert [name for name in names if name.startswith("grads/decoder.")] == [
        f"grads/decoder.{end}" for end in (
            "gelu.out", "sum", "0.smooth.out", "0.top", "0.lateral.out", "0.norm.out",
            "1.smooth.out", "1.lateral.out",
        )
    ]  # fmt: skip
    below = names[names.index("grads/blocks.0.attn.scores") :][:6]
    assert below == [
        "grads/blocks.0.attn.scores", "grads/blocks.0.attn.q.head_bit",
        "grads/blocks.0.attn.k.head_bit", "grads/param.blocks.0.attn.position_bias",
        "grads/blocks.0.attn.q.head_z", "grads/param.blocks.0.attn.q_move",
    ]  # fmt: skip
    merge = names[names.index("grads/param.merges.0.norm.bias") :]
    assert merge.index("grads/merges.0.patches") == 1


# Ops


def assert_replayed(name: str, tapped: Tapped, heard: Listener) -> None:
    """The op of `tapped` on what was heard gives what was heard."""
    value, replayed = heard[name], tapped.op(*(heard[i] for i in tapped.inputs))
    assert (replayed.dtype, replayed.shape) == (value.dtype, value.shape), name
    if value.dtype.kind == "f":
        # a gradient may cancel down to the rounding of the gradients that it is a sum of
        floors = [np.abs(heard[i]).max() for i in tapped.inputs if i.startswith("grads/")]
        worst = tolerances.disagreement(replayed, value, max(floors, default=0.0))
        oracles.note("taps, replayed against tapped", worst, name)
        assert worst <= REPLAY, f"{name}: {worst:.1e}"
    else:
        np.testing.assert_array_equal(replayed, value, err_msg=name)


@given(networks.all_configs(), strategies.seeds())
def test_the_op_of_a_tap_on_its_inputs_gives_its_value(config, seed):
    heard = listen(networks.make(config, seed))
    for name, tapped in heard.ops().items():
        assert_replayed(name, tapped, heard)


@given(networks.all_configs(), strategies.seeds())
def test_an_op_holds_parameters_and_no_activations(config, seed):
    """The ops of one run, on what another run with the same parameters has tapped."""
    network = networks.make(config, seed)
    other = networks.make(config, seed + 1)._replace(params=network.params)
    heard = listen(other)
    for name, tapped in listen(network).ops().items():
        assert_replayed(name, tapped, heard)


@given(networks.configs(), st.sampled_from(((1, 2), (4, 3))), strategies.seeds())
def test_images_of_another_size(config, grid, seed):
    """Values are those of the resized network, gradients those of the parameters as given."""
    network = networks.with_images_of(networks.make(config, seed), grid)
    heard = listen(network)
    model, _ = network.model.resized(network.params, network.images.shape[2:])
    B = len(network.images)
    table = {
        "input": (REAL, network.images.shape),
        **forward_table(model.config, B),
        **backward_table(model.config, B),
        **{f"grads/param.{path}": (REAL, shape) for path, shape in shapes(config).items()},
    }
    assert {tap: t.value.shape for tap, t in heard.taps.items()} == {
        tap: shape for tap, (_, shape) in table.items()
    }
    for name, tapped in heard.ops().items():
        assert_replayed(name, tapped, heard)
    for path, gradient in network.run()[2].items():
        np.testing.assert_array_equal(heard[f"grads/param.{path}"], gradient, err_msg=path)


def test_what_was_given_has_no_op():
    network = networks.make(COVERING["didb-pool-cls"], seed=2)
    heard = listen(network)
    assert set(heard.taps) - set(heard.ops()) == {"input", "grads/logits"}
    np.testing.assert_array_equal(heard["grads/logits"], network.dlogits)


# Bits and whole numbers


@given(networks.configs(block="binary"), strategies.seeds(), strategies.floats())
def test_bits_are_comparisons_with_their_threshold(config, seed, dtype):
    heard = listen(networks.make(config, seed, dtype))
    bits = [name for name, tapped in heard.taps.items() if tapped.value.dtype == bool]
    assert bool(bits) == (config.binarize != "none")
    for name in bits:
        z = heard[f"{name.removesuffix('bit')}z"]
        expected = z > 0.5 if name.endswith(".prob.bit") else z >= 0
        np.testing.assert_array_equal(heard[name], expected, err_msg=name)


@pytest.mark.parametrize("name", ["didb-pool-cls", "react-binarize-activations"])
def test_bits_at_their_threshold(name):
    """The ops on 0, -0 and 1/2, which random values never hit."""
    tiny, above = np.nextafter(0, 1), np.nextafter(0.5, 1)
    for tap, tapped in listen(networks.make(COVERING[name], seed=4)).ops().items():
        if tap.endswith(".prob.bit"):
            assert tapped.op(np.array([-0.0, 0.5, above, 1.5])).tolist() == [0, 0, 1, 1], tap
        elif tapped.value.dtype == bool:
            assert tapped.op(np.array([-tiny, -0.0, 0.0, tiny])).tolist() == [0, 1, 1, 1], tap


def packed(bit: np.ndarray) -> np.ndarray:
    """[SPEC 1] Along the last axis, least significant bit first, rows of whole 64-bit words."""
    padding = [(0, 0)] * (bit.ndim - 1) + [(0, -bit.shape[-1] % 64)]
    return np.packbits(np.pad(bit, padding), axis=-1, bitorder="little")


def popcount(words: np.ndarray) -> np.ndarray:
    return POPCOUNT[words].sum(axis=-1)


def binary_binary(a: np.ndarray, w: np.ndarray) -> np.ndarray:
    """K - 2 popcount(a ^ w) for a (…, M, K), w (…, N, K)."""
    differ = packed(a)[..., :, None, :] ^ packed(w)[..., None, :, :]
    return a.shape[-1] - 2 * popcount(differ)


def boolean_binary(a: np.ndarray, v: np.ndarray) -> np.ndarray:
    """2 popcount(a & v) - popcount(a) for a (…, M, K), v (…, N, K)."""
    both = packed(a)[..., :, None, :] & packed(v)[..., None, :, :]
    return 2 * popcount(both) - popcount(packed(a))[..., :, None]


@given(networks.configs(block="binary", binarize="full"), strategies.seeds(), strategies.floats())
def test_whole_numbers_are_popcounts_of_the_bits(config, seed, dtype):
    heard = listen(networks.make(config, seed, dtype))
    names = [name for name, tapped in heard.taps.items() if tapped.value.dtype == np.int32]
    for name in names:
        owner, what = name.removesuffix(".int").rsplit(".", 1)
        if what == "context":
            bit, value = heard[f"{owner}.prob.bit"], heard[f"{owner}.v.head_bit"]
            expected = boolean_binary(bit, value)
            if config.context == "differences":  # each weight takes a token's own value away
                own = 2 * value.swapaxes(-1, -2).astype(int) - 1
                expected = expected - popcount(packed(bit))[..., None] * own
        elif what.startswith("scores"):
            q, k = (f"{owner}.{what.replace('scores', t)}.head_bit" for t in "qk")
            expected = binary_binary(heard[q], heard[k])
        else:
            projection = f"{owner}.{what}"
            expected = binary_binary(heard[f"{projection}.bit"], heard[f"{projection}.weight.bit"])
        np.testing.assert_array_equal(heard[name], expected, err_msg=name)
    sources = 8 if config.similarity == "haar" else 6
    scores = 2 if config.similarity == "haar" else 1
    assert len(names) == config.depth * (sources + scores + 1)


def test_a_product_longer_than_a_word():
    """K of 64, 65 and 130: no tail, a tail of one bit, two words and a tail."""
    rng = np.random.default_rng(0)
    for K in (64, 65, 130):
        a, w = rng.random((3, K)) < 0.5, rng.random((5, K)) < 0.5
        signs_a, signs_w = 2 * a.astype(int) - 1, 2 * w.astype(int) - 1
        np.testing.assert_array_equal(binary_binary(a, w), signs_a @ signs_w.T)
        np.testing.assert_array_equal(boolean_binary(a, w), a.astype(int) @ signs_w.T)
    config = networks.small(image_size=(2, 130), dim=65, heads=5, mlp_ratio=2)
    heard = listen(networks.make(config, seed=3))
    for name, a, w, formula in (
        ("attn.q.int", "attn.q.bit", "attn.q.weight.bit", binary_binary),
        ("mlp.down.int", "mlp.down.bit", "mlp.down.weight.bit", binary_binary),
        ("attn.context.int", "attn.prob.bit", "attn.v.head_bit", boolean_binary),
    ):
        bits = (heard[f"blocks.1.{bit}"] for bit in (a, w))
        np.testing.assert_array_equal(heard[f"blocks.1.{name}"], formula(*bits), err_msg=name)


# Listening


@given(networks.all_configs(), strategies.seeds(), strategies.floats())
def test_listening_changes_nothing(config, seed, dtype):
    """Not the results, not in one direction only, and nothing that was tapped is written to."""
    network = networks.make(config, seed, dtype)
    logits, dimages, grads = network.run()
    expected = [logits, dimages, *grads.values()]
    heard = Listener(network.images)
    loud, cache = network.model.forward(network.params, network.images, tap=heard)
    loud_backward = network.model.backward(network.dlogits, cache, tap=heard)
    silent_backward = network.model.backward(network.dlogits, cache)
    _, cache = network.model.forward(network.params, network.images)
    names = []
    only_backward = network.model.backward(
        network.dlogits, cache, tap=lambda name, *rest: names.append(name)
    )
    for dimages, grads in (loud_backward, silent_backward, only_backward):
        for a, b in zip([loud, dimages, *flatten(grads).values()], expected, strict=True):
            np.testing.assert_array_equal(a, b)
    assert names == [name for name in heard.taps if name.startswith("grads/")]
    for name, tapped in heard.taps.items():
        np.testing.assert_array_equal(tapped.same, tapped.value, err_msg=name)


@given(networks.all_configs(), strategies.seeds())
def test_tapped_ends_are_the_results(config, seed):
    network = networks.make(config, seed)
    heard = Listener(network.images)
    logits, dimages, grads = network.run(tap=heard)
    np.testing.assert_array_equal(heard["logits"], logits)
    np.testing.assert_array_equal(heard["grads/input"], dimages)
    for path, gradient in grads.items():
        np.testing.assert_array_equal(heard[f"grads/param.{path}"], gradient, err_msg=path)
