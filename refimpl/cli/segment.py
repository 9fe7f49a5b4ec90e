"""`refimpl segment`: the class of every pixel of an image."""

import argparse
import io
from typing import Any

from refimpl.cli import outputs
from refimpl.cli.options import (
    FILES,
    add_backend,
    add_image_size,
    add_json,
    add_model,
    picture,
)
from refimpl.cli.output import print_json, print_table, warn
from refimpl.cli.verbs import Verbs
from refimpl.disk import write_atomically


def add(verbs: Verbs) -> None:
    added = verbs(
        run,
        "name what every pixel of an image belongs to",
        "refimpl segment scenes/images/test/00000.png -o mask.png --overlay seen.png",
        "refimpl segment street.jpg -o street.png --model segmenter.safetensors",
    )
    added.add_argument(
        "image", metavar="IMAGE", help="a file of any usual format, or - for standard input"
    ).complete = FILES
    outputs.add(
        added, "-o", "--output", suffixes=(".png",), required=True,
        help="the PNG to write: the number of its class in every pixel, with a palette",
    )  # fmt: skip
    outputs.add(
        added, "--overlay", suffixes=(".png",),
        help="another PNG to write: the image under the colours of its classes, and their names",
    )  # fmt: skip
    add_model(added, "segmenter_didb_scenes", "segmenter")
    add_backend(added)
    add_image_size(added)
    add_json(added)


def run(args: argparse.Namespace) -> int:
    from refimpl.data import palette
    from refimpl.report import segmentation
    from refimpl.segmenters import segmenter

    ask = segmenter(args.model, backend=args.backend, image_size=args.image_size)
    image = picture(args.image)
    answer = ask(image, args.image)
    if answer.warning is not None:
        warn(f"{args.image}: {answer.warning}")
    write_atomically(args.output, _png(segmentation.mask(answer)))
    if args.overlay is not None:
        write_atomically(args.overlay, _png(segmentation.overlay(image, answer)))
    shares = answer.shares()
    colour = ["#" + bytes(rgb).hex() for rgb in palette.colours(len(ask.class_names)).tolist()]
    if args.json:
        classes = [
            {"number": i, "name": ask.class_names[i], "colour": colour[i], "share": share}
            for i, share in shares.items()
        ]
        height, width = answer.labels.shape
        print_json(
            {
                "file": args.image,
                "height": height,
                "width": width,
                "classes": classes,
                "warning": answer.warning,
                **ask.backend.choice._asdict(),
            }
        )
        return 0
    rows = [
        (segmentation.shortened(ask.class_names[i]), str(i), colour[i], f"{share:.2%}")
        for i, share in shares.items()
    ]
    print_table(("class", "number", "colour", "pixels"), rows)
    return 0


def _png(image: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()
