"""The command line: verbs run in this process, the ends of a process in a process of their own."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import refimpl
from refimpl import cli
from refimpl.data import bundled, mnist
from refimpl.models import files
from tests import make_demo_goldens
from tests.make_samples import write_idx

SMALL = bundled.mnist() / "small"
SEVEN = bundled.mnist() / "7_0000.png"
MODEL = refimpl.create_model("didb_micro", dim=8, depth=1)
VERBS = ("demo", "classify", "evaluate", "train", "models")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """A model of MNIST's shape that tells images apart; its answers are wrong as a rule."""
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    params = MODEL.init(np.random.default_rng(50))
    params["head"]["weight"] *= 100
    refimpl.save(
        path,
        MODEL,
        params,
        class_names=list(mnist.CLASS_NAMES),
        preprocessing=mnist.PREPROCESSING.to_json(),
        card={"data": "none"},
    )
    return str(path)


@pytest.fixture
def run(capsys):
    """Run the command -> (exit status, stdout, stderr)."""

    def run(*args: object) -> tuple[int, str, str]:
        try:
            status = cli.main([str(a) for a in args])
        except SystemExit as end:  # argparse
            status = end.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def process(*args: object, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "refimpl", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


def write_mnist(folder: Path, counts: dict[str, int]) -> Path:
    folder.mkdir(exist_ok=True)
    for split, count in counts.items():
        images, labels = mnist.load(SMALL, split)
        stem = folder / mnist.SPLITS[split]
        write_idx(Path(f"{stem}-images-idx3-ubyte.gz"), images[:count])
        write_idx(Path(f"{stem}-labels-idx1-ubyte.gz"), labels[:count].astype(np.uint8))
    return folder


# --- classify -------------------------------------------------------------------------------------


def test_classify_prints_the_classifiers_answer(run, model) -> None:
    (answer,) = refimpl.classifier(model)(SEVEN)
    status, out, err = run("classify", SEVEN, "--model", model)
    assert (status, err) == (0, "")
    assert out == f"{SEVEN}  {answer.label} {answer.probability:.4f}\n"


def test_classify_several_as_json(run, model) -> None:
    paths = bundled.digits()[:3]
    status, out, err = run("classify", *paths, "--model", model, "--top", 4, "--json")
    assert (status, err) == (0, "")
    for entry, answer in zip(json.loads(out), refimpl.classifier(model)(paths), strict=True):
        assert entry["label"] == answer.label
        assert entry["probability"] == pytest.approx(answer.probability, rel=1e-5)
        assert [best["label"] for best in entry["top"]] == [name for name, _ in answer.top(4)]
    assert [entry["file"] for entry in json.loads(out)] == [str(p) for p in paths]


def test_classify_top_is_aligned(run, model, tmp_path) -> None:
    long = tmp_path / "a_rather_long_name.png"
    long.write_bytes(SEVEN.read_bytes())
    _, out, _ = run("classify", SEVEN, long, "--model", model, "--top", 3)
    lines = out.splitlines()
    assert len({len(line) for line in lines}) == 1
    assert all(len(re.findall(r"\d \d\.\d{4}", line)) == 3 for line in lines)


def test_a_broken_image_does_not_stop_the_others(run, model, tmp_path) -> None:
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


def test_file_names_need_not_be_text(run, model, tmp_path) -> None:
    name = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe.png")
    try:
        Path(name).write_bytes(SEVEN.read_bytes())
    except OSError:
        pytest.skip("this file system wants names to be text")
    done = process("classify", name, "--model", model, env={**os.environ, "PYTHONUTF8": "1"})
    assert (done.returncode, done.stderr) == (0, "")
    assert "png" in done.stdout


# --- evaluate -------------------------------------------------------------------------------------


def test_evaluate_as_json(run, model) -> None:
    status, out, err = run("evaluate", "--data", SMALL, "--model", model, "--limit", 40, "--json")
    assert (status, err) == (0, "")
    result = json.loads(out)
    images, labels = mnist.load(SMALL, "test")
    images, labels = images[:40], labels[:40]
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


def test_evaluate_for_people(run, model) -> None:
    status, out, err = run(
        "evaluate", "--data", SMALL, "--model", model, "--limit", 30, "--split", "train"
    )
    assert (status, err) == (0, "")
    assert "30 images of the train split" in out
    for text in ("top-1", "top-5", "class", "images a second"):
        assert text in out


def test_evaluate_records_into_the_card(run, model) -> None:
    status, _, _ = run("evaluate", "--data", SMALL, "--model", model, "--limit", 20, "--record")
    assert status == 0
    card = json.loads(Path(model).with_suffix(".json").read_text())
    assert card["evaluation"]["data"] == "small, 20 images of the test split"
    assert card["evaluation"]["count"] == 20
    assert card["data"] == "none"


# --- train ----------------------------------------------------------------------------------------


def test_train_writes_a_model_that_classifies(run, tmp_path) -> None:
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
    assert (card["recipe"]["epochs"], card["recipe"]["batch_size"]) == (1, 4)
    assert (card["recipe"]["learning_rate"], card["recipe"]["seed"]) == (0.001, 7)
    assert run("classify", SEVEN, "--model", output)[0] == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["digits", "mine.json", output.name]


# --- models and version ---------------------------------------------------------------------------


def test_models_lists_what_there_is(run) -> None:
    status, out, err = run("models")
    assert (status, err) == (0, "")
    status, text, _ = run("models", "--json")
    listed = json.loads(text)
    assert sorted(listed["trained"]) == files.shipped()
    assert set(listed["architectures"]) == set(refimpl.models.config.NAMES)
    for name in ("didb_micro", "deit_cifar"):
        params = refimpl.create_model(name).init(np.random.default_rng(0))
        count = sum(array.size for array in refimpl.flatten(params).values())
        assert listed["architectures"][name]["parameters"] == count
        assert re.search(rf"^{name} +{count:,}$", out, re.MULTILINE)
    # the ViT-Ti/16 of the DeiT paper has 5.7 million parameters
    assert listed["architectures"]["deit_tiny"]["parameters"] == 5_717_416


def test_version(run) -> None:
    assert run("--version") == (0, f"refimpl {refimpl.__version__}\n", "")


# --- demo -----------------------------------------------------------------------------------------


def goldens_of(model: str, **changes: dict) -> dict:
    answers = zip(bundled.digits(), refimpl.classifier(model).astype("float64")(bundled.digits()))
    images = {p.name: {"label": a.label, "probability": a.probability} for p, a in answers}
    for name, change in changes.items():
        (full,) = [n for n in images if n.startswith(name[-1])]
        images[full] |= change
    return {"model": model, "dtype": "float64", "images": images}


def test_demo_agrees(run, model, monkeypatch) -> None:
    monkeypatch.setattr(bundled, "goldens", lambda: goldens_of(model))
    status, out, err = run("demo")
    assert (status, err) == (0, "")
    assert out.endswith("10 of 10 agree with the stored goldens\n")
    rows = [line for line in out.splitlines() if line.endswith("agrees")]
    assert len(rows) == 10
    assert all(re.search(r"\.png +\d +0\.\d{4} +\d+\.\d ms  agrees", row) for row in rows)


@pytest.mark.parametrize("change", [{"label": "none"}, {"probability": 1.5}])
def test_demo_differs(run, model, monkeypatch, change) -> None:
    monkeypatch.setattr(bundled, "goldens", lambda: goldens_of(model, digit3=change))
    status, out, _ = run("demo")
    assert status == 1
    assert "DIFFERS" in out
    assert out.endswith("9 of 10 agree with the stored goldens\n")


def test_demo_without_goldens(run, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(bundled, "mnist", lambda: tmp_path)
    one_line(run("demo"), "goldens.json")


def test_demo_of_the_shipped_model(run) -> None:
    status, out, err = run("demo")
    assert (status, err) == (0, "")
    assert out.endswith("10 of 10 agree with the stored goldens\n")


def test_goldens_belong_to_the_shipped_weights() -> None:
    stored = bundled.goldens()
    assert set(stored["images"]) == {path.name for path in bundled.digits()}
    assert all(golden["label"] == name[0] for name, golden in stored["images"].items())
    computed = make_demo_goldens.goldens(stored["model"])
    assert computed["weights_sha256"] == stored["weights_sha256"]
    for name, golden in stored["images"].items():
        assert computed["images"][name]["label"] == golden["label"]
        assert computed["images"][name]["probability"] == pytest.approx(golden["probability"])


# --- bad usage, bad input -------------------------------------------------------------------------


def one_line(result: tuple[int, str, str], message: str) -> None:
    status, out, err = result
    assert status == 2
    assert out == ""
    assert re.fullmatch(r"refimpl: [^\n]+\n", err), err
    assert message in err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "required: VERB"),
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
        (("train", "--data", "d", "-o", "x.safetensors"), "required: --model"),
        (("train", "--data", "d", "--model", "m", "-o", "x", "--epochs", "few"), "'few'"),
        (("demo", "now"), "unrecognized arguments: now"),
    ],
)
def test_bad_usage(run, args, message) -> None:
    status, out, err = run(*args)
    assert (status, out) == (2, "")
    assert err.startswith("usage: refimpl")
    assert message in err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("classify {digit} --model {tmp}/none.safetensors", "none.safetensors: no such file"),
        ("classify {digit} --model didb_micro", "didb_micro: an untrained architecture"),
        ("classify {digit} --model mobilenet", "mobilenet: no such file or model"),
        ("classify {digit} --model {digit}", "7_0000.png: not a readable safetensors file"),
        ("classify {tmp}/none.png --model {model}", "none.png: cannot read the image: No such"),
        ("classify {tmp} --model {model}", "cannot read the image: Is a directory"),
        ("classify {text} --model {model}", "words.png: not an image"),
        ("classify {empty} --model {model}", "empty.png: the file is empty"),
        ("evaluate --data {tmp}/none --model {model}", "none: no such folder"),
        ("evaluate --data {tmp} --model {model}", "found none of t10k-images-idx3-ubyte"),
        ("evaluate --data {text} --model {model}", "words.png: no such folder"),
        ("evaluate --data {small} --model react_tiny", "react_tiny: an untrained architecture"),
        ("evaluate --data {small} --model {animals}", "the data has the classes 0, 1, 2, 3"),
        ("evaluate --data {broken} --model {model}", "t10k-images-idx3-ubyte: not an idx file"),
        ("train --data {small} --model didb_giant -o {out}", "unknown architecture 'didb_giant'"),
        ("train --data {small} --model didb_cifar -o {out}", "the model reads (3, 32, 32)"),
        ("train --data {tmp}/none --model didb_micro -o {out}", "none: no such folder"),
        ("train --data {small} --model didb_micro -o {tmp}/no/x.safetensors", "no"),
        (
            "train --data {small} --model didb_micro -o {tmp}/x.npz",
            "x.npz: suffix '.npz'; expected",
        ),
        ("train --data {small} --model didb_micro -o {out} --validation 2000", "2000 images"),
        ("train --data {small} --model didb_micro -o {out} --epochs 0", "epochs is 0"),
        ("train --data {small} --model didb_micro -o {out} --learning-rate nan", "learning_rate"),
        ("train --data {small} --model didb_micro -o {out} --smoothing 2", "smoothing is 2.0"),
    ],
)
def test_bad_input_is_one_line_and_status_2(run, model, tmp_path, args, message) -> None:
    places = {
        "tmp": tmp_path,
        "digit": SEVEN,
        "small": SMALL,
        "model": model,
        "out": tmp_path / "out.safetensors",
        "text": tmp_path / "words.png",
        "empty": tmp_path / "empty.png",
        "animals": tmp_path / "animals.safetensors",
        "broken": tmp_path / "broken",
    }
    places["text"].write_text("words\n")
    places["empty"].touch()
    places["broken"].mkdir()
    for name in ("images-idx3", "labels-idx1"):
        (places["broken"] / f"t10k-{name}-ubyte").write_text("words")
    animals = [f"animal {i}" for i in range(10)]
    refimpl.save(places["animals"], MODEL, refimpl.load(model)[1], class_names=animals)
    before = sorted(tmp_path.rglob("*"))
    one_line(run(*shlex.split(args.format(**places))), message)
    assert sorted(tmp_path.rglob("*")) == before  # nothing half written


# --- help -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
def test_the_example_of_each_verb_parses(run, verb) -> None:
    status, out, err = run(verb, "--help")
    assert (status, err) == (0, "")
    (example,) = re.findall(r"^example: refimpl (.+(?:\n.+)*)", out, re.MULTILINE)
    args = cli.parser().parse_args(shlex.split(example))
    assert args.run.__name__ == verb


def test_help_names_every_verb(run) -> None:
    status, out, _ = run("--help")
    assert status == 0
    assert all(re.search(rf"^    {verb} ", out, re.MULTILINE) for verb in VERBS)


# --- processes ------------------------------------------------------------------------------------


def test_python_m_refimpl(model) -> None:
    done = process("classify", SEVEN, "--model", model)
    assert (done.returncode, done.stderr) == (0, "")
    assert str(SEVEN) in done.stdout


def test_no_traceback_in_a_process() -> None:
    done = process("classify", "none.png", "--model", "none.safetensors")
    assert done.returncode == 2
    assert done.stderr.startswith("refimpl: none.safetensors")
    assert "Traceback" not in done.stderr


def test_a_closed_pipe_is_silent(model) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as nobody:
        done = subprocess.run(
            [sys.executable, "-m", "refimpl", "models"],
            stdout=nobody,
            stderr=subprocess.PIPE,
            timeout=120,
        )
    assert done.stderr == b""
    assert done.returncode == 141


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
def test_interrupt(tmp_path) -> None:
    command = ["train", "--data", SMALL, "--model", "didb_micro", "-o", tmp_path / "x.safetensors"]
    training = subprocess.Popen(
        [sys.executable, "-m", "refimpl", *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "x.checkpoint").exists():  # it trains as soon as this is written
            assert time.monotonic() < deadline
            assert training.poll() is None, training.communicate()
            time.sleep(0.05)
        training.send_signal(signal.SIGINT)
        out, err = training.communicate(timeout=60)
    finally:
        training.kill()
    assert (training.returncode, out, err) == (130, "", "refimpl: interrupted\n")
    assert not (tmp_path / "x.safetensors").exists()


def test_start_up_leaves_the_heavy_modules_alone() -> None:
    code = "import refimpl.cli, sys; print([m for m in sys.modules if m in ('tqdm', 'torch')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "[]\n"


def test_bars_are_for_terminals_only(model) -> None:
    done = process("evaluate", "--data", SMALL, "--model", model, "--limit", 5)
    assert (done.returncode, done.stderr) == (0, "")


def test_palette_images_are_welcome(run, model, tmp_path) -> None:
    path = tmp_path / "palette.gif"
    Image.open(SEVEN).convert("P").save(path)
    answer = run("classify", SEVEN, "--model", model)[1].split()[1:]
    assert run("classify", path, "--model", model)[1].split()[1:] == answer
