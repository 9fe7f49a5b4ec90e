"""Forward and backward of any network: its list of operations in order, then from behind.

A value is freed when its last reader has run. Backward adds up what every reader of a value sends
back. A listener hears every tap; without one, a backend may run a unit of nodes as one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from refimpl import ops
from refimpl.conventions import NonFiniteError, ShapeError
from refimpl.models import insides, replay, units
from refimpl.models.nodes import INPUT, Network, Node
from refimpl.models.replay import Replay
from refimpl.models.units import Step

Flat = Mapping[str, np.ndarray]  # parameters or gradients by path


class Tap(Protocol):
    """A listener, called once for each named value of a run, in order of computation [SPEC 8.1].

    `value` is bool for a bit (True is +1, or 1 where the tensor is boolean), int32 for an exact
    product, the float type of the parameters otherwise. `op` is a pure function with its
    parameters bound, `inputs` the names of the values it reads: `op(*inputs)` is `value` again,
    bits and whole numbers exactly, floats to rounding. The image is "input", the gradient of tap t
    is "grads/t", of a parameter "grads/param.<path>"; the op of "grads/logits", which is given, is
    None.
    """

    def __call__(
        self,
        name: str,
        value: np.ndarray,
        op: Callable[..., np.ndarray] | None,
        inputs: Sequence[str],
    ) -> None: ...


class Ran(NamedTuple):
    """A unit that ran as one: what it read, parameters too, and the cache of its twin."""

    args: list[np.ndarray]
    cache: Any


class Cache(NamedTuple):
    """What forward leaves for backward."""

    network: Network
    params: Flat
    backend: Any
    batch: int
    nodes: dict[int, Any]  # cache of each node that ran
    units: dict[int, Ran]  # of each unit that ran as one, by its last node

    def __repr__(self) -> str:
        return f"Cache({self.network}, {self.batch} images)"


def forward(
    network: Network,
    params: Flat,
    images: np.ndarray,
    *,
    backend: Any = ops,
    tap: Tap | None = None,
    keep: bool = True,
) -> tuple[np.ndarray, Cache]:
    """Run images (B, channels, H, W) -> (logits, cache); with `keep` false the cache is empty."""
    cache, values = Cache(network, params, backend, len(images), {}, {}), {INPUT: images}
    for step in units.steps_of(network, _twins(network, backend) if tap is None else frozenset()):
        if step.unit is None or not _run_unit(step, values, cache):
            for i in step.nodes:
                _run_node(i, values, cache)
                if tap is not None:
                    _show_forward(i, values, cache, tap)
        if not keep:
            cache.nodes.clear()
            cache.units.clear()
        for name in step.free:
            values.pop(name, None)
    return values[network.output], cache


def resized(network: Network, params: Flat, other: Network) -> dict[str, np.ndarray]:
    """Give the parameters of `other`, the network for another size of image, from those given.

    network: `other` as it reads `params`: what the two lists do not share is what interpolates.
    """
    cache, values = Cache(network, params, ops, 0, {}, {}), {}
    made = {}
    for name, i in network.of_parameters.items():
        if name in other.of_parameters:
            continue
        _run_node(i, values, cache)
        made[network.nodes[i].params[0]] = values[name]
    return {**params, **made}


def _run_node(i: int, values: dict[str, np.ndarray], cache: Cache) -> None:
    node = cache.network.nodes[i]
    args = [_argument(name, values, cache.params) for name in node.args]
    try:
        y, cache.nodes[i] = getattr(cache.backend, node.op).forward(*args, **node.attributes)
    except NonFiniteError as error:
        raise NonFiniteError(error.message, layer=node.where) from None
    values.update(zip(node.outputs, y if len(node.outputs) > 1 else (y,), strict=True))


def _argument(name: str, values: Flat, params: Flat) -> np.ndarray:
    return params[name] if name in params else values[name]


def _twins(network: Network, backend: Any) -> frozenset[str]:
    """Kinds of units that the backend may run as one."""
    return frozenset(unit.op for unit in network.units if hasattr(backend, unit.op))


def _run_unit(step: Step, values: dict[str, np.ndarray], cache: Cache) -> bool:
    """Run it as one, where its twin can."""
    args = [_argument(name, values, cache.params) for name in (*step.inputs, *step.params)]
    twin = getattr(cache.backend, step.unit.op)
    found = twin.forward(*args, **step.unit.attributes)
    if found is None:
        return False
    last = step.nodes[-1]
    values[cache.network.nodes[last].name], of_twin = found
    cache.units[last] = Ran(args, of_twin)
    return True


def backward(
    dlogits: np.ndarray, cache: Cache, tap: Tap | None = None
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Send dlogits, like the logits, back -> (dimages, gradients of the parameters by path).

    Reads the cache and leaves it as it was.
    """
    network, gradients = cache.network, {cache.network.output: dlogits}
    if tap is not None:
        cache = _step_by_step(cache)
        given = replay.given(network)
        tap(given.name, dlogits, given.make, given.reads)
    steps = units.steps_of(network, _twins(network, cache.backend) if cache.units else frozenset())
    fused = {step.nodes[-1]: step for step in steps if step.nodes[-1] in cache.units}
    done = {i for step in fused.values() for i in step.nodes}
    for place, i in enumerate(network.backward_order):
        if i in fused:
            _unit_backward(fused[i], gradients, cache)
        if i in done:
            continue
        node = network.nodes[i]
        dys = [gradients.pop(name) for name in node.outputs]
        dy = dys[0] if len(dys) == 1 else tuple(dys)
        found = getattr(cache.backend, node.op).backward(dy, cache.nodes[i])
        _add(gradients, node.args, found)
        _through_parameters(node.params, gradients, cache)
        if tap is not None:
            _show_backward(place, dy, gradients, cache, tap)
    return gradients.pop(INPUT), gradients


def _add(
    gradients: dict[str, np.ndarray], names: Sequence[str], found: Sequence[Any], own: bool = False
) -> None:
    """Add one gradient to each name; of optional arguments that were left out there is None.

    own: what is found is nobody else's, as that of a unit's twin, and may take the sum.
    """
    given = [gradient for gradient in found if gradient is not None]
    if len(given) != len(names):
        listed = ", ".join(names)
        raise ShapeError(f"{listed}: found {len(given)} gradients; expected {len(names)}")
    for name, gradient in zip(names, given, strict=True):
        if name in gradients:
            gradient = np.add(gradients[name], gradient, out=gradient if own else None)
        gradients[name] = gradient


def _through_parameters(
    names: Sequence[str], gradients: dict[str, np.ndarray], cache: Cache
) -> None:
    """Back through the nodes that made values of parameters alone."""
    network = cache.network
    for name in names:
        if name in network.of_parameters:
            i = network.of_parameters[name]
            op = getattr(cache.backend, network.nodes[i].op)
            found = op.backward(gradients.pop(name), cache.nodes[i])
            _add(gradients, network.nodes[i].params, found)


def _unit_backward(step: Step, gradients: dict[str, np.ndarray], cache: Cache) -> None:
    last = step.nodes[-1]
    dy = gradients.pop(cache.network.nodes[last].name)
    twin = getattr(cache.backend, step.unit.op)
    found = twin.backward(dy, cache.units[last].cache)
    _add(gradients, [*step.inputs, *step.params], found, own=True)
    _through_parameters(step.params, gradients, cache)


# --- for listeners ---


def _step_by_step(cache: Cache) -> Cache:
    """The cache with every unit that ran as one taken apart: a listener wants each node."""
    network, nodes = cache.network, dict(cache.nodes)
    part = cache._replace(backend=ops, nodes=nodes)
    for step in units.steps_of(network, _twins(network, cache.backend)):
        if step.nodes[-1] in cache.units:
            names, args = (*step.inputs, *step.params), cache.units[step.nodes[-1]].args
            values = dict(zip(names, args, strict=True))
            for i in step.nodes:
                _run_node(i, values, part)
    return cache._replace(nodes=nodes, units={})


def _show_forward(i: int, values: Flat, cache: Cache, tap: Tap) -> None:
    network, params = cache.network, cache.params
    node = network.nodes[i]
    steps = _arguments(node, values, params)
    for shown in replay.taps(network).forward[i]:
        if shown.what == "output":
            value = insides.to_tap(shown.kind, values[shown.source])
        else:
            step = insides.of(node).values[shown.what]
            value = steps[shown.what] = step.function(*(steps[read] for read in step.reads))
        tap(shown.name, value, Replay(shown, network, params), shown.reads)


def _show_backward(place: int, dy: Any, gradients: Flat, cache: Cache, tap: Tap) -> None:
    network, params = cache.network, cache.params
    for shown in replay.taps(network).backward[place]:
        if shown.source:
            value = gradients[shown.source]
        else:
            node = network.nodes[shown.node]
            step = insides.of(node).gradients[shown.what.removeprefix("d.")]
            steps = {"d": dy, **_arguments(node, {}, params)}
            value = step.function(*(steps[read] for read in step.reads))
        tap(shown.name, value, Replay(shown, network, params), shown.reads)


def _arguments(node: Node, values: Flat, params: Flat) -> dict[str, np.ndarray]:
    """What the steps inside a node read of it, by their names for it."""
    known = {**values, **params}
    return {key: known[name] for key, name in zip(node.keys, node.args) if name in known}
