"""Label maps and confusion matrices as pictures."""

import os
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from refimpl.data.palette import colours
from refimpl.report.curves import DOTS_PER_INCH, require_matplotlib, write_png
from refimpl.segmenter import Segmentation

ROW = 18  # pixels of a line of the legend
LEGEND = 220  # its width
WIDEST = 28  # characters of a name
LEAST = 224  # pixels of the longer side of an overlay's picture: smaller ones are enlarged
NAMED = 40  # most classes whose names stand beside a confusion matrix


def mask(answer: Segmentation) -> Image.Image:
    """The labels as a palette image: its numbers are the labels, its colours those of `colours`."""
    image = Image.fromarray(answer.labels)  # mode L; the palette makes it P
    image.putpalette(colours(len(answer.class_names)).tobytes())
    return image


def overlay(picture: Image.Image, answer: Segmentation) -> Image.Image:
    """The picture with the colours of its classes laid over it, and beside it what they mean.

    picture: of the size of the labels. RGB, wider by the legend, and as high as it needs.
    """
    colour = colours(len(answer.class_names))[answer.labels]
    mixed = Image.blend(picture.convert("RGB"), Image.fromarray(colour), 0.5)
    mixed = ImageOps.scale(mixed, -(-LEAST // max(mixed.size)), Image.Resampling.NEAREST)
    shares = answer.shares()
    height = max(mixed.height, ROW * len(shares) + ROW)
    page = Image.new("RGB", (mixed.width + LEGEND, height), "white")
    page.paste(mixed)
    _draw_legend(page, mixed.width, shares, answer.class_names)
    return page


def _draw_legend(
    page: Image.Image, left: int, shares: Mapping[int, float], names: Sequence[str]
) -> None:
    draw, font = ImageDraw.Draw(page), ImageFont.load_default()
    palette = colours(len(names))
    for row, (label, share) in enumerate(shares.items()):
        top = ROW // 2 + row * ROW
        box = (left + 8, top, left + 8 + ROW - 4, top + ROW - 4)
        draw.rectangle(box, fill=tuple(palette[label].tolist()))
        # the built-in font of some versions of Pillow has the characters of Latin-1 alone
        text = f"{_shortened(names[label])}: {share:.1%}".encode("latin-1", "replace").decode(
            "latin-1"
        )
        draw.text((left + 12 + ROW, top), text, fill="black", font=font)


def _shortened(name: str) -> str:
    """What a line of the legend has room for.

    >>> _shortened("sky"), _shortened("pool table, billiard table, snooker table")
    ('sky', 'pool table, billiard table...')
    """
    return name if len(name) <= WIDEST else name[: WIDEST - 2].rstrip(", ") + "..."


def draw_confusion(counts: np.ndarray, class_names: Sequence[str], path: str | os.PathLike) -> None:
    """Write a confusion matrix (classes, classes) to a PNG file, each row as shares of its labels.

    A class without labels has an empty row. Names are shown for 40 classes at most. ConfigError
    without matplotlib, OSError from the disk.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    labelled = counts.sum(axis=1, keepdims=True)
    shares = np.where(labelled > 0, counts / np.maximum(labelled, 1), np.nan)
    figure = Figure(figsize=(8, 8), dpi=DOTS_PER_INCH, layout="constrained")
    axes = figure.subplots()
    shown = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xlabel("predicted")
    axes.set_ylabel("label")
    if len(class_names) <= NAMED:
        axes.set_xticks(range(len(class_names)), class_names, rotation=90)
        axes.set_yticks(range(len(class_names)), class_names)
    figure.colorbar(shown, shrink=0.8, label="share of the label's pixels")
    write_png(figure, path)
