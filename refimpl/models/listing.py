"""A network as text and as JSON, one line an operation, to be read beside [SPEC 6].

FORWARD and BACKWARD say how lines are read. Below an operation stand the steps inside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from refimpl.conventions import ConfigError
from refimpl.models import insides
from refimpl.models.nodes import Network, Node
from refimpl.models.operations import OPERATIONS
from refimpl.models.replay import GRADS, PARAM

_LEGEND = """\
.name is below the layer in the heading, ..name beside it; - has no tap [SPEC 8.1]
B: images of a batch, B*n: their windows
"""
FORWARD = f"""\
name     op(inputs; parameters; attributes)            shape in -> shape out
{_LEGEND}"""
BACKWARD = f"""\
d(name)  op(readers; values) -> inputs, parameters     shape in -> shape out
The gradient of name is the sum of what its readers sent back, added in this order. From it, the
parameters and these values of forward op adds to the gradients of its inputs and parameters.
{_LEGEND}"""
# What a listener hears of a value, and of which gradients, by the tap that a node asks for.
KINDS = {"real": "real", "reader": "real", "bit": "bit", "int": "int"}
GRADIENTS = ("real", "reader", "bit", "gradient")
NAME, CALL = 20, 66  # columns of text, where names and calls are no longer
Entry = dict[str, Any]


class Line(NamedTuple):
    """A line of text, and the value that it makes or whose gradient it sends; "" of a heading."""

    name: str
    text: str


def lines(network: Network, block: int | None = None, backward: bool = False) -> Iterator[Line]:
    """Give every line of a network, or of one of its blocks; the headings are its layers.

    B is the number of images of a batch, B*n that of their windows. ConfigError where there is no
    such block.
    """
    layer = ""
    for entry in entries(network, block, backward):
        if entry["layer"] != layer:
            layer = entry["layer"]
            yield Line("", layer)
        yield Line(entry["name"], (_backward_text if backward else _forward_text)(entry))
        for step in entry["inside"]:
            call = f"of {', '.join(_short(name, layer) for name in step['reads'])}"
            name = f"    {_short(step['name'], layer)}"
            yield Line(step["name"], _columns(name, call, _typed(step["kind"], step["shape"])))


def entries(network: Network, block: int | None = None, backward: bool = False) -> list[Entry]:
    """Give what the lines say as JSON, an object a node; arguments and errors as `lines`."""
    blocks = {node.block for node in network.nodes} - {None}
    if block is not None and block not in blocks:
        raise ConfigError(f"block is {block}; expected a number from 0 to {max(blocks)}")
    entry = _backward if backward else _forward
    return [
        entry(network, node)
        for node in (_from_behind(network) if backward else network.nodes)
        if block is None or node.block == block
    ]


# --- what there is to say -------------------------------------------------------------------------


def _forward(network: Network, node: Node) -> Entry:
    return {
        **_described(network, node),
        "tap": KINDS.get(node.tap),
        "inside": _steps(network, node, backward=False),
    }


def _backward(network: Network, node: Node) -> Entry:
    operation = OPERATIONS[node.op]
    needed = {k for argument in range(len(node.args)) for k in operation.needs(argument)}
    return {
        **_described(network, node),
        "tap": "real" if node.tap in GRADIENTS else None,
        "sums": [_senders(network, output) for output in node.outputs],
        "reads": [node.name] if operation.of_output else [node.args[k] for k in sorted(needed)],
        "inside": _steps(network, node, backward=True),
    }


def _from_behind(network: Network) -> Iterator[Node]:
    for i in network.backward_order:
        yield network.nodes[i]
        for name in network.nodes[i].params:
            if name in network.of_parameters:
                yield network.nodes[network.of_parameters[name]]


def _senders(network: Network, value: str) -> list[str]:
    """The nodes that send a gradient back to a value; of the logits the loss does."""
    return [network.nodes[i].name for i, _ in network.readers.get(value, ())] or ["loss"]


def _described(network: Network, node: Node) -> Entry:
    names = {"inputs": node.inputs, "parameters": node.params, "outputs": node.outputs}
    return {
        "name": node.name,
        "op": node.op,
        "attributes": dict(node.attributes),
        **{group: list(found) for group, found in names.items()},
        "shapes": {group: [_shape(network, n) for n in found] for group, found in names.items()},
        "layer": node.layer,
    }


def _steps(network: Network, node: Node, backward: bool) -> list[Entry]:
    """The steps inside a node, or those of its backward."""
    inside = insides.of(node)
    if inside is None:
        return []
    args = dict(zip(node.keys, node.args, strict=True))
    names = args | dict(node.inside)
    gradients = {
        key: f"{PARAM if name in network.parameters else GRADS}{name}"
        for key, name in names.items()
    }
    read = names | {f"d.{key}": name for key, name in gradients.items()} | {"d": GRADS + node.name}
    shapes = {key: _shape(network, name) for key, name in args.items()} | _inside(network, node)
    return [
        {
            "name": (gradients if backward else names)[key],
            "step": key,
            "kind": step.kind,
            "reads": [read[name] for name in step.reads],
            "shape": shapes[key],
        }
        for key, step in (inside.gradients if backward else inside.values).items()
    ]


def _shape(network: Network, name: str) -> list[Any]:
    shape = network.shape(name)
    of_images = name not in network.parameters and name not in network.of_parameters
    return _batch(shape, shape[0]) if of_images else list(shape)


def _batch(shape: Sequence[int], count: int) -> list[Any]:
    """A shape whose first axis is `count` an image."""
    return ["B" if count == 1 else f"B*{count}", *shape[1:]]


def _inside(network: Network, node: Node) -> dict[str, list[Any]]:
    """Shapes of the steps inside a node: they are taken on no images, with short sides."""
    small = {1: 1}

    def ones(shape: Sequence[int]) -> np.ndarray:
        return np.ones([small.setdefault(side, len(small) + 1) for side in shape])

    inputs, params = ([*map(network.shape, names)] for names in (node.inputs, node.params))
    values = {f"x{k}": ones(shape[1:])[None][:0] for k, shape in enumerate(inputs)}
    values |= {f"p{k}": ones(shape) for k, shape in enumerate(params)}
    steps, found = insides.of(node).values, {}
    for key, step in steps.items():
        values[key] = step.function(*(values[read] for read in step.reads))
    sides = {few: side for side, few in small.items()}
    for key in steps:
        first, *others = values[key].shape
        shape = [sides.get(first, 0), *(sides[few] for few in others)]
        found[key] = shape if first else _batch(shape, inputs[0][0])
    return found


# --- as text --------------------------------------------------------------------------------------


def _forward_text(entry: Entry) -> str:
    layer, shapes = entry["layer"], entry["shapes"]
    attributes = ", ".join(f"{key}={_value(v)}" for key, v in entry["attributes"].items())
    given = [_names(entry[group], layer) for group in ("inputs", "parameters")]
    call = f"{entry['op']}({'; '.join(filter(None, [*given, attributes]))})"
    name = _marked(entry, _names(entry["outputs"], layer))
    made = _typed(entry["tap"], *shapes["outputs"])
    return _columns(name, call, _arrow(shapes["inputs"] or shapes["parameters"], made))


def _backward_text(entry: Entry) -> str:
    layer, shapes = entry["layer"], entry["shapes"]
    sums = ", ".join(" + ".join(_short(n, layer) for n in names) for names in entry["sums"])
    call = f"{entry['op']}({'; '.join(filter(None, [sums, _names(entry['reads'], layer)]))})"
    given = ", ".join(_names(entry[g], layer) for g in ("inputs", "parameters") if entry[g])
    name = _marked(entry, f"d({_names(entry['outputs'], layer)})")
    made = _typed("real", *(shapes["inputs"] or shapes["parameters"]))
    return _columns(name, f"{call} -> {given}", _arrow(shapes["outputs"], made))


def _marked(entry: Entry, name: str) -> str:
    return f"{' ' if entry['tap'] else '-'} {name}"


def _columns(name: str, call: str, shapes: str) -> str:
    return f"{name:{NAME}}  {call:{CALL}}  {shapes}"


def _names(names: Sequence[str], layer: str) -> str:
    """Several names; of leaves of one group the group is named once."""
    short = [_short(name, layer) for name in names]
    group = f"{short[0].rpartition('.')[0]}." if short else ""
    if len(short) < 2 or not group.strip(".") or not all(n.startswith(group) for n in short):
        return ", ".join(short)
    return f"{group}{{{','.join(name.removeprefix(group) for name in short)}}}"


def _short(name: str, layer: str) -> str:
    """A name as seen from its layer: .name below it, ..name beside it; d(…) of a gradient."""
    for prefix in (PARAM, GRADS):
        if name.startswith(prefix):
            return f"d({_short(name.removeprefix(prefix), layer)})"
    for place, dots in ((layer, "."), (layer.rpartition(".")[0], "..")):
        if place and name.startswith(f"{place}."):
            return dots + name.removeprefix(f"{place}.")
    return name


def _value(attribute: Any) -> str:
    if isinstance(attribute, tuple):
        return "x".join(map(str, attribute))
    return f"{attribute:g}" if isinstance(attribute, float) else str(attribute)


def _arrow(given: Sequence[Sequence[Any]], made: str) -> str:
    before = _typed("real", *given)
    return made if made == before else f"{before} -> {made}"


def _typed(kind: str | None, *shapes: Sequence[Any]) -> str:
    """Different shapes once, behind the kind of what is no real number."""
    texts = dict.fromkeys(f"({', '.join(map(str, shape))})" for shape in shapes)
    return ", ".join([*texts] if kind in ("real", None) else [f"{kind} {text}" for text in texts])
