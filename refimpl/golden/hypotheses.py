"""Which known mistake gives the numbers that a candidate dumped [SPEC 8.2].

The stretch between the first divergence and what was dumped before it is run again with each known
mistake of its sites, made at all of them that have it and at each alone. A mistake explains a tap
if what it gives is the candidate's, within the bound; the one that leaves least of the difference
is the cause. Flips are as good as a signature: of bits and whole numbers nearly all must be met.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from refimpl.golden import record
from refimpl.golden.bounds import Reference
from refimpl.golden.mistakes import Mistake, Site
from refimpl.golden.mistakes.catalogue import TIERS
from refimpl.golden.stretch import Stretch

EVIDENCE = {"bit": 8, "int": 3, "real": 3}  # differing entries
LEFT = 0.05  # of the entries that differ, that a cause may leave
FEW = 0.01  # of all entries of a real, that may lie beyond the bound: rounding flips a bit
TIGHT = 1e-3  # of the difference: nothing simpler is looked for beyond it
SPREAD = 4.0  # times the tolerance of all: an element has the terms of another one
ALIKE = 4.0  # times as much left: no better, no worse
ROUNDING = 1e-12
SECONDS = 4.0
LARGE = 2_000_000  # parameters of a network whose search may take longer
SECONDS_OF_LARGE = 50.0
OTHERS = 6  # taps behind the first divergence that decide between equals
EQUALS = 2  # that are named beside the cause


class Hypothesis(NamedTuple):
    """A mistake made at some sites."""

    sites: Mapping[tuple[str, str], Mistake]
    words: str
    rank: int
    order: int

    @property
    def edits(self) -> dict:
        return {key: mistake.edit for key, mistake in self.sites.items()}

    @property
    def nodes(self) -> set[str]:
        return {node for node, _ in self.sites}


class Target(NamedTuple):
    """The tap that is to be explained."""

    name: str
    kind: str
    found: np.ndarray  # the candidate's, logical
    tolerance: np.ndarray | None  # of every element of a real


class Explanation(NamedTuple):
    hypothesis: Hypothesis
    left: float  # of the difference, as a share
    value: np.ndarray


class Search:
    """Of the cause of one tap."""

    def __init__(
        self,
        reference: Reference,
        given: Mapping[str, np.ndarray],
        target: Target,
        seconds: float | None = None,
    ):
        self.reference, self.given, self.target = reference, given, target
        # at first what the reference has in front of the tap's own operation
        near = {n: reference.steps[n].value for n in reference.steps[target.name].inputs}
        self.stretches = [Stretch(reference, {**near, **given}, target.name)]
        if not near.keys() <= given.keys():
            self.stretches.append(Stretch(reference, given, target.name))
        size = sum(p.size for p in reference.params.values())
        allowed = SECONDS_OF_LARGE if size > LARGE else SECONDS
        self.deadline = time.monotonic() + (allowed if seconds is None else seconds)

    def cause(self) -> str | None:
        """In words; None where no known mistake explains the tap."""
        for self.stretch in self.stretches:
            found = self._cause()
            if found is not None:
                return found
        return None

    def _cause(self) -> str | None:
        if not self._has_evidence():
            return None
        found = self._best(list(self._explanations()))
        if not found:
            return None
        best, *equals = self._decided(found)
        words = self._spoken(best)
        others = list(dict.fromkeys(self._spoken(e) for e in equals))
        others = [other for other in others if other != words][:EQUALS]
        if others:
            words += "; equally well explained by: " + "; or ".join(others)
        return words

    def _has_evidence(self) -> bool:
        right, found = self.stretch.right, self.target.found
        if not np.isfinite(found).all() or not np.isfinite(right).all():
            return False
        return int((right != found).sum()) >= min(EVIDENCE[self.target.kind], found.size)

    # --- one after the other ----------------------------------------------------------------------

    def _explanations(self) -> Iterator[Explanation]:
        """Tier after tier; behind one that explains the numbers nothing is looked for."""
        order = 0
        for tier in TIERS:
            tight = False
            for hypothesis in hypotheses(self.stretch.sites.values(), tier, order):
                order += 1
                if time.monotonic() > self.deadline:
                    return
                with np.errstate(all="ignore"):
                    value = self.stretch.run(hypothesis.edits)
                    left = None if value is None else self._left(value)
                if left is not None:
                    yield Explanation(hypothesis, left, value)
                    tight = tight or left <= TIGHT
            if tight:
                return

    def _left(self, value: np.ndarray) -> float | None:
        """The share of the difference that a value leaves; None where it explains nothing."""
        right, found = self.stretch.right, self.target.found
        if self.target.kind != "real":
            left, whole = int((value != found).sum()), int((right != found).sum())
            return left / whole if left <= LEFT * whole else None
        if not np.isfinite(value).all():
            return None
        left, whole = np.abs(value - found), _rms(right - found)
        beyond = left > allowed(value, right, self.target.tolerance)
        if beyond.mean() > FEW or _rms(left) > LEFT * min(whole, _rms(found)):
            return None
        return _rms(left) / whole

    # --- the best ---------------------------------------------------------------------------------

    def _best(self, found: Sequence[Explanation]) -> list[Explanation]:
        """Those that leave least, the likeliest first; of one node that give the same, one."""
        if not found:
            return []
        least = min(explanation.left for explanation in found)
        equal = [e for e in found if e.left <= ALIKE * least + ROUNDING]
        equal.sort(key=lambda e: (e.hypothesis.rank, len(e.hypothesis.sites), e.hypothesis.order))
        kept: list[Explanation] = []
        for e in equal:
            if not any(
                e.hypothesis.nodes & k.hypothesis.nodes and np.array_equal(e.value, k.value)
                for k in kept
            ):
                kept.append(e)
        return kept

    def _decided(self, found: list[Explanation]) -> list[Explanation]:
        """Of equals those that also meet what was dumped behind the tap."""
        if len(found) == 1:
            return found
        distance = {id(e): 0.0 for e in found}
        for stretch, there in self._behind(found):
            with np.errstate(all="ignore"):
                for e in found:
                    own = {k: m for k, m in e.hypothesis.edits.items() if k in stretch.sites}
                    value = stretch.run(own) if own else None
                    distance[id(e)] += _distance(stretch.right if value is None else value, there)
        least = min(distance.values())
        return [e for e in found if distance[id(e)] <= ALIKE * least + TIGHT]

    def _behind(self, found: Sequence[Explanation]) -> Iterator[tuple[Stretch, np.ndarray]]:
        """Dumped taps behind the target that mistakes concern, with the candidate's values."""
        names, left = list(self.reference.steps), OTHERS
        nodes = set().union(*(e.hypothesis.nodes for e in found))
        for name in names[names.index(self.target.name) + 1 :]:
            if left == 0 or time.monotonic() > self.deadline:
                return
            if name in self.given:
                stretch = Stretch(self.reference, self.given, name)
                if not nodes.isdisjoint(node for node, _ in stretch.sites):
                    yield stretch, self.given[name]
                    left -= 1

    def _spoken(self, explanation: Explanation) -> str:
        """The words; with the place, where there are several in the stretch."""
        words, nodes = explanation.hypothesis.words, explanation.hypothesis.nodes
        (first, what), *_ = explanation.hypothesis.sites
        if len({node for node, _ in self.stretch.sites}) == 1 or first in words:
            return words
        if len(nodes) > 1:
            return f"{words}, in {len(nodes)} places, the first of them {first}"
        back = "what comes back through " if what.startswith("d.") else ""
        return f"{words}, in {back}{first}"


def hypotheses(sites: Iterator[Site], tier: Sequence, order: int = 0) -> Iterator[Hypothesis]:
    """Mistakes of some sites: each at all that have it, then at the sites of a single node."""
    everywhere: dict[tuple, dict[tuple[str, str], Mistake]] = {}
    alone: dict[tuple, dict[tuple[str, str], Mistake]] = {}
    for site in sites:
        back = site.what if site.is_backward else ""
        for family in tier:
            for mistake in family(site):
                sort = (site.node.op, back, mistake.sort)
                everywhere.setdefault(sort, {})[site.key] = mistake
                alone.setdefault((site.node.name, *sort), {})[site.key] = mistake
    for group in (everywhere, alone):
        for key, found in group.items():
            nodes = {node for node, _ in found}
            if group is alone and len(everywhere[key[1:]]) == len(found):
                continue  # it is all of them
            first = next(iter(found.values()))
            words = first.words if len(nodes) == 1 else first.sort
            yield Hypothesis(found, words, first.rank, order)
            order += 1


def allowed(value: np.ndarray, right: np.ndarray, tolerance: np.ndarray) -> np.ndarray:
    """How far a candidate may be from a wrong value, whose terms may be larger than the right's."""
    growth = 2 * max(1.0, _rms(value) / max(_rms(right), np.finfo(float).tiny))
    return growth * np.maximum(tolerance, SPREAD * _rms(tolerance))


def _distance(value: np.ndarray, found: np.ndarray) -> float:
    if found.dtype.kind != "f":
        return float((value != found).mean())
    return _rms(value - found) / max(_rms(found), np.finfo(float).tiny)


def _rms(array: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(array)))) if array.size else 0.0


def target_of(verdict, reference: Reference) -> Target:
    """A verdict of a comparison as what is to be explained."""
    kind = record.kind_of(reference.steps[verdict.name].value)
    wide = {"bit": bool, "int": np.int64, "real": np.float64}[kind]
    return Target(verdict.name, kind, np.asarray(verdict.candidate).astype(wide), verdict.tolerance)
