"""Every named value of one forward and backward, with the op that made it [SPEC 8.1].

steps = trace(model, params, images)
step = steps["blocks.0.mlp.up.int"]
step.op(*(steps[name].value for name in step.inputs))      # step.value again
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from refimpl.models import VisionTransformer, flatten, unflatten
from refimpl.models.params import Params

INPUT = "input"
GRADS = "grads/"


class Step(NamedTuple):
    """One tap: `op(*inputs)` is `value`; the op of what was given is None."""

    value: np.ndarray
    op: Callable[..., np.ndarray] | None
    inputs: tuple[str, ...]  # names of the steps that it reads


def trace(
    model: VisionTransformer,
    params: Params,
    images: np.ndarray,
    dlogits: np.ndarray | None = None,
) -> dict[str, Step]:
    """images (B, channels, H, W), dlogits like the logits or None for forward alone: name -> Step.

    In order of computation; the first is "input". Errors as `model.forward`.
    """
    steps = {INPUT: Step(images, None, ())}

    def tap(name, value, op, inputs):
        steps[name] = Step(value, op, tuple(inputs))

    _, cache = model.forward(params, images, tap=tap)
    if dlogits is not None:
        model.backward(dlogits, cache, tap=tap)
    return steps


def cast(params: Params, dtype: Any) -> Params:
    """The same parameters in another float type."""
    return unflatten({path: value.astype(dtype) for path, value in flatten(params).items()})


def kind_of(value: np.ndarray) -> str:
    """The class of a tap [SPEC 8.1]: "bit", "int" or "real"."""
    return {"b": "bit", "i": "int", "f": "real"}[value.dtype.kind]


def z_of(bit: str) -> str:
    """Name of the value before the threshold: p.bit -> p.z, head_bit -> head_z."""
    return f"{bit.removesuffix('bit')}z"


def threshold_of(bit: str) -> float:
    """1/2 for attention's probabilities (bit: z > 1/2), 0 elsewhere (bit: z >= 0)."""
    return 0.5 if bit.endswith(".prob.bit") else 0.0
