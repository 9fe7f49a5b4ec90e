"""What lies inside an operation: the bits, whole numbers and thresholds that a port computes.

Two operations do at once what a chip does in steps: the binary linear map and boolean attention.
For each step: what it is made of and how. "x0" and "x1" are the inputs of the node, "p0" its
parameter, "d" the gradient of its output, "d.bit" that of the step "bit"; other names are steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from refimpl import ops


class Step(NamedTuple):
    """One value inside a node."""

    kind: str  # "bit", "int" or "real"
    reads: tuple[str, ...]
    function: Callable[..., np.ndarray]


class Inside(NamedTuple):
    """Steps of a node, in order of computation."""

    values: Mapping[str, Step]
    output: Step
    gradients: Mapping[str, Step]  # in the order in which they are shown
    recovered: Mapping[str, Step] = {}  # inputs, from what is shown of them


def is_positive(z: np.ndarray) -> np.ndarray:
    """Take the bits of a binary tensor: z >= 0."""
    return z >= 0


def signs(bit: np.ndarray, dtype: Any) -> np.ndarray:
    """Turn the bits of a binary tensor into -1 and +1."""
    dtype = np.dtype(dtype).type
    return np.where(bit, dtype(1), dtype(-1))


def dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Multiply whole numbers: a b^T over the last axis of both, int32."""
    # BLAS knows no integers, and float64 is exact here
    product = a.astype(np.float64) @ b.astype(np.float64).swapaxes(-1, -2)
    return product.astype(np.int32)


def to_tap(kind: str, value: np.ndarray) -> np.ndarray:
    """Turn a value into what a listener hears: bool of signs, int32 of whole numbers."""
    if kind == "bit":
        return value > 0
    return value.astype(np.int32) if kind == "int" else value


def from_tap(kind: str, value: Any, dtype: Any) -> Any:
    """Turn what a listener heard into the value that operations compute with."""
    if kind == "bit":
        return signs(value, dtype)
    return value.astype(dtype) if kind == "int" else value


def threshold(node: Any) -> float:
    """Say above which number a bit is 1: 1/2 of attention's probabilities, from 0 on elsewhere."""
    return 0.5 if node.op == "boolean_attention" else 0.0


def of(node: Any) -> Inside | None:
    """Give the steps inside a node; None where it is one step."""
    return of_operation(node.op, node.attributes)


def of_operation(op: str, attributes: Mapping[str, Any]) -> Inside | None:
    """Give the steps inside an operation; None where it is one step."""
    if op not in INSIDES or attributes["binarize"] == "none":
        return None
    return INSIDES[op](**attributes)


def _linear(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return ops.linear.forward(x, weight)[0]  # added up in the order of the node's own


def _weight_gradient(dlinear: np.ndarray, x: np.ndarray) -> np.ndarray:
    return dlinear.reshape(-1, dlinear.shape[-1]).T @ x.reshape(-1, x.shape[-1])


def _binary_linear(binarize: str, ste: str) -> Inside:
    def surrogate(dbit, z):
        return ops.sign.backward(dbit, ops.sign.Cache(z, ste))[0]

    dz = Step("real", ("d.bit", "x0"), surrogate)
    bit = Step("bit", ("x0",), is_positive)
    if binarize == "activations":
        return Inside(
            {"bit": bit},
            Step("real", ("bit", "p0"), lambda bit, w: _linear(signs(bit, w.dtype), w)),
            {
                "p0": Step("real", ("d", "bit"),
                           lambda d, bit: _weight_gradient(d, signs(bit, d.dtype))),
                "bit": Step("real", ("d", "p0"), lambda d, w: _linear(d, w.T)),
                "x0": dz,
            },
        )  # fmt: skip
    binarizer = ops.weight_binarizer
    return Inside(
        {
            "weight.z": Step("real", ("p0",), lambda w: binarizer.binarize(w).centred),
            "weight.bit": Step("bit", ("weight.z",), is_positive),
            "weight.scale": Step("real", ("p0",), lambda w: binarizer.binarize(w).scale),
            "bit": bit,
            "int": Step("int", ("bit", "weight.bit"),
                        lambda a, w: dot(signs(a, np.int32), signs(w, np.int32))),
        },
        Step("real", ("int", "weight.scale"), lambda i, scale: i.astype(scale.dtype) * scale),
        {"p0": Step("real", ("d", "bit", "p0"), _binary_weight_gradient),
         "bit": Step("real", ("d", "p0"), lambda d, w: _linear(d, binarizer.forward(w)[0].T)),
         "x0": dz},
    )  # fmt: skip


def _binary_weight_gradient(d: np.ndarray, bit: np.ndarray, weight: np.ndarray) -> np.ndarray:
    dused = _weight_gradient(d, signs(bit, d.dtype))
    centred = ops.weight_binarizer.binarize(weight).centred
    return ops.weight_binarizer.backward(dused, ops.weight_binarizer.Cache(centred))[0]


def _boolean_attention(binarize: str, context: str) -> Inside:
    def gradient(argument):
        def of(d, ratio, value, alpha):
            bit = ratio > 0.5
            product = ops.matmul.Cache(ops.boolean.step_of(alpha) * bit, value)
            boolean = ops.boolean.Cache(ratio, bit, alpha)
            cache = ops.boolean_attention.Cache(boolean, product, alpha, context)
            return ops.boolean_attention.backward(d, cache)[argument]

        return Step("real", ("d", "prob.z", "x1", "p0"), of)

    def product(bit, value):
        # whole numbers, exact in both float types
        whole = ops.boolean_attention.product(bit.astype(value.dtype), value, context)
        return whole.astype(np.int32)

    def scale(integers, alpha):
        return integers.astype(alpha.dtype) * ops.boolean.step_of(alpha)

    return Inside(
        {
            "prob.z": Step("real", ("x0", "p0"), lambda p, a: ops.boolean.threshold(p, a)[0]),
            "prob.bit": Step("bit", ("prob.z",), lambda ratio: ratio > 0.5),
            "context.int": Step("int", ("prob.bit", "x1"), product),
        },
        Step("real", ("context.int", "p0"), scale),
        {"x0": gradient(0), "x1": gradient(1), "p0": gradient(2)},
        {"x0": Step("real", ("prob.z", "p0"), lambda ratio, a: ratio * ops.boolean.step_of(a))},
    )


INSIDES = {"binary_linear": _binary_linear, "boolean_attention": _boolean_attention}
