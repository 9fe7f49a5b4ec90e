"""`refimpl show`: the network as a list of operations, to be read beside the specification."""

import argparse
import os
from typing import TYPE_CHECKING

from refimpl.cli import outputs
from refimpl.cli.options import FILES, add_image_size, add_json, not_negative
from refimpl.cli.output import print_json, say
from refimpl.cli.verbs import Verbs
from refimpl.conventions import ConfigError
from refimpl.disk import write_atomically

if TYPE_CHECKING:
    from refimpl.models.nodes import Network


def add(verbs: Verbs) -> None:
    added = verbs(
        run,
        "show the operations of a network, one a line, in order of computation",
        "refimpl show didb_micro --block 0",
        "refimpl show didb_micro_mnist --block 0 --backward",
        "refimpl show didb_micro --block 1 --diagram block.svg",
    )
    added.add_argument(
        "model", metavar="NAME|FILE",
        help="an architecture, a shipped model, or a .safetensors file, packed or not",
    ).complete = FILES  # fmt: skip
    added.add_argument("--block", type=not_negative, metavar="N", help="only one block, from 0")
    added.add_argument(
        "--backward", action="store_true",
        help="from behind: which gradients each operation reads, and to which it adds",
    )  # fmt: skip
    outputs.add(
        added, "--diagram", suffixes=(".svg",),
        help="write a picture of the block as .svg, of the first one without --block",
    )  # fmt: skip
    add_image_size(added, "of the images")
    add_json(added)


def run(args: argparse.Namespace) -> int:
    from refimpl.models import binary, files, listing

    config = files.read_config(args.model)
    network = binary.network(config, args.image_size)
    if args.diagram:
        return _draw(args, network)
    if args.json:
        nodes = listing.entries(network, args.block, args.backward)
        print_json({"config": config.to_json(), "nodes": nodes})
    else:
        lines = list(listing.lines(network, args.block, args.backward))
        print(listing.BACKWARD if args.backward else listing.FORWARD)
        for line in lines:
            print(line.text)
    return 0


def _draw(args: argparse.Namespace, network: "Network") -> int:
    from refimpl.models import files
    from refimpl.report import diagram

    if args.backward:
        raise ConfigError("--diagram shows the forward pass; expected no --backward with it")
    block = args.block or 0
    name = os.path.basename(args.model).removesuffix(files.SUFFIX)
    page = diagram.svg(network, block, f"Block {block} of {name}")
    write_atomically(args.diagram, page)
    if args.json:
        print_json({"block": block, "diagram": str(args.diagram), "bytes": len(page)})
    else:
        say(f"{args.diagram}: block {block}, {len(page):,} bytes")
    return 0
