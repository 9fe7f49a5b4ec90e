"""The suite catches every wrong version in tests/mutants/, and by comparing, not by crashing."""

from __future__ import annotations

import functools
import importlib.util
import pkgutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import settings

from refimpl.models import binary, replay
from tests import conftest, oracles
from tests.mutants import CATALOGUE, Mutant, exports, models, ops

FOLDER = Path(__file__).parent


@functools.cache
def copy_of(file: str) -> ModuleType:
    """A test file once more, with the profile that neither shrinks nor remembers a failure."""
    spec = importlib.util.spec_from_file_location(f"tests.copy_of_{file}", FOLDER / f"{file}.py")
    module = importlib.util.module_from_spec(spec)
    settings.load_profile("mutants")
    try:
        spec.loader.exec_module(module)
    finally:
        settings.load_profile(conftest.PROFILE)
    return module


def its_test(mutant: Mutant) -> Callable[[], None]:
    file, _, function = mutant.test.partition(".")
    return functools.partial(getattr(copy_of(file), function), **mutant.arguments)


@pytest.fixture(autouse=True)
def own_table_of_disagreements(monkeypatch):
    """What the wrong versions are wrong by does not belong into the table of this run."""
    monkeypatch.setattr(oracles, "WORST", {})


@pytest.fixture
def own_lists():
    """What walks lists remembers them: right code and wrong code each make their own."""
    remembered = binary.network, replay.taps
    yield lambda: [lists.cache_clear() for lists in remembered]
    for lists in remembered:
        lists.cache_clear()


PASSED: set[str] = set()  # tests, with their arguments, that pass on the right code


@pytest.mark.parametrize("name", CATALOGUE)
def test_mutant_is_caught(name, own_lists, monkeypatch):
    mutant = CATALOGUE[name]
    test, key = its_test(mutant), f"{mutant.test} {mutant.arguments}"
    if key not in PASSED:
        test()
        PASSED.add(key)
    own_lists()
    owner = pkgutil.resolve_name(mutant.module)
    wrong = mutant.make(getattr(owner, mutant.attribute))
    monkeypatch.setattr(owner, mutant.attribute, wrong)
    with pytest.raises(AssertionError):
        test()


def test_there_are_enough_of_ops_and_of_networks():
    for module, enough in ((ops, 75), (models, 45), (exports, 8)):
        registered = [m for m in CATALOGUE.values() if m.make.__module__ == module.__name__]
        assert len(registered) >= enough
