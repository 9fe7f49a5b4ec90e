"""Text for the notebooks: what a command prints, and sentences made of numbers that were computed.

Nothing here computes anything: a cell finds the numbers, asserts what is said of them, and hands
them over. Differences are in points of accuracy or mIoU, shares in 0 ... 1.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterable, Mapping, Sequence

from IPython.display import Markdown

from refimpl import cli


def command(*arguments: object, folder: object) -> tuple[str, int]:
    """Run `refimpl` with these arguments -> (what it prints, without the folder; exit status)."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        status = cli.main([str(argument) for argument in arguments])
    return printed.getvalue().replace(f"{folder}/", ""), status


def signed(number: float, digits: int = 2) -> str:
    """A number with its sign, and a minus as it is printed."""
    return f"{number:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


def listed(words: Iterable[object], none: str = "none") -> str:
    """The words, or what to say where there are none."""
    return ", ".join(map(str, words)) or none


# --- 7 · One digit through the whole network ------------------------------------------------------


def print_around(lines: Sequence[str], place: int) -> None:
    """Print a line, marked by an arrow, between its neighbours."""
    for i in range(max(place - 1, 0), min(place + 2, len(lines))):
        print("→" if i == place else " ", lines[i])


# --- 10 · Does it do what the paper says? ---------------------------------------------------------


def idea(row: str) -> str:
    """The idea that a row adds: "react + haar" -> "haar"."""
    return row.removeprefix("react + ")


def of_seeds(spreads: Sequence[float], least: float, most: float) -> Markdown:
    """How far seeds are apart, and what one run each could have found."""
    return Markdown(
        f"The seeds of one and the same network are {min(spreads):.1f} to {max(spreads):.1f} "
        "points apart. With one run of each, of whatever seeds, one could have found a gain of "
        f"anything from {signed(least)} to {signed(most)} points."
    )


def of_pairs(gain: float, paired: float, unpaired: float, wide: float, count: int) -> Markdown:
    """A gain with its two standard errors, and the half width of its interval."""
    return Markdown(
        f"The gain is {signed(gain)} points either way. Its standard error is {paired:.2f} points "
        f"by pairs and {unpaired:.2f} without, {unpaired / paired:.0f} times as much. (Of {count} "
        "differences: the interval that holds the truth in 95 of 100 cases is "
        f"{gain - wide:.1f} to {gain + wide:.1f}, wider than two errors each way, since an error "
        "found from so few is itself uncertain.)"
    )


def of_ideas(
    alone: Mapping[str, float], runs: Sequence[int], scatter: float, clear: Sequence[str]
) -> Markdown:
    """What each idea changes alone, and which of these are clear of the scatter."""
    counted = f"{min(runs)} to {max(runs)}" if min(runs) < max(runs) else f"{runs[0]}"
    each = listed(f"{idea(row)} {signed(points)}" for row, points in alone.items())
    unclear = [row for row in alone if row not in clear]
    return Markdown(
        f"- **One at a time** (runs of each: {counted}): {each}. A single difference scatters by "
        f"{scatter:.2f}, so more than two standard errors from zero: {listed(map(idea, clear))}; "
        f"not: {listed(map(idea, unclear))}."
    )


def of_all(gain: float, seeds: int, added: float, together: float, shared: int) -> Markdown:
    """What all three ideas change, and the sum of what each changes alone."""
    return Markdown(
        f"- **All three** are {signed(gain)} points above `react`, with each of {seeds} seeds.\n"
        f"- **The sum** of the three is {signed(added)}; all at once they make "
        f"{signed(together)} with the same {'seeds' if shared > 1 else 'seed'}."
    )


def of_capacity(control: float, haar: float, didb: float, more: int) -> Markdown:
    """The control against `react`; Haar, and `didb` with more parameters, against the control."""
    return Markdown(
        f"- **Capacity**: the control is {signed(control)} points from `react`. With the bands, "
        f"Haar is {signed(haar)} points from it; `didb`, with {more:,} parameters more than the "
        f"control, {signed(didb)}."
    )


def of_real(points: float, last: bool, real: float, didb: float) -> Markdown:
    """The real network in the table, and the two that were trained long, in per cent."""
    return Markdown(
        f"In the table the real network is {signed(points)} points from `react`"
        f"{': it comes last' if last else ''}. The shipped networks, which saw all 50,000 images "
        f"for more than ten epochs by recipes of their own, are in the order one expects: the real "
        f"one at {real:.2f} %, `didb`, wider and taught by it, at {didb:.2f} %, a gap of "
        f"{real - didb:.1f} points."
    )


def of_larger(
    short: Sequence[float],
    gains: Sequence[float],
    real: float,
    reached: Mapping[str, float],
    scatter: float,
) -> Markdown:
    """The rows trained long, in per cent, and `didb` above `react` there and in short trainings."""
    ends = listed(f"`{row}` {points:.1f} %" for row, points in reached.items())
    gain, mean = (sum(pairs) / len(pairs) for pairs in (short, gains))
    more, error = mean - gain, scatter * (1 / len(short) + 1 / len(gains)) ** 0.5
    return Markdown(
        f"At the end, on the 10,000 test images: {ends}. `didb` is {signed(mean)} points above "
        f"`react` (by seed: {listed(map(signed, gains))}), where the short trainings have "
        f"{signed(gain)}. So the distance **{'grows' if more > 0 else 'shrinks'}**; the paper's, "
        f"on ImageNet, is {signed(3.2, 1)}. A difference of one pair of runs scatters by "
        f"{scatter:.2f} points, so {signed(more)} between {len(short)} pairs and {len(gains)} is "
        f"a hint, of {abs(more) / error:.1f} standard errors. The real network is now "
        f"{signed(real)} points from `react`."
    )


def of_readings(
    lead: float, best: str, ahead: float, share: float, others: Mapping[str, float], missing: int
) -> Markdown:
    """By how much the best of equal networks leads, and by how much the best reading does."""
    order = sorted(others, key=lambda row: -others[row])
    above = (
        "as it is: no other choice was above it"
        if best == "didb"
        else f"{ahead:.2f} points above `didb`, which eight equal ones reach in {share:.0%} of the "
        "draws"
    )
    return Markdown(
        f"Eight equal networks: the best leads the first by {lead:.1f} points on average. \n\n"
        f"The readings: the best is **{best}**, {above}. The others in order: "
        f"{listed(f'{row} {signed(others[row])}' for row in order)}."
        + (f" ({missing} not run yet.)" if missing else "")
    )


def of_dead(steps: Iterable[int], depth: int, last: int, drift: float) -> Markdown:
    """At which steps alpha fell below zero at the full rate; how far it is at the small one."""
    steps = list(steps)
    return Markdown(
        f"At the full rate {len(steps)} of {depth} blocks are dead after {last} steps: α fell "
        f"below zero at step {listed(steps)}. At 0.02 of it none is, and α is within {drift:.0%} "
        "of its start."
    )


def of_scenes(didb: Iterable[float], real: float, alone: Mapping[str, float]) -> Markdown:
    """Segmentation: `didb` above `react` by seed, the real network, each idea alone."""
    by_seed = list(didb)
    each = listed(f"{idea(row)} {signed(points)}" for row, points in alone.items())
    return Markdown(
        f"`didb` is {signed(sum(by_seed) / len(by_seed))} points above `react` (by seed: "
        f"{listed(map(signed, by_seed))}), the real network {signed(real)}; `react` with one idea "
        f"alone: {each}."
    )


def of_pixels(
    mean_iou: float, right: float, digits: tuple[int, int], lost: float, taken: tuple[int, int]
) -> Markdown:
    """Of 40 scenes: mIoU, pixels, best and worst digit, what is lost and what is mixed up."""
    return Markdown(
        f"Of these 40 scenes: mIoU {mean_iou:.0%} (dotted), {right:.0%} of all pixels right; the "
        f"best digit is {digits[0]}, the worst {digits[1]}. Of the wrong pixels of digits "
        f"{lost:.0%} were called background; the digit most often taken for another is {taken[0]}, "
        f"for {taken[1]}."
    )


def of_it_all(
    gain: float,
    paired: float,
    wide: float,
    seeds: int,
    longer: float,
    scenes: float,
    control: float,
    over_control: float,
    best: float,
    clear: Sequence[str],
) -> Markdown:
    """The answer to the notebook's question."""
    return Markdown(
        "*Does it do what the paper says?*\n\n"
        f"- **Yes, in direction.** With all three ideas the network is {signed(gain)} points "
        f"better than without (standard error {paired:.2f}), with each of {seeds} seeds, and "
        f"{signed(longer)} with more images and epochs; the paper reports 3.2 on ImageNet. In "
        f"segmentation it is better with each seed as well ({signed(scenes)} points of mIoU).\n"
        "- **Is it the ideas?** Capacity alone it is not: the control with nearly all the "
        f"parameters is {signed(control)} points from `react`, and `didb` {signed(over_control)} "
        f"from the control. One idea alone gives at most {signed(best)}; clear of the noise: "
        f"{listed(map(idea, clear), 'none of the three')}.\n"
        f"- **How sure?** Of the sign, quite. Of the size, {wide:.1f} points each way "
        f"({gain - wide:.1f} to {gain + wide:.1f}), for these images and this recipe."
    )


# --- 11 · Bring your own network, take it anywhere ------------------------------------------------


def lines_of(source: str, layer: str) -> str:
    """The lines of a layer in the C function that is the network, without those for taps."""
    network = source[source.index("/* --- the network --- */") :]
    part = network[network.index(f"/* {layer} */") :].split("\n\n", 1)[0]
    return re.sub(r"#ifdef TAPS.*?#endif\n?", "", part + "\n", flags=re.DOTALL)
