"""What all layers of one forward or backward share: configuration, backend, listener, stage."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from refimpl.conventions import NonFiniteError
from refimpl.models.config import Config
from refimpl.models.stage import Stage


class Tap(Protocol):
    """A listener, called once for each named value of a run, in order of computation [SPEC 8.1].

    `value` is bool for a bit (True is +1, or 1 where the tensor is boolean), int32 for an exact
    product, the float type of the parameters otherwise. `op` is a pure function with its
    parameters bound, `inputs` the names of the values it reads: `op(*inputs)` is `value` again,
    bits and whole numbers exactly, floats to rounding. The image is "input", the gradient of tap t
    is "grads/t", of a parameter "grads/param.<path>"; the op of "grads/logits", which is given, is
    None.
    """

    def __call__(
        self,
        name: str,
        value: np.ndarray,
        op: Callable[..., np.ndarray] | None,
        inputs: Sequence[str],
    ) -> None: ...


class Run(NamedTuple):
    """Passed down from the network, which sets the stage, to its projections."""

    config: Config
    backend: Any  # refimpl.ops, or another module with the same attributes
    tap: Tap | None
    stage: Stage | None = None  # of the block that runs


def located(function: Callable) -> Callable:
    """Give a NonFiniteError from inside the function the `name` of the layer it is called for."""

    @functools.wraps(function)
    def wrapper(*args: Any, name: str, **kwargs: Any) -> Any:
        try:
            return function(*args, name=name, **kwargs)
        except NonFiniteError as error:
            if error.layer is not None:
                raise
            raise NonFiniteError(error.message, layer=name) from None

    return wrapper


# The rest is for the ops that are handed to a tap.


def is_positive(z: np.ndarray) -> np.ndarray:
    """The bit of a binary tensor: z >= 0."""
    return z >= 0


def signs(bit: np.ndarray, dtype: Any) -> np.ndarray:
    """The bits of a binary tensor as -1 and +1."""
    dtype = np.dtype(dtype).type
    return np.where(bit, dtype(1), dtype(-1))


def dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Whole-number product a b^T over the last axis of both, int32."""
    # BLAS knows no integers, and float64 is exact here
    product = a.astype(np.float64) @ b.astype(np.float64).swapaxes(-1, -2)
    return product.astype(np.int32)


def pick(function: Callable[..., tuple], index: int) -> Callable[..., np.ndarray]:
    """The function that returns one of the results of another: one gradient of a backward."""
    return lambda *inputs: function(*inputs)[index]
