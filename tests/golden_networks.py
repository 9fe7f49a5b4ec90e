"""Small networks as bundles and as candidates, for the tests of golden vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from refimpl.golden import Bundle, make, read, record
from tests import networks

FIELDS = {"depth": 1, **networks.DIDB}


def network(seed: int = 1, **fields) -> networks.Network:
    """One block of DIDB-ViT with float32 parameters and two images."""
    return networks.make(networks.small(**{**FIELDS, **fields}), seed, np.float32, batch=2)


def bundle(path: Path, net: networks.Network | None = None, **options) -> Bundle:
    """Written and read again; with gradients unless told otherwise."""
    net = net or network()
    make(path, net.model, net.params, net.images, **{"grads": True, **options})
    return read(path)


def taps(found: Bundle, dtype=np.float64) -> dict[str, np.ndarray]:
    """What the reference itself computes in `dtype`: a candidate. Copies, to be spoilt."""
    given = "grads/logits"
    return taps_of(found, found.value(given) if given in found.entries else None, dtype)


def taps_of(found: Bundle, dlogits: np.ndarray | None, dtype=np.float64) -> dict[str, np.ndarray]:
    """The same, with this gradient of the logits."""
    dlogits = None if dlogits is None else dlogits.astype(dtype)
    params = record.cast(found.params, dtype)
    steps = record.trace(found.model, params, found.input.astype(dtype), dlogits)
    return {name: step.value.copy() for name, step in steps.items() if name != record.INPUT}
