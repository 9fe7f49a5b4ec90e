"""A network as a list of named operations, made before any number is known [SPEC 6].

`Node` is meant as in ONNX: an operation of `refimpl.ops` on named values and parameters. The list
is in order of computation; walked from behind, it is the backward pass. Forward, backward, taps,
replay, shapes, parameters and costs follow from it and from nothing else: `binary.py`, `real.py`,
`decoders.py` and `others.py` write the lists, `interpreter.py` and `replay.py` walk them, and
`structure.py` finds the parts of a block again by what they do.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from refimpl.conventions import ConfigError
from refimpl.models.operations import OPERATIONS
from refimpl.models.stage import Stage

INPUT = "input"  # the name of the image
Shape = tuple[int, ...]


class Role(NamedTuple):
    """What kind of parameter one is: all that depends on it depends on this, not on its name."""

    start: float | None = 0.0  # every entry of a fresh one [SPEC 6.6]; None: drawn
    decayed: bool = False  # by the optimizer [SPEC 7]
    binary: bool = False  # its sign and scale are used, not itself [SPEC 2]
    per_token: bool = False  # has an entry a token, interpolated for other images [SPEC 6.3]
    factor: bool = False  # multiplies: 1, not 0, leaves it out


ROLES = {
    "matrix": Role(None, decayed=True, factor=True),
    "kernel": Role(None, decayed=True, factor=True),
    "latent_matrix": Role(None, factor=True),  # of a binary layer that is not binarized
    "binary_matrix": Role(None, binary=True, factor=True),
    "class_token": Role(None),
    "position": Role(None, per_token=True),
    "position_bias": Role(None),
    "gain": Role(1.0, factor=True),
    "bias": Role(),
    "move": Role(),
    "shift": Role(),
    "token_shift": Role(per_token=True),
    "slope": Role(0.25, factor=True),
    "alpha": Role(factor=True),  # starts at 1 / keys
    "band_weight": Role(0.5, factor=True),
    "shortcut": Role(1.0, factor=True),
    "neighbour": Role(),
    "layer_scale": Role(0.1, factor=True),
    "running_mean": Role(),  # frozen: its gradient is 0
    "running_variance": Role(1.0, factor=True),  # frozen, too
}


class Parameter(NamedTuple):
    """One array of the parameters, by its dotted path [SPEC 6.4]."""

    path: str
    shape: Shape
    role: str
    layer: str  # the row of `summary` that it belongs to
    block: int | None  # None outside blocks
    start: float | None

    @property
    def traits(self) -> Role:
        return ROLES[self.role]


class Node(NamedTuple):
    """An operation with names for what it reads and gives."""

    name: str  # of its first output
    op: str  # a module of refimpl.ops
    inputs: tuple[str, ...]
    params: tuple[str, ...]  # paths, or names of values made of parameters alone
    attributes: Mapping[str, Any]
    outputs: tuple[str, ...]
    tap: str  # what a listener hears: "real", "bit", "int", "gradient" alone, or "" nothing
    inside: Mapping[str, str]  # names of the values inside the operation, see `insides`
    layer: str  # the row of `summary` to which its work belongs
    where: str  # the layer that a NonFiniteError names
    stage: Stage  # where it works: its grid and heads
    block: int | None  # counted through the network; None outside blocks
    shell: bool  # a place between blocks, where a port may begin to compare

    @property
    def args(self) -> tuple[str, ...]:
        """Everything that it reads, in the order of the operation's arguments."""
        return self.inputs + self.params

    @property
    def keys(self) -> tuple[str, ...]:
        """What `insides` calls the arguments: "x0", "x1", … inputs, "p0", … parameters."""
        inputs, params = range(len(self.inputs)), range(len(self.params))
        return (*(f"x{k}" for k in inputs), *(f"p{k}" for k in params))


class Unit(NamedTuple):
    """Nodes for which a backend may have one twin, where nobody listens.

    Nothing but the last one's output is read by others. So the twin runs in its place, with what
    its nodes read of others and then their parameters, in the order of the list.
    """

    op: str
    nodes: tuple[int, ...]  # in order; others may stand between them
    attributes: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Network:
    """The list, and what is known of it before any number is. No two are equal: it is a key."""

    nodes: tuple[Node, ...]
    parameters: Mapping[str, Parameter]
    # Of every value for one image; with windows the first axis counts those of an image.
    shapes: Mapping[str, Shape]
    units: tuple[Unit, ...] = ()
    # Regions of the list in which several branches lie beside each other, each the indices of its
    # nodes. Backward walks branch after branch in this order, so that sums of gradients run from
    # left to right as sums of values do.
    branches: tuple[tuple[tuple[int, ...], ...], ...] = ()

    def __post_init__(self) -> None:
        """Refuse a list in which backward would find no gradient of something."""
        read = {name for node in self.nodes for name in node.args} | {self.output}
        for name in (*self.parameters, *(name for node in self.nodes for name in node.outputs)):
            if name not in read:
                raise ConfigError(f"{name}: no operation reads it; expected one that does")

    def __repr__(self) -> str:
        counts = f"{len(self.nodes)} operations, {len(self.parameters)} parameters"
        return f"Network({counts}, {self.output} {self.shapes[self.output]} for one image)"

    @property
    def output(self) -> str:
        """The name of the logits."""
        return self.nodes[-1].name

    def shape(self, name: str) -> Shape:
        """Give the shape of a parameter, or of a value for one image."""
        return self.parameters[name].shape if name in self.parameters else self.shapes[name]

    @functools.cached_property
    def maker(self) -> dict[str, int]:
        """Value -> index of the node that gives it."""
        return {name: i for i, node in enumerate(self.nodes) for name in node.outputs}

    @functools.cached_property
    def of_parameters(self) -> dict[str, int]:
        """Value that is made of a parameter alone -> index of the node that gives it."""
        return {node.name: i for i, node in enumerate(self.nodes) if not node.inputs}

    @functools.cached_property
    def readers(self) -> dict[str, list[tuple[int, int]]]:
        """Value or parameter -> (node, position among its arguments), in order of backward."""
        found: dict[str, list[tuple[int, int]]] = {}
        for i in (*self.backward_order, *self.of_parameters.values()):
            for position, name in enumerate(self.nodes[i].args):
                found.setdefault(name, []).append((i, position))
        return found

    @functools.cached_property
    def backward_order(self) -> list[int]:
        """Indices of the nodes from behind; branches in their own order.

        Nodes that read parameters alone go back with the node that reads them.
        """
        order = list(range(len(self.nodes)))
        for region in self.branches:
            begin, end = min(region[0]), 1 + max(region[-1])
            order[begin:end] = [i for branch in reversed(region) for i in branch]
        return [i for i in reversed(order) if self.nodes[i].inputs]


class Builder:
    """Collects nodes and parameters; calling it adds a node and gives the name of its output."""

    def __init__(self, input_shape: Shape, stage: Stage):
        self.nodes: list[Node] = []
        self.of_parameters: list[Node] = []  # values made of parameters alone; first in the list
        self.parameters: dict[str, Parameter] = {}
        self.shapes: dict[str, Shape] = {INPUT: input_shape}
        self._units: list[Unit] = []
        self._unit: list[int] = []  # nodes of the innermost unit that is open
        self._regions: list[dict[Any, list[int]]] = []
        self._branch: list[int] = []
        self.layer = self.where = ""
        self.block: int | None = None
        self.stage = stage

    def __call__(
        self,
        name: str | Sequence[str],
        op: str,
        inputs: Sequence[str],
        params: Sequence[str] = (),
        *,
        tap: str = "real",
        inside: Mapping[str, str] | None = None,
        shell: bool = False,
        **attributes: Any,
    ) -> Any:
        """Add a node; several names where the operation gives several values."""
        outputs = (name,) if isinstance(name, str) else tuple(name)
        node = Node(
            outputs[0], op, tuple(inputs), tuple(params), attributes, outputs,
            tap, dict(inside or {}), self.layer, self.where, self.stage, self.block, shell,
        )  # fmt: skip
        if inputs:
            self._branch.append(len(self.nodes))
            self._unit.append(len(self.nodes))
            self.nodes.append(node)
        else:
            self.of_parameters.append(node)
        shapes = OPERATIONS[op].shape(*(self._shape(arg) for arg in node.args), **attributes)
        self.shapes.update(zip(outputs, shapes if len(outputs) > 1 else [shapes], strict=True))
        return outputs[0] if isinstance(name, str) else outputs

    def hidden(
        self, name: str, op: str, inputs: Sequence[str], params: Sequence[str] = (), **more: Any
    ) -> str:
        """Add a node whose output no listener hears."""
        return self(name, op, inputs, params, tap="", **more)

    def at(self, layer: str, where: str | None = None) -> None:
        """Say to which layer the next nodes and parameters belong."""
        self.layer, self.where = layer, where or layer

    def param(self, path: str, shape: Shape, role: str, start: float | None = None) -> str:
        """Declare a parameter, in the order of files; its path."""
        start = ROLES[role].start if start is None else start
        self.parameters[path] = Parameter(path, shape, role, self.layer, self.block, start)
        return path

    def put_last(self, path: str) -> None:
        """Let a parameter that is declared already stand behind all others in files."""
        self.parameters[path] = self.parameters.pop(path)

    @contextmanager
    def branches(self) -> Iterator[Callable[[Any], None]]:
        """Hold branches that lie beside each other; what is given enters one, by any key."""
        region: dict[Any, list[int]] = {}
        outer, self._regions = self._branch, [*self._regions, region]

        def enter(key: Any) -> None:
            self._branch = region.setdefault(key, [])

        yield enter
        self._branch = outer

    @contextmanager
    def unit(self, op: str, **attributes: Any) -> Iterator[None]:
        """Hold the nodes of a unit, but those of units in it."""
        outer, self._unit = self._unit, []
        yield
        self._units.append(Unit(op, tuple(self._unit), attributes))
        self._unit = outer

    def network(self) -> Network:
        """Give the finished list."""
        first = len(self.of_parameters)
        return Network(
            (*self.of_parameters, *self.nodes),
            self.parameters,
            self.shapes,
            tuple(
                unit._replace(nodes=tuple(first + i for i in unit.nodes)) for unit in self._units
            ),
            tuple(
                tuple(tuple(first + i for i in branch) for branch in region.values())
                for region in self._regions
            ),
        )

    def _shape(self, name: str) -> Shape:
        return self.parameters[name].shape if name in self.parameters else self.shapes[name]
