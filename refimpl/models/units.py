"""Which nodes are a unit: for them a backend may have one twin, which it runs where nobody listens.

Of a binary network two kinds of units are known: a whole projection [SPEC 5], and what attention
does between its projections [SPEC 6.2]. Where a configuration is not what the twins are made for,
the nodes are no unit, and each is run by itself.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from refimpl.models.config import Config
from refimpl.models.parts import Parts
from refimpl.models.stage import Stage


def projection(net: Parts, c: Config) -> AbstractContextManager:
    """Hold the nodes of a projection."""
    if not _has_projections(c):
        return nullcontext()
    return net.unit("projection", binarize=c.binarize, ste=c.ste, eps=c.norm_eps)


def attention(net: Parts, c: Config, s: Stage) -> AbstractContextManager:
    """Hold the nodes of attention but its projections; not in windows, nor some of ablations."""
    usual = s.window == 0 and c.context == "sum" and c.neighbours != "none"
    if not (usual and c.has_signs and _has_projections(c)):
        return nullcontext()
    return net.unit(
        "attention", heads=s.heads, bands=len(c.bands), weighted=c.similarity == "haar",
        differential=c.attention == "differential", grid=s.grid, border=c.neighbours, ste=c.ste,
        eps=c.norm_eps,
    )  # fmt: skip


def _has_projections(c: Config) -> bool:
    return c.norm == "layer" and c.binarize != "weights"
