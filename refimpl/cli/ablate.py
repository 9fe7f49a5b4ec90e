"""`refimpl ablate`: many trainings on the same images, and one table of what they reach."""

import argparse
import sys
from pathlib import Path
from typing import Any

from refimpl.cli import outputs
from refimpl.cli.options import (
    FILES,
    add_json,
    add_scheduler,
    add_training_backend,
    cluster_client,
    not_negative,
    positive,
    read_data,
    training_backend,
)
from refimpl.cli.output import print_json, print_table
from refimpl.cli.verbs import Verbs
from refimpl.conventions import ConfigError, DataError


def add(verbs: Verbs) -> None:
    added = verbs(
        run,
        "train the rows of an ablation on the same images and print its table",
        "refimpl ablate --recipe ablation.toml --data cifar10.tar.xz -o ablation",
        "refimpl ablate --recipe ablation.toml --data cifar10.tar.xz -o ablation --validation "
        "--row didb --seed 0",
        "refimpl ablate --recipe ablation.toml -o ablation --only-table --plot ablation.png",
        "refimpl ablate --recipe ablation.toml -o ablation --only-table --curves curves.png",
        "refimpl ablate --recipe ablation.toml --data cifar10.tar.xz -o ablation "
        "--scheduler local:2",
    )
    added.add_argument(
        "--recipe", required=True, type=Path, metavar="FILE",
        help="rows, seeds and the recipe of all, as .json or .toml",
    ).complete = FILES  # fmt: skip
    added.add_argument(
        "--data", type=Path, metavar="PATH",
        help="data set with the splits train and test, as for `refimpl train`: of classes, or of "
        "label maps where the rows are segmenters",
    ).complete = FILES  # fmt: skip
    text = (
        "folder of runs.csv and table.md; finished runs in it are not run again, interrupted ones "
        "go on"
    )
    outputs.add_folder(added, text, "DIR")
    added.add_argument(
        "--validation", action="store_true",
        help="evaluate on the held-out training images instead of the test split, into "
        "validation.csv and validation.md",
    )  # fmt: skip
    added.add_argument(
        "--row", action="append", default=[], metavar="NAME",
        help="run and draw this row only; may be repeated",
    )  # fmt: skip
    added.add_argument(
        "--seed", type=not_negative, action="append", default=[], metavar="N",
        help="run this seed only; may be repeated",
    )  # fmt: skip
    added.add_argument("--only-table", action="store_true", help="run nothing, print the table")
    outputs.add(
        added, "--plot", suffixes=(".png",), beside_answer=True,
        help="draw accuracy or mean IoU over packed size and over speed as PNG (needs matplotlib); "
        "the speed of all rows is measured side by side and printed",
    )  # fmt: skip
    outputs.add(
        added, "--curves", suffixes=(".png",), beside_answer=True,
        help="draw accuracy or mean IoU over epochs as PNG, mean and range over the seeds, of runs "
        "with curve_images (needs matplotlib)",
    )  # fmt: skip
    add_training_backend(added)
    add_scheduler(added, "run them side by side")
    added.add_argument(
        "--ship-checkpoints", type=positive, metavar="STEPS",
        help="with --scheduler: workers do not see the folder of -o; a checkpoint comes back at "
        "the end of the epoch in which so many steps are over",
    )  # fmt: skip
    add_json(added)


def run(args: argparse.Namespace) -> int:
    from refimpl.training import ablation, ablation_table

    if args.ship_checkpoints and args.scheduler is None:
        raise ConfigError("--ship-checkpoints: expected --scheduler with it")
    if args.plot or args.curves:
        from refimpl.report import curves

        curves.require_matplotlib()
    asked = ablation.read(args.recipe)
    split = ablation.HELD_OUT if args.validation else ablation.TEST
    results = ablation_table.Results(args.output, asked, split)
    chosen = ablation.choose(asked.runs(), args.row, args.seed)
    missing = [] if args.only_table else [run for run in chosen if not results.has(run)]
    names = {run.row.name for run in chosen}
    if args.curves and not (missing and asked.curve_images):
        _require_curves(args, asked, results, names)
    if missing:
        try:
            _carry_out(args, asked, missing, results)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("the same command goes on") from None
    if results.results:
        results.write_table()
    drawn = _with_runs(args.plot, results, names) if args.plot else []
    reached = {line.row for line in drawn}
    speeds = _speeds([row for row in asked.rows if row.name in reached]) if drawn else {}
    try:
        if args.json:
            print_json(ablation_table.to_json(results) | {"images_per_second": speeds})
        else:
            _print(results, speeds)
        sys.stdout.flush()
    finally:  # after the table, since it may fail, and also where nobody reads that
        _draw(args, results, names, drawn, speeds)
    return 0


def _draw(
    args: argparse.Namespace,
    results: Any,
    names: set[str],
    drawn: list[Any],
    speeds: dict[str, float],
) -> None:
    """The pictures that are asked for: `drawn` and `speeds` are of --plot."""
    from refimpl.report import curves, tradeoff

    if args.curves:
        curves.draw_rows(_with_curves(results, names), args.curves)
    if args.plot:
        tradeoff.draw(drawn, speeds, args.plot)


def _print(results: Any, speeds: dict[str, float]) -> None:
    print_table(results.header(), results.cells())
    print(f"\n{results.notes()}")
    if speeds:
        print("\nImages a second, one at a time on one thread:\n")
        print_table(("row", "images/s"), [(name, f"{n:,.0f}") for name, n in speeds.items()])


def _require_curves(args: argparse.Namespace, asked: Any, results: Any, names: set[str]) -> None:
    """ConfigError or DataError where there is none, and no run will give one."""
    if _with_curves(results, names):
        return
    if asked.curve_images == 0:
        raise ConfigError(
            f"{args.recipe}: curve_images is 0, expected an integer of at least 1 for --curves"
        )
    raise DataError(f"{args.curves}: no run has scores after its epochs, nothing to draw")


def _with_curves(results: Any, names: set[str]) -> list[Any]:
    """The runs of these rows that have scores after their epochs."""
    return [result for result in results.in_order() if result.row in names and result.curve]


def _with_runs(path: Path, results: Any, names: set[str]) -> list[Any]:
    """The lines of these rows that have something to draw."""
    lines = [line for line in results.lines() if line.row in names and line.score is not None]
    if not lines:
        raise DataError(f"{path}: no row has runs, nothing to draw")
    return lines


def _speeds(rows: list[Any]) -> dict[str, float]:
    """Images a second by the row's name."""
    from refimpl.bench import latency, work

    networks = {row.name: work.network(row.model, batch=1, **row.fields) for row in rows}
    return latency.images_per_second(networks)


def _carry_out(args: argparse.Namespace, asked: Any, missing: list, results: Any) -> None:
    from refimpl.training import ablation

    if args.data is None:
        raise ConfigError(f"--data is missing, expected a data set for {len(missing)} runs")
    backend = training_backend(args.backend)
    images = ablation.read_images(
        asked, results.split, lambda split, plain: read_data(args.data, split, plain, asked.task)
    )
    results.require_like(images)
    if args.scheduler is not None:
        _on_cluster(args, missing, images, results)
        return
    for number, each in enumerate(missing, start=1):
        print(f"{each.row.name}, seed {each.seed} ({number} of {len(missing)})", file=sys.stderr)
        result = ablation.carry_out(
            each,
            images,
            args.output,
            backend=backend,
            threads=args.threads,
            progress=True,
        )
        results.add(result)
        measure = "top-1" if result.mean_iou is None else "mIoU"
        reached = f"{measure} {result.score:.2%} on {result.count:,} images"
        print(reached, file=sys.stderr, flush=True)


def _on_cluster(args: argparse.Namespace, missing: list, images: Any, results: Any) -> None:
    from refimpl.cluster import ablation

    def tell(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    how = ablation.How(args.backend, args.threads or 1, args.ship_checkpoints)
    with cluster_client(args.scheduler) as client:
        ablation.carry_out(client, missing, images, results, data=args.data, how=how, tell=tell)
