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

    def facts(described: Config) -> dict[str, Any]:
        counts = (blocks * math.prod(p.shape) for p, blocks in params.repeated(described))
        return {
            "parameters": sum(counts),
            "task": described.task,
            "image_size": list(described.image_size),
            "channels": described.channels,
            "classes": described.num_classes,
        }

    trained = {}
    for name in files.shipped():
        path = files.find(name)
        card = cards.read(path)
        figures = cards.evaluation(card, cards.path_of(path))
        trained[name] = facts(Config.from_json(card["config"])) | {
            "class_names": card["class_names"],
            "top1": figures.get("top1"),
            "mean_iou": figures.get("mean_iou"),
            "measured_on": figures.get("data"),
        }
    untrained = {name: facts(architectures.named(name)) for name in architectures.NAMES}
    if args.json:
        print_json({"trained": trained, "architectures": untrained})
        return 0
    rows = [
        (
            name,
            f"{entry['parameters']:,}",
            _reads(entry),
            entry["classes"],
            _score(entry),
            entry["measured_on"] or "-",
        )
        for name, entry in trained.items()
    ]
    print_table(("trained", "parameters", "image", "classes", "score", "measured on"), rows)
    print()
    rows = [
        (name, f"{entry['parameters']:,}", _reads(entry), entry["classes"])
        for name, entry in untrained.items()
    ]
    print_table(("architecture (untrained)", "parameters", "image", "classes"), rows)
    return 0


def _reads(entry: dict[str, Any]) -> str:
    """The image that a network reads, such as "32 x 32 x 3"."""
    return " x ".join(map(str, (*entry["image_size"], entry["channels"])))


def _score(entry: dict[str, Any]) -> str:
    for field, name in (("top1", "top-1"), ("mean_iou", "mIoU")):
        if entry[field] is not None:
            return f"{entry[field]:.2%} {name}"
    return "-"
