"""`refimpl scenes`: a data set to learn segmentation on, made of MNIST's digits."""

import argparse
from pathlib import Path

from refimpl.cli import outputs
from refimpl.cli.options import FILES, not_negative, positive
from refimpl.cli.output import progress_bar, say
from refimpl.cli.verbs import Verbs


def add(verbs: Verbs) -> None:
    added = verbs(
        run,
        "make scenes of several MNIST digits, with a label for every pixel",
        "refimpl scenes --data mnist -o few_scenes --train 40 --test 10 --seed 1",
    )
    added.add_argument(
        "--data", required=True, type=Path, metavar="PATH",
        help="folder with MNIST's four idx files",
    ).complete = FILES  # fmt: skip
    text = "the new folder to write: images, annotations and the list of classes"
    outputs.add_folder(added, text, "FOLDER")
    outputs.add_replace(added)
    for split, count in (("train", 12000), ("test", 2000)):
        added.add_argument(
            f"--{split}", type=positive, default=count, metavar="N",
            help=f"scenes of {split} digits (default {count})",
        )  # fmt: skip
    added.add_argument("--seed", type=not_negative, default=0, metavar="N", help="(default 0)")


def run(args: argparse.Namespace) -> int:
    from refimpl.data import scenes

    counts = {"train": args.train, "test": args.test}
    with progress_bar("write", sum(counts.values())) as bar:
        scenes.write(
            args.data, args.output, counts, args.seed, bar.update, overwrite=args.force
        )
    say(args.output)
    return 0
