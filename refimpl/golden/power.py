"""Which known mistakes a bundle cannot show, and why: its blind spots, before a port is judged.

Each mistake of `mistakes` is made at one of its places after another, all else being right. It is
shown where a tap of a place then differs by more than rounding may. What remains is hidden in every
port that makes it: by numbers that it leaves as they are, by its size, or by a tie.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from refimpl.golden import bounds, mistakes, record, search
from refimpl.golden.bounds import Reference
from refimpl.golden.mistakes import catalogue
from refimpl.golden.mistakes.catalogue import IMPOSSIBLE, Known
from refimpl.golden.mistakes.declared import DECLARED, Call, Edit, Site, Wrong
from refimpl.golden.store import Bundle

SAME, ROUNDING, TIES, SHOWN = "the same numbers", "within rounding", "ties alone", "shown"
ORDER = ("", SAME, ROUNDING, TIES, SHOWN)
WHY = {
    SAME: "stays as it is",
    ROUNDING: "changes by less than float32 may round",
    TIES: "changes at ties alone, which only --strict fails",
}
SEED = 1
MANY = 2  # that begin alike and are not named one by one


class Hidden(NamedTuple):
    """A mistake that a bundle cannot show."""

    op: str
    words: str
    is_backward: bool
    why: str
    drawn: bool  # whether drawn numbers of the same network show it
    needs: str = ""  # what a network must have to show it, where few do


class Power(NamedTuple):
    """What a bundle can show."""

    shown: int  # mistakes
    hidden: list[Hidden]
    absent: list[str]  # operations with known mistakes that this network has not
    backward: bool  # whether it has gradients


def of(bundle: Bundle) -> Power:
    """Make every known mistake of the bundle's network; errors as of `Bundle.reference`.

    What every operation may have wrong is often none: terms of a sum may be exchanged. So of those
    that show nothing here only the ones count that show on drawn numbers of the same network.
    """
    reference = bundle.reference
    judge, drawn = Judge(reference), Judge(_drawn(bundle))
    own = judge.own()
    shown: set[tuple] = set()
    hidden: dict[tuple, Hidden] = {}
    with np.errstate(all="ignore"):
        for known in mistakes.known(reference):
            kind, key = judge.verdict(known), (known.op, known.words, known.is_backward)
            if kind == SHOWN:
                shown.add(key)
            elif kind and key not in hidden:
                elsewhere = drawn.verdict(known) == SHOWN
                if elsewhere or known.words in own:
                    why = judge.why(known, kind)
                    hidden[key] = Hidden(*key, why, elsewhere, known.needs)
    here = {node.op for node in reference.network.nodes}
    absent = sorted({op for op, _ in DECLARED} - here)
    left = [found for key, found in hidden.items() if key not in shown]
    return Power(len(shown), left, absent, bool(bundle.manifest["grads"]))


def _drawn(bundle: Bundle) -> Reference:
    """The same network with drawn parameters and images."""
    params, images = search.draw(bundle.model.config, SEED, images=2)
    dlogits = None
    if bundle.manifest["grads"]:
        shape = (len(images), *bundle.model.config.logits_shape)
        dlogits = np.random.default_rng(SEED).standard_normal(shape)
    return bounds.reference(bundle.model, params, images, dlogits)


class Judge:
    """Runs mistakes on the reference's own values, and knows how far rounding may reach."""

    def __init__(self, reference: Reference):
        self.reference = reference
        self.taps: dict[tuple[str, str], list[str]] = {}  # site -> taps that it takes part in
        self.sites: dict[tuple[str, str], Site] = {}
        self._bounds: dict[str, np.ndarray] = {}
        for name, step in reference.steps.items():
            if step.op is not None:
                seen: dict[tuple[str, str], Site] = {}
                self._run(name, {}, seen)
                self.sites |= seen
                for key in seen:
                    self.taps.setdefault(key, []).append(name)

    def own(self) -> set[str]:
        """Give the words of the mistakes that are declared for single operations."""
        return {found.sort for site in self.sites.values() for found in catalogue.own(site)}

    def verdict(self, known: Known) -> str:
        """Give SHOWN, or how it is hidden; "" where it is impossible."""
        found = ""
        for name, edits in self._runs(known):
            kind = self._seen(name, edits)
            if kind == SHOWN:
                return SHOWN
            found = max(found, kind, key=ORDER.index)
        return found

    def why(self, known: Known, kind: str) -> str:
        """Say where and why a mistake is hidden."""
        runs = self._runs(known)
        taps = list(dict.fromkeys(tap for tap, edits in runs if self._seen(tap, edits) == kind))
        many = f", the first of {len(taps)} taps," if len(taps) > 1 else ""
        why = f"{taps[0]}{many} {WHY[kind]}"
        facts = [*self._facts(self.sites[next(iter(known.edits))], taps)] if kind == SAME else []
        if "image" in known.words and len(self.reference.steps[record.INPUT].value) == 1:
            facts.append("there is one image")
        return f"{why}: {'; '.join(facts)}" if facts else why

    def _runs(self, known: Known) -> Iterator[tuple[str, Mapping]]:
        """Taps, and the mistake at one of their places."""
        for key, edit in known.edits.items():
            for name in self.taps.get(key, ()):
                yield name, {key: edit}

    def _seen(self, name: str, edits: Mapping) -> str:
        """SHOWN, or how a tap hides it; "" where it is impossible."""
        made: list[bool] = []

        def noted(edit: Edit, call: Call) -> Any:
            found = edit(call)
            made.append(found is not None)
            return found

        try:
            value = self._run(name, {key: partial(noted, edit) for key, edit in edits.items()})
        except IMPOSSIBLE:
            return ""
        if not any(made):
            return ""
        step = self.reference.steps[name]
        if np.shape(value) != step.value.shape:
            return SHOWN
        differs = value != step.value
        if not differs.any():
            return SAME
        if step.kind == "bit":
            distance = np.abs(self.reference.steps[step.z].value - step.threshold)[differs]
            return SHOWN if distance.any() else TIES
        if step.kind == "real" and (np.abs(value - step.value) <= self._bound(name)).all():
            return ROUNDING
        return SHOWN

    def _run(self, name: str, edits: Mapping, seen: dict | None = None) -> Any:
        step, network = self.reference.steps[name], self.reference.network
        values = [self.reference.steps[read].value for read in step.inputs]
        find = lambda tap: self.reference.steps[tap].value  # noqa: E731
        return step.op.run(values, lambda t, p: Wrong(t, p, network, edits, find, seen))

    def _bound(self, name: str) -> np.ndarray:
        if name not in self._bounds:
            steps = self.reference.steps
            inputs = [steps[read].value for read in steps[name].inputs]
            unit = bounds.UNITS["float32"]
            self._bounds[name] = bounds.replay(self.reference, name, inputs, unit)
        return self._bounds[name]

    def _facts(self, site: Site, taps: Sequence[str]) -> Iterator[str]:
        """What is so special about the numbers of a site that a mistake may change nothing."""
        steps = [self.reference.steps[tap] for tap in taps]
        if steps[0].kind == "bit":
            yield "no z is at the threshold"
        if steps[0].kind == "int":
            values = [step.value for step in steps]
            yield f"from {min(v.min() for v in values)} to {max(v.max() for v in values)}"
        for key in site.keys:
            name = site.name(key)
            value = self.reference.params.get(name)
            if value is None and name in self.reference.steps:
                value = self.reference.steps[name].value
            if value is not None and value.size and value.dtype.kind == "f":
                yield from _special(name, value)


def _special(name: str, value: np.ndarray) -> Iterator[str]:
    least, most = value.min(), value.max()
    if least == most:
        yield f"{name} is {least:g} everywhere"
    elif least >= 0:
        yield f"{name} is never negative"
    elif most <= 0:
        yield f"{name} is never positive"


def lines(power: Power, name: str) -> Iterator[str]:
    """Say it in words: what is hidden by operation and reason."""
    yield f"{name}: {power.shown:,} known mistakes show, {len(power.hidden):,} do not"
    if not power.backward:
        yield "no mistake of the backward pass does: there are no gradients (golden make --grads)"
    yield f"nothing is known of {', '.join(power.absent)}: the network has no such operation"
    yield (
        "* drawn parameters and images of the same network show it; the others need special "
        "values, such as ties or sums beyond 8 bits, or are none in this configuration"
    )
    groups: dict[tuple, list[Hidden]] = {}
    for hidden in power.hidden:
        groups.setdefault((hidden.op, hidden.is_backward, hidden.why), []).append(hidden)
    for (op, is_backward, why), found in groups.items():
        yield ""
        yield f"{op}{', backward' * is_backward}: {why}"
        yield from (f"  {line}" for line in _collected(found))


def _collected(found: Sequence[Hidden]) -> Iterator[str]:
    """Their words; of many that begin alike how many they are."""
    kinds: dict[str, list[Hidden]] = {}
    for hidden in found:
        kinds.setdefault(hidden.words.partition(":")[0], []).append(hidden)
    for start, alike in kinds.items():
        if len(alike) > MANY:
            needs = "; ".join(dict.fromkeys(hidden.needs for hidden in alike if hidden.needs))
            some = f", some of which take {needs}" if needs else ""
            yield f"{start} ({len(alike)} kinds){some}"
            continue
        for hidden in alike:
            needs = f", which takes {hidden.needs}" if hidden.needs else ""
            yield f"{'* ' * hidden.drawn}{hidden.words}{needs}"


def to_json(power: Power) -> dict[str, Any]:
    """Give the same as JSON."""
    return {**power._asdict(), "hidden": [hidden._asdict() for hidden in power.hidden]}
