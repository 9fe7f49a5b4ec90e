"""Whole networks [SPEC 5, 6]: PyTorch, transformers, central differences, and what must not matter.

Everything that compares two programs does so in float64, where both agree on every bit (see
tests/networks.py): a flip would be a finding, so none is excused. The one test of float32 is the
one that explains flips.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from refimpl import ops
from refimpl.conventions import ConfigError, DtypeError, NonFiniteError, ShapeError
from refimpl.models import create_model, flatten, unflatten
from refimpl.models.params import shapes
from tests import networks, oracles, strategies, tolerances

# [SPEC 8.2] free_margin: how many units of roundoff, relative to the terms of a value, float32 may
# drift from float64 over the depth of a network before a bit flips.
FREE_MARGIN = 64

COVERING = networks.covering()
Outputs = tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]  # as Network.run returns them


def assert_close(kind: str, actual: Outputs, expected: Outputs) -> None:
    """Logits and every gradient, to the ladder; notes the worst of each."""
    largest = max(float(np.abs(g).max()) for g in (expected[1], *expected[2].values()))
    floor = tolerances.STRUCTURAL_ZERO * largest
    assert actual[2].keys() == expected[2].keys()
    _close(f"{kind}, logits", "logits", actual[0], expected[0], tolerances.NETWORK_LOGITS)
    gradients = [("images", actual[1], expected[1])]
    gradients += [(path, actual[2][path], expected[2][path]) for path in expected[2]]
    for path, ours, theirs in gradients:
        _close(f"{kind}, gradients", path, ours, theirs, tolerances.NETWORK_GRADIENTS, floor)


def _close(kind, where, actual, expected, tolerance, floor=0.0) -> None:
    assert actual.shape == expected.shape, f"{kind}: {where}"
    worst = tolerances.disagreement(actual, expected, floor)
    cancels = floor > np.abs(expected).max()
    oracles.note(f"{kind} that are 0" if cancels else kind, worst, where)
    assert worst <= tolerance, f"{kind}: {where}: {worst:.1e}, allowed {tolerance:.1e}"


def assert_equal(actual: Outputs, expected: Outputs) -> None:
    """The same bits."""
    assert actual[2].keys() == expected[2].keys()
    np.testing.assert_array_equal(actual[0], expected[0], err_msg="logits")
    np.testing.assert_array_equal(actual[1], expected[1], err_msg="gradient of the images")
    for path, gradient in expected[2].items():
        np.testing.assert_array_equal(actual[2][path], gradient, err_msg=path)


def backward(network: networks.Network, cache, dlogits: np.ndarray | None = None) -> tuple:
    """Gradients of the images and, by dotted name, of the parameters."""
    dimages, grads = network.model.backward(network.dlogits if dlogits is None else dlogits, cache)
    return dimages, flatten(grads)


# The mirror and transformers


def assert_mirrored(network: networks.Network) -> None:
    mirror = oracles.require("torch", "tests.torch_models.vit")
    config = network.model.config
    expected = mirror.run(
        config.to_json(), flatten(network.params), network.images, network.dlogits
    )
    assert_close(f"networks against PyTorch, {config.block} blocks", network.run(), expected)


@pytest.mark.parametrize("name", COVERING)
def test_each_value_of_each_field_against_torch(name):
    assert_mirrored(networks.make(COVERING[name], seed=1))


def test_the_covering_networks_cover():
    for field, values in {
        "pool": networks.POOLS,
        "decoder": networks.DECODERS,
        **networks.SWITCHES,
    }.items():
        assert {getattr(config, field) for config in COVERING.values()} == set(values)
    assert {config.block for config in COVERING.values()} == {"binary", "real"}


def test_random_networks_against_torch():
    """Combinations too; and the draws must have been worth it."""
    oracles.require("torch")
    seen, bits = defaultdict(set), defaultdict(list)

    def listen(name, value, op, inputs):
        if value.dtype == bool:
            bits[name.split(".", 2)[-1]].append(value.mean())

    # so many that hardly ever a value of a field is missed, in whatever profile
    @settings(max_examples=max(200, settings.default.max_examples))
    @given(networks.configs(), strategies.seeds())
    def check(config, seed):
        network = networks.make(config, seed)
        assert_mirrored(network)
        network.run(tap=listen)
        for field in ("block", "pool", "decoder", *networks.SWITCHES):
            seen[field].add(getattr(config, field))
        seen["grid"].add((config.grid[0] > 1) + (config.grid[1] > 1))

    check()
    assert seen.pop("block") == {"binary", "real"}
    assert seen.pop("grid") == {0, 1, 2}, "a point, a line, a rectangle"
    assert seen.pop("pool") == {"cls", "mean"}
    assert seen.pop("decoder") == {"none", "linear"}
    assert seen == {k: set(v) for k, v in networks.SWITCHES.items()}
    for name, means in bits.items():
        assert 0.2 < np.mean(means) < 0.8, f"{name} is hardly ever mixed: {np.mean(means):.2f}"


@settings(max_examples=20)
@given(networks.configs(block="binary", binarize="weights"), strategies.seeds())
def test_binary_weights_on_real_activations_against_torch(config, seed):
    assert_mirrored(networks.make(config, seed))


@settings(max_examples=15)
@given(networks.configs(block="real", pool="cls", decoder="none"), strategies.seeds())
def test_deit_against_transformers(config, seed):
    theirs = oracles.require("transformers", "tests.torch_models.transformers_vit")
    network = networks.make(config, seed)
    expected = theirs.run(
        config.to_json(), flatten(network.params), network.images, network.dlogits
    )
    assert_close("deit against transformers", network.run(), expected)


# Images of another size

OTHER_GRIDS = ((1, 1), (1, 2), (2, 2), (2, 3), (3, 2), (4, 3), (5, 7), (1, 6), (8, 1))


@pytest.mark.parametrize("name", COVERING)
def test_images_of_another_size_against_torch(name):
    assert_mirrored(networks.with_images_of(networks.make(COVERING[name], seed=1), (5, 4)))


@given(networks.configs(), st.sampled_from(OTHER_GRIDS), strategies.seeds())
def test_random_networks_on_images_of_another_size_against_torch(config, grid, seed):
    assert_mirrored(networks.with_images_of(networks.make(config, seed), grid, seed))


@settings(max_examples=15)
@given(
    networks.configs(block="real", pool="cls", decoder="none"),
    st.sampled_from(OTHER_GRIDS),
    strategies.seeds(),
)
def test_deit_on_images_of_another_size_against_transformers(config, grid, seed):
    theirs = oracles.require("transformers", "tests.torch_models.transformers_vit")
    config = config.replace(image_size=3 * config.patch_size)  # theirs takes it for a square
    network = networks.with_images_of(networks.make(config, seed), grid, seed)
    expected = theirs.run(
        config.to_json(), flatten(network.params), network.images, network.dlogits
    )
    assert_close("deit against transformers", network.run(), expected)


@given(networks.configs(), st.sampled_from(OTHER_GRIDS), strategies.seeds(), strategies.floats())
def test_a_resized_network_is_the_network_on_images_of_that_size(config, grid, seed, dtype):
    network = networks.with_images_of(networks.make(config, seed, dtype), grid, seed)
    size = network.images.shape[2:]
    model, params = network.model.resized(network.params, size)
    assert model == network.model.replace(image_size=size)
    resized = network._replace(model=model, params=params)
    logits, dimages, grads = network.run()
    expected = resized.run()
    np.testing.assert_array_equal(logits, expected[0])
    np.testing.assert_array_equal(dimages, expected[1])
    np.testing.assert_array_equal(network.model.predict(network.params, network.images), logits)
    given, kept = flatten(network.params), flatten(params)
    first = int(config.pool == "cls")
    for path, gradient in expected[2].items():
        if path == "pos_embed" or ".token_shift_" in path:
            assert grid == config.grid or kept[path] is not given[path]
            axis = 1 if path == "pos_embed" else 0
            for a, b in ((given[path], kept[path]), (gradient, grads[path])):
                of_class = [x.take(range(first), axis) for x in (a, b)]
                np.testing.assert_array_equal(*of_class, err_msg=path)
        elif path.endswith("attn.alpha"):
            ratio = dtype.type(config.tokens / model.config.tokens)
            np.testing.assert_array_equal(kept[path], given[path] * ratio, err_msg=path)
            np.testing.assert_array_equal(grads[path], gradient * ratio, err_msg=path)
        else:
            assert kept[path] is given[path]
            np.testing.assert_array_equal(grads[path], gradient, err_msg=path)


def test_a_side_says_that_the_image_is_a_square(network):
    model, params = network.model.resized(network.params, 8)
    assert model.config.image_size == (8, 8)
    assert params["pos_embed"].shape == (1, 17, 10)
    assert params["blocks"]["0"]["attn"]["rprelu"]["token_shift_in"].shape == (17,)


def test_networks_of_two_sizes_take_turns():
    """Two forwards, then two backwards: a cache knows the size it was made with."""
    small = networks.make(networks.small(**networks.DIDB), seed=5)
    large = networks.with_images_of(small, (4, 5))
    both = small, large
    expected = [n.run() for n in both]
    runs = [n.model.forward(n.params, n.images) for n in both]
    networks.freeze(runs)
    for i in (1, 0, 1):
        logits, cache = runs[i]
        assert_equal((logits, *backward(both[i], cache)), expected[i])


@pytest.mark.parametrize("name", ["didb_tiny", "react_tiny"])
def test_full_size_against_torch(name):
    """224 x 224 pixels and 12 blocks, one image, all parameters at random."""
    assert_mirrored(networks.make(create_model(name).config, seed=2, batch=1))


# Central differences


@given(networks.configs(block="real"), strategies.seeds())
def test_deit_against_central_differences(config, seed):
    assert_slope(networks.make(config, seed))


@given(networks.configs(block="binary", binarize="none"), strategies.seeds())
def test_stage_none_against_central_differences(config, seed):
    """The whole network without thresholds: what is left is smooth but for the kink of RPReLU."""
    assert_slope(networks.make(config, seed))


def assert_slope(network: networks.Network, step: float = 1e-6) -> None:
    """The slope of the loss along one random direction of all parameters and the image at once."""
    model, flat = network.model, flatten(network.params)
    rng = np.random.default_rng(0)
    direction = {path: rng.standard_normal(value.shape) for path, value in flat.items()}
    for path in direction:
        if path.endswith("band_weight") and model.config.band_weights == "fixed":
            direction[path] *= 0  # it does not learn: its gradient is declared to be 0
    of_image = rng.standard_normal(network.images.shape)

    def loss(t: float) -> tuple[float, list[np.ndarray]]:
        sides: list[np.ndarray] = []
        moved = unflatten({path: value + t * direction[path] for path, value in flat.items()})
        images = network.images + t * of_image
        logits = model.predict(moved, images, backend=noting_sides(sides))
        return float((logits * network.dlogits).sum()), sides

    (above, sides_above), (below, sides_below) = loss(step), loss(-step)
    # a step across the kink of an RPReLU has no slope to compare
    assume(all(np.array_equal(a, b) for a, b in zip(sides_above, sides_below, strict=True)))
    _, dimages, grads = network.run()
    terms = [(of_image * dimages).sum(), *((direction[p] * grads[p]).sum() for p in grads)]
    size = math.sqrt(sum(float((g**2).sum()) for g in (dimages, *grads.values())))
    worst = tolerances.disagreement(np.sum(terms), np.array((above - below) / (2 * step)), size)
    oracles.note("networks against central differences", worst, model.config.block)
    assert worst <= tolerances.FINITE_DIFFERENCE


def noting_sides(sides: list[np.ndarray]) -> SimpleNamespace:
    """refimpl.ops, noting for every value that an RPReLU sees on which side of its kink it lies."""

    def forward(*args, **kwargs):
        y, cache = ops.rprelu.forward(*args, **kwargs)
        sides.append(cache.shifted > 0)
        return y, cache

    everything = {name: getattr(ops, name) for name in ops.__all__}
    return SimpleNamespace(**{**everything, "rprelu": SimpleNamespace(forward=forward)})


# Switches and stages


@given(networks.configs(block="binary", similarity="plain", attention="plain", rprelu="channel"),
       strategies.seeds())  # fmt: skip
def test_didb_with_all_switches_off_is_react(config, seed):
    network = networks.make(config, seed)
    off = {"similarity": "plain", "attention": "plain", "rprelu": "channel"}
    fields = {k: v for k, v in config.to_json().items() if k not in (*off, "block")}
    didb = create_model("didb_micro", **fields, **off)
    react = create_model("react_micro", **fields)
    expected = network._replace(model=react).run()
    assert_equal(network._replace(model=didb).run(), expected)


NEUTRAL = {
    "attention": ("differential", {"attn.shortcut": 1, "attn.neighbour": 0}),
    "rprelu": ("token", {"token_shift_in": 0, "token_shift_out": 0}),
    "layer_scale": (True, {"scale1.alpha": 1, "scale1.beta": 0,
                           "scale2.alpha": 1, "scale2.beta": 0}),
}  # fmt: skip


@pytest.mark.parametrize("field", NEUTRAL)
@given(networks.configs(block="binary"), strategies.seeds())
def test_a_switch_at_neutral_parameters_changes_nothing(field, config, seed):
    value, neutral = NEUTRAL[field]
    off = {"attention": "plain", "rprelu": "channel", "layer_scale": False}[field]
    on = networks.make(config.replace(**{field: value}), seed)
    on = on._replace(params=networks.with_values(on.params, neutral))
    without = on.model.replace(**{field: off})
    kept = flatten(without.init(np.random.default_rng(0)))
    flat = flatten(on.params)
    expected = on._replace(model=without, params=unflatten({p: flat[p] for p in kept})).run()
    logits, dimages, grads = on.run()
    assert len(grads) > len(kept)
    assert_equal((logits, dimages, {path: grads[path] for path in kept}), expected)


@given(networks.configs(block="binary", similarity="haar", haar_cls="low"), strategies.seeds())
def test_haar_on_one_patch_with_a_silent_high_band_changes_nothing(config, seed):
    """A point has no differences: the high band is 0, and is kept at 0 by neutral parameters."""
    config = config.replace(image_size=config.patch_size, haar_mode="edge", rprelu="channel")
    on = networks.make(config, seed)
    silent = {
        f"{t}_high.{leaf}": 0
        for t in "qk"
        for leaf in ("norm.weight", "norm.bias", "rprelu.shift_in", "rprelu.shift_out")
    }
    params = networks.with_values(on.params, silent)
    for block in params["blocks"].values():
        block["attn"]["band_weight"] = np.stack([np.ones(config.heads), np.zeros(config.heads)])
    plain = {path.replace("_low", ""): value for path, value in flatten(params).items()}
    plain = {p: v for p, v in plain.items() if "_high" not in p and "band_weight" not in p}
    expected = on._replace(
        model=on.model.replace(similarity="plain"), params=unflatten(plain)
    ).run()
    logits, dimages, grads = on._replace(params=params).run()
    np.testing.assert_array_equal(logits, expected[0])
    for path, gradient in expected[2].items():
        if path.startswith(("head.", "norm.")):
            np.testing.assert_array_equal(grads[path], gradient, err_msg=path)


@given(networks.configs(block="binary"), strategies.seeds())
def test_stages_switch_without_touching_parameters(config, seed):
    network = networks.make(config, seed)
    logits = {}
    for stage in networks.SWITCHES["binarize"]:
        model = network.model.replace(binarize=stage)
        assert model.config == config.replace(binarize=stage)
        logits[stage], _, grads = network._replace(model=model).run()
        assert {p: g.shape for p, g in grads.items()} == {
            p: v.shape for p, v in flatten(network.params).items()
        }
    assert not np.array_equal(logits["full"], logits["activations"])
    assert not np.array_equal(logits["activations"], logits["none"])


@pytest.mark.parametrize("name, path", [
    ("didb-binarize-none", "attn.alpha"), ("react-binarize-none", "attn.alpha"),
    ("didb-band_weights-fixed", "attn.band_weight"),
])  # fmt: skip
def test_what_does_not_learn_has_a_gradient_of_zeros(name, path):
    _, _, grads = networks.make(COVERING[name], seed=3).run()
    for i in range(COVERING[name].depth):
        np.testing.assert_array_equal(grads[f"blocks.{i}.{path}"], 0)


# Purity


@given(networks.all_configs(), strategies.seeds(), strategies.floats())
def test_two_forwards_then_two_backwards_in_either_order(config, seed, dtype):
    """Everything is read-only: parameters, images, caches. A write into one of them raises."""
    first, second = (networks.make(config, seed + i, dtype) for i in range(2))
    expected = first.run(), second.run()
    for order in ((0, 1), (1, 0), (0, 0)):
        runs = [n.model.forward(n.params, n.images) for n in (first, second)]
        networks.freeze(runs)
        for i in order:
            logits, cache = runs[i]
            assert_equal((logits, *backward((first, second)[i], cache)), expected[i])


@settings(max_examples=10)
@given(networks.configs(), st.sampled_from((None, *OTHER_GRIDS)), strategies.seeds())
def test_gradients_own_their_memory(config, grid, seed):
    """So an optimizer may scale one in place without changing another, or the cache."""
    network = networks.make(config, seed)
    network = network if grid is None else networks.with_images_of(network, grid)
    _, cache = network.model.forward(network.params, network.images)
    dimages, grads = backward(network, cache)
    gradients = {"images": dimages, **grads}
    others = [network.dlogits, network.images, *networks.arrays(cache)]
    for path, gradient in gradients.items():
        assert isinstance(gradient, np.ndarray), path
        assert not any(np.may_share_memory(gradient, other) for other in others), path
        assert [p for p, g in gradients.items() if np.may_share_memory(gradient, g)] == [path]


@given(networks.configs(), st.sampled_from((None, *OTHER_GRIDS)), strategies.seeds(),
       strategies.floats())  # fmt: skip
def test_gradients_are_shaped_like_parameters_and_nothing_is_cast(config, grid, seed, dtype):
    network = networks.make(config, seed, dtype)
    network = network if grid is None else networks.with_images_of(network, grid)
    logits, cache = network.model.forward(network.params, network.images)
    dimages, grads = backward(network, cache)
    assert dimages.shape == network.images.shape
    assert [(p, g.shape) for p, g in grads.items()] == [
        (p, v.shape) for p, v in flatten(network.params).items()
    ]
    for array in (logits, dimages, *grads.values(), *networks.arrays(cache)):
        assert array.dtype == dtype or array.dtype == bool


@given(networks.all_configs(), strategies.seeds(), strategies.floats())
def test_predict_is_forward_without_a_cache(config, seed, dtype):
    network = networks.make(config, seed, dtype)
    logits, _ = network.model.forward(network.params, network.images)
    predicted = network.model.predict(network.params, network.images)
    assert predicted.dtype == dtype
    np.testing.assert_array_equal(predicted, logits)


@given(networks.all_configs(), strategies.seeds())
def test_layout_in_memory_does_not_matter(config, seed):
    network = networks.make(config, seed)
    other = network._replace(
        images=network.images.copy(order="F"),
        dlogits=np.repeat(network.dlogits, 2, axis=1)[:, ::2],
        params=unflatten({p: v.copy(order="F") for p, v in flatten(network.params).items()}),
    )
    assert_close("networks, other layout in memory", other.run(), network.run())


@given(networks.all_configs(), strategies.seeds())
def test_images_of_a_batch_do_not_influence_each_other(config, seed):
    """One by one they give the batch, and the gradients of the parameters add up."""
    network = networks.make(config, seed)
    runs = [
        network._replace(images=network.images[i : i + 1], dlogits=network.dlogits[i : i + 1]).run()
        for i in range(len(network.images))
    ]
    logits, dimages, grads = zip(*runs)
    total = {path: sum(g[path] for g in grads) for path in grads[0]}
    together = np.concatenate(logits), np.concatenate(dimages), total
    assert_close("networks, batch against single images", together, network.run())


@given(networks.all_configs(), strategies.seeds())
def test_the_gradient_of_an_image_hears_only_its_own_logits(config, seed):
    network = networks.make(config, seed)
    _, cache = network.model.forward(network.params, network.images)
    expected, _ = backward(network, cache)
    alone = np.zeros_like(network.dlogits)
    alone[1] = network.dlogits[1]
    dimages, _ = backward(network, cache, alone)
    np.testing.assert_array_equal(dimages[1], expected[1])
    np.testing.assert_array_equal(dimages[[0, *range(2, len(dimages))]], 0)
    assert dimages[1].any()


# The backend


class Recorder:
    """A backend of refimpl.ops that counts; a call around it, from models to ops, fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.calls = {"forward": Counter(), "backward": Counter()}
        self.inside = False
        for name in set(ops.__all__) - {"haar"}:  # maps without forward and backward
            module = getattr(ops, name)
            functions = {verb: getattr(module, verb) for verb in self.calls}
            counted = {verb: self._counted(name, verb, f) for verb, f in functions.items()}
            setattr(self, name, SimpleNamespace(**counted))
            for verb, function in functions.items():
                monkeypatch.setattr(module, verb, self._guarded(f"{name}.{verb}", function))

    def _counted(self, name, verb, function):
        def call(*args, **kwargs):
            self.calls[verb][name] += 1
            self.inside = True
            try:
                return function(*args, **kwargs)
            finally:
                self.inside = False

        return call

    def _guarded(self, name, function):
        def call(*args, **kwargs):
            assert self.inside, f"{name} was called around the backend"
            return function(*args, **kwargs)

        return call


SHELL = Counter(patch_embed=1, class_token=1, position_embedding=1, layer_norm=1, pool=1, linear=1)
PROJECTION = Counter(identity=1, shift=1, binary_linear=1, layer_norm=1, fit=1, add=1, rprelu=1)
HEADS = Counter(shift=1, split_heads=1, sign=1)  # their signs, of q, k or v


def times(count: int, calls: Counter) -> Counter:
    return Counter({name: count * number for name, number in calls.items()})


# q, k, v, proj, up, down; norms of block and context, both residual sums and that of the shortcuts
REACT = (
    times(6, PROJECTION)
    + times(3, HEADS)
    + Counter(
        layer_norm=3,
        add=3,
        matmul=1,
        divide=1,
        softmax=1,
        boolean_attention=1,
        merge_heads=1,
        rprelu=1,
    )
)
# q and k twice
DIDB = (
    REACT
    - Counter(divide=1)
    + times(2, PROJECTION)
    + times(2, HEADS)
    + Counter(matmul=1, bands=1, band_sum=1, neighbours=1, differential=1)
)
DEIT = Counter(
    layer_norm=2, linear=4, split=1, split_heads=3, matmul=2, divide=1, softmax=1, merge_heads=1,
    gelu=1, add=2,
)  # fmt: skip
CALLS = {
    "didb": (networks.small(**networks.DIDB), DIDB),
    "react": (networks.small(), REACT),
    "deit": (networks.small(block="real"), DEIT),
    "layer_scale": (networks.small(layer_scale=True), REACT + Counter(layer_scale=2)),
    "none": (networks.small(binarize="none"), REACT - Counter(sign=3)),
}


@pytest.mark.parametrize("name", CALLS)
def test_every_op_is_called_through_the_backend_in_both_directions(name, monkeypatch):
    config, block = CALLS[name]
    network = networks.make(config, seed=4)
    expected = network.run()
    recorder = Recorder(monkeypatch)
    assert_equal(network.run(backend=recorder), expected)
    assert config.depth == 2
    assert recorder.calls["forward"] == SHELL + block + block
    assert recorder.calls["backward"] == recorder.calls["forward"]
    network.model.predict(network.params, network.images, backend=recorder)
    assert recorder.calls["forward"] == SHELL + SHELL + block + block + block + block


@pytest.mark.parametrize("pool", networks.POOLS)
def test_interpolations_are_called_through_the_backend_in_both_directions(pool, monkeypatch):
    network = networks.make(networks.small(**networks.DIDB, pool=pool), seed=4)
    network = networks.with_images_of(network, (4, 2))
    expected = network.run()
    recorder = Recorder(monkeypatch)
    assert_equal(network.run(backend=recorder), expected)
    # the position embedding, two token shifts of nine RPReLUs a block; alpha of each block
    assert recorder.calls["forward"]["resize_tokens"] == 1 + 2 * 2 * 9
    assert recorder.calls["forward"]["rescale"] == 2
    assert recorder.calls["forward"] == recorder.calls["backward"]


# float32


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["didb_micro", "react_micro", "deit_micro"])
def test_float32_follows_float64(name, seed):
    follow_up_to_the_first_flip(networks.make(create_model(name).config, seed, np.float32))


@pytest.mark.parametrize("binarize", ["full", "activations"])
def test_float32_follows_float64_up_to_a_flip(binarize):
    """A move that brings 64 values next to 0: some of their bits are left to rounding."""
    config = create_model("didb_micro", binarize=binarize).config
    network = networks.make(config, 3, np.float32, batch=1)
    x, _ = listen_forward(networks.as_type(network, np.float64))["blocks.2.norm1.out"]
    flat = {**flatten(network.params), "blocks.2.attn.v.move": -x[0, 7].astype(np.float32)}
    network = network._replace(params=unflatten(flat))
    assert follow_up_to_the_first_flip(network) == "blocks.2.attn.v.bit"


def follow_up_to_the_first_flip(single: networks.Network) -> str | None:
    """Name of the first tap with a bit that float64 gives another value, if there is one.

    [SPEC 8.2] Up to it every value agrees, and where the bits differ, z is within the bound.
    """
    found, golden = (listen_forward(n) for n in (single, networks.as_type(single, np.float64)))
    assert list(found) == list(golden)
    unit = float(np.finfo(np.float32).eps) / 2
    for tap, (value, _) in golden.items():
        ours = found[tap][0]
        z = f"{tap.removesuffix('bit')}z" if value.dtype == bool else tap
        bound = FREE_MARGIN * unit * size_of_terms(golden, z)
        if value.dtype == bool:
            flipped = ours != value
            margin = np.abs(golden[z][0] - (0.5 if "prob" in z else 0.0))
            assert (margin[flipped] <= bound).all(), tap
            if flipped.any():
                return tap
        elif value.dtype == np.int32:
            np.testing.assert_array_equal(ours, value, err_msg=tap)
        else:
            worst = np.abs(ours.astype(np.float64) - value).max()
            oracles.note("float32 against float64 before a flip, / bound", worst / bound, tap)
            assert worst <= bound, tap
    return None


def listen_forward(network: networks.Network) -> dict[str, tuple[np.ndarray, list[str]]]:
    """Tap -> its value and the names that it reads."""
    taps = {"input": (network.images, [])}

    def tap(name, value, op, inputs):
        taps[name] = value, list(inputs)

    network.model.forward(network.params, network.images, tap=tap)
    return taps


def size_of_terms(taps: dict, name: str) -> float:
    """Largest entry of a tap, or of what it was made of where that is larger and cancels."""
    value, inputs = taps[name]
    real = [value, *(taps[i][0] for i in inputs if taps[i][0].dtype.kind == "f")]
    sizes = [float(np.abs(v).max()) for v in real]
    if any(i.endswith(".high") for i in inputs):  # differences of the tokens below
        sizes.append(float(np.abs(taps[taps[inputs[0]][1][0]][0]).max()))
    return max(sizes)


# Bad input


@pytest.mark.parametrize("path, layer", [
    ("blocks.1.attn.k_low.move", "blocks.1.attn.k_low"),
    ("blocks.1.attn.q_high.weight", "blocks.1.attn.q_high"),
    ("blocks.0.attn.v_move", "blocks.0.attn.v"),
    ("blocks.1.attn.alpha", "blocks.1.attn"),
    ("blocks.1.attn.band_weight", "blocks.1.attn"),
    ("blocks.0.attn.rprelu.token_shift_in", "blocks.0.attn.proj"),
    ("blocks.1.mlp.down.move", "blocks.1.mlp.down"),
    ("blocks.0.mlp.down.norm.weight", "blocks.1.attn.q_low"),
    ("patch_embed.bias", "blocks.0.attn.q_low"),
    ("pos_embed", "blocks.0.attn.q_low"),
])  # fmt: skip
def test_nan_is_reported_by_the_layer_that_it_enters(path, layer):
    network = networks.make(networks.small(**networks.DIDB), seed=5)
    flat = {p: np.array(v) for p, v in flatten(network.params).items()}
    flat[path].flat[-1] = np.nan
    for run in (network.model.forward, network.model.predict):
        with pytest.raises(NonFiniteError) as error:
            run(unflatten(flat), network.images)
        assert error.value.layer == layer
        assert str(error.value).startswith(f"{layer}: ") and "\n" not in str(error.value)


def test_nan_in_a_real_block():
    network = networks.make(networks.small(block="real"), seed=5)
    flat = {p: np.array(v) for p, v in flatten(network.params).items()}
    flat["blocks.1.attn.qkv.bias"][0] = np.nan
    with pytest.raises(NonFiniteError) as error:
        network.model.forward(unflatten(flat), network.images)
    assert error.value.layer == "blocks.1"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_pixels_enter_the_first_layer(value):
    network = networks.make(networks.small(**networks.DIDB), seed=5)
    images = np.array(network.images)
    images[1, 0, 2, 3] = value
    with (
        np.errstate(invalid="ignore"),  # inf - inf, in the norm before the layer
        pytest.raises(NonFiniteError, match=r"blocks\.0\.attn\.q_low: "),
    ):
        network.model.forward(network.params, images)


@pytest.fixture
def network() -> networks.Network:
    return networks.make(networks.small(**networks.DIDB), seed=6)


@pytest.mark.parametrize("shape", [(2, 1, 4, 6), (3, 4, 6), (2, 3, 4, 6, 1)])
def test_images_of_another_shape(network, shape):
    expected = r"images has shape .*; expected \(any, 3, any, any\)"
    for run in (network.model.forward, network.model.predict):
        with pytest.raises(ShapeError, match=expected):
            run(network.params, np.zeros(shape))


@pytest.mark.parametrize("size", [(4, 5), (1, 6), (0, 6), (4, 0)])
def test_images_of_a_size_that_the_patch_does_not_divide(network, size):
    for run in (network.model.forward, network.model.predict):
        with pytest.raises(ShapeError, match="images has shape .*multiples of patch_size 2"):
            run(network.params, np.zeros((2, 3, *size)))
    with pytest.raises(ConfigError, match="image_size.*"):
        network.model.resized(network.params, size)


def test_an_empty_batch(network):
    for run in (network.model.forward, network.model.predict):
        with pytest.raises(ShapeError, match="at least one image"):
            run(network.params, np.zeros((0, 3, 4, 6)))


@pytest.mark.parametrize("images", [
    np.zeros((2, 3, 4, 6), np.float32), np.zeros((2, 3, 4, 6), np.uint8),
    np.zeros((2, 3, 4, 6)).tolist(),
])  # fmt: skip
def test_images_of_another_type(network, images):
    with pytest.raises(DtypeError, match="images"):
        network.model.forward(network.params, images)


@pytest.mark.parametrize("path", ["blocks.1.attn.q_low.norm.bias", "head.weight", "cls_token"])
def test_parameters_that_are_missing_or_unknown_or_of_another_shape(network, path):
    flat = flatten(network.params)
    missing = {p: v for p, v in flat.items() if p != path}
    longer = {**flat, path: np.concatenate([flat[path], flat[path]])}
    unknown = {**flat, f"{path}2": flat[path]}
    for wrong, name in ((missing, path), (longer, path), (unknown, f"{path}2")):
        with pytest.raises(ShapeError) as error:
            network.model.forward(unflatten(wrong), network.images)
        assert str(error.value).startswith(f"{name}: ") and "\n" not in str(error.value)


@pytest.mark.parametrize("value", [
    np.array(0.5, np.float32), np.array(1), 0.5, None,
])  # fmt: skip
def test_a_parameter_of_another_type(network, value):
    flat = {**flatten(network.params), "blocks.1.attn.alpha": value}
    with pytest.raises(DtypeError, match=r"blocks\.1\.attn\.alpha"):
        network.model.forward(unflatten(flat), network.images)


def test_gradients_of_the_logits_of_another_shape_or_type(network):
    _, cache = network.model.forward(network.params, network.images)
    for shape in ((2, 5), (1, 4), (4,)):
        with pytest.raises(ShapeError, match=r"dlogits has shape .*; expected \(3, 4\)"):
            network.model.backward(np.zeros(shape), cache)
    with pytest.raises(DtypeError, match="dlogits float32"):
        network.model.backward(np.zeros((3, 4), np.float32), cache)


# The named models


def projection(inputs: int, outputs: int, tokens: int) -> int:
    """move, weight, norm, three shifts and slopes, two token shifts (tokens = 0: none)."""
    return inputs + inputs * outputs + 2 * outputs + 3 * outputs + 2 * tokens


def parameter_count(
    family: str, C: int, depth: int, heads: int, N: int, pixels: int, K: int, cls: bool = True
):
    """[SPEC 6.4] Sizes of the table, added up; `pixels` of a patch, mlp_ratio 4."""
    if family == "deit":
        # norms; qkv, proj, fc1, fc2; their biases
        block = 4 * C + (3 + 1 + 4 + 4) * C * C + (3 + 1 + 4 + 1) * C
    else:
        didb = family == "didb"
        shifts, sources = (N, 5) if didb else (0, 3)
        block = (
            4 * C  # norm1, norm2
            + sources * (projection(C, C, shifts) + C)  # and the move of its heads
            + 1  # alpha
            + (2 * heads + 2 * C if didb else 0)  # band weights, lam_s and lam_n
            + 2 * C + 3 * C + 2 * shifts  # norm and RPReLU of the context
            + projection(C, C, shifts)
            + projection(C, 4 * C, shifts)
            + projection(4 * C, C, shifts)
        )  # fmt: skip
    shell = pixels * C + C + cls * C + N * C + 2 * C + K * C + K
    return shell + depth * block


SIZES = {
    "micro": {"C": 64, "depth": 4, "heads": 2, "N": 50, "pixels": 16, "K": 10},
    "cifar": {"C": 128, "depth": 4, "heads": 2, "N": 65, "pixels": 48, "K": 10},
    "cifar_mean": {
        "C": 128, "depth": 4, "heads": 2, "N": 64, "pixels": 48, "K": 10, "cls": False,
    },
    "cifar_wide": {
        "C": 192, "depth": 4, "heads": 3, "N": 64, "pixels": 48, "K": 10, "cls": False,
    },
    "tiny": {"C": 192, "depth": 12, "heads": 3, "N": 197, "pixels": 768, "K": 1000},
    "small": {"C": 384, "depth": 12, "heads": 6, "N": 197, "pixels": 768, "K": 1000},
    "base": {"C": 768, "depth": 12, "heads": 12, "N": 197, "pixels": 768, "K": 1000},
}
COUNTS = {
    "didb_micro": 259_118,
    "didb_cifar": 980_454,
    "didb_cifar_mean": 980_126,
    "didb_cifar_wide": 2_156_006,
    "didb_tiny": 6_803_764,
    "didb_small": 25_950_268,
    "didb_base": 101_402_188,
    "react_micro": 218_638,
    "react_cifar": 836_494,
    "react_cifar_mean": 836_238,
    "react_cifar_wide": 1_844_174,
    "react_tiny": 5_839_540,
    "react_small": 22_294_900,
    "react_base": 87_056_116,
    "deit_micro": 205_066,
    "deit_cifar": 809_354,
    "deit_cifar_mean": 809_098,
    "deit_cifar_wide": 1_803_466,
    "deit_tiny": 5_717_416,  # these three are the published ones of DeiT
    "deit_small": 22_050_664,
    "deit_base": 86_567_656,
}


@pytest.mark.parametrize("name", COUNTS)
def test_number_of_parameters(name):
    family, size = name.split("_", 1)
    assert parameter_count(family, **SIZES[size]) == COUNTS[name]
    found = shapes(create_model(name).config).values()
    assert sum(math.prod(shape) for shape in found) == COUNTS[name]
