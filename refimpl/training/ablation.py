"""An ablation: rows of one table, networks trained on the same images by the same recipe.

Its file, TOML or JSON:

    images = 10000          # to train on, drawn by draw_seed (default 0), every class alike
    held_out = 5000         # of the rest of the training split, to choose recipes and readings on
    curve_images = 1000     # of those held out, to evaluate on after every epoch (default 0: none)
    seeds = [0, 1, 2]       # a run each; a row may have seeds of its own
    baseline = "react"      # the row that all others are compared with

    [recipe]                # fields of a Recipe, but the seed
    activation_epochs = 5
    epochs = 5

    [[rows]]
    name = "react + haar"
    model = "react_cifar"
    fields = { similarity = "haar" }    # other values of fields of its configuration

The rows are classifiers, or all of them segmenters, whose images have no class: any are drawn. A
run is a row with a seed. Its last weights are evaluated once. A network without the stage
"activations", such as a real one, trains for as many epochs in one stage: activation_epochs +
epochs.
"""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from threadpoolctl import threadpool_limits

from refimpl import ops
from refimpl.conventions import ConfigError, DataError, did_you_mean
from refimpl.data.datasets import Dataset, require_classes
from refimpl.data.image_folder import Array, in_batches, slices, subset
from refimpl.data.preprocessing import Preprocessing
from refimpl.models import Config, VisionTransformer, cards, files, packing
from refimpl.models.architectures import named
from refimpl.models.summary import summarise
from refimpl.training.batches import Objective, score
from refimpl.training.history import from_json
from refimpl.training.holdout import draw_evenly
from refimpl.training.journal import fingerprint
from refimpl.training.loop import train
from refimpl.training.recipes import Recipe, read_fields, require_integer
from refimpl.training.requirements import check_recipe
from refimpl.training.stages import plan
from refimpl.training.watch import Watch

UNFINISHED = "unfinished"  # folder of checkpoints and weights
TEST, HELD_OUT = "test", "held-out"  # what a run is evaluated on
BATCH_SIZE = 100  # of the evaluation, and of what is measured


class Row(NamedTuple):
    """One line of the table."""

    name: str
    model: str  # an architecture's name
    fields: dict[str, Any]  # other values of fields of its configuration
    seeds: tuple[int, ...]

    @property
    def config(self) -> Config:
        return named(self.model, **self.fields)


class Run(NamedTuple):
    """A row with a seed."""

    row: Row
    recipe: Recipe  # with the seed, and with the stages that the row's network can have
    images: int
    draw_seed: int

    @property
    def seed(self) -> int:
        return self.recipe.seed

    def settings(self) -> dict[str, Any]:
        """What tells this run from others, as JSON values; the names are columns of a Result.

        ModelFileError where the recipe's teacher is not there.
        """
        found = {
            "model": self.row.model,
            "fields": self.row.fields,
            "images": self.images,
            "draw_seed": self.draw_seed,
            "recipe": self.recipe.to_json(),
        }
        if self.recipe.teacher is not None:
            teacher = files.find(self.recipe.teacher).read_bytes()
            found["teacher_sha256"] = hashlib.sha256(teacher).hexdigest()
        # without what has its default: a field that is added later does not change old runs
        chosen = {"config": _not_default(self.row.config), "recipe": _not_default(self.recipe)}
        everything = json.dumps(found | chosen, sort_keys=True)
        return found | {"sha256": hashlib.sha256(everything.encode()).hexdigest()}


def _not_default(settings: Config | Recipe) -> dict[str, Any]:
    """The fields of a dataclass that differ from their defaults."""
    fields = dataclasses.fields(settings)
    values = ((field, getattr(settings, field.name)) for field in fields)
    return {field.name: value for field, value in values if value != field.default}


class Result(NamedTuple):
    """A run that is over: a line of the CSV."""

    row: str
    seed: int
    model: str
    fields: dict[str, Any]
    parameters: int
    ops: float  # of one image, see models.summary
    packed_bytes: int
    images: int
    draw_seed: int
    epochs: int  # of all stages
    split: str  # TEST or HELD_OUT
    count: int  # images of it
    top1: float  # 0 to 1; of a segmenter's labelled pixels
    loss: float  # of the training's last epoch
    seconds: float  # of training, interruptions left out
    recipe: dict[str, Any]
    sha256: str  # of the run's settings
    data_sha256: str  # of the training images and labels
    mean_iou: float | None = None  # 0 to 1, of a segmenter
    curve: Sequence[float] = ()  # score after each epoch on the ablation's curve_images
    curve_sha256: str = ""  # of these images and labels; "" without a curve, and of older versions
    teacher_sha256: str = ""  # of the teacher's file; "" without one

    @property
    def score(self) -> float:
        """What runs are compared by."""
        return self.top1 if self.mean_iou is None else self.mean_iou


class Images(NamedTuple):
    """What all runs train on, and are evaluated on."""

    training: tuple[Array, Array]  # images uint8 (n, H, W[, 3]), labels (n,) or maps
    evaluated: tuple[Array, Array]
    split: str  # of those that are evaluated: TEST or HELD_OUT
    class_names: list[str]
    preprocessing: Preprocessing
    watched: tuple[Array, Array] | None = None  # held out, evaluated after every epoch


@dataclasses.dataclass(frozen=True)
class Ablation:
    """What the file says; a bad value raises ConfigError."""

    recipe: Recipe  # its seed means nothing
    rows: tuple[Row, ...]
    images: int
    held_out: int = 0
    curve_images: int = 0
    draw_seed: int = 0
    baseline: str | None = None

    def __post_init__(self):
        require_integer("images", self.images, 1)
        require_integer("held_out", self.held_out, 0)
        require_integer("curve_images", self.curve_images, 0)
        if self.curve_images > self.held_out:
            raise ConfigError(
                f"curve_images is {self.curve_images}, expected at most held_out, {self.held_out}"
            )
        require_integer("draw_seed", self.draw_seed, 0)
        names = [row.name for row in self.rows]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"row {name!r}: is there twice, expected names that differ")
        if self.baseline is not None and self.baseline not in names:
            raise ConfigError(f"baseline is {self.baseline!r}, expected a row: {', '.join(names)}")
        first = self.rows[0]
        for row in self.rows:
            self._require_trainable(row)
            for field in ("task", "image_size", "channels", "num_classes"):
                found, expected = getattr(row.config, field), getattr(first.config, field)
                if found != expected:
                    raise ConfigError(
                        f"row {row.name!r}: {field} is {found}, expected {expected} as in row "
                        f"{first.name!r}: all learn from the same images"
                    )

    def _require_trainable(self, row: Row) -> None:
        """ConfigError now, and not at the row's turn, hours later."""
        model, recipe = VisionTransformer(row.config), self._run(row, row.seeds[0]).recipe
        try:
            plan(model, recipe)
            check_recipe(model, recipe, recipe.uncut(row.config.image_size))
        except ConfigError as error:
            raise ConfigError(f"row {row.name!r}: {error}") from None

    @property
    def task(self) -> str:
        """Of every row, see Config."""
        return self.rows[0].config.task

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Ablation":
        """From the fields of the file."""
        required = ("recipe", "rows", "images", "seeds")
        optional = ("held_out", "curve_images", "draw_seed", "baseline")
        _require_fields("ablation", fields, required + optional, required)
        for name, kind in (("recipe", dict), ("rows", list)):
            if not isinstance(fields[name], kind) or (name == "rows" and not fields[name]):
                wanted = "a table" if kind is dict else "a list of tables"
                raise ConfigError(f"{name} is {fields[name]!r:.40}, expected {wanted}")
        if "seed" in fields["recipe"]:
            raise ConfigError("recipe: found 'seed', expected none: the ablation has 'seeds'")
        rest = {n: v for n, v in fields.items() if n not in ("recipe", "rows", "seeds")}
        recipe = Recipe.from_json(fields["recipe"])
        seeds = _seeds(fields["seeds"])
        return cls(recipe, tuple(_row(row, seeds) for row in fields["rows"]), **rest)

    def runs(self) -> list[Run]:
        """Every run: all rows with their first seed, then with their second, ..."""
        longest = max(len(row.seeds) for row in self.rows)
        return [
            self._run(row, row.seeds[i])
            for i in range(longest)
            for row in self.rows
            if i < len(row.seeds)
        ]

    def _run(self, row: Row, seed: int) -> Run:
        recipe = dataclasses.replace(self.recipe, seed=seed)
        if not packing.binary_matrices(row.config):
            epochs = recipe.activation_epochs + recipe.epochs
            recipe = dataclasses.replace(recipe, activation_epochs=0, epochs=epochs)
        return Run(row, recipe, self.images, self.draw_seed)


def read(path: str | os.PathLike) -> Ablation:
    """The ablation in a JSON or TOML file; ConfigError names the file, and what is wrong in it."""
    fields = read_fields(path)
    try:
        return Ablation.from_json(fields)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def choose(runs: Sequence[Run], names: Sequence[str], seeds: Sequence[int]) -> list[Run]:
    """Those of these rows and seeds; no names, or no seeds, are all. ConfigError for others."""
    known_names = list(dict.fromkeys(run.row.name for run in runs))
    known_seeds = sorted({run.seed for run in runs})
    for what, wanted, known in (("row", names, known_names), ("seed", seeds, known_seeds)):
        for value in wanted:
            if value not in known:
                listing = ", ".join(map(str, known))
                raise ConfigError(f"{what} is {value!r}, the ablation has {listing}")
    chosen = [
        run
        for run in runs
        if (not names or run.row.name in names) and (not seeds or run.seed in seeds)
    ]
    if not chosen:
        own = sorted({run.seed for run in runs if run.row.name in names})
        raise ConfigError(
            f"seed is {', '.join(map(str, seeds))}, expected one that row "
            f"{', '.join(map(repr, names))} has: {', '.join(map(str, own))}"
        )
    return chosen


def read_images(
    ablation: Ablation, split: str, load: Callable[[str, Preprocessing], Dataset]
) -> Images:
    """What the ablation trains on, and what `split`, TEST or HELD_OUT, evaluates it on.

    `load` reads the split "train" or "test" of the data set; "test" is asked for with TEST only.
    Images to train on are so large that the recipe's crop leaves the size that the networks read.
    DataError where the data set has no splits, other classes or too few images.
    """
    config = ablation.rows[0].config
    plain = Preprocessing.plain(config.image_size, config.channels)
    larger = dataclasses.replace(plain, size=ablation.recipe.uncut(plain.size))
    given = load("train", larger)
    if given.split is None:
        raise DataError("the data set has no splits, an ablation expects 'train' and 'test'")
    if len(given.class_names) != config.num_classes:
        raise DataError(
            f"found {len(given.class_names)} classes, the ablation's networks have "
            f"{config.num_classes}"
        )
    if split == HELD_OUT and ablation.held_out == 0:
        raise ConfigError("held_out is 0, expected the number of images to evaluate on")
    counts = (ablation.images, ablation.held_out)
    chosen, held = draw_evenly(given.labels, counts, ablation.draw_seed)
    to_hold = given  # at the size that the networks read
    if larger != plain and (split == HELD_OUT or ablation.curve_images):
        to_hold = load("train", plain)
    if split == HELD_OUT:
        evaluated = subset(to_hold.images, held), subset(to_hold.labels, held)
    else:
        test = load("test", plain)
        require_classes("test split", test.class_names, given.class_names)
        evaluated = test.images, test.labels
    watched = None
    if ablation.curve_images:
        counts = (ablation.curve_images,)
        (some,) = draw_evenly(subset(given.labels, held), counts, ablation.draw_seed)
        watched = subset(to_hold.images, held[some]), subset(to_hold.labels, held[some])
    training = subset(given.images, chosen), subset(given.labels, chosen)
    batches = in_batches(training[0], slices(len(chosen), BATCH_SIZE))
    return Images(
        training,
        evaluated,
        split,
        list(given.class_names),
        plain.measured_over(batches),
        watched,
    )


def carry_out(
    run: Run,
    images: Images,
    folder: Path,
    *,
    backend: Any = ops,
    threads: int | None = None,
    progress: bool = False,
    watch: Watch | None = None,
) -> Result:
    """Train a run, or go on where it was interrupted, and evaluate its last weights once.

    Checkpoint and weights lie in `folder`/unfinished under a name that holds a hash of all that
    the weights depend on: weights that are there already are not trained again. Else as `train`,
    whose `watch` this one's is.
    """
    settings, data, watched = run.settings(), *fingerprints(images)
    out = folder / UNFINISHED / f"{stem(run, data, watched)}.safetensors"
    out.parent.mkdir(parents=True, exist_ok=True)
    checkpoint = out.with_suffix(".checkpoint")
    if checkpoint.exists() or not out.exists():
        train(
            VisionTransformer(run.row.config),
            run.recipe,
            *images.training,
            preprocessing=images.preprocessing.to_json(),
            class_names=images.class_names,
            out=out,
            validation=images.watched,
            progress=progress,
            backend=backend,
            threads=threads,
            resume=checkpoint.exists(),
            card={"ablation": {"row": run.row.name, **settings}},
            watch=watch,
        )
    trained = files.read(out)
    objective = Objective(images.preprocessing.apply_array, backend)
    with threadpool_limits(1), ThreadPoolExecutor(threads) as pool:
        reached = score(
            trained.model, trained.params, *images.evaluated, objective, BATCH_SIZE, pool
        )
    cost = summarise(run.row.config)
    return Result(
        row=run.row.name,
        seed=run.seed,
        parameters=cost.total.params_1bit + cost.total.params_32bit,
        ops=cost.ops,
        packed_bytes=cost.total.bytes,
        epochs=run.recipe.activation_epochs + run.recipe.epochs,
        split=images.split,
        count=len(images.evaluated[1]),
        top1=reached.accuracy,
        loss=cards.number(out, "figures", "loss"),
        seconds=cards.number(out, "wall_time_seconds"),
        data_sha256=data,
        mean_iou=reached.mean_iou,
        curve=_curve(out),
        curve_sha256=watched,
        **settings,
    )


def _curve(out: Path) -> list[float]:
    """The scores after the epochs of a run that is over, of its card; none where none were asked.

    ModelFileError where the card has other things there.
    """
    history = from_json(cards.path_of(out), cards.read(out).get("history"))
    scores = [epoch.score for epoch in history]
    return [] if None in scores else scores


def fingerprints(images: Images) -> tuple[str, str]:
    """Of what is trained on, and of what is watched; "" where nothing is."""
    watched = fingerprint(*images.watched) if images.watched else ""
    return fingerprint(*images.training), watched


def stem(run: Run, data: str, watched: str) -> str:
    """Name the files of a run on images with these `fingerprints`; see `carry_out`.

    Other settings or images give another name.
    """
    parts = filter(None, (run.settings()["sha256"], data, watched))
    digest = hashlib.sha256(" ".join(parts).encode()).hexdigest()[:8]
    name = re.sub(r"[^A-Za-z0-9]+", "_", run.row.name).strip("_")
    return f"{name}-{run.seed}-{digest}"


def _row(fields: Any, seeds: tuple[int, ...]) -> Row:
    _require_fields("row", fields, ("name", "model", "fields", "seeds"), ("name", "model"))
    name, overrides = fields["name"], fields.get("fields", {})
    if not isinstance(name, str) or not re.search("[A-Za-z0-9]", name):
        raise ConfigError(
            f"row: name is {name!r}, expected text with a letter or a digit of ASCII: a to z, "
            "A to Z, 0 to 9"
        )
    if not isinstance(overrides, Mapping):
        raise ConfigError(f"row {name!r}: fields is {overrides!r:.40}, expected a table")
    try:
        own = _seeds(fields["seeds"]) if "seeds" in fields else seeds
        row = Row(name, fields["model"], dict(overrides), own)
        row.config  # noqa: B018  raises where it is none
    except ConfigError as error:
        raise ConfigError(f"row {name!r}: {error}") from None
    return row


def _seeds(values: Any) -> tuple[int, ...]:
    if not isinstance(values, list) or not values:
        raise ConfigError(f"seeds is {values!r:.40}, expected a list of numbers")
    for value in values:
        require_integer("seeds", value, 0)
    if len(set(values)) < len(values):
        raise ConfigError(f"seeds is {values}, expected numbers that differ")
    return tuple(values)


def _require_fields(what: str, fields: Any, known: Sequence[str], required: Sequence[str]) -> None:
    if not isinstance(fields, Mapping):
        raise ConfigError(f"{what}: found {fields!r:.40}, expected a table with fields")
    if unknown := sorted(set(fields) - set(known)):
        meant = did_you_mean(unknown[0], known)
        raise ConfigError(
            f"{what}: unknown field {unknown[0]!r}, expected {', '.join(known)}{meant}"
        )
    if missing := [name for name in required if name not in fields]:
        raise ConfigError(f"{what}: field {missing[0]!r} is missing")
