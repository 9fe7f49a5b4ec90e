"""How a notebook judges an answer: a number by a check, an operation as `refimpl` judges a port.

What the reader writes takes the place of an operation of `refimpl.ops` in a whole network, with a
golden bundle's weights and input. Every value of its forward and backward is then a candidate for
`golden compare`, which names the first tap that is wrong, and often the mistake.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from refimpl import golden, ops
from refimpl.golden import diagnose, text

BUNDLES = Path(str(resources.files("refimpl.weights"))) / "golden"
BUNDLE = "small_tie_free"  # small, and every correct port has the same bits on it
NOTHING = "Not answered yet: write it in the cell above, run that, then this one."
RIGHT = "Right."


class Wrong(Exception):
    """What the reader's function gives cannot even be compared."""


def verdict(answer: Any, is_right: Callable[[np.ndarray], bool]) -> str:
    """Say what to think of numbers; None is no answer yet."""
    if answer is None:
        return NOTHING
    try:
        numbers = np.array(answer, float)
    except (TypeError, ValueError):
        return f"Not yet: {answer!r} is no number and no array of numbers."
    try:
        return RIGHT if is_right(numbers) else "Not yet."
    except ValueError:  # so many numbers cannot even be compared
        return f"Not yet: expected something else than {_described(numbers)}."


def verdict_of_words(answer: Any, is_right: Callable[[str], bool]) -> str:
    """Say the same of an answer in words."""
    if answer is None:
        return NOTHING
    if not isinstance(answer, str):
        return f"Not yet: {answer!r} is no text."
    return RIGHT if is_right(answer) else "Not yet."


def judge(op: str, *, forward: Callable | None = None, backward: Callable | None = None) -> str:
    """Put the reader's forward or backward in the place of an operation, and compare every tap.

    forward(*inputs, **attributes) -> output or outputs; backward(dy, cache) -> gradients in the
    order of the array arguments, as in `refimpl.ops`.
    """
    try:
        return judge_taps(_taps(op, forward, backward))
    except NotImplementedError:
        return NOTHING
    except Wrong as error:
        return f"Not yet. {error}"


def judge_taps(taps: Mapping[str, Any], bundle: str = BUNDLE) -> str:
    """Compare values by the names of taps with a shipped bundle, each on its own inputs."""
    found = golden.compare(_read(bundle), dict(taps), mode="replay")
    if found.outcome == "PASS":
        return f"{RIGHT} PASS: {found.judged} taps judged, none fails."
    causes = diagnose.causes(found, _read(bundle), taps)
    return "Not yet. " + text.short(found, causes, len(taps)).strip()


@functools.lru_cache
def _read(bundle: str) -> golden.store.Bundle:
    return golden.read(BUNDLES / bundle)


def _taps(op: str, forward: Callable | None, backward: Callable | None) -> dict[str, Any]:
    """Every value of a forward and backward with the reader's operation in it."""
    bundle, taps = _read(BUNDLE), {}

    def listen(name: str, value: np.ndarray, *how: Any) -> None:
        taps[name] = value

    backend = SimpleNamespace(**{name: getattr(ops, name) for name in dir(ops) if name[0] != "_"})
    setattr(backend, op, _with(getattr(ops, op), forward, backward))
    _, cache = bundle.model.forward(bundle.params, bundle.input, tap=listen, backend=backend)
    bundle.model.backward(bundle.value("grads/logits"), cache, tap=listen)
    return {name: value for name, value in taps.items() if name in bundle.entries}


def _with(module: Any, forward: Callable | None, backward: Callable | None) -> SimpleNamespace:
    """An operation with the reader's functions in it, the shapes of what they give checked."""

    def both(*args: Any, **attributes: Any) -> tuple[Any, Any]:
        y, cache = module.forward(*args, **attributes)
        return (y if forward is None else _like(y, forward(*args, **attributes))), cache

    def back(dy: Any, cache: Any) -> tuple:
        expected = module.backward(dy, cache)
        if backward is None:
            return expected
        found = backward(dy, cache)
        return _like(expected, found if isinstance(found, tuple) else (found,))

    return SimpleNamespace(forward=both, backward=back)


def _like(expected: Any, found: Any) -> Any:
    """What was given, in the types that were expected; Wrong where it is of another kind."""
    if expected is None:
        return None
    if found is None:
        raise NotImplementedError
    if isinstance(expected, tuple):
        if not isinstance(found, tuple) or len(found) != len(expected):
            raise Wrong(f"It gives {_described(found)}; expected {_described(expected)}.")
        return tuple(_like(*pair) for pair in zip(expected, found, strict=True))
    if isinstance(found, tuple) or np.shape(found) != expected.shape:
        raise Wrong(f"It gives {_described(found)}; expected {_described(expected)}.")
    return np.asarray(found, expected.dtype)


def _described(value: Any) -> str:
    if isinstance(value, tuple):
        return f"{len(value)} arrays"
    return f"an array of shape {np.shape(value)}"
