"""Which known mistake gives the numbers that a candidate dumped [SPEC 8.2].

The stretch between the first divergence and what was dumped before it is run again with each known
mistake of its sites, made at all of them that have it and at each alone. A mistake explains a tap
if what it gives is the candidate's, within the bound; the one that leaves least of the difference
is the cause. Flips are as good as a signature: of bits and whole numbers nearly all must be met.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from refimpl.golden import coordinates, numbers, record
from refimpl.golden.bounds import Reference
from refimpl.golden.mistakes import Mistake, Site, general
from refimpl.golden.mistakes.catalogue import (
    BACK,
    CURVES,
    ELSEWHERE,
    OF_NUMBERS,
    OWN,
    PLACES,
    READS,
    of_site,
)
from refimpl.golden.mistakes.declared import Family
from refimpl.golden.stretch import Stretch

EVIDENCE = {"bit": 8, "int": 1, "real": 3}  # differing entries
ENOUGH_OF_ONE = {"real": 2}  # where a mistake has nothing to fit: each number is evidence
LEFT = 0.05  # of the entries that differ, that a cause may leave
FEW = 0.01  # of all entries of a real, that may lie beyond the bound: rounding flips a bit
TIGHT = 1e-3  # of the difference: nothing simpler is looked for beyond it
SPREAD = 4.0  # times the tolerance of all: an element has the terms of another one
COARSE = 1e-4  # of the largest of a row: beyond it a real is another one
ALIKE = 4.0  # times as much left: no better, no worse
ROUNDING = 1e-12
ROUNDED = 2.0**-20  # of the numbers: what a wrong value may be off where the right one has no sum
# Entries that differ, where a mistake is made in a part of the tap alone.
EVIDENCE_OF_PART = {"bit": 24, "int": 12, "real": 6}
SECONDS = 4.0
LARGE = 2_000_000  # parameters of a network whose search may take longer
SECONDS_OF_LARGE = 50.0
OTHERS = 8  # taps behind the first divergence that are asked, too, where it says too little
ENOUGH = 40  # entries that differ, to be sure of a cause
# What is tried, one after the other: mistakes, and whether at all sites alike or at one node.
ORDER = ((OWN, True), (READS, True), (READS, False), (OWN, False), (ELSEWHERE, True),
         (ELSEWHERE, False), (PLACES, True), (PLACES, False), (CURVES, True),
         (CURVES, False), (BACK, True), (BACK, False), (OF_NUMBERS, False))  # fmt: skip
UNSURE = (ELSEWHERE, CURVES, BACK)  # not tried on what the reference has, where all was not dumped
EQUALS = 2  # that are named beside the cause
VAGUE = 7  # rank from which on a mistake says little of its cause


class Hypothesis(NamedTuple):
    """A mistake made at some sites."""

    sites: Mapping[tuple[str, str], Mistake]
    words: str
    families: Sequence[Family]
    key: tuple[str, ...]  # of the group, see `_keys`
    order: int

    @property
    def edits(self) -> dict:
        return {key: mistake.edit for key, mistake in self.sites.items()}

    @property
    def rank(self) -> int:
        return next(iter(self.sites.values())).rank

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
    value: np.ndarray  # of a bit its z, which says more


class Search:
    """Of the cause of one tap."""

    def __init__(
        self,
        reference: Reference,
        given: Mapping[str, np.ndarray],
        target: Target,
        seconds: float | None = None,
    ):
        # the image and the gradient of the logits are everyone's
        start = {name: step.value for name, step in reference.steps.items() if step.op is None}
        given = {**start, **given}
        self.reference, self.given, self.target = reference, given, target
        # at first what the reference has in front of the tap's own operation
        near = _near(reference, given, target)
        self.stretches = [Stretch(reference, {**near, **given}, target.name)]
        self.is_assumed = not near.keys() <= given.keys()
        if self.is_assumed:
            self.stretches.append(Stretch(reference, given, target.name))
        size = sum(p.size for p in reference.params.values())
        allowed = SECONDS_OF_LARGE if size > LARGE else SECONDS
        self.rank = 0  # of what was found
        self.deadline = time.process_time() + (allowed if seconds is None else seconds)

    def cause(self) -> str | None:
        """In words; None where no known mistake explains the tap."""
        with threadpool_limits(1):  # the arrays are small: threads would wait for each other
            return self._first_cause()

    def _first_cause(self) -> str | None:
        for stretch in self.stretches:
            self.stretch, self.behind, self.partly = stretch, [], []
            self._part = None
            found = self._cause()
            if found is not None:
                return found
            self.is_assumed = False
        return None

    def _cause(self) -> str | None:
        right, found = self.stretch.right, self.target.found
        if not np.isfinite(found).all() or not np.isfinite(right).all():
            return None
        differing = int((right != found).sum())
        if not differing:
            return None
        needed = min(ENOUGH_OF_ONE.get(self.target.kind, EVIDENCE[self.target.kind]), found.size)
        is_thin = self.target.kind != "real" and len(self.stretch.steps) > 1
        if differing < max(needed, ENOUGH * is_thin):
            self.behind = list(self._asked())
            differing += sum(behind.differing for behind in self.behind)
        if differing < needed:
            return None
        if not self.behind and not self.is_assumed:
            self._part = self._differing_part()
        explanations = self._best(list(self._explanations()))
        if not explanations:
            return self._of_part() or self._of_numbers()
        best, *equals = self._decided(explanations)
        self.rank = best.hypothesis.rank
        words = self._spoken(best)
        others = list(dict.fromkeys(self._spoken(e) for e in equals))
        others = [other for other in others if other != words][:EQUALS]
        if others:
            words += "; equally well explained by: " + "; or ".join(others)
        return words

    def _differing_part(self) -> np.ndarray | None:
        """The part of the tap in which all that differs lies; None if it is the whole, or thin."""
        right, found = self.stretch.right, self.target.found
        if self.target.kind == "real":
            differs = np.abs(right - found) > allowed(right, right, self.target.tolerance)
        else:
            differs = right != found
        if differs.sum() < EVIDENCE_OF_PART[self.target.kind]:
            return None
        part = numbers.box(differs)
        return None if part.all() else part

    def _of_part(self) -> str | None:
        """A mistake that is made in a part of the tap alone."""
        if not self.partly:
            return None
        best = min(self.partly, key=lambda e: (e.hypothesis.rank, e.left))
        return f"{self._spoken(best)}, for {numbers.spoken_part(self._part, self._axes)} alone"

    def _of_numbers(self) -> str | None:
        """What the candidate's numbers say without a known mistake."""
        if self.is_assumed or self.behind:
            return None
        for words, change in general.OUTPUTS.items() if self.target.kind == "real" else ():
            with np.errstate(all="ignore"):
                value = change(self.stretch.right)
                if value is not None and self._left(value, None) is not None:
                    return words
        return numbers.cause(self.stretch, self.target, self._meets)

    def _meets(self, value: np.ndarray) -> bool:
        return self._left(value, None) is not None

    @functools.cached_property
    def _axes(self) -> tuple[str, ...]:
        step = self.reference.steps[self.target.name]
        return coordinates.axes(self.reference.network, step)

    # --- one after the other ----------------------------------------------------------------------

    def _explanations(self) -> Iterator[Explanation]:
        """What is likelier first; behind what explains the numbers nothing is looked for."""
        for order, (families, everywhere) in enumerate(ORDER):
            if self.is_assumed and families in UNSURE:
                continue
            tight: set[str] = set()  # nodes at which a mistake explains it: only equals are left,
            rank = len(ORDER)  # and what is likelier
            sites = self.stretch.sites.values()
            for hypothesis in hypotheses(sites, families, everywhere, order):
                if tight.isdisjoint(hypothesis.nodes) and tight and hypothesis.rank >= rank:
                    continue
                if time.process_time() > self.deadline:
                    return
                with np.errstate(all="ignore"):
                    changed = self.stretch.changed(hypothesis.edits)
                    value = changed.get(self.target.name)
                    left = None if value is None else self._left(value, hypothesis)
                    if left is None and value is not None and self._part is not None:
                        self._try_part(value, hypothesis)
                if left is not None:
                    yield Explanation(hypothesis, left, changed.get(self._z, value))
                    if left <= TIGHT:
                        tight |= hypothesis.nodes
                        rank = min(rank, hypothesis.rank)
            if tight:
                return

    def _try_part(self, value: np.ndarray, hypothesis: Hypothesis) -> None:
        value = np.where(self._part, value, self.stretch.right)
        left = self._left(value, hypothesis)
        if left is not None:
            self.partly.append(Explanation(hypothesis, left, value))

    @property
    def _z(self) -> str:
        return self.reference.steps[self.target.name].z if self.target.kind == "bit" else ""

    def _left(self, value: np.ndarray, hypothesis: Hypothesis) -> float | None:
        """The share of the difference that a value leaves; None where it explains nothing."""
        right, found = self.stretch.right, self.target.found
        if self.target.kind != "real":
            left, whole = int((value != found).sum()), int((right != found).sum())
            if not self.behind or left > whole / 2:
                return left / whole if left <= LEFT * whole else None
            is_clear = whole >= EVIDENCE[self.target.kind] and left <= LEFT * whole
            left += sum(behind.left(hypothesis) for behind in self.behind)
            whole += sum(behind.differing for behind in self.behind)
            return left / whole if is_clear or left <= LEFT * whole else None
        if not np.isfinite(value).all():
            return None
        left, whole = np.abs(value - found), _rms(right - found)
        beyond = left > allowed(value, right, self.target.tolerance)
        if beyond.mean() > FEW or _rms(left) > LEFT * min(whole, _rms(found)):
            return None
        unmet = sum(behind.left(hypothesis) for behind in self.behind)
        if unmet > LEFT * sum(behind.differing for behind in self.behind):
            return None
        return _rms(left) / whole

    # --- the best ---------------------------------------------------------------------------------

    def _best(self, found: Sequence[Explanation]) -> list[Explanation]:
        """Those that leave least, the likeliest first; of one node that give the same, one."""
        if not found:
            return []
        # what says little of the cause alone is given where nothing says more
        level = min(max(explanation.hypothesis.rank, VAGUE) for explanation in found)
        found = [e for e in found if max(e.hypothesis.rank, VAGUE) == level]
        least = min(explanation.left for explanation in found)
        equal = [e for e in found if e.left <= ALIKE * least + ROUNDING]
        equal.sort(key=lambda e: (e.hypothesis.rank, e.hypothesis.order))
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
        with np.errstate(all="ignore"):
            for behind in self.behind or self._asked():
                for e in found:
                    distance[id(e)] += behind.distance(e.hypothesis)
        least = min(distance.values())
        return [e for e in found if distance[id(e)] <= ALIKE * least + TIGHT]

    def _asked(self) -> Iterator[_Behind]:
        """Dumped taps behind the target that share sites with its stretch."""
        names, left = list(self.reference.steps), OTHERS
        sites = list(self.stretch.sites.values())
        if len(self.stretch.steps) == 1:
            maker = self.reference.steps[self.target.name].op.node.name
            sites = [site for site in sites if site.node.name == maker] or sites
        ops = {(site.node.op, site.what) for site in sites}
        for name in names[names.index(self.target.name) + 1 :]:
            if left == 0 or time.process_time() > self.deadline:
                return
            if name in self.given:
                stretch = Stretch(self.reference, self.given, name)
                if not ops.isdisjoint((s.node.op, s.what) for s in stretch.sites.values()):
                    yield _Behind(stretch, self.given[name])
                    left -= 1

    def _spoken(self, explanation: Explanation) -> str:
        """The words; with the place, where there are several in the stretch."""
        words, nodes = explanation.hypothesis.words, explanation.hypothesis.nodes
        (first, what), *_ = explanation.hypothesis.sites
        if len({node for node, _ in self.stretch.sites}) == 1:
            return words
        if len(nodes) == 1 and first in words:
            return words
        if len(nodes) > 1:
            place = "" if first in words else f", in {first}"
            return f"{words}{place}, likewise in {len(nodes) - 1} other places"
        back = "what comes back through " if what.startswith("d.") else ""
        return f"{words}, in {back}{first}"


class _Behind:
    """A dumped tap behind the first divergence: what a mistake makes of it, too."""

    def __init__(self, stretch: Stretch, found: np.ndarray):
        self.stretch, self.found = stretch, found

    @functools.cached_property
    def differing(self) -> int:
        """Entries that are not as they follow rightly."""
        return self._count(self.stretch.right)

    def left(self, hypothesis: Hypothesis) -> int:
        """Entries that the mistake does not give."""
        return self._count(self._value(hypothesis))

    def distance(self, hypothesis: Hypothesis) -> float:
        value = self._value(hypothesis)
        if self.found.dtype.kind != "f":
            return float((value != self.found).mean())
        return _rms(value - self.found) / max(_rms(self.found), np.finfo(float).tiny)

    def _count(self, value: np.ndarray) -> int:
        if self.found.dtype.kind == "f":
            largest = np.abs(self.found).max(axis=-1, keepdims=True) if self.found.ndim else 1.0
            return int((np.abs(value - self.found) > COARSE * largest).sum())
        return int((value != self.found).sum())

    def _value(self, hypothesis: Hypothesis) -> np.ndarray:
        """With the same mistake at the sites of this stretch that have it."""
        edits = {
            site.key: mistake.edit
            for site in self.stretch.sites.values()
            if hypothesis.families[0] is not general.others or site.key in hypothesis.sites
            for mistake in of_site(site, hypothesis.families)
            if hypothesis.key in _keys(site, mistake)
        }
        value = self.stretch.run(edits) if edits else None
        return self.stretch.right if value is None else value


def hypotheses(
    sites: Iterable[Site], families: Sequence, everywhere: bool, order: int = 0
) -> Iterator[Hypothesis]:
    """Mistakes of some sites: each at all that have it, or at those of a single node."""
    groups: dict[tuple, dict[tuple[str, str], Mistake]] = {}
    for site in sites:
        for mistake in of_site(site, families):
            alone, *alike = _keys(site, mistake)
            for key in alike if everywhere else (alone,):
                groups.setdefault(key, {})[site.key] = mistake
    seen = set()
    for key, found in groups.items():
        identity = (next(iter(found.values())).words, *found)
        if identity in seen:
            continue
        seen.add(identity)
        yield Hypothesis(found, next(iter(found.values())).words, families, key, order)


def _keys(site: Site, mistake: Mistake) -> tuple[tuple[str, ...], ...]:
    """Groups to which a mistake of a site belongs: of its node alone, then those of several nodes.

    These have the same operation; the same ones around it; where words name values, the same words;
    of an operation's own mistake the same words at any operation, since ports share functions.
    """
    back, op = site.what if site.is_backward else "", site.node.op
    alone, alike = (site.node.name, op, back, mistake.sort), (op, back, mistake.sort)
    if mistake.rank == general.DECLARED:
        return alone, alike, (back, mistake.words)
    return alone, alike, (*alike, *site.context), (back, mistake.words)


def _near(
    reference: Reference, given: Mapping[str, np.ndarray], target: Target
) -> dict[str, np.ndarray]:
    """What the operation of a tap reads; of a bit whose z was not dumped, what that of z reads."""
    step = reference.steps[target.name]
    names = list(step.inputs)
    if target.kind == "bit" and step.z not in given:
        names = [*names[1:], *reference.steps[step.z].inputs]
    return {name: reference.steps[name].value for name in names}


def allowed(value: np.ndarray, right: np.ndarray, tolerance: np.ndarray) -> np.ndarray:
    """How far a candidate may be from a wrong value, whose terms may be larger than the right's."""
    growth = 2 * max(1.0, _rms(value) / max(_rms(right), np.finfo(float).tiny))
    spread = np.maximum(tolerance, SPREAD * _rms(tolerance))
    return np.maximum(growth * spread, ROUNDED * _rms(value))


def _rms(array: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(array)))) if array.size else 0.0


def target_of(verdict, reference: Reference) -> Target:
    """A verdict of a comparison as what is to be explained."""
    kind = record.kind_of(reference.steps[verdict.name].value)
    wide = {"bit": bool, "int": np.int64, "real": np.float64}[kind]
    return Target(verdict.name, kind, np.asarray(verdict.candidate).astype(wide), verdict.tolerance)
