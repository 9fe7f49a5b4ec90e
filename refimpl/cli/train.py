"""`refimpl train`: an architecture learns from labelled images."""

import argparse
import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import refimpl
from refimpl.cli import outputs
from refimpl.cli.options import (
    FILES,
    add_data,
    add_fields,
    add_training_backend,
    load_data,
    not_negative,
    training_backend,
)
from refimpl.cli.output import progress_bar, say
from refimpl.cli.verbs import Verbs
from refimpl.conventions import ConfigError, DataError

# Field of the recipe -> (type, help). What is not given keeps the recipe's own value.
RECIPE_OPTIONS = {
    "epochs": (int, "passes over the training images"),
    "activation_epochs": (int, "before them, with binary activations and real weights"),
    "batch_size": (int, "images a step"),
    "learning_rate": (float, "at the top of the schedule"),
    "alpha_rate": (float, "learning rate of attn.alpha, as a share of that of all others"),
    "muon_rate": (float, "of Muon on the blocks' matrices, as such a share; 0 for AdamW there too"),
    "weight_decay": (float, "of the matrices of real layers"),
    "warmup_fraction": (float, "of the steps of each stage, up to the top"),
    "smoothing": (float, "of the labels, 0 for none"),
    "teacher": (str, "a trained model to learn from, by name or file; needs --distillation"),
    "distillation": (float, "weight of the teacher's answers, 1 for nothing else"),
    "shift": (int, "pixels by which a training image may move each way"),
    "flip": (bool, "mirror a training image, left for right, or leave it, at random"),
    "crop": (float, "part of each side of an image that a step sees, cut out at random; 1 for all"),
    "clip_norm": (float, "largest norm of the gradients of a step"),
    "seed": (int, "the same seed gives the same bits on the same machine"),
    "shards": (int, "parts of a batch: they run side by side, and the smaller, the less memory"),
}


def add(verbs: Verbs) -> None:
    added = verbs(
        run,
        "train an architecture by its own backward pass",
        "refimpl train --data mnist --model didb_micro -o digits.safetensors",
        "refimpl train --data cifar10.tar.xz --model didb_cifar --flip -o cifar.safetensors",
        "refimpl train --data scenes --model segmenter_didb_micro -o seen.safetensors",
        "refimpl train --data mnist --model didb_micro --set depth=2 --recipe recipe.toml "
        "--curves csv -o small.safetensors",
        "refimpl train --data imagenet --init didb_cifar10 --epochs 3 -o fine.safetensors",
    )
    add_data(added)
    start = added.add_mutually_exclusive_group(required=True)
    start.add_argument(
        "--model", metavar="NAME", help="an architecture; `refimpl models` lists them"
    )
    start.add_argument(
        "--init", metavar="NAME|FILE",
        help="go on from a trained model, with its preprocessing; where its classes are not those "
        "of the data, with a new head",
    ).complete = FILES  # fmt: skip
    outputs.add(
        added, "-o", "--output", required=True,
        help="the .safetensors file to write; its card, a .json file, goes beside it",
    )  # fmt: skip
    added.set_defaults(beside=_beside)
    add_fields(added)
    added.add_argument(
        "--validation", type=not_negative, default=0, metavar="N",
        help="hold out N training images, drawn by the seed, and report the accuracy on them, and "
        "the mean IoU of a segmenter",
    )  # fmt: skip
    added.add_argument(
        "--resume", action="store_true", help="go on from the checkpoint of an interrupted run"
    )
    added.add_argument(
        "--curves", choices=("csv", "png"),
        help="write the learning curves beside the model; png draws them too (needs matplotlib)",
    )  # fmt: skip
    add_training_backend(added)
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


def run(args: argparse.Namespace) -> int:
    from refimpl import training
    from refimpl.data.preprocessing import Preprocessing
    from refimpl.training import requirements, starts

    recipe = _recipe(args)
    model, params = _start(args)
    _check(args, recipe, model, fresh=params is None)
    own = model.preprocessing
    read = own or Preprocessing.plain(model.config.image_size, model.config.channels)
    larger = recipe.uncut(read.size)
    requirements.check_recipe(model, recipe, larger)
    data = _load(args, model, dataclasses.replace(read, size=larger))
    if params is not None:
        model, params = starts.start(model, params, data.class_names, recipe.seed)
    split = training.hold_out(data.images, data.labels, args.validation, seed=recipe.seed)
    preprocessing = _measured(read, split.training[0])
    if own is not None:  # the network knows these numbers; what is usual are the new images
        preprocessing = dataclasses.replace(preprocessing, mean=own.mean, std=own.std)
    with _resumable(args.output):
        trained = training.train(
            model,
            recipe,
            *split.training,
            params=params,
            preprocessing=preprocessing.to_json(),
            class_names=list(data.class_names),
            out=args.output,
            middle=read.crop,
            validation=split.validation,
            progress=True,
            backend=training_backend(args.backend),
            threads=args.threads,
            resume=args.resume,
            curves=args.curves is not None,
            overwrite=args.force,
            # with what is held out: it is no part of the training
            source=(source := data.source()) and f"{source} {json.dumps(split.card)}",
            card={
                "data": args.data.resolve().name,
                **({"init": args.init} if args.init else {}),
                "broken_images_left_out": len(data.broken),
                **split.card,
            },
        )
    if args.curves == "png":
        from refimpl.report import curves

        curves.draw(trained.history, args.output.with_suffix(".png"))
    say(args.output)
    return 0


def _check(args: argparse.Namespace, recipe: Any, model: Any, fresh: bool) -> None:
    """All that can be told before data are read, which may take a minute or an hour."""
    from refimpl.models import files
    from refimpl.training import journal, stages

    if recipe.teacher is not None:
        outputs.check(args, ("teacher", files.find(recipe.teacher)))
    journal.require_free(
        args.output, args.curves is not None, resume=args.resume, overwrite=args.force
    )
    stages.plan(model, recipe, fresh=fresh)
    if args.curves == "png":
        from refimpl.report import curves

        curves.require_matplotlib()


def _load(args: argparse.Namespace, model: Any, read: Any) -> Any:
    """The training data, images as `read` makes them."""
    import numpy as np

    from refimpl.predictors import require_room

    require_room(model.config, np.dtype(np.float32))  # before images are made so large
    data = load_data(args, "train", read, model.config.task)
    if args.init is None and len(data.class_names) != model.config.num_classes:
        raise DataError(
            f"{args.data}: found {len(data.class_names)} classes, {args.model} has "
            f"{model.config.num_classes}: add --set num_classes={len(data.class_names)}"
        )
    return data


def _start(args: argparse.Namespace) -> tuple[Any, Any]:
    """The architecture and None, or the trained model and its parameters."""
    if args.init is None:
        return refimpl.create_model(args.model, **dict(args.set)), None
    if args.set:
        raise ConfigError(
            f"--set {args.set[0][0]}: found --init {args.init}, expected an architecture by --model"
        )
    return refimpl.load(args.init)


def _beside(args: argparse.Namespace) -> Iterator[tuple[Path, bool]]:
    """What a run writes next to the model; see `cli.outputs`."""
    if not args.output.name:  # a folder, which `journal.require_free` refuses
        return
    yield args.output.with_suffix(".json"), args.resume
    yield args.output.with_suffix(".checkpoint"), True  # `journal.require_free` looks into it
    if args.curves:
        yield args.output.with_suffix(".csv"), args.resume
    if args.curves == "png":
        yield args.output.with_suffix(".png"), False


def _measured(plain: Any, images: Any) -> Any:
    """The Preprocessing with mean and standard deviation of the images, however many."""
    import math

    from refimpl.data.image_folder import in_batches, slices

    few = max(1, min(100, 2**26 // math.prod(images.shape[1:])))  # images are as large as may be

    def counted() -> Iterator[Any]:
        for pixels in in_batches(images, slices(len(images), few)):
            yield pixels
            bar.update(len(pixels))

    with progress_bar("measure", len(images)) as bar:
        return plain.measured_over(counted())


def _recipe(args: argparse.Namespace) -> Any:
    """The recipe of the file, or the default one, with the options that are given."""
    from refimpl.training import recipes

    recipe = recipes.read(args.recipe) if args.recipe else recipes.Recipe()
    given = {name: getattr(args, name) for name in RECIPE_OPTIONS}
    given = {name: value for name, value in given.items() if value is not None}
    recipe = dataclasses.replace(recipe, **given)
    if recipe.distillation > 0 and recipe.teacher is None:
        raise ConfigError(
            f"recipe: distillation is {recipe.distillation}, expected 0.0: there is no teacher"
        )
    return recipe


@contextlib.contextmanager
def _resumable(output: Path) -> Iterator[None]:
    """An interrupted training says how to go on, where there is something to go on from."""
    try:
        yield
    except KeyboardInterrupt:
        if not output.with_suffix(".checkpoint").exists():
            raise
        raise KeyboardInterrupt("the same command with --resume goes on") from None
