"""RPReLU, GELU, the shortcut of a projection, the differential term."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from refimpl.golden.mistakes.declared import NUMBERS, Call, Mistake, Site, family, mistake
from refimpl.golden.mistakes.tokens import interleaved

# --- RPReLU ---------------------------------------------------------------------------------------


class _Parts:
    """Of one run: x, u, and the parameters by name."""

    def __init__(self, call: Call):
        self.call, self.x = call, call["x0"]
        self.shift_in, self.slope, self.shift_out = (call[f"p{k}"] for k in range(3))
        self.per_token = "p3" in call.keys
        self.token_in = call["p3"][:, None] if self.per_token else np.zeros(())
        self.token_out = call["p4"][:, None] if self.per_token else np.zeros(())
        self.u = self.x - self.shift_in - self.token_in

    def curve(self, u: np.ndarray) -> np.ndarray:
        return np.where(u > 0, u, self.slope * u)

    def out(self, y: np.ndarray) -> np.ndarray:
        return y + self.shift_out + self.token_out


Formula = Callable[[_Parts], "np.ndarray | None"]


def _on_channels(token: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Token n of the shifts at channel n."""
    return np.resize(token[:, 0], like.shape[-1])


def _tokens(p: _Parts, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray | None:
    if not p.per_token:
        return None
    y = p.curve(p.x - p.shift_in - change(p.token_in))
    return y + p.shift_out + change(p.token_out)


def _if_tokens(p: _Parts, value: Callable[[], np.ndarray]) -> np.ndarray | None:
    return value() if p.per_token else None


RPRELU: dict[str, Formula] = {
    "RPReLU's slope on the wrong side": lambda p: p.out(np.where(p.u > 0, p.slope * p.u, p.u)),
    "RPReLU: + shift_in, not -": lambda p: p.out(p.curve(p.x + p.shift_in - p.token_in)),
    "RPReLU: + both shifts in front, not -": lambda p: p.out(
        p.curve(p.x + p.shift_in + p.token_in)),
    "RPReLU: - shift_out, not +": lambda p: p.curve(p.u) - p.shift_out + p.token_out,
    "RPReLU: - both shifts behind, not +": lambda p: p.curve(p.u) - p.shift_out - p.token_out,
    "RPReLU's slope times the input, not u": lambda p: p.out(np.where(p.u > 0, p.u, p.slope * p.x)),
    "RPReLU passes the input, not u, where it is positive":
        lambda p: p.out(np.where(p.u > 0, p.x, p.slope * p.u)),
    "RPReLU: the sign of the input picks the branch, not that of u":
        lambda p: p.out(np.where(p.x > 0, p.u, p.slope * p.u)),
    "RPReLU of the input, not of u": lambda p: p.out(np.where(p.x > 0, p.x, p.slope * p.x)),
    "RPReLU with the input in the place of u, by the sign of u":
        lambda p: p.out(np.where(p.u > 0, p.x, p.slope * p.x)),
    "RPReLU: one slope for all channels, the first":
        lambda p: p.out(np.where(p.u > 0, p.u, p.slope[0] * p.u)),
    "RPReLU: one slope for all channels, the mean":
        lambda p: p.out(np.where(p.u > 0, p.u, p.slope.mean() * p.u)),
    "RPReLU: the slope is 1/4 everywhere, as it starts":
        lambda p: p.out(np.where(p.u > 0, p.u, 0.25 * p.u)),
    "RPReLU: a ReLU, no slope": lambda p: p.out(np.maximum(p.u, 0)),
    "RPReLU: the slope is 0.01, a leaky ReLU's":
        lambda p: p.out(np.where(p.u > 0, p.u, 0.01 * p.u)),
    "RPReLU: the slope on both sides": lambda p: p.out(p.slope * p.u),
    "RPReLU: max(u, slope u)": lambda p: p.out(np.maximum(p.u, p.slope * p.u)),
    "RPReLU: ELU's curve, slope (e^u - 1)": lambda p: p.out(
        np.where(p.u > 0, p.u, p.slope * np.expm1(np.minimum(p.u, 0)))),
    "RPReLU: u is clipped at 6, as in ReLU6": lambda p: p.out(np.minimum(p.curve(p.u), 6)),
    "RPReLU: 1 + slope in the place of the slope": lambda p: p.out(
        np.where(p.u > 0, p.u, (1 + p.slope) * p.u)),
    "RPReLU: |u| below 0": lambda p: p.out(np.where(p.u > 0, p.u, -p.slope * p.u)),
    "RPReLU: the shift is added back below 0 alone":
        lambda p: np.where(p.u > 0, p.u, p.slope * p.u + p.shift_out + p.token_out),
    "RPReLU: the shift is added back above 0 alone":
        lambda p: np.where(p.u > 0, p.u + p.shift_out + p.token_out, p.slope * p.u),
    "RPReLU: shift_in and shift_out exchanged":
        lambda p: p.curve(p.x - p.shift_out - p.token_in) + p.shift_in + p.token_out,
    "RPReLU: shifts of channels left out":
        lambda p: p.curve(p.x - p.token_in) + p.token_out,
    "RPReLU: all shifts left out": lambda p: p.curve(p.x),
    "RPReLU: the slope applies to the shift behind, too":
        lambda p: np.where(p.u > 0, p.out(p.u), p.slope * p.out(p.u)),
    "token shifts left out": lambda p: _if_tokens(
        p, lambda: p.curve(p.x - p.shift_in) + p.shift_out),
    "token shifts exchanged: in for out": lambda p: _if_tokens(
        p, lambda: p.curve(p.x - p.shift_in - p.token_out) + p.shift_out + p.token_in),
    "token shifts on the wrong axis: along the channels": lambda p: _tokens(
        p, lambda t: _on_channels(t, p.x)),
    "token shifts on the wrong axis: along the channels, in front": lambda p: _if_tokens(
        p, lambda: p.out(p.curve(p.x - p.shift_in - _on_channels(p.token_in, p.x)))),
    "token shifts on the wrong axis: along the channels, behind": lambda p: _if_tokens(
        p, lambda: p.curve(p.u) + p.shift_out + _on_channels(p.token_out, p.x)),
    "off-by-one shift of the token shifts, one late": lambda p: _tokens(
        p, lambda t: np.roll(t, 1, axis=0)),
    "off-by-one shift of the token shifts, one early": lambda p: _tokens(
        p, lambda t: np.roll(t, -1, axis=0)),
    "token shifts: the class token has none, the others are one late": lambda p: _tokens(
        p, lambda t: np.concatenate([0 * t[:1], t[:-1]])),
    "token shifts of the class token left out": lambda p: _tokens(
        p, lambda t: np.concatenate([0 * t[:1], t[1:]])),
    "the token shift of token 0 for all tokens": lambda p: _tokens(
        p, lambda t: np.broadcast_to(t[:1], t.shape)),
    "token shifts in reverse order": lambda p: _tokens(p, lambda t: t[::-1]),
    "token shifts of row / B: tokens of the images interleaved": lambda p: _tokens(
        p, lambda t: t[interleaved(p.x)]),
    "token shifts of row / B in front: tokens of the images interleaved": lambda p: _if_tokens(
        p, lambda: p.out(p.curve(p.x - p.shift_in - p.token_in[interleaved(p.x)]))),
    "token shifts of row / B behind: tokens of the images interleaved": lambda p: _if_tokens(
        p, lambda: p.curve(p.u) + p.shift_out + p.token_out[interleaved(p.x)]),
    "token shifts with the wrong sign": lambda p: _tokens(p, lambda t: -t),
}  # fmt: skip


@mistake("rprelu", words="the shortcut is added behind RPReLU, not in front of it")
def shortcut_behind(call: Call) -> np.ndarray | None:
    network, name = call.site.network, call.site.name("x0")
    added = network.nodes[network.maker[name]]
    if added.op != "add" or added.tap or not network.nodes[network.maker[added.inputs[0]]].tap:
        return None
    norm = call.real(added.inputs[0])
    return call.right({"x0": norm}) + (call["x0"] - norm)


@family("rprelu")
def rprelu(site: Site) -> Iterator[Mistake]:
    for words, formula in RPRELU.items():
        yield Mistake(words, lambda call, formula=formula: formula(_Parts(call)))


def _sum(x: np.ndarray) -> np.ndarray:
    return x.sum(axis=(0, 1))


def _back(call: Call) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """dy, u, slope."""
    p = _Parts(call)
    return call["d"], p.u, p.slope


RPRELU_X: dict[str, Callable[[Call], np.ndarray]] = {
    "RPReLU's slope on the wrong side on the way back": lambda c: (
        lambda d, u, s: np.where(u > 0, s * d, d))(*_back(c)),
    "no gradient below 0: a ReLU's": lambda c: (lambda d, u, s: d * (u > 0))(*_back(c)),
    "the gradient passes everywhere, the slope left out": lambda c: c["d"],
    "the sign of the input picks the branch on the way back, not that of u":
        lambda c: np.where(c["x0"] > 0, c["d"], c["p1"] * c["d"]),
    "one slope for all channels on the way back, the mean": lambda c: (
        lambda d, u, s: np.where(u > 0, d, s.mean() * d))(*_back(c)),
    "one slope for all channels on the way back, the first": lambda c: (
        lambda d, u, s: np.where(u > 0, d, s[0] * d))(*_back(c)),
    "the sign of the output picks the branch on the way back": lambda c: (
        lambda p: np.where(p.out(p.curve(p.u)) > 0, c["d"], p.slope * c["d"]))(_Parts(c)),
    "the sign of the gradient picks the branch": lambda c: (
        lambda d, u, s: np.where(d > 0, d, s * d))(*_back(c)),
}  # fmt: skip
RPRELU_SLOPE: dict[str, Callable[[Call], np.ndarray]] = {
    "the gradient of the slope sums over u > 0, the wrong side": lambda c: (
        lambda d, u, s: _sum(d * np.maximum(u, 0)))(*_back(c)),
    "the gradient of the slope sums over all u": lambda c: (
        lambda d, u, s: _sum(d * u))(*_back(c)),
    "the gradient of the slope sums over the input, not u": lambda c: (
        lambda d, u, s: _sum(d * c["x0"] * (u <= 0)))(*_back(c)),
    "the gradient of the slope sums over the input below 0": lambda c: _sum(
        c["d"] * np.minimum(c["x0"], 0)),
    "the gradient of the slope has a factor of the slope": lambda c: c.right() * c["p1"],
    "the gradient of the slope without u": lambda c: (
        lambda d, u, s: _sum(d * (u <= 0)))(*_back(c)),
    "the gradient of the slope sums over |u|": lambda c: (
        lambda d, u, s: _sum(d * np.abs(u) * (u <= 0)))(*_back(c)),
    "the gradient of the slope sums over slope * u": lambda c: (
        lambda d, u, s: _sum(d * s * np.minimum(u, 0)))(*_back(c)),
    "the gradient of the slope is one number for all": lambda c: np.full_like(
        c["p1"], c.right().sum()),
}  # fmt: skip
SHIFT_IN: dict[str, Callable[[Call], np.ndarray]] = {
    "the gradient of the shift in front does not pass the slope": lambda c: -_over(c, c["d"]),
    "the gradient of the shift in front is that of the shift behind": lambda c: _over(c, c["d"]),
    "the gradient of the shift in front where u > 0 alone": lambda c: (
        lambda d, u, s: -_over(c, d * (u > 0)))(*_back(c)),
    "the gradient of the shift in front where u <= 0 alone": lambda c: (
        lambda d, u, s: -_over(c, s * d * (u <= 0)))(*_back(c)),
    "the gradient of the shift in front with the slope on the wrong side": lambda c: (
        lambda d, u, s: -_over(c, np.where(u > 0, s * d, d)))(*_back(c)),
}  # fmt: skip
SHIFT_OUT: dict[str, Callable[[Call], np.ndarray]] = {
    "the gradient of the shift behind passes the slope": lambda c: (
        lambda d, u, s: _over(c, np.where(u > 0, d, s * d)))(*_back(c)),
    "the gradient of the shift behind is that of the shift in front": lambda c: (
        lambda d, u, s: -_over(c, np.where(u > 0, d, s * d)))(*_back(c)),
    "the gradient of the shift behind where u > 0 alone": lambda c: (
        lambda d, u, s: _over(c, d * (u > 0)))(*_back(c)),
}  # fmt: skip


def _over(call: Call, terms: np.ndarray) -> np.ndarray:
    """The sum for a channel, of a token shift for a token."""
    return terms.sum(axis=(0, 2) if call.site.what in ("d.p3", "d.p4") else (0, 1))


def _wrong_axis(call: Call) -> np.ndarray:
    """A token shift's gradient summed over the tokens: of the wrong shape, or cut to it."""
    found = call["d"].sum(axis=(0, 1))
    return np.resize(found, call.right().shape)


def _declare(op: str, what: str, table: dict[str, Callable[[Call], np.ndarray]]) -> None:
    @family(op, what=what)
    def declared(site: Site) -> Iterator[Mistake]:
        for words, edit in table.items():
            yield Mistake(words, edit)


_declare("rprelu", "d.x0", RPRELU_X)
_declare("rprelu", "d.p1", RPRELU_SLOPE)
for _what in ("d.p0", "d.p3"):
    _declare("rprelu", _what, SHIFT_IN)
for _what in ("d.p2", "d.p4"):
    _declare("rprelu", _what, SHIFT_OUT)
for _what in ("d.p3", "d.p4"):
    _declare("rprelu", _what, {"the gradient of a token shift on the wrong axis": _wrong_axis})

# --- GELU -----------------------------------------------------------------------------------------


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _tanh_gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _erf(x: np.ndarray) -> np.ndarray:
    from scipy.special import erf

    return erf(x)


GELU: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "tanh GELU, not the exact one": _tanh_gelu,
    "quick GELU: x * sigmoid(1.702 x), not the exact one": lambda x: x * _sigmoid(1.702 * x),
    "SiLU: x * sigmoid(x), no GELU": lambda x: x * _sigmoid(x),
    "ReLU, no GELU": lambda x: np.maximum(x, 0),
    "GELU without its root of 2: erf(x)": lambda x: 0.5 * x * (1 + _erf(x)),
    "GELU without its half": lambda x: x * (1 + _erf(x / math.sqrt(2))),
    "GELU: the distribution alone, not times x": lambda x: 0.5 * (1 + _erf(x / math.sqrt(2))),
    "tanh GELU with 0.0447 left out": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * x)),
    "GELU by the sigmoid of sqrt(8 / pi) x": lambda x: x * _sigmoid(math.sqrt(8 / math.pi) * x),
    "hard swish: x * relu6(x + 3) / 6, no GELU": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "softplus: log(1 + e^x), no GELU": lambda x: np.logaddexp(0, x),
    "mish: x * tanh(softplus(x)), no GELU": lambda x: x * np.tanh(np.logaddexp(0, x)),
    "ELU, no GELU": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "leaky ReLU, slope 0.01, no GELU": lambda x: np.where(x > 0, x, 0.01 * x),
    "ReLU squared, no GELU": lambda x: np.maximum(x, 0) ** 2,
    "tanh, no GELU": np.tanh,
    "GELU with 1.7 in its sigmoid": lambda x: x * _sigmoid(1.7 * x),
}


@family("gelu")
def gelu(site: Site) -> Iterator[Mistake]:
    for words, function in GELU.items():
        yield Mistake(words, lambda call, function=function: function(call["x0"]))


ALIKE = 0.05  # of the largest value, up to which another curve is one of GELU


@mistake("gelu", what=NUMBERS, rank=8, words="another approximation of GELU: its values follow x "
         "alone, smoothly")  # fmt: skip
def another_curve(call: Call) -> np.ndarray | None:
    found, x = call.given.get(call.node.name), call["x0"]
    if found is None or x.size < MANY:
        return None
    error = (found - call.right()).reshape(-1)[np.argsort(x, axis=None)]
    size = np.abs(error).max()
    # of neighbours along x the errors are alike
    is_smooth = np.abs(np.diff(error)).mean() < ALIKE * size
    return found if is_smooth and size < ALIKE * np.abs(found).max() else None


MANY = 64  # values, to see that they follow one curve


@mistake("rprelu", what=NUMBERS, rank=8, words="RPReLU follows another curve below 0, above it "
         "all is right")  # fmt: skip
def another_curve_below(call: Call) -> np.ndarray | None:
    found = call.given.get(call.node.name)
    return None if found is None else np.where(_Parts(call).u > 0, call.right(), found)


@mistake("rprelu", what=NUMBERS, rank=8, words="RPReLU follows another curve above 0, below it "
         "all is right")  # fmt: skip
def another_curve_above(call: Call) -> np.ndarray | None:
    found = call.given.get(call.node.name)
    return None if found is None else np.where(_Parts(call).u > 0, found, call.right())


def _slope_of(function: Callable[[np.ndarray], np.ndarray], x: np.ndarray) -> np.ndarray:
    """The derivative of an analytic function, by a complex step where it allows one."""
    step = 1e-5
    return (8 * (function(x + step) - function(x - step))
            - (function(x + 2 * step) - function(x - 2 * step))) / (12 * step)  # fmt: skip


def _density(x: np.ndarray) -> np.ndarray:
    return np.exp(-0.5 * np.square(x)) / math.sqrt(2 * math.pi)


def _cdf(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + _erf(x / math.sqrt(2)))


def _tanh_slope(x: np.ndarray) -> np.ndarray:
    root = math.sqrt(2 / math.pi)
    t = np.tanh(root * (x + 0.044715 * x**3))
    return 0.5 * (1 + t) + 0.5 * x * (1 - t**2) * root * (1 + 3 * 0.044715 * x**2)


def _quick_slope(x: np.ndarray) -> np.ndarray:
    s = _sigmoid(1.702 * x)
    return s + 1.702 * x * s * (1 - s)


GELU_SLOPES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "the derivative of the tanh GELU": _tanh_slope,
    "the derivative of the quick GELU": _quick_slope,
    "the derivative of GELU without x * density": _cdf,
    "the derivative of GELU without x in front of the density": lambda x: _cdf(x) + _density(x),
    "the derivative of GELU without the distribution": lambda x: x * _density(x),
    "the derivative of GELU with the wrong sign of its density":
        lambda x: _cdf(x) - x * _density(x),
    "the derivative of GELU without 1 / sqrt(2 pi)":
        lambda x: _cdf(x) + x * _density(x) * math.sqrt(2 * math.pi),
    "the derivative of GELU with exp(-x^2)":
        lambda x: _cdf(x) + x * np.exp(-np.square(x)) / math.sqrt(2 * math.pi),
    "the derivative of the hard swish": lambda x: np.where(
        np.abs(x) < 3, (2 * x + 3) / 6, 1.0 * (x > 0)),
    "the derivative of SiLU": lambda x: _sigmoid(x) * (1 + x * (1 - _sigmoid(x))),
    "the derivative of ReLU": lambda x: 1.0 * (x > 0),
}  # fmt: skip


@family("gelu", what="d.x0")
def gelu_backward(site: Site) -> Iterator[Mistake]:
    for words, slope in GELU_SLOPES.items():
        yield Mistake(words, lambda call, slope=slope: call["d"] * slope(call["x0"]))


# --- the shortcut of a projection -----------------------------------------------------------------


def _fitted(call: Call, wide: Callable, narrow: Callable) -> np.ndarray | None:
    x, outputs = call["x0"], call.node.attributes["outputs"]
    inputs = x.shape[-1]
    if outputs == inputs:
        return None
    if outputs > inputs:
        return None if wide is None else wide(x, outputs // inputs)
    if narrow is None:
        return None
    return narrow(x.reshape(*x.shape[:-1], outputs, inputs // outputs),
                  x.reshape(*x.shape[:-1], inputs // outputs, outputs))  # fmt: skip


FIT: dict[str, tuple[Callable | None, Callable | None]] = {
    "fit by repeat instead of tile": (lambda x, n: np.repeat(x, n, axis=-1), None),
    "fit by means over channels O apart instead of neighbours": (
        None, lambda near, far: far.mean(axis=-2)),
    "fit is a sum, no mean": (None, lambda near, far: near.sum(axis=-1)),
    "fit is a sum over channels O apart": (None, lambda near, far: far.sum(axis=-2)),
    "fit takes the first channels alone": (None, lambda near, far: far[..., 0, :]),
    "fit takes the last channels alone": (None, lambda near, far: far[..., -1, :]),
    "fit takes every n-th channel, no mean": (None, lambda near, far: near[..., 0]),
    "fit takes the last of neighbours, no mean": (None, lambda near, far: near[..., -1]),
    "fit takes the largest of neighbours, no mean": (None, lambda near, far: near.max(axis=-1)),
    "fit fills up with zeros instead of tiles": (
        lambda x, n: np.concatenate([x, *[np.zeros_like(x)] * (n - 1)], axis=-1), None),
    "fit tiles x divided by the number of tiles": (
        lambda x, n: np.concatenate([x] * n, axis=-1) / n, None),
    "fit tiles x in turn reversed": (
        lambda x, n: np.concatenate([x[..., :: 1 - 2 * (i % 2)] for i in range(n)], axis=-1), None),
    "fit divides by one number too few": (
        None, lambda near, far: near.sum(axis=-1) / (near.shape[-1] - 1)),
    "fit divides by the square root of the number": (
        None, lambda near, far: near.sum(axis=-1) / np.sqrt(near.shape[-1])),
}  # fmt: skip


@family("fit")
def fit(site: Site) -> Iterator[Mistake]:
    for words, (wide, narrow) in FIT.items():
        yield Mistake(words, lambda call, w=wide, n=narrow: _fitted(call, w, n))
    # an identity of as many inputs as outputs, and the nodes around it, say so themselves
    yield Mistake("fit left out: no shortcut around the projection", _no_shortcut)


def _no_shortcut(call: Call) -> np.ndarray:
    return np.zeros_like(call.right())


FIT_BACK: dict[str, Callable[[Call], np.ndarray | None]] = {
    "the gradient of fit summed as if it had been repeated": lambda c: _fit_back(
        c, lambda d, n: d.reshape(*d.shape[:-1], -1, n).sum(axis=-1), None),
    "the gradient of fit is a mean over the tiles, no sum": lambda c: _fit_back(
        c, lambda d, n: d.reshape(*d.shape[:-1], n, -1).mean(axis=-2), None),
    "the gradient of fit of the first tile alone": lambda c: _fit_back(
        c, lambda d, n: d.reshape(*d.shape[:-1], n, -1)[..., 0, :], None),
    "the gradient of fit of the last tile alone": lambda c: _fit_back(
        c, lambda d, n: d.reshape(*d.shape[:-1], n, -1)[..., -1, :], None),
    "the gradient of fit is not divided by the number": lambda c: _fit_back(
        c, None, lambda d, n: np.repeat(d, n, axis=-1)),
    "the gradient of fit tiled, not repeated": lambda c: _fit_back(
        c, None, lambda d, n: np.concatenate([d / n] * n, axis=-1)),
    "the gradient of fit tiled, not repeated, and not divided": lambda c: _fit_back(
        c, None, lambda d, n: np.concatenate([d] * n, axis=-1)),
    "the gradient of fit goes to the first of neighbours alone": lambda c: _fit_back(
        c, None, lambda d, n: np.stack([d, *[0 * d] * (n - 1)], -1).reshape(*d.shape[:-1], -1)),
}  # fmt: skip


def _fit_back(call: Call, wide: Callable | None, narrow: Callable | None) -> np.ndarray | None:
    d, inputs = call["d"], call.right().shape[-1]
    outputs = d.shape[-1]
    if outputs > inputs and wide is not None:
        return wide(d, outputs // inputs)
    if outputs < inputs and narrow is not None:
        return narrow(d, inputs // outputs)
    return None


_declare("fit", "d.x0", FIT_BACK)


# --- sums -----------------------------------------------------------------------------------------


@family("add")
def sums(site: Site) -> Iterator[Mistake]:
    number = len(site.node.inputs)
    for words, divisor in {
        "the sum is a mean, divided by the number of its terms": number,
        "the sum is divided by the root of the number of its terms": math.sqrt(number),
    }.items():
        yield Mistake(words, lambda call, n=divisor: call.right() / n)
    words = "the terms behind the first are divided by their number"
    yield Mistake(words, lambda call: call["x0"] + (call.right() - call["x0"]) / (number - 1))
    for key in site.keys if not site.is_backward else ():
        for words, factor in (("counts twice", 2.0), ("has the wrong sign", -1.0)):
            edit = lambda call, k=key, f=factor: call.right({k: f * call[k]})  # noqa: E731
            yield Mistake(f"{site.name(key)} {words}", edit, f"{key} {words}")


# --- the differential term ------------------------------------------------------------------------


@family("differential")
def differential(site: Site) -> Iterator[Mistake]:
    for words, edit in {
        "the differential term: + the neighbours, not -":
            lambda c: c["p0"] * c["x0"] + c["p1"] * c["x1"],
        "the differential term: value - mean, with one weight":
            lambda c: c["p0"] * (c["x0"] - c["x1"]),
        "the differential term: the neighbours' weight on both":
            lambda c: c["p1"] * (c["x0"] - c["x1"]),
        "the differential term: 1 in the place of the shortcut's weight":
            lambda c: c["x0"] - c["p1"] * c["x1"],
        "the differential term: the plain value, no neighbours": lambda c: c["x0"],
        "the differential term: 1 + the shortcut's weight":
            lambda c: (1 + c["p0"]) * c["x0"] - c["p1"] * c["x1"],
        "the differential term: the neighbours taken off before the shortcut's weight multiplies":
            lambda c: c["p0"] * (c["x0"] - c["p1"] * c["x1"]),
        "the differential term: the magnitude of the difference":
            lambda c: np.abs(c["p0"] * c["x0"] - c["p1"] * c["x1"]),
        "the differential term: weights of both exchanged":
            lambda c: c["p1"] * c["x0"] - c["p0"] * c["x1"],
    }.items():  # fmt: skip
        yield Mistake(words, edit)


@mistake("layer_scale", words="1 + alpha in the place of alpha")
def scale_from_one(call: Call) -> np.ndarray:
    return call.right({"p0": 1 + call["p0"]})


@mistake("layer_scale", words="beta is added in front of alpha's product")
def beta_first(call: Call) -> np.ndarray | None:
    return (call["x0"] + call["p1"]) * call["p0"] if "p1" in call.keys else None


@mistake("layer_scale", words="1 / alpha in the place of alpha")
def scale_inverse(call: Call) -> np.ndarray:
    return call.right({"p0": 1 / call["p0"]})


@mistake("layer_scale", what="d.p0", words="the gradient of alpha sums over the output")
def scale_gradient_of_whole_output(call: Call) -> np.ndarray:
    y = call["x0"] * call["p0"] + (call["p1"] if "p1" in call.keys else 0.0)
    return (call["d"] * y).sum(axis=tuple(range(y.ndim - 1)))


@mistake("layer_scale", what="d.p0", words="the gradient of alpha sums over the scaled value")
def scale_gradient_of_output(call: Call) -> np.ndarray:
    return call.right() * call["p0"]
