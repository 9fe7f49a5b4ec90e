"""A comparison in words and as JSON: one line a tap, then where it first goes wrong [SPEC 8.2]."""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from refimpl.golden.compare import JUDGED, Comparison, Verdict
from refimpl.golden.fingerprints import axes

VERDICTS = (*JUDGED, "TAINTED", "NOT REPLAYED", "MISSING")
COLUMNS = ("tap", "class", "verdict", "differ", "ties", "near", "hard", "worst ulp")
UNEXPLAINED = "none of the known mistakes explains it"
LISTED = 8  # indices of an axis that are named
MEANINGS = {  # of verdicts that are neither good nor bad
    "TIES-ONLY": "flips where golden z is exactly at the threshold",
    "NEAR": "differ by rounding, within the tolerance",
    "TAINTED": "not judged: computed from a tap that differs; --mode replay judges each tap alone",
    "NOT REPLAYED": "not judged: the candidate lacks an input of the operation",
}

Causes = Mapping[str, str]  # by tap, from `diagnose.causes`


def report(comparison: Comparison, causes: Causes, total: int) -> str:
    """The whole report; `total`: taps of the bundle, more than were judged after --fail-fast."""
    lines = [*_head(comparison), ""]
    lines += _names("missing from the candidate, not judged", comparison.missing)
    lines += _names("unknown, no tap of the model", comparison.unknown)
    # what matters comes last: there a terminal stops
    lines += [*_table(comparison), "", *first_divergence(comparison, causes), ""]
    if others := [name for name in causes if name != getattr(comparison.first, "name", None)]:
        lines += ["likely causes of others:", *(f"  {n}: {causes[n]}" for n in others), ""]
    return "\n".join([*lines, *summary(comparison, total)]) + "\n"


def failed(verdict: Verdict, strict: bool) -> bool:
    """Whether this tap alone makes a comparison fail."""
    return verdict.verdict == "FAIL" or (strict and verdict.flipped)


def first_divergence(comparison: Comparison, causes: Causes | None) -> list[str]:
    """`FIRST DIVERGENCE: <tap>` and what is known of it, a line each; no causes: none sought."""
    first = comparison.first
    if first is None:
        return ["NO DIVERGENCE"]
    cause = None if causes is None else causes.get(first.name, UNEXPLAINED)
    return [
        f"FIRST DIVERGENCE: {first.name}",
        *(f"  {label:<13} {value}" for label, value in facts(first, cause)),
    ]


def facts(verdict: Verdict, cause: str | None) -> Iterator[tuple[str, str]]:
    """What is known of a tap that differs: (label, value)."""
    yield "verdict", f"{verdict.verdict}{_share(verdict)}"
    if verdict.reason is not None:
        yield "reason", verdict.reason
    if verdict.divergence is not None:
        at = verdict.divergence
        yield "index", str(list(at.index))
        yield "golden", number(at.golden)
        yield "candidate", number(at.candidate)
        if at.z is not None:
            yield "z", number(at.z)
            yield "margin", number(at.margin)
        if at.tolerance is not None:
            yield "tolerance", number(at.tolerance)
    if comparable(verdict) and differing(verdict).any():
        yield "where", "; ".join(where(verdict.name, differing(verdict)))
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
    return verdict.expected.astype(verdict.candidate.dtype) != verdict.candidate


def where(name: str, mask: np.ndarray) -> Iterator[str]:
    """On which indices of each axis a mask is true: a rule in them is half of a diagnosis."""
    for axis, (places, size) in enumerate(zip(axes(name, mask.ndim), mask.shape)):
        others = tuple(i for i in range(mask.ndim) if i != axis)
        hit = np.flatnonzero(mask.any(axis=others))
        if size == 1:
            continue
        if len(hit) == size:
            yield f"{places}: all {size}"
        elif len(hit) <= LISTED:
            yield f"{places}: {' '.join(map(str, hit))} (of {size})"
        else:
            yield f"{places}: {len(hit)} of {size}"


def summary(comparison: Comparison, total: int) -> list[str]:
    """How many taps got which verdict, and whether that is a pass: the last lines."""
    counts = Counter(verdict.verdict for verdict in comparison.verdicts)
    lines = [
        f"  {counts[v]:6} {v:<13} {MEANINGS.get(v, '')}".rstrip() for v in VERDICTS if counts[v]
    ]
    left = total - len(comparison.verdicts)
    if left:
        lines.append(f"  {left:6} not looked at, after the first tap that failed")
    bad = sum(failed(verdict, comparison.strict) for verdict in comparison.verdicts)
    word = "PASS" if comparison.passed else "FAIL"
    strict = ", strict: a flip of any bit fails" if comparison.strict else ""
    nothing = "" if comparison.judged else "; a comparison that judged nothing is no pass"
    judged = f"{comparison.judged} of {total} taps judged"
    return [f"{word}: {judged}, {bad} failed{strict}{nothing}", *lines]


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
        "passed": comparison.passed,
        "taps": total,
        "first_divergence": comparison.first.name if comparison.first else None,
        "counts": dict(Counter(verdict.verdict for verdict in comparison.verdicts)),
        "missing": comparison.missing,
        "unknown": comparison.unknown,
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
        "worst_ulp": _finite(verdict.worst_ulp),
        "reason": verdict.reason,
        "cause": causes.get(verdict.name),
        "divergence": at and {key: _finite(value) for key, value in at._asdict().items()},
    }


def _finite(value: Any) -> Any:
    """JSON has no infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _head(comparison: Comparison) -> list[str]:
    return [
        f"bundle     {comparison.bundle_path}",
        f"candidate  {comparison.candidate_path or '-'}",
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


def _names(title: str, names: Sequence[str]) -> list[str]:
    if not names:
        return []
    listed = textwrap.wrap("  ".join(names), 100, break_long_words=False, break_on_hyphens=False)
    return [f"{title} ({len(names)}):", *(f"  {line}" for line in listed), ""]
