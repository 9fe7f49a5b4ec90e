"""The results of an ablation: a CSV with a line a run, and the table that follows from it.

    runs.csv, table.md                evaluated on the test split
    validation.csv, validation.md     on the held-out training images

Both lie in the folder of the ablation, beside `unfinished`.
"""

import csv
import io
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from refimpl import disk
from refimpl.conventions import ConfigError, DataError, shown
from refimpl.disk import read_text, write_atomically
from refimpl.models.summary import summarise
from refimpl.training import recipes
from refimpl.training.ablation import TEST, Ablation, Images, Result, Row, Run, fingerprints
from refimpl.training.journal import require_same

NAMES = {True: ("runs.csv", "table.md"), False: ("validation.csv", "validation.md")}
_COSTS = ("parameters", "OPs", "packed bytes", "loss", "difference", "SE")
HEADERS = {  # by task
    "classification": ("row", "runs", "top-1 %", "SE", "SE of a run", *_COSTS),
    "segmentation": ("row", "runs", "mIoU %", "SE", "pixel accuracy %", *_COSTS),
}
SPREADS = {
    "classification": "SE is the standard error of the mean over runs, that of a run the binomial "
    "one of its number of images",
    "segmentation": "mIoU is the mean over the classes that the labels have, SE its standard error "
    "over runs",
}


class Line(NamedTuple):
    """A row of the table; the fields are those of its JSON object. None: not enough runs."""

    row: str
    seeds: list[int]  # of the runs that are over
    missing: list[int]
    top1: float | None  # mean over them, 0 to 1; of a segmenter's labelled pixels
    mean_iou: float | None  # likewise, of a segmenter
    error: float | None  # the standard error of `score`, by the spread of the runs
    binomial_error: float | None  # of one top1, by the number of images it is evaluated on
    parameters: int
    ops: float  # of one image
    packed_bytes: int
    loss: float | None  # of the training's last epoch, mean
    difference: float | None  # of `score` to the baseline's, mean over the seeds that both have
    difference_error: float | None  # its standard error, by the spread of these differences

    @property
    def score(self) -> float | None:
        """What rows are compared by."""
        return self.top1 if self.mean_iou is None else self.mean_iou


class Results:
    """The CSV of an ablation on one split; every run in it is one of the ablation's."""

    def __init__(self, folder: Path, ablation: Ablation, split: str):
        """Read what is there.

        DataError where it is no such CSV, ConfigError where it is another ablation's, OutputError
        where there is a table without one.
        """
        csv_name, table_name = NAMES[split == TEST]
        self.ablation, self.split = ablation, split
        self.path, self.table_path = folder / csv_name, folder / table_name
        self._runs = {(run.row.name, run.seed): run for run in ablation.runs()}
        self.results: list[Result] = []
        self._read()
        # a table is ours where runs lie beside it
        if folder.exists():
            disk.require_free(self.table_path, overwrite=self.path.exists())

    def has(self, run: Run) -> bool:
        return any((run.row.name, run.seed) == (r.row, r.seed) for r in self.results)

    def require_like(self, images: Images) -> None:
        """ConfigError unless the runs so far had these images: ask before a run, not after it."""
        data, watched = fingerprints(images)
        given = {"count": len(images.evaluated[1]), "data_sha256": data}
        for result in self.results:
            # curves are compared where there are two, and where their images are known
            curves = {"curve_sha256": watched} if watched and result.curve_sha256 else {}
            saved = {name: getattr(result, name) for name in given | curves}
            require_same(_where(self.path, result), saved, given | curves)

    def add(self, result: Result) -> None:
        """Write a run that is over, and the table; OSError from the disk."""
        self._read()  # another process may have added some meanwhile
        self.results = [r for r in self.results if (r.row, r.seed) != (result.row, result.seed)]
        self.results.append(result)
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(Result._fields)
        for each in self.results:
            writer.writerow([_cell(value) for value in each])
        write_atomically(self.path, text.getvalue().encode())
        self.write_table()

    def write_table(self) -> None:
        """The table as Markdown; OSError from the disk."""
        write_atomically(self.table_path, self.markdown().encode())

    def lines(self) -> list[Line]:
        """A line for each row of the ablation, in its order."""
        rows, baseline = self.ablation.rows, self.ablation.baseline
        base = {r.seed: r.score for r in self.results if r.row == baseline}
        return [
            _line(row, [r for r in self.results if r.row == row.name], baseline, base)
            for row in rows
        ]

    def in_order(self) -> list[Result]:
        """The runs that are over: by the rows of the ablation, then by seed."""
        names = [row.name for row in self.ablation.rows]
        return sorted(self.results, key=lambda result: (names.index(result.row), result.seed))

    def header(self) -> tuple[str, ...]:
        """The names of the table's columns."""
        return HEADERS[self.ablation.task]

    def cells(self) -> list[tuple[str, ...]]:
        """The table as text, a tuple a row; see `header`."""
        return [_cells(line, self.ablation.task) for line in self.lines()]

    def notes(self) -> str:
        """What the figures mean, as one paragraph."""
        ablation, recipe = self.ablation, self.ablation.recipe
        stages = recipe.activation_epochs
        epochs = f"{stages} + {recipe.epochs}" if stages else f"{recipe.epochs}"
        counts = sorted({result.count for result in self.results})
        evaluated = f"{counts[0]:,} " if counts else ""
        evaluated += "test images" if self.split == TEST else "held-out training images"
        text = (
            f"{ablation.images:,} training images, {epochs} epochs; the last weights of a run are "
            f"evaluated on {evaluated}. {SPREADS[ablation.task]}; loss that of the last epoch of "
            "training."
        )
        if stages:
            text += (
                " A network without stages, such as a real one, trains for as many epochs in one: "
                f"{stages + recipe.epochs}."
            )
        if ablation.baseline is not None:
            text += (
                f" Differences are to {shown(ablation.baseline)}, run by run of the same seed, "
                "which gives both the same batches."
            )
        return text

    def markdown(self) -> str:
        """The table and the notes below it."""
        header = self.header()
        rule = ("---", *["---:"] * (len(header) - 1))
        cells = [[shown(cell).replace("|", "\\|") for cell in row] for row in self.cells()]
        rows = "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *cells))
        return f"{rows}\n\n{self.notes()}\n"

    def _read(self) -> None:
        self.results = read_results(self.path) if self.path.exists() else []
        read = [(result.row, result.seed) for result in self.results]
        for result in self.results:
            if read.count((result.row, result.seed)) > 1:
                raise DataError(f"{_where(self.path, result)}: is there twice, expected it once")
            run = self._runs.get((result.row, result.seed))
            if run is None:
                raise ConfigError(
                    f"{self.path}: holds row {result.row!r} with seed {result.seed}, which the "
                    "ablation does not have"
                )
            settings = run.settings()
            saved = {name: getattr(result, name) for name in settings}
            saved["recipe"] = recipes.complete(result.recipe)
            require_same(_where(self.path, result), saved, settings)


def read_results(path: Path) -> list[Result]:
    """The lines of a CSV; DataError names the line that is wrong."""
    try:
        reader = csv.reader(io.StringIO(read_text(path), newline=""))
        table = [(reader.line_num, line) for line in reader if line]
    except (OSError, ValueError, csv.Error) as error:
        what = getattr(error, "strerror", None) or error  # that of an OSError names the file again
        raise DataError(f"{path}: cannot be read: {what}") from None
    columns = tuple(table[0][1]) if table else ()
    later = Result._fields[len(columns) :]  # those that the file is older than
    if columns + later != Result._fields or not set(later) <= set(Result._field_defaults):
        raise DataError(f"{path}: found other columns, expected {','.join(Result._fields)}")
    return [_parse(f"{path}: line {number}", columns, line) for number, line in table[1:]]


def mean_and_error(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean, and its standard error by the spread of the values: of none none, of one no error."""
    if not values:
        return None, None
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return statistics.fmean(values), error


def _parse(where: str, columns: Sequence[str], line: Sequence[str]) -> Result:
    if len(line) != len(columns):
        raise DataError(f"{where}: found {len(line)} cells, expected {len(columns)}")
    cells = zip(columns, line, strict=True)
    return Result(**{name: _value(where, name, text) for name, text in cells})


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, (dict, list, tuple)) else value


def _value(where: str, name: str, text: str) -> Any:
    """The value of a cell; DataError says which it is, and what it should have been."""
    parse, expected = _FIELDS.get(name) or _KINDS[Result.__annotations__[name]]
    try:
        return parse(text)
    except (ValueError, RecursionError):
        raise DataError(f"{where}: {name} is {text!r:.40}, expected {expected}") from None


def _numbers(text: str) -> list[float]:
    value = json.loads(text)
    if not isinstance(value, list) or not all(isinstance(v, (int, float)) for v in value):
        raise ValueError
    return value


def _object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError
    return value


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError
    return value


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise ValueError
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


Parser = tuple[Callable[[str], Any], str]  # of a column's cells, and what they hold
_KINDS: dict[Any, Parser] = {
    str: (str, "text"),
    int: (int, "an integer"),
    float: (_number, "a finite number"),
    float | None: (
        lambda text: _fraction(text) if text else None,
        "a number from 0 to 1, or nothing",
    ),
    dict[str, Any]: (_object, "a JSON object"),
    Sequence[float]: (_numbers, "a JSON list of numbers"),
}
_FIELDS: dict[str, Parser] = {  # of columns that hold less than their type
    "count": (_count, "an integer of at least 1"),
    "top1": (_fraction, "a number from 0 to 1"),
}


def _where(path: Path, result: Result) -> str:
    return f"{path}: row {result.row!r}, seed {result.seed}"


def _line(
    row: Row, results: Sequence[Result], baseline: str | None, base: Mapping[int, float]
) -> Line:
    """`base`: the baseline's scores by seed. Runs of one seed see the same batches: they pair."""
    cost = summarise(row.config)
    seeds = sorted(result.seed for result in results)
    top1 = _mean([result.top1 for result in results])
    mean_iou = _mean([result.mean_iou for result in results if result.mean_iou is not None])
    _, error = mean_and_error([result.score for result in results])
    pairs = [r for r in results if r.seed in base and row.name != baseline]
    difference, difference_error = mean_and_error([r.score - base[r.seed] for r in pairs])
    binomial = None
    if row.config.task == "classification" and top1 is not None:
        binomial = math.sqrt(top1 * (1 - top1) / results[0].count)
    return Line(
        row=row.name,
        seeds=seeds,
        missing=[seed for seed in row.seeds if seed not in seeds],
        top1=top1,
        mean_iou=mean_iou,
        error=error,
        binomial_error=binomial,
        parameters=cost.total.params_1bit + cost.total.params_32bit,
        ops=cost.ops,
        packed_bytes=cost.total.bytes,
        loss=_mean([result.loss for result in results]),
        difference=difference,
        difference_error=difference_error,
    )


def _mean(values: Sequence[float]) -> float | None:
    return mean_and_error(values)[0]


def _cells(line: Line, task: str) -> tuple[str, ...]:
    def percent(value: float | None, sign: str = "") -> str:
        return "-" if value is None else f"{100 * value:{sign}.2f}"

    planned = len(line.seeds) + len(line.missing)
    return (
        line.row,
        f"{len(line.seeds)} of {planned}" if line.missing else f"{planned}",
        percent(line.score),
        percent(line.error),
        percent(line.binomial_error if task == "classification" else line.top1),
        f"{line.parameters:,}",
        f"{line.ops:,.0f}",
        f"{line.packed_bytes:,}",
        "-" if line.loss is None else f"{line.loss:.4f}",
        percent(line.difference, "+"),
        percent(line.difference_error),
    )


def to_json(results: Results) -> dict[str, Any]:
    """The table as JSON values."""
    return {
        "split": results.split,
        "baseline": results.ablation.baseline,
        "rows": [line._asdict() for line in results.lines()],
    }
