"""What the notebooks draw with: panels, curves, bars, source text. BLAS gets one thread, too.

Nothing here computes anything about the network. First what several notebooks share, then the
figures of each. Whoever imports this computes on one thread: the arrays are small, and more
threads would get in each other's way.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Markdown
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch, Rectangle
from threadpoolctl import threadpool_limits

ONE_THREAD = threadpool_limits(1)  # for as long as the notebook runs

DPI = 100
plt.rcParams.update(
    {
        "figure.dpi": DPI,
        "figure.facecolor": "white",
        "font.size": 10,
        "axes.titlesize": 10.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.grid": True,
        "grid.alpha": 0.25,
        "legend.frameon": False,
    }
)
SIGNED = "PuOr"  # purple above 0, white at 0, orange below: safe for colour-blind readers
SIGNED_COARSE = plt.get_cmap("PuOr", 15)  # few colours make small files
GREY = plt.get_cmap("gray", 32)
INK = plt.get_cmap("Greys", 32)  # white at 0
# Okabe and Ito's colours, told apart by everybody
BLUE, ORANGE, GREEN, RED, PINK, SKY = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
)


def draw_cells(
    *panels: tuple, between: Sequence[str] = "", cell: float = 0.42, gap: float = 0.45
) -> None:
    """A row of grids with their numbers: panels (title, values, frames to draw).

    A frame is (row, column, height, width); NaN is an empty place; cell and gap in inches.
    """
    limit = 2 * max(np.nanmax(np.abs(values)) for _, values, *_ in panels)
    heights = [cell * values.shape[0] for _, values, *_ in panels]
    widths = [cell * values.shape[1] for _, values, *_ in panels]
    height, width = max(heights) + 0.35, sum(widths) + gap * (len(panels) - 1)
    figure = plt.figure(figsize=(width, height))
    left = 0.0
    for k, (title, values, *frames) in enumerate(panels):
        bottom = (max(heights) - heights[k]) / 2
        box = (left / width, bottom / height, widths[k] / width, heights[k] / height)
        axis = figure.add_axes(box)
        _grid_of_numbers(axis, title, values, frames, limit)
        if between and k:
            x, y = (left - gap / 2) / width, 0.5 * max(heights) / height
            figure.text(x, y, between[k - 1], ha="center", va="center", size=15)
        left += widths[k] + gap
    plt.show()


def _grid_of_numbers(axis: Axes, title: str, values: np.ndarray, frames: list, limit: float):
    axis.imshow(values, cmap=SIGNED, vmin=-limit, vmax=limit)
    for (i, j), value in np.ndenumerate(values):
        if not np.isnan(value):
            frame = Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, ec="0.75", lw=0.8)
            axis.add_patch(frame).set_clip_on(False)
            text = f"{value:g}".replace("-", "\N{MINUS SIGN}")
            axis.text(j, i, text, ha="center", va="center", size=9 if len(text) < 5 else 8)
    for i, j, rows, columns in frames:
        frame = Rectangle((j - 0.5, i - 0.5), columns, rows, fill=False, ec="black", lw=2.5)
        axis.add_patch(frame).set_clip_on(False)
    axis.set_axis_off()
    axis.set_title(title, size=10.5, pad=5)


def draw_pixels(*panels: tuple, zoom: int = 1, gap: int = 12, head: int = 24) -> None:
    """A row of pictures, zoom screen pixels a pixel: panels (title, values, colours, low, high,
    frames to draw).

    A frame is (row, column, height, width) in pixels of the picture; gap and head (the room for
    a title) in screen pixels.
    """
    shapes = [np.shape(values) for _, values, *_ in panels]
    width = zoom * sum(w for _, w in shapes) + gap * (len(panels) - 1)
    height = zoom * max(h for h, _ in shapes) + head
    figure = plt.figure(figsize=(width / DPI, height / DPI))
    left = 0
    for (title, values, cmap, low, high, *frames), (h, w) in zip(panels, shapes, strict=True):
        box = (left / width, 0, zoom * w / width, zoom * h / height)
        axis = figure.add_axes(box)
        axis.imshow(values, cmap=cmap, vmin=low, vmax=high, interpolation="nearest", aspect="auto")
        for i, j, rows, columns in frames:
            frame = Rectangle((j - 0.5, i - 0.5), columns, rows, fill=False, ec=RED, lw=2)
            axis.add_patch(frame).set_clip_on(False)
        axis.set_axis_off()
        axis.set_title(title, size=10.5, pad=5)
        left += zoom * w + gap
    plt.show()


def source(*functions: Any) -> Markdown:
    """The source text as it is in the package."""
    return Markdown("```python\n" + "\n\n".join(map(inspect.getsource, functions)) + "```")


def numbers(name: str, values: Any) -> None:
    """Print a name, the shape, and the first four numbers."""
    values = np.asarray(values)
    first = [int(x) if values.dtype.kind in "bi" else float(x) for x in values.ravel()[:4]]
    shown = "  ".join(f"{x:8d}" if isinstance(x, int) else f"{x:8.3f}" for x in first)
    print(f"{name:26s} {values.shape!s:13s} {shown}")


# --- 1 · One bit ----------------------------------------------------------------------------------


def draw_race(sizes: Sequence[int], times: Mapping[str, np.ndarray]) -> None:
    """Seconds by size, and how often the first way's time that of each other one is."""
    figure, axes = plt.subplots(1, 2, figsize=(9.2, 3.2), layout="constrained")
    slowest = next(iter(times.values()))
    for (label, seconds), colour in zip(times.items(), (ORANGE, GREEN, BLUE), strict=True):
        axes[0].plot(sizes, 1e6 * seconds, marker="o", ms=4, color=colour, label=label)
        if seconds is not slowest:
            axes[1].plot(sizes, slowest / seconds, marker="o", ms=4, color=colour, label=label)
    axes[0].set(xscale="log", yscale="log", title="time, µs")
    axes[1].set(xscale="log", yscale="log", title="times as fast as float32")
    axes[1].axhline(1, color="black", lw=0.8)
    axes[1].set_yticks([0.25, 1, 4, 16, 64], ["¼", "1", "4", "16", "64"])
    for axis in axes:
        axis.set_xticks(sizes, sizes)
        axis.minorticks_off()
        axis.set_xlabel("rows, columns and K")
        axis.legend()
    plt.show()


# --- 2 · Gradients through a sign -----------------------------------------------------------------


def draw_walks(downhill: np.ndarray, randomly: Sequence[np.ndarray], close: np.ndarray) -> None:
    """The loss on the way along the gradient, along random ways, and from nearby."""
    figure, axes = plt.subplots(1, 2, figsize=(8.8, 2.8), layout="constrained")
    for losses in randomly:
        axes[0].plot(np.linspace(0, 0.4, len(losses)), losses, color="0.7", lw=1)
    axes[0].plot(np.linspace(0, 0.4, len(downhill)), downhill, color=BLUE)
    axes[0].set(title="minus the gradient, and random ways", ylabel="loss")
    axes[0].set_xlabel("step / size of layer")
    axes[1].plot(np.linspace(0, 1, len(close)), close, color=BLUE, drawstyle="steps-mid")
    axes[1].set(title="the same, 4,000 times closer", xlabel="step / size of layer, × 10⁻⁴")
    axes[1].ticklabel_format(useOffset=False)
    plt.show()


def draw_runs(results: Mapping[str, list], title: str) -> None:
    """Loss curves and test accuracies; results: name -> one (losses, accuracy) a seed."""
    figure, axes = plt.subplots(1, 2, figsize=(9.4, 3.3), layout="constrained")
    colours = dict(zip(results, (BLUE, SKY, GREEN, ORANGE, "black", PINK, RED), strict=False))
    for name, runs in results.items():
        mean = np.mean([losses for losses, _ in runs], axis=0)
        smooth = np.convolve(mean, np.ones(12) / 12, mode="valid")
        style = ":" if name == "of the sign" else "-"
        axes[0].plot(smooth, style, color=colours[name], label=name)
        scores = [100 * accuracy for _, accuracy in runs]
        axes[1].plot(scores, [name] * len(scores), "o", color=colours[name], alpha=0.7)
    axes[0].set(title=title, xlabel="step", ylabel="loss", ylim=(0, 2.8))
    axes[1].set(title="test digits right, one point a seed", xlabel="%", xlim=(0, 100))
    axes[1].invert_yaxis()
    plt.show()


# --- 4 · What binary attention forgets ------------------------------------------------------------


def draw_power(left: Mapping[str, tuple[np.ndarray, str]]) -> None:
    """The share of power that is left at frequencies from 1 on; left: label -> (share, colour)."""
    figure, axis = plt.subplots(figsize=(6.4, 3.2), layout="constrained")
    for label, (share, colour) in left.items():
        waves = np.arange(1, len(share) + 1)
        axis.plot(waves, share, marker="o", ms=3, color=colour, label=label)
    axis.set(xlabel="frequency, waves across the picture", ylabel="power left", ylim=(0, 1.25))
    axis.legend(loc="lower right", bbox_to_anchor=(1, 0.24))
    plt.show()


def draw_spectra(
    spectra_of_block: Callable[[str], Mapping], depth: int, ylabel: str, yscale: str = "log"
) -> None:
    """A panel for each block; spectra_of_block(at) -> {label: (power, colour)}."""
    figure, axes = plt.subplots(1, depth, figsize=(9.6, 2.7), sharey=True, layout="constrained")
    for i, axis in enumerate(axes):
        for label, (spectrum, colour) in spectra_of_block(f"blocks.{i}.attn.").items():
            axis.plot(spectrum, marker="o", ms=3, color=colour, label=label)
        axis.set(title=f"block {i}", xlabel="frequency", yscale=yscale, xticks=range(5))
    axes[0].set_ylabel(ylabel)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    plt.show()


def draw_shares(shares: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
    """Histograms of λs and λn, a panel for each block; shares: (lam_s, lam_n) of each."""
    count = len(shares)
    figure, axes = plt.subplots(1, count, figsize=(9.6, 2.6), sharey=True, layout="constrained")
    edge = max(np.abs(both).max() for both in shares)
    bins = np.linspace(-edge, edge, 60)
    for i, (axis, (lam_s, lam_n)) in enumerate(zip(axes, shares, strict=True)):
        axis.hist(lam_s, bins, color=ORANGE, label="λs")
        axis.hist(lam_n, bins, color=GREEN, alpha=0.7, label="λn")
        axis.axvline(0, color="black", lw=0.8)
        axis.set(title=f"block {i}", xlabel="value", ylim=(0, 20))
    axes[0].set_ylabel("channels")
    axes[0].legend(loc="upper left")
    axes[-1].text(0.08, 18, "64 at 0", color=GREEN)
    plt.show()


# --- 5 · High-fidelity similarity -----------------------------------------------------------------


def draw_agreement(rows: Sequence[tuple], measures: Mapping[str, Callable], title: str) -> None:
    """Two measures as bars, a group for each block; rows: (label, colour, a pair for each)."""
    figure, axes = plt.subplots(1, 2, figsize=(9.4, 2.9), sharey=True, layout="constrained")
    width, blocks = 0.8 / len(rows), len(rows[0][2])
    for axis, (name, measure) in zip(axes, measures.items(), strict=True):
        for k, (label, colour, pairs) in enumerate(rows):
            heights = [measure(*pair) for pair in pairs]
            at = np.arange(blocks) + (k - (len(rows) - 1) / 2) * width
            axis.bar(at, heights, width, color=colour, label=label)
        axis.set(title=name, xticks=range(blocks), ylim=(0, 1))
        axis.set_xticklabels([f"block {i}" for i in range(blocks)])
        axis.grid(False, axis="x")
    figure.suptitle(title, size=11)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    plt.show()


def draw_steps(rows: Mapping[str, np.ndarray], tied: Mapping[str, Sequence[float]]) -> None:
    """Rows of scores, best key first, and the share of tied pairs by block."""
    colours = {"low alone": SKY, "high alone": ORANGE, "sum": GREEN}
    figure, axes = plt.subplots(1, 2, figsize=(9.4, 2.8), layout="constrained")
    for name, scores in rows.items():
        row = np.sort(scores)[::-1]
        scaled = (row - row.mean()) / row.std()
        axes[0].step(range(len(row)), scaled, where="mid", color=colours[name], label=name)
    axes[0].set(
        title="a row of block 1, best key first", xlabel="key", ylabel="score in deviations"
    )
    axes[0].legend()
    for k, (name, shares) in enumerate(tied.items()):
        at = np.arange(len(shares)) + (k - 1) * 0.27
        axes[1].bar(at, 100 * np.array(shares), 0.27, color=colours[name], label=name)
    axes[1].set(title="pairs of keys that are tied, %", xticks=range(len(shares)), ylim=(0, 16))
    axes[1].set_xticklabels([f"block {i}" for i in range(len(shares))])
    axes[1].grid(False, axis="x")
    axes[1].legend(ncols=3)
    plt.show()


# --- 6 · RPReLU, channel and token ----------------------------------------------------------------


def draw_channels(before: np.ndarray, after: np.ndarray) -> None:
    """Histograms of all channels (B, N, C), a row each, in order of their medians before."""
    bins = np.linspace(-4, 4, 97)
    figure, axes = plt.subplots(1, 2, figsize=(9.4, 3.2), sharey=True, layout="constrained")
    order = np.argsort(np.median(before, axis=(0, 1)))
    for axis, values, title in zip(axes, (before, after), ("before", "after"), strict=True):
        rows = [np.histogram(values[..., c], bins, density=True)[0] for c in order]
        extent = (bins[0], bins[-1], len(order) - 0.5, -0.5)
        axis.imshow(rows, aspect="auto", extent=extent, cmap="Greys", vmin=0, vmax=0.8)
        axis.axvline(0, color=RED, lw=0.8)
        axis.set(title=title, xlabel="value")
        axis.grid(False)
    axes[0].set_ylabel("channel")
    plt.show()


def draw_slopes(slopes: Sequence[np.ndarray]) -> None:
    """Histograms of the slopes, a panel for each block."""
    count = len(slopes)
    figure, axes = plt.subplots(1, count, figsize=(9.6, 2.4), sharey=True, layout="constrained")
    for i, (axis, values) in enumerate(zip(axes, slopes, strict=True)):
        axis.hist(values, np.linspace(-0.7, 1.1, 46), color=BLUE)
        axis.axvline(0.25, color=ORANGE, lw=1.5)
        axis.axvline(0, color="black", lw=0.8)
        axis.set(title=f"block {i}: {np.mean(values < 0):.0%} negative", xlabel="slope")
    axes[0].set_ylabel("channels")
    plt.show()


def draw_token_shifts(maps: Sequence[Sequence[np.ndarray]], names: Sequence[str]) -> None:
    """A row a block: its maps of 7 x 7 in pairs, in and out, under the names of the pairs."""
    figure, axes = plt.subplots(len(maps), 1, figsize=(9.8, 2.5), layout="constrained")
    for block, (axis, shifts) in enumerate(zip(axes, maps, strict=True)):
        picture = np.full((7, 9 * len(shifts)), np.nan)
        for k, shift in enumerate(shifts):
            left = 18 * (k // 2) + 8 * (k % 2)
            picture[:, left : left + 7] = shift
        axis.imshow(picture, cmap=SIGNED_COARSE, vmin=-0.6, vmax=0.6, interpolation="nearest")
        axis.set(yticks=[3], yticklabels=[f"block {block}"], xticks=[])
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
        axis.grid(False)
    axes[0].set_xticks([18 * k + 7 for k in range(len(names))], names)
    axes[0].xaxis.tick_top()
    axes[0].tick_params(length=0)
    plt.show()


def draw_entropies(results: np.ndarray) -> None:
    """Entropy and frozen bits, as trained over averaged: results (n, 4)."""
    figure, axes = plt.subplots(1, 2, figsize=(8.2, 3.3), layout="constrained")
    titles = ("entropy of a bit", "bits that never change")
    for column, (axis, title) in enumerate(zip(axes, titles, strict=True)):
        axis.scatter(results[:, column + 2], results[:, column], s=20, color=BLUE)
        top = 0.8
        axis.plot([0, top], [0, top], color="0.6", lw=1)
        axis.set(title=title, xlabel="token shifts averaged", ylabel="as trained")
        axis.set(xlim=(0, top), ylim=(0, top), aspect="equal")
    plt.show()


# --- 7 · One digit through the network ------------------------------------------------------------


def draw_taps(pictures: Mapping[str, np.ndarray], columns: int = 10) -> None:
    """Pictures under their names, bits in black and white."""
    rows = -(-len(pictures) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(9, 0.9 * rows), layout="constrained")
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, (name, picture) in zip(axes.flat, pictures.items(), strict=False):
        draw_tap(axis, picture)
        axis.set_title(name.removeprefix("attn."), size=6.5, pad=2)
    plt.show()


def draw_step(pictures: Mapping[str, np.ndarray]) -> None:
    """What an operation reads and, last, what it gives."""
    size = (2.3 * len(pictures), 1.7)
    figure, axes = plt.subplots(1, len(pictures), figsize=size, squeeze=False, layout="constrained")
    for axis, (name, picture) in zip(axes.flat, pictures.items(), strict=True):
        draw_tap(axis, picture)
        axis.set_title(name, size=8, pad=3)
    plt.show()


def slider(show: Callable[[int], None], count: int) -> None:
    """A slider over show(0) to show(count - 1), where ipywidgets is there."""
    try:
        from ipywidgets import IntSlider, interact
    except ImportError:
        print("ipywidgets is not installed: the pictures above are some of the steps, show(k) more")
        return
    interact(show, k=IntSlider(min=0, max=count - 1, continuous_update=False))


def draw_tap(axis: Axes, picture: np.ndarray) -> None:
    """One picture of a tap, few colours: that keeps the file small."""
    shown: dict[str, Any] = {"aspect": "auto", "interpolation": "nearest"}
    if picture.dtype == bool:
        axis.imshow(picture, cmap=GREY, vmin=0, vmax=1, **shown)
    else:
        limit = 2.5 * picture.std() + 1e-12
        axis.imshow(picture, cmap=plt.get_cmap(SIGNED, 5), vmin=-limit, vmax=limit, **shown)
    axis.set_axis_off()


def draw_opinions(opinions: np.ndarray, names: Sequence[str]) -> None:
    """Probabilities of the digits, a row for each place in the network."""
    figure, axis = plt.subplots(figsize=(6, 2.3), layout="constrained")
    axis.imshow(opinions, cmap=INK, vmin=0, vmax=1)
    for (i, j), probability in np.ndenumerate(np.array(opinions)):
        if probability > 0.1:
            colour, text = "white" if probability > 0.5 else "black", f"{100 * probability:.0f}"
            axis.text(j, i, text, ha="center", va="center", color=colour, size=8)
    axis.set(xticks=range(10), yticks=range(len(names)), yticklabels=names, xlabel="digit, %")
    axis.set_aspect("auto")
    axis.grid(False)
    plt.show()


# --- 8 · Training from scratch --------------------------------------------------------------------


def draw_creep(track: np.ndarray, bits: np.ndarray) -> None:
    """Latent weights over the steps, and what the network sees of them; both (steps, weights)."""
    figure, axes = plt.subplots(1, 2, figsize=(8.6, 2.6), layout="constrained")
    for i, colour in enumerate((BLUE, GREEN, ORANGE, RED)):
        axes[0].plot(track[:, i], color=colour)
        axes[0].text(len(track) - 0.7, track[-1, i], f"{i}", color=colour, va="center")
    axes[0].axhline(0, color="black", lw=0.8)
    axes[0].set(title="latent weights", xlabel="step")
    axes[1].imshow(bits.T, cmap=SIGNED_COARSE, vmin=-0.3, vmax=0.3, aspect="auto")
    axes[1].set(title="what the network sees", xlabel="step", ylabel="weight", yticks=range(4))
    axes[1].grid(False)
    plt.show()


def draw_training(
    loss: Sequence[float], percent: np.ndarray, rate: Sequence[float], scores: list, switch: int
) -> None:
    """Loss, test accuracy, bits that turn over and the learning rate, by step."""
    figure, axes = plt.subplots(3, 1, figsize=(8.6, 6), sharex=True, layout="constrained")
    smooth = np.convolve(loss, np.ones(25) / 25, mode="valid")
    axes[0].plot(loss, color="0.8", lw=0.7)
    axes[0].plot(np.arange(24, len(loss)), smooth, color=BLUE, label="loss, mean of 25 steps")
    axes[0].set(ylabel="loss", ylim=(0.5, 2.6))
    axes[0].legend()
    axes[1].plot(*zip(*scores, strict=True), marker="o", ms=4, color=GREEN)
    axes[1].set(ylabel="test accuracy", ylim=(0, 1))
    axes[2].plot(percent, color=ORANGE, lw=0.8)
    axes[2].set(ylabel="bits that turn over, %", xlabel="step", ylim=(0, None))
    right = axes[2].twinx()
    right.plot(rate, color="0.5", lw=1)
    right.set_ylabel("learning rate", color="0.5")
    right.grid(False)
    for axis in axes:
        axis.axvline(switch, color="black", ls=":")
    axes[0].text(switch - 6, 2.4, "activations", ha="right")
    axes[0].text(switch + 6, 2.4, "full")
    plt.show()


def draw_turns(turned: np.ndarray, latent: Mapping[str, np.ndarray]) -> None:
    """How often bits turned over, and where their latent weights are at three times."""
    figure, axes = plt.subplots(1, 2, figsize=(8.6, 2.8), layout="constrained")
    most = 10
    share = 100 * np.bincount(np.minimum(turned, most), minlength=most + 1)[:most] / turned.size
    for parity, colour, label in ((0, "0.65", "back where it began"), (1, ORANGE, "other side")):
        times = np.arange(parity, most, 2)
        axes[0].bar(times, share[times], color=colour, label=label)
    axes[0].set(xlabel="times a bit turned over", ylabel="% of the bits", xticks=range(most))
    axes[0].legend()
    axes[0].grid(False, axis="x")
    for (label, centred), colour in zip(latent.items(), (BLUE, ORANGE, GREEN), strict=True):
        bins = np.linspace(-0.5, 0.5, 101)
        axes[1].hist(centred.ravel(), bins, histtype="step", color=colour, label=label)
    axes[1].set(
        xlabel="latent weights of blocks.0.mlp.up, centred", ylabel="weights", ylim=(0, 450)
    )
    axes[1].legend()
    plt.show()


# --- 9 · Compare your port ------------------------------------------------------------------------

VERDICTS = {
    "EXACT": GREEN,
    "NEAR": "#9AD6C3",
    "TIES-ONLY": ORANGE,
    "FAIL": RED,
    "TAINTED": "0.85",
    "UNJUDGED": "white",
}


def draw_verdicts(verdicts: Sequence[str], title: str) -> None:
    """A strip with a mark for each tap, first to last."""
    row = [list(VERDICTS).index(v) for v in verdicts]
    figure, axis = plt.subplots(figsize=(9.4, 0.95), layout="constrained")
    colours = ListedColormap(list(VERDICTS.values()))
    crisp: dict[str, Any] = {"aspect": "auto", "interpolation": "nearest"}
    axis.imshow([row], cmap=colours, vmin=-0.5, vmax=len(VERDICTS) - 0.5, **crisp)
    axis.set(yticks=[], title=title)
    axis.grid(False)
    shown = [Patch(color=c, label=v) for v, c in VERDICTS.items() if v in verdicts]
    axis.legend(handles=shown, loc="upper left", bbox_to_anchor=(1, 1.3), fontsize=8)
    plt.show()


# --- 10 · Does it do what the paper says? ---------------------------------------------------------

SEEDS = (BLUE, ORANGE, GREEN, PINK, SKY, RED)  # colours, one a seed


def draw_pairs(react: Mapping, didb: Mapping, gains: Mapping) -> None:
    """What each seed reached without and with the ideas, and the differences."""
    figure, axes = plt.subplots(1, 2, figsize=(8.6, 3.1), layout="constrained")
    for (seed, gain), colour in zip(gains.items(), SEEDS, strict=False):
        pair = (react[seed], didb[seed])
        axes[0].plot((0, 1), pair, marker="o", color=colour, label=f"seed {seed}")
        axes[1].bar(str(seed), gain, 0.5, color=colour)
    axes[0].set(xticks=(0, 1), xlim=(-0.4, 1.4), ylabel="top-1 on the test images, %")
    axes[0].set_xticklabels(("react", "didb"))
    axes[0].legend(loc="upper left")
    axes[1].set(xlabel="seed", ylabel="didb \N{MINUS SIGN} react, points")
    for axis in axes:
        axis.grid(False, axis="x")
    plt.show()


def draw_differences(
    by_row: Mapping[str, Mapping], means: Mapping[str, tuple], scatter: float, label: str
) -> None:
    """Dots by seed, means with their errors, and the band in which noise alone would put a run."""
    figure, axis = plt.subplots(figsize=(7.6, 0.38 * len(by_row) + 0.8), layout="constrained")
    for width in (2, 1):
        axis.axvspan(-width * scatter, width * scatter, color="0.5", alpha=0.15, lw=0)
    axis.axvline(0, color="black", lw=0.8)
    for y, (row, found) in enumerate(by_row.items()):
        for value, colour in zip(found.values(), SEEDS, strict=False):
            axis.plot(value, y, "o", color=colour, ms=6)
        middle, error = means[row]
        if error is not None:
            axis.errorbar(middle, y, xerr=error, fmt="D", color="black", capsize=4, ms=4)
    axis.set(yticks=range(len(by_row)), xlabel=label, ylim=(len(by_row) - 0.5, -0.5))
    axis.set_yticklabels(by_row)
    plt.show()


def draw_curves(by_row: Mapping[str, Sequence], label: str) -> None:
    """Scores after every epoch: the mean of a row's seeds, in a band from lowest to highest."""
    figure, axis = plt.subplots(figsize=(7.6, 3.2), layout="constrained")
    for (row, curves), colour in zip(by_row.items(), SEEDS, strict=False):
        epochs, scores = np.arange(1, len(curves[0]) + 1), np.array(curves)
        axis.plot(epochs, scores.mean(axis=0), color=colour, label=row)
        axis.fill_between(epochs, scores.min(axis=0), scores.max(axis=0), color=colour, alpha=0.2)
    axis.set(xlabel="epoch", ylabel=label)
    axis.legend(loc="lower right")
    plt.show()


def draw_alphas(watched: Mapping[float, tuple], tokens: int) -> None:
    """Above alpha as a multiple of its start, below the share of ones, for each rate."""
    size: dict[str, Any] = {"figsize": (8.6, 4.6), "sharex": True, "sharey": "row"}
    figure, axes = plt.subplots(2, 2, layout="constrained", **size)
    for column, (rate, (alphas, ones, *_)) in enumerate(watched.items()):
        for i in range(alphas.shape[1]):
            axes[0, column].plot(alphas[:, i] * tokens, color=SEEDS[i], label=f"block {i}")
            axes[1, column].plot(ones[:, i], color=SEEDS[i])
        axes[0, column].axhline(0, color="black", lw=0.8)
        axes[0, column].set(title=f"alpha_rate {rate}")
        axes[1, column].set(xlabel="step", ylim=(0, 1.05))
    axes[0, 0].set(ylabel="α N")
    axes[1, 0].set(ylabel="share of ones")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=6)
    plt.show()


def draw_reached(reached: Mapping[str, Mapping], label: str) -> None:
    """A bar for the mean of each row, and a dot for each seed."""
    figure, axis = plt.subplots(figsize=(6.4, 0.5 * len(reached) + 0.8), layout="constrained")
    for y, found in enumerate(reached.values()):
        axis.barh(y, np.mean(list(found.values())), 0.6, color="0.85")
        for (seed, value), colour in zip(found.items(), SEEDS, strict=False):
            axis.plot(value, y, "o", color=colour, label=f"seed {seed}")
    axis.set(yticks=range(len(reached)), xlabel=label, xlim=(0, 100))
    axis.set_yticklabels(reached)
    axis.invert_yaxis()
    axis.grid(False, axis="y")
    plt.show()
