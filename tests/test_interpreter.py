"""The rules by which a list of operations is walked: shapes, order, freeing, units."""

from __future__ import annotations

import dataclasses
import tracemalloc
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from refimpl import ops
from refimpl.conventions import RefimplError
from refimpl.models import binary, interpreter, units
from refimpl.models.nodes import INPUT, Network
from tests import networks, strategies

ANY = networks.all_configs() | networks.pyramids()
# Where branches lie beside each other: queries, keys and values, both bands, levels of the pyramid
BRANCHED = {
    "react": networks.small(),
    "didb": networks.small(**networks.DIDB),
    "pyramid": networks.swin(**networks.SWINS[-2]),
}


def watching(watch: Callable[[str, Any], Any]) -> SimpleNamespace:
    """refimpl.ops, every result of a forward passing through `watch(op, (y, cache))`."""

    def watched(name: str) -> SimpleNamespace:
        op = getattr(ops, name)

        def forward(*args, **options):
            return watch(name, op.forward(*args, **options))

        return SimpleNamespace(forward=forward, backward=getattr(op, "backward", None))

    return SimpleNamespace(**{name: watched(name) for name in set(ops.__all__) - {"haar"}})


def lists(config) -> list[Network]:
    """Of a configuration, for its own images and, where windows allow it, for others."""
    own = binary.network(config)
    if config.window:
        return [own]
    return [own, binary.network(config, (config.patch_size * 4, config.patch_size * 3))]


# The list


@given(ANY)
def test_shapes_of_the_list_are_those_of_arrays(config):
    """Of one image; and nodes run in the order in which they stand."""
    network = networks.make(config, 0, batch=1)
    listed, found = network.model.network, []
    backend = watching(lambda name, result: found.append((name, result[0])) or result)
    network.model.predict(network.params, network.images, backend=backend)
    assert [name for name, _ in found] == [node.op for node in listed.nodes]
    for node, (_, y) in zip(listed.nodes, found, strict=True):
        for name, value in zip(node.outputs, y if isinstance(y, tuple) else (y,), strict=True):
            assert value.shape == listed.shapes[name], name


@given(ANY)
def test_a_list_is_in_order_of_computation(config):
    """Nodes read what is there; every name is given once; backward hears of all readers first."""
    for listed in lists(config):
        known = {INPUT, *listed.parameters}
        for node in listed.nodes:
            assert known.issuperset(node.args), node.name
            assert known.isdisjoint(node.outputs) and len(set(node.outputs)) == len(node.outputs)
            known.update(node.outputs)
        order = listed.backward_order
        made_of_parameters = [i for i, node in enumerate(listed.nodes) if not node.inputs]
        assert sorted([*order, *made_of_parameters]) == list(range(len(listed.nodes)))
        place = {i: k for k, i in enumerate(order)}
        for i in order:
            for name in listed.nodes[i].inputs:
                assert name == INPUT or place[listed.maker[name]] > place[i], name


@given(ANY)
def test_a_unit_gives_one_value(config):
    """Others read nothing of it but its last output; a step reads what its nodes do of others."""
    for listed in lists(config):
        ops_of_units = [unit.op for unit in listed.units]
        projections = sum(node.op == "binary_linear" for node in listed.nodes)
        assert ops_of_units.count("projection") == projections
        assert ops_of_units.count("attention") <= config.num_blocks
        together = [i for unit in listed.units for i in unit.nodes]
        assert len(together) == len(set(together))
        for unit in listed.units:
            made = {name for i in unit.nodes for name in listed.nodes[i].outputs}
            last = listed.nodes[unit.nodes[-1]].name
            for i, node in enumerate(listed.nodes):
                assert i in unit.nodes or not (made - {last}) & set(node.inputs), node.name


@given(ANY)
def test_steps_do_all_nodes_with_what_is_there(config):
    for listed in lists(config):
        for twins in (set(), {"projection"}, {"attention"}, {"projection", "attention"}):
            steps = units.steps_of(listed, frozenset(twins))
            assert sorted(i for step in steps for i in step.nodes) == [*range(len(listed.nodes))]
            chosen = [unit for unit in listed.units if unit.op in twins]
            assert sorted(step.unit for step in steps if step.unit) == sorted(chosen)
            known = {INPUT, *listed.parameters}
            for step in steps:
                assert known.issuperset((*step.inputs, *step.params))
                for i in step.nodes:
                    assert known.issuperset(listed.nodes[i].args)
                    known.update(listed.nodes[i].outputs)


# Order of backward


def test_branches_go_back_one_after_the_other():
    """The first branch goes back first, and wholly, before the next one does."""
    for name, pattern, branches in (
        ("react", "blocks.1.attn.{}.", ["q", "k", "v"]),
        ("didb", "blocks.0.attn.{}.", ["q_low", "k_low", "q_high", "k_high", "v"]),
        ("didb", "blocks.1.attn.{}.int", ["scores_low", "scores_high"]),
        ("pyramid", "decoder.{}.", ["0", "1", "2"]),
    ):
        listed = binary.network(BRANCHED[name])
        order = [listed.nodes[i].name for i in listed.backward_order]
        found = [b for node in order for b in branches if node.startswith(pattern.format(b))]
        assert found == sorted(found, key=branches.index), name
        assert set(found) == set(branches), name


@pytest.mark.parametrize("name, node, terms", [
    ("react", "blocks.1.norm1.out", [f"blocks.1.attn.{t}.x" for t in "qkv"]),
    ("didb", "blocks.1.attn.high", ["blocks.1.attn.q_high.x", "blocks.1.attn.k_high.x"]),
    ("pyramid", "decoder.1.top", ["decoder.0.above.grid", "decoder.1.smooth.out"]),
])  # fmt: skip
def test_what_readers_send_is_added_from_left_to_right(name, node, terms):
    """To the bit, in the order of the branches, as a sum of values runs."""
    network = networks.make(BRANCHED[name], 3, np.float32)
    listed = network.model.network
    assert [listed.nodes[i].name for i, _ in listed.readers[node]] == terms
    sent: dict[str, np.ndarray] = {}
    summed: dict[str, np.ndarray] = {}
    _, cache = network.model.forward(network.params, network.images)
    places = iter(listed.backward_order)

    def noted(op):
        def backward(dy, cache):
            i = next(places)
            for output, d in zip(listed.nodes[i].outputs, dy if isinstance(dy, tuple) else (dy,)):
                summed[output] = np.array(d)
            found = op.backward(dy, cache)
            sent[listed.nodes[i].name] = np.array(found[0])
            return found

        return SimpleNamespace(backward=backward)

    noting = SimpleNamespace(**{op: noted(getattr(ops, op)) for op in set(ops.__all__) - {"haar"}})
    interpreter.backward(network.dlogits, cache._replace(backend=noting))
    total = sent[terms[0]]
    for term in terms[1:]:
        total = total + sent[term]
    np.testing.assert_array_equal(summed[node], total)


# Memory


@given(ANY)
def test_a_value_is_freed_by_its_last_reader(config):
    for listed in lists(config):
        for twins in (set(), {"projection"}, {"projection", "attention"}):
            alive = {INPUT}
            steps = units.steps_of(listed, frozenset(twins))
            for k, step in enumerate(steps):
                reads = set(step.inputs + step.params) - set(listed.parameters)
                assert reads <= alive
                own = {name for i in step.nodes for name in listed.nodes[i].outputs}
                alive |= own
                assert set(step.free) <= reads | own
                for name in step.free:
                    assert not any(name in later.inputs + later.params for later in steps[k + 1 :])
                alive.difference_update(step.free)
            assert alive == {listed.output}


@pytest.mark.parametrize("name", BRANCHED)
def test_prediction_holds_no_cache(name):
    """Where a node runs, the caches of all others are gone."""
    network = networks.make(BRANCHED[name], 1)
    kept: list[weakref.ref] = []

    class Cache:
        """One that can be watched."""

    def watch(op, result):
        assert not any(ref() is not None for ref in kept), op
        kept.append(weakref.ref(cache := Cache()))
        return result[0], cache

    network.model.predict(network.params, network.images, backend=watching(watch))
    assert len(kept) == len(network.model.network.nodes)


def test_prediction_takes_no_more_for_more_blocks():
    def peak(depth: int) -> int:
        network = networks.make(networks.small(depth=depth), 0, batch=400)
        network.model.predict(network.params, network.images)  # the list is made once
        tracemalloc.start()
        try:
            network.model.predict(network.params, network.images)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(9) < 1.05 * peak(2)


@given(ANY, strategies.seeds())
def test_backward_leaves_its_cache_and_what_it_was_given(config, seed):
    """Read-only arrays everywhere, and two backwards of one cache."""
    network = networks.make(config, seed)
    _, cache = network.model.forward(network.params, network.images)
    networks.freeze([*cache.nodes.values()])
    first, second = (network.model.backward(network.dlogits, cache) for _ in range(2))
    for a, b in zip(networks.arrays(first), networks.arrays(second), strict=True):
        np.testing.assert_array_equal(a, b)


# What cannot be walked


def refused(action: Callable[[], object]) -> str:
    """What the error says; nothing where there is none."""
    try:
        action()
    except RefimplError as error:
        return str(error)
    return ""


def test_a_value_or_parameter_that_nobody_reads_is_refused():
    """It would have no gradient."""
    listed = binary.network(BRANCHED["didb"])
    last = len(listed.nodes) - 1
    unread = listed.nodes[last].inputs[0]
    bands = next(node for node in listed.nodes if node.op == "bands")
    lost = listed.nodes[last]._replace(inputs=(INPUT,))
    for node, at in ((lost, last), (bands, listed.maker[bands.name])):
        nodes = list(listed.nodes)
        nodes[at] = node._replace(outputs=(*node.outputs, "more")) if node is bands else node
        name = "more" if node is bands else unread
        said = refused(lambda nodes=tuple(nodes): dataclasses.replace(listed, nodes=nodes))
        assert said == f"{name}: no operation reads it; expected one that does"
    extra = {**listed.parameters, "extra": next(iter(listed.parameters.values()))}
    said = refused(lambda: dataclasses.replace(listed, parameters=extra))
    assert said == "extra: no operation reads it; expected one that does"


@pytest.mark.parametrize("name", ["too few", "too many"])
def test_one_gradient_comes_back_for_each_argument(name):
    network = networks.make(BRANCHED["react"], 0)
    _, cache = network.model.forward(network.params, network.images)

    def backward(dy, cache):
        found = ops.layer_norm.backward(dy, cache)
        return found[:-1] if name == "too few" else (*found, dy)

    wrong = SimpleNamespace(forward=None, backward=backward)
    names = [op for op in ops.__all__ if op != "layer_norm"]
    backend = SimpleNamespace(layer_norm=wrong, **{op: getattr(ops, op) for op in names})
    count = {"too few": 2, "too many": 4}[name]
    said = refused(lambda: interpreter.backward(network.dlogits, cache._replace(backend=backend)))
    assert said.endswith(f"norm.bias: found {count} gradients; expected 3")
