"""The command line: verbs run in this process, the ends of a process in a process of their own."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

import refimpl
from refimpl import cli
from refimpl.cli import train
from refimpl.cli.verbs import Verbs
from refimpl.data import bundled, datasets, mnist, scenes
from refimpl.data.preprocessing import Preprocessing
from refimpl.models import files
from refimpl.training import Recipe, history, hold_out
from tests import make_demo_goldens, oracles
from tests.checkpoint_files import DATA, timm, write
from tests.command_line import (
    MODEL,
    PATIENCE,
    SEVEN,
    SMALL,
    assert_one_line,
    process,
    run,
    save_model,
    save_segmenter,
    write_mnist,
)
from tests.test_data import encoded
from tests.test_data_sets import WRITERS, picture, write_folder

GROUPS = ("bench", "golden")  # have verbs of their own, and test files
VERBS = tuple(verb.__name__.rpartition(".")[2].rstrip("_") for verb in cli.VERBS)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(save_model(tmp_path_factory.mktemp("model") / "tiny.safetensors"))


# --- classify -------------------------------------------------------------------------------------


def test_classify_prints_the_classifiers_answer(model) -> None:
    (answer,) = refimpl.classifier(model)(SEVEN)
    status, out, err = run("classify", SEVEN, "--model", model)
    assert (status, err) == (0, "")
    assert out == f"{SEVEN}  {answer.label} {answer.probability:.4f}\n"


def test_classify_several_as_json(model) -> None:
    paths = bundled.digits()[:3]
    status, out, err = run("classify", *paths, "--model", model, "--top", 4, "--json")
    assert (status, err) == (0, "")
    for entry, answer in zip(json.loads(out), refimpl.classifier(model)(paths), strict=True):
        assert entry["label"] == answer.label
        assert entry["probability"] == pytest.approx(answer.probability, rel=1e-5)
        assert [best["label"] for best in entry["top"]] == [name for name, _ in answer.top(4)]
    assert [entry["file"] for entry in json.loads(out)] == [str(p) for p in paths]


def test_classify_top_is_aligned(model, tmp_path) -> None:
    long = tmp_path / "a_rather_long_name.png"
    long.write_bytes(SEVEN.read_bytes())
    _, out, _ = run("classify", SEVEN, long, "--model", model, "--top", 3)
    lines = out.splitlines()
    assert len({len(line) for line in lines}) == 1
    assert all(len(re.findall(r"\d \d\.\d{4}", line)) == 3 for line in lines)


def test_a_broken_image_does_not_stop_the_others(model, tmp_path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(SEVEN.read_bytes()[:100])
    status, out, err = run("classify", broken, SEVEN, tmp_path / "none.png", "--model", model)
    assert status == 2
    assert len(out.splitlines()) == 1
    assert str(SEVEN) in out
    complaints = err.splitlines()
    assert [line.split(":")[0] for line in complaints] == ["refimpl", "refimpl"]
    assert str(broken) in complaints[0]
    assert "none.png" in complaints[1]


def test_file_names_need_not_be_text(model, tmp_path) -> None:
    name = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe.png")
    try:
        Path(name).write_bytes(SEVEN.read_bytes())
    except OSError:
        pytest.skip("this file system wants names to be text")
    done = process("classify", name, "--model", model, env={**os.environ, "PYTHONUTF8": "1"})
    assert (done.returncode, done.stderr) == (0, "")
    assert "png" in done.stdout


def test_folders_are_classified_by_suffix_in_order(model, tmp_path) -> None:
    for path in reversed(bundled.digits()[:3]):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "notes.txt").write_text("words")
    (tmp_path / "A.PNG").write_bytes(SEVEN.read_bytes())
    (tmp_path / ".hidden.png").write_text("words")
    (tmp_path / "1_broken.jpg").write_text("words")
    (tmp_path / "empty").mkdir()
    status, out, err = run("classify", tmp_path, tmp_path / "empty", SEVEN, "--model", model)
    assert status == 2
    names = [*(p.name for p in bundled.digits()[:3]), "A.PNG"]
    expected = [*(str(tmp_path / name) for name in names), str(SEVEN)]
    assert [line.split()[0] for line in out.splitlines()] == expected
    empty, broken = err.splitlines()
    assert empty.startswith(f"refimpl: {tmp_path / 'empty'}: no images in it")
    assert broken.startswith(f"refimpl: {tmp_path / '1_broken.jpg'}: not an image")


def test_standard_input(model) -> None:
    with SEVEN.open("rb") as file:
        done = process("classify", "-", "--model", model, stdin=file)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split()[1:] == run("classify", SEVEN, "--model", model).out.split()[1:]
    done = process("classify", "-", SEVEN, "--model", model, stdin=subprocess.DEVNULL)
    assert done.returncode == 2
    assert done.stderr == "refimpl: standard input: the file is empty, expected an image\n"
    assert done.stdout.startswith(str(SEVEN))


@pytest.mark.parametrize("suffix", ["png", "bmp", "gif", "jpg", "tif", "webp", "pgm"])
def test_dark_on_light_is_a_warning_and_no_guess(model, tmp_path, suffix) -> None:
    digit = Image.open(SEVEN)
    dark, light = tmp_path / f"dark.{suffix}", tmp_path / f"light.{suffix}"
    ImageOps.invert(digit).save(dark)
    digit.save(light)
    status, out, err = run("classify", light, dark, "--model", model)
    assert status == 0
    assert len(out.splitlines()) == 2
    assert err.startswith(f"refimpl: warning: {dark}: brightness 0.9")
    assert err.endswith(": dark and light seem to be exchanged\n")
    status, out, err = run("classify", dark, "--model", model, "--invert", "--json")
    assert (status, err) == (0, "")
    (inverted,) = json.loads(out)
    (answer,) = json.loads(run("classify", light, "--model", model, "--json").out)
    assert inverted["warning"] is None
    assert inverted["label"] == answer["label"]
    lossy = suffix in ("jpg", "webp")
    assert lossy or inverted["probability"] == pytest.approx(answer["probability"], rel=1e-3)
    (warned,) = json.loads(run("classify", dark, "--model", model, "--json").out)
    assert "exchanged" in warned["warning"]


def test_the_bundled_digits_raise_no_warning(model) -> None:
    assert run("classify", bundled.mnist(), "--model", model)[::2] == (0, "")


def test_the_shipped_model_knows_its_digits_and_what_is_unlike_them(tmp_path) -> None:
    digits = bundled.digits()
    status, out, err = run("classify", *digits)
    assert (status, err) == (0, "")
    assert [line.split()[1] for line in out.splitlines()] == list("0123456789")
    for path in digits:
        ImageOps.invert(Image.open(path)).save(tmp_path / path.name)
    status, out, err = run("classify", tmp_path)
    assert status == 0
    assert len(err.splitlines()) == len(digits)
    assert all(line.endswith("seem to be exchanged") for line in err.splitlines())
    status, out, err = run("classify", "--invert", tmp_path)
    assert (status, err) == (0, "")
    assert [line.split()[1] for line in out.splitlines()] == list("0123456789")


def terminal(*args: object, **env: str) -> str:
    """What a person at a terminal sees."""
    controller, terminal = os.openpty()
    command = [sys.executable, "-m", "refimpl", *map(str, args)]
    environment = {**os.environ, "TERM": "xterm", **env}
    subprocess.run(command, stdout=terminal, stderr=terminal, timeout=PATIENCE, env=environment)
    os.close(terminal)
    seen = b""
    with contextlib.suppress(OSError):  # the end of what was written
        while piece := os.read(controller, 10_000):
            seen += piece
    os.close(controller)
    return seen.decode()


@pytest.mark.skipif(os.name == "nt", reason="opens a pseudo-terminal")
def test_colours_are_for_terminals_only(model, tmp_path) -> None:
    (tmp_path / "broken.png").touch()
    command = ("classify", tmp_path / "broken.png", SEVEN, "--model", model)
    seen = terminal(*command, NO_COLOR="")
    (answer,) = refimpl.classifier(model)(SEVEN)
    assert f"\033[1m{answer.label} {answer.probability:.4f}\033[0m" in seen
    assert "\033[31mrefimpl:\033[0m" in seen
    assert "\033" not in terminal(*command, NO_COLOR="1")
    assert "\033" not in terminal(*command, NO_COLOR="", TERM="dumb")
    done = process(*command)
    assert "\033" not in done.stdout + done.stderr


# --- evaluate -------------------------------------------------------------------------------------


def test_evaluate_as_json(model) -> None:
    status, out, err = run("evaluate", "--data", SMALL, "--model", model, "--limit", 40, "--json")
    assert (status, err) == (0, "")
    result = json.loads(out)
    images, labels = mnist.load(SMALL, "test")
    spread = [12 * i + i // 2 for i in range(40)]  # 40 of 500 images, every 12.5th
    images, labels = images[spread], labels[spread]
    answers = refimpl.classifier(model)(images)
    right = np.array([int(a.label) for a in answers]) == labels
    among_five = [str(c) in [name for name, _ in a.top(5)] for a, c in zip(answers, labels)]
    assert result["count"] == 40
    assert result["split"] == "test"
    assert result["top1"] == pytest.approx(right.mean())
    assert result["top5"] == pytest.approx(np.mean(among_five))
    expected = {str(c): right[labels == c].mean() for c in np.unique(labels)}
    assert result["per_class"] == pytest.approx(expected)
    assert result["images_per_second"] > 0


def test_evaluate_for_people(model) -> None:
    status, out, err = run(
        "evaluate", "--data", SMALL, "--model", model, "--limit", 30, "--split", "train"
    )
    assert (status, err) == (0, "")
    assert "30 images of the train split" in out
    for text in ("top-1", "top-5", "class", "images a second"):
        assert text in out


def test_evaluate_records_into_the_card(model) -> None:
    status, _, _ = run("evaluate", "--data", SMALL, "--model", model, "--limit", 20, "--record")
    assert status == 0
    card = json.loads(Path(model).with_suffix(".json").read_text())
    assert card["evaluation"]["data"] == "small, 20 images of the test split"
    assert card["evaluation"]["count"] == 20
    assert card["data"] == "none"
    command = ("evaluate", "--data", SMALL, "--model", model, "--record")
    path = Path(model).with_suffix(".json")
    assert_one_line(run(*command, "--limit", 19), f"{path}: has figures of 20 images, found 19")
    assert json.loads(path.read_text()) == card
    status, _, err = run(*command, "--limit", 20)
    assert (status, err) == (0, f"recorded in {path}\n")


@pytest.mark.parametrize("form", ["folder", "tar.xz", "zip"])
def test_evaluate_class_folders(model, tmp_path, form) -> None:
    """Digits as PNG give what the idx files give."""
    images, labels = mnist.load(SMALL, "test")
    picked = np.concatenate([np.flatnonzero(labels == digit)[:4] for digit in range(10)])
    tree = {f"digits/test/{labels[i]}/{i}.png": encoded(Image.fromarray(images[i])) for i in picked}
    data = WRITERS[form](tmp_path / "data", tree)
    result = json.loads(run("evaluate", "--data", data, "--model", model, "--json").out)
    answers = refimpl.classifier(model)(images[picked])
    right = [int(answer.label) == label for answer, label in zip(answers, labels[picked])]
    assert result["count"] == 40
    assert result["split"] == "test"
    assert result["top1"] == pytest.approx(np.mean(right))


def test_evaluate_what_has_no_splits(model, tmp_path) -> None:
    pictures = {f"{digit}/x.png": path.read_bytes() for digit, path in enumerate(bundled.digits())}
    data = write_folder(tmp_path / "data", pictures)
    out = run("evaluate", "--data", data, "--model", model).out
    assert out.startswith(f"{model} on 10 images\n")
    assert (
        json.loads(run("evaluate", "--data", data, "--model", model, "--json").out)["split"] is None
    )


# --- train ----------------------------------------------------------------------------------------


TINY = ("--set", "dim=8", "--set", "depth=1", "--batch-size", 4)


def test_train_writes_a_model_that_classifies(tmp_path) -> None:
    data = write_mnist(tmp_path / "digits", {"train": 14})
    output = tmp_path / "mine.safetensors"
    options = ["--epochs", 1, "--batch-size", 4, "--learning-rate", "0.001", "--seed", 7]
    status, out, err = run(
        "train", "--data", data, "--model", "react_micro", "-o", output, "--validation", 4, *options
    )
    assert status == 0
    assert out == f"{output}\n"
    assert "epoch 1/1" in err
    assert "validation" in err
    card = json.loads(output.with_suffix(".json").read_text())
    assert card["data"] == "digits"
    assert card["training_images"] == 10
    assert card["held_out"] == {"images": 4, "drawn": True, "seed": 7}
    assert (card["recipe"]["epochs"], card["recipe"]["batch_size"]) == (1, 4)
    assert (card["recipe"]["learning_rate"], card["recipe"]["seed"]) == (0.001, 7)
    kept = hold_out(*mnist.load(data, "train"), 4, seed=7).training[0]
    expected = Preprocessing.plain((28, 28), 1).measured(kept).to_json()
    assert card["preprocessing"] == expected
    assert run("classify", SEVEN, "--model", output).status == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["digits", "mine.json", output.name]


@pytest.mark.parametrize("form", ["folder", "tar.xz", "zip"])
def test_train_and_evaluate_class_folders(tmp_path, form) -> None:
    names = ("black", "grey", "white")
    tree = {
        f"{split}/{name}/{number}.png": picture(90 * c + number)
        for split, count in {"train": 8, "test": 3}.items()
        for c, name in enumerate(names)
        for number in range(count)
    }
    data = WRITERS[form](tmp_path / "colours", tree)
    output = tmp_path / "mine.safetensors"
    options = ["--set", "num_classes=3", "--epochs", 4, "--learning-rate", 0.02, "--flip"]
    command = ["train", "--data", data, "--model", "didb_cifar", "-o", output, *TINY, *options]
    assert run(*command).status == 0
    card = json.loads(output.with_suffix(".json").read_text())
    assert card["class_names"] == list(names)
    assert card["preprocessing"]["mode"] == "rgb"
    assert card["preprocessing"]["size"] == [32, 32]
    assert (card["training_images"], card["config"]["dim"]) == (24, 8)
    result = json.loads(run("evaluate", "--data", data, "--model", output, "--json").out)
    folder = write_folder(tmp_path / "unpacked", tree)
    right = [
        answer["label"] == name
        for name in names
        for answer in json.loads(
            run("classify", folder / "test" / name, "--model", output, "--json").out
        )
    ]
    assert result["count"] == len(right) == 9
    assert result["top1"] == pytest.approx(np.mean(right))


def test_a_recipe_file_with_options_on_top(tmp_path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("epochs = 1\nactivation_epochs = 1\nclip_norm = 1.5\nflip = true\nseed = 3\n")
    output = tmp_path / "mine.safetensors"
    command = ["train", "--data", SMALL, "--limit", 9, "--model", "didb_micro", "-o", output, *TINY]
    status, _, err = run(*command, "--recipe", recipe, "--seed", 5, "--no-flip", "--shards", 1)
    assert status == 0
    assert [line.split(" epoch")[0] for line in err.splitlines()] == ["activations", "full"]
    card = json.loads(output.with_suffix(".json").read_text())
    expected = {"epochs": 1, "activation_epochs": 1, "clip_norm": 1.5, "batch_size": 4}
    assert card["recipe"] | expected == card["recipe"]
    assert (card["recipe"]["seed"], card["recipe"]["flip"]) == (5, False)


def test_every_setting_of_a_recipe_has_an_option() -> None:
    assert list(train.RECIPE_OPTIONS) == [field.name for field in dataclasses.fields(Recipe)]
    options = ["--teacher", "t", "--distillation", "0.5", "--activation-epochs", "2"]
    args = cli.parser().parse_args(["train", "--data", "d", "--model", "m", "-o", "x", *options])
    recipe = train._recipe(args)
    assert (recipe.teacher, recipe.distillation, recipe.activation_epochs) == ("t", 0.5, 2)
    assert dataclasses.replace(recipe, teacher=None, distillation=0.0, activation_epochs=0) == (
        Recipe()
    )


def test_a_teacher_and_curves(model, tmp_path) -> None:
    output = tmp_path / "mine.safetensors"
    command = ["train", "--data", SMALL, "--limit", 8, "--model", "didb_micro", "-o", output, *TINY]
    teaching = ["--teacher", model, "--distillation", 0.5, "--epochs", 2]
    status, _, err = run(*command, *teaching, "--curves", "png")
    assert (status, len(err.splitlines())) == (0, 2)
    assert "teacher" in json.loads(output.with_suffix(".json").read_text())
    assert len(output.with_suffix(".csv").read_text().splitlines()) == 3
    assert Image.open(output.with_suffix(".png")).size == (800, 800)


def test_train_refuses_to_overwrite_a_model(tmp_path, monkeypatch) -> None:
    output = tmp_path / "mine.safetensors"
    command = ["train", "--data", SMALL, "--limit", 8, "--model", "didb_micro", "-o", output, *TINY]
    assert run(*command).status == 0
    before = output.read_bytes()
    monkeypatch.setattr(datasets, "load", lambda *a, **o: pytest.fail("it read the data"))
    words = (f"{output}: exists", "expected the name of a new file")
    assert_one_line(run(*command), *words)
    assert output.read_bytes() == before


def test_resume_goes_on_to_the_same_bytes(tmp_path, monkeypatch) -> None:
    command = ["train", "--data", SMALL, "--limit", 8, "--model", "didb_micro", *TINY]
    command += ["--epochs", 3, "-o"]
    whole, broken = tmp_path / "whole.safetensors", tmp_path / "broken.safetensors"
    assert run(*command, whole).status == 0

    as_before = history.EpochResult.__str__

    def stop_at_two(self: history.EpochResult) -> str:
        if self.epoch == 2:
            raise KeyboardInterrupt
        return as_before(self)

    monkeypatch.setattr(history.EpochResult, "__str__", stop_at_two)
    status, out, err = run(*command, broken)
    assert (status, out) == (130, "")
    assert err.splitlines()[-1] == "refimpl: interrupted: the same command with --resume goes on"
    monkeypatch.undo()
    assert_one_line(run(*command, broken), "broken.checkpoint", "resume")
    assert run(*command, broken, "--resume").status == 0
    assert broken.read_bytes() == whole.read_bytes()


# --- summary and pack -----------------------------------------------------------------------------


def test_summary_of_an_architecture_and_of_a_file(model, tmp_path) -> None:
    status, out, err = run("summary", "didb_tiny")
    assert (status, err) == (0, "")
    assert "blocks.11.mlp.down" in out
    found = json.loads(run("summary", model, "--json").out)
    assert found["config"] == MODEL.config.to_json()
    assert found["total"]["params_1bit"] + found["total"]["params_32bit"] == sum(
        array.size for array in refimpl.flatten(refimpl.load(model)[1]).values()
    )
    packed = tmp_path / "packed.safetensors"
    status, out, err = run("pack", model, "-o", packed)
    assert (status, err) == (0, "")
    assert out.startswith(f"{packed}: {packed.stat().st_size:,} bytes, ")
    assert json.loads(run("summary", packed, "--json").out) == found
    assert files.read_packed(packed).model.class_names == mnist.CLASS_NAMES
    half = tmp_path / "half.safetensors"
    assert run("pack", model, "-o", half, "--floats", "float16").status == 0
    assert half.stat().st_size < packed.stat().st_size
    assert json.loads(run("summary", half, "--json").out)["floats"] == "float16"


def test_packing_names_the_file_of_what_float16_cannot_hold(tmp_path) -> None:
    network = refimpl.create_model("didb_micro", dim=6, depth=1)
    params = network.init(np.random.default_rng(0))
    params["head"]["bias"][0] = 7e4
    path = tmp_path / "large.safetensors"
    refimpl.save(path, network, params)
    result = run("pack", path, "-o", tmp_path / "out.safetensors", "--floats", "float16")
    assert_one_line(result, f"{path}: head.bias: a value is beyond float16; expected at most 65504")
    assert [file.name for file in tmp_path.iterdir()] == ["large.safetensors"]


def test_packing_to_a_device_says_what_it_keeps(tmp_path) -> None:
    path = tmp_path / "null.safetensors"
    path.symlink_to(os.devnull)
    result = run("pack", "didb_micro_mnist", "-o", path)
    assert result == (0, f"{path}: 0 bytes\n", "")


def test_a_network_without_bits_is_packed_with_a_warning(tmp_path) -> None:
    network = refimpl.create_model("deit_micro", dim=6, depth=1)
    real, packed = tmp_path / "real.safetensors", tmp_path / "packed.safetensors"
    refimpl.save(real, network, network.init(np.random.default_rng(0)))
    status, _, err = run("pack", real, "-o", packed)
    assert status == 0
    assert re.fullmatch(r"refimpl: warning: \S+real.safetensors: no network of the .+\n", err)
    words = "engine: found real blocks"
    assert_one_line(run("classify", SEVEN, "--model", packed), f"{packed}: {words}")
    assert_one_line(
        run("classify", SEVEN, "--model", real, "--backend", "engine"), str(real), words
    )


# --- models and version ---------------------------------------------------------------------------


def test_models_lists_what_there_is() -> None:
    status, out, err = run("models")
    assert (status, err) == (0, "")
    status, text, _ = run("models", "--json")
    listed = json.loads(text)
    assert sorted(listed["trained"]) == files.shipped()
    assert set(listed["architectures"]) == set(refimpl.models.architectures.NAMES)
    for name in ("didb_micro", "deit_cifar"):
        params = refimpl.create_model(name).init(np.random.default_rng(0))
        count = sum(array.size for array in refimpl.flatten(params).values())
        assert listed["architectures"][name]["parameters"] == count
        assert re.search(rf"^{name} +{count:,} ", out, re.MULTILINE)
    trained = listed["trained"]["didb_micro_mnist"]
    assert (trained["image_size"], trained["channels"], trained["classes"]) == ([28, 28], 1, 10)
    assert trained["class_names"] == list("0123456789")
    assert listed["architectures"]["segmenter_didb_tiny"]["task"] == "segmentation"
    assert re.search(r"^didb_cifar10 .* 32 x 32 x 3 +10 +\d\d.\d\d% top-1", out, re.MULTILINE)
    # the ViT-Ti/16 of the DeiT paper has 5.7 million parameters
    assert listed["architectures"]["deit_tiny"]["parameters"] == 5_717_416


def test_version() -> None:
    assert run("--version") == (0, f"refimpl {refimpl.__version__}\n", "")


# --- demo -----------------------------------------------------------------------------------------


def goldens_of(model: str, **changes: dict) -> dict:
    answers = zip(bundled.digits(), refimpl.classifier(model).astype("float64")(bundled.digits()))
    images = {p.name: {"label": a.label, "probability": a.probability} for p, a in answers}
    for name, change in changes.items():
        (full,) = [n for n in images if n.startswith(name[-1])]
        images[full] |= change
    return {"model": model, "dtype": "float64", "what": "digits", "images": images}


@pytest.fixture
def digits_only(monkeypatch):
    """Both sets of the demo are the digits, with these goldens."""

    def use(goldens: dict) -> None:
        monkeypatch.setattr(bundled, "photos", bundled.mnist)
        monkeypatch.setattr(bundled, "goldens", lambda folder: goldens)

    return use


def test_demo_agrees(model, digits_only) -> None:
    digits_only(goldens_of(model))
    status, out, err = run("demo")
    assert (status, err) == (0, "")
    assert out.count("10 of 10 agree with the stored goldens\n") == 2
    rows = [line for line in out.splitlines() if line.endswith("agrees")]
    assert len(rows) == 20
    assert all(re.search(r"\.png +\d +0\.\d{4} +\d+\.\d ms  agrees", row) for row in rows)


@pytest.mark.parametrize("change", [{"label": "none"}, {"probability": 1.5}])
def test_demo_differs(model, digits_only, change) -> None:
    digits_only(goldens_of(model, digit3=change))
    status, out, _ = run("demo")
    assert status == 1
    assert "DIFFERS" in out
    assert out.count("9 of 10 agree with the stored goldens\n") == 2


def test_demo_without_goldens(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(bundled, "mnist", lambda: tmp_path)
    assert_one_line(run("demo"), "goldens.json")


def test_demo_of_the_shipped_models() -> None:
    status, out, err = run("demo")
    assert (status, err) == (0, "")
    assert out.count("10 of 10 agree with the stored goldens\n") == 1
    photographs = len(bundled.photographs())
    assert out.count(f"{photographs} of {photographs} agree with the stored goldens\n") == 1


@pytest.mark.parametrize("images", ["digits", "photographs"])
def test_goldens_belong_to_the_shipped_weights(images) -> None:
    folder = {"digits": bundled.mnist, "photographs": bundled.photos}[images]()
    stored = bundled.goldens(folder)
    computed = getattr(make_demo_goldens, images)()
    assert stored.keys() == computed.keys()
    assert stored["images"].keys() == {path.name for path in getattr(bundled, images)()}
    assert computed["weights_sha256"] == stored["weights_sha256"]
    for name, golden in stored["images"].items():
        assert computed["images"][name]["label"] == golden["label"]
        assert computed["images"][name]["probability"] == pytest.approx(golden["probability"])


# --- backends -------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["classify", "evaluate", "demo"])
def test_the_backend_that_is_named_computes(model, monkeypatch, verb) -> None:
    goldens = goldens_of(model)
    monkeypatch.setattr(bundled, "photos", bundled.mnist)
    monkeypatch.setattr(bundled, "goldens", lambda folder: goldens)
    rest = {
        "classify": (SEVEN, "--model", model),
        "evaluate": ("--data", SMALL, "--model", model, "--limit", 4),
        "demo": (),
    }[verb]
    asked = []
    taken = refimpl.engine.Engine.__call__
    monkeypatch.setattr(
        refimpl.engine.Engine, "__call__", lambda self, x: asked.append(x) or taken(self, x)
    )
    assert run(verb, *rest, "--backend", "numpy")[::2] == (0, "")
    assert not asked
    assert run(verb, *rest, "--backend", "engine")[::2] == (0, "")
    assert asked


def test_backend_numpy_gives_the_references_answer(model) -> None:
    command = ("classify", SEVEN, "--model", model, "--json", "--backend", "numpy")
    (entry,) = json.loads(run(*command).out)
    (answer,) = refimpl.classifier(model, backend="numpy")(SEVEN)
    assert (entry["label"], entry["probability"]) == (answer.label, answer.probability)


# --- bad usage -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("clasify", "x.png"), "invalid choice: 'clasify'"),
        (("classify",), "required: IMAGE"),
        (("classify", "x.png", "--top", "0"), "'0' is not a whole number of at least 1"),
        (("classify", "x.png", "--top", "many"), "'many' is not a whole number"),
        (("classify", "x.png", "--colour"), "unrecognized arguments: --colour"),
        (("evaluate",), "required: --data"),
        (("evaluate", "--data", "d", "--split", "validation"), "invalid choice: 'validation'"),
        (("evaluate", "--data", "d", "--limit", "-3"), "-3"),
        (("evaluate", "--data", "d", "--batch-size", "1.5"), "'1.5' is not a whole number"),
        (("train", "--data", "d", "--model", "didb_micro"), "required: -o/--output"),
        (("train", "--data", "d", "-o", "x.safetensors"), "--model --init is required"),
        (("train", "--data", "d", "--model", "m", "-o", "x", "--epochs", "few"), "'few'"),
        (("classify", "x.png", "--backend", "abacus"), "invalid choice: 'abacus'"),
        (("evaluate", "--data", "d", "--backend", "abacus"), "invalid choice: 'abacus'"),
        (("demo", "--backend", "abacus"), "invalid choice: 'abacus'"),
        (("demo", "now"), "unrecognized arguments: now"),
    ],
)
def test_bad_usage(args, message) -> None:
    status, out, err = run(*args)
    assert (status, out) == (2, "")
    assert err.startswith("usage: refimpl")
    assert message in err


# --- help -----------------------------------------------------------------------------------------


def examples(verb: str) -> list[str]:
    status, out, err = run(verb, "--help")
    assert (status, err) == (0, "")
    return re.findall(r"^  (refimpl .+)$", out.split("\nexamples:\n")[1], re.MULTILINE)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory) -> Path:
    """A folder with everything that the examples name, in small."""
    folder = tmp_path_factory.mktemp("workshop")
    write_mnist(folder / "mnist", {"train": 12, "test": 12})
    for name, digit in {"seven.png": 7, "three.jpg": 3, "photos/nine.webp": 9}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        Image.open(bundled.digits()[digit]).save(folder / name)
    (folder / "recipe.toml").write_text("epochs = 1\n")
    tiny = "fields = {dim = 16, depth = 1, mlp_ratio = 1}\n"
    (folder / "ablation.toml").write_text(
        'images = 10\nheld_out = 10\ncurve_images = 10\nseeds = [0]\nbaseline = "react"\n'
        "[recipe]\nepochs = 1\n"
        f'[[rows]]\nname = "react"\nmodel = "react_cifar"\n{tiny}'
        f'[[rows]]\nname = "didb"\nmodel = "didb_cifar"\n{tiny}'
    )
    names = [
        f"{split}/{c}/{i}.png" for split in datasets.SPLITS for c in "abcdefghij" for i in "12"
    ]
    tree = {name: picture() for name in names}
    WRITERS["tar.xz"](folder / "cifar10.tar.xz", tree)
    WRITERS["folder"](folder / "imagenet", tree)
    (folder / "synsets.txt").write_text("".join(f"{c} {c}\n" for c in "abcdefghij"))
    model = refimpl.create_model("didb_cifar", dim=8, depth=1)
    params = model.init(np.random.default_rng(51))
    refimpl.save(folder / "mine.safetensors", model, params, class_names=list("abcdefghij"))
    scenes.write(SMALL, folder / "scenes", {"train": 6, "test": 3})
    save_segmenter(folder / "segmenter.safetensors")
    (folder / "street.jpg").write_bytes(picture())
    _, arrays, config = timm()
    write(folder / "vit-tiny", arrays, {**config, "pretrained_cfg": DATA})
    write(folder, arrays)
    (folder / "heads.json").write_text(json.dumps({"num_heads": 2}))
    return folder


@pytest.mark.parametrize("verb", [v for v in VERBS if v not in GROUPS])
def test_the_examples_of_each_verb_run(workshop, verb) -> None:
    shown = examples(verb)
    assert shown
    for example in shown:
        shell = f'refimpl() {{ "{sys.executable}" -m refimpl "$@"; }}; {example}'
        done = subprocess.run(
            ["bash", "-c", shell], cwd=workshop, capture_output=True, text=True, timeout=PATIENCE
        )
        assert done.returncode == 0, (example, done.stderr)
        assert done.stdout, example
        assert "warning" not in done.stderr, example


def test_a_verb_may_have_verbs() -> None:
    def weigh(args) -> int:
        return 0

    top = argparse.ArgumentParser(prog="refimpl")
    group = Verbs(top).group("fruit", "look at fruit")
    group(weigh, "weigh fruit", "refimpl fruit weigh 3").add_argument("count", type=int)
    args = top.parse_args(["fruit", "weigh", "3"])
    assert (args.run, args.count) == (weigh, 3)
    for without in ([], ["fruit"]):
        with pytest.raises(SystemExit, match="2"):
            top.parse_args(without)


def test_help_names_every_verb() -> None:
    status, out, _ = run("--help")
    assert status == 0
    assert all(re.search(rf"^    {verb} ", out, re.MULTILINE) for verb in VERBS)


# --- processes ------------------------------------------------------------------------------------


def test_python_m_refimpl(model) -> None:
    done = process("classify", SEVEN, "--model", model)
    assert (done.returncode, done.stderr) == (0, "")
    assert str(SEVEN) in done.stdout


def test_a_closed_pipe_is_silent(model) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as nobody:
        done = subprocess.run(
            [sys.executable, "-m", "refimpl", "models"],
            stdout=nobody,
            stderr=subprocess.PIPE,
            timeout=PATIENCE,
        )
    assert done.stderr == b""
    assert done.returncode == 141


HEAVY = (
    "scipy.linalg",
    "scipy.special",
    "tqdm",
    "matplotlib",
    "torch",
    "tarfile",
    "refimpl.training",
    "refimpl.report",
)


def test_an_answer_does_not_wait_for_what_it_does_not_need(model) -> None:
    code = (
        "import sys; from refimpl import cli; cli.main(sys.argv[1:], own_process=True); "
        f"print([m for m in sys.modules if m in {HEAVY}])"
    )
    command = [sys.executable, "-c", code, "classify", str(SEVEN), "--model", model]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.stdout.splitlines()[1:] == ["[]"]


def test_shells_complete_verbs_options_and_files(tmp_path) -> None:
    shtab = oracles.require("shtab")
    (tmp_path / "seven.png").touch()
    (tmp_path / "completion").write_text(shtab.complete(cli.parser(), shell="bash"))
    completed = (
        'complete_words() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _shtab_refimpl refimpl '
        '"${@: -1}" "${@: -2:1}"; echo "${COMPREPLY[@]}"; }; source completion; '
        "complete_words refimpl cl; complete_words refimpl train --cu; "
        'complete_words refimpl train --curves ""; complete_words refimpl classify se; '
        "complete_words refimpl evaluate --data se"
    )
    done = subprocess.run(
        ["bash", "-c", completed], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.stdout.splitlines() == ["classify", "--curves", "csv png", "seven.png", "seven.png"]


def test_bars_are_for_terminals_only(model) -> None:
    done = process("evaluate", "--data", SMALL, "--model", model, "--limit", 5)
    assert (done.returncode, done.stderr) == (0, "")


def test_palette_images_are_welcome(model, tmp_path) -> None:
    path = tmp_path / "palette.gif"
    Image.open(SEVEN).convert("P").save(path)
    answer = run("classify", SEVEN, "--model", model)[1].split()[1:]
    assert run("classify", path, "--model", model)[1].split()[1:] == answer
