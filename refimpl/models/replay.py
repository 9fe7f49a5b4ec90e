"""Every value that a listener hears, with the function that makes it again from others [SPEC 8.1].

A tap is made from the nearest others, through whatever hidden nodes lie between: forward by the
nodes themselves, backward by adding up what each reader of a value sends back. All of it follows
from the list of nodes; an `Evaluator` says in which arithmetic, and with which mistake.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from refimpl import ops
from refimpl.models import insides
from refimpl.models.insides import Inside, Step
from refimpl.models.nodes import INPUT, Network, Node, Shape
from refimpl.models.operations import OPERATIONS, cache_of, forward

GRADS = "grads/"
PARAM = "grads/param."
Make = Callable[["Evaluator"], Any]


class Shown(NamedTuple):
    """A value or gradient with a name."""

    name: str
    kind: str  # "bit", "int" or "real"
    node: int  # that makes it; of a gradient, the last one that adds to it
    what: str  # "output" or a step inside the node; of gradients "d.value", "d.param", "d." a step
    source: str  # the value or parameter; of a step ""
    reads: tuple[str, ...]
    nodes: tuple[int, ...]  # that the replay runs, in the order of the list
    params: tuple[str, ...]  # that it takes, by path
    make: Make | None  # None of what is given, the gradient of the logits


class Evaluator:
    """How replay computes: with NumPy, on taps and parameters by name."""

    def __init__(self, taps: Mapping[str, Any], params: Mapping[str, np.ndarray]):
        self.taps, self.params = taps, params
        self.dtype = next(iter(params.values())).dtype

    def forward(self, node: Node, args: list[Any]) -> Any:
        """Compute the output of a node; a tuple where it has several."""
        return forward(node, args)

    def backward(self, node: Node, dy: Any, args: list[Any], output: Any, position: int) -> Any:
        """Compute the gradient of the argument at `position`."""
        return getattr(ops, node.op).backward(dy, cache_of(node, args, output))[position]

    def step(self, node: Node, key: str, function: Callable, args: list[Any]) -> Any:
        """Compute a step inside a node; of gradients, key begins with "d."."""
        return function(*args)


class Replay:
    """The function that a tap is handed: `replay(*inputs)` is the value again."""

    def __init__(self, shown: Shown, network: Network, params: Mapping[str, np.ndarray]):
        self.shown, self.network, self.params = shown, network, params

    @property
    def node(self) -> Node:
        """The node that makes the value; of a gradient, the last one that adds to it."""
        return self.network.nodes[self.shown.node]

    def __call__(self, *inputs: np.ndarray) -> np.ndarray:
        return self.run(inputs, Evaluator)

    def run(
        self, inputs: Sequence[Any], evaluator: Callable[..., Evaluator], params: Any = None
    ) -> Any:
        """Compute the value in another arithmetic, or with other parameters, flat by path."""
        taps = dict(zip(self.shown.reads, inputs, strict=True))
        return self.shown.make(evaluator(taps, self.params if params is None else params))


class Taps(NamedTuple):
    """What is shown behind each node: forward by its index, backward by its place in the order."""

    forward: list[list[Shown]]
    backward: list[list[Shown]]


@functools.lru_cache(maxsize=8)
def taps(network: Network) -> Taps:
    """List all taps of a network, in order of computation."""
    visible = _Visible(network)
    return Taps(
        [_of_node(visible, i) for i in range(len(network.nodes))],
        [[_of_gradient(visible, t) for t in targets] for targets in _schedule(visible)],
    )


def given(network: Network) -> Shown:
    """Name the gradient of the logits, which is given."""
    source, last = network.output, len(network.nodes) - 1
    return Shown(GRADS + source, "real", last, "d.value", source, (), (), (), None)


class _Visible:
    """Which values and gradients are shown."""

    def __init__(self, network: Network):
        self.network = network
        self.inside: dict[int, Inside] = {
            i: found for i, node in enumerate(network.nodes) if (found := insides.of(node))
        }
        self.kinds = {INPUT: "real"}
        self.gradients = {INPUT}
        for node in network.nodes:
            kind = "real" if node.tap == "reader" else node.tap
            if kind in ("real", "bit", "int"):
                self.kinds |= dict.fromkeys(node.outputs, kind)
            if kind in ("real", "bit", "gradient"):
                self.gradients.update(node.outputs)


def _of_node(visible: _Visible, i: int) -> list[Shown]:
    """Taps of a node: what a reader was to show, the steps inside, the outputs."""
    nodes, maker = visible.network.nodes, visible.network.maker
    node, inside = nodes[i], visible.inside.get(i, Inside({}, None, {}))
    steps = [_of_step(visible, i, key, step) for key, step in inside.values.items()]
    made = [name for name in node.inputs if name in maker and nodes[maker[name]].tap == "reader"]
    readers = [_of_output(visible, maker[name], name) for name in made]
    shown = node.outputs if node.tap in ("real", "bit", "int") else ()
    outputs = [_of_output(visible, i, name) for name in shown]
    # z stands beside its bit
    before = [*inside.values].index("bit") if "bit" in inside.values else len(steps)
    return [*steps[:before], *readers, *steps[before:], *outputs]


def _of_step(visible: _Visible, i: int, key: str, step: Step) -> Shown:
    name = visible.network.nodes[i].inside[key]
    maker = _Maker(visible, value=name)
    make = maker.step(i, key, step)
    return Shown(name, step.kind, i, key, "", *maker.found(), make)


def _of_output(visible: _Visible, i: int, name: str) -> Shown:
    maker, kind = _Maker(visible, value=name), visible.kinds[name]
    made = maker.made(name)
    return Shown(
        name, kind, i, "output", name, *maker.found(), lambda e: insides.to_tap(kind, made(e))
    )


class _Target(NamedTuple):
    """A gradient: of a value or parameter, or of a step inside a node."""

    source: str
    node: int
    step: str = ""


def _of_gradient(visible: _Visible, target: _Target) -> Shown:
    network, (source, i, step) = visible.network, target
    maker = _Maker(visible, gradient=source)
    if step:
        name, what = GRADS + network.nodes[i].inside[step], f"d.{step}"
        make = maker.step(i, what, visible.inside[i].gradients[step])
    elif source in network.parameters:
        name, what, make = PARAM + source, "d.param", maker.summed(source)
    else:
        name, what, make = GRADS + source, "d.value", maker.summed(source)
    return Shown(name, "real", i, what, source, *maker.found(), make)


def _schedule(visible: _Visible) -> list[list[_Target]]:
    """For each place in the order of backward: what is complete, and shown, behind it.

    What several branches read is shown behind the last of them, in the order of the list; behind
    it the parameters of what combines them.
    """
    network, found = visible.network, []
    left = {name: len(readers) for name, readers in network.readers.items()}
    regions = {i: region for region in network.branches for branch in region for i in branch}
    waiting: list[_Target] = []
    late: list[_Target] = []
    for i in network.backward_order:
        now, region = [], regions.get(i)
        for target in _targets(visible, i):
            if not target.step:
                left[target.source] -= 1
                if left[target.source] or not _has_gradient(visible, target.source):
                    continue
            is_param = target.source in network.parameters
            if is_param and OPERATIONS[network.nodes[i].op].late:
                late.append(target)
            elif region and network.maker.get(target.source, i) < min(region[0]):
                waiting.append(target)
            else:
                now.append(target)
        if region and i == min(region[-1]):
            waiting.sort(key=lambda target: network.maker[target.source])
            now, waiting, late = [*now, *waiting, *late], [], []
        elif now and not region:
            now, late = [*late, *now], []
        found.append(now)
    return found


def _targets(visible: _Visible, i: int) -> list[_Target]:
    """Gradients that the backward of a node adds to: as a rule of parameters, then of inputs."""
    network = visible.network
    node, made = network.nodes[i], network.of_parameters
    args = [
        _Target(network.nodes[made[name]].params[0] if name in made else name, i)
        for name in node.args
    ]
    if i in visible.inside:
        keys = visible.inside[i].gradients
        places = dict(zip(node.keys, args, strict=True))
        return [places.get(key, _Target("", i, key)) for key in keys]
    first = len(node.inputs)
    order = OPERATIONS[node.op].order or (*range(first, len(args)), *range(first))
    return [args[k] for k in order]


def _has_gradient(visible: _Visible, name: str) -> bool:
    return name in visible.network.parameters or name in visible.gradients


def _blank(shape: Shape, dy: np.ndarray, of_output: Shape, dtype: np.dtype) -> np.ndarray:
    """In the place of an input of which backward reads no more than the shape."""
    batch = dy.shape[0] // of_output[0]
    return np.broadcast_to(dtype.type(0), (batch * shape[0], *shape[1:]))


class _Maker:
    """Finds how one tap follows from others, and which; its own name is not among them."""

    def __init__(self, visible: _Visible, value: str = "", gradient: str = ""):
        self.visible, self.network = visible, visible.network
        self.own_value, self.own_gradient = value, gradient
        self.reads: dict[str, None] = {}
        self.nodes: set[int] = set()
        self.params: dict[str, None] = {}

    def found(self) -> tuple[tuple[str, ...], tuple[int, ...], tuple[str, ...]]:
        """Taps that are read, nodes that run, parameters that are taken."""
        return tuple(self.reads), tuple(sorted(self.nodes)), tuple(self.params)

    def value(self, name: str) -> Make:
        """A value or parameter, from the nearest taps."""
        if name in self.network.parameters:
            self.params[name] = None
            return lambda e: e.params[name]
        if name in self.visible.kinds and name != self.own_value:
            kind, heard = self.visible.kinds[name], self._read(name)
            return lambda e: insides.from_tap(kind, heard(e), e.dtype)
        for i, position in self.network.readers.get(name, []):
            node, inside = self.network.nodes[i], self.visible.inside.get(i)
            key = f"x{position}"
            if inside and key in inside.recovered and self.own_value not in node.inside.values():
                return self.step(i, key, inside.recovered[key])
        return self.made(name)

    def made(self, name: str) -> Make:
        """A value, by the node that makes it."""
        i = self.network.maker[name]
        node = self.network.nodes[i]
        self.nodes.add(i)
        if i in self.visible.inside:
            return self.step(i, "output", self.visible.inside[i].output)
        args = [self.value(arg) for arg in node.args]
        if len(node.outputs) == 1:
            return lambda e: e.forward(node, [arg(e) for arg in args])
        which = node.outputs.index(name)
        return lambda e: e.forward(node, [arg(e) for arg in args])[which]

    def gradient(self, name: str) -> Make:
        """The gradient of a value."""
        if name in self.visible.gradients and name != self.own_gradient:
            return self._read(GRADS + name)
        for term in self._terms(name):
            return self._read(GRADS + term)
        return self.summed(name)

    def summed(self, name: str) -> Make:
        """The sum of what the readers of a value or parameter send back."""
        readers = self.network.readers[name]
        parts = {reader: self._part(*reader) for reader in sorted(readers)}
        first, *others = [parts[reader] for reader in readers]

        def total(e: Evaluator) -> Any:
            found = first(e)
            for other in others:
                found = found + other(e)
            return found

        return total

    def step(self, i: int, key: str, step: Step) -> Make:
        """A step inside a node."""
        node = self.network.nodes[i]
        self.nodes.add(i)
        args = [self._of_step(node, read) for read in step.reads]
        return lambda e: e.step(node, key, step.function, [arg(e) for arg in args])

    def _of_step(self, node: Node, read: str) -> Make:
        args = dict(zip(node.keys, node.args, strict=True))
        if read in args:
            return self.value(args[read])
        if read == "d":
            return self.gradient(node.name)
        if read.startswith("d."):
            return self._read(GRADS + node.inside[read.removeprefix("d.")])
        return self._read(node.inside[read])

    def _terms(self, name: str):
        """Terms of a hidden sum whose gradient is shown and is that of the sum."""
        node = self.network.nodes[self.network.maker[name]]
        for term in node.inputs if node.op == "add" and not node.tap else ():
            alone = len(self.network.readers[term]) == 1
            if alone and term in self.visible.gradients and term != self.own_gradient:
                yield term

    def _part(self, i: int, position: int) -> Make:
        """What a node sends back to one of its arguments."""
        node = self.network.nodes[i]
        if i in self.visible.inside:
            key = node.keys[position]
            return self.step(i, f"d.{key}", self.visible.inside[i].gradients[key])
        self.nodes.add(i)
        operation, first = OPERATIONS[node.op], len(node.inputs)
        dys = [self.gradient(output) for output in node.outputs]
        needed = () if operation.of_output else operation.needs(position)
        args = [
            self.value(arg) if k in needed or k >= first else None
            for k, arg in enumerate(node.args)
        ]
        shapes = [self.network.shapes.get(name) for name in (*node.args, node.name)]
        output = self.value(node.name) if operation.of_output else lambda e: None

        def part(e: Evaluator) -> Any:
            dy = [d(e) for d in dys]
            given = [
                _blank(shape, dy[0], shapes[-1], e.dtype) if arg is None else arg(e)
                for arg, shape in zip(args, shapes)
            ]
            dy = dy[0] if len(dy) == 1 else tuple(dy)
            return e.backward(node, dy, given, output(e), position)

        return part

    def _read(self, tap: str) -> Make:
        self.reads[tap] = None
        return lambda e: e.taps[tap]
