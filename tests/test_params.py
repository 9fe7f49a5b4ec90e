"""Parameters: names and shapes [SPEC 6.4], start [SPEC 6.6], the tree and its flat form."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import refimpl
from refimpl.conventions import DtypeError, ShapeError
from refimpl.models import create_model, flatten, unflatten
from refimpl.models.binary import network as listed
from refimpl.models.params import decayed, shapes
from tests import networks, strategies

# The tree

LEAVES = st.integers(0, 9).map(np.float64)
KEYS = st.text("abz019_", min_size=1, max_size=3)
TREES = st.recursive(
    st.dictionaries(KEYS, LEAVES, min_size=1, max_size=3),
    lambda trees: st.dictionaries(KEYS, trees | LEAVES, min_size=1, max_size=3),
    max_leaves=12,
)


@given(TREES)
def test_unflatten_undoes_flatten(tree):
    flat = flatten(tree)
    assert unflatten(flat) == tree
    assert list(flatten(unflatten(flat))) == list(flat)
    assert not any(isinstance(value, dict) for value in flat.values())


def test_dotted_names():
    a, b, c = (np.full(2, i) for i in range(3))
    tree = {"blocks": {"0": {"move": a}, "10": {"move": b}}, "norm": c}
    flat = {"blocks.0.move": a, "blocks.10.move": b, "norm": c}
    assert flatten(tree) == flat and unflatten(flat) == tree
    assert flatten(tree)["norm"] is c
    assert flatten({}) == {} == unflatten({})
    twice = {"norm.weight": a, "norm": {"weight": b}}
    for tree in (twice, dict(reversed(twice.items()))):
        with pytest.raises(ShapeError, match=r"^norm\.weight: given twice; expected one value"):
            flatten(tree)
    assert (refimpl.flatten, refimpl.unflatten) == (flatten, unflatten)


# Names and shapes: one network of each family, 6 patches of 2 x 2 pixels, C = 10, hidden = 30


def projection(name: str, inputs: int, outputs: int, *tokens: int) -> dict[str, tuple]:
    """One of section 5; `tokens` where it has token shifts."""
    found = {f"{name}.move": (inputs,), f"{name}.weight": (outputs, inputs)}
    found |= dict.fromkeys((f"{name}.norm.weight", f"{name}.norm.bias"), (outputs,))
    return found | rprelu(f"{name}.rprelu", outputs, *tokens)


def rprelu(name: str, channels: int, *tokens: int) -> dict[str, tuple]:
    found = dict.fromkeys((f"{name}.{k}" for k in ("shift_in", "slope", "shift_out")), (channels,))
    if tokens:
        found |= dict.fromkeys((f"{name}.token_shift_in", f"{name}.token_shift_out"), tokens)
    return found


def below(prefix: str, found: dict[str, tuple]) -> dict[str, tuple]:
    return {f"{prefix}.{name}": shape for name, shape in found.items()}


SHELL = {
    "patch_embed.weight": (10, 3, 2, 2), "patch_embed.bias": (10,),
    "norm.weight": (10,), "norm.bias": (10,), "head.weight": (4, 10), "head.bias": (4,),
}  # fmt: skip
NORMS = {"norm1.weight": (10,), "norm1.bias": (10,), "norm2.weight": (10,), "norm2.bias": (10,)}

DIDB = {
    **NORMS,
    **projection("attn.q_low", 10, 10, 7), **projection("attn.k_low", 10, 10, 7),
    **projection("attn.q_high", 10, 10, 7), **projection("attn.k_high", 10, 10, 7),
    **projection("attn.v", 10, 10, 7),
    "attn.q_low_move": (10,), "attn.k_low_move": (10,), "attn.q_high_move": (10,),
    "attn.k_high_move": (10,), "attn.v_move": (10,),
    "attn.alpha": (2, 1, 1), "attn.band_weight": (2, 2),
    "attn.shortcut": (10,), "attn.neighbour": (10,),
    "attn.norm.weight": (10,), "attn.norm.bias": (10,), **rprelu("attn.rprelu", 10, 7),
    **projection("attn.proj", 10, 10, 7),
    "scale1.alpha": (10,), "scale1.beta": (10,), "scale2.alpha": (10,), "scale2.beta": (10,),
    **projection("mlp.up", 10, 30, 7), **projection("mlp.down", 30, 10, 7),
}  # fmt: skip
REACT = {
    **NORMS,
    **projection("attn.q", 10, 10), **projection("attn.k", 10, 10), **projection("attn.v", 10, 10),
    "attn.q_move": (10,), "attn.k_move": (10,), "attn.v_move": (10,), "attn.alpha": (),
    "attn.norm.weight": (10,), "attn.norm.bias": (10,), **rprelu("attn.rprelu", 10),
    **projection("attn.proj", 10, 10),
    **projection("mlp.up", 10, 30), **projection("mlp.down", 30, 10),
}  # fmt: skip
DEIT = {
    **NORMS,
    "attn.qkv.weight": (30, 10), "attn.qkv.bias": (30,),
    "attn.proj.weight": (10, 10), "attn.proj.bias": (10,),
    "mlp.fc1.weight": (30, 10), "mlp.fc1.bias": (30,),
    "mlp.fc2.weight": (10, 30), "mlp.fc2.bias": (10,),
}  # fmt: skip
CLS = {"cls_token": (1, 1, 10), "pos_embed": (1, 7, 10)}
MEAN = {"pos_embed": (1, 6, 10)}
SHAPES = {
    "didb": (networks.small(**networks.DIDB, alpha_scope="head", layer_scale=True), CLS, DIDB),
    "react": (networks.small(pool="mean"), MEAN, REACT),
    "deit": (networks.small(block="real"), CLS, DEIT),
}


@pytest.mark.parametrize("name", SHAPES)
def test_names_and_shapes(name):
    config, position, block = SHAPES[name]
    expected = SHELL | position | below("blocks.0", block) | below("blocks.1", block)
    assert shapes(config) == expected
    params = networks.make(config, seed=0).model.init(np.random.default_rng(0))
    assert {path: value.shape for path, value in flatten(params).items()} == expected
    assert list(flatten(params)) == list(shapes(config))
    assert set(params["blocks"]) == {"0", "1"}


@pytest.mark.parametrize("name, switch, paths", [
    ("similarity", "haar", {"attn.band_weight"}),
    ("attention", "differential", {"attn.shortcut", "attn.neighbour"}),
    ("layer_scale", True, {"scale1.alpha", "scale1.beta", "scale2.alpha", "scale2.beta"}),
])  # fmt: skip
def test_what_a_switch_brings(name, switch, paths):
    with_it, without = (shapes(networks.small(**fields)) for fields in ({name: switch}, {}))
    new = {path.removeprefix("blocks.0.") for path in set(with_it) - set(without) if ".0." in path}
    assert {path for path in new if "_low" not in path and "_high" not in path} == paths


@given(networks.configs(block="binary"))
def test_stages_have_the_same_parameters(config):
    for stage in networks.SWITCHES["binarize"]:
        assert shapes(config.replace(binarize=stage)) == shapes(config)


def test_matrices_of_real_layers():
    for name in ("didb", "react"):
        assert decayed(listed(SHAPES[name][0]).parameters) == {"patch_embed.weight", "head.weight"}
    assert decayed(listed(SHAPES["deit"][0]).parameters) == {
        "patch_embed.weight", "head.weight",
        "blocks.0.attn.qkv.weight", "blocks.0.attn.proj.weight",
        "blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc2.weight",
        "blocks.1.attn.qkv.weight", "blocks.1.attn.proj.weight",
        "blocks.1.mlp.fc1.weight", "blocks.1.mlp.fc2.weight",
    }  # fmt: skip


# The start

NORMAL = "normal"


def start(path: str, tokens: int) -> object:
    """[SPEC 6.6], by the end of a dotted name."""
    for end, value in (
        ("scale1.alpha", 0.1), ("scale2.alpha", 0.1), ("attn.alpha", 1 / tokens),
        ("attn.band_weight", 0.5), ("attn.shortcut", 1.0), ("attn.neighbour", 0.0),
        ("position_bias", NORMAL),
        ("rprelu.slope", 0.25), ("move", 0.0), ("beta", 0.0), ("bias", 0.0),
        ("shift_in", 0.0), ("shift_out", 0.0),
        ("norm.weight", 1.0), ("norm1.weight", 1.0), ("norm2.weight", 1.0),
        ("weight", NORMAL), ("cls_token", NORMAL), ("pos_embed", NORMAL),
    ):  # fmt: skip
        if path.endswith(end):
            return value
    raise AssertionError(f"{path}: the spec says nothing about its start")


@pytest.mark.parametrize("dtype", strategies.FLOATS, ids=str)
@pytest.mark.parametrize("name", ["didb_micro", "react_micro", "deit_micro", "didb_swin_micro"])
def test_start(name, dtype):
    model = create_model(name)
    if name == "didb_micro":
        model = model.replace(layer_scale=True, alpha_scope="head")
    for path, value in flatten(model.init(np.random.default_rng(0), dtype)).items():
        assert isinstance(value, np.ndarray) and value.dtype == dtype, path
        expected = start(path, tokens=49 if model.config.window else 50)
        if expected == NORMAL:
            assert value.any() and np.abs(value).max() <= dtype.type(0.04), path
        else:
            np.testing.assert_array_equal(value, np.full_like(value, expected), err_msg=path)


def test_normal_is_cut_at_two_deviations():
    """Of a deviation of 0.02 that leaves 0.8796 * 0.02; and values are cut, not clipped."""
    flat = flatten(create_model("deit_micro").init(np.random.default_rng(1), np.float64))
    values = np.concatenate([v.ravel() for p, v in flat.items() if start(p, 50) == NORMAL])
    assert values.size > 100_000
    assert np.abs(values).max() <= 0.04
    assert values.mean() == pytest.approx(0, abs=2e-4)
    assert values.std() == pytest.approx(0.017592, rel=5e-3)
    # shares of a truncated normal: within one deviation 0.6827 / 0.9545, beyond 1.9 of them 0.0125
    assert (np.abs(values) < 0.02).mean() == pytest.approx(0.7152, abs=5e-3)
    assert (np.abs(values) > 0.038).mean() == pytest.approx(0.0125, abs=2e-3)


@given(networks.all_configs(), strategies.seeds())
def test_the_same_generator_gives_the_same_start(config, seed):
    model = networks.make(config, seed=0).model
    first, second, other = (
        flatten(model.init(np.random.default_rng(s), np.float64)) for s in (seed, seed, seed + 1)
    )
    for path in first:
        np.testing.assert_array_equal(first[path], second[path])
    assert not np.array_equal(first["head.weight"], other["head.weight"])
    single = flatten(model.init(np.random.default_rng(seed)))
    for path, value in first.items():
        np.testing.assert_array_equal(single[path], value.astype(np.float32))


def test_matrices_do_not_repeat():
    flat = flatten(create_model("didb_micro").init(np.random.default_rng(2)))
    drawn = [v.ravel()[:8].tobytes() for p, v in flat.items() if start(p, 50) == NORMAL]
    assert len(set(drawn)) == len(drawn) > 30


@pytest.mark.parametrize("dtype", [np.float16, np.int32, complex])
def test_a_start_in_another_type(dtype):
    with pytest.raises(DtypeError, match="expected float32 or float64"):
        create_model("react_micro").init(np.random.default_rng(0), dtype)
