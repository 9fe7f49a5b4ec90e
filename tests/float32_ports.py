"""Ports in float32, as ports are, of which some taps are computed in another way than ours."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from refimpl import golden
from refimpl.golden import record
from refimpl.models import flatten

Flat = Mapping[str, np.ndarray]
FLOAT = np.float32


class Other(NamedTuple):
    """Another way to compute the taps whose names match."""

    pattern: str
    of: Callable[..., np.ndarray]  # of the tap's name, the parameters, the right op, its inputs


def taps(bundle: golden.Bundle, other: Other | None = None) -> dict[str, np.ndarray]:
    """Every tap of the port: what follows from another one follows from what it computed."""
    params = record.cast(bundle.params, FLOAT)
    dlogits = bundle.value("grads/logits").astype(FLOAT) if bundle.manifest["grads"] else None
    steps = record.trace(bundle.model, params, bundle.input.astype(FLOAT), dlogits)
    values, flat = {}, flatten(params)
    for name, step in steps.items():
        inputs = [values[read] for read in step.inputs]
        if other and re.fullmatch(other.pattern, name):
            values[name] = other.of(name, flat, step.op, *inputs)
            assert values[name].dtype == step.value.dtype
        else:
            values[name] = step.value if step.op is None else step.op(*inputs)
    del values[record.INPUT]
    return values
