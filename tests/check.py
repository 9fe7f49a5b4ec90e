"""The comparisons that every operation goes through; a test file draws the arrays and calls them.

An operation is a module with `forward(*arrays, **options) -> (y, cache)` and
`backward(dy, cache) -> gradients in the order of the arrays`. Here `arrays` are the inputs that
have a gradient (or None in the place of an optional one); all else, targets too, is an option.
The oracle is the function of the same name in tests/torch_models/ops.py under autograd.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest

from refimpl.conventions import DtypeError
from tests import oracles, strategies, tolerances

Arrays = tuple[np.ndarray | None, ...]

# Ops whose oracle has another name.
MIRROR_NAMES = {"weight_binarizer": "binarize_weight"}


class Run(NamedTuple):
    values: list[np.ndarray]  # the outputs of forward
    upstream: list[np.ndarray]  # a random gradient of each output, never ones
    gradients: list[np.ndarray | None]  # what backward made of them


def against_mirror(
    op: ModuleType,
    arrays: Arrays,
    rng: np.random.Generator,
    length: int = 1,
    floor: float = 0.0,
    **options: Any,
) -> None:
    """Forward and every gradient against PyTorch, after the checks of `run`.

    `length` is the number of terms in the longest sum of the op, forward or backward. `floor` is
    the size of these terms, where a gradient has so few entries that all may cancel at once.
    """
    ours = run(op, arrays, rng, **options)
    values, gradients = _mirror(op, arrays, ours.upstream, options)
    for value, expected in zip(ours.values, values, strict=True):
        _close(f"{_name(op)} y", value, expected, length, floor)
    for index, (gradient, expected) in enumerate(zip(ours.gradients, gradients, strict=True)):
        if expected is not None:
            _close(f"{_name(op)} gradient {index}", gradient, expected, length, floor)


def run(op: ModuleType, arrays: Arrays, rng: np.random.Generator, **options: Any) -> Run:
    """One forward and backward, proven free of side effects.

    Inputs are read-only, so a write into them raises. Two forwards with different values come
    before the backwards, which run in both orders and must not notice each other.
    """
    arrays = tuple(None if a is None else _frozen(a) for a in arrays)
    others = tuple(None if a is None else _frozen(np.flip(a)) for a in arrays)
    y, cache = op.forward(*arrays, **options)
    values = [np.array(v) for v in _listed(y)]
    other_y, other_cache = op.forward(*others, **options)
    upstream, other_upstream = ([_upstream(rng, v) for v in _listed(w)] for w in (y, other_y))
    gradients = op.backward(_like(y, upstream), cache)
    other_gradients = op.backward(_like(y, other_upstream), other_cache)

    _check_types(arrays, values, gradients)
    _same(values, _listed(y), "a later call changed the output")
    fresh_cache = op.forward(*others, **options)[1]
    fresh_gradients = op.backward(_like(y, other_upstream), fresh_cache)
    _same(other_gradients, fresh_gradients, "backward depends on the calls before it")
    _same(gradients, op.backward(_like(y, upstream), cache), "backward changed its cache")
    return Run(values, upstream, list(gradients))


def against_central_differences(
    op: ModuleType, arrays: Arrays, rng: np.random.Generator, **options: Any
) -> None:
    """Every entry of every gradient of a smooth op, in float64, by (f(x+h) - f(x-h)) / 2h."""
    ours = run(op, arrays, rng, **options)
    for index, (array, gradient) in enumerate(zip(arrays, ours.gradients, strict=True)):
        if array is None:
            continue
        assert array.dtype == np.float64, "central differences need float64"

        def objective(moved: np.ndarray, index: int = index) -> float:
            y, _ = op.forward(*arrays[:index], moved, *arrays[index + 1 :], **options)
            return sum(float((v * d).sum()) for v, d in zip(_listed(y), ours.upstream))

        # Below 1 it would be the rounding of the objective, divided by the step, that is judged.
        worst = tolerances.disagreement(gradient, _central_differences(objective, array), 1.0)
        where = f"{_name(op)} gradient {index}"
        oracles.note("ops against central differences", worst, where)
        assert worst <= tolerances.FINITE_DIFFERENCE, f"{where}: {worst:.1e}"


def rejects_other_types(op: ModuleType, arrays: Arrays, **options: Any) -> None:
    """Integer and half input, and every mixture of float32 and float64, raise DtypeError."""
    arrays = tuple(None if a is None else a.astype(np.float64) for a in arrays)
    several = sum(a is not None for a in arrays) > 1
    for index, array in enumerate(arrays):
        for dtype in (np.int64, np.float16, *([np.float32] if several else [])):
            if array is not None:
                changed = (*arrays[:index], array.astype(dtype), *arrays[index + 1 :])
                with pytest.raises(DtypeError, match="expected arrays of one type"):
                    op.forward(*changed, **options)


def _mirror(
    op: ModuleType, arrays: Arrays, upstream: list[np.ndarray], options: dict[str, Any]
) -> tuple[list[np.ndarray], list[np.ndarray | None]]:
    mirror = oracles.require("torch", "tests.torch_models.ops")
    torch = oracles.require("torch")
    inputs = [None if a is None else torch.tensor(a, requires_grad=True) for a in arrays]
    leaves = [leaf for leaf in inputs if leaf is not None]
    options = {k: torch.tensor(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
    function = getattr(mirror, MIRROR_NAMES.get(_name(op), _name(op)))
    outputs = _listed(function(*inputs, **options))
    dy = [torch.tensor(d) for d in upstream]
    # materialize: an input that the result does not depend on has the gradient 0, not None
    found = torch.autograd.grad(outputs, leaves, dy, materialize_grads=True)
    by_leaf = iter(gradient.numpy() for gradient in found)
    gradients = [None if leaf is None else next(by_leaf) for leaf in inputs]
    return [output.detach().numpy() for output in outputs], gradients


def _central_differences(objective, array: np.ndarray, step: float = 1e-5) -> np.ndarray:
    gradient = np.empty_like(array)
    for entry in np.ndindex(array.shape):
        ends = []
        for move in (step, -step):
            moved = array.copy()
            moved[entry] += move
            ends.append(objective(moved))
        gradient[entry] = (ends[0] - ends[1]) / (2 * step)
    return gradient


def _close(where: str, actual: np.ndarray, expected: np.ndarray, length: int, floor: float) -> None:
    assert actual.shape == expected.shape, f"{where}: {actual.shape}, expected {expected.shape}"
    worst = tolerances.disagreement(actual, expected, floor)
    what = "gradients" if "gradient" in where else "values"
    oracles.note(f"ops against PyTorch, {actual.dtype}, {what}", worst, where)
    allowed = tolerances.relative(actual.dtype, length)
    assert worst <= allowed, f"{where}, {actual.dtype}: {worst:.1e}, allowed {allowed:.1e}"


def _check_types(arrays: Arrays, values: list[np.ndarray], gradients: tuple) -> None:
    """A gradient has the shape and type of its array and is None where the array was None."""
    assert isinstance(gradients, tuple), "backward returns a tuple, also of a single gradient"
    assert len(gradients) == len(arrays)
    for array, gradient in zip(arrays, gradients):
        assert (array is None) == (gradient is None)
        if array is not None:
            assert gradient.shape == array.shape
            assert gradient.dtype == array.dtype
            assert all(value.dtype == array.dtype for value in values)


def _same(first: list | tuple, second: list | tuple, message: str) -> None:
    for a, b in zip(first, second, strict=True):
        if a is not None:
            np.testing.assert_array_equal(a, b, err_msg=message)


def _upstream(rng: np.random.Generator, value: np.ndarray) -> np.ndarray:
    return _frozen(strategies.normal(rng, np.shape(value), value.dtype))


def _frozen(array: np.ndarray) -> np.ndarray:
    array = np.array(array)
    array.flags.writeable = False
    return array


def _name(op: ModuleType) -> str:
    return op.__name__.rsplit(".", 1)[-1]


def _listed(y: np.ndarray | tuple) -> list:
    return list(y) if isinstance(y, tuple) else [y]


def _like(y: np.ndarray | tuple, gradients: list) -> np.ndarray | tuple:
    return tuple(gradients) if isinstance(y, tuple) else gradients[0]
