"""The cause of a mistake is named, from all taps or few; right candidates are given none.

`python -m tests.cause_table` is the whole of it; here is a part of each list.
"""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest

from refimpl.golden import bounds, compare, diagnose, hypotheses, mistakes
from refimpl.golden.mistakes import catalogue
from refimpl.golden.mistakes.declared import DECLARED, NUMBERS
from tests import cause_table, networks
from tests.cause_table import Case
from tests.injected_bugs_ops import BUGS, bundle, of_mutants, taps

OPS = {**BUGS, **of_mutants()}
SPARSE = (
    ("RPReLU: ReLU", "bits"),
    ("scores: divided by d", "bits"),
    ("Haar: zeros beyond the border", "bits"),
    ("class token last, its position, too", "bits"),
    ("windows: never shifted", "shell"),
    ("GELU: quick", "shell"),
    ("LayerNorm: over the tokens", "shell"),
    ("softmax: base 2", "shell"),
)


def case(name: str) -> Case:
    bug = OPS[name]
    return Case(name, bug.network, bug.cause, bug.is_backward, taps(bundle(bug.network), bug))


@pytest.mark.parametrize("name", list(OPS)[::4])
def test_named_from_all_taps(name: str) -> None:
    found = case(name)
    first, cause = cause_table.cause_of(bundle(found.network), found.port)
    assert first
    assert cause_table.verdict(found, cause) == "named", cause


@pytest.mark.parametrize("name, way", SPARSE)
def test_named_from_few_taps(name: str, way: str) -> None:
    found = case(name)
    first, cause = cause_table.cause_of(bundle(found.network), cause_table.dumped(found, way))
    assert first
    assert cause_table.verdict(found, cause) == "named", cause


def test_right_candidates_have_no_cause() -> None:
    """Of the reference, PyTorch and exported C alike."""
    assert cause_table.false_causes(12) == []


@pytest.mark.parametrize("network", ["react", "clip", "activations"])
def test_the_reference_dumps_the_gradient_of_a_bit_that_it_goes_on_with(network: str) -> None:
    """Added up in another order it is another one where it cancels, and a right port would fail."""
    steps = bundle(network).reference.steps
    behind = [name for name in steps if name.startswith("grads/") and name.endswith(".z")]
    assert len(behind) >= 8
    for name in behind:
        follows = steps[name].op(*(steps[read].value for read in steps[name].inputs))
        np.testing.assert_array_equal(follows, steps[name].value, err_msg=name)


def test_no_time_no_cause() -> None:
    found = case("softmax: base 2")
    reference = bundle(found.network).reference
    name = "blocks.0.attn.prob"
    target = hypotheses.Target(name, "real", found.port[name], np.full((1,), 1e-12))
    given = {n: v for n, v in found.port.items() if v.dtype.kind == "f"}
    assert "base 2" in str(hypotheses.Search(reference, given, target).cause())
    assert hypotheses.Search(reference, given, target, seconds=0).cause() is None


# --- what is declared -----------------------------------------------------------------------------

KINDS = ("didb", "differences", "deit", "swin-didb", "fpn", "batch")


@pytest.mark.parametrize("network", KINDS)
def test_a_mistake_is_declared_once(network: str) -> None:
    """Two of one name at one site would hide each other."""
    for site in catalogue.sites(bundle(network).reference):
        sorts = [mistake.sort for mistake in mistakes.of_site(site)]
        assert len(sorts) == len(set(sorts)), (site.key, [s for s in sorts if sorts.count(s) > 1])


def test_every_declared_operation_is_one_of_a_network() -> None:
    found = {
        (site.node.op, site.what)
        for network in (*KINDS, "activations", "linear")
        for site in catalogue.sites(bundle(network).reference)
    }
    # parameters are resized for images of another size alone
    declared = {(op, what) for op, what in DECLARED if what != NUMBERS}
    assert declared - found <= {("resize_tokens", "output"), ("binary_linear", "d.bit")}


def test_known_mistakes_change_something() -> None:
    """What a port with a known mistake dumps: other values of the right shapes."""
    reference = bundle("react").reference
    known = list(mistakes.known(reference))
    shown = 0
    for one in known[:: len(known) // 25]:
        values = one.taps()
        if values is None:  # it is impossible here
            continue
        assert values.keys() == reference.steps.keys()
        right = {name: step.value for name, step in reference.steps.items()}
        different = [n for n, v in values.items() if not np.array_equal(v, right[n])]
        assert all(values[n].shape == right[n].shape for n in different)
        shown += bool(different)
    assert shown > 12


# --- other names ----------------------------------------------------------------------------------


def as_bundle(network: networks.Network) -> SimpleNamespace:
    """What a comparison asks of a bundle."""
    reference = bounds.reference(network.model, network.params, network.images, network.dlogits)
    return SimpleNamespace(
        path="bundle",
        entries={},
        manifest={"free_margin": bounds.FREE_MARGIN},
        input=network.images,
        model=network.model,
        reference=reference,
        retrace=lambda: dict(reference.steps),
    )


def judged(found: SimpleNamespace, port: dict[str, np.ndarray], mode: str) -> tuple:
    comparison = compare(found, port, mode=mode)
    causes = diagnose.causes(comparison, found, comparison.taps)
    return comparison.verdicts, causes


@pytest.mark.parametrize("mode", ["free", "replay"])
@pytest.mark.parametrize(
    "config",
    [networks.small(**networks.DIDB, depth=1), networks.swin(block="real", norm_eps=1e-6)],
    ids=["didb", "swin"],
)
def test_nothing_is_decided_by_a_name(config, mode: str) -> None:
    """Verdicts, bounds and causes of a network where nothing has its name."""
    network = networks.make(config, 5, batch=2)
    other, new = networks.renamed(network, 5)
    ours, theirs = as_bundle(network), as_bundle(other)
    known = [one for one in mistakes.known(ours.reference) if one.op in ("layer_norm", "matmul")]
    for one in known[:: len(known) // 2]:
        port = {name: value for name, value in one.taps().items() if name != "input"}
        verdicts, causes = judged(ours, port, mode)
        renamed, found = judged(theirs, {new(name): value for name, value in port.items()}, mode)
        assert [new(verdict.name) for verdict in verdicts] == [v.name for v in renamed]
        for a, b in zip(verdicts, renamed, strict=True):
            assert (a.verdict, a.differing, a.hard) == (b.verdict, b.differing, b.hard), a.name
            np.testing.assert_array_equal(a.tolerance, b.tolerance)
        spoken = {new(name): _renamed(words, new) for name, words in causes.items()}
        assert found == spoken


def _renamed(words: str, new) -> str:
    """The names in a cause by their new ones; "tokens" is a word, too."""
    dotted = r"\b(blocks|merges|norm|head|patch_embed)(\.\w+)+|\btokens(?= left out)"
    return re.sub(dotted, lambda match: new(match[0]), words)
