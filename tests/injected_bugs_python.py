"""Wrong operations of a port in Python: the backward pass, and what float32 would hide.

The port is the reference's own trace in float64, in which every tap of a certain name is computed
by a wrong operation, and everything downstream from its result. A wrong operation is called with
the port and the arrays that the right one reads; its docstring says what is wrong.

The backward pass begins in the last block, blocks.1, so there is the first divergence as a rule.
There only the class token has a gradient when it leaves attention, and it has no neighbours: what
is wrong with neighbours shows in blocks.0.

Not here is the mask of a weight's gradient that is open at |Wc| = 1. Unlike |z| = 1, which a port
is given, Wc is its own rounded difference: a right port may find a number next to 1, so both
gradients are within the bound.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from refimpl import ops
from refimpl.models import Config, flatten
from tests.injected_bugs import ADVERSARIAL, TIE_FREE


class InPython(NamedTuple):
    pattern: str  # of the taps that are computed wrongly
    tap: str  # the first divergence
    cause: str | None  # how the cause begins; None where an error leaves no fingerprint
    bundle: str
    wrong: Callable[..., np.ndarray]


IN_PYTHON: dict[str, InPython] = {}


def wrong(pattern: str, tap: str, cause: str | None, bundle: str = TIE_FREE) -> Callable:
    def register(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
        assert function.__doc__, f"{function.__name__}: say what is wrong"
        IN_PYTHON[function.__name__] = InPython(pattern, tap, cause, bundle, function)
        return function

    return register


class Port(NamedTuple):
    """What an operation may look at, besides its inputs."""

    name: str  # of the tap
    right: Callable[..., np.ndarray]  # the operation as it should be
    params: Mapping[str, np.ndarray]  # by dotted name
    config: Config

    def parameter(self) -> np.ndarray:
        """The one whose gradient is asked for."""
        return self.params[self.name.removeprefix("grads/param.")]

    def near(self, leaf: str) -> np.ndarray:
        """The parameter at the side of this tap, or of the parameter of this gradient."""
        path = re.sub("^grads/(param.)?", "", self.name).rpartition(".")[0]
        return self.params[f"{path}.{leaf}"]


def taps(bundle: Any, bug: InPython) -> dict[str, np.ndarray]:
    """Everything the wrong port computes, by name."""
    params, values = flatten(bundle.params), {}
    for name, step in bundle.reference.steps.items():
        value, op = step.value, step.op
        inputs = [values[read] for read in step.inputs]
        if op is not None and re.fullmatch(bug.pattern, name):
            values[name] = bug.wrong(Port(name, op, params, bundle.model.config), *inputs)
        else:
            values[name] = value if op is None else op(*inputs)
    return values


def signs(bit: np.ndarray) -> np.ndarray:
    return np.where(bit, 1.0, -1.0)


# --- binarizers -----------------------------------------------------------------------------------

Z = r"grads/.*(\.|head_)z"
PROJECTIONS = r"grads/param\..*\.(q|k|v|q_low|k_low|q_high|k_high|proj|up|down)\.weight"


@wrong(
    r"grads/.*\.k_low\.z",
    "grads/blocks.0.attn.k_low.z",
    "surrogate gradient cut off at |z| = 1",
    ADVERSARIAL,
)
def clip_open_at_one(port, dbit, z):
    """STE: |z| < 1 instead of |z| <= 1."""
    return dbit * (np.abs(z) < 1)


@wrong(Z, "grads/blocks.1.mlp.down.z", "no surrogate")
def no_surrogate(port, dbit, z):
    """STE: the gradient passes everywhere."""
    return dbit


@wrong(Z, "grads/blocks.1.mlp.down.z", "surrogate gradient passes where |z| > 1")
def surrogate_on_the_wrong_side(port, dbit, z):
    """STE: passes where |z| > 1."""
    return dbit * (np.abs(z) > 1)


def _weight_gradient(port, dlinear, bit):
    """dW_b (O, I) and Wc (O, I) [SPEC 2]."""
    weight = port.parameter()
    rows = dlinear.reshape(-1, dlinear.shape[-1])
    dused = rows.T @ signs(bit).reshape(-1, bit.shape[-1])
    return dused, weight - weight.mean(axis=1, keepdims=True)


def _centred(gradient):
    return gradient - gradient.mean(axis=1, keepdims=True)


@wrong(PROJECTIONS, "grads/param.blocks.1.mlp.down.weight", "centring forgotten")
def centring_forgotten(port, dlinear, bit):
    """Weights: the gradient does not go through the centring."""
    dused, centred = _weight_gradient(port, dlinear, bit)
    return dused * (np.abs(centred) <= 1)


@wrong(PROJECTIONS, "grads/param.blocks.1.mlp.down.weight", "gradient of the weights not clipped")
def weights_never_clipped(port, dlinear, bit):
    """Weights: no mask at |Wc| > 1."""
    return _centred(_weight_gradient(port, dlinear, bit)[0])


@wrong(PROJECTIONS, "grads/param.blocks.1.mlp.down.weight", "gradient through the weight scale")
def through_the_scale(port, dlinear, bit):
    """Weights: the scale is no constant for the gradient."""
    dused, centred = _weight_gradient(port, dlinear, bit)
    dscale = (dused * signs(centred >= 0)).sum(axis=1, keepdims=True)
    return port.right(dlinear, bit) + dscale * np.sign(port.parameter()) / centred.shape[1]


@wrong(PROJECTIONS, "grads/param.blocks.1.mlp.down.weight", "gradient of the weights times")
def times_the_scale(port, dlinear, bit):
    """Weights: a factor s_o in the gradient."""
    return port.right(dlinear, bit) * np.abs(port.parameter()).mean(axis=1, keepdims=True)


@wrong(
    r"grads/.*\.attn\.prob",
    "grads/blocks.1.attn.prob",
    "the gradient of the probabilities passes where q > 1",
)
def boolean_open_above(port, dcontext, q, bit):
    """Boolean attention: the gradient of p passes where q > 1 too."""
    return dcontext @ signs(bit)


@wrong(
    r"grads/param\..*attn\.alpha",
    "grads/param.blocks.1.attn.alpha",
    "the gradient of alpha without its branch q > 1",
)
def alpha_without_its_branch_above(port, dcontext, q, bit):
    """Boolean attention: alpha gets no gradient where q > 1."""
    inside = (q >= 0) & (q <= 1)
    return np.sum(dcontext @ signs(bit) * inside * (np.round(q) - q))


# --- real operations, forward ---------------------------------------------------------------------


@wrong(
    r"blocks.*norm1\.out",
    "blocks.0.norm1.out",
    "norm_eps is 1e-05, the candidate seems to take 1e-06",
)
def eps_of_another_network(port, x):
    """LayerNorm: eps 1e-6; in float32 that is rounding, unless the variance is far below 1."""
    return _layer_norm(port, x, np.sqrt(x.var(axis=-1, keepdims=True) + 1e-6))


@wrong(r"blocks.*norm1\.out", "blocks.0.norm1.out", "eps added to the deviation, outside the root")
def eps_added_to_the_deviation(port, x):
    """LayerNorm: eps outside of the root."""
    return _layer_norm(port, x, x.std(axis=-1, keepdims=True) + port.config.norm_eps)


def _layer_norm(port, x, deviation):
    path = port.name.removesuffix(".out")
    weight, bias = (port.params[f"{path}.{leaf}"] for leaf in ("weight", "bias"))
    return (x - x.mean(axis=-1, keepdims=True)) / deviation * weight + bias


# --- real operations, backward --------------------------------------------------------------------


@wrong(
    r"grads/param\..*\.(q|v).*\.rprelu\.slope",
    "grads/param.blocks.1.attn.q_low.rprelu.slope",
    "the gradient of the slope sums over u > 0",
)
def slope_gradient_on_the_wrong_side(port, dout, norm, x):
    """RPReLU: the gradient of the slope sums over u > 0."""
    u = norm + x - port.near("shift_in") - port.near("token_shift_in")[:, None]
    return (dout * u * (u > 0)).sum(axis=(0, 1))


@wrong(
    r"grads/param\..*\.token_shift_out",
    "grads/param.blocks.1.mlp.down.rprelu.token_shift_out",
    None,
)
def token_shift_summed_over_the_tokens(port, dout, *inputs):
    """RPReLU: the gradient of a token shift on the wrong axis, so of the wrong shape."""
    return dout.sum(axis=(0, 1))


@wrong(r"grads/.*\.shift_in", "grads/param.blocks.1.mlp.down.rprelu.shift_in", "polarity inverted")
def shift_gradient_with_the_wrong_sign(port, *inputs):
    """RPReLU: the shift is subtracted, its gradient is not."""
    return -port.right(*inputs)


@wrong(
    r"grads/.*\.linear",
    "grads/blocks.1.mlp.down.linear",
    "no gradient through mean and variance",
)
def statistics_are_constants(port, dnorm, linear):
    """LayerNorm: no gradient through mean and variance."""
    deviation = np.sqrt(linear.var(axis=-1, keepdims=True) + port.config.norm_eps)
    return dnorm * port.near("norm.weight") / deviation


@wrong(
    r"grads/.*\.attn\.scores",
    "grads/blocks.1.attn.scores",
    "softmax's gradient without the sum",
)
def softmax_without_its_sum(port, dprob, q):
    """Softmax: p * dp without - p * sum(p * dp)."""
    return q * np.maximum(port.near("alpha"), 1e-5) * dprob


@wrong(r"grads/.*\.q.*\.head_bit", "grads/blocks.1.attn.q_low.head_bit", "scale missing")
def gradient_without_the_root(port, dscores, bit):
    """Scores: no 1 / sqrt(d) on the way back."""
    return port.right(dscores, bit) * np.sqrt(port.config.head_dim)


@wrong(
    r"grads/.*\.k.*\.head_bit",
    "grads/blocks.1.attn.k_low.head_bit",
    "the gradient of the product not transposed",
)
def scores_not_transposed(port, dscores, bit):
    """Scores: the keys get the gradient of the queries' side."""
    return port.right(dscores.swapaxes(-1, -2), bit)


@wrong(
    r"grads/param\..*attn\.q_low_move",
    "grads/param.blocks.1.attn.q_low_move",
    "heads transposed",
)
def move_gradient_by_transposed_heads(port, dz):
    """Heads: channels put together as (d, heads)."""
    return port.right(dz).reshape(port.config.heads, -1).T.reshape(-1)


@wrong(
    r"grads/.*norm1\.out",
    "grads/blocks.1.norm1.out",
    "Haar's transform once more on the way back",
)
def bands_forward_instead_of_their_adjoint(port, dlow, dhigh, *rest):
    """Haar: the transform once more, which is not its adjoint."""
    config = port.config
    low, high = (
        ops.bands.forward(d, config.grid, config.haar_mode, config.haar_cls)[0][band]
        for band, d in enumerate((dlow, dhigh))
    )
    return port.right(np.zeros_like(dlow), np.zeros_like(dhigh), *rest) + low + high


@wrong(
    r"grads/.*norm1\.out",
    "grads/blocks.1.norm1.out",
    "gradients of the low and the high band exchanged",
)
def gradients_of_the_bands_exchanged(port, dlow, dhigh, *rest):
    """Haar: the gradient of the high band goes into the low one."""
    return port.right(dhigh, dlow, *rest)


@wrong(
    r"grads/.*\.v\.out",
    "grads/blocks.0.attn.v.out",
    "the mean of neighbours once more on the way back",
)
def neighbours_counted_at_the_wrong_end(port, dz, dmean, dnorm):
    """Neighbour mean: its own forward as its backward, which divides by the wrong counts."""
    config = port.config
    around = ops.neighbours.forward(dmean, config.grid, config.neighbours)[0]
    return port.right(dz, np.zeros_like(dmean), dnorm) + around


@wrong(r"grads/param\..*\.neighbour", "grads/param.blocks.0.attn.neighbour", "polarity inverted")
def neighbour_weight_gradient_with_the_wrong_sign(port, *inputs):
    """Differential term: lam_n is subtracted, its gradient is not."""
    return -port.right(*inputs)


@wrong(
    r"grads/.*norm2\.out",
    "grads/blocks.1.norm2.out",
    "the gradient of fit summed as if it had been repeated",
)
def fit_gradient_by_repeat(port, dz, dshortcut):
    """fit: the shortcut was tiled, its gradient is summed as if it had been repeated."""
    return dz + dshortcut.reshape(*dz.shape, -1).sum(axis=-1)


@wrong(
    r"grads/.*\.mid",
    "grads/blocks.1.mid",
    "all zero: left out, or never written, in what comes back through blocks.1.out",
)
def shortcut_gradient_forgotten(port, dnorm2, mid, dout):
    """The block: no gradient goes around the MLP."""
    return port.right(dnorm2, mid, np.zeros_like(dout))
