"""How far the compilation of a function has come: what it consists of, and what is done of it.

What a function takes in is found by the names in its code. Each of these has a share: its own code,
and something for all that it takes in, which LLVM goes through once more with it.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Iterator

from numba.core import event

AGAIN = 6  # code that is taken in costs a sixth of what it did by itself


def shares(
    functions: Iterable[Callable], left_out: Callable[[Callable], bool] = lambda function: False
) -> dict[Callable, int]:
    """Each function that is compiled for these, itself included, and its part of the work."""
    inside: dict[Callable, set[Callable]] = {}
    for function in functions:
        _collect(_plain(function), left_out, inside)
    return {
        function: _size(function) + sum(map(_size, parts)) // AGAIN
        for function, parts in inside.items()
    }


def _collect(
    function: Callable, left_out: Callable[[Callable], bool], inside: dict[Callable, set[Callable]]
) -> set[Callable]:
    """All that a function takes in, entered into `inside` for it and for each of these."""
    if function not in inside:
        inside[function] = set()
        for part in _called(function):
            if part is not function and not left_out(part):
                inside[function] |= {part} | _collect(part, left_out, inside)
    return inside[function]


def _called(function: Callable) -> Iterator[Callable]:
    """The compiled functions that the code of a function names, also as MODULE.NAME."""
    names, known = function.__code__.co_names, function.__globals__
    found = [known[name] for name in names if name in known]
    for module in [value for value in found if isinstance(value, types.ModuleType)]:
        found += [getattr(module, name) for name in names if hasattr(module, name)]
    for value in map(_plain, found):
        if isinstance(value, types.FunctionType) and value.__module__.startswith("refimpl."):
            yield value


def _plain(value: object) -> object:
    """The function as it is written, of a kernel."""
    return getattr(value, "__wrapped__", value)


def _size(function: Callable) -> int:
    return len(function.__code__.co_code)


class Count(event.Listener):
    """Tells `progress` the share of each function when it is compiled, and the rest at the end.

    >>> with Count({}, print) as count: pass
    0
    """

    def __init__(self, shares: dict[Callable, int], progress: Callable[[int], object]):
        self._left = dict(shares)
        self._progress = progress
        self.compiled = 0  # functions of refimpl

    def on_start(self, event: event.Event) -> None:
        """A function is not done when it begins."""

    def on_end(self, event: event.Event) -> None:
        function = event.data["dispatcher"].py_func
        self.compiled += function.__module__.startswith("refimpl.")
        if function in self._left:
            self._progress(self._left.pop(function))

    def __enter__(self) -> Count:
        event.register("numba:compile", self)
        return self

    def __exit__(self, *raised: object) -> None:
        event.unregister("numba:compile", self)
        self._progress(sum(self._left.values()))
