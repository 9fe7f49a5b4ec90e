"""`refimpl segment`: the class of every pixel of an image."""

import argparse
import io
import sys
from pathlib import Path
from typing import Any

from refimpl.cli.options import (
    FILES,
    add_backend,
    add_image_size,
    add_json,
    add_model,
    add_output,
    start_engine,
)
from refimpl.cli.output import print_json, print_table, require_other, warn
from refimpl.cli.verbs import Verbs
from refimpl.conventions import ConfigError, DataError, ModelFileError, write_atomically


def add(verbs: Verbs) -> None:
    added = verbs(
        run,
        "name what every pixel of an image belongs to",
        "refimpl segment scenes/images/test/00000.png -o mask.png --overlay seen.png",
        "refimpl segment street.jpg -o mask.png --model segmenter.safetensors",
    )
    added.add_argument(
        "image", metavar="IMAGE", help="a file of any usual format, or - for standard input"
    ).complete = FILES
    add_output(added, "the PNG to write: the number of its class in every pixel, with a palette")
    added.add_argument(
        "--overlay", type=Path, metavar="FILE",
        help="another PNG to write: the image under the colours of its classes, and their names",
    ).complete = FILES  # fmt: skip
    add_model(added, "segmenter_didb_scenes", "segmenter")
    add_backend(added)
    add_image_size(added)
    add_json(added)


def run(args: argparse.Namespace) -> int:
    from refimpl.data import palette
    from refimpl.report import segmentation
    from refimpl.segmenter import segmenter

    _check_outputs(args)
    ask = segmenter(args.model, backend=args.backend, image_size=args.image_size)
    start_engine(ask.backend.choice.backend)
    picture = _picture(args.image)
    answer = ask(picture)
    if answer.warning is not None:
        warn(f"{args.image}: {answer.warning}")
    write_atomically(args.output, _png(segmentation.mask(answer)))
    if args.overlay is not None:
        write_atomically(args.overlay, _png(segmentation.overlay(picture, answer)))
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


def _check_outputs(args: argparse.Namespace) -> None:
    """Nothing that is read is overwritten, and no picture is missing beside one that is written."""
    from refimpl.models import files

    outputs = [args.output] if args.overlay is None else [args.output, args.overlay]
    for path in outputs:
        if path.suffix.lower() != ".png":
            raise ConfigError(f"{path}: suffix {path.suffix!r}, expected '.png'")
        if not path.absolute().parent.is_dir():
            raise DataError(f"{path}: no such folder, expected one to write into")
        if args.image != "-":
            require_other(path, args.image, DataError, "the image")
        require_other(path, files.find(args.model), ModelFileError, "the model")
    if args.overlay is not None:
        require_other(args.overlay, args.output, DataError, "the mask")


def _picture(name: str) -> Any:
    from refimpl.data import images

    if name == "-":
        return images.decode(sys.stdin.buffer.read(images.MAX_BYTES + 1), "standard input")
    return images.open_image(name)


def _png(image: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()
