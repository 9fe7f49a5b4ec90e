"""The examples in docstrings are true, and every op has one."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import refimpl
from refimpl import ops

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(refimpl.__path__, "refimpl.")
    if not module.name.endswith("__main__")
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(name)
    failed, attempted = doctest.testmod(module)
    assert failed == 0
    if name in {f"refimpl.ops.{op}" for op in ops.__all__}:
        assert attempted, f"{name}: show one example that the likeliest mistake would break"
