"""NumPy's float32 product: the BLAS that NumPy was built with."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from refimpl.bench.measure import Contender, timed
from refimpl.bench.work import Product


def products(work: Product, threads: int) -> Iterator[Contender]:
    """Into an array that is there already."""
    a, b = work.factor, np.ascontiguousarray(work.b.swapaxes(-1, -2))
    out = np.empty((*a.shape[:-1], b.shape[-1]), np.float32)

    def multiply() -> np.ndarray:
        return np.matmul(a, b, out=out)

    yield Contender("NumPy float32", timed(multiply), multiply, work.macs, threads)
