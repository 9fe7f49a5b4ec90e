"""Every named value of one forward and backward, with the op that made it [SPEC 8.1].

steps = trace(model, params, images)
step = steps["blocks.0.mlp.up.int"]
step.op(*(steps[name].value for name in step.inputs))      # step.value again
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from refimpl.models import VisionTransformer, flatten, insides, unflatten
from refimpl.models.nodes import INPUT
from refimpl.models.params import Params
from refimpl.models.replay import Replay


class Step(NamedTuple):
    """One tap: `op(*inputs)` is `value`; the op of what was given is None."""

    value: np.ndarray
    op: Replay | None
    inputs: tuple[str, ...]  # names of the steps that it reads
    is_given_gradient: bool = False  # that of the logits, which has no op

    @property
    def kind(self) -> str:
        """The class of the tap [SPEC 8.1]: "bit", "int" or "real"."""
        return kind_of(self.value)

    @property
    def is_gradient(self) -> bool:
        """Whether it belongs to the way back."""
        return self.is_given_gradient or self.what.startswith("d.")

    @property
    def what(self) -> str:
        """Which value of its node it is, see `models.replay.Shown`; "" of what was given."""
        return self.op.shown.what if self.op else ""

    @property
    def z(self) -> str:
        """Of a bit: the name of the value before the threshold."""
        return self.inputs[0]

    @property
    def threshold(self) -> float:
        """Of a bit: 1/2 for attention's probabilities (z > 1/2), 0 elsewhere (z >= 0)."""
        return insides.threshold(self.op.node)


def trace(
    model: VisionTransformer,
    params: Params,
    images: np.ndarray,
    dlogits: np.ndarray | None = None,
) -> dict[str, Step]:
    """images (B, channels, H, W), dlogits like the logits or None for forward alone: name -> Step.

    In order of computation; the first is "input". Errors as `model.forward`.

    >>> from refimpl.models import create_model
    >>> model = create_model("react_micro", depth=1)
    >>> params = model.init(np.random.default_rng(0))
    >>> steps = trace(model, params, np.zeros((1, 1, 28, 28), np.float32))
    >>> list(steps)[:3], list(steps)[-1]
    (['input', 'patch_embed.out', 'tokens'], 'logits')
    """
    steps = {INPUT: Step(images, None, ())}

    def tap(name, value, op, inputs):
        steps[name] = Step(value, op, tuple(inputs), is_given_gradient=op is None)

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
