"""`refimpl classify`: name what is on images."""

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from typing import Any

from refimpl.cli.options import (
    FILES,
    add_backend,
    add_image_size,
    add_json,
    add_model,
    picture,
    positive,
)
from refimpl.cli.output import BOLD, complain, paint, print_json, warn
from refimpl.cli.verbs import Verbs
from refimpl.conventions import DataError, shown


def add(verbs: Verbs) -> None:
    added = verbs(
        run,
        "name what is on images",
        "refimpl classify seven.png three.jpg --top 3",
        "refimpl classify photos --json",
        "refimpl classify - < seven.png",
    )
    added.add_argument(
        "images", nargs="+", metavar="IMAGE",
        help="a file of any usual format, a folder of such files, or - for standard input",
    ).complete = FILES  # fmt: skip
    add_model(added)
    add_backend(added)
    add_image_size(added)
    added.add_argument(
        "--top", type=positive, default=1, metavar="K", help="show the K best classes (default 1)"
    )
    added.add_argument(
        "--invert", action="store_true", help="exchange dark and light, in every image"
    )
    add_json(added)


def run(args: argparse.Namespace) -> int:
    from threadpoolctl import threadpool_limits

    from refimpl.choice import Work
    from refimpl.classifiers import classifier

    ask = classifier(args.model, backend=args.backend, image_size=args.image_size)
    if args.invert:
        ask = ask.inverted()
    names, status = _image_names(args.images)
    ask.expect(Work(images=len(names), calls=len(names)))
    choice = ask.backend.choice
    with threadpool_limits(1):  # more threads of BLAS only wait for each other: see demo
        status = max(status, _answer(ask, names, args))
    if args.backend == "auto" and choice.backend == "numpy":
        _tell_of_compile(ask.model.config)
    return status


def _answer(ask: Any, names: Sequence[str], args: argparse.Namespace) -> int:
    """Print what is on each image -> status."""
    width = max((len(shown(name)) for name in names), default=0)
    answers, status = [], 0
    for name in names:
        try:
            (prediction,) = ask(picture(name) if name == "-" else name)
        except DataError as error:  # the other images are answered all the same
            complain(error)
            status = 2
            continue
        if prediction.warning is not None:
            warn(f"{name}: {prediction.warning}")
        best = prediction.top(args.top)
        if args.json:
            answers.append(
                {
                    "file": name,
                    "label": prediction.label,
                    "probability": prediction.probability,
                    "top": [{"label": label, "probability": p} for label, p in best],
                    "warning": prediction.warning,
                    **ask.backend.choice._asdict(),
                }
            )
            continue
        first, *others = [f"{shown(label)} {p:.4f}" for label, p in best]
        print(shown(name).ljust(width), paint(first, BOLD, sys.stdout), *others, sep="  ")
    if args.json:
        print_json(answers)
    return status


def _tell_of_compile(config: Any) -> None:
    """One line, once a machine, that the engine could be ready for more images than these."""
    from refimpl.kernels import cache
    from refimpl.models import packing

    if not packing.for_engine(config) or cache.has(cache.TOLD):
        return
    if cache.has(cache.FORWARD[packing.extras(config)]):
        return
    print(
        "refimpl: NumPy answered; `refimpl compile` makes the engine ready, for many images or "
        "large networks",
        file=sys.stderr,
    )
    with contextlib.suppress(OSError):
        cache.write(cache.TOLD, b"")


def _image_names(given: Sequence[str]) -> tuple[list[str], int]:
    """Images by name, folders replaced by what is in them, and the status so far."""
    from refimpl.data.images import in_folder, left_out_of, suffixes_of

    names, status = [], 0
    for name in given:
        if not os.path.isdir(name):
            names.append(name)
            continue
        try:
            names += map(str, in_folder(name))
        except DataError as error:
            complain(error)
            status = 2
            continue
        if others := left_out_of(name):
            warn(f"{name}: files without the suffix of an image, not read: {suffixes_of(others)}")
    return names, status
