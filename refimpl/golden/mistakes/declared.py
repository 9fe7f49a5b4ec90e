"""What a known mistake is: a small edit of one place where a network computes.

A place is a *site*: a node forward ("output"), a step inside it ("bit", "weight.scale", …), or what
it sends back to an argument ("d.x0": the gradient of its first input, "d.p0" of its first
parameter). A mistake is declared for an operation and a site once, and holds for every node that
has the operation:

    @mistake("layer_norm", words="eps outside the root")
    def eps_outside(call): ...          # the wrong value, from call.args

    @family("rprelu")
    def slopes(site): ...               # yields Mistakes, where there are several of a kind
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from refimpl import ops
from refimpl.conventions import RefimplError
from refimpl.models import insides
from refimpl.models.nodes import Network, Node
from refimpl.models.operations import cache_of, forward
from refimpl.models.replay import Evaluator

OUTPUT = "output"
NUMBERS = "numbers"  # of an output: what only the candidate's own numbers show


class Site(NamedTuple):
    """A place where a network computes."""

    network: Network
    node: Node
    what: str  # "output", a step of `insides`, or "d." and the key of an argument or step

    @property
    def key(self) -> tuple[str, str]:
        """Which place of its network it is."""
        return self.node.name, self.what

    @property
    def is_backward(self) -> bool:
        return self.what.startswith("d.")

    @property
    def keys(self) -> tuple[str, ...]:
        """What it reads: "x0" an input, "p0" a parameter, "d" a gradient, "y" the output, steps."""
        step = _step(self.node, self.what)
        if step is not None:
            return step.reads
        own = self.node.keys
        return ("d", *own, "y") if self.is_backward else own

    @property
    def context(self) -> tuple[str, ...]:
        """The operations in front of its node, and those behind it."""
        network, nodes = self.network, self.network.nodes
        before = (nodes[network.maker[x]].op for x in self.node.inputs if x in network.maker)
        behind = (nodes[i].op for i, _ in network.readers.get(self.node.name, ()))
        return (*before, "", *sorted(behind))

    def name(self, key: str) -> str:
        """What the network calls an argument."""
        named = dict(zip(self.node.keys, self.node.args, strict=True))
        return named.get(key) or self.node.inside.get(key, self.node.name)


class Call:
    """One run of a site, to be done wrongly."""

    def __init__(
        self,
        site: Site,
        args: list[Any],
        params: Mapping[str, np.ndarray],
        value: Callable[[str], Any],
        given: Mapping[str, np.ndarray],
    ):
        self.site, self.node, self.keys, self.args = site, site.node, site.keys, args
        self.params, self.value = params, value  # all parameters, by path; any tap, by name
        self.given = given  # what the candidate dumped

    def __getitem__(self, key: str) -> Any:
        """An argument by its key."""
        return self.args[self.keys.index(key)]

    def real(self, name: str) -> np.ndarray:
        """Any tap as operations compute with it: bits as -1 and +1."""
        return self.signed(self.value(name))

    @staticmethod
    def signed(found: np.ndarray) -> np.ndarray:
        """A tap as operations compute with it."""
        return insides.signs(found, np.float64) if found.dtype == bool else found.astype(np.float64)

    def right(self, changes: Mapping[str, Any] | None = None, **attributes: Any) -> Any:
        """What the site should give, of other arguments (by key) or with other attributes."""
        args = [(changes or {}).get(k, a) for k, a in zip(self.keys, self.args, strict=True)]
        node = self.node
        if attributes:
            node = node._replace(attributes={**node.attributes, **attributes})
        return run(node, self.site.what, args)

    def right_of(self, *args: Any) -> Any:
        """What the site should give of these arguments, in their order."""
        return self.right(dict(zip(self.keys, args)))


Edit = Callable[[Call], Any]  # the wrong value; None where the mistake is impossible


class Mistake(NamedTuple):
    """Something that a port does wrongly at a site."""

    words: str
    edit: Edit
    kind: str = ""  # the words without names of this site: the same mistake at another one
    rank: int = 0  # of two that explain the same, the one with the smaller rank is meant
    needs: str = ""  # what a network must have to show it, where few do

    @property
    def sort(self) -> str:
        return self.kind or self.words


Family = Callable[[Site], Iterator[Mistake]]
DECLARED: dict[tuple[str, str], list[Family]] = {}


def family(*names: str, what: str = OUTPUT) -> Callable[[Family], Family]:
    """Declare mistakes of operations at one of their sites."""

    def register(function: Family) -> Family:
        for op in names:
            DECLARED.setdefault((op, what), []).append(function)
        return function

    return register


def mistake(*names: str, words: str, what: str = OUTPUT, rank: int = 0) -> Callable[[Edit], Edit]:
    """Declare one mistake of operations at one of their sites."""

    def register(edit: Edit) -> Edit:
        found = Mistake(words, edit, rank=rank)
        family(*names, what=what)(lambda site: iter((found,)))
        return edit

    return register


def run(node: Node, what: str, args: list[Any]) -> Any:
    """Compute a site from its arguments, in the order of its keys."""
    step = _step(node, what)
    if step is not None:
        return step.function(*args)
    if not what.startswith("d."):
        return forward(node, args)
    dy, *own, output = args
    position = node.keys.index(what.removeprefix("d."))
    return getattr(ops, node.op).backward(dy, cache_of(node, own, output))[position]


def _step(node: Node, what: str) -> insides.Step | None:
    inside = insides.of(node)
    if inside is None:
        return None
    if what == OUTPUT:
        return inside.output
    if what.startswith("d."):
        return inside.gradients[what.removeprefix("d.")]
    return inside.recovered[what] if what in inside.recovered else inside.values[what]


# What an edit may raise where it does not apply to these arrays: the site is done rightly then.
IMPOSSIBLE = (RefimplError, ValueError, LookupError, TypeError, FloatingPointError)


class Wrong(Evaluator):
    """Replay with some sites done wrongly; `seen` collects the sites that it runs."""

    def __init__(
        self,
        taps: Mapping[str, Any],
        params: Mapping[str, np.ndarray],
        network: Network,
        edits: Mapping[tuple[str, str], Edit],
        value: Callable[[str], Any],
        seen: dict[tuple[str, str], Site] | None = None,
        given: Mapping[str, np.ndarray] | None = None,
    ):
        super().__init__(taps, params)
        self.network, self.edits, self.find, self.seen = network, edits, value, seen
        self.given = given or {}

    def forward(self, node: Node, args: list[Any]) -> Any:
        return self._run(node, OUTPUT, args)

    def backward(self, node: Node, dy: Any, args: list[Any], output: Any, position: int) -> Any:
        return self._run(node, f"d.{node.keys[position]}", [dy, *args, output])

    def step(self, node: Node, key: str, function: Callable, args: list[Any]) -> Any:
        return self._run(node, key, args)

    def _run(self, node: Node, what: str, args: list[Any]) -> Any:
        key = (node.name, what)
        if self.seen is not None:
            self.seen[key] = Site(self.network, node, what)
        if key not in self.edits:
            return run(node, what, args)
        site = Site(self.network, node, what)
        call = Call(site, args, self.params, self.find, self.given)
        try:
            found = self.edits[key](call)
        except IMPOSSIBLE:
            found = None
        return run(node, what, args) if found is None else found
