"""Wrong versions of single operations, in networks of every kind: the third list of mistakes.

A port is the reference's own trace in float64 while one function of an operation is a wrong one;
so are the mutants of `tests.mutants`, of which MUTANTS says how their cause begins. For each: the
function below refimpl, the wrong one from the right one, the network, how the cause must read.
"""

from __future__ import annotations

import functools
import importlib
import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from refimpl import golden
from refimpl.golden import record
from tests import golden_networks, mutants, networks

MADE = tempfile.TemporaryDirectory()  # as long as this process
SHIPPED = Path(__file__).parent.parent / "weights" / "golden"
REAL = {"block": "real", "norm_eps": 1e-6}
CONFIGS: dict[str, Callable[[], Any]] = {
    "didb": lambda: networks.small(**networks.DIDB, layer_scale=True),
    "react": lambda: networks.small(),
    "mean": lambda: networks.small(pool="mean", **networks.DIDB),
    "differences": lambda: networks.small(context="differences", **networks.DIDB),
    "clip": lambda: networks.small(ste="clip", **networks.DIDB),
    "heads": lambda: networks.small(alpha_scope="head", **networks.DIDB),
    "eight": lambda: networks.small(neighbours="eight", **networks.DIDB),
    "activations": lambda: networks.small(binarize="activations"),
    "deit": lambda: networks.small(**REAL),
    "deit-mean": lambda: networks.small(**REAL, pool="mean"),
    "swin": lambda: networks.swin(**REAL, position="patches"),
    "swin-didb": lambda: networks.swin(**networks.DIDB),
    "fpn": lambda: networks.swin(image_size=(16, 8), depth=(2, 1), decoder="fpn", **REAL),
    "linear": lambda: networks.small(decoder="linear", **networks.DIDB),
    "batch": lambda: networks.small(norm="batch", box="3+5", pool="mean", layer_scale=True),
}


class Bug(NamedTuple):
    target: str  # below refimpl
    make: Callable[[Callable], Callable]
    network: str  # of CONFIGS, or a shipped bundle
    cause: str  # a regular expression
    is_backward: bool


def forward(op: str, wrong: Callable, network: str, cause: str, attribute: str = "forward") -> Bug:
    """A wrong forward: `wrong` takes the right one and its arguments, and gives y alone."""

    def make(original: Callable) -> Callable:
        def changed(*args: Any, **attributes: Any) -> Any:
            return wrong(original, *args, **attributes), original(*args, **attributes)[1]

        return changed

    return Bug(f"ops.{op}.{attribute}", make, network, cause, False)


def backward(op: str, position: int, wrong: Callable, network: str, cause: str) -> Bug:
    """A wrong gradient of one argument: `wrong` takes the right one, dy and the cache."""

    def make(original: Callable) -> Callable:
        def changed(dy: Any, cache: Any) -> tuple:
            found = list(original(dy, cache))
            found[position] = wrong(found[position], dy, cache)
            return tuple(found)

        return changed

    return Bug(f"ops.{op}.backward", make, network, cause, True)


def plain(function: str, wrong: Callable, network: str, cause: str) -> Bug:
    """Any function of an operation: `wrong` takes the right one and its arguments."""
    return Bug(f"ops.{function}", lambda original: functools.partial(wrong, original), network,
               cause, False)  # fmt: skip


def _norm(x, w, b, centre, size):
    return (x - centre) / size * w + b


def _mean(x):
    return x.mean(axis=-1, keepdims=True)


def _var(x, **options):
    return x.var(axis=-1, keepdims=True, **options)


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _grid(x, grid):
    first = x.shape[1] - grid[0] * grid[1]
    return first, x[:, first:].reshape(len(x), *grid, -1)


def _ungrid(x, first, patches):
    return np.concatenate([x[:, :first], patches.reshape(len(x), -1, x.shape[-1])], axis=1)


def _wrapped_mean(x, grid, border):
    first, patches = _grid(x, grid)
    total = sum(np.roll(patches, (i, j), (1, 2)) for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j)
    return np.concatenate([0 * x[:, :first], (total / 8).reshape(x[:, first:].shape)], axis=1)


def _wrapped_rows(x, grid, mode, cls):
    """The next token for the next column."""
    first, patches = _grid(x, grid)
    rows = patches.reshape(len(x), -1, x.shape[-1])
    right = np.concatenate([rows[:, 1:], rows[:, -1:]], axis=1).reshape(patches.shape)
    below = [np.concatenate([a[:, 1:], a[:, -1:]], axis=1) for a in (patches, right)]
    low = (patches + right + below[0] + below[1]) / 4
    return _ungrid(x, first, low), _ungrid(x, first, patches - low)


def _edge(x, grid, mode, cls):
    first, patches = _grid(x, grid)
    pad = np.pad(patches, [(0, 0), (0, 1), (0, 1), (0, 0)])
    low = (pad[:, :-1, :-1] + pad[:, 1:, :-1] + pad[:, :-1, 1:] + pad[:, 1:, 1:]) / 4
    return _ungrid(x, first, low), _ungrid(x, first, patches - low)


def _rprelu(inner: Callable) -> Callable:
    def wrong(right, x, shift_in, slope, shift_out, token_in=None, token_out=None):
        if token_in is None:
            token_in = token_out = np.zeros(x.shape[1])
        return inner(x, shift_in, slope, shift_out, token_in[:, None], token_out[:, None])

    return wrong


BUGS: dict[str, Bug] = {
    # norms
    "LayerNorm: eps squared": forward("layer_norm", lambda r, x, w, b, eps: _norm(
        x, w, b, _mean(x), np.sqrt(_var(x) + eps * eps)), "didb", "eps squared|eps is"),
    "LayerNorm: no mean taken off": forward("layer_norm", lambda r, x, w, b, eps: _norm(
        x, w, b, 0, np.sqrt(np.square(x).mean(-1, keepdims=True) + eps)), "react",
        "mean is not subtracted"),
    "LayerNorm: gain from 1": forward("layer_norm", lambda r, x, w, b, eps: r(
        x, 1 + w, b, eps)[0], "deit", r"1 \+ weight"),
    "LayerNorm: no bias": forward("layer_norm", lambda r, x, w, b, eps: r(
        x, w, 0 * b, eps)[0], "deit", "bias left out|p1 left out"),
    "LayerNorm: bias in front of the gain": forward("layer_norm", lambda r, x, w, b, eps: (
        r(x, 1 + 0 * w, 0 * b, eps)[0] + b) * w, "react", "bias is added in front"),
    "LayerNorm: gain for bias": forward("layer_norm", lambda r, x, w, b, eps: r(
        x, b, w, eps)[0], "didb", "exchanged"),
    "LayerNorm: divided by the variance": forward("layer_norm", lambda r, x, w, b, eps: _norm(
        x, w, b, _mean(x), _var(x) + eps), "swin", "divided by the variance"),
    "LayerNorm: over the tokens": forward("layer_norm", lambda r, x, w, b, eps: _norm(
        x, w, b, x.mean(1, keepdims=True), np.sqrt(x.var(1, keepdims=True) + eps))
        if x.ndim == 3 else r(x, w, b, eps)[0], "didb", "over the tokens"),
    "LayerNorm: float16 gain": forward("layer_norm", lambda r, x, w, b, eps: r(
        x, w.astype(np.float16).astype(x.dtype), b, eps)[0], "didb", "float16"),
    "batch norm: of the batch": forward("batch_norm", lambda r, x, w, b, m, v, eps: r(
        x, w, b, x.mean((0, 1)), x.var((0, 1)), eps)[0], "batch", "of this batch"),
    "batch norm: eps outside": forward("batch_norm", lambda r, x, w, b, m, v, eps: (
        x - m) / (np.sqrt(v) + eps) * w + b, "batch", "outside the root"),
    "batch norm: mean added": forward("batch_norm", lambda r, x, w, b, m, v, eps: r(
        x, w, b, -m, v, eps)[0], "batch", "wrong sign"),
    # RPReLU
    "RPReLU: the input in the place of u": forward("rprelu", _rprelu(
        lambda x, i, s, o, ti, to: np.where(x - i - ti > 0, x - i - ti, s * x) + o + to), "didb",
        "the input, not u"),
    "RPReLU: one slope": forward("rprelu", _rprelu(lambda x, i, s, o, ti, to: (
        lambda u: np.where(u > 0, u, s[0] * u) + o + to)(x - i - ti)), "react",
        "one slope|its first"),
    "RPReLU: ReLU": forward("rprelu", _rprelu(lambda x, i, s, o, ti, to: np.maximum(
        x - i - ti, 0) + o + to), "react", "ReLU|slope left out|no slope"),
    "RPReLU: no shift behind": forward("rprelu", lambda r, x, i, s, o, *t: r(
        x, i, s, 0 * o, *t)[0], "didb", "shift_out left out|p2 left out"),
    "RPReLU: shifts of channels exchanged": forward("rprelu", lambda r, x, i, s, o, *t: r(
        x, o, s, i, *t)[0], "react", "exchanged"),
    "RPReLU: token shifts in reverse": forward("rprelu", lambda r, x, i, s, o, *t: r(
        x, i, s, o, *(a[::-1] for a in t))[0], "didb", "token shifts in reverse"),
    "RPReLU: token shifts left out": forward("rprelu", lambda r, x, i, s, o, *t: r(
        x, i, s, o)[0], "swin-didb", "token shifts left out"),
    "RPReLU: slope everywhere": forward("rprelu", _rprelu(
        lambda x, i, s, o, ti, to: s * (x - i - ti) + o + to), "react", "slope.*|RPReLU"),
    # GELU, softmax, scores
    "GELU: quick": forward("gelu", lambda r, x: x * _sigmoid(1.702 * x), "deit", "quick GELU"),
    "GELU: SiLU": forward("gelu", lambda r, x: x * _sigmoid(x), "swin", "SiLU"),
    "GELU: erf(x)": forward("gelu", lambda r, x: 0.5 * x * (1 + np.vectorize(math.erf)(x)), "deit",
        "root of 2"),
    "softmax: base 2": forward("softmax", lambda r, x, *m: r(
        x * math.log(2), *m)[0], "deit", "base 2"),
    "softmax: a sigmoid": forward("softmax", lambda r, x, *m: _sigmoid(x), "deit", "sigmoid"),
    "softmax: not divided": forward("softmax", lambda r, x, *m: np.exp(
        x - x.max(-1, keepdims=True)), "didb", "not divided by its sum"),
    "scores: divided by d": forward("band_sum", lambda r, a, b, w, head_dim: r(
        a, b, w, head_dim**2)[0], "didb", "by d, not by its root"),
    "scores: divided by the root of C": forward("divide", lambda r, x, divisor: (
        x / math.sqrt(10)), "react", "root of all channels"),
    "scores: band weights through a softmax": forward("band_sum", lambda r, a, b, w, head_dim: r(
        a, b, np.exp(w) / np.exp(w).sum(0), head_dim)[0], "didb", "softmax"),
    "scores: one weight for both bands": forward("band_sum", lambda r, a, b, w, head_dim: r(
        a, b, np.stack([w[0], w[0]]), head_dim)[0], "heads", "for both bands"),
    # boolean attention
    "alpha: its magnitude": plain("boolean.step_of", lambda r, alpha: np.maximum(
        np.abs(alpha), 1e-5), "negative", "magnitude"),
    "alpha: head 0 for all": plain("boolean.step_of", lambda r, alpha: np.broadcast_to(
        r(alpha)[:1], alpha.shape), "heads", "head 0|its first"),
    "alpha: twice": plain("boolean.step_of", lambda r, alpha: 2 * r(alpha), "react",
        "half as large|2 times|alpha"),
    # tokens
    "class token last, its position, too": forward("position_embedding", lambda r, x, p: (
        x + np.roll(p, -1, axis=1)), "didb", "positions"),
    "no position for the class token": forward("position_embedding", lambda r, x, p: (
        x + np.concatenate([0 * p[:, :1], p[:, 1:]], axis=1)), "deit",
        "class token without its position"),
    "positions one late": forward("position_embedding", lambda r, x, p: x + np.concatenate(
        [0 * p[:, :1], p[:, :-1]], axis=1), "react", "positions shifted"),
    "the image's channels in reverse": forward("patch_embed", lambda r, x, w, b: r(
        x[:, ::-1], w, b)[0], "react", "reverse order"),
    "patches column by column": forward("patch_embed", lambda r, x, w, b: (
        lambda y, h, v: y.reshape(len(x), h, v, -1).swapaxes(1, 2).reshape(y.shape))(
        r(x, w, b)[0], x.shape[2] // 2, x.shape[3] // 2), "didb", "column by column"),
    "pixels (row, column, channel)": forward("patch_embed", lambda r, x, w, b: r(
        x, np.ascontiguousarray(w.reshape(len(w), 2, 2, 3).transpose(0, 3, 1, 2)), b)[0], "deit",
        r"\(row, column, channel\)|stored|transposed"),
    "pooled: the mean without the class token": forward("pool", lambda r, x, pool: (
        x[:, 1:].mean(1)), "mean", "without the class token"),
    "pooled: the largest": forward("pool", lambda r, x, pool: x.max(1), "deit-mean", "largest"),
    # grid
    "Haar: the next token for the next column": forward("bands", lambda r, x, **by: _wrapped_rows(
        x, **by), "didb", "from one row to the next"),
    "Haar: zeros beyond the border": forward("bands", lambda r, x, **by: _edge(x, **by), "didb",
        "zeros beyond the border"),
    "neighbours: wrap": forward("neighbours", lambda r, x, **by: _wrapped_mean(x, **by), "didb",
        "wrap around"),
    "neighbours: the class token's is the mean": forward("neighbours", lambda r, x, **by: (
        np.concatenate([x[:, 1:].mean(1, keepdims=True), r(x, **by)[0][:, 1:]], axis=1)), "didb",
        "class token gets the mean"),
    "box: repeats the border": forward("box", lambda r, x, grid, side, axis: (
        lambda p: sum(np.take(p, np.clip(np.arange(grid[axis]) + k, 0, grid[axis] - 1), 1 + axis)
                      for k in range(-(side // 2), side // 2 + 1)) / side)(
        x.reshape(len(x), *grid, -1)).reshape(x.shape), "box", "repeats the border"),
    # Swin
    "windows: rolled the other way": forward("windows", lambda r, x, grid, window, shift=0: r(
        np.roll(x.reshape(len(x), *grid, -1), (2 * shift, 2 * shift), (1, 2)).reshape(x.shape),
        grid, window, shift)[0], "swin", "wrong direction"),
    "windows: never shifted": forward("windows", lambda r, x, grid, window, shift=0: r(
        x, grid, window, 0)[0], "swin", "not shifted"),
    "windows: parity": forward("windows", lambda r, x, grid, window, shift=0: r(
        x, grid, window, window // 2 - shift)[0], "swin", "as in the block (behind|before)"),
    "windows: tokens column by column": forward("windows", lambda r, x, grid, window, shift=0: (
        lambda y: y.reshape(len(y), window, window, -1).swapaxes(1, 2).reshape(y.shape))(
        r(x, grid, window, shift)[0]), "swin-didb", "tokens of a window in the order of columns"),
    "windows: not rolled back": forward("join_windows", lambda r, x, grid, window, shift=0: r(
        x, grid, window, 0)[0], "swin", "not rolled back"),
    "windows: no mask": plain("windows.mask", lambda r, grid, window, shift: np.ones_like(
        r(grid, window, shift)), "swin", "mask of shifted windows left out"),
    "windows: masked keys get - 1": forward("window_softmax", lambda r, x, grid, window, shift: (
        lambda m: (lambda e: e / e.sum(-1, keepdims=True))(np.exp(x - x.max() - ~m)))(
        importlib.import_module("refimpl.ops.window_softmax").mask(len(x), grid, window, shift)),
        "swin", "get - 1, not"),
    "bias: rows and columns": plain("position_bias.offsets", lambda r, window: (
        lambda o: o % (2 * window - 1) * (2 * window - 1) + o // (2 * window - 1))(r(window)),
        "swin-3", "rows and columns of the offset"),
    "bias: subtracted": forward("position_bias", lambda r, x, t: r(x, -t)[0], "swin",
        "position bias subtracted|wrong sign"),
    "bias: heads in reverse": forward("position_bias", lambda r, x, t: r(x, t[:, ::-1])[0],
        "swin-didb", "heads in reverse|reverse order"),
    "merge: order": forward("merge_patches", lambda r, x, grid: (lambda p: np.concatenate(
        [p[0], p[1], p[3], p[2]], -1))(np.split(r(x, grid)[0], 4, -1)), "swin", "merge order"),
    "split: q, v, k": forward("split", lambda r, x, parts: (lambda q, k, v: (q, v, k))(
        *r(x, parts)[0]), "deit", "q, v, k"),
    "split: by heads": forward("split", lambda r, x, parts: tuple(x.reshape(
        *x.shape[:-1], 2, 3, -1)[..., i, :].reshape(*x.shape[:-1], -1) for i in range(3)), "deit",
        "by heads"),
    "resize: corners aligned": plain("interpolate._sources", lambda r, n, m: (
        lambda s: (s, np.floor(s).astype(int)))(np.arange(m) * ((n - 1) / max(m - 1, 1))), "linear",
        "align_corners"),
    "batch: image 0 for all": forward("linear", lambda r, x, w, b=None: r(
        np.broadcast_to(x[:1], x.shape).copy(), w, b)[0], "deit", "image 0"),
    "batch: image 0 for all values": forward("split_heads", lambda r, x, heads, transposed=False: r(
        np.broadcast_to(x[:1], x.shape) if transposed else x, heads, transposed)[0], "didb",
        "image 0"),
    "linear: bias left out": forward("linear", lambda r, x, w, b=None: r(x, w)[0], "deit",
        "bias left out|p1 left out"),
    "LayerScale: from 1": forward("layer_scale", lambda r, x, a, b=None: r(
        x, 1 + a, b)[0], "didb", r"1 \+ alpha"),
    "fit: the first channels": forward("fit", lambda r, x, outputs: x[..., :outputs]
        if outputs < x.shape[-1] else r(x, outputs)[0], "didb", "first channels"),
    "differential: plain value": forward("differential", lambda r, x, m, s, n: x, "didb",
        "plain value|equal to"),
    "differences: k forgotten": plain("boolean_attention.product", lambda r, w, v, context="sum": (
        r(w, v, "sum") - v.swapaxes(-1, -2) * (context != "sum")), "differences", "own value"),
    # backward
    "LayerNorm: sums for means, backward": backward("layer_norm", 0, lambda right, dy, c: (
        lambda d: (d - d.sum(-1, keepdims=True) - c.normalised * (d * c.normalised).sum(
            -1, keepdims=True)) / c.std)(dy * c.weight), "react", "sums, not divided by C"),
    "LayerNorm: no mean term, backward": backward("layer_norm", 0, lambda right, dy, c: (
        lambda d: (d - c.normalised * (d * c.normalised).mean(-1, keepdims=True)) / c.std)(
        dy * c.weight), "deit", "no gradient through the mean"),
    "LayerNorm: not divided, backward": backward("layer_norm", 0, lambda right, dy, c: (
        right * c.std), "swin", "not divided by the deviation"),
    "LayerNorm: gain of x": backward("layer_norm", 1, lambda right, dy, c: (
        dy * c.normalised * c.std).sum(tuple(range(dy.ndim - 1))), "didb", "undivided|sums over x"),
    "LayerNorm: bias gets the gain's factor": backward("layer_norm", 2, lambda right, dy, c: (
        right * c.weight), "react", "factor of the weight"),
    "GELU: derivative without x * density": backward("gelu", 0, lambda right, dy, c: dy * c.cdf,
        "deit", r"without x \* density"),
    "softmax: diagonal alone": backward("softmax", 0, lambda right, dy, c: dy * c.y * (1 - c.y),
        "deit", "diagonal"),
    "softmax: mean for sum": backward("softmax", 0, lambda right, dy, c: c.y * (
        dy - (dy * c.y).mean(-1, keepdims=True)), "react", "mean of p dp"),
    "rprelu: slope left out, backward": backward("rprelu", 0, lambda right, dy, c: dy, "didb",
        "slope left out|passes everywhere"),
    "rprelu: ReLU, backward": backward("rprelu", 0, lambda right, dy, c: dy * (c.shifted > 0),
        "react", "no gradient below 0"),
    "rprelu: shift in front without the slope": backward("rprelu", 1, lambda right, dy, c: (
        -dy.sum((0, 1))), "react", "does not pass the slope"),
    "rprelu: token shift of the mean": backward("rprelu", 5, lambda right, dy, c: (
        dy.mean((0, 2))), "didb", "mean|times too large"),
    "linear: weight of image 0": backward("linear", 1, lambda right, dy, c: (
        dy[0].reshape(-1, dy.shape[-1]).T @ c.x[0].reshape(-1, c.x.shape[-1])), "deit",
        "image 0 alone"),
    "linear: bias is a mean": backward("linear", 2, lambda right, dy, c: right / len(dy), "deit",
        "mean over the images|mean over all rows"),
    "position: of the last image": backward("position_embedding", 1, lambda right, dy, c: dy[-1:],
        "didb", "last image alone"),
    "band weights exchanged, backward": backward("band_sum", 2, lambda right, dy, c: right[::-1],
        "didb", "exchanged"),
    "windows: not rolled, backward": backward("windows", 0, lambda right, dy, c: (
        dy.reshape(-1, c.grid[0] * c.grid[1], dy.shape[-1])[:, np.argsort(importlib.import_module(
            "refimpl.ops.windows")._order(c._replace(shift=0)))]), "swin", "not rolled"),
    "bias: transposed, backward": backward("position_bias", 1, lambda right, dy, c: right[::-1],
        "swin", "transposed|reverse"),
    "fit: mean over tiles, backward": backward("fit", 0, lambda right, dy, c: (
        right * c.inputs / c.outputs if c.outputs > c.inputs else right), "didb",
        "mean over the tiles"),
    "pool: not divided, backward": backward("pool", 0, lambda right, dy, c: right * c.tokens,
        "deit-mean", "not divided"),
    "matmul: own operand": backward("matmul", 0, lambda right, dy, c: dy @ c.a
        if c.a.shape == c.b.shape else right, "react", "own operand"),
}  # fmt: skip


CONFIGS |= {
    "swin-3": lambda: networks.swin(image_size=(12, 24), window=3, **REAL),
    "box": lambda: networks.small(norm="batch", box="3", pool="mean"),
    "negative": CONFIGS["heads"],
}


@functools.cache
def bundle(network: str) -> golden.Bundle:
    """A shipped bundle, or one of a drawn network with two images, all taps and gradients."""
    if network not in CONFIGS:
        return golden.read(SHIPPED / network)
    net = networks.make(CONFIGS[network](), 7, np.float32, batch=2)
    if network == "negative":
        values = -np.abs(net.params["blocks"]["0"]["attn"]["alpha"]) * [[[1]], [[-1]]]
        net = net._replace(params=networks.with_values(net.params, {"blocks.0.attn.alpha": values}))
    return golden_networks.bundle(Path(MADE.name) / network, net)


@contextmanager
def patched(target: str, make: Callable[[Callable], Callable]) -> Iterator[None]:
    """A function below refimpl, or of a class, in its wrong version."""
    module, _, attribute = target.rpartition(".")
    try:
        place = importlib.import_module(f"refimpl.{module}")
    except ModuleNotFoundError:
        outer, _, inner = module.rpartition(".")
        place = getattr(importlib.import_module(f"refimpl.{outer}"), inner)
    original = getattr(place, attribute)
    setattr(place, attribute, make(original))
    try:
        yield
    finally:
        setattr(place, attribute, original)


def taps(found: golden.Bundle, bug: Bug) -> dict[str, np.ndarray]:
    """Everything that the wrong port computes."""
    dlogits = found.reference.steps.get("grads/logits")
    params = record.cast(found.params, np.float64)
    with patched(bug.target, bug.make):
        steps = record.trace(found.model, params, found.input.astype(np.float64),
                             None if dlogits is None else dlogits.value)  # fmt: skip
    return {name: step.value for name, step in steps.items() if name != record.INPUT}


# Mutants of operations that a bundle can show: the network, and how the cause must read.
MUTANTS: dict[str, tuple[str, str]] = {
    "polynomial_without_its_floor": ("didb", "without its floor"),
    "gradient_through_the_weight_scale": ("didb", "scale"),
    "centring_forgotten_in_backward": ("didb", "centring forgotten"),
    "scale_of_the_centred_weights": ("didb", "scale from the centred"),
    "boolean_alpha_gradient_has_the_other_sign": ("didb", "gradient of alpha|other sign"),
    "alpha_hears_nothing_above_one": ("didb", "without its branch"),
    "context_without_alpha": ("didb", "without alpha"),
    "own_value_counted_once": ("differences", "own value"),
    "no_gradient_through_the_number_of_ones": ("differences", "number of ones|context"),
    "slope_on_the_wrong_side": ("didb", "wrong side"),
    "token_shift_on_the_channel_axis": ("didb", "token shifts"),
    "slope_hears_both_sides": ("react", "sums over all u"),
    "periodic_instead_of_edge": ("didb", "haar_mode|Haar"),
    "adjoint_shifts_the_same_way": ("didb", "way back"),
    "no_class_token_in_the_high_band": ("didb", "class token left out|haar_cls"),
    "class_token_hears_one_band": ("didb", "class token"),
    "eight_neighbours_at_the_border": ("didb", "neighbours"),
    "no_diagonal_neighbours": ("didb", "four nearest"),
    "gradient_divided_at_the_neighbour": ("didb", "wrong end"),
    "neighbours_are_added": ("didb", r"\+ the neighbours"),
    "band_sum_without_the_root_of_d": ("didb", r"no division by sqrt\(d\)"),
    "band_weights_swapped": ("didb", "exchanged"),
    "shortcut_repeats_instead_of_tiling": ("didb", "repeat instead of tile"),
    "kernel_turned_around": ("fpn", "turned around"),
    "the_edge_goes_on": ("fpn", "repeats the border"),
    "layer_norm_gradient_is_zero": ("didb", "all zero"),
    "deviation_is_a_constant": ("didb", "no gradient through"),
    "variance_is_unbiased": ("didb", "unbiased"),
    "eps_outside_the_root": ("didb", "outside the root"),
    "softmax_over_the_wrong_axis": ("didb", "over the queries"),
    "softmax_gradient_without_the_row_sum": ("didb", "without the sum"),
    "gelu_by_the_tanh_formula": ("deit", "tanh GELU"),
    "pixels_of_a_patch_transposed": ("didb", "column, row|kernel exchanged|stored|transposed"),
    "rolled_the_other_way": ("swin-3", "one too many"),
    "columns_not_masked": ("swin", "rows alone"),
    "offset_of_the_key_from_the_query": ("swin", "key minus query|reverse"),
    "neighbours_row_by_row": ("swin", "merge order"),
    "masked_after_the_sum": ("swin", "behind the softmax"),
    "gradient_shared_among_the_terms": ("didb", "half|times too large|divided"),
    "move_hears_the_mean_of_the_tokens": ("didb", "mean over"),
    "quotient_without_its_divisor_on_the_way_back": ("react", r"no division by sqrt\(d\)"),
    "identity_stops_the_gradient": ("didb", "all zero|left out"),
    "class_token_behind_the_patches": ("didb", "class token last"),
    "class_token_hears_the_first_image": ("didb", "image 0 alone"),
    "dropped_token_hears_the_last_patch": ("linear", "token|shift"),
    "position_hears_the_mean_of_the_batch": ("didb", "mean over the images"),
    "the_last_token_is_pooled": ("didb", "last token"),
    "mean_pool_gradient_is_not_divided": ("mean", "not divided"),
    "every_other_channel_is_a_head": ("didb", "heads transposed"),
    "heads_swap_with_channels_on_the_way_back": ("didb", "heads"),
    "heads_interleaved": ("didb", "heads transposed"),
    "tokens_laid_out_column_by_column": ("linear", "column by column"),
}


def of_mutants() -> dict[str, Bug]:
    """The mutants as bugs."""
    from tests.mutants import ops  # noqa: F401  register themselves

    found = {}
    for name, (network, cause) in MUTANTS.items():
        mutant = mutants.CATALOGUE[name]
        target = f"{mutant.module}.{mutant.attribute}".removeprefix("refimpl.")
        found[f"mutant: {name}"] = Bug(target, mutant.make, network, cause, "backward" in target)
    return found
