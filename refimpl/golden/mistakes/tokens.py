"""Images to tokens and back: patches, class token, positions, pooling, merges, linear maps."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np

from refimpl import ops
from refimpl.golden.mistakes.declared import Call, Mistake, Site, family, mistake

# --- patches --------------------------------------------------------------------------------------


def _patches(call: Call, order: tuple[int, ...]) -> np.ndarray:
    """Patches (B, gh, gw, channels, p, p) in another order of the last five axes, flat."""
    image, p = call["x0"], call["p0"].shape[-1]
    batch, channels, height, width = image.shape
    blocks = image.reshape(batch, channels, height // p, p, width // p, p)
    blocks = blocks.transpose(0, 2, 4, 1, 3, 5).transpose(*order)
    weight = call["p0"].reshape(len(call["p0"]), -1)
    return np.ascontiguousarray(blocks).reshape(batch, -1, weight.shape[1]) @ weight.T + call["p1"]


PIXELS: dict[str, tuple[int, ...]] = {
    "patches column by column, not row by row": (0, 2, 1, 3, 4, 5),
    "pixels of a patch in the order (row, column, channel)": (0, 1, 2, 4, 5, 3),
    "pixels of a patch in the order (channel, column, row)": (0, 1, 2, 3, 5, 4),
    "pixels of a patch in the order (column, row, channel)": (0, 1, 2, 5, 4, 3),
    "pixels of a patch in the order (row, channel, column)": (0, 1, 2, 4, 3, 5),
    "patches and their pixels column by column": (0, 2, 1, 3, 5, 4),
    "patches cut by reshaping alone: rows of pixels": (0, 3, 1, 4, 2, 5),
}
def _places(down: int, along: int) -> str:
    words = {-1: "one {} too early", 1: "one {} too late"}
    moved = (words[by].format(name) for by, name in ((down, "row"), (along, "column")) if by)
    return " and ".join(moved)


def _moved_image(x: np.ndarray, down: int, along: int, border: str) -> np.ndarray:
    if border == "around the end":
        return np.roll(x, (down, along), axis=(2, 3))
    height, width = x.shape[2:]
    padded = np.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1)])
    return padded[:, :, 1 - down : 1 - down + height, 1 - along : 1 - along + width]


IMAGES: dict[str, Callable[[np.ndarray], np.ndarray | None]] = {
    "channels of the image in reverse order: BGR for RGB": lambda x: x[:, ::-1],
    "the image upside down": lambda x: x[:, :, ::-1],
    "the image mirrored": lambda x: x[..., ::-1],
    "rows and columns of the image exchanged": lambda x: x.swapaxes(2, 3),
    "the image stored as (H, W, channels)": lambda x: np.ascontiguousarray(
        x.transpose(0, 2, 3, 1)).reshape(x.shape),
    "the image read as if it lay as (H, W, channels)": lambda x: x.reshape(
        len(x), *x.shape[2:], -1).transpose(0, 3, 1, 2),
    "the image read as if its sides were exchanged": lambda x: x.reshape(
        *x.shape[:2], *x.shape[:1:-1]).swapaxes(2, 3),
    "channel 0 of the image for all channels": lambda x: np.broadcast_to(x[:, :1], x.shape),
    "the image read with its height for the length of a row": lambda x: _row_stride(x),
    "the image's pixels rounded to whole multiples of 1/255": lambda x: np.rint(x * 255) / 255,
    "the image's pixels cut to whole multiples of 1/255": lambda x: np.floor(x * 255) / 255,
    "the image's pixels cut to whole multiples of 1/256": lambda x: np.floor(x * 256) / 256,
    "the image clipped to [0, 1]": lambda x: np.clip(x, 0, 1),
    "the image normalised to mean 0 and deviation 1": lambda x: (
        x - x.mean(axis=(1, 2, 3), keepdims=True)) / x.std(axis=(1, 2, 3), keepdims=True),
    **{
        f"the image {_places(down, along)}, {border}": (
            lambda x, d=down, a=along, border=border: _moved_image(x, d, a, border))
        for down, along in itertools.product((-1, 0, 1), repeat=2) if (down, along) != (0, 0)
        for border in ("around the end", "zeros beyond it")
    },
    "the image moved from [-1, 1] to [0, 1]": lambda x: (x + 1) / 2,
    "the image moved from [0, 1] to [-1, 1]": lambda x: 2 * x - 1,
    "the image divided by 255": lambda x: x / 255,
    "the image with the wrong sign: inverted": lambda x: -x,
    "the image as float16": lambda x: x.astype(np.float16).astype(x.dtype),
    "the image's mean subtracted": lambda x: x - x.mean(axis=(1, 2, 3), keepdims=True),
}  # fmt: skip


def _row_stride(x: np.ndarray) -> np.ndarray | None:
    height, width = x.shape[2:]
    places = np.arange(height)[:, None] * height + np.arange(width)
    return x.reshape(*x.shape[:2], -1)[..., places % (height * width)]


@family("patch_embed")
def patch_embed(site: Site) -> Iterator[Mistake]:
    for words, order in PIXELS.items():
        yield Mistake(words, lambda call, order=order: _patches(call, order))
    for words, change in IMAGES.items():
        yield Mistake(words, lambda call, change=change: call.right({"x0": change(call["x0"])}))
    yield Mistake("pixels of a patch in the order (row, column, channel), weights as they are",
                  lambda call: _patches(call, (0, 1, 2, 4, 5, 3)))  # fmt: skip
    channels = site.network.shape(site.node.params[0])[1]
    for order in itertools.permutations(range(channels)) if 2 < channels < 5 else ():
        if order not in (tuple(range(channels)), tuple(range(channels))[::-1]):
            words = f"channels of the image in the order {', '.join(map(str, order))}"
            yield Mistake(words, lambda c, o=list(order): c.right({"x0": c["x0"][:, o]}))


@family("patch_embed", what="d.x0")
def patch_embed_backward(site: Site) -> Iterator[Mistake]:
    for words, order in PIXELS.items():
        yield Mistake(f"{words}, on the way back", lambda c, order=order: _pixels(c, order))


def _pixels(call: Call, order: tuple[int, ...]) -> np.ndarray:
    """The gradient of the image, of patches whose axes are taken to lie in another order."""
    batch, channels, height, width = call["x0"].shape
    weight, p = call["p0"].reshape(len(call["p0"]), -1), call["p0"].shape[-1]
    shape = (batch, height // p, width // p, channels, p, p)
    patches = (call["d"] @ weight).reshape([shape[axis] for axis in order])
    blocks = patches.transpose(np.argsort(order))
    return blocks.transpose(0, 3, 1, 4, 2, 5).reshape(call["x0"].shape)


# --- the class token, positions -------------------------------------------------------------------


def _rows(call: Call) -> tuple[np.ndarray, np.ndarray]:
    """The token (B, 1, C) and the patches."""
    x = call["x0"]
    return np.broadcast_to(call["p0"], (len(x), 1, x.shape[-1])), x


@mistake("class_token", words="the class token last, behind the patches")
def class_token_last(call: Call) -> np.ndarray:
    token, x = _rows(call)
    return np.concatenate([x, token], axis=1)


@mistake("class_token", words="the class token in the place of the first patch")
def class_token_for_a_patch(call: Call) -> np.ndarray:
    token, x = _rows(call)
    return np.concatenate([token, token, x[:, 1:]], axis=1)


@mistake("class_token", words="the class token is the mean of the patches")
def class_token_mean(call: Call) -> np.ndarray:
    _, x = _rows(call)
    return np.concatenate([x.mean(axis=1, keepdims=True), x], axis=1)


@mistake("class_token", words="the class token added to every patch")
def class_token_added(call: Call) -> np.ndarray:
    token, x = _rows(call)
    return np.concatenate([token, x + token], axis=1)


@mistake("class_token", what="d.p0", words="the class token's gradient sums over all tokens")
def class_token_gradient_of_all(call: Call) -> np.ndarray:
    return call["d"].sum(axis=(0, 1)).reshape(call["p0"].shape)


@mistake("class_token", words="the class token for the first image alone")
def class_token_of_image_0(call: Call) -> np.ndarray:
    token, x = _rows(call)
    token = np.concatenate([token[:1], np.zeros_like(token[1:])])
    return np.concatenate([token, x], axis=1)


Positions = Callable[[np.ndarray, int], "np.ndarray | None"]


def _first(call: Call) -> int:
    """Tokens in front of the grid's."""
    gh, gw = call.node.stage.grid
    return call["p0"].shape[1] - gh * gw


def _placed(call: Call, change: Positions) -> np.ndarray | None:
    value = change(call["p0"], _first(call))
    return None if value is None else call["x0"] + value


def _grid_wise(call: Call, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    position, first = call["p0"], _first(call)
    grid = position[:, first:].reshape(1, *call.node.stage.grid, -1)
    rest = change(grid).reshape(position[:, first:].shape)
    return call["x0"] + np.concatenate([position[:, :first], rest], axis=1)


def _without(p: np.ndarray, first: int) -> np.ndarray | None:
    return np.concatenate([0 * p[:, :first], p[:, first:]], axis=1) if first else None


POSITIONS: dict[str, Positions] = {
    "the class token without its position": _without,
    "positions of the patches left out, the class token has its own": lambda p, f: (
        np.concatenate([p[:, :f], 0 * p[:, f:]], axis=1) if f else None),
    "positions shifted: that of the class token for the first patch, one late": lambda p, f: (
        np.concatenate([0 * p[:, :1], p[:, :-1]], axis=1)),
    "positions one token late, around the end": lambda p, f: np.roll(p, 1, axis=1),
    "positions one token early, around the end": lambda p, f: np.roll(p, -1, axis=1),
    "positions one token early, the last one repeated": lambda p, f: np.concatenate(
        [p[:, 1:], p[:, -1:]], axis=1),
    "positions one token late, the first one repeated": lambda p, f: np.concatenate(
        [p[:, :1], p[:, :-1]], axis=1),
    "positions of the patches one late, the class token's kept": lambda p, f: np.concatenate(
        [p[:, :f], np.roll(p[:, f:], 1, axis=1)], axis=1),
    "positions of the patches one early, the class token's kept": lambda p, f: np.concatenate(
        [p[:, :f], np.roll(p[:, f:], -1, axis=1)], axis=1),
    "the class token's position is the last": lambda p, f: np.concatenate(
        [p[:, -1:], p[:, :-1]], axis=1),
    "positions as if the class token were the last: one early, its own at the end":
        lambda p, f: np.concatenate([p[:, 1:], p[:, :1]], axis=1),
    "positions in reverse order": lambda p, f: p[:, ::-1],
    "the position of token 0 for all tokens": lambda p, f: np.broadcast_to(p[:, :1], p.shape),
    "positions stored as (C, N)": lambda p, f: np.ascontiguousarray(
        p.swapaxes(1, 2)).reshape(p.shape),
    "positions read as (C, N)": lambda p, f: p.reshape(1, p.shape[2], p.shape[1]).swapaxes(1, 2),
}  # fmt: skip


@family("position_embedding")
def positions(site: Site) -> Iterator[Mistake]:
    for words, change in POSITIONS.items():
        yield Mistake(words, lambda call, change=change: _placed(call, change))
    yield Mistake("positions column by column of the grid",
                  lambda c: _grid_wise(c, lambda g: g.swapaxes(1, 2)))  # fmt: skip
    yield Mistake("positions of the grid upside down",
                  lambda c: _grid_wise(c, lambda g: g[:, ::-1]))  # fmt: skip
    yield Mistake("positions of row / B: tokens of the images interleaved",
                  lambda c: c["x0"] + c["p0"][0][interleaved(c["x0"])])  # fmt: skip
    yield Mistake("positions multiply, they are not added", lambda c: c["x0"] * c["p0"])
    yield Mistake("positions added twice", lambda c: c["x0"] + 2 * c["p0"])


def interleaved(x: np.ndarray) -> np.ndarray:
    """The token of every row (B, N), if those of the images followed in turn."""
    batch, tokens = x.shape[:2]
    return (np.arange(batch * tokens) // batch).reshape(batch, tokens)


# --- pooling --------------------------------------------------------------------------------------

POOLS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "the last token, not the class token": lambda x: x[:, -1],
    "the mean of the patches, without the class token": lambda x: x[:, 1:].mean(axis=1),
    "the mean of all tokens": lambda x: x.mean(axis=1),
    "the first token": lambda x: x[:, 0],
    "the first patch, not the class token": lambda x: x[:, 1],
    "the sum of the tokens, no mean": lambda x: x.sum(axis=1),
    "the largest of the tokens, no mean": lambda x: x.max(axis=1),
    "the mean of the first token and the mean of all": lambda x: (x[:, 0] + x.mean(axis=1)) / 2,
    "the sum of the first token and the mean of the others":
        lambda x: x[:, 0] + x[:, 1:].mean(axis=1),
    "the mean over one token too few": lambda x: x.sum(axis=1) / (x.shape[1] - 1),
    "the mean over one token too many": lambda x: x.sum(axis=1) / (x.shape[1] + 1),
    "the sum of the patches, without the class token, over all tokens":
        lambda x: x[:, 1:].sum(axis=1) / x.shape[1],
}  # fmt: skip


@family("pool")
def pooling(site: Site) -> Iterator[Mistake]:
    for words, change in POOLS.items():
        yield Mistake(f"pooled: {words}", lambda call, change=change: change(call["x0"]))


@family("pool", what="d.x0")
def pooling_backward(site: Site) -> Iterator[Mistake]:
    def spread(call: Call, tokens: Callable[[int], np.ndarray]) -> np.ndarray:
        N = call["x0"].shape[1]
        return call["d"][:, None] * tokens(N)[None, :, None]

    for words, tokens in {
        "the gradient of the mean is not divided by the tokens": np.ones,
        "the gradient of the pooled token goes to all tokens, divided": lambda n: np.ones(n) / n,
        "the gradient of the mean goes to token 0 alone": lambda n: 1.0 * (np.arange(n) == 0),
        "the gradient of the pooled token goes to the last token":
            lambda n: 1.0 * (np.arange(n) == n - 1),
        "the gradient of the mean leaves token 0 out": lambda n: (np.arange(n) > 0) / n,
        "the gradient of the pooled token is divided by the number of tokens":
            lambda n: 1.0 * (np.arange(n) == 0) / n,
        "the gradient of the mean is divided by one token too few": lambda n: np.ones(n) / (n - 1),
    }.items():
        yield Mistake(words, lambda call, tokens=tokens: spread(call, tokens))


# --- merges ---------------------------------------------------------------------------------------


@family("merge_patches")
def merges(site: Site) -> Iterator[Mistake]:
    names = ("(0, 0)", "(1, 0)", "(0, 1)", "(1, 1)")
    for order in itertools.permutations(range(4)):
        if order != (0, 1, 2, 3):
            words = f"merge order of 2 x 2 neighbours: {', '.join(names[i] for i in order)}"
            yield Mistake(words, lambda call, order=order: _merged(call, order))
    yield Mistake("rows and columns of the grid exchanged",
                  lambda c: c.right(grid=c.node.attributes["grid"][::-1]))  # fmt: skip
    yield Mistake("merge by reshaping alone: four tokens of a row", lambda c: c["x0"].reshape(
        len(c["x0"]), -1, 4 * c["x0"].shape[-1]))  # fmt: skip
    yield Mistake("merge interleaved: the four of a channel side by side", _interleaved)
    yield Mistake("merge of quarters of the grid, not of neighbours", _quarters)


def _merged(call: Call, order: tuple[int, ...]) -> np.ndarray:
    right = call.right()
    parts = np.split(right, 4, axis=-1)
    return np.concatenate([parts[i] for i in order], axis=-1)


def _interleaved(call: Call) -> np.ndarray:
    right = call.right()
    return right.reshape(*right.shape[:2], 4, -1).swapaxes(-1, -2).reshape(right.shape)


def _quarters(call: Call) -> np.ndarray:
    x, (gh, gw) = call["x0"], call.node.attributes["grid"]
    grid = x.reshape(len(x), gh, gw, -1)
    rows, columns = (slice(0, gh // 2), slice(gh // 2, gh)), (slice(0, gw // 2), slice(gw // 2, gw))
    parts = [grid[:, r, c] for c in columns for r in rows]
    return np.concatenate(parts, axis=-1).reshape(len(x), gh * gw // 4, -1)


@family("merge_patches", what="d.x0")
def merges_backward(site: Site) -> Iterator[Mistake]:
    names = ("(0, 0)", "(1, 0)", "(0, 1)", "(1, 1)")
    for order in itertools.permutations(range(4)):
        if order != (0, 1, 2, 3):
            words = f"merge order on the way back: {', '.join(names[i] for i in order)}"
            yield Mistake(words, lambda call, order=order: _merged_back(call, order))


def _merged_back(call: Call, order: tuple[int, ...]) -> np.ndarray:
    parts = np.split(call["d"], 4, axis=-1)
    return call.right({"d": np.concatenate([parts[i] for i in order], axis=-1)})


# --- split, grids ---------------------------------------------------------------------------------


@family("split")
def splits(site: Site) -> Iterator[Mistake]:
    parts = site.node.attributes["parts"]
    names = "qkv" if parts == 3 else "".join(map(str, range(parts)))
    for order in itertools.permutations(range(parts)):
        if order != tuple(range(parts)):
            words = f"parts of the channels in the order {', '.join(names[i] for i in order)}"
            yield Mistake(words, lambda c, order=order: tuple(c.right()[i] for i in order))
    yield Mistake("parts of the channels interleaved: every third channel",
                  lambda c: tuple(c["x0"][..., i::parts] for i in range(parts)))  # fmt: skip
    yield Mistake("parts of the channels by heads: q, k and v of a head side by side", _by_heads)


def _by_heads(call: Call) -> tuple[np.ndarray, ...]:
    x, parts, heads = call["x0"], call.node.attributes["parts"], call.node.stage.heads
    apart = x.reshape(*x.shape[:-1], heads, parts, -1)
    return tuple(apart[..., i, :].reshape(*x.shape[:-1], -1) for i in range(parts))


@family("split", what="d.x0")
def splits_backward(site: Site) -> Iterator[Mistake]:
    parts = site.node.attributes["parts"]
    names = "qkv" if parts == 3 else "".join(map(str, range(parts)))
    for order in itertools.permutations(range(parts)):
        if order != tuple(range(parts)):
            words = f"parts of the channels in the order {', '.join(names[i] for i in order)}"
            exchanged = lambda c, o=order: c.right({"d": tuple(c["d"][i] for i in o)})  # noqa: E731
            yield Mistake(f"{words}, on the way back", exchanged)
    yield Mistake("parts of the channels interleaved, on the way back",
                  lambda c: np.stack(c["d"], axis=-1).reshape(c["x0"].shape))  # fmt: skip
    yield Mistake("parts of the channels by heads, on the way back", _by_heads_back)


def _by_heads_back(call: Call) -> np.ndarray:
    heads = call.node.stage.heads
    parts = [d.reshape(*d.shape[:-1], heads, -1) for d in call["d"]]
    return np.stack(parts, axis=-2).reshape(call["x0"].shape)


@mistake("to_grid", words="the grid column by column, not row by row")
def grid_by_columns(call: Call) -> np.ndarray:
    x, (gh, gw) = call["x0"], call.node.attributes["grid"]
    return x.swapaxes(1, 2).reshape(len(x), x.shape[2], gw, gh).swapaxes(2, 3)


@mistake("to_grid", words="channels last taken for channels first")
def channels_last(call: Call) -> np.ndarray:
    return call["x0"].reshape(call.right().shape)


@mistake("from_grid", words="the grid column by column, not row by row")
def tokens_by_columns(call: Call) -> np.ndarray:
    x = call["x0"].swapaxes(2, 3)
    return x.reshape(*x.shape[:2], -1).swapaxes(1, 2)


def _resampled(sources: Callable[[int, int], tuple[np.ndarray, ...]]) -> Callable:
    def edit(call: Call) -> np.ndarray:
        y = call["x0"]
        for axis, size in zip((-2, -1), call.node.attributes["size"]):
            first, second, share = sources(y.shape[axis], size)
            shape = [1] * y.ndim
            shape[axis] = size
            share = share.reshape(shape)
            y = y.take(first, axis) * (1 - share) + y.take(second, axis) * share
        return y

    return edit


def _corners(n: int, m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    source = np.arange(m) * ((n - 1) / max(m - 1, 1))
    return _between(source, n)


def _from_zero(n: int, m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return _between(np.arange(m) * (n / m), n)


def _nearest(n: int, m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    index = (np.arange(m) * n) // m
    return index, index, np.zeros(m)


def _rounded(n: int, m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    index = np.clip(np.rint((np.arange(m) + 0.5) * n / m - 0.5), 0, n - 1).astype(int)
    return index, index, np.zeros(m)


def _between(source: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    before = np.clip(np.floor(source).astype(int), 0, n - 1)
    return before, np.minimum(before + 1, n - 1), source - before


@family("interpolate")
def interpolation(site: Site) -> Iterator[Mistake]:
    for words, sources in {
        "corners aligned: align_corners true, not false": _corners,
        "no half pixel: outputs begin at 0": _from_zero,
        "nearest, no interpolation": _nearest,
        "the nearest centre, no interpolation": _rounded,
    }.items():
        yield Mistake(words, _resampled(sources))


@family("resize_tokens")
def resizing(site: Site) -> Iterator[Mistake]:
    for words, mode in (("bilinear, not bicubic", "bilinear"),):
        yield Mistake(words, lambda c, mode=mode: _resized(c, lambda m, s: (
            ops.interpolate.forward(m, s, mode)[0])))  # fmt: skip
    yield Mistake("nearest, not bicubic", lambda c: _resized(c, _nearest_of))
    yield Mistake("cut or repeated, not interpolated", lambda c: np.resize(
        c["p0"], c.right().shape))  # fmt: skip


def _nearest_of(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    for axis, m in zip((-2, -1), size):
        maps = maps.take(_nearest(maps.shape[axis], m)[0], axis)
    return maps


def _resized(call: Call, change: Callable) -> np.ndarray:
    x, by = call["p0"], call.node.attributes
    entries = x.reshape(-1, x.shape[-1] if x.ndim == 3 else 1)
    first = len(entries) - by["grid"][0] * by["grid"][1]
    maps = change(entries[first:].T.reshape(-1, *by["grid"]), by["new_grid"])
    found = np.concatenate([entries[:first], maps.reshape(len(maps), -1).T])
    return found.reshape(call.right().shape)


# --- linear maps ----------------------------------------------------------------------------------


@family("linear", what="d.x0")
def linear_backward(site: Site) -> Iterator[Mistake]:
    words = "the weight transposed on the way back"
    yield Mistake(words, lambda c: c["d"] @ c["p0"].T)  # of no square: impossible


@family("linear", what="d.p0")
def linear_weight_backward(site: Site) -> Iterator[Mistake]:
    yield Mistake("the gradient of the weight of the last token alone", _last_token)


def _last_token(call: Call) -> np.ndarray | None:
    d, x = call["d"], call["x0"]
    return np.einsum("bo,bi->oi", d[:, -1], x[:, -1]) if d.ndim == 3 else None


@family("convolution")
def convolutions(site: Site) -> Iterator[Mistake]:
    for words, mode in (("edge", "edge"), ("wrap", "wrap"), ("reflect", "reflect")):
        spoken = {"edge": "repeats the border", "wrap": "wraps around", "reflect": "reflects"}[mode]
        yield Mistake(f"the convolution {spoken}, no zeros beyond it ({words})",
                      lambda c, mode=mode: _convolved(c, mode))  # fmt: skip
    yield Mistake("rows and columns of the grid exchanged",
                  lambda c: c.right(grid=c.node.attributes["grid"][::-1]))  # fmt: skip


def _convolved(call: Call, mode: str) -> np.ndarray:
    x, weight, (gh, gw) = call["x0"], call["p0"], call.node.attributes["grid"]
    grid = x.reshape(len(x), gh, gw, -1)
    padded = np.pad(grid, ((0, 0), (1, 1), (1, 1), (0, 0)), mode=mode)
    total = sum(padded[:, r : r + gh, c : c + gw] @ weight[:, :, r, c].T
                for r in range(3) for c in range(3))  # fmt: skip
    return total.reshape(len(x), gh * gw, -1) + call["p1"]
