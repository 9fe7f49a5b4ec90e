"""The patch grid: Haar bands, neighbours, boxes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import numpy as np

from refimpl import ops
from refimpl.golden.mistakes.declared import Call, Mistake, Site, family, mistake

GRID_EXCHANGED = "H and V bands swapped: rows and columns of the patch grid exchanged"
FROM_CLASS_TOKEN = "the grid starts at the class token: off by one token"
OVER_CLASS_TOKEN = "the grid starts at the class token, which is written over"
Grid = np.ndarray  # (B, gh, gw, C)
Block = tuple[Grid, Grid, Grid, Grid]  # x00, x01, x10, x11


def _first(call: Call, x: np.ndarray) -> int:
    gh, gw = call.node.attributes["grid"]
    return x.shape[1] - gh * gw


def on_grid(call: Call, x: np.ndarray, change: Callable[[Grid], np.ndarray]) -> np.ndarray:
    """x (B, N, C) with its patches changed; what stands in front of them stays."""
    first = _first(call, x)
    grid = x[:, first:].reshape(len(x), *call.node.attributes["grid"], -1)
    return np.concatenate([x[:, :first], change(grid).reshape(x[:, first:].shape)], axis=1)


# --- Haar -----------------------------------------------------------------------------------------


def _after(x: Grid, axis: int, border: str) -> Grid:
    """What stands one further along an axis."""
    rest = x.take(range(1, x.shape[axis]), axis)
    edge = {"edge": x.take([-1], axis), "periodic": x.take([0], axis)}
    edge["zero"] = np.zeros_like(edge["edge"])
    edge["reflect"] = x.take([-2 if x.shape[axis] > 1 else -1], axis)
    return np.concatenate([rest, edge[border]], axis)


def _before(x: Grid, axis: int, border: str) -> Grid:
    return np.flip(_after(np.flip(x, axis), axis, border), axis)


def _block(call: Call, x: Grid, step: Callable = _after, border: str | None = None) -> Block:
    border = border or call.node.attributes["mode"]
    below, right = step(x, 1, border), step(x, 2, border)
    return x, right, below, step(right, 1, border)


def _bands(call: Call, x: Grid, b: Block, details: Callable | None = None) -> tuple[Grid, Grid]:
    x00, x01, x10, x11 = b
    cA, cH = (x00 + x01 + x10 + x11) / 4, (x00 + x01 - x10 - x11) / 4
    cV, cD = (x00 - x01 + x10 - x11) / 4, (x00 - x01 - x10 + x11) / 4
    return cA, (details or (lambda x, a, h, v, d: h + v + d))(x, cA, cH, cV, cD)


DETAILS: dict[str, Callable[..., Grid]] = {
    "H and V bands swapped: V taken twice, H never": lambda x, a, h, v, d: v + v + d,
    "H and V bands swapped: H taken twice, V never": lambda x, a, h, v, d: h + h + d,
    "the H band has the wrong sign": lambda x, a, h, v, d: v - h + d,
    "the V band has the wrong sign": lambda x, a, h, v, d: h - v + d,
    "the D band has the wrong sign": lambda x, a, h, v, d: h + v - d,
    "the H band left out": lambda x, a, h, v, d: v + d,
    "the V band left out": lambda x, a, h, v, d: h + d,
    "the D band left out": lambda x, a, h, v, d: h + v,
    "the H and the V band left out": lambda x, a, h, v, d: d,
    "the D band twice": lambda x, a, h, v, d: h + v + 2 * d,
    "high is the mean of the details, not their sum": lambda x, a, h, v, d: (h + v + d) / 3,
    "high is the sum of the details' magnitudes":
        lambda x, a, h, v, d: np.abs(h) + np.abs(v) + np.abs(d),
    "high is low - x": lambda x, a, h, v, d: a - x,
    "high is x itself": lambda x, a, h, v, d: x,
}  # fmt: skip
BLOCKS: dict[str, Callable[[Call, Grid], Block]] = {
    "Haar off by one: the patch before, not the next, repeated at the border":
        lambda c, x: _block(c, x, _before, "edge"),
    "Haar off by one: the patch before, not the next, wrapped around":
        lambda c, x: _block(c, x, _before, "periodic"),
    "Haar with zeros beyond the border": lambda c, x: _block(c, x, border="zero"),
    "Haar reflected at the border": lambda c, x: _block(c, x, border="reflect"),
    "Haar wraps rows and repeats columns": lambda c, x: _mixed(x, "periodic", "edge"),
    "Haar repeats rows and wraps columns": lambda c, x: _mixed(x, "edge", "periodic"),
    "Haar two patches apart": lambda c, x: _apart(c, x),
    "Haar with the row before and the next column":
        lambda c, x: _corner(x, _before, _after, c.node.attributes["mode"]),
    "Haar with the next row and the column before":
        lambda c, x: _corner(x, _after, _before, c.node.attributes["mode"]),
    "Haar wraps from one row to the next: the next token, not the next column":
        lambda c, x: _row_wise(c, x),
}  # fmt: skip
IN_MEMORY: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "Haar by places in memory: beyond a row stands the next one, the last token repeated":
        np.minimum,
    "Haar by places in memory: beyond a row stands the next one, around the end":
        lambda at, last: at % (last + 1),
}  # fmt: skip


def _mixed(x: Grid, rows: str, columns: str) -> Block:
    right = _after(x, 2, columns)
    return x, right, _after(x, 1, rows), _after(right, 1, rows)


def _corner(x: Grid, down: Callable, along: Callable, border: str) -> Block:
    right = along(x, 2, border)
    return x, right, down(x, 1, border), down(right, 1, border)


def _apart(call: Call, x: Grid) -> Block:
    border = call.node.attributes["mode"]
    right = _after(_after(x, 2, border), 2, border)
    return x, right, _after(_after(x, 1, border), 1, border), _after(
        _after(right, 1, border), 1, border
    )


def _row_wise(call: Call, x: Grid) -> Block:
    rows = x.reshape(len(x), -1, x.shape[-1])
    after = np.concatenate([rows[:, 1:], rows[:, -1:]], axis=1).reshape(x.shape)
    border = call.node.attributes["mode"]
    return x, after, _after(x, 1, border), _after(after, 1, border)


def _in_memory(x: Grid, within: Callable) -> Block:
    rows = x.reshape(len(x), -1, x.shape[-1])
    here, last = np.arange(rows.shape[1]), rows.shape[1] - 1
    offsets = (0, 1, x.shape[2], x.shape[2] + 1)
    return tuple(rows[:, within(here + by, last)].reshape(x.shape) for by in offsets)


def _both(call: Call, change: Callable[[Grid], tuple[Grid, Grid]]) -> tuple[np.ndarray, np.ndarray]:
    """Low and high of a node whose grid is done by `change`; the class token as it should be."""
    x = call["x0"]
    first = _first(call, x)
    grid = x[:, first:].reshape(len(x), *call.node.attributes["grid"], -1)
    found = []
    for right, patches in zip(call.right(), change(grid), strict=True):
        found.append(np.concatenate([right[:, :first], patches.reshape(x[:, first:].shape)], 1))
    return tuple(found)


@family("bands")
def haar(site: Site) -> Iterator[Mistake]:
    """Norm, details, blocks, the class token."""
    if site.node.attributes["mode"] == "none":
        return
    for words, details in DETAILS.items():
        yield Mistake(
            words, lambda c, d=details: _both(c, lambda x: _bands(c, x, _block(c, x), d))
        )
    for words, block in BLOCKS.items():
        yield Mistake(words, lambda c, b=block: _both(c, lambda x: _bands(c, x, b(c, x))))
    for words, within in IN_MEMORY.items():  # on a grid of one row also what a mode does
        edit = lambda c, w=within: _both(c, lambda x: _bands(c, x, _in_memory(x, w)))  # noqa: E731
        yield Mistake(words, edit, rank=2)
    for factor, norm in ((2.0, "ortho"), (4.0, "no norm"), (0.5, "norm 1/8"), (2**0.5, "1/sqrt 8")):
        words = f"Haar norm: {norm} instead of average, factor {factor:g} on the patches"
        yield Mistake(words, lambda c, f=factor: _scaled(c, f, f))
        yield Mistake(f"{words} of the low band", lambda c, f=factor: _scaled(c, f, 1.0))
        yield Mistake(f"{words} of the high band", lambda c, f=factor: _scaled(c, 1.0, f))
    yield Mistake(GRID_EXCHANGED, _flipped)
    yield Mistake(FROM_CLASS_TOKEN, _from_class_token)
    yield Mistake(OVER_CLASS_TOKEN, _over_class_token)
    yield Mistake("decimated: one Haar coefficient for every 2 x 2 patches", _decimated)
    for which, name in ((0, "low"), (1, "high")):
        words = f"class token left out of the {name} band"
        yield Mistake(words, lambda c, which=which: _without_class(c, which))
    yield Mistake("the class token is halved between the bands", _halved_class)
    yield Mistake("the high band of the low one, which was made first", lambda c: _both(
        c, lambda x: _twice(c, x)))  # fmt: skip
    yield Mistake("low and high bands exchanged", lambda c: c.right()[::-1])
    yield Mistake("both bands of the second level: of the low band once more", lambda c: c.right(
        {"x0": c.right()[0]}))  # fmt: skip
    for words, which in (("largest", np.maximum), ("smallest", np.minimum)):
        edit = lambda c, w=which: (  # noqa: E731
            on_grid(c, c["x0"], lambda x: w.reduce(_block(c, x))), c.right()[1])  # fmt: skip
        yield Mistake(f"low is the {words} of the four patches, not their mean", edit)
    yield Mistake("low is x itself", lambda c: (c["x0"], c.right()[1]))
    yield Mistake("both bands are x itself: nothing done", lambda c: (c["x0"], c["x0"]))


def _twice(call: Call, x: Grid) -> tuple[Grid, Grid]:
    low, _ = _bands(call, x, _block(call, x))
    return low, _bands(call, low, _block(call, low))[1]


def _scaled(call: Call, *factors: float) -> tuple[np.ndarray, ...]:
    bands = zip(call.right(), factors, strict=True)
    return tuple(on_grid(call, band, lambda x, f=f: f * x) for band, f in bands)


def _flipped(call: Call) -> tuple[np.ndarray, ...]:
    return call.right(grid=call.node.attributes["grid"][::-1])


def _from_class_token(call: Call) -> tuple[np.ndarray, ...] | None:
    x = call["x0"]
    if not _first(call, x):
        return None
    return call.right({"x0": np.concatenate([x[:, :1], x[:, :-1]], axis=1)})


def _over_class_token(call: Call) -> tuple[np.ndarray, ...] | None:
    """The grid at the first tokens, of what is read and of what is written; the last is never."""
    x, first = call["x0"], _first(call, call["x0"])
    moved = call.right({"x0": np.concatenate([x[:, :first], x[:, : x.shape[1] - first]], axis=1)})
    found = [np.concatenate([band[:, first:], 0 * band[:, :first]], axis=1) for band in moved]
    return tuple(found) if first else None


def _decimated(call: Call) -> tuple[np.ndarray, ...]:
    def repeated(x: Grid) -> Grid:
        even = x[:, ::2, ::2].repeat(2, axis=1).repeat(2, axis=2)
        return even[:, : x.shape[1], : x.shape[2]]

    return tuple(on_grid(call, band, repeated) for band in call.right())


def _without_class(call: Call, which: int) -> tuple[np.ndarray, ...] | None:
    bands = [band.copy() for band in call.right()]
    first = _first(call, bands[0])
    bands[which][:, :first] = 0
    return tuple(bands) if first else None


def _halved_class(call: Call) -> tuple[np.ndarray, ...] | None:
    bands = [band.copy() for band in call.right()]
    first = _first(call, bands[0])
    for band in bands:
        band[:, :first] /= 2
    return tuple(bands) if first else None


# backward: dy is (dlow, dhigh)


def _sent_back(call: Call, dlow: np.ndarray, dhigh: np.ndarray) -> np.ndarray:
    return call.right({"d": (dlow, dhigh)})


@family("bands", what="d.x0")
def haar_backward(site: Site) -> Iterator[Mistake]:
    for words, edit in {
        "Haar's transform once more on the way back, which is not its adjoint": _once_more,
        "gradients of the low and the high band exchanged":
            lambda c: _sent_back(c, c["d"][1], c["d"][0]),
        "the gradient of the high band left out":
            lambda c: _sent_back(c, c["d"][0], np.zeros_like(c["d"][0])),
        "the gradient of the low band left out":
            lambda c: _sent_back(c, np.zeros_like(c["d"][1]), c["d"][1]),
        "the gradient of a detail is a third of the high band's":
            lambda c: _sent_back(c, c["d"][0], on_grid(c, c["d"][1], lambda x: x / 3)),
        "the gradient of a detail is three times the high band's":
            lambda c: _sent_back(c, c["d"][0], on_grid(c, c["d"][1], lambda x: 3 * x)),
        "the gradients of the bands are added, no transform": lambda c: c["d"][0] + c["d"][1],
        "the class token gets the gradient of the low band alone": lambda c: _class_back(c, 1),
        "the class token gets the gradient of the high band alone": lambda c: _class_back(c, 0),
        "Haar's norm left out on the way back: 4 times as large":
            lambda c: on_grid(c, c.right(), lambda x: 4 * x),
        "Haar ortho on the way back: twice as large":
            lambda c: on_grid(c, c.right(), lambda x: 2 * x),
        "rows and columns of the grid exchanged on the way back":
            lambda c: c.right(grid=c.node.attributes["grid"][::-1]),
        "the repeated border gets nothing back": lambda c: _adjoint(c, "zero"),
        "the border wraps around on the way back": lambda c: c.right(mode="periodic"),
        "the border is repeated on the way back": lambda c: c.right(mode="edge"),
        "the D band left out on the way back": lambda c: _details_back(c, (1, 1, 0)),
        "the H band left out on the way back": lambda c: _details_back(c, (0, 1, 1)),
        "the V band left out on the way back": lambda c: _details_back(c, (1, 0, 1)),
        "the D band with the wrong sign on the way back": lambda c: _details_back(c, (1, 1, -1)),
        "the H band with the wrong sign on the way back": lambda c: _details_back(c, (-1, 1, 1)),
        "the V band with the wrong sign on the way back": lambda c: _details_back(c, (1, -1, 1)),
    }.items():  # fmt: skip
        yield Mistake(words, edit)


def _once_more(call: Call) -> np.ndarray:
    options = call.node.attributes
    low, high = (ops.bands.forward(d, **options)[0][k] for k, d in enumerate(call["d"]))
    return low + high


def _class_back(call: Call, left_out: int) -> np.ndarray | None:
    parts = [d.copy() for d in call["d"]]
    first = _first(call, parts[0])
    parts[left_out][:, :first] = 0
    return _sent_back(call, *parts) if first else None


def _image(call: Call, x: np.ndarray) -> np.ndarray:
    first = _first(call, x)
    return x[:, first:].reshape(len(x), *call.node.attributes["grid"], -1).transpose(0, 3, 1, 2)


def _put(call: Call, image: np.ndarray) -> np.ndarray:
    right = call.right().copy()
    first = _first(call, right)
    right[:, first:] = image.transpose(0, 2, 3, 1).reshape(right[:, first:].shape)
    return right


def _details_back(call: Call, signs: tuple[int, int, int]) -> np.ndarray | None:
    mode = call.node.attributes["mode"]
    if mode == "none":
        return None
    low, high = (_image(call, d) for d in call["d"])
    details = tuple(sign * high for sign in signs)
    return _put(call, ops.haar.swt2_backward((low, details), mode, norm="average"))


def _adjoint(call: Call, border: str) -> np.ndarray | None:
    """Of a transform that has zeros beyond the border."""
    if call.node.attributes["mode"] == "none":
        return None
    low, high = (_image(call, d) for d in call["d"])
    padded = [np.pad(d, [(0, 0), (0, 0), (1, 0), (1, 0)]) for d in (low, high)]
    found = np.zeros(padded[0].shape)
    for down in (0, 1):
        for right in (0, 1):
            signs = ((-1) ** down, (-1) ** right, (-1) ** (down + right))
            part = padded[0] + sum(signs) * padded[1]
            found += np.roll(part, (down, right), (2, 3)) / 4
    return _put(call, found[:, :, 1:, 1:])


# --- neighbours -----------------------------------------------------------------------------------

EIGHT = tuple((i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0))
FOUR = ((-1, 0), (0, -1), (0, 1), (1, 0))
DIAGONAL = ((-1, -1), (-1, 1), (1, -1), (1, 1))
NINE = (*EIGHT, (0, 0))


def _mean(x: Grid, offsets, border: str = "existing", divisor: float | None = None) -> Grid:
    total, count = np.zeros_like(x), np.zeros((1, *x.shape[1:3], 1))
    rows, columns = np.arange(x.shape[1]), np.arange(x.shape[2])
    for down, along in offsets:
        i, j = rows + down, columns + along
        inside = np.outer((i >= 0) & (i < len(rows)), (j >= 0) & (j < len(columns)))
        if border == "wrap":
            i, j, inside = i % len(rows), j % len(columns), np.ones_like(inside)
        elif border == "edge":
            inside = np.ones_like(inside)
        i, j = np.clip(i, 0, len(rows) - 1), np.clip(j, 0, len(columns) - 1)
        total += x[:, i][:, :, j] * inside[None, :, :, None]
        count += inside[None, :, :, None]
    return total / (np.maximum(count, 1) if divisor is None else divisor)


def _row_wise_mean(x: Grid) -> Grid:
    """Neighbours by their place in memory: beyond a row stands the next one."""
    gw, rows = x.shape[2], x.reshape(len(x), -1, x.shape[-1])
    total, count, places = np.zeros_like(rows), np.zeros((1, rows.shape[1], 1)), rows.shape[1]
    for down, along in EIGHT:
        at = np.arange(places) + down * gw + along
        inside = (at >= 0) & (at < places)
        total += rows[:, np.clip(at, 0, places - 1)] * inside[None, :, None]
        count += inside[None, :, None]
    return (total / np.maximum(count, 1)).reshape(x.shape)


def _weighted(x: Grid, beside: float, diagonal: float) -> Grid:
    """Neighbours by weights; where the border leaves some out, the weights of those that exist."""
    ones = np.ones((1, *x.shape[1:3], 1))
    total, count = (
        beside * _mean(of, FOUR, divisor=1) + diagonal * _mean(of, DIAGONAL, divisor=1)
        for of in (x, ones)
    )
    return total / np.maximum(count, np.finfo(float).tiny)


def _share(x: Grid) -> Grid:
    """One divided by the number of neighbours."""
    return 1 / np.maximum(_mean(np.ones((1, *x.shape[1:3], 1)), EIGHT, divisor=1), 1)


def _in_place(x: Grid, step: int) -> Grid:
    """Patch after patch, each from the same memory to which it is written."""
    found = x[:, ::step, ::step].copy()
    rows, columns = found.shape[1:3]
    for i, j in np.ndindex(rows, columns):
        there = [(i + r, j + c) for r, c in EIGHT if 0 <= i + r < rows and 0 <= j + c < columns]
        if there:
            found[:, i, j] = sum(found[:, r, c] for r, c in there) / len(there)
    return found[:, ::step, ::step]


def _running(x: Grid) -> Grid:
    total = _mean(x, EIGHT, divisor=1).reshape(len(x), -1, x.shape[-1])
    count = _mean(np.ones((1, *x.shape[1:3], 1)), EIGHT, divisor=1)
    return total.cumsum(axis=1).reshape(x.shape) / np.maximum(count, 1)


NEIGHBOURS: dict[str, Callable[[Grid], Grid]] = {
    "the patch itself among its neighbours": lambda x: _mean(x, NINE),
    "the patch itself among its neighbours, always divided by 9":
        lambda x: _mean(x, NINE, divisor=9),
    "the four nearest neighbours, not eight": lambda x: _mean(x, FOUR),
    "the four nearest neighbours, always divided by 4": lambda x: _mean(x, FOUR, divisor=4),
    "the four nearest neighbours, divided by 8": lambda x: _mean(x, FOUR, divisor=8),
    "the four diagonal neighbours, not eight": lambda x: _mean(x, DIAGONAL),
    "neighbours wrap around the border": lambda x: _mean(x, EIGHT, "wrap"),
    "four neighbours that wrap around the border": lambda x: _mean(x, FOUR, "wrap"),
    "the border repeated as its own neighbours": lambda x: _mean(x, EIGHT, "edge"),
    "the border repeated as its own neighbours, and the patch itself":
        lambda x: _mean(x, NINE, "edge"),
    "the sum of the neighbours, no mean": lambda x: _mean(x, EIGHT, divisor=1),
    "neighbours wrap from one row to the next: places in memory": _row_wise_mean,
    "neighbours of the same row alone": lambda x: _mean(x, ((0, -1), (0, 1))),
    "neighbours of the same column alone": lambda x: _mean(x, ((-1, 0), (1, 0))),
    "neighbours two patches away": lambda x: _mean(x, [(2 * i, 2 * j) for i, j in EIGHT]),
    "the four nearest neighbours, divided by the number of all": lambda x: (
        _mean(x, FOUR, divisor=1) * _share(x)),
    "the four diagonal neighbours, divided by the number of all": lambda x: (
        _mean(x, DIAGONAL, divisor=1) * _share(x)),
    "neighbours beside, above and below count twice (1 2 1)": lambda x: _weighted(x, 2, 1),
    "diagonal neighbours count 1 / sqrt(2), by their distance": lambda x: _weighted(x, 1, 0.5**0.5),
    "diagonal neighbours count 1/2": lambda x: _weighted(x, 1, 0.5),
    "written into what it reads: neighbours in front are means already": lambda x: _in_place(x, 1),
    "written into what it reads, from behind: neighbours behind are means already":
        lambda x: _in_place(x, -1),
    "the sum of neighbours is not set to 0 between patches": lambda x: _running(x),
    "neighbours divided by 9, the patch itself not among them":
        lambda x: _mean(x, EIGHT, divisor=9),
    "only the neighbours in front of the patch": lambda x: _mean(x, EIGHT[:4]),
    "only the neighbours behind the patch": lambda x: _mean(x, EIGHT[4:]),
}  # fmt: skip


@family("neighbours")
def neighbours(site: Site) -> Iterator[Mistake]:
    for words, change in NEIGHBOURS.items():
        yield Mistake(words, lambda c, change=change: _of_neighbours(c, change))
    for words, edit in {
        GRID_EXCHANGED: lambda c: c.right(
            grid=c.node.attributes["grid"][::-1]),
        FROM_CLASS_TOKEN: _neighbours_from_class_token,
        OVER_CLASS_TOKEN: _neighbours_over_class_token,
        "the class token gets the mean of all patches": _class_mean,
        "the class token keeps itself": _class_itself,
    }.items():  # fmt: skip
        yield Mistake(words, edit)


def _of_neighbours(call: Call, change: Callable[[Grid], Grid]) -> np.ndarray:
    found = on_grid(call, call["x0"], change)
    found[:, : _first(call, found)] = 0
    return found


def _neighbours_from_class_token(call: Call) -> np.ndarray | None:
    x = call["x0"]
    if not _first(call, x):
        return None
    return call.right({"x0": np.concatenate([x[:, :1], x[:, :-1]], axis=1)})


def _neighbours_over_class_token(call: Call) -> np.ndarray | None:
    x, first = call["x0"], _first(call, call["x0"])
    moved = call.right({"x0": np.concatenate([x[:, :first], x[:, : x.shape[1] - first]], axis=1)})
    return np.concatenate([moved[:, first:], 0 * moved[:, :first]], axis=1) if first else None


def _class_mean(call: Call) -> np.ndarray | None:
    found, first = call.right().copy(), _first(call, call["x0"])
    found[:, :first] = call["x0"][:, first:].mean(axis=1, keepdims=True)
    return found if first else None


def _class_itself(call: Call) -> np.ndarray | None:
    found, first = call.right().copy(), _first(call, call["x0"])
    found[:, :first] = call["x0"][:, :first]
    return found if first else None


@mistake(
    "neighbours", what="d.x0",
    words="the mean of neighbours once more on the way back: divided at the wrong end",
)  # fmt: skip
def neighbours_once_more(call: Call) -> np.ndarray:
    return ops.neighbours.forward(call["d"], **call.node.attributes)[0]


@family("neighbours", what="d.x0")
def neighbours_backward(site: Site) -> Iterator[Mistake]:
    counts = {
        "the gradient of the neighbours is not divided": 1.0,
        "the gradient of the neighbours is divided by 8 everywhere": 8.0,
    }
    for words, divisor in counts.items():
        edit = lambda c, n=divisor: _of_neighbours_back(c, lambda x: _mean(x, EIGHT, divisor=n))  # noqa: E731
        yield Mistake(words, edit)
    for words, change in NEIGHBOURS.items():
        yield Mistake(f"on the way back: {words}", lambda c, f=change: _transposed(c, f))


def _of_neighbours_back(call: Call, change: Callable[[Grid], Grid]) -> np.ndarray:
    found = on_grid(call, call["d"], change)
    found[:, : _first(call, found)] = 0
    return found


def _transposed(call: Call, change: Callable[[Grid], Grid]) -> np.ndarray:
    """The adjoint of a linear map of the grid, which is the same for every channel."""
    gh, gw = call.node.attributes["grid"]
    basis = np.eye(gh * gw).reshape(1, gh, gw, gh * gw)
    matrix = change(basis).reshape(gh * gw, gh * gw)  # matrix[i, j]: what i takes of j
    first, d = _first(call, call["d"]), call["d"]
    found = np.zeros_like(d)
    found[:, first:] = np.einsum("ij,bic->bjc", matrix, d[:, first:])
    return found


# --- boxes ----------------------------------------------------------------------------------------


@family("box")
def boxes(site: Site) -> Iterator[Mistake]:
    side, axis = site.node.attributes["side"], site.node.attributes["axis"]
    n = side // 2
    reach = [(k, 0) if axis == 0 else (0, k) for k in range(-n, n + 1)]
    yield Mistake("box along the other axis", lambda c: c.right(axis=1 - axis))
    for other in (3, 5, 7):
        if other != side:
            yield Mistake(f"box of {other}, not {side}", lambda c, o=other: c.right(side=o))
    for words, border, divisor in (
        ("box divided by the neighbours that exist", "existing", None),
        ("box repeats the border", "edge", side),
        ("box wraps around the border", "wrap", side),
        ("box is a sum, no mean", "existing", 1),
    ):
        mean = functools.partial(_mean, offsets=reach, border=border, divisor=divisor)
        yield Mistake(words, lambda c, mean=mean: on_grid(c, c["x0"], mean))
    without = [offset for offset in reach if offset != (0, 0)]
    yield Mistake(
        "box without the patch itself",
        lambda c: on_grid(c, c["x0"], lambda x: _mean(x, without, divisor=side)),
    )
