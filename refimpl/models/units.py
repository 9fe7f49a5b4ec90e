"""Which nodes of a binary block a backend may have one twin for, and what runs at a time then.

A unit changes no value, and a backend without a twin for it computes its nodes one by one, as all
do where somebody listens.
"""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

from refimpl.models.config import Config
from refimpl.models.nodes import Builder, Network, Unit
from refimpl.models.stage import Stage


def projection(net: Builder, c: Config) -> AbstractContextManager:
    """Hold the nodes of a projection; those of an ablation's are held by none."""
    if not _has_twins(c):
        return nullcontext()
    return net.unit("projection", binarize=c.binarize, ste=c.ste, eps=c.norm_eps)


def attention(net: Builder, c: Config, s: Stage) -> AbstractContextManager:
    """Hold all between an attention's projections; in windows, and in ablations, none."""
    plain = s.window == 0 and c.context == "sum" and c.neighbours != "none"
    if not (plain and c.has_signs and _has_twins(c)):
        return nullcontext()
    return net.unit(
        "attention", heads=s.heads, bands=len(c.bands), weighted=c.similarity == "haar",
        differential=c.attention == "differential", grid=s.grid, border=c.neighbours, ste=c.ste,
        eps=c.norm_eps,
    )  # fmt: skip


def _has_twins(c: Config) -> bool:
    return c.norm == "layer" and c.binarize != "weights"


class Step(NamedTuple):
    """What is done at a time: a node, or the twin of a unit."""

    nodes: tuple[int, ...]
    unit: Unit | None
    inputs: tuple[str, ...]
    params: tuple[str, ...]
    free: tuple[str, ...]  # values that nobody reads behind it


@functools.lru_cache(maxsize=64)
def steps_of(network: Network, twins: frozenset[str]) -> list[Step]:
    """Give what is done in order, where units of these operations run as one."""
    units = {unit.nodes[-1]: unit for unit in network.units if unit.op in twins}
    inside = {i for unit in units.values() for i in unit.nodes}
    found = [
        _step(network, units[i].nodes if i in units else (i,), units.get(i))
        for i in range(len(network.nodes))
        if i in units or i not in inside
    ]
    last: dict[str, int] = {}
    for k, step in enumerate(found):
        outputs = (name for i in step.nodes for name in network.nodes[i].outputs)
        last |= dict.fromkeys((*outputs, *step.inputs, *step.params), k)
    free: list[list[str]] = [[] for _ in found]
    for name, k in last.items():
        if name not in network.parameters and name != network.output:
            free[k].append(name)
    return [step._replace(free=tuple(names)) for step, names in zip(found, free, strict=True)]


def _step(network: Network, nodes: tuple[int, ...], unit: Unit | None) -> Step:
    own = [network.nodes[i] for i in nodes]
    made = {name for node in own for name in node.outputs}
    read = dict.fromkeys(name for node in own for name in node.inputs)
    inputs = tuple(name for name in read if name not in made)
    return Step(nodes, unit, inputs, tuple(name for node in own for name in node.params), ())
