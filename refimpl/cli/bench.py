"""`refimpl bench`: how fast we are beside others, where the time goes, what a process costs."""

import argparse
import itertools
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

from refimpl.choice import start_numba
from refimpl.cli.options import DEFAULT_MODEL, add_json, positive
from refimpl.cli.output import print_json, print_table, progress_bar, warn
from refimpl.cli.verbs import Verbs
from refimpl.conventions import ConfigError
from refimpl.machine import cpus

COLUMNS = ("median ms", "min", "max", "GMAC/s", "threads")


def add(verbs: Verbs) -> None:
    bench = verbs.group("bench", "measure speed beside what people would use instead")
    added = bench(
        kernels,
        "time products of signs, packed and as floats, in one run with other libraries",
        "refimpl bench kernels",
        "refimpl bench kernels --shape 197x192x768 --rounds 20 --json",
    )
    added.add_argument(
        "--shape", type=_shape, action="append", metavar="MxKxN",
        help="tokens, inputs and outputs of a product; may be repeated (default: layers of "
        "the named architectures, and products of attention)",
    )  # fmt: skip
    _add_common(added, rounds=10)

    added = bench(
        model,
        "time whole networks, beside real ones of the same size in other libraries",
        "refimpl bench model --model didb_micro",
        "refimpl bench model --batch 8 --threads 2",
    )
    _add_models(added, "a binary architecture", "didb_micro, didb_tiny, didb_small")
    added.add_argument("--batch", type=positive, default=1, metavar="N", help="(default 1)")
    _add_common(added, rounds=10)

    added = bench(
        layers,
        "where the time of an image goes in a network, by kind of work, beside its limit",
        "refimpl bench layers --model didb_micro",
    )
    _add_model(added, "a binary architecture", "didb_tiny")
    _add_common(added, rounds=20, threads=False)

    added = bench(
        scaling,
        "time a network against the number of tokens and the size of the batch",
        "refimpl bench scaling --model didb_micro",
    )
    _add_model(added, "a binary architecture", "didb_tiny")
    _add_common(added, rounds=5)

    added = bench(
        train,
        "time and memory of a training step, beside the same network in PyTorch",
        "refimpl bench train",
        "refimpl bench train --model deit_cifar --model react_cifar --threads 2",
    )
    _add_models(added, "an architecture", "didb_cifar")
    added.add_argument(
        "--batch", type=positive, default=100, metavar="N", help="images a step (default 100)"
    )
    _add_common(added, rounds=5)

    added = bench(
        process,
        "time and memory of a fresh process that classifies one image",
        "refimpl bench process --rounds 3",
    )
    _add_common(added, rounds=10, threads=False)

    added = bench(
        cluster,
        "images a second of a Dask cluster on this machine beside one process, and its limits",
        "refimpl bench cluster --rounds 3",
        "refimpl bench cluster --model didb_cifar10 --images 500",
    )
    _add_model(added, "a classifier: a shipped name or a file", DEFAULT_MODEL)
    added.add_argument(
        "--images", type=positive, default=10_000, metavar="N", help="(default 10000)"
    )
    _add_common(added, rounds=5, threads=False)


def kernels(args: argparse.Namespace) -> int:
    start_numba()
    from refimpl.bench import kernels

    shapes, heads = (kernels.SHAPES, kernels.HEADS) if args.shape is None else (args.shape, ())
    _tell(args, kernels.PEERS)
    works = len(shapes) + 2 * len(heads)
    rows = _measured(works, args, lambda **o: kernels.run(shapes, heads, **o))
    return _print(args, rows)


def model(args: argparse.Namespace) -> int:
    start_numba()
    from refimpl.bench import models

    names = args.model or models.MODELS
    _tell(args, models.PEERS)
    rows = _measured(len(names), args, lambda **o: models.run(names, batch=args.batch, **o))
    return _print(args, rows, best=True)


def layers(args: argparse.Namespace) -> int:
    start_numba()
    from refimpl.bench import layers

    _tell(args)
    with progress_bar("measure", args.rounds, "round") as bar:
        rows = layers.run(args.model, rounds=args.rounds, progress=bar.update)
    if args.json:
        return _print(args, rows)
    total = sum(row.milliseconds for row in rows)
    header = ("ms", "share", "vectors", "ns a vector", "limit", "instructions", "bytes")
    print_table(
        (args.model, *header),
        [
            (
                row.kind,
                f"{row.milliseconds:.3f}",
                f"{100 * row.share:.1f} %",
                str(row.vectors),
                f"{row.nanoseconds:.2f}",
                f"{row.limit:.2f}" if row.limit else "",
                f"{row.instructions:.1f}" if row.limit else "",
                f"{row.bytes:.0f}",
            )
            for row in rows
        ]
        + [("all", f"{total:.3f}", "100.0 %", "", "", "", "", "")],
    )
    return 0


def scaling(args: argparse.Namespace) -> int:
    start_numba()
    from refimpl.bench import scaling

    _tell(args)
    rows = _measured(1, args, lambda **o: scaling.run(args.model, **o))
    if args.json:
        return _print(args, rows)
    print_table(("work", *COLUMNS), [(row.work, *_cells(row)) for row in rows])
    return 0


def train(args: argparse.Namespace) -> int:
    from refimpl.bench import train

    names = args.model or train.MODELS
    _tell(args, train.PEERS)
    with progress_bar("measure", len(names) * (args.rounds + 1), "round") as bar:
        rows = train.run(
            names, batch=args.batch, threads=args.threads, rounds=args.rounds, progress=bar.update
        )
    if args.json:
        return _print(args, rows)
    header = ("images/s", "ms a step", "peak MB", "over imports", "threads")
    _print_works(
        rows,
        header,
        lambda row: (
            f"{row.images_per_second:.0f}",
            _four_digits(row.median_ms),
            f"{row.peak_mb:.0f}",
            f"{row.over_imports_mb:.0f}",
            str(row.threads),
        ),
    )
    return 0


def process(args: argparse.Namespace) -> int:
    from refimpl.bench import process

    _tell(args)
    with progress_bar("measure", args.rounds + 1, "round") as bar:
        rows = process.run(rounds=args.rounds, progress=bar.update)
    if args.json:
        return _print(args, rows)
    floor = rows[0]
    print_table(
        ("fresh process", "median ms", "min", "max", "more", "peak MB", "more"),
        [
            (
                row.work,
                *(f"{ms:.0f}" for ms in (row.median_ms, row.min_ms, row.max_ms)),
                f"{row.median_ms - floor.median_ms:+.0f}",
                f"{row.peak_mb:.1f}",
                f"{row.peak_mb - floor.peak_mb:+.1f}",
            )
            for row in rows
        ],
    )
    return 0


def cluster(args: argparse.Namespace) -> int:
    from refimpl.bench import cluster
    from refimpl.cluster.connection import quiet

    _tell(args)
    with quiet(), progress_bar("measure", args.rounds, "round") as bar:
        rows, limits = cluster.run(
            args.model, images=args.images, rounds=args.rounds, progress=bar.update
        )
    if args.json:
        print_json({"rows": [row._asdict() for row in rows], "limits": limits._asdict()})
        return 0
    print_table(
        ("", "threads", "images/s", "of one process", "CPU ms an image", "of one", "fixed ms"),
        [
            (
                row.who,
                str(row.threads),
                f"{row.images_per_second:,.0f}",
                _percent(row.of_one_process),
                f"{row.cpu_ms:.3f}",
                _percent(row.cpu_of_one_process),
                f"{row.fixed_ms:.0f}",
            )
            for row in rows
        ],
    )
    lines = (
        f"Processor time of a task beside its images: {limits.worker_ms:.1f} ms of its worker, "
        f"{limits.client_ms:.1f} ms of client and",
        f"scheduler. A folder's listing makes {limits.names_per_second:,.0f} names a second.",
        f"On paper, {cluster.AT_SCALE:,} workers at {limits.images_per_second:,.0f} images/s each: "
        f"tasks of {limits.smallest_task:,.0f} images keep them busy;",
        f"with {limits.workers_of_listing:,.0f} workers listing takes as long as evaluating.",
    )
    print("", *lines, sep="\n")
    return 0


def _add_model(parser: argparse.ArgumentParser, what: str, default: str) -> None:
    words = f"{what} (default {default})"
    parser.add_argument("--model", default=default, metavar="NAME", help=words)


def _add_models(parser: argparse.ArgumentParser, what: str, defaults: str) -> None:
    words = f"{what}; may be repeated (default {defaults})"
    parser.add_argument("--model", action="append", metavar="NAME", help=words)


def _add_common(parser: argparse.ArgumentParser, rounds: int, threads: bool = True) -> None:
    parser.add_argument(
        "--rounds", type=positive, default=rounds, metavar="N",
        help=f"turns of each; the figure is their median, in `layers` the least (default {rounds})",
    )  # fmt: skip
    if threads:
        parser.add_argument(
            "--threads", type=positive, default=1, metavar="N",
            help="the same for all, at most the CPUs of this process (default 1)",
        )  # fmt: skip
    add_json(parser)


def _shape(text: str) -> tuple[int, ...]:
    sizes = text.split("x")
    if len(sizes) != 3 or not all(size.isdecimal() and int(size) for size in sizes):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not three whole numbers, such as 197x192x768"
        )
    return tuple(map(int, sizes))


def _tell(args: argparse.Namespace, peers: Sequence[Any] = ()) -> None:
    """The machine and who is missing, beside the answer where that is JSON."""
    _require_cpus(getattr(args, "threads", None))
    from refimpl.bench import host
    from refimpl.bench.peers import missing

    stream = sys.stderr if args.json else sys.stdout
    for line in host.describe(getattr(args, "threads", None)):
        print(line, file=stream)
    for line in missing(peers):
        print(f"missing: {line}", file=stream)
    print(file=stream, flush=True)
    for line in host.warnings():
        warn(line)


def _require_cpus(threads: int | None) -> None:
    """ConfigError for more threads than CPUs: what would be timed is how they wait."""
    most = cpus()
    if threads is not None and threads > most:
        raise ConfigError(
            f"--threads: found {threads}, expected at most {most}, the CPUs that this process may "
            "use"
        )


def _measured(works: int, args: argparse.Namespace, run: Callable[..., list]) -> list:
    with progress_bar("measure", works * args.rounds, "round") as bar:
        return run(threads=args.threads, rounds=args.rounds, progress=bar.update)


def _print(args: argparse.Namespace, rows: list, best: bool = False) -> int:
    if args.json:
        print_json([row._asdict() for row in rows])
    else:
        _print_works(rows, COLUMNS, _cells, best)
    return 0


def _print_works(
    rows: list, columns: Sequence[str], cells: Callable[[Any], tuple], best: bool = False
) -> None:
    """A table for each work; the first of its rows is ours, which the others are divided by.

    best: with a column that says how many times the best of the others each of them is as fast.
    """
    for work, group in itertools.groupby(rows, lambda row: row.work):
        ours, *others = group
        header = (work, *columns, "time / ours")
        table = [
            (row.who, *cells(row), f"{row.median_ms / ours.median_ms:.2f}")
            for row in (ours, *others)
        ]
        if best and others:
            least = min(row.median_ms for row in others)
            header = (*header, "times the best peer")
            table = [
                (*line, f"{least / row.median_ms:.2f}")
                for line, row in zip(table, (ours, *others), strict=True)
            ]
        print_table(header, table)
        print()


def _cells(row: Any) -> tuple[str, ...]:
    """The columns of COLUMNS."""
    times = map(_four_digits, (row.median_ms, row.min_ms, row.max_ms))
    return (*times, f"{row.gmacs:.0f}", str(row.threads))


def _percent(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.0%}"


def _four_digits(number: float) -> str:
    """Positive, from nanoseconds to minutes, and never with an exponent."""
    return f"{number:.{max(0, 3 - math.floor(math.log10(number)))}f}"
