"""How the functions of a run are put together, and what a listener sees of it."""

from __future__ import annotations

from collections.abc import Callable

from numba import types
from numba.extending import overload

FINE = -1  # what a part returns, or the row of the table in which NaN or infinity entered a sign


def extra(function: Callable) -> Callable:
    """Part of networks with windows or a decoder alone: for others nothing of it is compiled.

    It is called as function(listener, plan, …), and returns a status or nothing.
    """

    @overload(function, strict=False)
    def choose(listener, plan, *others):
        without = plan.held[plan.place("extras")] == types.none
        return _nothing if without else function

    function.extra = True
    return function


def is_extra(function: Callable) -> bool:
    """Whether it is such a part."""
    return hasattr(function, "extra")


def _nothing(listener, plan, *others):
    return FINE


def keep(listener: Callable | None, what: str, row: int, head: int, tile: int, values, at: int):
    """Show a listener values that begin at a place of an array; nothing at all in compiled code.

    row: of the table; of what is a block's own, its last.
    """
    if listener is not None:
        listener(what, row, head, tile, values, at)


@overload(keep)
def _keep_nothing(listener, what, row, head, tile, values, at):
    return lambda listener, what, row, head, tile, values, at: None


def shows(listener: Callable | None) -> bool:
    """Whether a listener wants to see every value, also those that nobody else reads."""
    return listener is not None


@overload(shows)
def _shows_nothing(listener):
    return lambda listener: False
