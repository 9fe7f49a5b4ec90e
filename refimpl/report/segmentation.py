"""Label maps and confusion matrices as pictures."""

import os
from collections.abc import Container, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from refimpl.data.palette import colours
from refimpl.report.curves import DOTS_PER_INCH, drawing, write_png
from refimpl.segmenters import Segmentation

ROW = 18  # pixels of a line of the legend
LEGEND = 220  # its width
WIDEST = 28  # characters of a name
SMALLEST = 0.0005  # part of the picture of a class that the legend names, 0.1% when rounded
LEAST = 224  # pixels of the longer side of an overlay's picture: smaller ones are enlarged
WHITE = (255, 255, 255)
NAMED = 40  # most classes whose names stand beside a confusion matrix

_LATIN_1 = frozenset((*range(32, 127), *range(160, 256)))


def mask(answer: Segmentation) -> Image.Image:
    """The labels as a palette image: its numbers are the labels, its colours those of `colours`."""
    image = Image.fromarray(answer.labels)  # mode L; the palette makes it P
    image.putpalette(colours(len(answer.class_names)).tobytes())
    return image


def overlay(picture: Image.Image, answer: Segmentation) -> Image.Image:
    """The picture with the colours of its classes laid over it, and beside it what they mean.

    picture: of the size of the labels. RGB, wider by the legend, and as high as it needs. Classes
    below 0.1 % of the picture are counted, not named.
    """
    mixed = Image.blend(picture.convert("RGB"), mask(answer).convert("RGB"), 0.5)
    mixed = ImageOps.scale(mixed, -(-LEAST // max(mixed.size)), Image.Resampling.NEAREST)
    legend = _legend(answer)
    height = max(mixed.height, ROW * len(legend) + ROW)
    page = Image.new("RGB", (mixed.width + LEGEND, height), WHITE)
    page.paste(mixed)
    _draw_legend(page, mixed.width, legend)
    return page


def _legend(answer: Segmentation) -> list[tuple[str, tuple[int, ...]]]:
    """Text and colour of each line, the largest class first."""
    shares, names = answer.shares(), answer.class_names
    palette = colours(len(names)).tolist()
    named = [label for label, share in shares.items() if share >= SMALLEST]
    # the built-in font of some versions of Pillow has the characters of Latin-1 alone
    texts = {i: shortened(drawable(names[i], i, _LATIN_1)) for i in named}
    lines = [(f"{texts[i]}: {shares[i]:.1%}", tuple(palette[i])) for i in named]
    if others := len(shares) - len(named):
        lines.append((f"{others} more below 0.1%", WHITE))
    return lines


def _draw_legend(
    page: Image.Image, left: int, legend: Sequence[tuple[str, tuple[int, ...]]]
) -> None:
    draw, font = ImageDraw.Draw(page), ImageFont.load_default()
    for row, (text, colour) in enumerate(legend):
        top = ROW // 2 + row * ROW
        box = (left + 8, top, left + 8 + ROW - 4, top + ROW - 4)
        draw.rectangle(box, fill=colour)
        draw.text((left + 12 + ROW, top), text, fill="black", font=font)


def drawable(name: str, number: int, characters: Container[int]) -> str:
    """The name, or the number of the class where a font lacks some of its characters.

    >>> drawable("sky", 2, range(256)), drawable("天空", 2, range(256))
    ('sky', 'class 2')
    """
    return name if all(ord(character) in characters for character in name) else f"class {number}"


def shortened(name: str) -> str:
    """What a line of a legend or table has room for; ADE20K's names have up to 113 characters.

    >>> shortened("sky"), shortened("pool table, billiard table, snooker table")
    ('sky', 'pool table, billiard table...')
    """
    return name if len(name) <= WIDEST else name[: WIDEST - 2].rstrip(", ") + "..."


def draw_confusion(counts: np.ndarray, class_names: Sequence[str], path: str | os.PathLike) -> None:
    """Write a confusion matrix (classes, classes) to a PNG file, each row as shares of its labels.

    A class without labels has an empty row. Names are shown for 40 classes at most, and numbers in
    the place of those that matplotlib's font cannot write. ConfigError without matplotlib, OSError
    from the disk.
    """
    with drawing(path):
        write_png(_confusion(counts, class_names), path)


def _confusion(counts: np.ndarray, class_names: Sequence[str]) -> Any:
    from matplotlib import font_manager
    from matplotlib.figure import Figure

    labelled = counts.sum(axis=1, keepdims=True)
    shares = np.where(labelled > 0, counts / np.maximum(labelled, 1), np.nan)
    figure = Figure(figsize=(8, 8), dpi=DOTS_PER_INCH, layout="constrained")
    axes = figure.subplots()
    shown = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xlabel("predicted")
    axes.set_ylabel("label")
    if len(class_names) <= NAMED:
        font = font_manager.get_font(font_manager.findfont(font_manager.FontProperties()))
        characters = font.get_charmap()
        names = [drawable(name, i, characters) for i, name in enumerate(class_names)]
        axes.set_xticks(range(len(names)), names, rotation=90, parse_math=False)
        axes.set_yticks(range(len(names)), names, parse_math=False)
    figure.colorbar(shown, shrink=0.8, label="share of the label's pixels")
    return figure
