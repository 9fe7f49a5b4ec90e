"""`refimpl models`: the trained models and the architectures."""

import argparse
import math
from typing import Any

from refimpl.cli.options import add_json
from refimpl.cli.output import print_json, print_table
from refimpl.cli.verbs import Verbs


def add(verbs: Verbs) -> None:
    add_json(verbs(run, "list trained models and architectures", "refimpl models"))


def run(args: argparse.Namespace) -> int:
    from refimpl.models import Config, architectures, cards, files, params

    def count(described: Config) -> int:
        return sum(blocks * math.prod(p.shape) for p, blocks in params.repeated(described))

    trained = {}
    for name in files.shipped():
        path = files.find(name)
        card = cards.read(path)
        figures = cards.evaluation(card, cards.path_of(path))
        trained[name] = {
            "parameters": count(Config.from_json(card["config"])),
            "top1": figures.get("top1"),
            "mean_iou": figures.get("mean_iou"),
            "measured_on": figures.get("data"),
        }
    untrained = {
        name: {"parameters": count(architectures.named(name))} for name in architectures.NAMES
    }
    if args.json:
        print_json({"trained": trained, "architectures": untrained})
        return 0
    rows = [
        (
            name,
            f"{entry['parameters']:,}",
            _score(entry),
            entry["measured_on"] or "-",
        )
        for name, entry in trained.items()
    ]
    print_table(("trained", "parameters", "score", "measured on"), rows)
    print()
    rows = [(name, f"{entry['parameters']:,}") for name, entry in untrained.items()]
    print_table(("architecture (untrained)", "parameters"), rows)
    return 0


def _score(entry: dict[str, Any]) -> str:
    for field, name in (("top1", "top-1"), ("mean_iou", "mIoU")):
        if entry[field] is not None:
            return f"{entry[field]:.2%} {name}"
    return "-"
