"""A comparison names the operation that is wrong, and the cause where it leaves a fingerprint.

The tables are the documentation: tests/injected_bugs.py and tests/injected_bugs_python.py.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import pytest

from refimpl import golden
from refimpl.golden import candidate, diagnose
from tests import c_port, injected_bugs_python, sparse_dumps
from tests.cause_table import wrong_port
from tests.injected_bugs import IN_C
from tests.injected_bugs_python import IN_PYTHON


@functools.cache
def read(name: str) -> golden.Bundle:
    return golden.read(c_port.GOLDEN / name)


def assert_named(bundle: golden.Bundle, port: Mapping[str, Any], tap: str, cause: str | None):
    """The first divergence in replay is this tap, and the cause begins with these words."""
    comparison = golden.compare(bundle, port, mode="replay", fail_fast=True)
    assert comparison.first is not None, "nothing was seen"
    assert comparison.first.name == tap
    found = diagnose.cause(comparison.first, bundle, port)
    assert found is None if cause is None else str(found).startswith(cause), found


def assert_not_hidden(bundle: golden.Bundle, port: Mapping[str, Any]):
    """Nor does any sparse dump of it pass, where something that was dumped is visibly wrong."""
    for name, subset in sparse_dumps.subsets(bundle, seed=1):
        dump = {tap: port[tap] for tap in subset if tap in port}
        if dump and sparse_dumps.shows(bundle, dump):
            # a rule at the threshold shows in ties, which --strict alone fails
            assert not golden.compare(bundle, dump, mode="replay", strict=True).passed, name


@c_port.needs_cc
@pytest.mark.parametrize("name", IN_C)
def test_in_c(tmp_path, name):
    bug = IN_C[name]
    bundle = read(bug.bundle)
    port = candidate.read(wrong_port(bug.right, bug.wrong, bundle.path, tmp_path))
    assert_named(bundle, port, f"blocks.0.{bug.tap}", bug.cause)
    assert_not_hidden(bundle, port)


@pytest.mark.parametrize("name", IN_PYTHON)
def test_in_python(name):
    bug = IN_PYTHON[name]
    bundle = read(bug.bundle)
    port = injected_bugs_python.taps(bundle, bug)
    assert_named(bundle, port, bug.tap, bug.cause)
    assert_not_hidden(bundle, port)


@pytest.mark.parametrize("name", sorted({bug.bundle for bug in IN_PYTHON.values()}))
def test_a_right_port_has_no_divergence(name):
    bundle, nothing_wrong = read(name), next(iter(IN_PYTHON.values()))._replace(pattern="")
    port = injected_bugs_python.taps(bundle, nothing_wrong)
    assert golden.compare(bundle, port, mode="replay").first is None
