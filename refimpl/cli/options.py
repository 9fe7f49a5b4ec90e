"""Options that several verbs have, and what they name."""

import argparse
import contextlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from refimpl.choice import BACKENDS, start_numba
from refimpl.cli.output import progress_bar, warn
from refimpl.cli.outputs import FILES
from refimpl.conventions import ConfigError

DEFAULT_MODEL = "didb_micro_mnist"
TRAINING_BACKENDS = ("kernels", "numpy")


def add_model(
    parser: argparse.ArgumentParser, default: str = DEFAULT_MODEL, what: str = "model"
) -> None:
    parser.add_argument(
        "--model", default=default, metavar="NAME",
        help=f"a trained {what}: a shipped name or a .safetensors file (default {default})",
    ).complete = FILES  # fmt: skip


def add_backend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--backend", choices=tuple(BACKENDS), default="auto",
        help="numpy is the reference, auto what is quicker for the work (default auto)",
    )  # fmt: skip


def add_image_size(
    parser: argparse.ArgumentParser, what: str = "to resize images to, or of a segmenter's window"
) -> None:
    parser.add_argument(
        "--image-size", type=size, metavar="H[xW]",
        help=f"pixels {what}, instead of the model's own "
        "size; it is interpolated to match (multiples of its patch, and of the grids of windows)",
    )  # fmt: skip


def add_training_backend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--backend", choices=TRAINING_BACKENDS, default="kernels",
        help="what computes: numpy is the reference, kernels are faster (default kernels)",
    )  # fmt: skip
    parser.add_argument(
        "--threads", type=positive, metavar="N",
        help="parts of a batch side by side (default: CPUs)",
    )  # fmt: skip


def training_backend(name: str) -> Any:
    """The backend of this name; see `add_training_backend`."""
    if name == "kernels":
        start_numba()
        from refimpl.kernels import backend

        return backend
    from refimpl import ops

    return ops


def add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", required=True, type=Path, metavar="PATH",
        help="folder with MNIST's four idx files; or a folder, .tar (.gz, .bz2, .xz) or .zip with "
        "a folder of images for each class, below train/ and test/ or val/ where there are splits; "
        "for a segmenter a folder with images/ and annotations/",
    ).complete = FILES  # fmt: skip
    parser.add_argument(
        "--limit", type=positive, metavar="N", help="only N images, evenly spread over the data"
    )
    parser.add_argument(
        "--workers", type=not_negative, metavar="N",
        help="decode the images of a folder, and a segmenter's annotations, batch by batch, in N "
        "processes or with 0 in this one (default: only where they need more than 1 GB of memory, "
        "with a process a CPU)",
    )  # fmt: skip
    parser.add_argument(
        "--skip-broken",
        action="store_true",
        help="name images that cannot be decoded and leave them out, or pairs where the image or "
        "its annotation cannot (default: stop at the first)",
    )
    parser.add_argument(
        "--class-names", type=Path, metavar="FILE",
        help="names for the class folders: lines such as 'n01440764 tench', or a .json object; "
        "of a segmenter's data the list of classes",
    ).complete = FILES  # fmt: skip


def add_scheduler(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument(
        "--scheduler", metavar="ADDRESS",
        help=f"{what} on a Dask cluster: tcp://HOST:PORT, a scheduler file, or local[:N] for N "
        "worker processes of this machine (needs the extra `cluster`)",
    )  # fmt: skip


@contextlib.contextmanager
def cluster_client(scheduler: str) -> Iterator[Any]:
    """A Dask client for --scheduler; Dask itself says nothing on the terminal."""
    from refimpl import cluster
    from refimpl.cluster import connection

    with connection.quiet(), cluster.connected(scheduler) as client:
        yield client


def add_fields(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set", type=_field, action="append", default=[], metavar="FIELD=VALUE",
        help="another value for a field of the architecture, such as depth=2; may be repeated",
    )  # fmt: skip


def picture(name: str) -> Any:
    """The PIL image of a file, or of the standard input, as "-" names it; DataError."""
    from refimpl.data import images

    if name == "-":
        return images.decode(sys.stdin.buffer.read(images.MAX_BYTES + 1), "standard input")
    return images.open_image(name)


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON; fractions are 0 to 1")


def size(text: str) -> tuple[int, int]:
    """A side or HxW, as an option says it."""
    height, times, width = text.partition("x")
    try:
        return positive(height), positive(width if times else height)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 56 or 56x84") from None


def blamed(args: argparse.Namespace, error: Exception) -> str:
    """The option that set the field that an error is of, to be put before it; "" where none did."""
    # a recipe of a file comes after the file's name
    found = re.search(r"(?:^recipe|config|preprocessing): (?:unknown field ')?(\w+)", str(error))
    if not (found and isinstance(error, ConfigError)):
        return ""
    given = {name for name, value in vars(args).items() if value is not None}
    options = {name: f"--{name.replace('_', '-')}" for name in given}
    options |= {name: f"--set {name}" for name, _ in getattr(args, "set", [])}
    options["size"] = options.get("image_size") or options.get("crop")
    option = options.get(found[1])
    return f"{option}: " if option else ""


def _field(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not FIELD=VALUE")
    try:
        return name, json.loads(value)
    except (ValueError, RecursionError):  # a word needs no quotes
        return name, value


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def not_negative(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def load_data(args: argparse.Namespace, split: str, preprocessing: Any, task: str) -> Any:
    """The Dataset for a task that the options name; what is broken in it is told."""
    from refimpl.data import class_names

    options = {"workers": args.workers, "skip_broken": args.skip_broken, "limit": args.limit}
    if task == "segmentation":
        return read_data(
            args.data, split, preprocessing, task, class_list=args.class_names, **options
        )
    data = read_data(args.data, split, preprocessing, task, **options)
    if args.class_names is None:
        return data
    return data._replace(class_names=class_names.apply(args.class_names, data.class_names))


def read_data(path: Path, split: str, preprocessing: Any, task: str, **options: Any) -> Any:
    """The Dataset for a task (see Config), with a bar; the options are those of its `load`.

    What is broken in it is told, and what else a user should know.
    """
    from refimpl.data import datasets, segmentation

    load = segmentation.load if task == "segmentation" else datasets.load
    with progress_bar("read") as bar:
        data = load(path, split, preprocessing, bar.update, **options)
    for text in (*data.broken, *data.notes):
        warn(text)
    return data
