"""What the axes of a tap are, and on which grid its tokens lie: from the list of operations."""

from __future__ import annotations

from refimpl.golden.record import Step
from refimpl.models.nodes import INPUT, Network, Node
from refimpl.models.stage import Stage

TOKENS = ("images", "tokens", "channels")
HEADS = ("images", "heads", "tokens", "channels")
SCORES = ("images", "heads", "queries", "keys")
# Operations whose output has other axes than their first input [SPEC 1]
AXES = {
    "patch_embed": ("images", "patches", "channels"),
    "class_token": TOKENS,
    "position_embedding": TOKENS,
    "merge_heads": TOKENS,
    "boolean_attention": HEADS,
    "to_grid": ("images", "classes", "rows", "columns"),
    "pool": ("images", "channels"),
}
STEPS = {"prob.z": SCORES, "prob.bit": SCORES, "context.int": HEADS}


def stage(network: Network, step: Step) -> Stage:
    """The stage in which a tap is made; of a gradient, in which its value was."""
    return _maker(network, step).stage


def axes(network: Network, step: Step) -> tuple[str, ...]:
    """Names of the axes of a tap; those of parameters and images are only numbered."""
    if step.op is None:
        found = _of_value(network, network.output)
    elif step.op.shown.what in STEPS:
        found = STEPS[step.op.shown.what]
    elif step.op.shown.what.startswith("weight") or step.op.shown.what == "d.param":
        found = ()
    else:
        # steps beside the input of their node have its axes
        source = step.op.shown.source or step.op.node.inputs[0]
        if step.op.shown.what == "int":
            source = step.op.node.name
        found = _of_value(network, source)
    rank = step.value.ndim
    return found if len(found) == rank else tuple(f"axis {i}" for i in range(rank))


def is_cut(network: Network, step: Step) -> bool:
    """Whether the channels of a tap are those of heads side by side."""
    if step.op is None or "channels" not in axes(network, step) or "heads" in axes(network, step):
        return False
    name = step.op.shown.source or step.op.node.name
    return _becomes(network, name, "split_heads") or _was(network, name, "merge_heads")


def _becomes(network: Network, name: str, op: str) -> bool:
    """Whether hidden nodes hand a value on to such an operation."""
    for i, _ in network.readers.get(name, ()):
        node = network.nodes[i]
        if node.op == op or (not node.tap and _becomes(network, node.name, op)):
            return True
    return False


def _was(network: Network, name: str, op: str) -> bool:
    """Whether it was made of such an operation's output by nodes that keep the channels."""
    if name not in network.maker:
        return False
    node = network.nodes[network.maker[name]]
    return node.op == op or any(_was(network, x, op) for x in node.inputs if not _tap(network, x))


def _tap(network: Network, name: str) -> str:
    return network.nodes[network.maker[name]].tap if name in network.maker else "real"


def _of_value(network: Network, name: str) -> tuple[str, ...]:
    if name == INPUT:
        return ()
    node = network.nodes[network.maker[name]]
    if node.op in AXES:
        return AXES[node.op]
    if node.op == "split_heads":
        transposed = node.attributes["transposed"]
        return ("images", "heads", "channels", "tokens") if transposed else HEADS
    first = _of_value(network, node.inputs[0])
    if node.op == "matmul":
        return SCORES if first == HEADS else HEADS
    if node.op == "linear" and node.name == network.output:
        return ("images", "classes")
    readers = (network.nodes[i].op for i, _ in network.readers.get(name, ()))
    if node.op == "linear" and "to_grid" in readers:
        return ("images", "patches", "classes")
    return first


def _maker(network: Network, step: Step) -> Node:
    if step.op is None:
        return network.nodes[-1]
    made = network.maker.get(step.op.shown.source)
    return step.op.node if made is None else network.nodes[made]
