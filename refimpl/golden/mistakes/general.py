"""Mistakes that every operation has: of its inputs, its parameters, its attributes, its output."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

import numpy as np

from refimpl import ops
from refimpl.golden.mistakes.declared import OUTPUT, Call, Mistake, Site, run
from refimpl.models import Config, insides
from refimpl.models.nodes import Node, Parameter
from refimpl.models.operations import OPERATIONS

DECLARED, ATTRIBUTE, PARAMETER, INPUT, PLACE, PRECISION, ELSEWHERE = range(7)  # ranks
MOST = 40  # values or parameters elsewhere that are tried in the place of one
AROUND, NEAR = 160, 20  # nodes around one whose values, and steps, are tried on the way back

# --- attributes -----------------------------------------------------------------------------------

EPS = (1e-5, 1e-6, 1e-12, 0.0, 1e-3, 1e-4, 1e-7, 1e-8)
# Attributes of an operation that a port may have got wrong: how users call them, other values.
# An attribute with the name of a field of the configuration has the choices of that field.
ATTRIBUTES: dict[tuple[str, str], tuple[str, tuple]] = {
    ("bands", "mode"): ("haar_mode", ops.bands.MODES),
    ("bands", "cls"): ("haar_cls", ops.bands.CLS),
    ("neighbours", "border"): ("neighbours", ops.neighbours.BORDERS),
    ("layer_norm", "eps"): ("norm_eps", EPS),
    ("batch_norm", "eps"): ("norm_eps", EPS),
    ("pool", "pool"): ("pool", ops.pool.POOLS),
    ("interpolate", "mode"): ("interpolation", ops.interpolate.MODES),
}
CHOICES = {f.name: f.metadata["choices"] for f in fields(Config) if "choices" in f.metadata}
STEPS = ("binarize",)  # another value has other steps: no port mistakes it for another


def attributes(site: Site) -> Iterator[Mistake]:
    """Another value of an attribute."""
    for name, own in site.node.attributes.items():
        field, values = ATTRIBUTES.get((site.node.op, name), (name, CHOICES.get(name, ())))
        if name in STEPS:
            continue
        for value in values:
            if value != own:
                words = f"{field} is {own!r}, the candidate seems to take {value!r}"
                yield Mistake(words, _with(**{name: value}), rank=ATTRIBUTE)


def _with(**attributes: Any) -> Callable[[Call], Any]:
    return lambda call: call.right(**attributes)


# --- parameters -----------------------------------------------------------------------------------


def parameters(site: Site) -> Iterator[Mistake]:
    """A parameter left out, read in another way, or another one in its place."""
    for key in site.keys:
        declared = parameter(site, key)
        if declared is None:
            continue
        neutral = 1.0 if declared.traits.factor else 0.0
        changes: dict[str, Callable[[np.ndarray], Any]] = {
            "left out": lambda p, n=neutral: np.full_like(p, n),
            "has the wrong sign": np.negative,
            "without its sign": np.abs,
            **READINGS,
        }
        for words, change in changes.items():
            yield _changed(key, change, f"{declared.path} {words}", f"{key} {words}")
        if not site.is_backward:
            words = "reaches the first image alone"
            edit = _of_image_0(key, neutral)
            yield Mistake(f"{declared.path} {words}", edit, f"{key} {words}", PARAMETER)


def _of_image_0(key: str, neutral: float) -> Callable[[Call], Any]:
    def edit(call: Call) -> Any:
        right, without = call.right(), call.right({key: np.full_like(call[key], neutral)})
        if not isinstance(right, np.ndarray) or right.ndim < 2 or len(right) < 2:
            return None
        return np.concatenate([right[:1], without[1:]])

    return edit


def views(site: Site) -> Iterator[Mistake]:
    """A parameter moved along its axes, or in a coarser type."""
    for key in site.keys:
        declared = parameter(site, key)
        for words, change in VIEWS.items() if declared else ():
            yield _changed(key, change, f"{declared.path} {words}", f"{key} {words}", PLACE)


def curves(site: Site) -> Iterator[Mistake]:
    """A parameter taken through a function."""
    for key in site.keys:
        declared = parameter(site, key)
        for words, change in CURVES.items() if declared else ():
            yield _changed(key, change, f"{declared.path} {words}", f"{key} {words}")



def others(site: Site) -> Iterator[Mistake]:
    """Another parameter of the same shape in the place of one: of another layer, or a block off."""
    for key in site.keys if not site.is_backward else ():
        declared = parameter(site, key)
        for other, distance in _alike(site, declared) if declared else ():
            words = f"{other} in the place of {declared.path}"
            yield _replaced(key, other, words, f"{key} of another layer, {distance:+d}")


def parameter(site: Site, key: str) -> Parameter | None:
    """What is declared of an argument that is a parameter, or made of one alone."""
    network, name = site.network, site.name(key) if key[0] == "p" and key[1:].isdigit() else ""
    if name in network.of_parameters:
        name = network.nodes[network.of_parameters[name]].params[0]
    return network.parameters.get(name)


def _one_number(which: Callable[[np.ndarray], Any]) -> Callable[[np.ndarray], np.ndarray | None]:
    return lambda p: np.full_like(p, which(p)) if p.size > 1 else None


def _as_if_transposed(p: np.ndarray) -> np.ndarray | None:
    """The numbers of a matrix in the order of its transpose, read as they lie."""
    return np.ascontiguousarray(p.T).reshape(p.shape) if sum(n > 1 for n in p.shape) > 1 else None


def _other_memory(p: np.ndarray) -> np.ndarray | None:
    """Read as a matrix of the other shape: the numbers as they lie, rows taken for columns."""
    return p.reshape(p.shape[::-1]).T if sum(n > 1 for n in p.shape) > 1 else None


def _turned(axes: tuple[int, ...]) -> Callable[[np.ndarray], np.ndarray | None]:
    return lambda p: np.flip(p, axes) if p.ndim == 4 else None


def _rolled(step: int, axis: int) -> Callable[[np.ndarray], np.ndarray | None]:
    return lambda p: np.roll(p, step, axis) if p.ndim > -axis - 1 and p.shape[axis] > 1 else None


def _swapped(p: np.ndarray) -> np.ndarray | None:
    square = p.ndim == 4 and p.shape[2] == p.shape[3]
    return p.swapaxes(2, 3) if square else None


def _bfloat16(x: np.ndarray) -> np.ndarray:
    """Rounded half to even, as hardware does."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = bits + 0x7FFF + ((bits >> 16) & 1) & 0xFFFF0000
    return rounded.astype(np.uint32).view(np.float32).astype(x.dtype)


def _float16(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float16).astype(x.dtype)


READINGS: dict[str, Callable[[np.ndarray], Any]] = {
    "is read transposed: rows for columns": _other_memory,
    "is stored transposed": _as_if_transposed,
    "is one number for all: its first": _one_number(lambda p: p.flat[0]),
    "is one number for all: its mean": _one_number(np.mean),
    "is one number for all: its largest": _one_number(np.max),
    ": the kernel turned around": _turned((2, 3)),
    ": rows and columns of the kernel exchanged": _swapped,
}
VIEWS: dict[str, Callable[[np.ndarray], Any]] = {
    "off by one along its last axis: one place late": _rolled(1, -1),
    "off by one along its last axis: one place early": _rolled(-1, -1),
    "off by one along its first axis: one place late": _rolled(1, 0),
    "off by one along its first axis: one place early": _rolled(-1, 0),
    "off by one along its rows: one place late": _rolled(1, -2),
    "off by one along its rows: one place early": _rolled(-1, -2),
    "in reverse order": lambda p: p[..., ::-1],
    "with its rows in reverse order": lambda p: p[::-1] if p.ndim > 1 else None,
    "with its input channels in reverse order": lambda p: p[:, ::-1] if p.ndim == 4 else None,
    ": the rows of the kernel in reverse order": _turned((2,)),
    "as float16": _float16,
    "as bfloat16": _bfloat16,
}


# Parameters taken through a function that they should not pass, or should not pass again.
CURVES: dict[str, Callable[[np.ndarray], Any]] = {
    "is read as a logarithm: e to the power of it": np.exp,
    "passes a sigmoid": lambda p: 1 / (1 + np.exp(-p)),
    "passes tanh": np.tanh,
    "is clipped to 0 to 1": lambda p: np.clip(p, 0, 1),
    "is clipped to -1 to 1": lambda p: np.clip(p, -1, 1),
    "is squared": np.square,
    "is divided by, not multiplied, or the other way round": np.reciprocal,
    "counts twice": lambda p: 2 * p,
    "counts half": lambda p: p / 2,
    "is taken from 1: 1 - it": lambda p: 1 - p,
    "has 1 added": lambda p: 1 + p,
    "is rounded to powers of 2": lambda p: np.sign(p) * np.exp2(np.rint(np.log2(np.abs(p)))),
    "is rounded to multiples of 1/256": lambda p: np.rint(p * 256) / 256,
    "is rounded to 8 bits of its largest": lambda p: (
        lambda step: np.rint(p / step) * step)(np.abs(p).max() / 127),
}


def _changed(key: str, change: Callable, words: str, kind: str, rank: int = PARAMETER) -> Mistake:
    def edit(call: Call) -> Any:
        value = _each(call[key], change)
        return None if value is None else call.right({key: value})

    return Mistake(words.replace(" :", ":"), edit, kind, rank)


def layers(site: Site) -> Iterator[Mistake]:
    """All parameters of another node of the same operation: of another layer, or of a block off."""
    network, own = site.network, site.node
    keys = [key for key in site.keys if key[0] == "p" and key[1:].isdigit()]
    if len(own.params) < 2 or not keys or site.is_backward:
        return
    here = network.maker[own.name]
    for i, node in enumerate(network.nodes):
        shapes = [[network.shape(path) for path in n.params] for n in (node, own)]
        if i == here or node.op != own.op or shapes[0] != shapes[1]:
            continue
        words = f"the parameters of {node.name} in the place of those of {own.name}"
        kind = f"parameters {i - here:+d} nodes away"
        yield Mistake(words, _of_layer(node.params), kind, ELSEWHERE)


def _of_layer(paths: tuple[str, ...]) -> Callable[[Call], Any]:
    return lambda call: call.right({f"p{k}": call.params[path] for k, path in enumerate(paths)})


def _replaced(key: str, other: str, words: str, kind: str) -> Mistake:
    def edit(call: Call) -> Any:
        found = call.params[other]
        return call.right({key: found.reshape(call[key].shape)})

    return Mistake(words, edit, kind, ELSEWHERE)


def _alike(site: Site, declared: Parameter) -> Iterator[tuple[str, int]]:
    """Parameters of the same shape and role, the nearest first, and how many places away."""
    everything = list(site.network.parameters.values())
    here = everything.index(declared)
    same = [i for i, p in enumerate(everything)
            if i != here and (p.shape, p.role) == (declared.shape, declared.role)]  # fmt: skip
    for i in sorted(same, key=lambda i: abs(i - here))[:MOST]:
        yield everything[i].path, i - here


# --- inputs ---------------------------------------------------------------------------------------


def inputs(site: Site) -> Iterator[Mistake]:
    """An input left out, taken for another one, or handed on as it was."""
    keys = [key for key in site.keys if key != "y" and not _is_blank(site, key)]
    for key in keys:
        if parameter(site, key) is None:
            name = spoken(site, key)
            if key == "d" or not site.is_backward:
                yield _handed_on(key, f"nothing done: equal to {name}")
            words = f"image 0 of {name} for every image"
            yield _changed(key, _image_0, words, f"image 0 of {key} for every image", INPUT)
            if len(keys) > 1 and key != "d":
                yield _changed(key, np.zeros_like, f"{name} left out", f"{key} left out", INPUT)
    for a, b in itertools.combinations(keys, 2):
        names = f"{spoken(site, a)} and {spoken(site, b)}"
        yield Mistake(f"{names} exchanged", _exchange(a, b), f"{a} and {b} exchanged", INPUT)
        if len(keys) > 2 and not site.is_backward and {a[0], b[0]} == {"x"}:
            yield Mistake(f"{names} left out", _without(a, b), f"{a} and {b} left out", INPUT)


def _is_blank(site: Site, key: str) -> bool:
    """Whether a gradient is computed without this input, so that it is not known."""
    if not site.is_backward or "d" not in site.keys or key[0] != "x":
        return False
    operation, own = OPERATIONS[site.node.op], site.node.keys
    if insides.of(site.node) is not None:
        return False
    argument = own.index(site.what.removeprefix("d."))
    return operation.of_output or own.index(key) not in operation.needs(argument)


def spoken(site: Site, key: str) -> str:
    """An argument in words."""
    return f"the gradient of {site.node.name}" if key == "d" else site.name(key)


def _handed_on(key: str, words: str) -> Mistake:
    return Mistake(words, lambda call: call[key], f"equal to {key}", INPUT)


def _without(*keys: str) -> Callable[[Call], Any]:
    return lambda call: call.right({key: np.zeros_like(call[key]) for key in keys})


def _exchange(a: str, b: str) -> Callable[[Call], Any]:
    def edit(call: Call) -> Any:
        first, second = call[a], call[b]
        if np.shape(first) != np.shape(second) or first.dtype != second.dtype:
            return None
        return call.right({a: second, b: first})

    return edit


# --- the output -----------------------------------------------------------------------------------


def outputs(site: Site) -> Iterator[Mistake]:
    """The right values with something done to them."""
    words = "image 0 taken for every image"
    yield Mistake(words, lambda call: _of_output(call, _image_0), rank=INPUT)
    if site.what.startswith("d.p"):
        for words, change in SUMS.items():
            if site.node.op == "position_bias":
                words = words.replace("image", "window")
            yield Mistake(words, lambda call, change=change: _of_rows(call, change), rank=INPUT)
        for words, divisor in MEANS.items():
            yield Mistake(words, lambda call, n=divisor: _divided(call, n), rank=INPUT)
        words = "the gradient added up twice: to a buffer that was not cleared"
        yield Mistake(words, lambda call: 2 * call.right(), rank=INPUT)
        words = "the gradient clipped to a norm of 1"
        yield Mistake(words, lambda call: _of_output(call, _unit), rank=INPUT)
    for words, change in OUTPUTS.items():
        yield Mistake(words, lambda call, change=change: _of_output(call, change), rank=PLACE)


def _unit(x: np.ndarray) -> np.ndarray:
    return x / max(np.linalg.norm(x), 1.0)


def _of_rows(call: Call, change: Callable[[np.ndarray], Any]) -> Any:
    """The gradient of a parameter, summed over other rows."""
    found = change(call["d"])
    return None if found is None else call.right({"d": found})


def _divided(call: Call, divisor: Callable[[np.ndarray, np.ndarray], float | None]) -> Any:
    right = call.right()
    number = divisor(call["d"], right)
    return None if number is None else right / number


def _alone(which: int | slice, axis: int) -> Callable[[np.ndarray], np.ndarray | None]:
    def change(d: np.ndarray) -> np.ndarray | None:
        if d.ndim < 2 + axis or d.shape[axis] < 2:
            return None
        found = np.zeros_like(d)
        at = (slice(None),) * axis + (which,)
        found[at] = d[at]
        return found

    return change


# What the gradient of a parameter is summed over, and should not; by what it is divided.
SUMS: dict[str, Callable[[np.ndarray], Any]] = {
    "the gradient of image 0 alone": _alone(0, 0),
    "the gradient of the last image alone": _alone(-1, 0),
    "the gradient of token 0 alone": _alone(0, 1),
    "the gradient of the last token alone": _alone(-1, 1),
    "the gradient without token 0": _alone(slice(1, None), 1),
}
MEANS: dict[str, Callable[[np.ndarray, np.ndarray], float | None]] = {
    "the gradient is a mean over the images, no sum": lambda d, y: float(len(d)),
    "the gradient is a mean over the tokens, no sum":
        lambda d, y: float(d.shape[1]) if d.ndim > 2 else None,
    "the gradient is a mean over all rows, no sum": lambda d, y: float(d[..., 0].size),
    "the gradient is a mean over all that it sums, no sum": lambda d, y: float(d.size / y.size),
}  # fmt: skip


def _of_output(call: Call, change: Callable[[np.ndarray], Any]) -> Any:
    right = call.right()
    return None if right is None else _each(right, change)


def _each(value: Any, change: Callable[[np.ndarray], Any]) -> Any:
    """An array, or each of several outputs and of their gradients, with something done to it."""
    if not isinstance(value, tuple):
        return change(np.asarray(value))
    found = [change(part) for part in value]
    return None if any(part is None for part in found) else tuple(found)


def _clipped(x: np.ndarray) -> np.ndarray | None:
    return np.clip(x, -128, 127).astype(x.dtype) if _is_whole(x) else None


def _wrapped(dtype: Any) -> Callable[[np.ndarray], np.ndarray | None]:
    return lambda x: x.astype(np.int64).astype(dtype).astype(x.dtype) if _is_whole(x) else None


def _is_whole(x: np.ndarray) -> bool:
    return x.dtype.kind == "i" or (x.dtype.kind == "f" and bool((x == np.rint(x)).all()))


def _image_0(x: np.ndarray) -> np.ndarray | None:
    if not isinstance(x, np.ndarray) or x.ndim < 2 or len(x) < 2:
        return None
    return np.broadcast_to(x[:1], x.shape).copy()


def _numbers(change: Callable[[np.ndarray], Any]) -> Callable[[np.ndarray], Any]:
    return lambda x: None if x.dtype == bool else change(x)


def _last_exchanged(x: np.ndarray) -> np.ndarray | None:
    return x.swapaxes(-1, -2) if x.ndim > 1 and x.shape[-1] == x.shape[-2] else None


def _last_in_memory(x: np.ndarray) -> np.ndarray | None:
    if x.ndim < 2 or x.shape[-1] == x.shape[-2]:
        return None
    return np.ascontiguousarray(x.swapaxes(-1, -2)).reshape(x.shape)


def _without_last(axis: int) -> Callable[[np.ndarray], np.ndarray | None]:
    def change(x: np.ndarray) -> np.ndarray | None:
        if x.ndim < 2 or x.shape[axis] < 2:
            return None
        found = np.moveaxis(x.copy(), axis, 0)
        found[-1] = 0
        return np.moveaxis(found, 0, axis)

    return change


def _at_token_0(x: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray | None:
    if x.ndim != 3 or x.dtype == bool:
        return None
    return np.concatenate([change(x[:, :1]), x[:, 1:]], axis=1)


def _other_image(step: int) -> Callable[[np.ndarray], np.ndarray | None]:
    return lambda x: np.roll(x, step, axis=0) if x.ndim > 1 and len(x) > 1 else None


def _numbers_of(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], Any]:
    return lambda x: change(x) if x.dtype.kind == "f" and x.ndim else None


def _log_softmax(x: np.ndarray) -> np.ndarray:
    moved = x - x.max(axis=-1, keepdims=True)
    return moved - np.log(np.exp(moved).sum(axis=-1, keepdims=True))


OUTPUTS: dict[str, Callable[[np.ndarray], Any]] = {
    "all zero: left out, or never written": np.zeros_like,
    "polarity inverted: every value has the other sign": lambda x: ~x if x.dtype == bool else -x,
    "scale missing: every value is 2 times too large": _numbers(lambda x: 2 * x),
    "scale missing: every value is half as large": _numbers(
        lambda x: x / 2 if x.dtype.kind == "f" else x // 2),
    "not transposed, or once too often: the last two axes exchanged": _last_exchanged,
    "transposed in memory: the last two axes in the order of the other layout": _last_in_memory,
    **{
        f"off-by-one shift along {name}: one place too {word}": _rolled(step, axis)
        for name, axis in (("the last axis", -1), ("the axis before the last", -2))
        for word, step in (("late", 1), ("early", -1))
    },
    "the last axis in reverse order": lambda x: x[..., ::-1] if x.ndim else None,
    "the axis before the last in reverse order":
        lambda x: x[..., ::-1, :] if x.ndim > 1 else None,
    **{
        f"the last of {name} is 0: a loop that ends early": _without_last(axis)
        for name, axis in (("the first axis", 0), ("the second axis", 1), ("the last axis", -1))
    },
    "0 for the class token": lambda x: _at_token_0(x, np.zeros_like),
    "for the class token the mean of all tokens": lambda x: _at_token_0(
        x, lambda t: np.broadcast_to(x.mean(axis=1, keepdims=True), t.shape)),
    "its magnitude": _numbers(np.abs),
    "negative numbers are 0": _numbers(lambda x: np.maximum(x, 0)),
    "clipped to -1 to 1": _numbers(lambda x: np.clip(x, -1, 1)),
    "clipped to 8 bits": _clipped,
    "wrapped around at 8 bits": _wrapped(np.int8),
    "the image before it taken for every image": _other_image(1),
    "the image behind it taken for every image": _other_image(-1),
    "the first of the second axis for all of it": lambda x: (
        np.broadcast_to(x[:, :1], x.shape).copy() if x.ndim > 3 else None),
    **{
        f"{name} of it": _numbers_of(change)
        for name, change in {
            "the softmax over the last axis": lambda x: np.exp(_log_softmax(x)),
            "the logarithm of the softmax over the last axis": lambda x: _log_softmax(x),
            "a sigmoid": lambda x: 1 / (1 + np.exp(-x)),
            "tanh": np.tanh,
            "GELU": lambda x: ops.gelu.forward(x)[0],
            "SiLU": lambda x: x / (1 + np.exp(-x)),
            "the square": np.square,
            "the power of e": np.exp,
            "a ReLU that ends at 6": lambda x: np.clip(x, 0, 6),
            "the last axis to a norm of 1, each row": lambda x: (
                x / np.linalg.norm(x, axis=-1, keepdims=True)),
            "the rows with their mean taken off": lambda x: x - x.mean(axis=-1, keepdims=True),
            "the rows with their largest taken off": lambda x: x - x.max(axis=-1, keepdims=True),
        }.items()
    },
    "rounded to float16": lambda x: _float16(x) if x.dtype.kind == "f" else None,
    "rounded to bfloat16": lambda x: _bfloat16(x) if x.dtype.kind == "f" else None,
}


# --- inputs with something done to them -----------------------------------------------------------


def _along(axis: int, change: Callable[[np.ndarray, int], np.ndarray]) -> Callable:
    def edit(x: np.ndarray) -> np.ndarray | None:
        return change(x, axis) if x.ndim > axis and x.shape[axis] > 1 else None

    return edit


CHANGES: dict[str, Callable[[np.ndarray], Any]] = {
    **{
        f"{words} of axis {axis}": _along(axis, change)
        for axis in range(1, 4)
        for words, change in {
            "one place late around the end": lambda x, a: np.roll(x, 1, a),
            "one place early around the end": lambda x, a: np.roll(x, -1, a),
            "in reverse order": np.flip,
            "the first for all": lambda x, a: np.repeat(x.take([0], a), x.shape[a], a),
        }.items()
    },
    "with the image before it": _other_image(1),
    "with the image behind it": _other_image(-1),
    **{
        f"clipped to -{k} to {k}": _numbers(lambda x, k=k: np.clip(x, -k, k))
        for k in (1, 2, 4, 5, 6, 8, 10)
    },
    "with negative numbers as 0": _numbers(lambda x: np.maximum(x, 0)),
    "without its sign": _numbers(np.abs),
    "with the wrong sign": lambda x: ~x if x.dtype == bool else -x,
    "twice as large": _numbers(lambda x: 2 * x),
    "half as large": _numbers(lambda x: x / 2 if x.dtype.kind == "f" else x // 2),
    "rounded to whole multiples of 1/16": _numbers_of(lambda x: np.rint(x * 16) / 16),
    "rounded to whole multiples of 1/256": _numbers_of(lambda x: np.rint(x * 256) / 256),
    "rounded to 8 bits of its largest": _numbers_of(
        lambda x: (lambda step: np.rint(x / step) * step)(np.abs(x).max() / 127)),
    "rounded to float16": lambda x: _float16(x) if x.dtype.kind == "f" else None,
    "rounded to bfloat16": lambda x: _bfloat16(x) if x.dtype.kind == "f" else None,
    "with the mean of its rows taken off": _numbers_of(lambda x: x - x.mean(-1, keepdims=True)),
    "with rows of norm 1": _numbers_of(lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)),
}  # fmt: skip


def changed_inputs(site: Site) -> Iterator[Mistake]:
    """An input in another order, clipped, rounded; its patches rolled on the grid."""
    for key in site.keys:
        if key == "y" or parameter(site, key) is not None or _is_blank(site, key):
            continue
        for words, change in CHANGES.items():
            yield _changed(key, change, f"{spoken(site, key)} {words}", f"{key} {words}", INPUT)
        if "grid" in site.node.attributes and key[0] == "x" and not site.is_backward:
            for step in set(itertools.product((-1, 0, 1), repeat=2)) - {(0, 0)}:
                words = f"with its patches rolled by {step} on the grid"
                edit = _grid_rolled(key, step)
                yield Mistake(f"{site.name(key)} {words}", edit, f"{key} {words}", INPUT)


def _grid_rolled(key: str, step: tuple[int, int]) -> Callable[[Call], Any]:
    def edit(call: Call) -> Any:
        x, (gh, gw) = call[key], call.node.attributes["grid"]
        first = x.shape[1] - gh * gw
        patches = np.roll(x[:, first:].reshape(len(x), gh, gw, -1), step, axis=(1, 2))
        patches = patches.reshape(len(x), gh * gw, -1)
        return call.right({key: np.concatenate([x[:, :first], patches], axis=1)})

    return edit


# --- once more, in another order ------------------------------------------------------------------


def orders(site: Site) -> Iterator[Mistake]:
    """An operation done twice, in front of the one before it; a derivative at the output."""
    network, node = site.network, site.node
    if site.is_backward:
        if site.what == "d.x0" and not _is_blank(site, "x0"):
            words = f"the derivative at the output, {node.name}, not at the input"
            yield Mistake(words, _at_output, "the derivative at the output", INPUT)
        return
    if site.what != OUTPUT or len(node.inputs) != 1 or node.inputs[0] not in network.maker:
        return
    yield Mistake("done twice", lambda call: call.right({"x0": call.right()}), rank=INPUT)
    before = network.nodes[network.maker[node.inputs[0]]]
    if len(before.inputs) == 1 and before.op != node.op and insides.of(before) is None:
        words = f"in the other order: {node.name} in front of {before.name}"
        kind = f"in the other order: {node.op} in front of {before.op}"
        yield Mistake(words, _in_front_of(before), kind, INPUT)


def _at_output(call: Call) -> Any:
    return call.right({"x0": call.real(call.node.name)})


def _in_front_of(before: Node) -> Callable[[Call], Any]:
    def edit(call: Call) -> Any:
        own = call.right({"x0": call.real(before.inputs[0])})
        return run(before, OUTPUT, [own, *(call.params[path] for path in before.params)])

    return edit


# --- elsewhere ------------------------------------------------------------------------------------


def elsewhere(site: Site) -> Iterator[Mistake]:
    """Another value in the place of an input: of the wrong layer, or of a block before."""
    network = site.network
    for key in site.keys if site.what == OUTPUT or not site.is_backward else ():
        name = site.name(key)
        if key[0] != "x" or name not in network.shapes:
            continue
        for other, distance in _near(site, name):
            yield _read_instead(key, other, name, distance)


def _near(site: Site, name: str) -> Iterator[tuple[str, int]]:
    """Taps of the same shape that are made before a site, the nearest first, how far before."""
    network = site.network
    here = network.maker[site.node.name]
    maker = network.nodes[network.maker[name]] if name in network.maker else site.node
    found = 0
    for i in range(here - 1, -1, -1):
        node = network.nodes[i]
        is_near = found < MOST and node.tap in ("real", "reader")
        # beyond what is near, the same value of the blocks before: a buffer that is stale
        is_alike = node.tap and (node.op, node.inputs != ()) == (maker.op, True)
        for other in node.outputs if node.inputs and (is_near or is_alike) else ():
            if other != name and network.shapes[other] == network.shapes[name]:
                found += 1
                yield other, here - i


def elsewhere_back(site: Site) -> Iterator[Mistake]:
    """Another value, or the gradient of another one, in the place of what the way back reads."""
    if not site.is_backward:
        return
    network, own = site.network, site.node
    here = network.maker[own.name]
    near = sorted(range(len(network.nodes)), key=lambda i: abs(i - here))[:AROUND]
    for key in site.keys:
        if (key[0] == "p" and key[1:].isdigit()) or _is_blank(site, key):
            continue
        name = own.name if key in ("d", "y") else site.name(key.removeprefix("d."))
        for i in near:
            node = network.nodes[i]
            steps = node.inside.values() if node.op == own.op or abs(i - here) < NEAR else ()
            for k, other in enumerate((*node.outputs, *steps)):
                is_alike = network.shapes.get(other, ()) == network.shapes.get(name, ())
                if other != name and (is_alike or other in node.inside.values()):
                    yield _read_back(key, other, name, f"{i - here:+d} nodes away, its {k}")


def _read_back(key: str, other: str, name: str, place: str) -> Mistake:
    """`other` for `name`, or its gradient for that of `name`, where it has the same shape."""
    is_gradient = key == "d" or key.startswith("d.")
    of = "the gradient of " if is_gradient else ""

    def edit(call: Call) -> Any:
        own, found = call[key], call.value(f"grads/{other}" if is_gradient else other)
        if not isinstance(own, np.ndarray) or found.shape != own.shape:
            return None
        if own.dtype == bool:
            return call.right({key: found}) if found.dtype == bool else None
        return call.right({key: call.signed(found)})

    words = f"{of}{other} read in the place of {of and 'that of '}{name}"
    return Mistake(words, edit, f"{key} read {place}", ELSEWHERE)


def _read_instead(key: str, other: str, name: str, distance: int) -> Mistake:
    words, kind = f"{other} read in the place of {name}", f"{key} read {distance} nodes before"
    return Mistake(words, lambda call: call.right({key: call.real(other)}), kind, ELSEWHERE)

