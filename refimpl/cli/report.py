"""`refimpl report`: a page that shows what one image does inside the network."""

import argparse
import os

from refimpl.cli import outputs
from refimpl.cli.options import FILES, add_json, add_model, picture
from refimpl.cli.output import print_json, say, warn
from refimpl.cli.verbs import Verbs
from refimpl.disk import write_atomically


def add(verbs: Verbs) -> None:
    added = verbs(
        run,
        "write a page for the browser that shows what one image does inside the network",
        "refimpl report seven.png -o seven.html",
        "refimpl report photos/nine.webp -o nine.html --json",
    )
    added.add_argument(
        "image", metavar="IMAGE", help="a file of any usual format, or - for standard input"
    ).complete = FILES
    add_model(added)
    outputs.add(
        added, "-o", "--output", suffixes=(".html", ".htm", ""), required=True,
        help="the .html file to write; it needs no other file and no network",
    )  # fmt: skip
    added.add_argument("--invert", action="store_true", help="exchange dark and light")
    add_json(added)


def run(args: argparse.Namespace) -> int:
    from refimpl.classifiers import classifier
    from refimpl.models import files
    from refimpl.report import image

    ask = classifier(args.model, backend="numpy")
    if args.invert:
        ask = ask.inverted()
    shown = picture(args.image)
    name = "standard input" if args.image == "-" else os.path.basename(args.image)
    model = os.path.basename(args.model).removesuffix(files.SUFFIX)
    page, prediction = image.page(ask, shown, name, model)
    if prediction.warning is not None:
        warn(f"{args.image}: {prediction.warning}")
    write_atomically(args.output, page)
    if args.json:
        print_json(
            {
                "file": args.image,
                "page": str(args.output),
                "bytes": len(page),
                "label": prediction.label,
                "probability": prediction.probability,
                "warning": prediction.warning,
            }
        )
    else:
        answer = f"{prediction.label} {prediction.probability:.4f}"
        say(f"{args.output}: {answer}, {len(page):,} bytes")
    return 0
