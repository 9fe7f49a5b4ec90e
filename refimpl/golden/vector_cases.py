"""Inputs of isolated vectors: a few small cases of every operation, hard values among them.

Every number is one of float32, so a port starts from exactly what the reference starts from. Values
at a threshold are there without rounding: zeros, -0.0, ties, one step beside a tie. No other value
is so near to a threshold that a right port may fall on the other side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

SMALLEST = 2.0**-126  # of the normal numbers of float32: no port may round it to 0
B, HEADS, C = 2, 2, 6
GRID, TOKENS = (2, 3), 6
SEED = 1


class Case(NamedTuple):
    """Arguments of one call: arrays by name, float32, labels int32, and attributes."""

    name: str
    inputs: Mapping[str, np.ndarray]
    params: Mapping[str, np.ndarray] = MappingProxyType({})
    attributes: Mapping[str, Any] = MappingProxyType({})
    outputs: tuple[str, ...] = ("y",)
    first: int = 0  # tokens in front of the patch grid
    exact: bool = False  # fractions of 8 so small that float32 rounds nowhere


Draw = Callable[..., np.ndarray]
CASES: dict[str, Callable[[Draw], Iterator[Case]]] = {}


def of(op: str) -> list[Case]:
    """List the cases of an operation; the same ones each time."""
    rng = np.random.default_rng([SEED, *op.encode()])

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    return list(CASES[op](draw))


def _cases(function: Callable[[Draw], Iterator[Case]]) -> Callable[[Draw], Iterator[Case]]:
    CASES[function.__name__.strip("_")] = function
    return function


def hard(x: np.ndarray) -> np.ndarray:
    """Put zeros, powers of 2, the smallest and large numbers into the first places of a copy."""
    values = (0.0, -0.0, 1.0, -1.0, 0.5, -0.5, SMALLEST, -SMALLEST, 1024.0, -1024.0)
    found = x.copy()
    found.reshape(-1)[: len(values)] = values[: x.size]
    return found


def eighths(x: np.ndarray) -> np.ndarray:
    """Round to fractions of 8."""
    return np.round(8 * x) / 8


def array(*values: Any) -> np.ndarray:
    """Numbers as float32."""
    return np.array(values, np.float32)


def _token_cases(draw: Draw, *shape: int, **more: Any) -> Iterator[Case]:
    """One input, as drawn and with hard values in it."""
    x = draw(*(shape or (B, TOKENS, C)))
    yield Case("ordinary", {"x": x}, **more)
    yield Case("hard", {"x": hard(x)}, **more)


# --- sums and products ----------------------------------------------------------------------------


@_cases
def add(draw: Draw) -> Iterator[Case]:
    terms = {name: draw(B, 3, C) for name in ("first", "second", "third")}
    yield Case("ordinary", terms)
    large = draw(B, 3, C) + array(4096.0)
    # from left to right: (x + large) - large loses what x - large + large, too, but elsewhere
    yield Case("cancelling", {"first": hard(draw(B, 3, C)), "second": large, "third": -large})


@_cases
def linear(draw: Draw) -> Iterator[Case]:
    weight, bias = draw(5, C), draw(5)
    yield Case("ordinary", {"x": draw(B, 3, C)}, {"weight": weight, "bias": bias})
    yield Case("hard", {"x": hard(draw(B, 3, C))}, {"weight": hard(weight), "bias": hard(bias)})
    yield Case("without_bias", {"x": draw(B, 3, C)}, {"weight": weight})


@_cases
def matmul(draw: Draw) -> Iterator[Case]:
    a, b = draw(B, HEADS, 3, 5), draw(B, HEADS, 4, 5)
    yield Case("ordinary", {"a": a, "b": b})
    signs = {"a": _signs(draw(B, HEADS, 3, 65)), "b": _signs(draw(B, HEADS, 4, 65))}
    signs["a"][0, 0, 0] = signs["b"][0, 0, 0] = 1  # a product of K
    signs["b"][0, 0, 1] = -1
    yield Case("signs", signs)


def _signs(x: np.ndarray) -> np.ndarray:
    return np.where(x >= 0, np.float32(1), np.float32(-1))


@_cases
def convolution(draw: Draw) -> Iterator[Case]:
    params = {"weight": draw(5, C, 3, 3), "bias": draw(5)}
    yield from _token_cases(draw, params=params, attributes={"grid": GRID})


@_cases
def patch_embed(draw: Draw) -> Iterator[Case]:
    params = {"weight": draw(5, 3, 2, 2), "bias": draw(5)}
    image = draw(B, 3, 4, 6)
    yield Case("ordinary", {"image": image}, params)
    yield Case("hard", {"image": hard(image)}, params)


@_cases
def divide(draw: Draw) -> Iterator[Case]:
    # 5 / sqrt(3) is not 5 * (1 / sqrt(3)) to the bit
    yield from _token_cases(draw, attributes={"divisor": math.sqrt(3.0)})


@_cases
def rescale(draw: Draw) -> Iterator[Case]:
    yield from _token_cases(draw, attributes={"factor": 50 / 197})
    yield Case("of_a_number", {"x": np.float32(0.02)}, attributes={"factor": 50 / 197})


@_cases
def band_sum(draw: Draw) -> Iterator[Case]:
    low, high = (np.round(4 * draw(B, HEADS, 3, 4)) for _ in range(2))
    weights = {"band_weight": draw(2, HEADS)}
    yield Case("ordinary", {"low": low, "high": high}, weights, {"head_dim": 3})
    weights = {"band_weight": array([0.0, 1.0], [-0.5, 1.0])}
    yield Case("hard", {"low": low, "high": -low}, weights, {"head_dim": 3})


@_cases
def differential(draw: Draw) -> Iterator[Case]:
    value = draw(B, TOKENS, C)
    params = {"shortcut": draw(C), "neighbour": draw(C)}
    yield Case("ordinary", {"value": value, "neighbour_mean": draw(B, TOKENS, C)}, params)
    alike = {"shortcut": params["shortcut"], "neighbour": params["shortcut"]}
    yield Case("constant_field", {"value": hard(value), "neighbour_mean": hard(value)}, alike)


# --- norms, scales, shifts ------------------------------------------------------------------------


@_cases
def layer_norm(draw: Draw) -> Iterator[Case]:
    x = draw(B, 3, 16)
    params, eps = {"weight": draw(16), "bias": draw(16)}, {"eps": 1e-5}
    yield Case("ordinary", {"x": x}, params, eps)
    rows = np.stack([
        4096 + x[0, 0],  # a large mean and a small variance: one pass over squares fails
        -4096 + x[0, 1],
        2.0**-10 * x[0, 2],  # a variance below eps
        np.full(16, np.float32(0.75)),  # no variance at all
        hard(x[1, 0]),
        np.where(np.arange(16) == 7, np.float32(256), np.float32(0)),  # one entry is all there is
    ]).reshape(B, 3, 16)  # fmt: skip
    yield Case("hard", {"x": rows}, params, eps)
    yield Case("other_eps", {"x": 2.0**-10 * x}, params, {"eps": 1e-6})


@_cases
def batch_norm(draw: Draw) -> Iterator[Case]:
    params = {"weight": draw(C), "bias": draw(C), "mean": draw(C)}
    x, eps = draw(B, 3, C), {"eps": 1e-5}
    yield Case("ordinary", {"x": x}, {**params, "variance": np.square(draw(C)) + array(0.5)}, eps)
    narrow = array(0.0, 2.0**-20, 1.0, 4.0, 1024.0, 0.25)
    yield Case("hard", {"x": hard(x)}, {**params, "variance": narrow}, eps)


@_cases
def layer_scale(draw: Draw) -> Iterator[Case]:
    x, alpha, beta = draw(B, 3, C), draw(C), draw(C)
    yield Case("ordinary", {"x": x}, {"alpha": alpha, "beta": beta})
    yield Case("hard", {"x": hard(x)}, {"alpha": hard(alpha), "beta": beta})
    yield Case("without_shift", {"x": x}, {"alpha": alpha})


@_cases
def weight_binarizer(draw: Draw) -> Iterator[Case]:
    yield Case("ordinary", {"weight": draw(6, C)}, {})
    yield Case("beyond_the_clip", {"weight": 3 * draw(6, C)}, {})


@_cases
def shift(draw: Draw) -> Iterator[Case]:
    x, move = hard(draw(B, 3, C)), draw(C)
    yield Case("ordinary", {"x": draw(B, 3, C)}, {"move": move})
    x[1, 1] = -move  # z is exactly 0
    yield Case("to_zero", {"x": x}, {"move": move})


@_cases
def position_embedding(draw: Draw) -> Iterator[Case]:
    yield from _token_cases(draw, params={"position": draw(1, TOKENS, C)})


@_cases
def position_bias(draw: Draw) -> Iterator[Case]:
    x = draw(B, HEADS, 4, 4)  # windows of 2 x 2
    yield Case("ordinary", {"x": x}, {"table": draw(9, HEADS)})
    # each entry of the table says which it is
    table = np.arange(18, dtype=np.float32).reshape(9, HEADS)
    yield Case("numbered", {"x": 0 * x}, {"table": table})


# --- what bends -----------------------------------------------------------------------------------


def _thresholds() -> np.ndarray:
    """0, -0.0, 1, -1 and what stands beside them."""
    one, two = np.float32(1), np.float32(2)
    beside = [np.nextafter(one, np.float32(0)), np.nextafter(one, two)]
    values = [0.0, SMALLEST, *beside, one, 0.5, np.nextafter(two, one), two]
    return array(*values, *(-v for v in values))


@_cases
def sign(draw: Draw) -> Iterator[Case]:
    for ste in ("polynomial", "clip"):
        yield Case(f"{ste}", {"z": draw(B, 3, C)}, attributes={"ste": ste})
        yield Case(f"{ste}_hard", {"z": _thresholds().reshape(2, 8)}, attributes={"ste": ste})


@_cases
def gelu(draw: Draw) -> Iterator[Case]:
    yield Case("ordinary", {"x": draw(B, 3, C)})
    # the tanh formula is off most about 2.5; beyond 6 nothing is left of the other side
    values = array(0.0, 0.25, 0.75, 1.0, 2.25, 2.5, 3.0, 4.0, 6.0, 16.0, 2.0**-20, SMALLEST)
    yield Case("hard", {"x": np.stack([values, -values])})


@_cases
def rprelu(draw: Draw) -> Iterator[Case]:
    x = draw(B, TOKENS, C)
    channel = {name: draw(C) for name in ("shift_in", "slope", "shift_out")}
    token = {name: draw(TOKENS) for name in ("token_shift_in", "token_shift_out")}
    yield Case("channel", {"x": x}, channel)
    yield Case("token", {"x": x}, {**channel, **token})
    # every sum is exact, and some u are 0
    eighth = {name: eighths(p) for name, p in {**channel, **token}.items()}
    at_zero = eighths(x)
    at_zero[0, :, 1] = eighth["shift_in"][1] + eighth["token_shift_in"]
    at_zero[1, 3] = eighth["shift_in"] + eighth["token_shift_in"][3]
    eighth["slope"][:2] = 0.0, -0.5
    yield Case("at_zero", {"x": at_zero}, eighth, exact=True)


@_cases
def softmax(draw: Draw) -> Iterator[Case]:
    x = draw(B, HEADS, 3, 5)
    yield Case("ordinary", {"x": x})
    rows = np.stack([
        np.zeros(5, np.float32),
        x[0, 0, 0] + array(1024.0),  # exp of it is infinite: the maximum comes off first
        x[0, 0, 1] - array(1024.0),  # exp of it is 0
        array(0.0, 256.0, 0.0, -256.0, 0.0),  # saturated
        array(0.0, -0.0, SMALLEST, -SMALLEST, 0.0),
        array(0.0, -80.0, -8.0, -16.0, -40.0),
    ]).reshape(1, HEADS, 3, 5)  # fmt: skip
    yield Case("hard", {"x": rows})


@_cases
def window_softmax(draw: Draw) -> Iterator[Case]:
    options = {"grid": (4, 6), "window": 2, "shift": 1}
    x = draw(6, HEADS, 4, 4)
    yield Case("ordinary", {"x": x}, attributes=options)
    first = np.where(np.arange(4) == 0, np.float32(256), np.float32(0))
    # the first key has the maximum, and is masked in some windows
    yield Case("maximum_masked", {"x": x + first}, attributes=options)


@_cases
def binary_linear(draw: Draw) -> Iterator[Case]:
    for stage in ("full", "activations", "none"):
        for ste in ("polynomial", "clip") if stage != "none" else ("polynomial",):
            options = {"binarize": stage, "ste": ste}
            x, weight = draw(B, 3, 65), draw(5, 65)  # K one longer than a word
            yield Case(f"{stage}_{ste}", {"x": x}, {"weight": weight}, options)
    x = draw(B, 3, 256)
    x[0, 0], x[0, 1], x[1, 0] = np.abs(x[0, 0]), -np.abs(x[0, 1]), 0  # all bits equal
    x[1, 1, :16] = _thresholds()
    weight = draw(4, 256)
    weight[0] = 0.5  # Wc is 0, every bit 1: products of 256 and -256
    half = np.round(64 * weight[1, :128]) / 64
    half[:4] = 63 / 64, 65 / 64, 0.0, -0.0
    weight[1] = np.concatenate([half, -half])  # a mean of exactly 0: Wc = W, about 1 and at 0
    for ste in ("polynomial", "clip"):
        options = {"binarize": "full", "ste": ste}
        yield Case(f"hard_{ste}", {"x": x}, {"weight": weight}, options)


@_cases
def boolean_attention(draw: Draw) -> Iterator[Case]:
    prob = softmax_of(draw(B, HEADS, 4, 4))
    value = _signs(draw(B, HEADS, 5, 4))
    per_head = array(0.375, 0.5).reshape(HEADS, 1, 1)
    for context in ("sum", "differences"):
        options = {"binarize": "full", "context": context}
        given = {"prob": prob, "value": value}
        yield Case(f"{context}", given, {"alpha": np.float32(0.375)}, options)
        yield Case(f"{context}_per_head", given, {"alpha": per_head}, options)
    ties = np.zeros((B, HEADS, 4, 4), np.float32)
    ties[0, 0] = array(0.125, 0.25, 0.0, 0.625)  # q = 1/2 gives 0, q = 1, q = 0, q > 1
    ties[0, 1] = array(0.125 - 2.0**-14, 0.125 + 2.0**-14, 0.25, 0.5)  # beside 1/2
    ties[1] = 0.25
    options = {"binarize": "full", "context": "sum"}
    quarter = np.float32(0.25)
    yield Case("ties", {"prob": ties, "value": value}, {"alpha": quarter}, options, exact=True)
    below = array(-0.25, 2.0**-20).reshape(HEADS, 1, 1)  # both are 1e-5 in use
    yield Case("alpha_below_minimum", {"prob": ties, "value": value}, {"alpha": below}, options)
    options = {"binarize": "none", "context": "sum"}
    yield Case("none", {"prob": prob, "value": value}, {"alpha": quarter}, options)


# --- losses ---------------------------------------------------------------------------------------


def _logits(draw: Draw) -> tuple[np.ndarray, np.ndarray]:
    """Ordinary rows; and equal ones, saturated ones, a row whose exponentials are infinite."""
    x = draw(4, 5)
    rows = [0 * x[0], array(256, 0, 0, -256, 0), x[2] + array(1024), array(0, -80, -8, -16, -40)]
    return x, np.stack(rows)


@_cases
def cross_entropy(draw: Draw) -> Iterator[Case]:
    target = {"target": np.array([4, 0, 2, 1], np.int32)}
    for name, logits in zip(("ordinary", "hard"), _logits(draw), strict=True):
        for kind, smoothing in (("", 0.0), ("_smoothed", 0.1)):
            yield Case(name + kind, {"logits": logits}, target, {"smoothing": smoothing})


@_cases
def soft_cross_entropy(draw: Draw) -> Iterator[Case]:
    shares = np.round(16 * softmax_of(draw(4, 5))) / 16
    shares[:, 0] += 1 - shares.sum(axis=1)  # of 1, exactly
    for name, logits in zip(("ordinary", "hard"), _logits(draw), strict=True):
        yield Case(name, {"logits": logits}, {"probabilities": shares})


def softmax_of(x: np.ndarray) -> np.ndarray:
    """Softmax along the last axis, float32."""
    e = np.exp(x)
    return e / e.sum(axis=-1, keepdims=True)


# --- the grid -------------------------------------------------------------------------------------


@_cases
def bands(draw: Draw) -> Iterator[Case]:
    grid, outputs = (3, 4), ("low", "high")
    for mode in ("edge", "periodic", "none"):
        for cls in ("both", "low"):
            options = {"grid": grid, "mode": mode, "cls": cls}
            x = {"x": draw(B, 13, 3)}
            yield Case(f"{mode}_{cls}", x, attributes=options, outputs=outputs, first=1)
    options = {"grid": grid, "mode": "edge", "cls": "both"}
    constant = np.full((B, 12, 3), np.float32(0.75))
    yield Case("constant", {"x": constant}, attributes=options, outputs=outputs)
    one = np.zeros((B, 12, 3), np.float32)
    one[0, 5], one[1, 11] = 1, 1
    yield Case("one_patch", {"x": one}, attributes=options, outputs=outputs)


@_cases
def neighbours(draw: Draw) -> Iterator[Case]:
    for border in ("existing", "eight"):
        options = {"grid": (3, 4), "border": border}
        yield Case(border, {"x": draw(B, 13, 3)}, attributes=options, first=1)
        one = np.zeros((B, 12, 3), np.float32)
        one[0, 5], one[1, 11] = 1, 1
        yield Case(f"{border}_one_patch", {"x": one}, attributes=options)
    options = {"grid": (1, 1), "border": "existing"}
    yield Case("alone", {"x": draw(B, 2, 3)}, attributes=options, first=1)


@_cases
def box(draw: Draw) -> Iterator[Case]:
    for side in (3, 5):
        for axis, name in enumerate(("rows", "columns")):
            options = {"grid": (4, 3), "side": side, "axis": axis}
            yield Case(f"{name}_{side}", {"x": draw(B, 12, 2)}, attributes=options)


@_cases
def windows(draw: Draw) -> Iterator[Case]:
    for shift in (0, 1):
        options = {"grid": (4, 6), "window": 2, "shift": shift}
        yield Case(f"shift_{shift}", {"x": draw(B, 24, 2)}, attributes=options)


@_cases
def join_windows(draw: Draw) -> Iterator[Case]:
    for shift in (0, 1):
        options = {"grid": (4, 6), "window": 2, "shift": shift}
        yield Case(f"shift_{shift}", {"x": draw(B * 6, 4, 2)}, attributes=options)


@_cases
def merge_patches(draw: Draw) -> Iterator[Case]:
    yield Case("ordinary", {"x": draw(B, 24, 2)}, attributes={"grid": (4, 6)})


@_cases
def interpolate(draw: Draw) -> Iterator[Case]:
    for mode in ("bicubic", "bilinear"):
        for name, size in (("larger", (5, 8)), ("smaller", (2, 2)), ("one_axis", (3, 7))):
            options = {"size": size, "mode": mode}
            yield Case(f"{mode}_{name}", {"x": draw(B, 2, 3, 4)}, attributes=options)


@_cases
def resize_tokens(draw: Draw) -> Iterator[Case]:
    options = {"grid": (3, 4), "new_grid": (5, 6)}
    yield Case("position", {"x": draw(1, 13, 2)}, attributes=options, first=1)
    yield Case("token_shift", {"x": draw(13)}, attributes=options, first=1)


@_cases
def to_grid(draw: Draw) -> Iterator[Case]:
    yield Case("ordinary", {"x": draw(B, TOKENS, C - 1)}, attributes={"grid": GRID})


@_cases
def from_grid(draw: Draw) -> Iterator[Case]:
    yield Case("ordinary", {"x": draw(B, C - 1, *GRID)})


# --- what moves numbers ---------------------------------------------------------------------------


@_cases
def fit(draw: Draw) -> Iterator[Case]:
    for name, outputs in (("equal", 6), ("tiled", 18), ("averaged", 2)):
        yield Case(name, {"x": draw(B, 3, 6)}, attributes={"outputs": outputs})


@_cases
def class_token(draw: Draw) -> Iterator[Case]:
    yield Case("ordinary", {"x": draw(B, 5, 3)}, {"token": draw(1, 1, 3)})


@_cases
def drop_class_token(draw: Draw) -> Iterator[Case]:
    yield Case("ordinary", {"x": draw(B, 5, 3)})


@_cases
def pool(draw: Draw) -> Iterator[Case]:
    for name in ("cls", "mean"):
        yield Case(name, {"x": hard(draw(B, 5, 3))}, attributes={"pool": name})


@_cases
def split(draw: Draw) -> Iterator[Case]:
    outputs = ("first", "second", "third")
    yield Case("ordinary", {"x": draw(B, 3, 6)}, attributes={"parts": 3}, outputs=outputs)


@_cases
def split_heads(draw: Draw) -> Iterator[Case]:
    for name, transposed in (("ordinary", False), ("transposed", True)):
        options = {"heads": HEADS, "transposed": transposed}
        yield Case(name, {"x": draw(B, 5, 6)}, attributes=options)


@_cases
def merge_heads(draw: Draw) -> Iterator[Case]:
    yield Case("ordinary", {"x": draw(B, HEADS, 5, 3)})


@_cases
def identity(draw: Draw) -> Iterator[Case]:
    yield from _token_cases(draw)


@_cases
def stop_gradient(draw: Draw) -> Iterator[Case]:
    yield from _token_cases(draw)
