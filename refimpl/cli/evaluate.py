"""`refimpl evaluate`: a model's accuracy on labelled images."""

import argparse

from refimpl.cli.options import (
    add_backend,
    add_data,
    add_image_size,
    add_json,
    add_model,
    load_data,
    positive,
    start_engine,
)
from refimpl.cli.output import print_json, print_table, progress_bar
from refimpl.cli.verbs import Verbs


def add(verbs: Verbs) -> None:
    added = verbs(
        run,
        "measure a model's accuracy on labelled images",
        "refimpl evaluate --data mnist",
        "refimpl evaluate --data cifar10.tar.xz --model mine.safetensors --json",
        "refimpl evaluate --data imagenet --class-names synsets.txt --workers 2 --skip-broken "
        "--model mine.safetensors",
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
    add_json(added)


def run(args: argparse.Namespace) -> int:
    from refimpl.classifier import classifier, read_card, record
    from refimpl.data import datasets

    start_engine(args.backend)
    model = classifier(args.model, backend=args.backend, image_size=args.image_size)
    if args.record:
        read_card(args.model)  # a missing card is told before the work, not after it
    data = load_data(args, args.split, model.preprocessing)
    datasets.require_classes(args.data, data.class_names, model.class_names)
    with progress_bar("evaluate", len(data.images)) as bar:
        result = model.evaluate(data.images, data.labels, args.batch_size, bar.update, ready=True)
    described = f"{result.count:,} images" + (f" of the {data.split} split" if data.split else "")
    if args.image_size:
        described += " at {} x {} pixels".format(*args.image_size)
    if data.broken:
        described += f", {len(data.broken):,} broken left out"
    if args.record:
        record(args.model, result, f"{args.data.resolve().name}, {described}")
    if args.json:
        print_json(
            {
                "model": args.model,
                "split": data.split,
                "count": result.count,
                "top1": result.top1,
                "top5": result.top5,
                "per_class": result.per_class,
                "images_per_second": result.images_per_second,
                "broken": data.broken,
            }
        )
        return 0
    print(f"{args.model} on {described}\n")
    print(f"top-1  {result.top1:8.2%}\ntop-5  {result.top5:8.2%}\n")
    rows = [
        (name, f"{accuracy:.2%}", f"{result.per_class_count[name]:,}")
        for name, accuracy in result.per_class.items()
    ]
    print_table(("class", "top-1", "images"), rows)
    print(f"\n{result.images_per_second:.0f} images a second")
    return 0
