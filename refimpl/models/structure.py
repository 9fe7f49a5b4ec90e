"""The parts of a binary network, found in the list of its operations by op and inputs alone.

Who knows what a block does, as the engine's kernels do, and not what it is called, asks here which
nodes are its projections, norms and scores. No name decides anything.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

from refimpl.models.nodes import Network, Node, Shape


class Projection(NamedTuple):
    """P(x) [SPEC 5]."""

    input: str
    shift: Node
    product: Node
    norm: Node
    activation: Node
    shape: Shape  # of its matrix, (O, I)
    moved: Node | None  # where attention reads its sign: the shift in front of it
    bit: Node | None


class Block(NamedTuple):
    """A block [SPEC 6.1, 6.2]; nodes that a network has not are None."""

    norm1: Node
    bands: Node | None
    projections: tuple[Projection, ...]  # queries and keys of each band, then values
    products: tuple[Node, ...]  # of queries and keys, of each band
    scores: Node  # band_sum or divide
    position_bias: Node | None
    context: Node
    norm: Node  # of the context
    mean: Node | None  # of neighbours
    differential: Node | None
    activation: Node
    proj: Projection
    scale1: Node | None
    mid: Node
    norm2: Node
    up: Projection
    down: Projection
    scale2: Node | None
    out: Node

    @property
    def units(self) -> tuple[Projection, ...]:
        """All projections, in order of computation."""
        return (*self.projections, self.proj, self.up, self.down)


class Merge(NamedTuple):
    """Patch merging [SPEC 6.7]."""

    patches: Node
    norm: Node
    projection: Projection


class Level(NamedTuple):
    """A level of the pyramid [SPEC 10]."""

    norm: Node
    lateral: Node
    top: Node | None  # the sum with the level above; the last one has none
    smooth: Node


class Structure(NamedTuple):
    """A whole network."""

    network: Network
    embed: Node
    class_token: Node | None
    position: Node | None  # the position embedding
    embed_norm: Node | None
    tokens: str  # what enters the first block
    stages: tuple[tuple[Block, ...], ...]
    merges: tuple[Merge, ...]  # that behind each stage but the last
    levels: tuple[Level, ...]
    sum: Node | None  # of the levels
    gelu: Node | None
    norm: Node  # the last one
    head: Node
    decodes: bool  # logits of every pixel

    @property
    def blocks(self) -> list[Block]:
        """Of all stages."""
        return [block for stage in self.stages for block in stage]

    @property
    def rows(self) -> list[Projection | Block | Level]:
        """What each row of the table of the engine's plan is of."""
        blocks = [part for block in self.blocks for part in (*block.units, block)]
        return [*blocks, *(merge.projection for merge in self.merges), *self.levels]

    def shape(self, name: str) -> Shape:
        """Give the shape of a parameter, or of a value for one image."""
        return self.network.shape(name)

    def path(self, param: str) -> str:
        """Name the parameter itself, where a node reads a value that is made of it alone."""
        made = self.network.of_parameters.get(param)
        return param if made is None else self.network.nodes[made].params[0]


def find(network: Network) -> Structure:
    """Find the parts of a binary network [SPEC 6.1-6.7, 10]."""
    search = _Search(network)
    stages: list[list[Block]] = [[]]
    merges = []
    for node in network.nodes:
        if node.op == "merge_patches":
            stages.append([])
            merges.append(search.merge(node))
        elif node.op == "boolean_attention":
            stages[-1].append(search.block(node))
    heads = [node for node in network.nodes if node.op == "linear"]
    convolutions = [node for node in network.nodes if node.op == "convolution"]
    levels = tuple(map(search.level, convolutions))
    total = search.behind(levels[-1].smooth.name, "add") if levels else None
    first = stages[0][0].norm1.inputs[0]
    return Structure(
        network=network,
        embed=search.first("patch_embed"),
        class_token=search.first("class_token"),
        position=search.first("position_embedding"),
        embed_norm=search.maker(first) if search.maker(first).op == "layer_norm" else None,
        tokens=first,
        stages=tuple(map(tuple, stages)),
        merges=tuple(merges),
        levels=levels,
        sum=total,
        gelu=search.reader(total.name, "gelu") if total else None,
        norm=levels[-1].norm if levels else search.before(heads[-1], "layer_norm"),
        head=heads[-1],
        decodes=len(network.shapes[network.output]) > 2,
    )


class _Search:
    def __init__(self, network: Network):
        self.network = network
        products = [node for node in network.nodes if node.op == "binary_linear"]
        projections = list(map(self._projection, products))
        self._by_input = {found.input: found for found in projections}
        self._by_bit = {found.bit.name: found for found in projections if found.bit}

    # --- parts ---

    def _projection(self, product: Node) -> Projection:
        shift = self.maker(product.inputs[0])
        activation = self.behind(product.name, "rprelu")
        moved = self.reader(activation.name, "shift")
        return Projection(
            input=self._source(shift.inputs[0]),
            shift=shift,
            product=product,
            norm=self.reader(product.name, "layer_norm"),
            activation=activation,
            shape=self.network.shape(product.params[0]),
            moved=moved,
            bit=self.behind(moved.name, "sign") if moved else None,
        )

    def merge(self, patches: Node) -> Merge:
        norm = self.reader(patches.name, "layer_norm")
        return Merge(patches, norm, self._by_input[norm.name])

    def block(self, context: Node) -> Block:
        products = tuple(self._products(self.maker(context.inputs[0])))
        scores = self.reader(products[0].name, "band_sum", "divide")
        bits = [*(name for product in products for name in product.inputs), context.inputs[1]]
        projections = tuple(self._by_bit[name] for name in bits)
        query, value = projections[0], projections[-1]
        norm = self.behind(context.name, "layer_norm")
        differential = self.reader(value.activation.name, "differential")
        activation = self.behind(norm.name, "rprelu")
        proj = self._by_input[activation.name]
        mid = self.behind(proj.activation.name, "add")
        norm2 = self.reader(mid.name, "layer_norm")
        up = self._by_input[norm2.name]
        down = self._by_input[up.activation.name]
        bands = self.maker(query.input)
        return Block(
            norm1=self.maker(value.input),
            bands=bands if bands.op == "bands" else None,
            projections=projections,
            products=products,
            scores=scores,
            position_bias=self.reader(scores.name, "position_bias"),
            context=context,
            norm=norm,
            mean=self.maker(differential.inputs[1]) if differential else None,
            differential=differential,
            activation=activation,
            proj=proj,
            scale1=self.reader(proj.activation.name, "layer_scale"),
            mid=mid,
            norm2=norm2,
            up=up,
            down=down,
            scale2=self.reader(down.activation.name, "layer_scale"),
            out=self.behind(down.activation.name, "add"),
        )

    def _products(self, prob: Node) -> Iterator[Node]:
        """The whole-number products of which the probabilities are made."""
        scores = self.before(prob, "band_sum", "divide")
        yield from map(self.maker, scores.inputs)

    def level(self, smooth: Node) -> Level:
        made = self.maker(smooth.inputs[0])
        top = made if made.op == "add" else None
        lateral = self.maker(top.inputs[0]) if top else made
        return Level(self.maker(lateral.inputs[0]), lateral, top, smooth)

    # --- steps ---

    def maker(self, name: str) -> Node:
        """Find the node that gives a value."""
        return self.network.nodes[self.network.maker[name]]

    def first(self, op: str) -> Node | None:
        """Find the first node of an operation."""
        return next((node for node in self.network.nodes if node.op == op), None)

    def reader(self, name: str, *ops: str) -> Node | None:
        """Find the first node of one of these operations that reads a value, if any."""
        readers = (self.network.nodes[i] for i, _ in reversed(self.network.readers.get(name, ())))
        return next((node for node in readers if node.op in ops), None)

    def before(self, node: Node, *ops: str) -> Node:
        """Go back to the nearest node of these operations, from first input to first input."""
        while node.op not in ops:
            node = self.maker(node.inputs[0])
        return node

    def behind(self, name: str, op: str) -> Node:
        """Go on to the nearest node of an operation, whatever is in between."""
        names = [name]
        while names:
            readers = (self.network.readers.get(name, ()) for name in names)
            found = [self.network.nodes[i] for i, _ in itertools.chain(*readers)]
            for node in found:
                if node.op == op:
                    return node
            names = [output for node in found for output in node.outputs]
        raise KeyError(op)

    def _source(self, name: str) -> str:
        """The value itself, in front of nodes that hand it on as it is."""
        while self.maker(name).op == "identity":
            name = self.maker(name).inputs[0]
        return name
