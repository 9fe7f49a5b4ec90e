"""The command `refimpl`: parse, call, print. What is computed is elsewhere.

Exit status: 0 done, 1 a check failed, 2 bad usage or bad input, 130 interrupted (Ctrl-C),
141 nobody reads the output any more. Errors are one line on stderr, answers go to stdout.
Modules that take long to import are imported by the verb that needs them.
"""

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import refimpl
from refimpl.conventions import DataError, RefimplError

DEFAULT_MODEL = "didb_micro_mnist"
GOLDEN_TOLERANCE = 1e-3  # of a probability

# Field of the recipe -> (type, help). What is not given keeps the recipe's own default.
RECIPE_OPTIONS = {
    "epochs": (int, "passes over the training images"),
    "batch_size": (int, "images a step"),
    "learning_rate": (float, "at the top of the schedule"),
    "weight_decay": (float, "of the matrices of real layers"),
    "smoothing": (float, "of the labels, 0 for none"),
    "shift": (int, "pixels by which a training image may move each way"),
    "seed": (int, "the same seed gives the same bits on the same machine"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (default: the program's) -> exit status."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a file name need not be valid text
            stream.reconfigure(errors="backslashreplace")
    args = parser().parse_args(argv)
    try:
        status = args.run(args)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # `refimpl models | head -1` is done. Python would flush once more at exit and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print("refimpl: interrupted", file=sys.stderr)
        return 130
    except (RefimplError, OSError) as error:
        _complain(error)
        return 2


# --- verbs ----------------------------------------------------------------------------------------


def demo(args: argparse.Namespace) -> int:
    from refimpl.classifier import classifier
    from refimpl.data import bundled

    goldens = bundled.goldens()
    # In float32 a value next to 0 may round to the other side on another machine; a flipped bit
    # moves a probability further than any rounding, and would be reported as a difference.
    ask = classifier(goldens["model"]).astype(goldens["dtype"])
    print(f"{goldens['model']} on {len(goldens['images'])} test images of MNIST, {ask.dtype}\n")
    print("image       label  probability      time  golden")
    agreed = 0
    for name, golden in sorted(goldens["images"].items()):
        start = time.perf_counter()
        (answer,) = ask(bundled.mnist() / name)
        milliseconds = 1000 * (time.perf_counter() - start)
        near = abs(answer.probability - golden["probability"]) <= GOLDEN_TOLERANCE
        agrees = near and answer.label == golden["label"]
        agreed += agrees
        verdict = "agrees" if agrees else f"DIFFERS: {golden['label']} {golden['probability']:.4f}"
        print(
            f"{name:10}  {answer.label:>5}  {answer.probability:11.4f}  {milliseconds:5.1f} ms"
            f"  {verdict}"
        )
    print(f"\n{agreed} of {len(goldens['images'])} agree with the stored goldens")
    return 0 if agreed == len(goldens["images"]) else 1


def classify(args: argparse.Namespace) -> int:
    from refimpl.classifier import classifier

    ask = classifier(args.model)
    answers, status = [], 0
    width = max(len(name) for name in args.images)
    for name in args.images:
        try:
            (prediction,) = ask(name)
        except DataError as error:  # the other images are answered all the same
            _complain(error)
            status = 2
            continue
        best = prediction.top(args.top)
        if args.json:
            answers.append(
                {
                    "file": name,
                    "label": prediction.label,
                    "probability": prediction.probability,
                    "top": [{"label": label, "probability": p} for label, p in best],
                }
            )
        else:
            print(f"{name:{width}}", *(f"{label} {p:.4f}" for label, p in best), sep="  ")
    if args.json:
        _print_json(answers)
    return status


def evaluate(args: argparse.Namespace) -> int:
    from refimpl.classifier import classifier, record
    from refimpl.data import mnist

    model = classifier(args.model)
    images, labels = mnist.load(args.data, args.split)
    if model.class_names != mnist.CLASS_NAMES:
        raise DataError(
            f"{args.data}: the data has the classes {', '.join(mnist.CLASS_NAMES)}, "
            f"the model {args.model} has {', '.join(model.class_names)}"
        )
    images, labels = images[: args.limit], labels[: args.limit]
    with _progress_bar(len(images), "evaluate") as bar:
        result = model.evaluate(images, labels, args.batch_size, bar.update)
    if args.record:
        data = f"{args.data.resolve().name}, {result.count:,} images of the {args.split} split"
        record(args.model, result, data)
    if args.json:
        _print_json(
            {
                "model": args.model,
                "split": args.split,
                "count": result.count,
                "top1": result.top1,
                "top5": result.top5,
                "per_class": result.per_class,
                "images_per_second": result.images_per_second,
            }
        )
        return 0
    print(f"{args.model} on {result.count:,} images of the {args.split} split\n")
    print(f"top-1  {result.top1:8.2%}\ntop-5  {result.top5:8.2%}\n")
    rows = [
        (name, f"{accuracy:.2%}", f"{result.per_class_count[name]:,}")
        for name, accuracy in result.per_class.items()
    ]
    _print_table(("class", "top-1", "images"), rows)
    print(f"\n{result.images_per_second:.0f} images a second")
    return 0


def train(args: argparse.Namespace) -> int:
    from refimpl.data import mnist
    from refimpl.training import recipes, train

    given = {name: getattr(args, name) for name in RECIPE_OPTIONS}
    recipe = recipes.Recipe(**{name: value for name, value in given.items() if value is not None})
    model = refimpl.create_model(args.model)
    images, labels = mnist.load(args.data, "train")
    if args.validation >= len(images):
        raise DataError(f"{args.data}: {len(images)} images, too few to hold out {args.validation}")
    kept = len(images) - args.validation
    train(
        model,
        recipe,
        images[:kept],
        labels[:kept],
        preprocessing=mnist.PREPROCESSING.to_json(),
        class_names=list(mnist.CLASS_NAMES),
        out=args.output,
        validation=(images[kept:], labels[kept:]) if args.validation else None,
        progress=True,
        card={"data": args.data.resolve().name},
    )
    print(args.output)
    return 0


def models(args: argparse.Namespace) -> int:
    from refimpl.classifier import read_card
    from refimpl.models import Config, config, files, params

    def count(described: Config) -> int:
        return sum(math.prod(shape) for shape in params.shapes(described).values())

    cards = {name: read_card(name) for name in files.shipped()}
    trained = {
        name: {
            "parameters": count(Config.from_json(card["config"])),
            "top1": card.get("evaluation", {}).get("top1"),
            "measured_on": card.get("evaluation", {}).get("data"),
        }
        for name, card in cards.items()
    }
    architectures = {name: {"parameters": count(config.named(name))} for name in config.NAMES}
    if args.json:
        _print_json({"trained": trained, "architectures": architectures})
        return 0
    rows = [
        (
            name,
            f"{entry['parameters']:,}",
            "-" if entry["top1"] is None else f"{entry['top1']:.2%}",
            entry["measured_on"] or "-",
        )
        for name, entry in trained.items()
    ]
    _print_table(("trained", "parameters", "top-1", "measured on"), rows)
    print()
    rows = [(name, f"{entry['parameters']:,}") for name, entry in architectures.items()]
    _print_table(("architecture (untrained)", "parameters"), rows)
    return 0


# --- the parser -----------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="refimpl",
        description="DIDB-ViT, a 1-bit vision transformer, as an executable NumPy reference.",
        epilog="`refimpl VERB --help` explains a verb and shows an example.",
    )
    parser.add_argument("--version", action="version", version=f"refimpl {refimpl.__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)

    def verb(run, summary: str, example: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(
            run.__name__,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            epilog=f"example: {example}",
        )
        added.set_defaults(run=run)
        return added

    verb(
        demo,
        "classify the bundled sample digits and check the answers against stored goldens",
        "refimpl demo",
    )

    added = verb(classify, "name what is on images", "refimpl classify seven.png three.jpg --top 3")
    added.add_argument("images", nargs="+", metavar="IMAGE", help="a file of any usual format")
    _add_model(added)
    added.add_argument(
        "--top", type=_positive, default=1, metavar="K", help="show the K best classes (default 1)"
    )
    _add_json(added)

    added = verb(
        evaluate,
        "measure a model's accuracy on labelled images",
        "refimpl evaluate --data mnist --json",
    )
    _add_data(added)
    _add_model(added)
    added.add_argument("--split", choices=("test", "train"), default="test", help="(default test)")
    added.add_argument(
        "--batch-size", type=_positive, default=100, metavar="N", help="(default 100)"
    )
    added.add_argument("--limit", type=_positive, metavar="N", help="only the first N images")
    added.add_argument(
        "--record", action="store_true", help="write the figures into the card beside the model"
    )
    _add_json(added)

    added = verb(
        train,
        "train an architecture by its own backward pass",
        "refimpl train --data mnist --model didb_micro -o mine.safetensors",
    )
    _add_data(added)
    added.add_argument(
        "--model",
        required=True,
        metavar="NAME",
        help="an architecture; `refimpl models` lists them",
    )
    added.add_argument(
        "-o", "--output", required=True, type=Path, metavar="FILE",
        help="the .safetensors file to write; its card, a .json file, goes beside it",
    )  # fmt: skip
    for name, (kind, text) in RECIPE_OPTIONS.items():
        added.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar="N", help=text)
    added.add_argument(
        "--validation", type=_not_negative, default=0, metavar="N",
        help="hold out the last N training images and report the accuracy on them (default 0)",
    )  # fmt: skip

    added = verb(models, "list trained models and architectures", "refimpl models")
    _add_json(added)
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", default=DEFAULT_MODEL, metavar="NAME",
        help=f"a trained model: a shipped name or a .safetensors file (default {DEFAULT_MODEL})",
    )  # fmt: skip


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", required=True, type=Path, metavar="DIR",
        help="folder with MNIST's four idx files, gzipped or not",
    )  # fmt: skip


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON; fractions are 0 to 1")


def _not_negative(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


# --- printing -------------------------------------------------------------------------------------


def _complain(error: Exception) -> None:
    text = str(error)
    if isinstance(error, OSError) and error.filename and error.strerror:
        text = f"{error.filename}: {error.strerror}"
    print(f"refimpl: {' '.join(text.split())}", file=sys.stderr)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


def _print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """First column to the left, the others to the right."""
    table = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for first, *others in table:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        print(first.ljust(widths[0]), *cells, sep="  ")


def _progress_bar(total: int, title: str):
    """A tqdm bar over images, on a terminal only."""
    from tqdm import tqdm

    return tqdm(total=total, desc=title, unit="img", leave=False, disable=not sys.stderr.isatty())
