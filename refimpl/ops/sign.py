"""Activation sign with a surrogate gradient [SPEC 2].

    y  = +1 if z >= 0 else -1                 (0.0 and -0.0 give +1, unlike torch.sign)
    dz = dy * surrogate(z)                    the sign's own derivative is 0 almost everywhere

    ste="polynomial" (Bi-Real Net, ReActNet):   surrogate = 2 - 2|z| if |z| < 1 else 0
    ste="clip" (BinaryConnect):                 surrogate = 1 if |z| <= 1 else 0   (1 at |z| = 1)

>>> forward(np.array([-0.5, -0.0, 0.0, 2.0]))[0]
array([-1.,  1.,  1.,  1.])
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refimpl.conventions import float_dtype, require_choice, require_finite

STES = ("polynomial", "clip")


class Cache(NamedTuple):
    z: np.ndarray  # (...) the surrogate is a function of the input
    ste: str


def forward(z: np.ndarray, ste: str = "polynomial") -> tuple[np.ndarray, Cache]:
    """z (...) -> y (...) of -1 and +1. NonFiniteError on NaN or infinity."""
    dtype = float_dtype("sign", z=z)
    require_choice("sign", "ste", ste, STES)
    require_finite("sign", "z", z)
    # arithmetic on the mask: np.where branches on every sign and is far slower on random ones
    y = (z >= 0) * dtype.type(2) - dtype.type(1)
    return y, Cache(z, ste)


def backward(dy: np.ndarray, cache: Cache) -> tuple[np.ndarray]:
    """dy (...) -> (dz (...),)."""
    return (dy * surrogate(cache.z, cache.ste),)


def surrogate(z: np.ndarray, ste: str = "polynomial") -> np.ndarray:
    """The derivative that stands in for the sign's, at z (...)."""
    magnitude = np.abs(z)
    if ste == "clip":
        return (magnitude <= 1).astype(z.dtype)
    return np.maximum(2 - 2 * magnitude, 0)
