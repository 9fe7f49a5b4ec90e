"""A comparison in words and as JSON: one line a tap, then where it first goes wrong [SPEC 8.2]."""

from __future__ import annotations

import math
import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from refimpl.conventions import shown
from refimpl.golden import places
from refimpl.golden.compare import BLUNT, JUDGED, UNJUDGED, Comparison, Verdict, failed

VERDICTS = (*JUDGED, *UNJUDGED, "MISSING")
COLUMNS = ("tap", "class", "verdict", "differ", "ties", "near", "hard", "worst ulp")
UNEXPLAINED = "none of the known mistakes explains it"
UNKNOWN = 20  # names that are no taps, of which so many are listed
MEANINGS = {  # of verdicts that are neither good nor bad
    "TIES-ONLY": "flips where golden z is exactly at the threshold",
    "NEAR": "differ by rounding, within the tolerance",
    "TAINTED": "not judged: computed from a tap that differs; --mode replay judges each tap alone",
    "UNJUDGED": "not judged: what they follow from is not known well enough, see above",
}

Causes = Mapping[str, str]  # by tap, from `diagnose.causes`


def report(comparison: Comparison, causes: Causes, total: int, verbose: bool = False) -> str:
    """The whole report; `total`: taps of the bundle, more than were judged after --fail-fast.

    What is missing is counted by group; with `verbose` it is listed.
    """
    lines = [*_head(comparison), "", *_unknown(comparison, verbose)]
    # what matters comes last: there a terminal stops
    lines += [*_table(comparison), "", *_missing(comparison, verbose)]
    lines += [*first_divergence(comparison, causes), ""]
    lines += [*_notes(comparison), ""] if comparison.notes else []
    if others := [name for name in causes if name != getattr(comparison.first, "name", None)]:
        lines += ["likely causes of others:", *(f"  {n}: {causes[n]}" for n in others), ""]
    return "\n".join([*lines, *summary(comparison, total)]) + "\n"


def short(comparison: Comparison, causes: Causes, total: int) -> str:
    """What it comes to, where it first goes wrong and why; names that are no taps come first."""
    lines = [*_unknown(comparison, verbose=False), summary(comparison, total)[0]]
    if comparison.first is not None:
        cause = likely(comparison.first, causes)
        why = f"likely cause  {cause}" if cause else f"reason        {comparison.first.reason}"
        lines += [f"FIRST DIVERGENCE: {comparison.first.name}", f"  {why}"]
        if cause == UNEXPLAINED:  # perhaps it is their precision
            lines += _notes(comparison)
    elif comparison.unjudged:
        (first,) = (v for v in comparison.verdicts if v.name == comparison.unjudged[0])
        lines.append(f"FIRST NOT JUDGED: {first.name}: {first.reason or MEANINGS[first.verdict]}")
        lines += _notes(comparison)
    return "\n".join(lines) + "\n"


def _notes(comparison: Comparison) -> list[str]:
    return [f"note       {shown(note)}" for note in comparison.notes]


def first_divergence(comparison: Comparison, causes: Causes | None) -> list[str]:
    """`FIRST DIVERGENCE: <tap>` and what is known of it, a line each; no causes: none sought."""
    first = comparison.first
    if first is None:
        return ["NO DIVERGENCE"]
    cause = None if causes is None else likely(first, causes)
    return [
        f"FIRST DIVERGENCE: {first.name}",
        *(f"  {label:<13} {value}" for label, value in facts(first, cause)),
    ]


def likely(verdict: Verdict, causes: Causes) -> str | None:
    """Its cause, or that none is known; None where the reason of the verdict says enough."""
    return causes.get(verdict.name, None if verdict.reason else UNEXPLAINED)


def facts(verdict: Verdict, cause: str | None) -> Iterator[tuple[str, str]]:
    """What is known of a tap that differs: (label, value)."""
    yield "verdict", f"{verdict.verdict}{_share(verdict)}"
    if verdict.reason is not None:
        yield "reason", verdict.reason
    if verdict.divergence is not None:
        at = verdict.divergence
        yield "index", _index(verdict)
        yield "golden", number(at.golden)
        yield "candidate", number(at.candidate)
        if at.z is not None:
            yield "z", number(at.z)
            yield "margin", number(at.margin)
        if at.tolerance is not None:
            yield "tolerance", number(at.tolerance)
    if comparable(verdict) and differing(verdict).any() and verdict.places is not None:
        yield "where", "; ".join(places.describe(verdict.places, differing(verdict)))
    if cause is not None:
        yield "likely cause", cause


def comparable(verdict: Verdict) -> bool:
    """Whether there are two arrays of one shape."""
    expected, candidate = verdict.expected, verdict.candidate
    return candidate is not None and expected is not None and candidate.shape == expected.shape


def differing(verdict: Verdict) -> np.ndarray:
    """Where a tap differs beyond its tolerance; where none does, where it differs at all."""
    if verdict.flips is not None:
        return verdict.flips
    if verdict.differs is not None:
        return verdict.differs
    return verdict.expected.astype(verdict.candidate.dtype) != verdict.candidate


def summary(comparison: Comparison, total: int) -> list[str]:
    """Whether it passes and why not; then how many taps got which verdict."""
    counts = Counter(verdict.verdict for verdict in comparison.verdicts)
    lines = [
        f"  {counts[v]:6} {v:<13} {MEANINGS.get(v, '')}".rstrip() for v in VERDICTS if counts[v]
    ]
    left = total - len(comparison.verdicts)
    if left:
        lines.append(f"  {left:6} not looked at, after the first tap that failed")
    return [_outcome(comparison, total), *lines]


def _outcome(comparison: Comparison, total: int) -> str:
    bad = sum(failed(verdict, comparison.strict) for verdict in comparison.verdicts)
    strict = ", strict: a flip of any bit fails" if comparison.strict else ""
    parts = [f"{comparison.judged} of {total} taps judged, {bad} failed{strict}"]
    if comparison.passed and comparison.missing:
        parts.append(f"{_count(comparison.missing, 'tap')} missing, which --complete fails")
    if comparison.absent:
        parts.append(f"{_count(comparison.absent, 'tap')} required and absent: "
                     f"{_few(comparison.absent)}")  # fmt: skip
    if comparison.outcome == "INCOMPLETE":
        if comparison.unjudged:
            blunt = any(verdict.reason == BLUNT for verdict in comparison.verdicts)
            why = ": in so coarse a precision --mode replay judges them" if blunt else ""
            parts.append(f"{_count(comparison.unjudged, 'tap')} dumped and not judged{why}")
        if comparison.unknown:
            parts.append(f"{_count(comparison.unknown, 'name')} no tap of the model")
        if not comparison.judged:
            parts.append("a comparison that judged nothing is no pass")
    return f"{comparison.outcome}: {'; '.join(parts)}"


def _count(names: Sequence[str], word: str) -> str:
    return f"{len(names)} {word} is" if len(names) == 1 else f"{len(names)} {word}s are"


def _few(names: Sequence[str], count: int = 3) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more


def number(value: float | int | bool | None) -> str:
    """A bit as 0 or 1, a real with all digits that float64 has."""
    return (
        repr(value) if isinstance(value, float) else str(int(value)) if value is not None else "-"
    )


def to_json(comparison: Comparison, causes: Causes, total: int) -> dict[str, Any]:
    """The comparison as JSON values."""
    return {
        "bundle": comparison.bundle_path,
        "candidate": comparison.candidate_path,
        "mode": comparison.mode,
        "strict": comparison.strict,
        "outcome": comparison.outcome,
        "passed": comparison.passed,
        "taps": total,
        "first_divergence": comparison.first.name if comparison.first else None,
        "counts": dict(Counter(verdict.verdict for verdict in comparison.verdicts)),
        "missing": comparison.missing,
        "absent": list(comparison.absent),
        "unjudged": comparison.unjudged,
        "unknown": comparison.unknown,
        "suggested": dict(comparison.suggested),
        "notes": list(comparison.notes),
        "verdicts": [
            _verdict_json(v, causes, comparison.strict)
            for v in comparison.verdicts
            if v.verdict != "MISSING"
        ],
    }


def _verdict_json(verdict: Verdict, causes: Causes, strict: bool) -> dict[str, Any]:
    at = verdict.divergence
    return {
        "name": verdict.name,
        "class": verdict.kind,
        "verdict": verdict.verdict,
        "failed": failed(verdict, strict),
        "count": verdict.count,
        "differing": verdict.differing,
        "ties": verdict.ties,
        "near": verdict.near,
        "hard": verdict.hard,
        "worst_ulp": finite(verdict.worst_ulp),
        "reason": verdict.reason,
        "where": _where(verdict),
        "cause": causes.get(verdict.name),
        "divergence": at and {key: finite(value) for key, value in at._asdict().items()},
    }


def _where(verdict: Verdict) -> list[str]:
    if verdict.places is None or not comparable(verdict):
        return []
    mask = differing(verdict)
    return list(places.describe(verdict.places, mask)) if mask.any() else []


def _index(verdict: Verdict) -> str:
    at, tap = verdict.divergence.index, verdict.places
    if tap is None or not at or not comparable(verdict):
        return str(list(at))
    return f"{list(at)}: {places.coordinates(tap, at, verdict.candidate.shape)}"


def finite(value: Any) -> Any:
    """Turn infinities and NaN, which JSON does not have, into None."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _head(comparison: Comparison) -> list[str]:
    return [
        f"bundle     {shown(comparison.bundle_path)}",
        f"candidate  {shown(comparison.candidate_path or '-')}",
        f"mode       {comparison.mode}",
    ]


def _table(comparison: Comparison) -> list[str]:
    """Names, class and verdict to the left, counts to the right, a reason behind them."""
    verdicts = [verdict for verdict in comparison.verdicts if verdict.verdict != "MISSING"]
    rows = [row(verdict) for verdict in verdicts]
    widths = [max(map(len, column)) for column in zip(COLUMNS, *rows)]
    lines = []
    for cells, verdict in zip([COLUMNS, *rows], [None, *verdicts]):
        left = [cell.ljust(width) for cell, width in zip(cells[:3], widths)]
        right = [cell.rjust(width) for cell, width in zip(cells[3:], widths[3:])]
        reason = verdict.reason if verdict and verdict.reason else ""
        lines.append("  ".join([*left, *right, reason]).rstrip())
    return lines


def row(verdict: Verdict) -> tuple[str, ...]:
    start = (verdict.name, verdict.kind, verdict.verdict)
    if verdict.verdict not in JUDGED or verdict.reason is not None:
        return (*start, "-", "-", "-", "-", "-")
    ties = str(verdict.ties) if verdict.kind == "bit" else "-"
    near = "-" if verdict.kind == "int" else str(verdict.near)
    ulp = "-" if verdict.worst_ulp is None else f"{verdict.worst_ulp:.3g}"
    return (*start, str(verdict.differing), ties, near, str(verdict.hard), ulp)


def _share(verdict: Verdict) -> str:
    if not verdict.differing:
        return ""
    parts = [f"{verdict.differing:,} of {verdict.count:,} differ"]
    if verdict.kind == "bit":
        parts += [f"{verdict.ties:,} ties", f"{verdict.near:,} near", f"{verdict.hard:,} hard"]
    elif verdict.kind == "real":
        parts.append(f"{verdict.hard:,} beyond the tolerance")
        parts.append(f"worst {verdict.worst_ulp:.3g} ulp")
    return ": " + ", ".join(parts)


def _unknown(comparison: Comparison, verbose: bool) -> list[str]:
    names = comparison.unknown
    if not names:
        return []
    listed = names if verbose else names[:UNKNOWN]
    lines = [f"unknown, no tap of the model ({len(names)}):"]
    for name in listed:
        meant = comparison.suggested.get(name)
        lines.append(f"  {shown(name)}" + (f"  did you mean {meant}?" if meant else ""))
    if len(listed) < len(names):
        lines.append(f"  and {len(names) - len(listed)} more")
    return [*lines, ""]


def _missing(comparison: Comparison, verbose: bool) -> list[str]:
    names = comparison.missing
    if not names:
        return []
    lines = [f"missing from the candidate, not judged ({len(names)}):"]
    if verbose:
        lines += textwrap.wrap(
            "  ".join(names), 100, break_long_words=False, break_on_hyphens=False,
            initial_indent="  ", subsequent_indent="  ",
        )  # fmt: skip
    else:
        of_group = _groups(verdict.name for verdict in comparison.verdicts)
        for group, count in _groups(names).items():
            whole = "all" if count == of_group[group] else f"{count} of"
            lines.append(f"  {group}: {whole} {of_group[group]}")
    return [*lines, ""]


def _groups(names: Iterable[str]) -> Counter[str]:
    """Taps by block, merge or level of the decoder; all others by themselves."""
    part = re.compile(r"(grads/)?((param)|(blocks|merges|decoder)\.\d+)(?=\.)")
    return Counter(found[0] if (found := part.match(name)) else name for name in names)
