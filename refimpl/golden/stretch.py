"""What lies between a tap and its nearest dumped ancestors, to be run again with a mistake.

stretch = Stretch(reference, given, "blocks.0.mid")
stretch.right                                    what follows from what was dumped
stretch.run({site.key: mistake.edit})            the same where one site is done wrongly
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np

from refimpl.golden.bounds import Reference
from refimpl.golden.mistakes.declared import IMPOSSIBLE, Edit, Site, Wrong
from refimpl.golden.record import Step


class Stretch:
    """Steps from what was dumped to one tap, its value, and the sites at which they compute.

    given: what was dumped, logical arrays, reals in float64. A step that follows from nothing
    dumped has the reference's value.
    """

    def __init__(self, reference: Reference, given: Mapping[str, np.ndarray], target: str):
        self.reference, self.given, self.target = reference, given, target
        self.steps = _between(reference, given, target)
        self.sites: dict[tuple[str, str], Site] = {}
        self._runs: dict[tuple[str, str], list[str]] = {}  # site -> steps that it makes
        self._right: dict[str, np.ndarray] = {}
        for name in self.steps:
            self._run_rightly(name)

    @property
    def right(self) -> np.ndarray:
        """The target as it follows from what was dumped."""
        return self._right[self.target]

    def run(self, edits: Mapping[tuple[str, str], Edit]) -> np.ndarray | None:
        """The target where these sites are done wrongly; None where it stays as it is."""
        return self.changed(edits).get(self.target)

    def changed(self, edits: Mapping[tuple[str, str], Edit]) -> dict[str, np.ndarray]:
        """Every step that is another one where these sites are done wrongly; none if impossible."""
        touched = {name for key in edits for name in self._runs[key]}
        changed: dict[str, np.ndarray] = {}
        for name in self.steps:
            step = self.reference.steps[name]
            if name not in touched and changed.keys().isdisjoint(step.inputs):
                continue
            try:
                value = self._wrongly(step, edits, changed)
            except IMPOSSIBLE:
                return {}
            if np.shape(value) != step.value.shape:
                return {}
            if not np.array_equal(value, self._right[name]):
                changed[name] = value
        return changed

    def value(self, name: str, changed: Mapping[str, np.ndarray] | None = None) -> np.ndarray:
        """Of any tap: as it was dumped, as it follows, else the reference's."""
        if name in self.given and name != self.target:
            return self.given[name]
        for known in (changed or {}, self._right):
            if name in known:
                return known[name]
        return self.reference.steps[name].value

    def _run_rightly(self, name: str) -> None:
        step, seen = self.reference.steps[name], {}
        self._right[name] = step.value
        if step.op is None:
            return
        values = [self.value(read) for read in step.inputs]
        self._right[name] = step.op.run(
            values, lambda t, p: Wrong(t, p, self.reference.network, {}, self.value, seen)
        )
        self.sites |= seen
        for key in seen:
            self._runs.setdefault(key, []).append(name)

    def _wrongly(
        self, step: Step, edits: Mapping[tuple[str, str], Edit], changed: dict[str, np.ndarray]
    ) -> np.ndarray:
        find = partial(self.value, changed=changed)
        values = [find(read) for read in step.inputs]
        return step.op.run(
            values, lambda t, p: Wrong(t, p, self.reference.network, edits, find)
        )


def _between(reference: Reference, given: Mapping[str, np.ndarray], target: str) -> list[str]:
    """Undumped steps before a tap, in order of computation; the tap itself is the last."""
    found, stack = {target}, list(reference.steps[target].inputs)
    while stack:
        name = stack.pop()
        if name not in found and name not in given:
            found.add(name)
            stack += reference.steps[name].inputs
    return [name for name in reference.steps if name in found]
