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
    from refimpl.models import architectures, files

    trained = {name: _trained(name) for name in files.shipped()}
    untrained = {name: _facts(architectures.named(name)) for name in architectures.NAMES}
    if args.json:
        print_json({"trained": trained, "architectures": untrained})
        return 0
    head = ("parameters", "image", "classes")
    rows = [
        (*_row(name, entry), _score(entry), entry["measured_on"] or "-")
        for name, entry in trained.items()
    ]
    print_table(("trained", *head, "score", "measured on"), rows)
    print()
    rows = [_row(name, entry) for name, entry in untrained.items()]
    print_table(("architecture (untrained)", *head), rows)
    return 0


def _trained(name: str) -> dict[str, Any]:
    """What the card of a shipped model says."""
    from refimpl.models import Config, cards, files

    path = files.find(name)
    card = cards.read(path)
    figures = cards.evaluation(card, cards.path_of(path))
    return _facts(Config.from_json(card["config"])) | {
        "class_names": card["class_names"],
        "top1": figures.get("top1"),
        "mean_iou": figures.get("mean_iou"),
        "measured_on": figures.get("data"),
    }


def _facts(described: Any) -> dict[str, Any]:
    """What the configuration of a network says."""
    from refimpl.models import params

    counts = (blocks * math.prod(p.shape) for p, blocks in params.repeated(described))
    return {
        "parameters": sum(counts),
        "task": described.task,
        "image_size": list(described.image_size),
        "channels": described.channels,
        "classes": described.num_classes,
    }


def _row(name: str, entry: dict[str, Any]) -> tuple[Any, ...]:
    return name, f"{entry['parameters']:,}", _reads(entry), entry["classes"]


def _reads(entry: dict[str, Any]) -> str:
    """The image that a network reads, such as "32 x 32 x 3"."""
    return " x ".join(map(str, (*entry["image_size"], entry["channels"])))


def _score(entry: dict[str, Any]) -> str:
    for field, name in (("top1", "top-1"), ("mean_iou", "mIoU")):
        if entry[field] is not None:
            return f"{entry[field]:.2%} {name}"
    return "-"
