"""An ablation: runs on the same images, a CSV that survives, and a table that follows from it."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import math
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import refimpl
from refimpl.bench import latency, work
from refimpl.conventions import DataError
from refimpl.data import datasets, segmentation
from refimpl.data.preprocessing import Preprocessing
from refimpl.models import files, summary
from refimpl.models.architectures import named
from refimpl.report import tradeoff
from refimpl.training import ablation, ablation_table, history
from refimpl.training.batches import Score
from refimpl.training.holdout import draw_evenly
from tests import oracles, strategies
from tests.command_line import PATIENCE, assert_one_line, run
from tests.test_data import encoded
from tests.test_data_sets import write_folder

ROOT = Path(__file__).parent.parent
TINY = {"image_size": 8, "dim": 16, "depth": 1, "mlp_ratio": 1, "num_classes": 3}
SPEC = {
    "images": 12,
    "held_out": 6,
    "seeds": [4, 2],
    "baseline": "react",
    "recipe": {"activation_epochs": 1, "epochs": 2, "batch_size": 5, "shards": 2},
    "rows": [
        {"name": "real", "model": "deit_cifar", "fields": TINY, "seeds": [4]},
        {"name": "react", "model": "react_cifar", "fields": TINY},
        {"name": "react + haar", "model": "react_cifar", "fields": {**TINY, "similarity": "haar"}},
    ],
}
RUNS = [("real", 4), ("react", 4), ("react + haar", 4), ("react", 2), ("react + haar", 2)]
WHERE = {"test": ("runs.csv", "table.md"), "held-out": ("validation.csv", "validation.md")}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Noise with a bright row that tells the class; 8 training and 5 test images of each."""
    rng, tree = np.random.default_rng(70), {}
    for split, count in {"train": 8, "test": 5}.items():
        for label, name in enumerate(("ant", "bee", "cow")):
            for number in range(count):
                pixels = rng.integers(0, 99, (8, 8, 3), dtype=np.uint8)
                pixels[3 * label] = 240
                tree[f"{split}/{name}/{number}.png"] = encoded(Image.fromarray(pixels))
    return write_folder(tmp_path_factory.mktemp("data"), tree)


def write_spec(folder: Path, **changes) -> Path:
    path = folder / "ablation.json"
    path.write_text(json.dumps({**SPEC, **changes}))
    return path


def ablate(spec: Path, data: Path | None, folder: Path, *options: object):
    given_data = () if data is None else ("--data", data)
    command = ("ablate", "--recipe", spec, *given_data, "-o", folder, "--backend", "numpy")
    return run(*command, "--threads", 1, *options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data) -> Path:
    """A folder with all runs, and its recipe beside it."""
    folder = tmp_path_factory.mktemp("finished")
    status, out, _ = ablate(write_spec(folder), data, folder / "out")
    assert status == 0, out
    return folder


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def timeless(path: Path) -> list[dict[str, str]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows_of(path)]


def same_runs(folder: Path, other: Path) -> None:
    assert timeless(folder / "runs.csv") == timeless(other / "runs.csv")
    weights = [sorted((f / "unfinished").glob("*.safetensors")) for f in (folder, other)]
    assert [p.name for p in weights[0]] == [p.name for p in weights[1]]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(*weights, strict=True))
    assert not list((folder / "unfinished").glob("*.checkpoint"))


# --- runs -----------------------------------------------------------------------------------------


def test_a_line_a_run_all_rows_with_a_seed_before_the_next(finished) -> None:
    rows = rows_of(finished / "out" / "runs.csv")
    assert [(row["row"], int(row["seed"])) for row in rows] == RUNS
    assert {row["data_sha256"] for row in rows} == {rows[0]["data_sha256"]}
    assert len({row["sha256"] for row in rows}) == len(RUNS)
    for row in rows:
        cost = summary.summarise(named(row["model"], **json.loads(row["fields"])))
        assert float(row["ops"]) == cost.ops
        assert int(row["packed_bytes"]) == cost.total.bytes
        assert int(row["parameters"]) == cost.total.params_1bit + cost.total.params_32bit
        found = (row["images"], row["epochs"], row["split"], row["count"])
        assert found == ("12", "3", "test", "15")
        assert json.loads(row["recipe"])["seed"] == int(row["seed"])


def test_the_last_weights_are_evaluated_on_the_test_split(finished, data) -> None:
    test = datasets.load(data, "test", Preprocessing.plain((8, 8), 3))
    for row in rows_of(finished / "out" / "runs.csv"):
        stem = row["row"].replace(" + ", "_")
        (path,) = (finished / "out" / "unfinished").glob(f"{stem}-{row['seed']}-*.safetensors")
        file = files.read(path)
        x = file.model.prepare(test.images)
        right = file.model.predict(file.params, x).argmax(axis=1) == test.labels
        assert float(row["top1"]) == right.mean()
        card = json.loads(path.with_suffix(".json").read_text())
        assert float(row["loss"]) == card["history"][-1]["loss"]
        assert (card["training_images"], len(card["history"])) == (12, 3)
        stages = [epoch["stage"] for epoch in card["history"]]
        assert stages == (["real"] * 3 if stem == "real" else ["activations", "full", "full"])


def test_what_is_over_is_not_run_again(finished, monkeypatch) -> None:
    monkeypatch.setattr(ablation, "carry_out", lambda *a, **o: pytest.fail("it ran"))
    folder = finished / "out"
    before = (folder / "runs.csv").read_bytes()
    status, out, err = ablate(finished / "ablation.json", None, folder)
    assert (status, err) == (0, "")
    assert out == ablate(finished / "ablation.json", None, folder, "--only-table").out
    assert (folder / "runs.csv").read_bytes() == before


def test_rows_and_seeds_can_be_chosen(finished, data, tmp_path) -> None:
    spec, folder = write_spec(tmp_path), tmp_path / "out"
    assert ablate(spec, data, folder, "--row", "react", "--seed", 2).status == 0
    assert [(r["row"], r["seed"]) for r in rows_of(folder / "runs.csv")] == [("react", "2")]
    status, out, err = ablate(spec, data, folder, "--row", "react", "--row", "real")
    assert status == 0
    assert "react, seed 4 (2 of 2)" in err
    assert "1 of" not in out and "0 of 2" in out  # react + haar
    (line,) = [r for r in timeless(folder / "runs.csv") if (r["row"], r["seed"]) == ("react", "4")]
    assert line in timeless(finished / "out" / "runs.csv")
    assert_one_line(ablate(spec, data, folder, "--row", "raect"), "'raect'", "react + haar")
    assert_one_line(ablate(spec, data, folder, "--seed", 3), "seed is 3", "2, 4")
    found = ablate(spec, data, folder, "--row", "real", "--seed", 2)
    assert_one_line(found, "seed is 2, expected one that row 'real' has: 4")


def test_a_row_more_is_a_run_more(finished, data, tmp_path) -> None:
    """What is there already stays; also what another process adds meanwhile."""
    spec, folder = write_spec(tmp_path, rows=SPEC["rows"][:1], baseline="real"), tmp_path / "out"
    assert ablate(spec, data, folder).status == 0
    asked = ablation.read(write_spec(tmp_path, rows=SPEC["rows"][:2], baseline="real"))
    here = ablation_table.Results(folder, asked, ablation.TEST)
    assert ablate(spec, data, folder).status == 0
    (result,) = [r for r in ablation_table.read_results(finished / "out" / "runs.csv")
                 if (r.row, r.seed) == ("react", 2)]  # fmt: skip
    there = ablation_table.Results(folder, asked, ablation.TEST)
    there.add(result)
    here.add(result._replace(seed=4, sha256=asked.runs()[1].settings()["sha256"],
                             recipe=asked.runs()[1].recipe.to_json()))  # fmt: skip
    found = [(r["row"], r["seed"]) for r in rows_of(folder / "runs.csv")]
    assert found == [("real", "4"), ("react", "2"), ("react", "4")]


# --- interruptions --------------------------------------------------------------------------------


def stop_at(monkeypatch, epoch: int) -> None:
    """Interrupt the runs at the end of an epoch, counted from 1 over all of them."""
    as_before, lines = history.EpochResult.__str__, []

    def stop(self: history.EpochResult) -> str:
        lines.append(None)
        if len(lines) == epoch:
            raise KeyboardInterrupt
        return as_before(self)

    monkeypatch.setattr(history.EpochResult, "__str__", stop)


def test_an_interrupted_ablation_goes_on_to_the_same_bits(
    finished, data, tmp_path, monkeypatch
) -> None:
    spec, folder = write_spec(tmp_path), tmp_path / "out"
    stop_at(monkeypatch, 5)  # of 3 epochs a run: the second one is interrupted
    status, out, err = ablate(spec, data, folder)
    assert (status, out) == (130, "")
    assert err.splitlines()[-1] == "refimpl: interrupted: the same command goes on"
    monkeypatch.undo()
    assert len(rows_of(folder / "runs.csv")) == 1
    assert len(list((folder / "unfinished").glob("*.checkpoint"))) == 1
    status, _, err = ablate(spec, data, folder)
    assert status == 0
    assert sum("epoch" in line for line in err.splitlines()) == 3 * 5 - 5
    same_runs(folder, finished / "out")


@pytest.mark.skipif(os.name == "nt", reason="sends signals")
def test_a_killed_ablation_goes_on_to_the_same_bits(finished, data, tmp_path) -> None:
    """Killed as soon as its second run has a checkpoint, or at whatever moment comes then."""
    spec, folder = write_spec(tmp_path), tmp_path / "out"
    command = ["ablate", "--recipe", spec, "--data", data, "-o", folder, "--backend", "numpy"]
    with subprocess.Popen(
        [sys.executable, "-m", "refimpl", *map(str, command)],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as child:  # fmt: skip
        deadline = time.monotonic() + PATIENCE
        while child.poll() is None and not list(folder.glob("unfinished/react-4-*.checkpoint")):
            assert time.monotonic() < deadline
            time.sleep(0.005)
        child.kill()
    assert child.returncode == -signal.SIGKILL
    assert ablate(spec, data, folder).status == 0
    same_runs(folder, finished / "out")


def test_weights_without_a_line_are_evaluated_and_not_trained_again(
    finished, data, tmp_path, monkeypatch
) -> None:
    """As of a process that was killed between the two, and for the other split."""
    spec, folder = write_spec(tmp_path), tmp_path / "out"
    assert ablate(spec, data, folder, "--validation").status == 0
    monkeypatch.setattr(ablation, "train", lambda *a, **o: pytest.fail("it trained"))
    assert ablate(spec, data, folder).status == 0
    same_runs(folder, finished / "out")


def test_a_run_has_one_teacher(data, tmp_path) -> None:
    """Whose file is replaced is another: neither weights nor results of both are mixed."""
    teacher, folder = tmp_path / "t.safetensors", tmp_path / "out"
    recipe = {**SPEC["recipe"], "teacher": str(teacher), "distillation": 0.5}
    spec = write_spec(tmp_path, recipe=recipe)
    model = refimpl.create_model("deit_cifar", **TINY)
    found = []
    for seed, options in enumerate((("--validation",), ())):
        params = model.init(np.random.default_rng(seed), np.dtype(np.float32))
        files.save(teacher, model, params, class_names=["ant", "bee", "cow"], card={})
        assert ablate(spec, data, folder, "--row", "real", *options).status == 0
        found.append(hashlib.sha256(teacher.read_bytes()).hexdigest())
    rows = [*rows_of(folder / "validation.csv"), *rows_of(folder / "runs.csv")]
    assert [row["teacher_sha256"] for row in rows] == found
    assert len(list(folder.glob("unfinished/real-4-*.safetensors"))) == 2
    refused = ablate(spec, data, folder, "--row", "react", "--validation")
    assert_one_line(refused, "row 'real', seed 4: is of a run with another teacher_sha256")


def test_runs_without_teacher_and_curve_keep_their_names() -> None:
    """As versions before these computed them, of fields that are not the default."""
    (run, *_) = ablation.Ablation.from_json(SPEC).runs()
    recipe = {"epochs": 3, "batch_size": 5, "seed": 4, "shards": 2}
    said = {
        "model": "deit_cifar", "fields": TINY, "images": 12, "draw_seed": 0,
        "recipe": run.recipe.to_json(), "config": ablation._not_default(run.row.config),
    }  # fmt: skip
    assert ablation._not_default(run.recipe) == recipe
    said["recipe"] = recipe
    sha256 = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
    assert run.settings()["sha256"] == sha256
    digest = hashlib.sha256(f"{sha256} abc".encode()).hexdigest()[:8]
    assert ablation.stem(run, "abc", "") == f"real-4-{digest}"
    assert ablation.stem(run, "abc", "def") != ablation.stem(run, "abc", "")


# --- splits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("split", "options", "read", "count"),
    [("test", (), ["train", "test"], 15), ("held-out", ("--validation",), ["train"], 6)],
)
def test_a_split_is_read_only_where_it_is_asked_for(
    data, tmp_path, monkeypatch, split, options, read, count
) -> None:
    load, asked = datasets.load, []

    def spy(path, name, *arguments):
        asked.append(name)
        return load(path, name, *arguments)

    monkeypatch.setattr(datasets, "load", spy)
    evaluated = []
    monkeypatch.setattr(
        ablation, "score",
        lambda model, params, images, *rest: evaluated.append(images) or Score(0.5, None),
    )  # fmt: skip
    spec = write_spec(tmp_path, rows=SPEC["rows"][:1], baseline="real")
    status, out, _ = ablate(spec, data, tmp_path / "out", *options)
    assert (status, asked) == (0, read)  # once for all runs
    mine, others = WHERE[split], WHERE["test" if split == "held-out" else "held-out"]
    assert all((tmp_path / "out" / name).exists() for name in mine)
    assert not any((tmp_path / "out" / name).exists() for name in others)
    assert [row["split"] for row in rows_of(tmp_path / "out" / mine[0])] == [split]
    assert split.split("-")[0] in out
    test = load(data, "test", Preprocessing.plain((8, 8), 3)).images
    of_test = {image.tobytes() for image in test}
    assert [len(images) for images in evaluated] == [count]
    assert {image.tobytes() in of_test for image in evaluated[0]} == {split == "test"}


def test_training_images_are_the_same_for_both_and_never_evaluated(data) -> None:
    asked = ablation.Ablation.from_json(SPEC)
    both = [
        ablation.read_images(asked, split, lambda name, plain: datasets.load(data, name, plain))
        for split in (ablation.TEST, ablation.HELD_OUT)
    ]
    np.testing.assert_array_equal(both[0].training[0], both[1].training[0])
    trained = {image.tobytes() for image in both[0].training[0]}
    assert len(trained) == 12
    for images in both:
        assert not trained & {image.tobytes() for image in images.evaluated[0]}
    assert np.bincount(both[0].training[1]).tolist() == [4, 4, 4]
    assert np.bincount(both[1].evaluated[1]).tolist() == [2, 2, 2]
    assert both[0].preprocessing == both[1].preprocessing


@pytest.mark.parametrize("split", [ablation.TEST, ablation.HELD_OUT])
def test_a_crop_leaves_images_of_the_size_that_networks_read(data, split) -> None:
    """Images to train on are as `refimpl train` loads them; all others have the network's size."""
    recipe = {**SPEC["recipe"], "crop": 0.5}
    asked = ablation.Ablation.from_json({**SPEC, "recipe": recipe, "curve_images": 3})
    plain = ablation.Ablation.from_json({**SPEC, "curve_images": 3})

    def read(one: ablation.Ablation) -> ablation.Images:
        return ablation.read_images(one, split, lambda name, how: datasets.load(data, name, how))

    found, before = read(asked), read(plain)
    large = datasets.load(data, "train", Preprocessing.plain((16, 16), 3))
    of_large = {image.tobytes() for image in large.images}
    assert found.training[0].shape == (12, 16, 16, 3)
    assert {image.tobytes() for image in found.training[0]} <= of_large
    np.testing.assert_array_equal(found.training[1], before.training[1])
    for mine, other in ((found.evaluated, before.evaluated), (found.watched, before.watched)):
        for array, expected in zip(mine, other, strict=True):
            np.testing.assert_array_equal(array, expected)
    assert found.preprocessing.size == (8, 8)


@given(
    strategies.seeds(),
    st.lists(st.integers(0, 12), min_size=1, max_size=3),
    st.integers(1, 5),
)
def test_draws_are_even_disjoint_and_do_not_depend_on_later_ones(seed, counts, classes) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(classes), 37) * 3)
    draws = draw_evenly(labels, counts, seed)
    assert [len(draw) for draw in draws] == counts
    every = np.concatenate(draws)
    assert len(set(every.tolist())) == len(every)
    for draw in draws:
        assert draw.tolist() == sorted(draw)
        of_class = [np.count_nonzero(labels[draw] == 3 * c) for c in range(classes)]
        assert max(of_class) - min(of_class) <= 1
    np.testing.assert_array_equal(draw_evenly(labels, counts[:1], seed)[0], draws[0])
    with pytest.raises(DataError, match=f"37 images of class 0, expected {37 + 1}"):
        draw_evenly(labels, (30 * classes, 8 * classes), seed)


# --- another ablation -----------------------------------------------------------------------------


def changed_row(**fields) -> list[dict]:
    return [SPEC["rows"][0], {**SPEC["rows"][1], **fields}, SPEC["rows"][2]]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"recipe": {**SPEC["recipe"], "learning_rate": 0.5}}, "recipe: learning_rate (0.002, now"),
        ({"images": 9}, "images (12, now 9)"),
        ({"draw_seed": 1}, "draw_seed (0, now 1)"),
        ({"rows": changed_row(model="didb_cifar")}, "model (react_cifar, now didb_cifar)"),
        ({"rows": changed_row(fields={**TINY, "dim": 32})}, "fields: dim (16, now 32)"),
        ({"rows": SPEC["rows"][:2]}, "holds row 'react + haar' with seed 4"),
        ({"seeds": [4]}, "holds row 'react' with seed 2"),
    ],
)
def test_the_results_of_another_ablation_are_refused(finished, tmp_path, changes, words) -> None:
    before = (finished / "out" / "runs.csv").read_bytes()
    for options in ((), ("--only-table",)):
        found = ablate(write_spec(tmp_path, **changes), None, finished / "out", *options)
        assert_one_line(found, "runs.csv: ", words)
    assert (finished / "out" / "runs.csv").read_bytes() == before


def test_other_images_are_refused_before_a_run(data, tmp_path, monkeypatch) -> None:
    spec, folder = write_spec(tmp_path), tmp_path / "out"
    assert ablate(spec, data, folder, "--row", "real", "--validation").status == 0
    monkeypatch.setattr(ablation, "carry_out", lambda *a, **o: pytest.fail("it ran"))
    fewer = write_spec(tmp_path, held_out=3)
    assert_one_line(ablate(fewer, data, folder, "--validation"), "count (6, now 3)")
    load = datasets.load

    def other(*arguments):
        found = load(*arguments)
        return found._replace(images=found.images ^ 1)

    monkeypatch.setattr(datasets, "load", other)
    found = ablate(write_spec(tmp_path), data, folder, "--validation")
    assert_one_line(found, "validation.csv: row 'real', seed 4", "data_sha256")


# --- the table ------------------------------------------------------------------------------------


def results(path: Path, scores: dict[str, list[int]], count: int) -> ablation_table.Results:
    """The results of runs of which so many answers of `count` were right."""
    rows = [{"name": name, "model": "react_micro"} for name in scores]
    fields = {**SPEC, "rows": rows, "seeds": list(range(9)), "baseline": next(iter(scores))}
    asked = ablation.Ablation.from_json(fields)
    cost = summary.summarise(named("react_micro"))
    found = ablation_table.Results(path, asked, ablation.TEST)
    for one in asked.runs():
        right = scores[one.row.name]
        if one.seed < len(right):
            found.add(ablation.Result(
                row=one.row.name, seed=one.seed, parameters=1, ops=cost.ops,
                packed_bytes=cost.total.bytes, epochs=3, split="test", count=count,
                top1=right[one.seed] / count, loss=right[one.seed] / 7, seconds=1.0,
                data_sha256="", **one.settings(),
            ))  # fmt: skip
    return found


RIGHT = st.lists(st.integers(0, 200), max_size=4)


@given(RIGHT, RIGHT)
def test_the_arithmetic_of_the_table(tmp_path_factory, base, other) -> None:
    path = tmp_path_factory.mktemp("drawn")
    lines = results(path, {"base": base, "other": other}, 200).lines()
    for line, right in zip(lines, (base, other), strict=True):
        assert line.seeds == list(range(len(right)))
        assert line.missing == list(range(len(right), 9))
        if not right:
            assert (line.top1, line.error, line.binomial_error, line.loss) == (None,) * 4
            continue
        exact = [Fraction(number, 200) for number in right]
        mean = statistics.mean(exact)
        assert line.top1 == pytest.approx(float(mean), abs=1e-15)
        assert line.loss == pytest.approx(statistics.mean(right) / 7)
        assert line.binomial_error == pytest.approx(math.sqrt(mean * (1 - mean) / 200), abs=1e-9)
        if len(right) == 1:
            assert line.error is None
        else:
            variance = statistics.variance(exact) / len(exact)
            assert line.error == pytest.approx(math.sqrt(variance), abs=1e-12)
    assert lines[0].difference is None
    if not base or not other:
        assert lines[1].difference is None
        return
    # runs of the same seed make a pair
    pairs = [Fraction(b - a, 200) for a, b in zip(base, other)]
    assert lines[1].difference == pytest.approx(float(statistics.mean(pairs)), abs=1e-12)
    if len(pairs) > 1:
        variance = statistics.variance(pairs) / len(pairs)
        assert lines[1].difference_error == pytest.approx(math.sqrt(variance), abs=1e-12)
    else:
        assert lines[1].difference_error is None


def test_the_table_on_paper(tmp_path) -> None:
    found = results(tmp_path, {"react": [100, 104], "didb": [110, 112, 114]}, 200)
    header, rule, *rows = found.markdown().splitlines()[:4]
    assert header.startswith("| row | runs | top-1 % | SE | SE of a run |")
    assert set(rule) <= set("|-: ")
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert cells[0][:5] == ["react", "2 of 9", "51.00", "1.00", "3.53"]
    assert cells[1][:5] == ["didb", "3 of 9", "56.00", "0.58", "3.51"]
    assert cells[0][9:11] == ["-", "-"]
    assert cells[1][9:11] == ["+4.50", "0.50"]  # 110 - 100 and 112 - 104 of 200
    assert "12 training images, 1 + 2 epochs" in found.notes()
    assert "200 test images" in found.notes()
    assert "for as many epochs in one: 3." in found.notes()
    assert found.table_path.read_text() == found.markdown()


def test_a_name_does_not_break_the_table(tmp_path) -> None:
    found = results(tmp_path, {"r | x": [100], "two\nlines": [110]}, 200)
    header, _, *rows = found.markdown().split("\n\n")[0].splitlines()
    cells = [re.split(r"(?<!\\)\|", row) for row in (header, *rows)]
    assert [len(row) for row in cells] == [len(cells[0])] * 3
    assert [row[1] for row in cells[1:]] == [" r \\| x ", " two\\nlines "]


def test_the_table_is_printed_and_written(finished) -> None:
    folder, spec = finished / "out", finished / "ablation.json"
    out = ablate(spec, None, folder, "--only-table").out
    found = json.loads(ablate(spec, None, folder, "--only-table", "--json").out)
    assert (found["split"], found["baseline"]) == ("test", "react")
    assert [row["row"] for row in found["rows"]] == ["real", "react", "react + haar"]
    assert [row["seeds"] for row in found["rows"]] == [[4], [2, 4], [2, 4]]
    for line, row in zip(out.splitlines()[1:], found["rows"]):
        assert line.startswith(row["row"])
        assert f"{100 * row['top1']:.2f}" in line and f"{row['packed_bytes']:,}" in line
    assert (folder / "table.md").read_text().count("\n|") == 4


def test_a_table_of_nothing_writes_nothing(tmp_path) -> None:
    status, out, _ = ablate(write_spec(tmp_path), None, tmp_path / "out", "--only-table")
    assert status == 0
    assert "0 of 2" in out
    assert not (tmp_path / "out").exists()


def test_the_picture(tmp_path) -> None:
    """A point in each panel in each row's colour."""
    oracles.require("matplotlib")
    drawn = results(tmp_path, {"react": [20, 40], "none": [], "didb": [150, 130]}, 200)
    lines = [line for line in drawn.lines() if line.score is not None]
    tradeoff.draw(lines, {"react": 123.0, "didb": 45.0}, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert (picture.format, picture.size) == ("PNG", (1100, 500))
        pixels = np.asarray(picture.convert("RGB"))
    for half in (pixels[:, :480], pixels[:, 500:980]):
        colors = [tuple(color) for color in np.unique(half.reshape(-1, 3), axis=0)]
        assert (31, 119, 180) in colors and (255, 127, 14) in colors  # the first two
        assert (44, 160, 44) not in colors  # the third


def test_the_ticks_of_the_picture_tell_small_numbers_apart(tmp_path) -> None:
    oracles.require("matplotlib")
    lines = [line._replace(packed_bytes=size) for line, size in zip(
        results(tmp_path, {"react": [20, 40], "didb": [150, 130]}, 200).lines(), (600, 30_000)
    )]  # fmt: skip
    figure = tradeoff._figure(lines, {"react": 0.3, "didb": 4000.0})
    figure.draw_without_rendering()
    for axes in figure.axes:
        ticks = [tick for tick in axes.get_xticks() if 0.1 <= tick <= 2000]
        texts = [axes.xaxis.get_major_formatter()(tick) for tick in ticks]
        assert len(ticks) > 3
        assert [float(text.replace(",", "")) for text in texts] == pytest.approx(ticks)


def test_plot_draws_the_rows_that_are_chosen(finished, tmp_path) -> None:
    oracles.require("matplotlib")
    spec, folder = finished / "ablation.json", finished / "out"
    for name, options in {"all": (), "two": ("--row", "real", "--row", "react")}.items():
        path = tmp_path / f"{name}.png"
        found = ablate(spec, None, folder, "--only-table", "--plot", path, *options)
        assert found.status == 0
        _, _, measured = found.out.partition("Images a second")
        rows = [row["name"] for row in SPEC["rows"] if not options or row["name"] in options]
        assert re.findall(r"^(.+?) +[\d,]+$", measured, re.MULTILINE) == rows
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["all.png", "two.png"]
    assert (tmp_path / "all.png").read_bytes() != (tmp_path / "two.png").read_bytes()


def test_a_picture_of_nothing_is_refused(tmp_path) -> None:
    oracles.require("matplotlib")
    path = tmp_path / "a.png"
    found = ablate(write_spec(tmp_path), None, tmp_path / "out", "--only-table", "--plot", path)
    assert_one_line(found, f"{path}: no row has runs")


# --- curves ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def curved(tmp_path_factory, data) -> Path:
    """All runs as in `finished`, evaluated on 4 of the 6 images held out after every epoch."""
    folder = tmp_path_factory.mktemp("curved")
    assert ablate(write_spec(folder, curve_images=4), data, folder / "out").status == 0
    return folder


def test_curves_change_no_weights(finished, curved) -> None:
    for old, new in zip(*(timeless(f / "out" / "runs.csv") for f in (finished, curved))):
        assert (old.pop("curve"), len(json.loads(new.pop("curve")))) == ("[]", 3)
        assert (old.pop("curve_sha256"), len(new.pop("curve_sha256"))) == ("", 64)
        assert old == new


def test_a_curve_ends_with_the_score_of_the_last_weights_on_images_held_out(curved, data) -> None:
    def load(split: str, plain: Preprocessing) -> datasets.Dataset:
        return datasets.load(data, split, plain)

    asked = ablation.read(curved / "ablation.json")
    held_out = ablation.read_images(asked, ablation.HELD_OUT, load)
    images, labels = held_out.watched
    assert len(images) == 4 and len({image.tobytes() for image in images}) == 4
    assert {x.tobytes() for x in images} <= {x.tobytes() for x in held_out.evaluated[0]}
    assert len(set(labels)) == 3  # of every class
    for row in rows_of(curved / "out" / "runs.csv"):
        stem = row["row"].replace(" + ", "_")
        (path,) = (curved / "out" / "unfinished").glob(f"{stem}-{row['seed']}-*.safetensors")
        file = files.read(path)
        answers = file.model.predict(file.params, file.model.prepare(images)).argmax(axis=1)
        assert json.loads(row["curve"])[-1] == (answers == labels).mean()


def test_the_picture_of_curves(curved, tmp_path) -> None:
    """A line in each row's colour, and a band where seeds differ."""
    oracles.require("matplotlib")
    spec, folder = curved / "ablation.json", curved / "out"
    for name, options in {"all": (), "one": ("--row", "real")}.items():
        path = tmp_path / f"{name}.png"
        assert ablate(spec, None, folder, "--only-table", "--curves", path, *options).status == 0
        with Image.open(path) as picture:
            assert (picture.format, picture.size) == ("PNG", (900, 600))
            colors = {color for _, color in picture.convert("RGB").getcolors(1 << 20)}
        first, second, third = (31, 119, 180), (255, 127, 14), (44, 160, 44)
        assert first in colors
        assert {second, third} <= colors if name == "all" else not {second, third} & colors
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["all.png", "one.png"]


def test_runs_without_curves_are_not_drawn(finished, tmp_path) -> None:
    oracles.require("matplotlib")
    options = ("--only-table", "--curves", tmp_path / "a.png")
    found = ablate(finished / "ablation.json", None, finished / "out", *options)
    assert_one_line(found, "ablation.json: curve_images is 0, expected")
    found = ablate(write_spec(tmp_path, curve_images=2), None, finished / "out", *options)
    assert_one_line(found, "a.png: no run has scores after its epochs")


def test_curves_of_nothing_are_refused_before_a_run(data, tmp_path) -> None:
    oracles.require("matplotlib")
    spec, picture = write_spec(tmp_path), tmp_path / "a.png"
    found = ablate(spec, data, tmp_path / "out", "--curves", picture)
    assert_one_line(found, f"{spec}: curve_images is 0, expected an integer of at least 1")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--curves", "--plot"])
def test_the_table_is_printed_before_it_is_drawn(curved, tmp_path, monkeypatch, option) -> None:
    """The disk is full: a picture is lost, and nothing else."""
    oracles.require("matplotlib")
    from refimpl.report import curves

    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(curves, "write_png", full)
    monkeypatch.setattr(tradeoff, "write_png", full)
    monkeypatch.setattr(latency, "images_per_second", lambda networks: dict.fromkeys(networks, 1.0))
    spec, folder = curved / "ablation.json", curved / "out"
    status, out, err = ablate(spec, None, folder, "--only-table", option, tmp_path / "a.png")
    assert (status, "no space left" in err) == (2, True)
    assert out.startswith(ablate(spec, None, folder, "--only-table").out)


def test_curves_of_other_images_are_not_mixed(curved, data, tmp_path, monkeypatch) -> None:
    """Neither of the seeds of a row, nor of the epochs of a run that was interrupted."""
    only, folder = ("--row", "real"), tmp_path / "out"
    stop_at(monkeypatch, 2)
    spec = write_spec(tmp_path, curve_images=3)
    assert ablate(spec, data, folder, *only).status == 130
    monkeypatch.undo()
    assert ablate(write_spec(tmp_path, curve_images=4), data, folder, *only).status == 0
    (found,) = timeless(folder / "runs.csv")
    assert found == timeless(curved / "out" / "runs.csv")[0]
    assert re.fullmatch("[0-9a-f]{64}", found["curve_sha256"])
    refused = ablate(write_spec(tmp_path, curve_images=3), data, folder, "--row", "react")
    assert_one_line(refused, "row 'real', seed 4: is of a run with another curve_sha256")


@pytest.mark.parametrize("first", ["curve", "curve_sha256"])
def test_a_csv_from_before_some_columns_is_read(curved, tmp_path, first) -> None:
    """An older version did not have `first`, and those after it."""
    rows = rows_of(curved / "out" / "runs.csv")
    known = list(rows[0])[: list(rows[0]).index(first)]
    rewrite(tmp_path / "runs.csv", [{name: row[name] for name in known} for row in rows])
    assert ablate(write_spec(tmp_path), None, tmp_path, "--only-table").status == 0
    read = ablation_table.read_results(tmp_path / "runs.csv")
    assert [(len(r.curve), r.curve_sha256) for r in read] == [(3 * (first != "curve"), "")] * 5


# --- segmenters -----------------------------------------------------------------------------------

SEEN = {"image_size": 8, "dim": 8, "depth": 1, "mlp_ratio": 1, "num_classes": 2}
SCENES = {
    **SPEC,
    "recipe": {**SPEC["recipe"], "shift": 1},
    "seeds": [1, 0],
    "rows": [
        {"name": "real", "model": "segmenter_deit_micro", "fields": SEEN, "seeds": [1]},
        {"name": "react", "model": "segmenter_react_micro", "fields": SEEN},
    ],
}


@pytest.fixture(scope="module")
def maps(tmp_path_factory) -> Path:
    """Bright squares on a dark ground: 20 training and 7 test images, some pixels unlabelled."""
    rng, tree = np.random.default_rng(71), {"classes.txt": b"1 ground\n2 square\n"}
    for split, count in {"train": 20, "test": 7}.items():
        for number in range(count):
            indices = np.ones((8, 8), np.uint8)
            top, left = rng.integers(6, size=2)
            indices[top : top + 3, left : left + 3] = 2
            pixels = np.where(indices == 2, 230, rng.integers(60, size=(8, 8))).astype(np.uint8)
            indices[rng.random((8, 8)) < 0.1] = 0
            for kind, array in {"images": pixels, "annotations": indices}.items():
                tree[f"{kind}/{split}/{number}.png"] = encoded(Image.fromarray(array))
    return write_folder(tmp_path_factory.mktemp("maps"), tree)


@pytest.fixture(scope="module")
def segmented(tmp_path_factory, maps) -> Path:
    """A folder with all runs, of both splits, and its recipe beside it."""
    folder = tmp_path_factory.mktemp("segmented")
    spec = folder / "ablation.json"
    spec.write_text(json.dumps(SCENES))
    for options in ((), ("--validation",)):
        status, out, err = ablate(spec, maps, folder / "out", *options)
        assert status == 0, err
        assert len(re.findall(r"^mIoU \d+\.\d\d% on \d images$", err, re.MULTILINE)) == 3
    return folder


def test_segmenters_are_evaluated_as_by_evaluate(segmented, maps) -> None:
    test = segmentation.find(maps, "test")
    for row in rows_of(segmented / "out" / "runs.csv"):
        (path,) = (segmented / "out" / "unfinished").glob(
            f"{row['row']}-{row['seed']}-*.safetensors"
        )
        found = refimpl.segmenter(path, backend="numpy").evaluate(test)
        assert float(row["mean_iou"]) == found.mean_iou
        assert float(row["top1"]) == found.pixel_accuracy
        assert (row["count"], row["images"]) == ("7", "12")


def test_maps_that_are_read_on_demand_give_the_same_table(segmented, maps, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "ARRAY_BYTES", 0)
    monkeypatch.setattr(latency, "images_per_second", lambda model, params: 123.0)
    for options in ((), ("--validation",)):
        chosen = ("--row", "react", "--seed", 1)
        status, _, err = ablate(segmented / "ablation.json", maps, tmp_path, *options, *chosen)
        assert status == 0, err
    for name in ("runs.csv", "validation.csv"):
        (found,) = rows_of(tmp_path / name)
        (expected,) = (row for row in rows_of(segmented / "out" / name)
                       if (row["row"], row["seed"]) == ("react", "1"))  # fmt: skip
        assert found.pop("data_sha256") != expected.pop("data_sha256")  # of files, of arrays
        assert {**found, "seconds": 0} == {**expected, "seconds": 0}


def test_held_out_maps_are_drawn_beside_those_of_training(segmented, maps) -> None:
    asked = ablation.Ablation.from_json(SCENES)
    every = segmentation.load(maps, "train", Preprocessing.plain((8, 8), 1))
    images = ablation.read_images(asked, ablation.HELD_OUT, lambda *_: every)
    trained, held = ([image.tobytes() for image in part[0]]
                     for part in (images.training, images.evaluated))  # fmt: skip
    assert (len(set(trained)), len(set(held)), len(set(trained + held))) == (12, 6, 18)
    assert {row["count"] for row in rows_of(segmented / "out" / "validation.csv")} == {"6"}


def test_the_table_of_segmenters(segmented, tmp_path) -> None:
    """By hand: the column of top-1 is that of mIoU, and so are error and difference."""
    folder, spec = segmented / "out", segmented / "ablation.json"
    runs = {
        (row["row"], row["seed"]): float(row["mean_iou"]) for row in rows_of(folder / "runs.csv")
    }
    pixels = {(row["row"], row["seed"]): float(row["top1"]) for row in rows_of(folder / "runs.csv")}
    real, react = runs["real", "1"], [runs["react", seed] for seed in "10"]
    header, _, first, second = (folder / "table.md").read_text().splitlines()[:4]
    assert header.startswith("| row | runs | mIoU % | SE | pixel accuracy % | parameters |")
    first, second = ([cell.strip() for cell in row.strip("|").split("|")]
                     for row in (first, second))  # fmt: skip
    accuracy = (pixels["react", "0"] + pixels["react", "1"]) / 2
    error = f"{100 * abs(react[0] - react[1]) / 2:.2f}"
    mean = f"{100 * sum(react) / 2:.2f}"
    assert second[:5] == ["react", "2", mean, error, f"{100 * accuracy:.2f}"]
    assert first[:5] == ["real", "1", f"{100 * real:.2f}", "-", f"{100 * pixels['real', '1']:.2f}"]
    assert first[9:11] == [f"{100 * (real - react[0]):+.2f}", "-"]  # both of seed 1
    assert "mIoU is the mean over the classes" in (folder / "table.md").read_text()
    found = json.loads(ablate(spec, None, folder, "--only-table", "--json").out)["rows"]
    assert found[0]["mean_iou"] == real
    assert found[0]["binomial_error"] is None
    oracles.require("matplotlib")
    plot = ("--only-table", "--plot", tmp_path / "a.png")
    assert ablate(spec, None, folder, *plot).status == 0


def test_what_an_ablation_of_segmenters_refuses(maps, data, tmp_path) -> None:
    def words(path: Path, *expected: str, **changes) -> None:
        (tmp_path / "a.json").write_text(json.dumps({**SCENES, **changes}))
        found = ablate(tmp_path / "a.json", path, tmp_path / "out", "--validation")
        found = found._replace(err=found.err.splitlines(keepends=True)[-1])
        assert_one_line(found, *expected)

    words(maps, "training data: 20 images, expected 21", held_out=9)
    words(maps, "found images/ and annotations/, label maps for a segmenter",
          rows=[{"name": "a", "model": "react_micro", "fields": SEEN}], baseline="a")  # fmt: skip
    rows = [{**row, "fields": {**SEEN, "num_classes": 3}} for row in SCENES["rows"]]
    words(data, "found no images/ and no annotations/, expected", rows=rows)
    words(None, "row 'real': recipe: distillation is 0.5, expected 0.0",
          recipe={"distillation": 0.5, "teacher": "didb_micro"})  # fmt: skip


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": 0}, ".json: images is 0, expected an integer of at least 1"),
        ({"images": "x"}, ".json: images is 'x', expected an integer of at least 1"),
        ({"held_out": -1}, ".json: held_out is -1"),
        ({"draw_seed": 0.5}, "draw_seed is 0.5"),
        ({"seeds": []}, "seeds is [], expected a list"),
        ({"seeds": 3}, "seeds is 3, expected a list"),
        ({"seeds": [1, 1]}, "expected numbers that differ"),
        ({"seeds": [1, "2"]}, ".json: seeds is '2'"),
        ({"rows": []}, "rows is []"),
        ({"rows": {"name": "react"}}, "rows is {'name': 'react'}, expected a list of tables"),
        ({"rows": "react"}, "rows is 'react', expected a list of tables"),
        ({"rows": [3]}, "row: found 3, expected a table"),
        ({"rows": [{"name": "a"}]}, "row: field 'model' is missing"),
        ({"rows": [{"name": "+", "model": "react_cifar"}]}, "name is '+'"),
        ({"rows": [{"name": "реакт", "model": "react_cifar"}]}, "a letter or a digit of ASCII"),
        ({"rows": [{"name": "a", "model": "react"}]}, "row 'a': unknown architecture 'react'"),
        ({"rows": [{"name": "a", "model": 3}]}, "row 'a': unknown architecture 3"),
        ({"rows": changed_row(fields=3)}, "row 'react': fields is 3"),
        ({"rows": changed_row(fields={"dims": 3})}, "row 'react': config: unknown field 'dims'"),
        ({"rows": changed_row(fields={"depth": 0})}, "row 'react': config: depth is 0"),
        ({"rows": changed_row(seeds=[-1])}, "row 'react': seeds is -1"),
        ({"rows": changed_row(fields={})}, "row 'react': image_size is (32, 32), expected (8, 8)"),
        ({"rows": changed_row(fields={"decoder": "linear"})}, "row 'react': task is segmentation"),
        ({"rows": changed_row(name="real")}, "row 'real': is there twice"),
        ({"rows": changed_row(color=1)}, "row: unknown field 'color', expected name"),
        ({"baseline": "raect"}, "baseline is 'raect', expected a row: real, react"),
        ({"color": 1}, "unknown field 'color'"),
        ({"hold_out": 1}, "unknown field 'hold_out', expected recipe"),
        ({"hold_out": 1}, "; did you mean 'held_out'?"),
        ({"recipe": {"epochs": 0}}, "recipe: epochs is 0"),
        ({"recipe": {"epoch": 1}}, "recipe: unknown field 'epoch'"),
        ({"recipe": {"epochs": 1, "seed": 1}}, "recipe: found 'seed'"),
        ({"recipe": 3}, "recipe is 3, expected a table"),
        ({"rows": changed_row(fields={**TINY, "norm": "batch"})}, "row 'react': norm is 'batch'"),
        ({"recipe": {"crop": 1e-320}}, "recipe: crop is 1e-320, expected at least 0.00012207"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path, changes, words) -> None:
    spec = write_spec(tmp_path, **changes)
    assert_one_line(ablate(spec, None, tmp_path / "out"), f"{spec}: ", words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("missing", ["images", "recipe", "rows", "seeds"])
def test_a_missing_field_is_one_line(tmp_path, missing) -> None:
    spec = tmp_path / "a.json"
    spec.write_text(json.dumps({k: v for k, v in SPEC.items() if k != missing}))
    assert_one_line(ablate(spec, None, tmp_path), f"ablation: field '{missing}' is missing")


def test_bad_data_is_one_line(data, tmp_path) -> None:
    def words(*expected: str, path: Path | None = data, options=(), **changes) -> None:
        found = ablate(write_spec(tmp_path, **changes), path, tmp_path / "out", *options)
        found = found._replace(err=found.err.splitlines(keepends=True)[-1])
        assert_one_line(found, *expected)

    words("--data is missing", "5 runs", path=None)
    words("nowhere", path=tmp_path / "nowhere")
    words("8 images of class 0, expected 9", images=21)
    words("8 images of class 0, expected 9", held_out=13)
    words("curve_images is 7, expected at most held_out, 6", curve_images=7)
    words("held_out is 0", held_out=0, options=("--validation",))
    words("no splits", path=data / "train")
    rows = [{**row, "fields": {**row["fields"], "num_classes": 4}} for row in SPEC["rows"]]
    words("found 3 classes", "have 4", rows=rows)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "found other columns, expected row,seed,model"),
        ("row,seed\n", "found other columns"),
        (",".join(ablation.Result._fields) + "\nreact,4\n", "line 2: found 2 cells, expected 22"),
        ("\ufffe", "found other columns"),
        (None, "cannot be read"),
    ],
)
def test_a_broken_csv_is_one_line(tmp_path, text, words) -> None:
    path = tmp_path / "runs.csv"
    path.mkdir() if text is None else path.write_text(text)
    assert_one_line(ablate(write_spec(tmp_path), None, tmp_path, "--only-table"), str(path), words)


def rewrite(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def test_a_field_that_recipes_got_later_had_its_default(finished, tmp_path) -> None:
    rows = rows_of(finished / "out" / "runs.csv")
    for row in rows:
        recipe = json.loads(row["recipe"])
        del recipe["clip_norm"], recipe["warmup_fraction"]
        row["recipe"] = json.dumps(recipe)
    rewrite(tmp_path / "runs.csv", rows)
    assert ablate(write_spec(tmp_path), None, tmp_path, "--only-table").status == 0


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("seed", "x", "an integer"),
        *(("top1", value, "a number from 0 to 1") for value in ("x", "81.5", "-0.1", "nan")),
        *(("mean_iou", value, "a number from 0 to 1, or nothing") for value in ("x", "2")),
        *(("count", value, "an integer of at least 1") for value in ("x", "0")),
        *(("loss", value, "a finite number") for value in ("x", "inf")),
        *(("recipe", value, "a JSON object") for value in ("x", "3")),
        ("fields", "[]", "a JSON object"),
        *(("curve", value, "a JSON list of numbers") for value in ("x", "{}", '["a"]')),
    ],
)
def test_a_broken_cell_names_its_line(finished, tmp_path, column, value, expected) -> None:
    rows = rows_of(finished / "out" / "runs.csv")
    rows[1][column] = value
    rewrite(tmp_path / "runs.csv", rows)
    found = ablate(write_spec(tmp_path), None, tmp_path, "--only-table")
    assert_one_line(found, f"runs.csv: line 3: {column} is {value!r}, expected {expected}\n")


def test_a_run_is_in_the_table_once(finished, tmp_path) -> None:
    """Of two lines of one run the mean would be that of more runs than there were."""
    rows = rows_of(finished / "out" / "runs.csv")
    rewrite(tmp_path / "runs.csv", [*rows, rows[1]])
    found = ablate(write_spec(tmp_path), None, tmp_path, "--only-table")
    assert_one_line(found, f"row {rows[1]['row']!r}, seed {rows[1]['seed']}: is there twice")


def test_a_csv_as_spreadsheets_write_it_is_read(finished, tmp_path) -> None:
    """With a mark in front, carriage returns, and empty lines."""
    lines = (finished / "out" / "runs.csv").read_text().splitlines()
    text = "\ufeff" + "\r\n".join([lines[0], "", *lines[1:], "", ""])
    (tmp_path / "runs.csv").write_text(text, encoding="utf-8", newline="")
    read = ablation_table.read_results(tmp_path / "runs.csv")
    assert read == ablation_table.read_results(finished / "out" / "runs.csv")
    broken = text.replace("react,2,", "react,two,")
    (tmp_path / "runs.csv").write_text(broken, encoding="utf-8", newline="")
    with pytest.raises(DataError, match="line 6: seed is 'two'"):  # 4 + the header + an empty one
        ablation_table.read_results(tmp_path / "runs.csv")


# --- the ablation of this project, and the speed of a network -------------------------------------

ROWS = {"real", "react", "didb"}  # of the larger budget


def test_the_ablation_on_cifar_10() -> None:
    asked = ablation.read(ROOT / "weights" / "ablation" / "cifar10.toml")
    configs = {row.name: row.config for row in asked.rows}
    react, haar = configs["react"], configs["react + haar"]
    assert react == named("react_cifar")
    assert configs["didb"] == named("didb_cifar") == haar.replace(
        attention="differential", rprelu="token"
    )  # fmt: skip
    assert configs["real"] == named("deit_cifar")
    assert configs["react + two pairs"] == haar.replace(haar_mode="none")
    for field, value in {"attention": "differential", "rprelu": "token"}.items():
        (one,) = [n for n, config in configs.items() if config == react.replace(**{field: value})]
        assert one in ("react + differential", "react + token RPReLU")
    costs = [summary.summarise(configs[name]) for name in ("react + haar", "react + two pairs")]
    assert costs[0].total == costs[1].total  # the same capacity
    assert configs["react + R1b"] == react.replace(context="differences")
    assert configs["didb, R1b"] == configs["didb"].replace(context="differences")
    assert configs["didb, neighbours none"] == configs["didb"].replace(neighbours="none")
    assert (asked.baseline, len(asked.runs())) == ("react", 30)


def test_the_ablation_at_a_larger_budget() -> None:
    """Its rows are the other table's; every run that is asked for is there, a score an epoch."""
    folder = ROOT / "weights" / "ablation"
    asked, short = (ablation.read(folder / f"cifar10{name}.toml") for name in ("_long", ""))
    assert asked.baseline == short.baseline and {row.name for row in asked.rows} == ROWS
    configs = {row.name: row.config for row in short.rows}
    assert all(row.config == configs[row.name] for row in asked.rows)
    assert asked.images + asked.held_out == 50_000 and asked.curve_images == asked.held_out
    longer = dataclasses.replace(short.recipe, epochs=25, shift=4)
    assert asked.recipe == longer and short.recipe.epochs == short.recipe.activation_epochs == 5
    found = ablation_table.Results(folder / "long", asked, ablation.TEST)
    runs = {(run.row.name, run.seed) for run in asked.runs()}
    assert {(result.row, result.seed) for result in found.results} == runs and len(runs) == 6
    assert all((result.count, len(result.curve)) == (10_000, 30) for result in found.results)
    assert found.table_path.read_text(encoding="utf-8") == found.markdown()


def test_the_ablation_on_scenes() -> None:
    asked = ablation.read(ROOT / "weights" / "segmentation" / "scenes.toml")
    configs = {
        name: named(f"segmenter_{family}_micro")
        for name, family in {"real": "deit", "react": "react", "didb": "didb"}.items()
    }
    react = configs["react"]
    configs["react + haar"] = react.replace(similarity="haar")
    configs["react + differential"] = react.replace(attention="differential")
    configs["react + token RPReLU"] = react.replace(rprelu="token")
    assert {row.name: row.config for row in asked.rows} == configs
    assert (asked.baseline, asked.task, len(asked.runs())) == ("react", "segmentation", 12)


def test_the_readings_are_varied_one_at_a_time() -> None:
    asked = ablation.read(ROOT / "weights" / "ablation" / "readings.toml")
    assert asked.rows[0].config == named("didb_cifar")
    for row in asked.rows[1:]:
        ((field, value),) = row.fields.items()
        assert row.config == named("didb_cifar").replace(**{field: value}) != asked.rows[0].config
    fields = {field for row in asked.rows for field in row.fields}
    assert fields >= {"neighbours", "haar_mode", "haar_cls", "band_weights"}  # R2 to R5


def test_how_many_images_a_second(monkeypatch) -> None:
    monkeypatch.setattr(latency, "ROUNDS", 3)
    names = ("didb_micro", "deit_micro", "segmenter_didb_micro")
    found = latency.images_per_second(
        {name: work.network(name, batch=1, dim=16, depth=1) for name in names}
    )
    assert tuple(found) == names
    assert all(1 < speed < 1e7 for speed in found.values())


def test_a_row_without_stages_trains_as_long_in_one() -> None:
    fields = {**TINY, "binarize": "activations"}
    rows = [*SPEC["rows"], {"name": "half", "model": "react_cifar", "fields": fields}]
    runs = {
        r.row.name: r.recipe for r in ablation.Ablation.from_json({**SPEC, "rows": rows}).runs()
    }
    stages = {name: (r.activation_epochs, r.epochs) for name, r in runs.items()}
    assert stages == {"real": (0, 3), "react": (1, 2), "react + haar": (1, 2), "half": (0, 3)}
    same = dataclasses.replace(runs["react"], activation_epochs=0, epochs=3, seed=4)
    assert same == dataclasses.replace(runs["half"], seed=4)
