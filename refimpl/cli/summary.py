"""`refimpl summary`: what each layer of a model costs."""

import argparse

from refimpl.cli.options import FILES, add_json
from refimpl.cli.output import print_json
from refimpl.cli.verbs import Verbs


def add(verbs: Verbs) -> None:
    added = verbs(
        run,
        "show what each layer costs: parameters, packed bytes, operations",
        "refimpl summary didb_micro",
        "refimpl summary didb_micro_mnist --json",
    )
    added.add_argument(
        "model", metavar="NAME|FILE",
        help="an architecture, a shipped model, or a .safetensors file, packed or not",
    ).complete = FILES  # fmt: skip
    add_json(added)


def run(args: argparse.Namespace) -> int:
    from refimpl.models import summary

    found = summary.of(args.model)
    if args.json:
        print_json(found.to_json())
    else:
        print(found.table())
    return 0
