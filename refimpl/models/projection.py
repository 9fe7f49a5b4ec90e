"""The binary projection P(x; I -> O), the one small unit of every binary matrix [SPEC 5].

z      = x + move
linear = sign(z) W_b^T
y      = LayerNorm(linear) + fit(x)
P      = RPReLU(y)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from refimpl import ops
from refimpl.models.params import Params
from refimpl.models.run import Run, dot, is_positive, located, pick, signs


class Cache(NamedTuple):
    linear: ops.binary_linear.Cache
    norm: ops.layer_norm.Cache
    fit: ops.fit.Cache
    rprelu: ops.rprelu.Cache


@located
def forward(
    params: Params, x: np.ndarray, run: Run, *, name: str, source: str
) -> tuple[np.ndarray, Cache]:
    """x (B, N, I) -> P (B, N, O). `name` and `source` (of x) are names of taps.

    A backend may have a twin of the whole unit, `projection`, for runs without a listener.
    """
    config, backend, tap, _ = run
    if tap is None and hasattr(backend, "projection"):
        options = {"binarize": config.binarize, "ste": config.ste, "eps": config.norm_eps}
        whole = backend.projection.forward(params, x, **options)
        if whole is not None:
            return whole
    z = x + params["move"]  # (B, N, I)
    linear, linear_cache = backend.binary_linear.forward(
        z, params["weight"], binarize=config.binarize, ste=config.ste
    )  # (B, N, O)
    norm, norm_cache = backend.layer_norm.forward(linear, **params["norm"], eps=config.norm_eps)
    shortcut, fit_cache = backend.fit.forward(x, linear.shape[-1])
    out, rprelu_cache = backend.rprelu.forward(norm + shortcut, **params["rprelu"])
    if tap is not None:
        _tap_forward(params, z, linear, norm, out, run, name, source)
    return out, Cache(linear_cache, norm_cache, fit_cache, rprelu_cache)


def backward(
    dout: np.ndarray, params: Params, cache: Cache, run: Run, *, name: str, source: str
) -> tuple[np.ndarray, Params]:
    """dout (B, N, O) -> (dx (B, N, I), gradients of the parameters)."""
    backend = run.backend
    if not isinstance(cache, Cache):
        if run.tap is None:
            return backend.projection.backward(dout, params, cache)
        # a listener wants every step
        _, cache = forward(
            params, cache.x, run._replace(backend=ops, tap=None), name=name, source=source
        )
    dy, *drprelu = backend.rprelu.backward(dout, cache.rprelu)
    # forward was y = LayerNorm(linear) + fit(x)
    (dshortcut,) = backend.fit.backward(dy, cache.fit)
    dlinear, dnorm_weight, dnorm_bias = backend.layer_norm.backward(dy, cache.norm)
    dz, dweight, _ = backend.binary_linear.backward(dlinear, cache.linear)
    grads = {
        "move": dz.sum(axis=(0, 1)),
        "weight": dweight,
        "norm": {"weight": dnorm_weight, "bias": dnorm_bias},
        "rprelu": dict(zip(params["rprelu"], drprelu, strict=False)),  # no token shifts: None left
    }
    if run.tap is not None:
        _tap_backward(params, dy, dlinear, dz, grads, run, name, source)
    return dz + dshortcut, grads


def reads(name: str) -> list[str]:
    """Taps from which the gradient of a projection's input follows; see `input_gradient`."""
    return [f"grads/{name}.z", f"grads/{name}.norm"]


def input_gradient(dz: np.ndarray, dnorm: np.ndarray) -> np.ndarray:
    """What a projection adds to the gradient of its input: through z and through the shortcut."""
    return dz + ops.fit.backward(dnorm, ops.fit.Cache(dz.shape[-1], dnorm.shape[-1]))[0]


def _tap_forward(params, z, linear, norm, out, run: Run, name: str, source: str) -> None:
    config, _, tap, _ = run
    weight = params["weight"]
    if config.binarize == "full":
        centred, _, scale = ops.weight_binarizer.binarize(weight)
        binarize = ops.weight_binarizer.binarize
        tap(f"{name}.weight.z", centred, lambda: binarize(weight).centred, [])
        tap(f"{name}.weight.bit", is_positive(centred), is_positive, [f"{name}.weight.z"])
        tap(f"{name}.weight.scale", scale, lambda: binarize(weight).scale, [])
    tap(f"{name}.z", z, lambda x: x + params["move"], [source])
    if config.binarize != "none":
        tap(f"{name}.bit", is_positive(z), is_positive, [f"{name}.z"])
    if config.binarize == "full":
        integers = _integers(is_positive(z), is_positive(centred))
        tap(f"{name}.int", integers, _integers, [f"{name}.bit", f"{name}.weight.bit"])
        reads = [f"{name}.int", f"{name}.weight.scale"]
        tap(f"{name}.linear", linear, lambda i, scale: i.astype(scale.dtype) * scale, reads)
    elif config.binarize == "activations":
        read = [f"{name}.bit"]
        tap(f"{name}.linear", linear, lambda bit: signs(bit, weight.dtype) @ weight.T, read)
    else:
        tap(f"{name}.linear", linear, lambda z: z @ weight.T, [f"{name}.z"])
    tap(f"{name}.norm", norm, pick(_normalise(params, run), 0), [f"{name}.linear"])
    tap(f"{name}.out", out, pick(_activate(params), 0), [f"{name}.norm", source])


def _tap_backward(params, dy, dlinear, dz, grads, run: Run, name: str, source: str) -> None:
    config, _, tap, _ = run
    normalise, activate = _normalise(params, run), _activate(params)

    def activation_gradients(dout, norm, x):
        return ops.rprelu.backward(dout, activate(norm, x)[1])

    def norm_gradients(dnorm, linear):
        return ops.layer_norm.backward(dnorm, normalise(linear)[1])

    read = [f"grads/{name}.out", f"{name}.norm", source]
    for i, key in enumerate(params["rprelu"]):
        op = pick(activation_gradients, i + 1)
        tap(f"grads/param.{name}.rprelu.{key}", grads["rprelu"][key], op, read)
    tap(f"grads/{name}.norm", dy, pick(activation_gradients, 0), read)
    read = [f"grads/{name}.norm", f"{name}.linear"]
    for i, key in enumerate(("weight", "bias")):
        op = pick(norm_gradients, i + 1)
        tap(f"grads/param.{name}.norm.{key}", grads["norm"][key], op, read)
    tap(f"grads/{name}.linear", dlinear, pick(norm_gradients, 0), read)
    _tap_linear_backward(params["weight"], dlinear, dz, grads["weight"], run, name)
    read = [f"grads/{name}.z"]
    tap(f"grads/param.{name}.move", grads["move"], lambda dz: dz.sum(axis=(0, 1)), read)


def _tap_linear_backward(weight, dlinear, dz, dweight, run: Run, name: str) -> None:
    config, _, tap, _ = run
    dlinear_name, z_name, bit_name = f"grads/{name}.linear", f"{name}.z", f"{name}.bit"
    if config.binarize == "none":
        tap(f"grads/param.{name}.weight", dweight, _weight_gradient, [dlinear_name, z_name])
        tap(f"grads/{name}.z", dz, lambda dlinear: dlinear @ weight, [dlinear_name])
        return
    if config.binarize == "full":
        used, weight_cache = ops.weight_binarizer.forward(weight)

        def weight_gradient(dlinear, bit):
            dused = _weight_gradient(dlinear, signs(bit, dlinear.dtype))
            return ops.weight_binarizer.backward(dused, weight_cache)[0]
    else:
        used = weight

        def weight_gradient(dlinear, bit):
            return _weight_gradient(dlinear, signs(bit, dlinear.dtype))

    def surrogate(dbit, z):
        return ops.sign.backward(dbit, ops.sign.Cache(z, config.ste))[0]

    tap(f"grads/param.{name}.weight", dweight, weight_gradient, [dlinear_name, bit_name])
    tap(f"grads/{name}.bit", dlinear @ used, lambda dlinear: dlinear @ used, [dlinear_name])
    tap(f"grads/{name}.z", dz, surrogate, [f"grads/{name}.bit", z_name])


def _integers(bit: np.ndarray, weight_bit: np.ndarray) -> np.ndarray:
    return dot(signs(bit, np.int32), signs(weight_bit, np.int32))


def _normalise(params: Params, run: Run) -> Callable:
    return lambda linear: ops.layer_norm.forward(linear, **params["norm"], eps=run.config.norm_eps)


def _activate(params: Params) -> Callable:
    def activate(norm, x):
        return ops.rprelu.forward(norm + ops.fit.forward(x, norm.shape[-1])[0], **params["rprelu"])

    return activate


def _weight_gradient(dlinear: np.ndarray, x: np.ndarray) -> np.ndarray:
    rows = dlinear.reshape(-1, dlinear.shape[-1])
    return rows.T @ x.reshape(-1, x.shape[-1])
