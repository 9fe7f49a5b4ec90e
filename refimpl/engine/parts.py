"""How the functions of a run are put together, and what a listener sees of it."""

from __future__ import annotations

from collections.abc import Callable

from numba.extending import overload, register_jitable


def pasted(function: Callable) -> Callable:
    """Compiled as a part of its caller, for what runs for every tile.

    Plan and work are some 270 numbers: to hand them on takes as long as a kernel.
    """
    return register_jitable(inline="always")(function)


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
