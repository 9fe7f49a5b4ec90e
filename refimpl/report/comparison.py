"""A comparison with golden vectors as a page for the browser: one file, no script, no network.

The first divergence comes first, with a picture of where in the tensor it lies; then every tap in
order of computation. A verdict is a colour, a symbol and a word, so no colour has to be told from
another. Names come from other people's files: they are escaped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from html import escape

import numpy as np
from PIL import Image

import refimpl
from refimpl.golden import text
from refimpl.golden.compare import Comparison, Verdict, failed
from refimpl.golden.places import Places
from refimpl.report import html

LOOKS = {  # verdict -> class of the style sheet, symbol
    "EXACT": ("exact", "✓"),
    "TIES-ONLY": ("ties", "="),
    "NEAR": ("near", "≈"),
    "FAIL": ("fail", "✗"),
    "TAINTED": ("skip", "○"),
    "UNJUDGED": ("skip", "○"),
    "MISSING": ("skip", "–"),
}
OUTCOMES = {"PASS": LOOKS["EXACT"], "FAIL": LOOKS["FAIL"], "INCOMPLETE": ("skip", "○")}
FAINTEST = 64  # of 255: a cell of the heat map in which a single element differs
PLANES = 24  # slices of a tensor that are drawn
LONGEST = 1024  # cells of a side; a larger plane is drawn in blocks
WIDEST = 640  # pixels of the page, of the longer side


def page(comparison: Comparison, causes: Mapping[str, str], total: int) -> bytes:
    """The page, UTF-8; `causes` by tap, `total` taps of the bundle."""
    word = comparison.outcome
    name, sign = OUTCOMES[word]
    first = comparison.first
    sections = [
        _names("Unknown: no tap of the model", [_meant(n, comparison) for n in comparison.unknown]),
        _names("To be noted", comparison.notes),
        _names("Required and absent", comparison.absent),
        _first(first, comparison, causes) if first else _no_divergence(),
        _overview(comparison, total),
        _table(comparison, causes),
        _names("Missing from the candidate, not judged", comparison.missing),
    ]
    return html.filled(
        html.asset("comparison.html"),
        html.asset("comparison.css"),
        title=escape(f"{word}: {comparison.candidate_path or 'candidate'}"),
        mode=escape(comparison.mode + (", strict" if comparison.strict else "")),
        heading=f'<span class="{name}">{sign} {word}</span>',
        candidate=escape(comparison.candidate_path or "-"),
        bundle=escape(comparison.bundle_path),
        main="\n".join(sections),
        version=escape(refimpl.__version__),
    )


def _first(verdict: Verdict, comparison: Comparison, causes: Mapping[str, str]) -> str:
    cause = text.likely(verdict, causes)
    known = text.facts(verdict, None)
    rows = "".join(f"<dt>{escape(label)}</dt><dd>{escape(value)}</dd>" for label, value in known)
    words = f'<p class="cause">Likely cause: <b>{escape(cause)}</b></p>' if cause else ""
    passed = " passed" if comparison.passed else ""
    return f"""<section class="first{passed}">
<h2><small>FIRST DIVERGENCE</small>{escape(verdict.name)}</h2>
{words}
<dl>{rows}</dl>
{_heat_map(verdict)}{_picture(verdict)}</section>"""


def _meant(name: str, comparison: Comparison) -> str:
    meant = comparison.suggested.get(name)
    return f"{name} (did you mean {meant}?)" if meant else name


def _no_divergence() -> str:
    return '<section><h2 class="exact">✓ No divergence</h2></section>'


# --- the pictures ---------------------------------------------------------------------------------


def _heat_map(verdict: Verdict) -> str:
    """How much of every token differs, on the grid of patches; nothing where there is no grid."""
    places = verdict.places
    if places is None or not text.comparable(verdict) or 1 in places.grid or 0 in places.grid:
        return ""
    mask = text.differing(verdict)
    axis = next((a for a, size in enumerate(mask.shape) if places.has_grid(a, size)), None)
    if axis is None or not mask.any():
        return ""
    share = mask.mean(axis=tuple(a for a in range(mask.ndim) if a not in (0, axis)))
    cells = places.grid[0] * places.grid[1]
    levels = np.where(share > 0, FAINTEST + (255 - FAINTEST) * share, 0).astype(np.uint8)
    name = places.names[axis].removesuffix("s")
    first = share[:, : share.shape[1] - cells]
    drawn = "".join(
        f"<div>{_title(places, i)}{_svg(row[-cells:].reshape(places.grid), f'grid{i}')}"
        f"{f'class token: {first[i, 0]:.0%} differ' if first.size else ''}</div>"
        for i, row in list(enumerate(levels))[:PLANES]
    )
    caption = (
        f"Heat map: the share of what differs, at each place of the {places.grid[0]} x "
        f"{places.grid[1]} grid of patches, by {name}. The fullest colour is all of it."
    )
    return f'<figure><div class="planes">{drawn}</div><figcaption>{caption}</figcaption></figure>'


def _title(places: Places, image: int) -> str:
    if places.windows > 1:
        return f"image {image // places.windows}, window {image % places.windows}"
    return f"image {image}"


def _picture(verdict: Verdict) -> str:
    """The differing elements of a tap in place; nothing where there is no element to compare."""
    if not text.comparable(verdict):
        return ""
    mask = text.differing(verdict)
    if mask.ndim == 0 or not mask.any():
        return ""
    planes = list(_planes(_axes(verdict, mask.ndim), mask))
    hit = [plane for plane in planes if plane[1].any()]
    shown = hit[:PLANES]
    names = _axes(verdict, mask.ndim)
    rows = f"{names[-2]} downwards, " if mask.ndim > 1 else ""
    left = f" {len(hit) - len(shown)} more differ." if len(hit) > len(shown) else ""
    same = f" {len(planes) - len(hit)} of {len(planes)} slices do not differ and are left out."
    beyond = "that differ" if verdict.flips is None else "beyond the tolerance"
    caption = (
        f"{int(mask.sum()):,} of {mask.size:,} elements {beyond}, in place: {rows}{names[-1]} "
        f"to the right.{same if len(hit) < len(planes) else ''}{left}"
    )
    drawn = "".join(
        f"<div>{escape(title)}{_svg(plane, f'slice{i}')}</div>"
        for i, (title, plane) in enumerate(shown)
    )
    return f'<figure><div class="planes">{drawn}</div><figcaption>{caption}</figcaption></figure>'


def _axes(verdict: Verdict, count: int) -> tuple[str, ...]:
    if verdict.places is not None:
        return verdict.places.names
    return tuple(f"axis {axis}" for axis in range(count))


def _planes(names: Sequence[str], mask: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Title and (rows, columns) of every slice of the last two axes."""
    for index in np.ndindex(mask.shape[:-2]):
        title = ", ".join(f"{place.removesuffix('s')}: {i}" for place, i in zip(names, index))
        yield title, np.atleast_2d(mask[index])


def _svg(mask: np.ndarray, name: str) -> str:
    """(rows, columns), bool or uint8, as a picture: the mask cuts the page's own colour."""
    mask = _blocks(mask)
    height, width = mask.shape
    cell = min(max(WIDEST // max(height, width), 1), 12)
    picture = Image.fromarray(mask if mask.dtype == np.uint8 else mask.astype(np.uint8) * 255, "L")
    image = html.png(picture if mask.dtype == np.uint8 else picture.convert("1"))
    size = f'width="{width}" height="{height}"'
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width * cell}" height="{height * cell}" '
        f'role="img" aria-label="{np.count_nonzero(mask)} of {mask.size} cells differ">'
        f'<mask id="{name}"><image {size} href="{image}"/></mask>'
        f'<rect class="flip" {size} mask="url(#{name})"/></svg>'
    )


def _blocks(mask: np.ndarray) -> np.ndarray:
    """At most LONGEST cells a side; a block differs where one of its elements does."""
    for axis in (0, 1):
        step = -(-mask.shape[axis] // LONGEST)
        starts = np.arange(0, mask.shape[axis], step)
        mask = np.maximum.reduceat(mask, starts, axis=axis)
    return mask


# --- all taps -------------------------------------------------------------------------------------


def _overview(comparison: Comparison, total: int) -> str:
    cells = "".join(
        f'<li class="{LOOKS[v.verdict][0]}"><a href="#t{i}" title="{escape(v.name)}: {v.verdict}" '
        f'aria-label="{escape(v.name)}: {v.verdict}"></a></li>'
        for i, v in enumerate(comparison.verdicts)
        if v.verdict != "MISSING"
    )
    counts = Counter(verdict.verdict for verdict in comparison.verdicts)
    items = "".join(
        f'<li><b class="{LOOKS[v][0]}">{LOOKS[v][1]} {counts[v]} {v}</b> '
        f"<span>{escape(text.MEANINGS.get(v, ''))}</span></li>"
        for v in text.VERDICTS
        if counts[v]
    )
    summary = escape(text.summary(comparison, total)[0])
    return f"""<section><h2>{summary}</h2>
<ul class="strip" aria-label="Taps in order of computation">{cells}</ul>
<ul class="counts">{items}</ul></section>"""


def _table(comparison: Comparison, causes: Mapping[str, str]) -> str:
    head = "".join(f'<th scope="col">{name}</th>' for name in text.COLUMNS)
    rows = [
        _row(i, verdict, comparison, causes.get(verdict.name))
        for i, verdict in enumerate(comparison.verdicts)
        if verdict.verdict != "MISSING"
    ]
    return f"""<section><h2>Taps in order of computation</h2><div class="scroll">
<table><thead><tr>{head}<td></td></tr></thead>
<tbody>{"".join(rows)}</tbody></table></div></section>"""


def _row(i: int, verdict: Verdict, comparison: Comparison, cause: str | None) -> str:
    style, symbol = LOOKS[verdict.verdict]
    name, kind, word, *numbers = text.row(verdict)
    why = escape(". ".join(part for part in (verdict.reason, cause) if part))
    bad = ' class="bad"' if failed(verdict, comparison.strict) else ""
    cells = "".join(f"<td>{number}</td>" for number in numbers)
    return (
        f'<tr id="t{i}"{bad}><th scope="row">{escape(name)}</th><td>{kind}</td>'
        f'<td class="verdict {style}">{symbol} {word}</td>{cells}<td class="why">{why}</td></tr>\n'
    )


def _names(title: str, names: Sequence[str]) -> str:
    if not names:
        return ""
    items = "".join(f"<li>{escape(name)}</li>" for name in names)
    return (
        f"<section><details{' open' if len(names) <= 40 else ''}><summary>{escape(title)} "
        f"({len(names)})</summary><ul>{items}</ul></details></section>"
    )
