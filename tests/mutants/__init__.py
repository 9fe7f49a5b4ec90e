"""Wrong versions of the code. The suite runs itself against each one and must fail every time.

A mutant is a function that takes the right function and returns a wrong one. Its decorator names
the place it is put in and the test that must notice; its docstring says what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple


class Mutant(NamedTuple):
    module: str  # where the wrong version goes: refimpl.ops.sign, or a class in a module
    attribute: str  # forward
    make: Callable[[Callable], Callable]  # the right function -> the wrong one
    test: str  # the one that must fail: test_sign.test_against_torch
    arguments: dict[str, Any]  # of the test, where it is parametrized


CATALOGUE: dict[str, Mutant] = {}


def mutant(target: str, test: str, **arguments: Any) -> Callable:
    """Register a mutant of `target`, a dotted name below refimpl, that `test` must catch."""
    module, _, attribute = target.rpartition(".")

    def register(make: Callable[[Callable], Callable]) -> Callable[[Callable], Callable]:
        name = make.__name__
        assert name not in CATALOGUE, f"two mutants are called {name}"
        assert make.__doc__, f"{name}: say what is wrong"
        CATALOGUE[name] = Mutant(f"refimpl.{module}", attribute, make, test, arguments)
        return make

    return register
