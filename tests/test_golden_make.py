"""Random, tie-free and adversarial bundles, and those in git [SPEC 8.1]."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from refimpl.conventions import GoldenFileError
from refimpl.golden import adversarial, bounds, compare, read, record, search, selfcheck
from refimpl.models import VisionTransformer, create_model, flatten, unflatten
from refimpl.models.params import shapes
from tests import golden_networks, make_golden_bundles, networks

FOLDER = make_golden_bundles.FOLDER
BUNDLES = list(make_golden_bundles.BUNDLES)
SMALL = make_golden_bundles.SMALL


# Random networks


@pytest.mark.parametrize("name", ["didb_micro", "react_micro", "deit_micro"])
def test_draw(name):
    config = create_model(name).config
    params, image = search.draw(config, 5)
    assert {p: v.shape for p, v in flatten(params).items()} == shapes(config)
    arrays = [*flatten(params).values(), image]
    assert {a.dtype for a in arrays} == {np.dtype(np.float32)}
    again, other = search.draw(config, 5), search.draw(config, 6)
    for path, value in flatten(params).items():
        np.testing.assert_array_equal(value, flatten(again[0])[path])
        assert not np.array_equal(value, flatten(other[0])[path])
        # a move of 0 would make ties of the high band's last patch
        assert np.all(value != 0), path
    np.testing.assert_array_equal(image, again[1])


def test_a_drawn_network_keeps_its_bits_mixed():
    config = create_model("didb_micro").config
    params, image = search.draw(config, 0)
    steps = bounds.reference(VisionTransformer(config), params, image).steps
    for name, step in steps.items():
        if step.value.dtype == bool:
            assert 0.05 < step.value.mean() < 0.95, name


# Tie-free


def ties(steps: dict, name: str) -> np.ndarray:
    return np.abs(steps[steps[name].z].value - steps[name].threshold)


def test_a_search_ends_with_margins_beyond_the_bounds():
    model = VisionTransformer(SMALL)
    params, image = search.draw(SMALL, 3)
    # one value next to 0: the first attempt fails
    x = bounds.reference(model, params, image).steps["blocks.1.norm1.out"].value
    flat = flatten(params)
    flat["blocks.1.attn.v.move"][4] = -x[0, 5, 4]
    params = unflatten(flat)
    assert not search.is_tie_free(model, params, image)
    found = search.tie_free(model, params, image, seed=2)
    assert found.attempts > 1 and found.seconds > 0
    assert found.images.shape == image.shape and found.images.dtype == np.float32
    reference = bounds.reference(model, params, found.images)
    free = bounds.Free(reference, bounds.UNITS["float32"])
    bits = [name for name, step in reference.steps.items() if step.value.dtype == bool]
    assert len(bits) > 20
    for name in bits:
        assert (ties(reference.steps, name) > free[name]).all(), name
    again = search.tie_free(model, params, image, seed=2)
    assert again.attempts == found.attempts
    np.testing.assert_array_equal(again.images, found.images)


def test_a_search_in_vain():
    model = VisionTransformer(SMALL)
    params, image = search.draw(SMALL, 3)
    x = bounds.reference(model, params, image).steps["blocks.1.norm1.out"].value
    params["blocks"]["1"]["attn"]["v"]["move"][4] = -x[0, 5, 4]
    with pytest.raises(GoldenFileError, match="no tie-free input among 1, .*; expected one"):
        search.tie_free(model, params, image, limit=1)


def test_weights_with_ties_have_no_tie_free_input():
    """Said at once, whatever the limit."""
    model, params, image = adversarial.case(0)
    with pytest.raises(GoldenFileError, match=r"blocks.0.attn.q_low.weight.bit: ties of weights"):
        search.tie_free(model, params, image, limit=10**9)


def test_real_networks_are_tie_free():
    model = create_model("deit_micro")
    params, image = search.draw(model.config, 0)
    assert search.tie_free(model, params, image).attempts == 1


# Adversarial


@pytest.fixture(scope="module", params=range(3))
def hard(request) -> dict[str, record.Step]:
    return bounds.reference(*adversarial.case(request.param)).steps


def count(mask: np.ndarray) -> int:
    return int(np.count_nonzero(mask))


def test_the_hard_cases_are_there(hard):
    z = hard["blocks.0.attn.q_low.z"].value
    assert count(z == 0) > 30 and count(z == 1) > 10 and count(z == -1) > 10
    z = hard["blocks.0.attn.v.z"].value
    assert count((z == 0) & np.signbit(z)) and count((z == 0) & ~np.signbit(z))
    assert count(hard["blocks.0.attn.q_high.z"].value == 0) > 30
    q = hard["blocks.0.attn.prob.z"].value
    assert count(q == 0) and count(q == 0.5) >= 256 and count(q == 1) >= 256 and q.max() > 1
    for name in ("blocks.0.attn.q_low", "blocks.0.mlp.down"):
        centred = hard[f"{name}.weight.z"].value
        assert count(np.abs(centred) == 1) >= 4 and count(centred == 0)
        assert count((centred == 0) & np.signbit(centred))
    for name, bit in (("k_high", 1), ("proj", 0)):
        assert (hard[f"blocks.0.attn.{name}.bit"].value == bit).all()
    assert (hard["blocks.0.attn.prob.bit"].value[:, 0] == 0).all()
    assert (hard["blocks.0.attn.prob.bit"].value[:, 1] == 1).all()


def test_the_hard_shapes_are_there():
    config = adversarial.CONFIG
    assert config.ste == "clip" and config.dim % 64 == 1 and config.tokens == 16
    rows, columns = config.grid
    assert rows % 2 and columns % 2 and rows != columns


def test_ties_are_ties_in_every_type_and_order():
    """What lies at a threshold does so without rounding: float32 has the same zeros."""
    model, params, image = adversarial.case(0)
    exact = bounds.reference(model, params, image).steps
    single = record.trace(model, params, image)
    for name, step in exact.items():
        if step.value.dtype == bool:
            np.testing.assert_array_equal(ties(single, name) == 0, ties(exact, name) == 0, name)
            np.testing.assert_array_equal(single[name].value, step.value, name)


@pytest.mark.parametrize("name, wrong, tap", [
    ("sign(0) = -1", lambda z: z > 0, "blocks.0.attn.q_low.bit"),
    ("sign(-0.0) = -1", lambda z: ~np.signbit(z), "blocks.0.attn.v.bit"),
    ("round half up", lambda z: z >= 0.5, "blocks.0.attn.prob.bit"),
])  # fmt: skip
def test_a_wrong_rule_at_the_threshold_shows(name, wrong, tap):
    bundle = read(FOLDER / "small_adversarial")
    name = bundle.reference.steps[tap].z
    z = bundle.value(name)
    candidate = {name: z, tap: wrong(z)}
    for mode in ("free", "replay"):
        lenient, strict = (compare(bundle, candidate, mode=mode, strict=s) for s in (False, True))
        assert lenient.outcome != "FAIL" and strict.outcome == "FAIL"
        assert (strict.first.name, strict.first.verdict) == (tap, "TIES-ONLY")


# In git


@pytest.mark.parametrize("name", BUNDLES)
def test_bundles_in_git_recompute(name):
    """From their own weights and input: no hard flip, and the tie-free one to the last bit."""
    bundle = read(FOLDER / name)
    found = selfcheck(FOLDER / name)
    assert found.passed and not found.missing
    assert [v.name for v in found.verdicts] == list(bundle.entries)
    exact = [v for v in found.verdicts if v.kind != "real"]
    assert len(exact) > 20 or bundle.model.config.block == "real"
    if bundle.manifest["kind"] == "tie-free":
        assert {v.verdict for v in exact} == {"EXACT"}


def test_the_tie_free_bundle_is_written_again_with_equal_bits(tmp_path):
    """The whole way: search, trace, packing, hashes of bits and whole numbers."""
    name = "small_tie_free"
    make_golden_bundles.BUNDLES[name](tmp_path / name)
    stored, again = read(FOLDER / name).entries, read(tmp_path / name).entries
    assert list(stored) == list(again)
    for tap, entry in stored.items():
        if entry.kind != "real":
            assert entry.sha256 == again[tap].sha256, tap
            assert entry.file == again[tap].file


def test_kinds_of_the_bundles_in_git():
    found = {name: read(FOLDER / name) for name in BUNDLES}
    assert [found[name].manifest["kind"] for name in BUNDLES] == [
        "tie-free", "adversarial", *["ordinary"] * 7,
    ]  # fmt: skip
    presets = {name: found[name].manifest["taps"] for name in BUNDLES}
    for name in ("small_tie_free", "small_adversarial", "small_batch", "small_deit"):
        assert presets[name] == "all"
    assert presets["didb_micro_mnist"] == presets["react_micro"] == "block"
    tie_free = found["small_tie_free"]
    assert {e.ties for e in tie_free.entries.values() if e.kind == "bit"} == {0}
    assert tie_free.manifest["search"]["attempts"] >= 1
    assert sum(e.ties or 0 for e in found["small_adversarial"].entries.values()) > 500
    for name in ("small_tie_free", "small_adversarial", "small_batch", "small_swin", "small_deit"):
        assert "grads/input" in found[name].entries
    assert found["didb_micro_mnist"].output.argmax() == 7


def test_sizes_of_the_small_network_differ():
    config = SMALL
    sizes = (
        config.patch_size, *config.grid, config.channels, config.dim, config.head_dim,
        config.mlp_ratio * config.dim, config.tokens, config.num_classes,
    )  # fmt: skip
    assert len(set(sizes)) == len(sizes)
    assert config.dim % 8 and config.grid[0] != config.grid[1]


def test_bundles_in_git_are_small():
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    on_disk = sum(-(-path.stat().st_size // 4096) * 4096 for path in files)
    assert on_disk < 14e6
    assert not [
        path for path in files if path.suffix not in (".npy", ".csv", ".json", ".safetensors")
    ]


def test_bundles_in_git_say_nothing_of_this_machine():
    for name in BUNDLES:
        text = (FOLDER / name / "manifest.json").read_text()
        assert not re.search(r"/(home|tmp|work|root)", text)
        assert json.loads(text)["format_version"] == "2"


@pytest.mark.parametrize("name", BUNDLES)
@pytest.mark.parametrize("mode", ["free", "replay"])
def test_single_precision_passes_with_the_bundles_in_git(name, mode):
    bundle = read(FOLDER / name)
    found = compare(bundle, golden_networks.taps(bundle, np.float32), mode=mode)
    assert found.passed, found.first
    if bundle.manifest["kind"] == "tie-free":
        assert {v.verdict for v in found.verdicts if v.kind != "real"} == {"EXACT"}


def test_trace_of_a_network_without_gradients():
    net = networks.make(networks.small(), 1)
    steps = record.trace(net.model, net.params, net.images)
    assert next(iter(steps)) == record.INPUT and list(steps)[-1] == "logits"
    step = steps["blocks.0.mlp.up.int"]
    np.testing.assert_array_equal(step.op(*(steps[i].value for i in step.inputs)), step.value)
