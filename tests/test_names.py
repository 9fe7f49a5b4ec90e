"""Parameters go by name [SPEC 6.4], and nothing goes by how a value or parameter is called.

The order of keys is permuted at every depth of every dict, and results are equal to the bit. Then
every value and parameter of the list gets another name, and nothing else changes.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings

from refimpl import engine, golden
from refimpl.conventions import ShapeError
from refimpl.engine import plan, run
from refimpl.engine.taps import Listener
from refimpl.golden import bounds
from refimpl.kernels import backend
from refimpl.models import binary, files, flatten, nodes, packing, structure, unflatten
from refimpl.models import params as parameters
from refimpl.training import optimizers
from refimpl.training.batches import Objective, batch_gradients
from refimpl.training.recipes import Recipe
from tests import code_lines, networks, strategies

ANY = networks.all_configs() | networks.pyramids()
# float32 and vectors of sixteen channels, so that the twin of the projection runs; for the engine
WIDE = networks.small(**networks.DIDB, dim=32, layer_scale=True)


def wide(seed: int = 0) -> networks.Network:
    return networks.make(WIDE, seed, np.float32)


def shuffled(network: networks.Network, seed: int = 0) -> networks.Network:
    params = networks.permuted(network.params, np.random.default_rng(seed))
    assert list(flatten(params)) != list(flatten(network.params))
    return network._replace(params=params)


def assert_same(found, expected) -> None:
    """Names and bits of two trees of arrays, whatever the order."""
    found, expected = flatten(found), flatten(expected)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        np.testing.assert_array_equal(found[name], value, err_msg=name)


# The order of keys


@given(ANY, strategies.seeds(), strategies.floats())
def test_order_of_keys_never_matters_in_forward(config, seed, dtype):
    network = networks.make(config, seed, dtype)
    other = shuffled(network, seed)
    expected = network.model.predict(network.params, network.images)
    np.testing.assert_array_equal(other.model.predict(other.params, other.images), expected)
    np.testing.assert_array_equal(other.model.forward(other.params, other.images)[0], expected)


@settings(max_examples=12)
@given(ANY, strategies.seeds(), strategies.floats())
def test_order_of_keys_never_matters_in_backward(config, seed, dtype):
    """Silently, and with a listener, who hears the same in the same order."""
    network = networks.make(config, seed, dtype)
    results = []
    for one in (network, shuffled(network, seed)):
        silent, heard = one.run(), {}
        loud = one.run(tap=lambda name, value, *_, heard=heard: heard.update({name: value}))
        results.append((silent, loud, heard))
    (silent, loud, heard), (other_silent, other_loud, other_heard) = results
    for found, expected in ((other_silent, silent), (other_loud, loud)):
        np.testing.assert_array_equal(found[1], expected[1])
        assert_same(found[2], expected[2])
    assert list(other_heard) == list(heard)
    assert_same(other_heard, heard)


def test_order_of_keys_never_matters_on_the_kernels():
    network = wide()
    expected, found = (n.run(backend=backend) for n in (network, shuffled(network)))
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])
    assert_same(found[2], expected[2])


def step(network: networks.Network) -> dict[str, np.ndarray]:
    """Parameters behind one step of training, clipped."""
    flat = {path: value.copy() for path, value in flatten(network.params).items()}
    recipe = Recipe(alpha_rate=0.25, weight_decay=0.3)
    optimizer = optimizers.for_network(network.model.network, flat, recipe)
    labels = np.arange(len(network.images)) % WIDE.num_classes
    with ThreadPoolExecutor(1) as pool:
        images = np.zeros(len(network.images))  # the batch's images are the network's
        result = batch_gradients(
            network.model, unflatten(flat), images, labels,
            objective=Objective(lambda _: network.images), shards=1, pool=pool,
        )  # fmt: skip
    clipped, norm = optimizers.clip_by_global_norm(result.gradients, 1e-3)
    assert norm > 1e-3
    optimizer.step(clipped, rate=0.01)
    return {**flat, **{f"state.{name}": value for name, value in optimizer.state().items()}}


def test_order_of_keys_never_matters_in_training():
    network = wide()
    expected = step(network)
    for seed in range(5):
        assert_same(step(shuffled(network, seed)), expected)


def test_order_of_keys_never_matters_in_files(tmp_path):
    """Saved and packed files are the same bytes, and a loaded dict may be shuffled again."""
    network = wide()
    written = []
    for name, one in (("own", network), ("other", shuffled(network))):
        latent, packed = tmp_path / f"{name}.safetensors", tmp_path / f"{name}.packed.safetensors"
        files.save(latent, one.model, one.params)
        files.save_packed(packed, one.model, one.params)
        written.append((latent.read_bytes(), packed.read_bytes()))
    assert written[0] == written[1]
    loaded = files.read(tmp_path / "other.safetensors").params
    assert_same(loaded, network.params)
    assert_same(packing.pack(WIDE, shuffled(network, 1).params), packing.pack(WIDE, network.params))


def test_order_of_keys_never_matters_for_images_of_another_size():
    network = wide()
    for one in (network, shuffled(network)):
        model, params = one.model.resized(one.params, (10, 14))
        assert model.config.image_size == (10, 14)
        assert_same(params, network.model.resized(network.params, (10, 14))[1])


def test_order_of_keys_never_matters_in_the_engine():
    network = wide()
    expected, found = (
        engine.compile(n.model, n.params)(n.images) for n in (network, shuffled(network))
    )
    np.testing.assert_array_equal(found, expected)


# Names that are missing or unknown

READERS = {
    "forward": lambda n, tmp: n.model.forward(n.params, n.images),
    "predict": lambda n, tmp: n.model.predict(n.params, n.images),
    "the kernels": lambda n, tmp: n.model.forward(n.params, n.images, backend=backend),
    "resized": lambda n, tmp: n.model.resized(n.params, (10, 14)),
    "save": lambda n, tmp: files.save(tmp / "latent.safetensors", n.model, n.params),
    "save_packed": lambda n, tmp: files.save_packed(tmp / "packed.safetensors", n.model, n.params),
    "pack": lambda n, tmp: packing.pack(WIDE, n.params),
    "compile": lambda n, tmp: engine.compile(n.model, n.params),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "path", ["norm.bias", "blocks.1.attn.q_low.rprelu.slope", "blocks.0.mlp.up.weight"]
)
def test_a_name_that_is_missing_or_unknown_is_named(tmp_path, reader, path):
    """Also where only its last part is wrong, and where a group stands for a parameter."""
    network = wide()
    flat = flatten(network.params)
    missing = {p: value for p, value in flat.items() if p != path}
    unknown = {**flat, f"{path}s": flat[path]}
    called_otherwise = {**missing, f"{path}s": flat[path]}
    group = {**missing, f"{path}.value": flat[path]}
    for wrong, name in (
        (missing, path), (unknown, f"{path}s"), (called_otherwise, path), (group, path),
    ):  # fmt: skip
        with pytest.raises(ShapeError) as error:
            READERS[reader](network._replace(params=unflatten(wrong)), tmp_path)
        assert str(error.value).startswith(f"{name}: ") and "\n" not in str(error.value)
    assert not list(tmp_path.iterdir()), "a file is left that nobody can read"


# Other names


@settings(max_examples=15)
@given(ANY, strategies.seeds(), strategies.floats())
def test_nothing_goes_by_a_name(config, seed, dtype):
    """Results, and every tap but for its name, its inputs' names and those of parameters."""
    network = networks.make(config, seed, dtype)
    other, new = networks.renamed(network, seed)
    heard, found = [], []
    expected = network.run(tap=lambda *tap: heard.append(tap))
    logits, dimages, grads = other.run(tap=lambda *tap: found.append(tap))
    np.testing.assert_array_equal(logits, expected[0])
    np.testing.assert_array_equal(dimages, expected[1])
    own = {new(f"grads/param.{path}").removeprefix("grads/param."): g
           for path, g in expected[2].items()}  # fmt: skip
    assert_same(grads, own)
    assert [name for name, *_ in found] == [new(name) for name, *_ in heard]
    values = {"input": other.images, **{name: value for name, value, *_ in found}}
    for (name, value, op, reads), (_, a, other_op, other_reads) in zip(heard, found, strict=True):
        assert a.dtype == value.dtype
        np.testing.assert_array_equal(a, value, err_msg=name)
        assert list(other_reads) == [new(read) for read in reads], name
        if op is not None and seed % 5 == len(name) % 5:  # a fifth; all of them in test_taps
            inputs = [values[read] for read in other_reads]
            np.testing.assert_array_equal(other_op(*inputs), op(*inputs), err_msg=name)


@given(ANY, strategies.seeds())
def test_start_decay_and_rates_go_by_no_name(config, seed):
    network = networks.make(config, seed)
    other, new = networks.renamed(network, seed)
    ours, theirs = network.model.network.parameters, other.model.network.parameters

    def called(path: str) -> str:
        return new(f"grads/param.{path}").removeprefix("grads/param.")

    assert len(theirs) == len(ours) and not set(theirs) & set(ours)
    for start in (parameters.initialise, parameters.draw):
        expected, found = (
            flatten(start(declared, np.random.default_rng(seed))) for declared in (ours, theirs)
        )
        assert_same(found, {called(path): value for path, value in expected.items()})
    assert parameters.decayed(theirs) == {called(path) for path in parameters.decayed(ours)}
    recipe = Recipe(alpha_rate=0.25, weight_decay=0.3)
    expected, found = (
        optimizers.for_network(n.model.network, flatten(n.params), recipe)
        for n in (network, other)
    )
    assert found.shares == {called(path): share for path, share in expected.shares.items()}
    assert found.decay == {called(path): decay for path, decay in expected.decay.items()}
    recipe = Recipe(muon_rate=2.0, weight_decay=0.3)
    expected, found = (
        optimizers.for_network(n.model.network, flatten(n.params), recipe).muon
        for n in (network, other)
    )
    assert found.parts == {called(path): parts for path, parts in expected.parts.items()}
    assert (3 in expected.parts.values()) == (config.block == "real")
    assert parameters.check(theirs, flatten(other.params)) == network.images.dtype


def in_memory(network: networks.Network) -> golden.Bundle:
    """A bundle of forward and backward that stores no tap: all of them are recomputed."""
    manifest = {"free_margin": bounds.FREE_MARGIN}
    model, params, images = network.model, network.params, network.images
    made = golden.Bundle(Path("bundle"), manifest, {}, model, params, images, np.zeros(0))
    vars(made)["reference"] = bounds.reference(model, params, images, network.dlogits)
    return made


@settings(max_examples=5)
@given(ANY, strategies.seeds())
def test_verdicts_and_bounds_go_by_no_name(config, seed):
    """Of a candidate that rounds to float32 and has one whole number too many."""
    network = networks.make(config, seed, batch=1)
    other, new = networks.renamed(network, seed)
    rounded, candidate = networks.as_type(network, np.float32), {}
    rounded.run(tap=lambda name, value, *_: candidate.update({name: np.array(value)}))
    whole = next((name for name, value in candidate.items() if value.dtype == np.int32), None)
    if whole is not None:
        candidate[whole].flat[0] += 2
    renamed = {new(name): value for name, value in candidate.items()}
    for mode in ("free", "replay"):
        ours = golden.compare(in_memory(network), candidate, mode=mode).verdicts
        theirs = golden.compare(in_memory(other), renamed, mode=mode).verdicts
        assert len(ours) == len(candidate)
        for a, b in zip(ours, theirs, strict=True):
            assert b.name == new(a.name)
            counts = [(v.verdict, v.differing, v.ties, v.near, v.hard, v.worst_ulp) for v in (a, b)]
            assert counts[0] == counts[1], a.name
            for field in ("tolerance", "expected", "z"):
                np.testing.assert_array_equal(getattr(b, field), getattr(a, field), err_msg=a.name)
        assert whole is None or any(v.verdict == "FAIL" for v in ours)


def engine_taps(listed: nodes.Network, arrays, image: np.ndarray) -> dict[str, np.ndarray]:
    """Every tap of the engine for one image, and the logits."""
    found = structure.find(listed)
    built = plan.build(found, arrays)
    listener = Listener(found, built, arrays)
    logits = np.zeros(math.prod(listed.shapes[listed.output]), np.float32)
    assert run.forward(listener, built, plan.work(built), image, logits) == run.FINE
    return {**listener.taps(), listed.output: logits}


ENGINE = {"block": "binary", "binarize": "full"}


@settings(max_examples=8)
@given(networks.configs(**ENGINE) | networks.pyramids(**ENGINE), strategies.seeds())
def test_the_engine_goes_by_no_name(config, seed):
    network = networks.make(config, seed, np.float32, batch=1)
    other, new = networks.renamed(network, seed)
    ours, theirs = network.model.network, other.model.network
    arrays = packing.pack(config, network.params)
    called = [
        dict(zip(packing.stored(p), packing.stored(theirs.parameters[q]), strict=True))
        for path, p in ours.parameters.items()
        for q in [new(f"grads/param.{path}").removeprefix("grads/param.")]
    ]
    called = {old: name for names in called for old, name in names.items()}
    renamed = {called[name]: array for name, array in arrays.items()}
    expected = engine_taps(ours, arrays, network.images[0])
    found = engine_taps(theirs, renamed, network.images[0])
    assert_same(found, {new(name): value for name, value in expected.items()})


def test_renaming_hits_every_name():
    network = networks.make(networks.swin(**networks.DIDB, decoder="fpn"), 0)
    other, new = networks.renamed(network)
    own, listed = network.model.network, other.model.network
    old = {*own.parameters, *own.shapes, *own.maker} - {"input"}
    for node in listed.nodes:
        names = {node.name, *node.args, *node.outputs, *node.inside.values()} - {"input"}
        assert all(name[1:].isdigit() for name in names), node
    assert not old & {*listed.parameters, *listed.shapes}
    assert listed.output == new("logits") != "logits"


def test_all_of_didb_is_one_page():
    """Whoever ports it reads one file."""
    assert len(Path(binary.__file__).read_text().splitlines()) <= 200


# What makes a network of operations and runs it: the builders of all architectures, what a node
# and an operation are, what backends may compute as one, forward, backward, taps and replay.
COMPOSITION = (
    "nodes", "operations", "stage", "parts", "binary", "others", "real", "decoders",
    "units", "interpreter", "insides", "replay",
)  # fmt: skip


def test_the_composition_is_small():
    folder = Path(binary.__file__).parent
    assert sum(code_lines.count(folder / f"{name}.py") for name in COMPOSITION) <= 1300
