"""LayerNorm and batch norm."""

from __future__ import annotations

import numpy as np

from refimpl.golden.mistakes.declared import Call, mistake


def _normalised(call: Call, deviation: np.ndarray, mean: np.ndarray | None = None) -> np.ndarray:
    x, weight, bias = call["x0"], call["p0"], call["p1"]
    mean = x.mean(axis=-1, keepdims=True) if mean is None else mean
    return (x - mean) / deviation * weight + bias


@mistake("layer_norm", words="eps added to the deviation, outside the root")
def eps_outside(call: Call) -> np.ndarray:
    deviation = call["x0"].std(axis=-1, keepdims=True)
    return _normalised(call, deviation + call.node.attributes["eps"])


@mistake("layer_norm", words="unbiased variance: divided by C - 1, not by C")
def unbiased(call: Call) -> np.ndarray:
    variance = call["x0"].var(axis=-1, keepdims=True, ddof=1)
    return _normalised(call, np.sqrt(variance + call.node.attributes["eps"]))


@mistake("layer_norm", words="divided by the variance, no root taken")
def no_root(call: Call) -> np.ndarray:
    return _normalised(call, call["x0"].var(axis=-1, keepdims=True) + call.node.attributes["eps"])


@mistake("layer_norm", words="the mean is not subtracted (as in RMSNorm)")
def root_mean_square(call: Call) -> np.ndarray:
    x = call["x0"]
    size = np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + call.node.attributes["eps"])
    return _normalised(call, size, np.zeros_like(size))


@mistake("layer_norm", words="the mean is subtracted, nothing is divided by the deviation")
def not_divided(call: Call) -> np.ndarray:
    return _normalised(call, np.ones_like(call["x0"][..., :1]))
