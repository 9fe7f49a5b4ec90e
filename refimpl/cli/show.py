"""`refimpl show`: the network as a list of operations, to be read beside the specification."""

import argparse

from refimpl.cli.options import FILES, add_image_size, add_json, not_negative
from refimpl.cli.output import print_json
from refimpl.cli.verbs import Verbs


def add(verbs: Verbs) -> None:
    added = verbs(
        run,
        "show the operations of a network, one a line, in order of computation",
        "refimpl show didb_micro --block 0",
        "refimpl show didb_micro_mnist --block 0 --backward",
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
    add_image_size(added, "of the images")
    add_json(added)


def run(args: argparse.Namespace) -> int:
    from refimpl.models import binary, files, listing

    config = files.read_config(args.model)
    network = binary.network(config, args.image_size)
    if args.json:
        nodes = listing.entries(network, args.block, args.backward)
        print_json({"config": config.to_json(), "nodes": nodes})
    else:
        lines = list(listing.lines(network, args.block, args.backward))
        print(listing.BACKWARD if args.backward else listing.FORWARD)
        for line in lines:
            print(line.text)
    return 0
