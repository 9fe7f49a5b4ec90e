"""Scores, softmax, heads, windows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from refimpl import ops
from refimpl.golden.mistakes.declared import NUMBERS, Call, Mistake, Site, family, mistake

# --- scores ---------------------------------------------------------------------------------------


def _divisors(site: Site) -> dict[str, float]:
    """What scores may be divided by in the place of sqrt(d)."""
    stage = site.node.stage
    d = stage.dim / stage.heads
    return {
        "scale missing: no division by sqrt(d)": 1.0,
        "division by d, not by its root": d,
        "division by the root of all channels, not of a head's": math.sqrt(stage.dim),
        "division by all channels": float(stage.dim),
        "division by the root of the number of heads": math.sqrt(stage.heads),
        "division by the root of the number of keys": math.sqrt(stage.num_keys),
        "division by the number of heads": float(stage.heads),
        "division by 2 sqrt(d)": 2 * math.sqrt(d),
        "division by sqrt(2 d)": math.sqrt(2 * d),
        "division by sqrt(d) rounded to a whole number": float(max(round(math.sqrt(d)), 1)),
        "division by sqrt(d) cut to a whole number": float(max(int(math.sqrt(d)), 1)),
        "the scale as a power of 2: sqrt(d) rounded to one": 2.0 ** round(math.log2(math.sqrt(d))),
        "the scale as the next power of 2 above sqrt(d)": 2.0 ** math.ceil(math.log2(math.sqrt(d))),
        "the scale as the power of 2 below sqrt(d)": 2.0 ** math.floor(math.log2(math.sqrt(d))),
        "times sqrt(d), not divided by it": 1 / math.sqrt(d),
    }


def _root(site: Site) -> float:
    by = site.node.attributes
    return by["divisor"] if site.node.op == "divide" else math.sqrt(by["head_dim"])


def _declare_divisors(op: str, *whats: str) -> None:
    for what in whats:

        @family(op, what=what)
        def divisors(site: Site) -> Iterator[Mistake]:
            network = site.network
            summed = network.nodes[network.maker[site.node.inputs[0]]].op == "add"
            if op == "divide" and summed:  # the mean of two heads
                yield Mistake("a sum, no mean of the two", lambda c: c.right() * 2.0)
                return
            where = " on the way back" if site.is_backward else ""
            for words, divisor in _divisors(site).items():
                factor = _root(site) / divisor
                if factor != 1:
                    yield Mistake(words + where, lambda c, f=factor: c.right() * f)


_declare_divisors("divide", "output", "d.x0")
_declare_divisors("band_sum", "output", "d.x0", "d.x1", "d.p0")


def _weights(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Call], np.ndarray]:
    return lambda call: call.right({"p0": change(call["p0"])})


def _softmax(x: np.ndarray, axis: int) -> np.ndarray:
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


BAND_WEIGHTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "band weights taken as (heads, 2)": lambda w: w.reshape(w.shape[::-1]).T,
    "the high band's weight taken as (heads, 2)": lambda w: np.stack(
        [w[0], w.reshape(w.shape[::-1])[:, 1]]),
    "the low band's weight taken as (heads, 2)": lambda w: np.stack(
        [w.reshape(w.shape[::-1])[:, 0], w[1]]),
    "band weights of the two bands exchanged": lambda w: w[::-1],
    "band weights of the heads in reverse order": lambda w: w[:, ::-1],
    "band weights of head 0 for all heads": lambda w: np.broadcast_to(w[:, :1], w.shape),
    "band weights left out: the sum of both bands": np.ones_like,
    "band weights 1/2: the mean of both bands": lambda w: np.full_like(w, 0.5),
    "band weights through a softmax": lambda w: _softmax(w, 0),
    "band weights through a sigmoid": lambda w: 1 / (1 + np.exp(-w)),
    "band weights divided by their sum": lambda w: w / w.sum(axis=0),
    "1 - the low band's weight for the high band": lambda w: np.stack([w[0], 1 - w[0]]),
    "the low band's weight for both bands": lambda w: np.stack([w[0], w[0]]),
    "the high band's weight for both bands": lambda w: np.stack([w[1], w[1]]),
    "the low band alone": lambda w: np.stack([w[0], 0 * w[0]]),
    "the high band alone": lambda w: np.stack([0 * w[1], w[1]]),
    "the high band's weight with the wrong sign": lambda w: np.stack([w[0], -w[1]]),
}  # fmt: skip


@family("band_sum")
@family("band_sum", what="d.x0")
@family("band_sum", what="d.x1")
def band_weights(site: Site) -> Iterator[Mistake]:
    where = " on the way back" if site.is_backward else ""
    for words, change in BAND_WEIGHTS.items():
        yield Mistake(words + where, _weights(change))


def _band_gradient(call: Call, bands: tuple[int, int], axes: tuple[int, ...] = (0, 2, 3)):
    d, inputs = call["d"] / math.sqrt(call.node.attributes["head_dim"]), (call["x0"], call["x1"])
    return np.stack([(d * inputs[band]).sum(axis=axes) for band in bands])


@family("band_sum")
def larger_band(site: Site) -> Iterator[Mistake]:
    for words, which in (("larger", np.maximum), ("smaller", np.minimum)):
        yield Mistake(f"the {words} of both bands, not their sum",
                      lambda c, w=which: w(_without(c, "x1"), _without(c, "x0")))  # fmt: skip


def _without(call: Call, key: str) -> np.ndarray:
    return call.right({key: np.zeros_like(call[key])})


@family("band_sum", what="d.p0")
def band_weight_gradients(site: Site) -> Iterator[Mistake]:
    for words, edit in {
        "gradients of the two bands' weights exchanged": lambda c: _band_gradient(c, (1, 0)),
        "the low band's gradient for both weights": lambda c: _band_gradient(c, (0, 0)),
        "the high band's gradient for both weights": lambda c: _band_gradient(c, (1, 1)),
        "the gradient of band weights summed over the heads":
            lambda c: np.repeat(c.right().sum(axis=1, keepdims=True), c["p0"].shape[1], axis=1),
        "the gradient of band weights stored as (heads, 2)":
            lambda c: c.right().T.reshape(c["p0"].shape),
        "the gradient of band weights times the weights": lambda c: c.right() * c["p0"],
    }.items():  # fmt: skip
        yield Mistake(words, edit)


# --- products -------------------------------------------------------------------------------------


@family("matmul", what="d.x0")
@family("matmul", what="d.x1")
def product_gradients(site: Site) -> Iterator[Mistake]:
    own, other = ("x0", "x1") if site.what == "d.x0" else ("x1", "x0")

    def transposed(call: Call) -> np.ndarray | None:
        d = call["d"]
        if d.shape[-1] != d.shape[-2]:
            return None
        return call.right({"d": d.swapaxes(-1, -2)})

    yield Mistake("the gradient of the product not transposed for this side", transposed)
    yield Mistake(
        "the gradient of the product with its own operand, not the other",
        lambda c: (c["d"] if own == "x0" else c["d"].swapaxes(-1, -2)) @ c.real(site.name(own)),
    )
    yield Mistake(
        "the gradient of the product with what was in front of the other's signs",
        lambda c: (c["d"] if own == "x0" else c["d"].swapaxes(-1, -2)) @ _latent(c, other),
    )


def _latent(call: Call, key: str) -> np.ndarray:
    """What a sign made an operand of."""
    network = call.site.network
    maker = network.nodes[network.maker[call.site.name(key)]]
    if maker.op != "sign":
        raise ValueError
    return call.value(maker.inputs[0])


# --- softmax --------------------------------------------------------------------------------------


def _shown(call: Call) -> np.ndarray:
    return call["x0"]


def _by_whole_vectors(e: np.ndarray, width: int) -> np.ndarray:
    return e / e[..., : e.shape[-1] // width * width].sum(axis=-1, keepdims=True)


def _exp_by(
    x: np.ndarray,
    exp: Callable[[np.ndarray], np.ndarray],
    total: Callable[[np.ndarray], np.ndarray] = lambda e: e.sum(-1, keepdims=True),
) -> np.ndarray:
    e = exp(x - x.max(axis=-1, keepdims=True))
    return e / total(e)


def _straight(t: np.ndarray) -> np.ndarray:
    whole = np.floor(t)
    return np.exp2(whole) * (1 + t - whole)


def _with_blank_keys(x: np.ndarray, number: int) -> np.ndarray | None:
    if not number:
        return None
    blank = np.zeros((*x.shape[:-1], number))
    return _softmax(np.concatenate([x, blank], axis=-1), -1)[..., : x.shape[-1]]


SOFTMAX: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "softmax over the queries, not the keys": lambda x: _softmax(x, -2),
    "softmax over the heads": lambda x: _softmax(x, 1),
    "softmax with base 2: 2^x, not e^x": lambda x: _softmax(x * math.log(2), -1),
    "no softmax: the scores themselves": lambda x: x,
    "softmax not divided by its sum": lambda x: np.exp(x - x.max(axis=-1, keepdims=True)),
    "exp alone, no softmax": np.exp,
    "a sigmoid, no softmax": lambda x: 1 / (1 + np.exp(-x)),
    "softmax of magnitudes": lambda x: _softmax(np.abs(x), -1),
    "softmax of scores with the wrong sign": lambda x: _softmax(-x, -1),
    "softmax with 1 more in its sum": lambda x: (lambda e: e / (1 + e.sum(-1, keepdims=True)))(
        np.exp(x - x.max(axis=-1, keepdims=True))),
    "causal: keys behind the query are left out": lambda x: _softmax(
        np.where(np.tri(*x.shape[-2:], dtype=bool), x, -np.inf), -1),
    "the class token's key left out": lambda x: _softmax(
        np.concatenate([x[..., :1] * 0 - np.inf, x[..., 1:]], axis=-1), -1),
    "the token itself left out of its keys": lambda x: _softmax(
        np.where(np.eye(x.shape[-1], dtype=bool), -np.inf, x), -1),
    **{
        f"softmax's exp of arguments rounded to 1/{n}: a table": lambda x, n=n: _exp_by(
            x, lambda t: np.exp(np.rint(t * n) / n))
        for n in (4, 8, 16, 32, 64)
    },
    **{
        f"softmax's exp as (1 + x / {n})^{n}": lambda x, n=n: _exp_by(
            x, lambda t: (1 + t / n) ** n)
        for n in (4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)
    },
    **{
        f"softmax's exp as a polynomial of degree {n}, its first terms": lambda x, n=n: _exp_by(
            x, lambda t: sum(t**k / math.factorial(k) for k in range(n + 1)))
        for n in (2, 3, 4, 5, 6)
    },
    "softmax's exp as 2^x with a straight line between whole powers (Schraudolph's)":
        lambda x: _exp_by(x, lambda t: _straight(t / math.log(2))),
    **{
        f"softmax's sum has keys of score 0 that fill a vector of {width}":
            lambda x, w=width: _with_blank_keys(x, -x.shape[-1] % w)
        for width in (4, 8, 16, 64)
    },
    "softmax without its largest score in the sum": lambda x: _exp_by(
        x, np.exp, lambda e: e.sum(-1, keepdims=True) - e.max(-1, keepdims=True)),
    "softmax divided by its largest, not by the sum": lambda x: _exp_by(
        x, np.exp, lambda e: e.max(-1, keepdims=True)),
    "softmax divided by the root of the sum of squares": lambda x: _exp_by(
        x, np.exp, lambda e: np.sqrt(np.square(e).sum(-1, keepdims=True))),
    "softmax's exp as 1 + x, its first terms": lambda x: (
        lambda e: e / e.sum(-1, keepdims=True))(1 + (x - x.max(axis=-1, keepdims=True))),
    **{
        f"softmax's sum leaves out what does not fill a vector of {width}":
            lambda x, w=width: _by_whole_vectors(np.exp(x - x.max(axis=-1, keepdims=True)), w)
        for width in (4, 8, 16)
    },
    "softmax over all heads and keys of a query": lambda x: (
        lambda e: e / e.sum(axis=(1, -1), keepdims=True))(
        np.exp(x - x.max(axis=(1, -1), keepdims=True))),
}  # fmt: skip


@family("softmax")
def softmax(site: Site) -> Iterator[Mistake]:
    for words, change in SOFTMAX.items():
        yield Mistake(words, lambda call, change=change: change(_shown(call)))


SOFTMAX_BACK: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "softmax's gradient without the sum: p * dp": lambda d, y: d * y,
    "softmax's gradient without the factor p": lambda d, y: d - (d * y).sum(-1, keepdims=True),
    "softmax's gradient is that of its diagonal: p (1 - p) dp": lambda d, y: d * y * (1 - y),
    "softmax's gradient adds the sum, not takes it off":
        lambda d, y: y * (d + (d * y).sum(-1, keepdims=True)),
    "softmax's gradient with the sum of dp alone": lambda d, y: y * (d - d.sum(-1, keepdims=True)),
    "softmax's gradient with the mean of p dp, no sum":
        lambda d, y: y * (d - (d * y).mean(-1, keepdims=True)),
    "softmax's gradient sums over the queries":
        lambda d, y: y * (d - (d * y).sum(-2, keepdims=True)),
    "softmax's gradient handed on as it is": lambda d, y: d,
    "softmax's gradient with p squared":
        lambda d, y: y * y * (d - (d * y).sum(-1, keepdims=True)),
    "softmax's gradient with the sum over p dp of all heads":
        lambda d, y: y * (d - (d * y).sum((1, -1), keepdims=True)),
    "softmax's gradient with the mean of dp in the place of the sum":
        lambda d, y: y * (d - d.mean(-1, keepdims=True)),
}  # fmt: skip


@family("softmax", what="d.x0")
@family("window_softmax", what="d.x0")
def softmax_backward(site: Site) -> Iterator[Mistake]:
    for words, change in SOFTMAX_BACK.items():
        yield Mistake(words, lambda call, change=change: change(call["d"], call["y"]))
    for step, words in (("prob.bit", "bits of the attention"), ("prob.z", "quotients by alpha")):
        yield Mistake(f"softmax's gradient with the {words} in the place of the probabilities",
                      lambda c, s=step: c.right({"y": _of_reader(c, s)}))  # fmt: skip


def _of_reader(call: Call, step: str) -> np.ndarray:
    """A step of the boolean attention that reads these probabilities."""
    network = call.site.network
    readers = [network.nodes[i] for i, _ in network.readers[call.node.name]]
    names = [node.inside[step] for node in readers if step in node.inside]
    return call.value(names[0]).astype(np.float64)


APPROXIMATE = 0.15  # of exp, up to which another function is an approximation of it


@family("softmax", what=NUMBERS)
@family("window_softmax", what=NUMBERS)
def approximate_exp(site: Site) -> Iterator[Mistake]:
    words = "softmax by an approximate exp: rows are right but for that, each by what its score is"
    yield Mistake(words, _approximate, rank=8)


def _approximate(call: Call) -> np.ndarray | None:
    """The candidate's own rows, where their errors follow the scores alone."""
    found, right = _dumped(call), call.right()
    if found is None or not (found[right > 0] > 0).all():
        return None
    x, seen = call["x0"], right > 0
    best = np.argmax(np.where(seen, x, -np.inf), axis=-1)[..., None]
    # of the largest the argument is 0: the others, beside it, are exp of what they are less
    ratio = np.ones_like(right)
    ratio[seen] = found[seen] / right[seen]
    ratio = ratio / np.take_along_axis(ratio, best, -1)
    argument = (x - np.take_along_axis(x, best, -1))[seen]
    error = np.log(ratio[seen])[np.argsort(argument, kind="stable")]
    if np.abs(error).max() > APPROXIMATE or np.abs(found.sum(axis=-1) - 1).max() > 1e-5:
        return None
    is_smooth = np.abs(np.diff(error)).mean() < np.abs(error - error.mean()).mean() / 3
    return found if is_smooth else None


def _dumped(call: Call) -> np.ndarray | None:
    """The candidate's probabilities, or what their quotients by alpha say of them."""
    if call.node.name in call.given:
        return call.given[call.node.name]
    network = call.site.network
    for reader in (network.nodes[i] for i, _ in network.readers[call.node.name]):
        quotients = call.given.get(reader.inside.get("prob.z", ""))
        if quotients is not None:
            return quotients * ops.boolean.step_of(call.params[reader.params[0]])
    return None


# --- heads ----------------------------------------------------------------------------------------


@family("split_heads")
def heads(site: Site) -> Iterator[Mistake]:
    """Channels handed to heads in another way."""
    count, transposed = site.node.attributes["heads"], site.node.attributes["transposed"]

    def interleaved(call: Call) -> np.ndarray:
        x = call["x0"]
        found = x.reshape(*x.shape[:2], -1, count).transpose(0, 3, 1, 2)
        return found.swapaxes(-1, -2) if transposed else found

    def unmoved(call: Call) -> np.ndarray:
        x = call["x0"]
        found = x.reshape(len(x), count, x.shape[1], -1)
        return found.swapaxes(-1, -2) if transposed else found

    def as_it_lies(call: Call) -> np.ndarray:
        """The memory of the other layout under this shape."""
        other = call.right(transposed=not transposed)
        return np.ascontiguousarray(other).reshape(call.right().shape)

    def in_reverse(call: Call) -> np.ndarray:
        return call.right()[:, ::-1]

    def reshaped(call: Call) -> np.ndarray:
        return np.ascontiguousarray(call["x0"]).reshape(call.right().shape)

    yield Mistake("heads transposed: channel c belongs to head c // d", interleaved)
    yield Mistake("heads cut without moving an axis: tokens of other heads", unmoved)
    words = "values transposed" if not transposed else "values not transposed"
    yield Mistake(f"{words}: tokens for channels of a head", as_it_lies)
    yield Mistake("heads in reverse order", in_reverse)
    yield Mistake("heads by reshaping alone: no axis is moved", reshaped)
    yield Mistake("the channels of head 0 for all heads",
                  lambda c: np.broadcast_to(c.right()[:, :1], c.right().shape))  # fmt: skip
    yield from _tokens_off(site)


def _tokens_off(site: Site) -> Iterator[Mistake]:
    for step, word in ((-1, "early"), (1, "late")):
        words = f"off-by-one shift of the tokens: one token {word}"
        yield Mistake(words, lambda c, s=step: c.right({"x0": np.roll(c["x0"], s, axis=1)}))


@family("split_heads", what="d.x0")
def heads_backward(site: Site) -> Iterator[Mistake]:
    yield from _merged(site, "d", site.node.attributes["transposed"])


@family("merge_heads")
def merge(site: Site) -> Iterator[Mistake]:
    yield from _merged(site, "x0", False)


def _merged(site: Site, key: str, transposed: bool) -> Iterator[Mistake]:
    def tall(call: Call) -> np.ndarray:
        x = call[key]
        return x.swapaxes(-1, -2) if transposed else x  # (B, heads, N, d)

    def channels(call: Call, order: tuple[int, ...]) -> np.ndarray:
        x = tall(call)
        return x.transpose(order).reshape(len(x), x.shape[2], -1)

    yield Mistake("heads transposed: channel c belongs to head c // d",
                  lambda c: channels(c, (0, 2, 3, 1)))  # fmt: skip
    yield Mistake("heads put together without moving an axis",
                  lambda c: tall(c).reshape(len(c[key]), tall(c).shape[2], -1))  # fmt: skip
    yield Mistake("heads put together as they lie in memory",
                  lambda c: np.ascontiguousarray(c[key]).reshape(c.right().shape))  # fmt: skip
    yield Mistake("heads put together in reverse order",
                  lambda c: c.right({key: c[key][:, ::-1]}))  # fmt: skip


@family("merge_heads", what="d.x0")
def merge_backward(site: Site) -> Iterator[Mistake]:
    def cut(call: Call, order: tuple[int, ...], shape: Callable) -> np.ndarray:
        d, heads = call["d"], call["x0"].shape[1]
        return d.reshape(shape(d, heads)).transpose(order)

    yield Mistake("heads transposed: channel c belongs to head c // d",
                  lambda c: cut(c, (0, 3, 1, 2), lambda d, h: (*d.shape[:2], -1, h)))  # fmt: skip
    words = "heads cut without moving an axis"
    yield Mistake(words, lambda c: cut(c, (0, 1, 2, 3), lambda d, h: (len(d), h, d.shape[1], -1)))
    yield Mistake("heads in reverse order", lambda c: c.right()[:, ::-1])


# --- windows --------------------------------------------------------------------------------------


def _rolled(call: Call, shift: int, window: int | None = None) -> np.ndarray:
    """Windows of a grid that is rolled by any number of places."""
    x, (gh, gw) = call["x0"], call.node.attributes["grid"]
    M = window or call.node.attributes["window"]
    grid = np.roll(x.reshape(len(x), gh, gw, -1), (-shift, -shift), axis=(1, 2))
    blocks = grid.reshape(len(x), gh // M, M, gw // M, M, -1).transpose(0, 1, 3, 2, 4, 5)
    return blocks.reshape(-1, M * M, x.shape[-1])


def _cut(call: Call, order: tuple[int, ...]) -> np.ndarray:
    """Windows and their tokens in another order."""
    x, by = call["x0"], call.node.attributes
    (gh, gw), M = by["grid"], by["window"]
    grid = np.roll(x.reshape(len(x), gh, gw, -1), (-by["shift"],) * 2, axis=(1, 2))
    blocks = grid.reshape(len(x), gh // M, M, gw // M, M, -1).transpose(*order)
    return np.ascontiguousarray(blocks).reshape(-1, M * M, x.shape[-1])


def _joined(call: Call, shift: int) -> np.ndarray:
    x, by = call["x0"], call.node.attributes
    (gh, gw), M = by["grid"], by["window"]
    blocks = x.reshape(-1, gh // M, gw // M, M, M, x.shape[-1]).transpose(0, 1, 3, 2, 4, 5)
    grid = np.roll(blocks.reshape(-1, gh, gw, x.shape[-1]), (shift, shift), axis=(1, 2))
    return grid.reshape(len(grid), gh * gw, -1)


def _shifts(site: Site) -> dict[str, int]:
    window, shift = site.node.attributes["window"], site.node.attributes["shift"]
    half = window // 2
    found = {
        "the roll has the wrong direction": -shift,
        "windows not shifted, as in the block before": 0,
        "windows shifted, as in the block behind": half,
        "windows shifted the other way, as in the block behind": -half,
        "windows shifted by one": 1,
        "windows shifted by one too few": shift - 1,
        "windows shifted by one too many": shift + 1,
        "windows shifted by a whole window": window,
        "windows rolled twice as far": 2 * shift,
    }
    return {words: s for words, s in found.items() if s != shift}


@family("windows")
def windows(site: Site) -> Iterator[Mistake]:
    for words, shift in _shifts(site).items():
        yield Mistake(words, lambda c, s=shift: _rolled(c, s))
    for words, order in {
        "windows in the order of columns": (0, 3, 1, 2, 4, 5),
        "tokens of a window in the order of columns": (0, 1, 3, 4, 2, 5),
        "windows and their tokens in the order of columns": (0, 3, 1, 4, 2, 5),
        "windows cut without moving an axis": (0, 1, 2, 3, 4, 5),
        "windows of strided tokens: a grid of dilated windows": (0, 2, 4, 1, 3, 5),
    }.items():
        yield Mistake(words, lambda c, order=order: _cut(c, order))
    yield Mistake("rows and columns of the grid exchanged",
                  lambda c: c.right(grid=c.node.attributes["grid"][::-1]))  # fmt: skip
    for axis, name in ((1, "rows"), (2, "columns")):
        yield Mistake(f"only {name} are rolled", lambda c, axis=axis: _one_axis(c, axis))


def _one_axis(call: Call, axis: int) -> np.ndarray:
    (gh, gw), shift = call.node.attributes["grid"], call.node.attributes["shift"]
    x = call["x0"]
    rolled = np.roll(x.reshape(len(x), gh, gw, -1), -shift, axis=axis).reshape(x.shape)
    return call.right({"x0": rolled}, shift=0)


@family("join_windows")
def join_windows(site: Site) -> Iterator[Mistake]:
    for words, shift in _shifts(site).items():
        back = words.replace("windows not shifted", "windows not rolled back")
        yield Mistake(f"{back} (joining windows)", lambda c, s=shift: _joined(c, s))
    yield Mistake("rows and columns of the grid exchanged (joining windows)",
                  lambda c: c.right(grid=c.node.attributes["grid"][::-1]))  # fmt: skip
    yield Mistake("windows put together without moving an axis",
                  lambda c: c["x0"].reshape(c.right().shape))  # fmt: skip


def _masked(call: Call, seen: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    by = call.node.attributes
    mask = ops.window_softmax.mask(len(call["x0"]), by["grid"], by["window"], by["shift"])
    return _softmax(np.where(seen(mask), call["x0"], -np.inf), -1)


def _side_mask(call: Call, axes: tuple[int, ...]) -> np.ndarray:
    """Of the sides of some axes alone."""
    by = call.node.attributes
    grid, window, shift = by["grid"], by["window"], by["shift"]
    keep = np.ones((1, window**2, window**2), bool)
    for axis in axes:
        wrapped = np.arange(grid[axis]) < shift
        placed = np.broadcast_to(np.expand_dims(wrapped, 1 - axis), grid)
        rolled = np.roll(placed, (-shift, -shift), axis=(0, 1))
        gh, gw = grid
        blocks = rolled.reshape(gh // window, window, gw // window, window).swapaxes(1, 2)
        cut = blocks.reshape(-1, window * window)
        keep = keep & (cut[:, :, None] == cut[:, None, :])
    seen = np.tile(keep[:, None], (len(call["x0"]) // len(keep), 1, 1, 1))
    return _softmax(np.where(seen, call["x0"], -np.inf), -1)


def _after_softmax(call: Call) -> np.ndarray:
    by = call.node.attributes
    mask = ops.window_softmax.mask(len(call["x0"]), by["grid"], by["window"], by["shift"])
    return _softmax(call["x0"], -1) * mask


def _mask_of_windows_as_heads(call: Call) -> np.ndarray:
    """The mask of window w for image w: windows and images exchanged."""
    by = call.node.attributes
    mask = ops.windows.mask(by["grid"], by["window"], by["shift"])
    seen = np.repeat(mask, len(call["x0"]) // len(mask), axis=0)[:, None]
    return _softmax(np.where(seen, call["x0"], -np.inf), -1)


def _softly(value: float) -> Callable[[Call], np.ndarray]:
    def edit(call: Call) -> np.ndarray:
        by = call.node.attributes
        mask = ops.window_softmax.mask(len(call["x0"]), by["grid"], by["window"], by["shift"])
        return _softmax(call["x0"] + np.where(mask, 0.0, value), -1)

    return edit


@family("window_softmax")
def window_softmax(site: Site) -> Iterator[Mistake]:
    for words, edit in {
        "the mask of shifted windows left out": lambda c: _softmax(c["x0"], -1),
        "the mask of shifted windows inverted": lambda c: _masked(c, lambda m: ~m),
        "the mask of shifted windows for rows alone": lambda c: _side_mask(c, (0,)),
        "the mask of shifted windows for columns alone": lambda c: _side_mask(c, (1,)),
        "the mask of shifted windows behind the softmax: rows do not sum to 1": _after_softmax,
        "the mask of shifted windows is 0, not minus infinity":
            lambda c: _softmax(c["x0"] * np.isfinite(_hidden(c)), -1),
        "the mask of window 0 for all windows": lambda c: _masked(
            c, lambda m: np.broadcast_to(m[:1], m.shape)),
        "the mask of the last window for all windows": lambda c: _masked(
            c, lambda m: np.broadcast_to(m[-1:], m.shape)),
        "masks in the order of images, not of windows": _mask_of_windows_as_heads,
        "masks of the windows in reverse order": lambda c: _masked(c, lambda m: m[::-1]),
        "masked keys get - 1, not minus infinity": _softly(-1.0),
        "masked keys get - 10, not minus infinity": _softly(-10.0),
        "masked keys get - 100, not minus infinity": _softly(-100.0),
        "masked keys get + 100, not minus infinity": _softly(100.0),
    }.items():  # fmt: skip
        yield Mistake(words, edit, needs=SCORES_APART if "- 100," in words else "")
    for words, change in SOFTMAX.items():
        yield Mistake(words, lambda call, change=change: _within(call, change))


SCORES_APART = "a masked key's score some 80 above the others, for e^-100 of them is almost 0"


def _hidden(call: Call) -> np.ndarray:
    """Scores with minus infinity where a key is masked."""
    by = call.node.attributes
    mask = ops.window_softmax.mask(len(call["x0"]), by["grid"], by["window"], by["shift"])
    return np.where(mask, call["x0"], -np.inf)


def _within(call: Call, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    found = change(_hidden(call))
    return np.where(np.isfinite(found), found, 0.0)


def _table(change: Callable[[np.ndarray, int], np.ndarray]) -> Callable[[Call], np.ndarray]:
    """The bias by other rows of its table."""

    def edit(call: Call) -> np.ndarray:
        window = math.isqrt(call["x0"].shape[-1])
        rows = change(ops.position_bias.offsets(window), window)
        return call["x0"] + call["p0"][rows].transpose(2, 0, 1)

    return edit


def _column_wise(rows: np.ndarray, window: int) -> np.ndarray:
    down, right = np.divmod(rows, 2 * window - 1)
    return right * (2 * window - 1) + down


def _magnitudes(rows: np.ndarray, window: int) -> np.ndarray:
    down, right = np.divmod(rows, 2 * window - 1)
    return (np.abs(down - window + 1) + window - 1) * (2 * window - 1) + np.abs(
        right - window + 1
    ) + window - 1  # fmt: skip


def _absolute(call: Call) -> np.ndarray:
    """The table's first rows as they lie, a number a pair."""
    keys = call["x0"].shape[-1]
    rows = np.resize(np.arange(len(call["p0"])), keys * keys).reshape(keys, keys)
    return call["x0"] + call["p0"][rows].transpose(2, 0, 1)


TABLES: dict[str, Callable[[Call], np.ndarray]] = {
    "position bias transposed: key minus query": _table(lambda r, w: r.T),
    "position bias: rows and columns of the offset exchanged": _table(_column_wise),
    "position bias: rows and columns exchanged, and key minus query": _table(
        lambda r, w: _column_wise(r, w).T),
    "position bias by magnitudes of the offset": _table(_magnitudes),
    "position bias with a row of 2 M, not 2 M - 1": _table(
        lambda r, w: np.minimum(np.divmod(r, 2 * w - 1)[0] * 2 * w + r % (2 * w - 1),
                                (2 * w - 1) ** 2 - 1)),
    "position bias with a row of M, not 2 M - 1": _table(
        lambda r, w: np.divmod(r, 2 * w - 1)[0] * w + r % (2 * w - 1)),
    "position bias off by one row of its table": _table(lambda r, w: np.maximum(r - 1, 0)),
    "position bias with offsets from 0: not moved by M - 1": _table(
        lambda r, w: (r - (w - 1) * 2 * w) % (2 * w - 1) ** 2),
    "position bias by places, not by offsets": _absolute,
    "position bias of the heads in reverse order": lambda c: c.right({"p0": c["p0"][:, ::-1]}),
    "position bias of head 0 for all heads": lambda c: c.right(
        {"p0": np.broadcast_to(c["p0"][:, :1], c["p0"].shape)}),
    "position bias subtracted": lambda c: c.right({"p0": -c["p0"]}),
    "position bias through Swin v2's 16 sigmoid": lambda c: c.right(
        {"p0": 16 / (1 + np.exp(-c["p0"]))}),
    "position bias divided by sqrt(d): added in front of the scale": lambda c: c.right(
        {"p0": c["p0"] / math.sqrt(c.node.stage.dim / c.node.stage.heads)}),
}  # fmt: skip


@family("position_bias")
def position_bias(site: Site) -> Iterator[Mistake]:
    for words, edit in TABLES.items():
        yield Mistake(words, edit)


def _table_back(change: Callable[[np.ndarray, int], np.ndarray]) -> Callable[[Call], np.ndarray]:
    def edit(call: Call) -> np.ndarray:
        d = call["d"]
        window = math.isqrt(d.shape[-1])
        rows = change(ops.position_bias.offsets(window), window)
        found = np.zeros_like(call["p0"])
        np.add.at(found, rows.reshape(-1), d.sum(axis=0).reshape(d.shape[1], -1).T)
        return found

    return edit


def _assigned(call: Call) -> np.ndarray:
    """Each pair overwrites what the one before has left."""
    d = call["d"]
    window = math.isqrt(d.shape[-1])
    found = np.zeros_like(call["p0"])
    found[ops.position_bias.offsets(window).reshape(-1)] = d.sum(axis=0).reshape(d.shape[1], -1).T
    return found


@family("position_bias", what="d.p0")
def position_bias_backward(site: Site) -> Iterator[Mistake]:
    yield Mistake("the gradient of the position bias transposed: key minus query",
                  _table_back(lambda r, w: r.T))  # fmt: skip
    yield Mistake("the gradient of the position bias: rows and columns of the offset exchanged",
                  _table_back(_column_wise))  # fmt: skip
    yield Mistake("the gradient of the position bias is overwritten, not added up", _assigned)


@mistake("windows", what="d.x0", words="windows not rolled back on the way back")
def windows_not_rolled_back(call: Call) -> np.ndarray:
    return call.right(shift=0)


@mistake("join_windows", what="d.x0", words="windows not rolled on the way back")
def windows_not_rolled(call: Call) -> np.ndarray:
    return call.right(shift=0)
