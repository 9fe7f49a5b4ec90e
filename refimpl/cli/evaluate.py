"""`refimpl evaluate`: a model's accuracy on labelled images, or on labelled pixels."""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np

from refimpl.cli import outputs
from refimpl.cli.options import (
    add_backend,
    add_data,
    add_image_size,
    add_json,
    add_model,
    add_scheduler,
    cluster_client,
    load_data,
    positive,
)
from refimpl.cli.output import print_json, print_table, progress_bar, say, warn
from refimpl.cli.verbs import Verbs
from refimpl.conventions import ConfigError
from refimpl.disk import write_atomically
from refimpl.machine import cpus


def add(verbs: Verbs) -> None:
    added = verbs(
        run,
        "measure a model's accuracy on labelled images",
        "refimpl evaluate --data mnist",
        "refimpl evaluate --data cifar10.tar.xz --model mine.safetensors --json",
        "refimpl evaluate --data imagenet --class-names synsets.txt --workers 2 --skip-broken "
        "--model mine.safetensors",
        "refimpl evaluate --data scenes --model segmenter.safetensors --confusion matrix.png",
        "refimpl evaluate --data imagenet --model mine.safetensors --scheduler local:2",
    )
    add_data(added)
    add_model(added)
    add_backend(added)
    add_image_size(added)
    added.add_argument("--split", choices=("test", "train"), default="test", help="(default test)")
    added.add_argument(
        "--batch-size", type=positive, default=100, metavar="N", help="(default 100)"
    )
    added.add_argument(
        "--record", action="store_true", help="write the figures into the card beside the model"
    )
    outputs.add(
        added, "--confusion", suffixes=(".csv", ".png"), beside_answer=True,
        action="append", default=[],
        help="of a segmenter: write the confusion matrix of its pixels, as .csv or .png (needs "
        "matplotlib); may be repeated",
    )  # fmt: skip
    add_scheduler(added, "evaluate")
    added.add_argument(
        "--ship-images", action="store_true",
        help="with --scheduler: send the images to workers that do not see their path",
    )  # fmt: skip
    add_json(added)


def run(args: argparse.Namespace) -> int:
    from refimpl.classifiers import classifier
    from refimpl.models import cards, files
    from refimpl.segmenters import segmenter

    _check_scheduler(args)
    is_segmenter = files.read_any(args.model).model.config.task == "segmentation"
    if args.confusion and not is_segmenter:
        raise ConfigError(f"{args.model}: no segmenter, expected one for --confusion")
    make = segmenter if is_segmenter else classifier
    model = make(args.model, backend=args.backend, image_size=args.image_size)
    if args.record:
        cards.read(files.find(args.model))  # a missing card is told before the work, not after it
    if any(_is_picture(path) for path in args.confusion):  # known before the work
        from refimpl.report import curves

        curves.require_matplotlib()
    if args.scheduler is not None:
        data = _on_cluster(args)
        result, choice = data.result, data.choice
    else:
        data, result = (_segmented_here if is_segmenter else _classified_here)(args, model)
        choice = model.backend.choice
    described = _described(result.count, data, args.image_size, is_segmenter)
    try:
        if args.json:
            figures = dataclasses.asdict(result)
            figures.pop("per_class_count", None)
            answer = {"model": args.model, "split": data.split, **figures, **choice._asdict()}
            answer["image_size"] = list(model.model.config.image_size)
            print_json(answer | {"broken": data.broken})
        else:
            say(f"{args.model} on {described}")
            print()
            (_print_segmenter if is_segmenter else _print_classifier)(result)
            print(f" images a second ({choice.backend}: {choice.why})")
        sys.stdout.flush()
    finally:  # after the figures, since it may fail, and also where nobody reads them
        _record(args, result, described)
        for path in sorted(args.confusion, key=_is_picture):  # .csv needs no drawing
            _write_confusion(path, np.array(result.confusion), model.class_names)
    return 0


def _check_scheduler(args: argparse.Namespace) -> None:
    if args.ship_images and args.scheduler is None:
        raise ConfigError("--ship-images: expected --scheduler with it")
    if args.workers is not None and args.scheduler is not None:
        raise ConfigError("--workers: the scheduler has workers of its own, expected no number")


def _on_cluster(args: argparse.Namespace) -> Any:
    """The Evaluated of --scheduler; what is broken is told."""
    from refimpl import cluster

    with cluster_client(args.scheduler) as client:
        found = cluster.evaluate(
            client,
            args.model,
            args.data,
            split=args.split,
            backend=args.backend,
            image_size=args.image_size,
            batch_size=args.batch_size,
            limit=args.limit,
            skip_broken=args.skip_broken,
            class_names=args.class_names,
            ship_images=args.ship_images,
            bar=progress_bar,
        )
    for text in found.broken:
        warn(text)
    return found


def _record(args: argparse.Namespace, result: Any, described: str) -> None:
    from refimpl.models import cards, files

    if args.record:
        data = f"{args.data.resolve().name}, {described}"
        path = cards.record(files.find(args.model), result, data)
        say(f"recorded in {path}", sys.stderr)


def _print_segmenter(result: Any) -> None:
    from refimpl.report import segmentation

    present = sum(value is not None for value in result.per_class_iou.values())
    print(
        f"mean IoU        {result.mean_iou:8.2%}  over the {present} classes that the labels have"
    )
    print(f"pixel accuracy  {result.pixel_accuracy:8.2%}\n")
    rows = [
        (
            segmentation.shortened(name),
            "-" if value is None else f"{value:.2%}",
            f"{result.per_class_pixels[name]:,}",
        )
        for name, value in result.per_class_iou.items()
    ]
    print_table(("class", "IoU", "labelled pixels"), rows)
    print(f"\n{result.images_per_second:.1f}", end="")


def _segmented_here(args: argparse.Namespace, model: Any) -> tuple[Any, Any]:
    """A SegmentationFolder, and the evaluation of its pairs in this process."""
    from refimpl.choice import Work
    from refimpl.data import datasets, image_folder
    from refimpl.data import segmentation as maps
    from refimpl.models import cards, files

    folder = maps.find(args.data, args.split, args.class_names, args.limit)
    datasets.require_classes(args.data, folder.classes.names, model.class_names)
    workers = args.workers or 0  # no more than a few images are in memory, whatever they take
    if args.skip_broken:
        with progress_bar("read", len(folder.pairs)) as bar:
            folder = folder.without_broken(image_folder.Workers(workers), bar.update)
    for text in (*folder.broken, *folder.notes):
        warn(text)
    if args.record:
        cards.own(files.find(args.model), len(folder.pairs))
    model.expect(Work(len(folder.pairs), len(folder.pairs), cpus()))  # a window each, at least
    with progress_bar("evaluate", len(folder.pairs)) as bar:
        result = model.evaluate(folder, bar.update, workers=workers)
    return folder, result


def _described(
    count: int, data: Any, image_size: tuple[int, int] | None, in_windows: bool
) -> str:
    """What was evaluated: a Dataset or SegmentationFolder, at another size than the model's own."""
    at = "in windows of" if in_windows else "at"
    size = f" {at} {image_size[0]} x {image_size[1]} pixels" if image_size else ""
    of_split = f" of the {data.split} split" if data.split else ""
    broken = f", {len(data.broken):,} broken left out" if data.broken else ""
    return f"{count:,} images{of_split}{size}{broken}"


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() == ".png"


def _write_confusion(path: Path, counts: np.ndarray, names: tuple[str, ...]) -> None:
    from refimpl import metrics
    from refimpl.report import segmentation

    if _is_picture(path):
        segmentation.draw_confusion(counts, names, path)
    else:
        write_atomically(path, metrics.to_csv(counts, names).encode())


def _print_classifier(result: Any) -> None:
    print(f"top-1  {result.top1:8.2%}\ntop-5  {result.top5:8.2%}\n")
    rows = [
        (name, f"{accuracy:.2%}", f"{result.per_class_count[name]:,}")
        for name, accuracy in result.per_class.items()
    ]
    print_table(("class", "top-1", "images"), rows)
    print(f"\n{result.images_per_second:.0f}", end="")


def _classified_here(args: argparse.Namespace, model: Any) -> tuple[Any, Any]:
    """A Dataset, and the evaluation of its images in this process."""
    from refimpl.choice import Work
    from refimpl.data import datasets
    from refimpl.models import cards, files

    data = load_data(args, args.split, model.preprocessing, "classification")
    datasets.require_classes(args.data, data.class_names, model.class_names)
    if args.record:
        cards.own(files.find(args.model), len(data.images))
    batches = -(-len(data.images) // args.batch_size)
    model.expect(Work(len(data.images), batches, cpus()))
    with progress_bar("evaluate", len(data.images)) as bar:
        result = model.evaluate(data.images, data.labels, args.batch_size, bar.update, ready=True)
    return data, result
