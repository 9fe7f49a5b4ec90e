"""Where the expected values come from, and how far we were from them at worst."""

from __future__ import annotations

import importlib
import importlib.util
import os
from types import ModuleType

import pytest

# Kind of comparison -> largest disagreement seen in this run and where; printed at the end of it.
WORST: dict[str, tuple[float, str]] = {}


def note(kind: str, value: float, where: str = "") -> None:
    """Remember a disagreement for the table that is printed after the tests."""
    WORST[kind] = max(WORST.get(kind, (0.0, "")), (float(value), where))


def require(package: str, module: str | None = None) -> ModuleType:
    """`module` (or `package` itself); skips the test where `package` is not installed.

    With REFIMPL_REQUIRE_TORCH=1, as in CI, a missing oracle is a failure: a run that compared
    nothing must not be green.
    """
    if importlib.util.find_spec(package) is None:
        message = f'{package} is not installed; pip install -e ".[test]" brings it'
        if os.environ.get("REFIMPL_REQUIRE_TORCH") == "1":
            pytest.fail(message)
        pytest.skip(message)
    return importlib.import_module(module or package)
