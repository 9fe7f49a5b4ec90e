"""All known mistakes of a network: every declared one at all sites that have it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from refimpl.golden.bounds import Reference
from refimpl.golden.mistakes import general
from refimpl.golden.mistakes.declared import (
    DECLARED,
    IMPOSSIBLE,
    NUMBERS,
    OUTPUT,
    Edit,
    Family,
    Mistake,
    Site,
    Wrong,
)


class Known(NamedTuple):
    """One mistake, made at every site that has it."""

    words: str
    op: str
    is_backward: bool
    edits: Mapping[tuple[str, str], Edit]  # by node and what of it
    reference: Reference
    needs: str = ""  # what a network must have to show it, where few do

    @property
    def nodes(self) -> list[str]:
        """Names of the nodes at which it is made."""
        return list(dict.fromkeys(name for name, _ in self.edits))

    def taps(self, until: str | None = None) -> dict[str, np.ndarray] | None:
        """What a port with this mistake computes, all else being right: every tap, in float64.

        `until`: the last tap that is asked for. None where the mistake is impossible here.
        """
        values: dict[str, np.ndarray] = {}
        changed: set[str] = set()
        for name, step in self.reference.steps.items():
            values[name] = step.value
            wrong = step.op is not None and self._concerns(step)
            if wrong or not changed.isdisjoint(step.inputs):
                found = self._run(step, values)
                if found is None or np.shape(found) != step.value.shape:
                    return None
                if not np.array_equal(found, step.value):
                    changed.add(name)
                    values[name] = found
            if name == until:
                break
        return values

    def _concerns(self, step) -> bool:
        nodes = self.reference.network.nodes
        ran = {nodes[i].name for i in (*step.op.shown.nodes, step.op.shown.node)}
        return not ran.isdisjoint(name for name, _ in self.edits)

    def _run(self, step, values: dict[str, np.ndarray]) -> np.ndarray | None:
        find = lambda name: values.get(name, self.reference.steps[name].value)  # noqa: E731
        network = self.reference.network
        try:
            return step.op.run(
                [values[read] for read in step.inputs],
                lambda t, p: Wrong(t, p, network, self.edits, find),
            )
        except IMPOSSIBLE:
            return None


def own(site: Site) -> Iterator[Mistake]:
    """Mistakes that are declared for the operation of a site."""
    for family in DECLARED.get((site.node.op, site.what), ()):
        yield from family(site)


def numbers(site: Site) -> Iterator[Mistake]:
    """Mistakes that are seen in the candidate's own numbers alone, where all others fail."""
    for family in DECLARED.get((site.node.op, NUMBERS), ()) if site.what == OUTPUT else ():
        yield from family(site)


# Families of mistakes, the likelier first.
OWN: tuple[Family, ...] = (own, general.attributes)
READS: tuple[Family, ...] = (general.parameters, general.inputs)
ELSEWHERE: tuple[Family, ...] = (general.layers, general.others, general.elsewhere)
CURVES: tuple[Family, ...] = (general.curves, general.changed_inputs)
BACK: tuple[Family, ...] = (general.elsewhere_back,)
PLACES: tuple[Family, ...] = (general.orders, general.views, general.outputs)
OF_NUMBERS: tuple[Family, ...] = (numbers,)


def of_site(site: Site, families: Sequence[Family] = OWN + READS + PLACES) -> Iterator[Mistake]:
    """Mistakes of one site: its operation's own, then those that every operation has."""
    for family in families:
        yield from family(site)


def known(reference: Reference) -> Iterator[Known]:
    """Mistakes of a network, each made at all sites that have it; forward, then backward."""
    groups: dict[tuple, dict[tuple[str, str], Mistake]] = {}
    for site in sites(reference):
        for found in of_site(site):
            key = (site.is_backward, site.node.op, site.what, found.sort)
            groups.setdefault(key, {})[site.key] = found
    for (is_backward, op, _, sort), found in groups.items():
        first = next(iter(found.values()))
        words = first.words if len(found) == 1 else sort
        edits = {key: m.edit for key, m in found.items()}
        yield Known(words, op, is_backward, edits, reference, first.needs)


def sites(reference: Reference) -> list[Site]:
    """All sites of a network that its taps are made at, in order of computation."""
    seen: dict[tuple[str, str], Site] = {}
    steps = reference.steps
    for step in steps.values():
        if step.op is not None:
            record = partial(
                Wrong, network=reference.network, edits={}, value=lambda n: steps[n].value,
                seen=seen,
            )  # fmt: skip
            step.op.run([steps[read].value for read in step.inputs], record)
    return list(seen.values())
