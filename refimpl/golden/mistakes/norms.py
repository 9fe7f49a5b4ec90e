"""LayerNorm and batch norm."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from refimpl.golden.mistakes.declared import NUMBERS, Call, Mistake, Site, family, mistake


def _of(call: Call, deviation: np.ndarray, mean: np.ndarray | None = None) -> np.ndarray:
    x, weight, bias = call["x0"], call["p0"], call["p1"]
    mean = x.mean(axis=-1, keepdims=True) if mean is None else mean
    return (x - mean) / deviation * weight + bias


def _variance(call: Call, ddof: int = 0) -> np.ndarray:
    return call["x0"].var(axis=-1, keepdims=True, ddof=ddof)


def _eps(call: Call) -> float:
    return call.node.attributes["eps"]


@mistake("layer_norm", words="eps added to the deviation, outside the root")
def eps_outside(call: Call) -> np.ndarray:
    return _of(call, np.sqrt(_variance(call)) + _eps(call))


@mistake("layer_norm", words="eps squared: the variance plus eps * eps")
def eps_squared(call: Call) -> np.ndarray:
    return _of(call, np.sqrt(_variance(call) + _eps(call) ** 2))


@mistake("layer_norm", words="the variance is at least eps, eps is not added to it")
def eps_as_minimum(call: Call) -> np.ndarray:
    return _of(call, np.sqrt(np.maximum(_variance(call), _eps(call))))


@mistake("layer_norm", words="unbiased variance: divided by C - 1, not by C")
def unbiased(call: Call) -> np.ndarray:
    return _of(call, np.sqrt(_variance(call, ddof=1) + _eps(call)))


@mistake("layer_norm", words="unbiased variance: divided by C - 1, and eps outside the root")
def unbiased_and_outside(call: Call) -> np.ndarray:
    return _of(call, np.sqrt(_variance(call, ddof=1)) + _eps(call))


@mistake("layer_norm", words="eps is added to the sum of squares, before the division by C")
def eps_divided(call: Call) -> np.ndarray:
    return _of(call, np.sqrt(_variance(call) + _eps(call) / call["x0"].shape[-1]))


@mistake("layer_norm", words="divided by the norm of the row, not by its deviation")
def norm_of_row(call: Call) -> np.ndarray:
    size = np.linalg.norm(call["x0"], axis=-1, keepdims=True)
    return _of(call, np.maximum(size, _eps(call)), np.zeros_like(size))


@mistake("layer_norm", words="divided by the variance, no root taken")
def no_root(call: Call) -> np.ndarray:
    return _of(call, _variance(call) + _eps(call))


@mistake("layer_norm", words="the mean absolute deviation in the place of the deviation")
def absolute_deviation(call: Call) -> np.ndarray:
    x = call["x0"]
    size = np.abs(x - x.mean(axis=-1, keepdims=True)).mean(axis=-1, keepdims=True)
    return _of(call, size + _eps(call))


@mistake("layer_norm", words="the sum of squares is not divided by C")
def sum_of_squares(call: Call) -> np.ndarray:
    return _of(call, np.sqrt(_variance(call) * call["x0"].shape[-1] + _eps(call)))


@mistake("layer_norm", words="the mean is not subtracted (as in RMSNorm)")
def root_mean_square(call: Call) -> np.ndarray:
    size = np.sqrt(np.square(call["x0"]).mean(axis=-1, keepdims=True) + _eps(call))
    return _of(call, size, np.zeros_like(size))


@mistake("layer_norm", words="the mean is not subtracted, the variance is right")
def mean_not_subtracted(call: Call) -> np.ndarray:
    deviation = np.sqrt(_variance(call) + _eps(call))
    return _of(call, deviation, np.zeros_like(deviation))


@mistake("layer_norm", words="the variance as the mean of squares, the mean not taken off it")
def square_of_raw(call: Call) -> np.ndarray:
    return _of(call, np.sqrt(np.square(call["x0"]).mean(axis=-1, keepdims=True) + _eps(call)))


@mistake("layer_norm", words="the mean is subtracted, nothing is divided by the deviation")
def not_divided(call: Call) -> np.ndarray:
    return _of(call, np.ones_like(call["x0"][..., :1]))


@mistake("layer_norm", words="the bias is added in front of the weight's product")
def bias_first(call: Call) -> np.ndarray:
    normalised = call.right({"p0": np.ones_like(call["p0"]), "p1": np.zeros_like(call["p1"])})
    return (normalised + call["p1"]) * call["p0"]


@mistake("layer_norm", words="the weight is 1 + weight")
def weight_from_one(call: Call) -> np.ndarray:
    return call.right({"p0": 1 + call["p0"]})


@family("layer_norm")
def tails(site: Site) -> Iterator[Mistake]:
    """Sums over whole vectors alone."""
    for width in (4, 8, 16):
        words = f"sums leave out what does not fill a vector of {width}"
        yield Mistake(f"mean and variance: {words}", lambda c, w=width: _whole(c, w, True, True))
        yield Mistake(f"the mean: {words}", lambda c, w=width: _whole(c, w, True, False))
        yield Mistake(f"the variance: {words}", lambda c, w=width: _whole(c, w, False, True))


def _whole(call: Call, width: int, of_mean: bool, of_variance: bool) -> np.ndarray | None:
    x = call["x0"]
    length = x.shape[-1]
    whole = length // width * width
    if whole == length:
        return None
    ends = (whole if of_mean else length), (whole if of_variance else length)
    mean = x[..., : ends[0]].sum(axis=-1, keepdims=True) / length
    squares = np.square(x - mean)[..., : ends[1]].sum(axis=-1, keepdims=True)
    return _of(call, np.sqrt(squares / length + _eps(call)), mean)


@mistake("layer_norm", words="normalised over the tokens, not over the channels")
def over_tokens(call: Call) -> np.ndarray | None:
    x = call["x0"]
    if x.ndim != 3:
        return None
    deviation = np.sqrt(x.var(axis=1, keepdims=True) + _eps(call))
    return _of(call, deviation, x.mean(axis=1, keepdims=True))


@mistake("layer_norm", words="mean and variance of a whole image, not of a token")
def over_images(call: Call) -> np.ndarray:
    x = call["x0"]
    axes = tuple(range(1, x.ndim))
    deviation = np.sqrt(x.var(axis=axes, keepdims=True) + _eps(call))
    return _of(call, deviation, x.mean(axis=axes, keepdims=True))


@mistake("layer_norm", words="the mean of token 0 taken for all tokens")
def statistics_of_token_0(call: Call) -> np.ndarray | None:
    x = call["x0"]
    if x.ndim != 3:
        return None
    mean, variance = x.mean(axis=-1, keepdims=True), _variance(call)
    return _of(call, np.sqrt(variance[:, :1] + _eps(call)), mean[:, :1])


@mistake("layer_norm", words="mean and deviation of the row before, in memory")
def statistics_late(call: Call) -> np.ndarray:
    return _of_other_row(call, 1)


@mistake("layer_norm", words="mean and deviation of the row behind, in memory")
def statistics_early(call: Call) -> np.ndarray:
    return _of_other_row(call, -1)


def _of_other_row(call: Call, step: int) -> np.ndarray:
    x = call["x0"]
    mean, deviation = x.mean(axis=-1), np.sqrt(_variance(call)[..., 0] + _eps(call))
    mean, deviation = (np.roll(s.reshape(-1), step).reshape(s.shape) for s in (mean, deviation))
    return _of(call, deviation[..., None], mean[..., None])


@family("layer_norm")
def groups(site: Site) -> Iterator[Mistake]:
    channels, heads = site.network.shape(site.node.params[0])[-1], site.node.stage.heads
    maker = site.network.maker.get(site.node.inputs[0])
    is_joined = maker is not None and site.network.nodes[maker].op == "merge_heads"
    for number in dict.fromkeys((heads, 2, 3, 4, 8)):
        if 1 < number < channels and channels % number == 0:
            is_of_heads = is_joined and number == heads
            whose = "each head's channels" if is_of_heads else f"{number} groups of channels"
            yield Mistake(f"normalised over {whose} alone",
                          lambda c, n=number: _of_groups(c, n))  # fmt: skip


def _of_groups(call: Call, number: int) -> np.ndarray:
    x = call["x0"]
    parts = x.reshape(*x.shape[:-1], number, -1)
    deviation = np.sqrt(parts.var(axis=-1, keepdims=True) + _eps(call))
    normalised = (parts - parts.mean(axis=-1, keepdims=True)) / deviation
    return normalised.reshape(x.shape) * call["p0"] + call["p1"]


# --- what only the numbers themselves show --------------------------------------------------------

MANY_CHANNELS = 8  # of a row, to know its mean and deviation by them
LARGE_MEAN = 10.0  # times the variance: the square of a mean beside which it cancels


def _fitted(call: Call) -> tuple[np.ndarray, np.ndarray] | None:
    """The output with the deviation of every row that fits the candidate's best, and its error."""
    found = call.given.get(call.node.name)
    if found is None:
        return None
    direction = call.right({"p1": np.zeros_like(call["p1"])})  # weight * normalised
    size = np.square(direction).sum(axis=-1, keepdims=True)
    factor = ((found - call["p1"]) * direction).sum(axis=-1, keepdims=True) / size
    return factor * direction + call["p1"], np.abs(factor - 1)[..., 0]


@mistake(
    "layer_norm", what=NUMBERS,
    words="the variance in one pass, mean(x^2) - mean^2: it cancels where the mean is large",
)  # fmt: skip
def one_pass(call: Call) -> np.ndarray | None:
    fitted, x = _fitted(call), call["x0"]
    if fitted is None:
        return None
    value, error = fitted
    square = np.square(x.mean(axis=-1)) / (x.var(axis=-1) + _eps(call))
    cancels = square > LARGE_MEAN
    if not cancels.any() or (error[cancels].max() < error[~cancels].max(initial=0.0)):
        return None
    return value


@mistake("layer_norm", what=NUMBERS, words="the normalised numbers are clipped")
def normalised_clipped(call: Call) -> np.ndarray | None:
    found, weight = call.given.get(call.node.name), call["p0"]
    if found is None or (weight == 0).any():
        return None
    reached = np.abs((found - call["p1"]) / weight)
    at_limit = reached[reached >= reached.max() * (1 - AT_LIMIT)]
    if at_limit.size < SEVERAL:
        return None
    limit = np.median(at_limit)
    normalised = call.right({"p0": np.ones_like(weight), "p1": np.zeros_like(weight)})
    return np.clip(normalised, -limit, limit) * weight + call["p1"]


SEVERAL, AT_LIMIT = 3, 1e-4  # numbers at a limit, and how near to it


@mistake(
    "layer_norm", what=NUMBERS, rank=8,
    words="the deviation of rows is off, by a factor each: an approximate root or reciprocal, or a "
          "variance that is summed coarsely",
)  # fmt: skip
def rows_off(call: Call) -> np.ndarray | None:
    fitted = _fitted(call)
    return None if fitted is None else fitted[0]


@mistake(
    "layer_norm", what=NUMBERS, rank=9,
    words="mean and deviation of rows are off, by numbers of their own: sums in a coarse type, or "
          "of another row",
)  # fmt: skip
def statistics_off(call: Call) -> np.ndarray | None:
    found, weight = call.given.get(call.node.name), call["p0"]
    if found is None or weight.size < MANY_CHANNELS:
        return None
    n = call.right({"p0": np.ones_like(weight), "p1": np.zeros_like(weight)})
    # found = factor * weight * n + shift * weight + bias: n is of mean 0 where weights are alike
    terms = np.stack([weight * n, np.broadcast_to(weight, n.shape)], axis=-1)
    rest = (found - call["p1"])[..., None]
    across = terms.swapaxes(-1, -2)
    return (terms @ np.linalg.solve(across @ terms, across @ rest))[..., 0] + call["p1"]


# --- backward -------------------------------------------------------------------------------------


def _parts(call: Call) -> tuple[np.ndarray, ...]:
    """The gradient of the normalised row, the row, its deviation."""
    x = call["x0"]
    std = np.sqrt(_variance(call) + _eps(call))
    return call["d"] * call["p0"], (x - x.mean(axis=-1, keepdims=True)) / std, std


def _mean(x: np.ndarray) -> np.ndarray:
    return x.mean(axis=-1, keepdims=True)


@mistake("layer_norm", what="d.x0", words="no gradient through mean and variance")
def statistics_are_constants(call: Call) -> np.ndarray:
    dn, _, std = _parts(call)
    return dn / std


@mistake("layer_norm", what="d.x0", words="no gradient through the mean")
def no_mean_term(call: Call) -> np.ndarray:
    dn, n, std = _parts(call)
    return (dn - n * _mean(dn * n)) / std


@mistake("layer_norm", what="d.x0", words="no gradient through the variance")
def no_variance_term(call: Call) -> np.ndarray:
    dn, _, std = _parts(call)
    return (dn - _mean(dn)) / std


@mistake("layer_norm", what="d.x0", words="the means of the gradient are sums, not divided by C")
def sums_for_means(call: Call) -> np.ndarray:
    dn, n, std = _parts(call)
    C = n.shape[-1]
    return (dn - C * _mean(dn) - n * C * _mean(dn * n)) / std


@mistake("layer_norm", what="d.x0", words="the term of the variance has the wrong sign")
def variance_term_added(call: Call) -> np.ndarray:
    dn, n, std = _parts(call)
    return (dn - _mean(dn) + n * _mean(dn * n)) / std


@mistake("layer_norm", what="d.x0", words="half, or twice, of the term of the variance")
def half_variance_term(call: Call) -> np.ndarray:
    dn, n, std = _parts(call)
    return (dn - _mean(dn) - n * _mean(dn * n) / 2) / std


@mistake("layer_norm", what="d.x0", words="twice the term of the variance")
def twice_variance_term(call: Call) -> np.ndarray:
    dn, n, std = _parts(call)
    return (dn - _mean(dn) - 2 * n * _mean(dn * n)) / std


@mistake("layer_norm", what="d.x0", words="both means are of the gradient without the weight")
def means_without_weight(call: Call) -> np.ndarray:
    (dn, n, std), d = _parts(call), call["d"]
    return (dn - _mean(d) - n * _mean(d * n)) / std


@mistake("layer_norm", what="d.x0", words="the weight multiplies last, behind the means")
def weight_last(call: Call) -> np.ndarray:
    return call.right({"d": call["d"], "p0": np.ones_like(call["p0"])}) * call["p0"]


@mistake("layer_norm", what="d.x0", words="the gradient is not divided by the deviation")
def not_divided_back(call: Call) -> np.ndarray:
    dn, n, _ = _parts(call)
    return dn - _mean(dn) - n * _mean(dn * n)


@mistake("layer_norm", what="d.x0", words="the gradient is divided by the variance")
def divided_by_the_variance(call: Call) -> np.ndarray:
    return call.right() / _parts(call)[2]


@mistake("layer_norm", what="d.x0", words="the variance's term takes x, not the normalised row")
def variance_term_of_centred(call: Call) -> np.ndarray:
    dn, n, std = _parts(call)
    centred = n * std
    return (dn - _mean(dn) - centred * _mean(dn * centred)) / std


@mistake("layer_norm", what="d.x0", words="eps left out of the deviation on the way back")
def no_eps_back(call: Call) -> np.ndarray:
    return call.right(eps=0.0)


@mistake("layer_norm", what="d.p0", words="the gradient of the weight sums over x, not normalised")
def weight_gradient_of_x(call: Call) -> np.ndarray:
    d, x = call["d"], call["x0"]
    return (d * x).sum(axis=tuple(range(d.ndim - 1)))


@mistake("layer_norm", what="d.p0", words="the gradient of the weight sums x - mean, undivided")
def weight_gradient_of_centred(call: Call) -> np.ndarray:
    d, x = call["d"], call["x0"]
    return (d * (x - _mean(x))).sum(axis=tuple(range(d.ndim - 1)))


@mistake("layer_norm", what="d.p0", words="the gradient of the weight is that of the bias")
def weight_gradient_of_bias(call: Call) -> np.ndarray:
    return call["d"].sum(axis=tuple(range(call["d"].ndim - 1)))


@mistake("layer_norm", what="d.p0", words="the gradient of the weight sums over the output")
def weight_gradient_of_whole_output(call: Call) -> np.ndarray:
    x = call["x0"]
    normalised = (x - _mean(x)) / np.sqrt(_variance(call) + _eps(call))
    y = normalised * call["p0"] + call["p1"]
    return (call["d"] * y).sum(axis=tuple(range(y.ndim - 1)))


@mistake("layer_norm", what="d.p0", words="the gradient of the weight has a factor of the weight")
def weight_gradient_of_output(call: Call) -> np.ndarray:
    return call.right() * call["p0"]


@mistake("layer_norm", what="d.p1", words="the gradient of the bias has a factor of the weight")
def bias_gradient_of_input(call: Call) -> np.ndarray:
    return call.right() * call["p0"]


# --- batch norm -----------------------------------------------------------------------------------


@mistake("batch_norm", words="eps added to the deviation, outside the root")
def batch_eps_outside(call: Call) -> np.ndarray:
    x, weight, bias, mean, variance = call.args
    return (x - mean) / (np.sqrt(variance) + _eps(call)) * weight + bias


@mistake("batch_norm", words="divided by the variance, no root taken")
def batch_no_root(call: Call) -> np.ndarray:
    x, weight, bias, mean, variance = call.args
    return (x - mean) / (variance + _eps(call)) * weight + bias


@mistake("batch_norm", words="statistics of this batch, not the running ones")
def of_this_batch(call: Call) -> np.ndarray:
    x, axes = call["x0"], tuple(range(call["x0"].ndim - 1))
    return call.right({"p2": x.mean(axis=axes), "p3": x.var(axis=axes)})


@mistake("batch_norm", words="a LayerNorm: statistics of the row, not the running ones")
def as_layer_norm(call: Call) -> np.ndarray:
    return _of(call, np.sqrt(_variance(call) + _eps(call)))


@mistake("batch_norm", what="d.x0", words="statistics of the batch are differentiated")
def batch_differentiated(call: Call) -> np.ndarray:
    d, x, weight, _, mean, variance = call.args[:6]
    std = np.sqrt(variance + _eps(call))
    n, dn, axes = (x - mean) / std, d * weight, tuple(range(x.ndim - 1))
    return (dn - dn.mean(axis=axes) - n * (dn * n).mean(axis=axes)) / std
