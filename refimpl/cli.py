"""The command `refimpl`: parse, call, print. What is computed is elsewhere.

Exit status: 0 done, 1 a check failed, 2 bad usage or bad input, 130 interrupted (Ctrl-C),
141 nobody reads the output any more. Errors are one line on stderr, answers go to stdout.
Modules that take long to import are imported by the verb that needs them.
"""

import argparse
import contextlib
import dataclasses
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

import refimpl
from refimpl.conventions import DataError, ModelFileError, RefimplError

DEFAULT_MODEL = "didb_micro_mnist"
GOLDEN_TOLERANCE = 1e-3  # of a probability
BOLD, RED, YELLOW = "1", "31", "33"  # of a terminal
# What shtab reads from an option of the parser to let the shell complete names of files.
FILES = {"bash": "_shtab_compgen_files", "zsh": "_files", "tcsh": "f"}

# Field of the recipe -> (type, help). What is not given keeps the recipe's own value.
RECIPE_OPTIONS = {
    "epochs": (int, "passes over the training images"),
    "activation_epochs": (int, "before them, with binary activations and real weights"),
    "batch_size": (int, "images a step"),
    "learning_rate": (float, "at the top of the schedule"),
    "weight_decay": (float, "of the matrices of real layers"),
    "warmup_fraction": (float, "of the steps of each stage, up to the top"),
    "smoothing": (float, "of the labels, 0 for none"),
    "teacher": (str, "a trained model to learn from, by name or file; needs --distillation"),
    "distillation": (float, "weight of the teacher's answers, 1 for nothing else"),
    "shift": (int, "pixels by which a training image may move each way"),
    "flip": (bool, "mirror every other training image, left for right"),
    "clip_norm": (float, "largest norm of the gradients of a step"),
    "seed": (int, "the same seed gives the same bits on the same machine"),
    "shards": (int, "parts of a batch that run side by side, a thread each"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (default: the program's) -> exit status."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a file name need not be valid text
            stream.reconfigure(errors="backslashreplace")
    args = parser().parse_args(argv)
    try:
        # what overflows is told by the checks of the operations, in one line with a name
        with np.errstate(all="ignore"):
            status = args.run(args)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # `refimpl models | head -1` is done
        _drop_output()
        return 141
    except KeyboardInterrupt as interrupt:
        print(": ".join(["refimpl", "interrupted", *map(str, interrupt.args)]), file=sys.stderr)
        return 130
    except MemoryError as error:
        print(f"refimpl: out of memory: {error}", file=sys.stderr)
        return 2
    except (RefimplError, OSError) as error:
        _complain(error)
        try:
            sys.stdout.flush()
        except OSError:
            _drop_output()
        return 2


def _drop_output() -> None:
    """What could not be written: Python would try once more at exit, and complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
    if args.invert:
        ask = ask.inverted()
    names, status = _image_names(args.images)
    width = max(map(len, names), default=0)
    answers = []
    for name in names:
        try:
            (prediction,) = ask(_picture(name))
        except DataError as error:  # the other images are answered all the same
            _complain(error)
            status = 2
            continue
        if prediction.warning is not None:
            _warn(f"{name}: {prediction.warning}")
        best = prediction.top(args.top)
        if args.json:
            answers.append(
                {
                    "file": name,
                    "label": prediction.label,
                    "probability": prediction.probability,
                    "top": [{"label": label, "probability": p} for label, p in best],
                    "warning": prediction.warning,
                }
            )
            continue
        (first, probability), *others = best
        first = _paint(f"{first} {probability:.4f}", BOLD, sys.stdout)
        print(f"{name:{width}}", first, *(f"{label} {p:.4f}" for label, p in others), sep="  ")
    if args.json:
        _print_json(answers)
    return status


def evaluate(args: argparse.Namespace) -> int:
    from refimpl.classifier import classifier, read_card, record
    from refimpl.data import datasets

    model = classifier(args.model)
    if args.record:
        read_card(args.model)  # a missing card is told before the work, not after it
    data = _load(args, args.split, model.preprocessing)
    datasets.require_classes(args.data, data.class_names, model.class_names)
    with _progress_bar("evaluate", len(data.images)) as bar:
        result = model.evaluate(data.images, data.labels, args.batch_size, bar.update, ready=True)
    described = f"{result.count:,} images" + (f" of the {data.split} split" if data.split else "")
    if args.record:
        record(args.model, result, f"{args.data.resolve().name}, {described}")
    if args.json:
        _print_json(
            {
                "model": args.model,
                "split": data.split,
                "count": result.count,
                "top1": result.top1,
                "top5": result.top5,
                "per_class": result.per_class,
                "images_per_second": result.images_per_second,
            }
        )
        return 0
    print(f"{args.model} on {described}\n")
    print(f"top-1  {result.top1:8.2%}\ntop-5  {result.top5:8.2%}\n")
    rows = [
        (name, f"{accuracy:.2%}", f"{result.per_class_count[name]:,}")
        for name, accuracy in result.per_class.items()
    ]
    _print_table(("class", "top-1", "images"), rows)
    print(f"\n{result.images_per_second:.0f} images a second")
    return 0


def train(args: argparse.Namespace) -> int:
    from refimpl import training
    from refimpl.data.preprocessing import Preprocessing

    recipe = _recipe(args)
    if args.curves == "png":
        from refimpl.report import curves

        curves.require_matplotlib()
    model = refimpl.create_model(args.model, **dict(args.set))
    plain = Preprocessing.plain(model.config.image_size, model.config.channels)
    data = _load(args, "train", plain)
    if len(data.class_names) != model.config.num_classes:
        raise DataError(
            f"{args.data}: found {len(data.class_names)} classes, {args.model} has "
            f"{model.config.num_classes}: add --set num_classes={len(data.class_names)}"
        )
    split = training.hold_out(data.images, data.labels, args.validation, seed=recipe.seed)
    with _resumable(args.output):
        trained = training.train(
            model,
            recipe,
            *split.training,
            preprocessing=plain.measured(data.images).to_json(),
            class_names=list(data.class_names),
            out=args.output,
            validation=split.validation,
            progress=True,
            resume=args.resume,
            curves=args.curves is not None,
            card={"data": args.data.resolve().name, **split.card},
        )
    if args.curves == "png":
        curves.draw(trained.history, args.output.with_suffix(".png"))
    print(args.output)
    return 0


def _recipe(args: argparse.Namespace) -> Any:
    """The recipe of the file, or the default one, with the options that are given."""
    from refimpl.training import recipes

    recipe = recipes.read(args.recipe) if args.recipe else recipes.Recipe()
    given = {name: getattr(args, name) for name in RECIPE_OPTIONS}
    given = {name: value for name, value in given.items() if value is not None}
    return dataclasses.replace(recipe, **given)


def summary(args: argparse.Namespace) -> int:
    from refimpl.models import summary

    found = summary.of(args.model)
    if args.json:
        _print_json(found.to_json())
    else:
        print(found.table())
    return 0


def pack(args: argparse.Namespace) -> int:
    from refimpl.models import files

    file = files.read(args.model)
    if args.output.exists() and args.output.samefile(file.path):
        raise ModelFileError(f"{args.output}: is the model itself, expected another file to write")
    files.save_packed(
        args.output,
        file.model,
        file.params,
        floats=args.floats,
        class_names=file.class_names,
        preprocessing=file.preprocessing,
    )
    before, after = file.path.stat().st_size, args.output.stat().st_size
    print(f"{args.output}: {after:,} bytes, {before / after:.1f} times smaller than {args.model}")
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
        epilog="`refimpl VERB --help` explains a verb and shows examples.",
    )
    parser.add_argument("--version", action="version", version=f"refimpl {refimpl.__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)

    def verb(run: Callable, summary: str, *examples: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(
            run.__name__,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            epilog="\n  ".join(("examples:", *examples)),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.set_defaults(run=run)
        return added

    verb(
        demo,
        "classify the bundled sample digits and check the answers against stored goldens",
        "refimpl demo",
    )
    _add_classify(verb)
    _add_evaluate(verb)
    _add_train(verb)
    added = verb(
        summary,
        "show what each layer costs: parameters, packed bytes, operations",
        "refimpl summary didb_micro",
        "refimpl summary didb_micro_mnist --json",
    )
    added.add_argument(
        "model", metavar="NAME|FILE",
        help="an architecture, a shipped model, or a .safetensors file, packed or not",
    ).complete = FILES  # fmt: skip
    _add_json(added)
    added = verb(
        pack,
        "write a trained model with one bit for each binary weight",
        "refimpl pack didb_micro_mnist -o packed.safetensors",
    )
    added.add_argument(
        "model", metavar="MODEL", help="a shipped name or a .safetensors file"
    ).complete = FILES
    _add_output(added, "the .safetensors file to write")
    added.add_argument(
        "--floats", choices=("float32", "float16"), default="float32",
        help="type of scales, shifts and real layers (default float32)",
    )  # fmt: skip
    _add_json(verb(models, "list trained models and architectures", "refimpl models"))
    return parser


def _add_classify(verb: Callable) -> None:
    added = verb(
        classify,
        "name what is on images",
        "refimpl classify seven.png three.jpg --top 3",
        "refimpl classify photos --json",
        "refimpl classify - < seven.png",
    )
    added.add_argument(
        "images", nargs="+", metavar="IMAGE",
        help="a file of any usual format, a folder of such files, or - for standard input",
    ).complete = FILES  # fmt: skip
    _add_model(added)
    added.add_argument(
        "--top", type=_positive, default=1, metavar="K", help="show the K best classes (default 1)"
    )
    added.add_argument(
        "--invert", action="store_true", help="exchange dark and light, in every image"
    )
    _add_json(added)


def _add_evaluate(verb: Callable) -> None:
    added = verb(
        evaluate,
        "measure a model's accuracy on labelled images",
        "refimpl evaluate --data mnist",
        "refimpl evaluate --data cifar10.tar.xz --model mine.safetensors --json",
    )
    _add_data(added)
    _add_model(added)
    added.add_argument("--split", choices=("test", "train"), default="test", help="(default test)")
    added.add_argument(
        "--batch-size", type=_positive, default=100, metavar="N", help="(default 100)"
    )
    added.add_argument(
        "--record", action="store_true", help="write the figures into the card beside the model"
    )
    _add_json(added)


def _add_train(verb: Callable) -> None:
    added = verb(
        train,
        "train an architecture by its own backward pass",
        "refimpl train --data mnist --model didb_micro -o digits.safetensors",
        "refimpl train --data cifar10.tar.xz --model didb_cifar --flip -o mine.safetensors",
        "refimpl train --data mnist --model didb_micro --set depth=2 --recipe recipe.toml "
        "--curves csv -o small.safetensors",
    )
    _add_data(added)
    added.add_argument(
        "--model", required=True, metavar="NAME",
        help="an architecture; `refimpl models` lists them",
    )  # fmt: skip
    _add_output(added, "the .safetensors file to write; its card, a .json file, goes beside it")
    added.add_argument(
        "--set", type=_field, action="append", default=[], metavar="FIELD=VALUE",
        help="another value for a field of the architecture, such as depth=2; may be repeated",
    )  # fmt: skip
    added.add_argument(
        "--validation", type=_not_negative, default=0, metavar="N",
        help="hold out N training images, drawn by the seed, and report the accuracy on them",
    )  # fmt: skip
    added.add_argument(
        "--resume", action="store_true", help="go on from the checkpoint of an interrupted run"
    )
    added.add_argument(
        "--curves", choices=("csv", "png"),
        help="write the learning curves beside the model; png draws them too (needs matplotlib)",
    )  # fmt: skip
    options = added.add_argument_group("recipe", "settings of the run; the card records them all")
    options.add_argument(
        "--recipe", type=Path, metavar="FILE",
        help="settings from a .json or .toml file; the options below come on top",
    ).complete = FILES  # fmt: skip
    for name, (kind, text) in RECIPE_OPTIONS.items():
        option = f"--{name.replace('_', '-')}"
        if kind is bool:
            options.add_argument(option, action=argparse.BooleanOptionalAction, help=text)
        else:
            metavar = {int: "N", float: "X", str: "NAME"}[kind]
            action = options.add_argument(option, type=kind, metavar=metavar, help=text)
            if name == "teacher":
                action.complete = FILES


def _add_output(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument(
        "-o", "--output", required=True, type=Path, metavar="FILE", help=text
    ).complete = FILES


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", default=DEFAULT_MODEL, metavar="NAME",
        help=f"a trained model: a shipped name or a .safetensors file (default {DEFAULT_MODEL})",
    ).complete = FILES  # fmt: skip


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", required=True, type=Path, metavar="PATH",
        help="folder with MNIST's four idx files; or a folder, .tar (.gz, .bz2, .xz) or .zip with "
        "a folder of images for each class, below train/ and test/ where there are splits",
    ).complete = FILES  # fmt: skip
    parser.add_argument(
        "--limit", type=_positive, metavar="N", help="only N images, evenly spread over the data"
    )


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


def _field(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not FIELD=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:  # a word needs no quotes
        return name, value


# --- files ----------------------------------------------------------------------------------------


def _image_names(given: Sequence[str]) -> tuple[list[str], int]:
    """Images by name, folders replaced by what is in them, and the status so far."""
    from refimpl.data.images import in_folder

    names, status = [], 0
    for name in given:
        try:
            names += map(str, in_folder(name)) if os.path.isdir(name) else [name]
        except DataError as error:
            _complain(error)
            status = 2
    return names, status


def _picture(name: str) -> Any:
    """What the classifier takes for a name of the command line."""
    from refimpl.data import images

    if name != "-":
        return name
    return images.decode(sys.stdin.buffer.read(images.MAX_BYTES + 1), "standard input")


def _load(args: argparse.Namespace, split: str, preprocessing: Any) -> Any:
    """The Dataset that the options name."""
    from refimpl.data import datasets

    with _progress_bar("read") as bar:
        data = datasets.load(args.data, split, preprocessing, bar.update)
    return data if args.limit is None else data.spread(args.limit)


@contextlib.contextmanager
def _resumable(output: Path) -> Iterator[None]:
    """An interrupted training says how to go on, where there is something to go on from."""
    try:
        yield
    except KeyboardInterrupt:
        if not output.with_suffix(".checkpoint").exists():
            raise
        raise KeyboardInterrupt("the same command with --resume goes on") from None


# --- printing -------------------------------------------------------------------------------------


def _complain(error: Exception) -> None:
    text = str(error)
    if isinstance(error, OSError):  # without a name it is no file: those have one
        text = f"{error.filename or 'standard output'}: {error.strerror or error}"
    print(_paint("refimpl:", RED, sys.stderr), " ".join(text.split()), file=sys.stderr)


def _warn(text: str) -> None:
    print(_paint("refimpl: warning:", YELLOW, sys.stderr), text, file=sys.stderr)


def _paint(text: str, style: str, stream: TextIO) -> str:
    """Colour on a terminal only, and not where NO_COLOR is set (see no-color.org)."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not stream.isatty()
    return text if plain else f"\033[{style}m{text}\033[0m"


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


def _print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """First column to the left, the others to the right."""
    table = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for first, *others in table:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        print(first.ljust(widths[0]), *cells, sep="  ")


def _progress_bar(title: str, total: int | None = None) -> Any:
    """A tqdm bar over images, on a terminal only."""
    from tqdm import tqdm

    return tqdm(total=total, desc=title, unit="img", leave=False, disable=not sys.stderr.isatty())
