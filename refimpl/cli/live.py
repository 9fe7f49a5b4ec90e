"""`refimpl live`: a page that holds a network, to draw into."""

import argparse
import os

from refimpl.cli import outputs
from refimpl.cli.options import add_model
from refimpl.cli.output import say
from refimpl.cli.verbs import Verbs
from refimpl.disk import write_atomically


def add(verbs: Verbs) -> None:
    added = verbs(
        run,
        "write a page for the browser that holds a packed network, to draw into",
        "refimpl live -o live.html",
        "refimpl live --model didb_cifar10 -o photos.html",
    )
    add_model(added)
    outputs.add(
        added, "-o", "--output", suffixes=(".html", ".htm", ""), required=True,
        help="the .html file to write; it needs no other file, no server and no network",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    from refimpl import predictors
    from refimpl.conventions import ConfigError
    from refimpl.live.page import page
    from refimpl.models import files, packing

    file = files.read_any(args.model)
    config = file.model.config
    preprocessing, class_names = predictors.described(file)
    packed = isinstance(file, files.PackedFile)
    arrays = file.arrays if packed else packing.pack(config, file.params)
    name = os.path.basename(args.model).removesuffix(files.SUFFIX)
    try:
        content = page(config, arrays, preprocessing, class_names, name)
    except ConfigError as error:
        raise ConfigError(f"{args.model}: {error}") from None
    write_atomically(args.output, content)
    say(f"{args.output}: {len(content):,} bytes")
    return 0
