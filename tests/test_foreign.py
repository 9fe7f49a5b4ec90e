"""A port written from SPEC.md alone passes; the mistakes of somebody else are found and named."""

import csv

import numpy as np
import pytest

from refimpl import golden
from refimpl.golden import diagnose
from tests import foreign_mistakes as mistakes
from tests import foreign_variants as variants
from tests.foreign_judged import BESIDE, FALSE, FIRST_TRY, JUDGED, NONE, RIGHT, UNSEEN
from tests.foreign_port import Port, read

BUNDLES = sorted(folder.name for folder in mistakes.SHIPPED.iterdir() if folder.is_dir())

# `python -m tests.foreign_variants` takes every bundle, in both modes
SMALLEST = ("small_adversarial", "small_batch", "small_wide", "small_deit")


@pytest.mark.parametrize("name", BUNDLES)
def test_the_port_passes_every_shipped_bundle(name):
    folder = mistakes.SHIPPED / name
    bundle, dumped = golden.read(folder), Port(read(folder)).run().dump()
    for mode in ("replay",) if "micro" in name else ("free", "replay"):
        comparison = golden.compare(bundle, dumped, mode=mode, complete=True)
        assert comparison.outcome == "PASS"
        assert not diagnose.causes(comparison, bundle, comparison.taps)


def test_every_mistake_is_judged_once_and_has_a_truth_of_its_own():
    names = [mistake.name for mistake in mistakes.MISTAKES]
    assert len(set(names)) == len({m.truth for m in mistakes.MISTAKES}) == len(names) >= 200
    assert set(JUDGED) == set(names)
    assert sum(map(len, (RIGHT, BESIDE, FALSE, NONE, UNSEEN))) == len(names)
    assert len(RIGHT) >= 0.95 * (len(names) - len(UNSEEN)) and not FALSE and len(BESIDE) <= 2
    tried = [name for found in FIRST_TRY.values() for name in found]
    assert set(tried) <= set(names) and len(tried) == len(set(tried))


@pytest.mark.parametrize("name", sorted({mistake.bundle for mistake in mistakes.MISTAKES}))
def test_a_mistake_is_found_where_it_is_and_named_as_well_as_it_was(name):
    right = Port(read(mistakes.SHIPPED / name)).run().dump()
    for found in mistakes.find([m for m in mistakes.MISTAKES if m.bundle == name]):
        mistake = found.mistake
        assert mistake.first == first_other(right, found.dumped, name), mistake.name
        if mistake.name in UNSEEN:  # at the bound: where exp rounds otherwise it may be beyond
            seen = (found.outcome, found.first)
            assert seen in (("PASS", None), ("FAIL", mistake.first)), mistake.name
            continue
        assert found.first == mistake.first, mistake.name
        if mistake.name in RIGHT:
            assert mistakes.right(found), (mistake.name, found.cause)


def first_other(right, wrong, bundle):
    """The first tap, in order of computation, of which any number is another one."""
    with open(mistakes.SHIPPED / bundle / "index.csv", newline="", encoding="utf-8") as file:
        stored = [row["name"] for row in csv.DictReader(file)]
    names = stored if set(right) == set(stored) else right  # where not all is stored: the port's
    return next(
        name for name in names if name in wrong and not np.array_equal(right[name], wrong[name])
    )


@pytest.mark.parametrize("number", range(len(variants.VARIANTS)))
def test_no_cause_is_given_for_a_right_port(number):
    bundle = SMALLEST[number % len(SMALLEST)]
    mode = ("free", "replay")[number // len(SMALLEST) % 2]
    (found,) = variants.find([variants.VARIANTS[number]], bundle, [mode])
    assert (found.outcome, found.first, found.causes) == ("PASS", None, {})
