"""What a run refuses before its first step, and what it says where numbers stop being finite."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import refimpl
from refimpl.conventions import ConfigError, DataError, DtypeError, NonFiniteError, ShapeError
from refimpl.data.preprocessing import Preprocessing
from refimpl.models import files
from refimpl.training import checkpoints, loop
from tests.command_line import SMALL, assert_one_line, run
from tests.training_runs import CLASSES, PREPROCESSING, bars, model, recipe, train

IMAGES, LABELS = bars(20)
MAPS = np.zeros(IMAGES.shape, np.uint8)
SEGMENTER = model("segmenter_didb_micro")


@pytest.mark.parametrize(
    ("validation", "words"),
    [
        ((IMAGES, LABELS[:-1]), "validation data: 20 images and 19 labels"),
        ((IMAGES[:0], LABELS[:0]), "validation data: 0 images and 0 labels"),
        ((IMAGES, LABELS + 7), "validation data: labels run from 7 to 9, expected 0 to 2"),
        ((IMAGES, LABELS / 2), "validation data: labels are float64, expected integers"),
        ((IMAGES / 2, LABELS), "images: found float64"),
        ((np.stack([IMAGES] * 4, axis=-1), LABELS), r"images: found uint8 \(1, 8, 12, 4\)"),
        ((list(IMAGES), LABELS), "validation data: images: found list, expected an array"),
    ],
)
def test_images_held_out_are_looked_at_before_the_first_step(tmp_path, validation, words) -> None:
    with pytest.raises(DataError, match=words):
        train(tmp_path, validation=validation)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("network", "images", "labels", "words"),
    [
        (model(), IMAGES, LABELS.astype(float), "labels are float64, expected integers"),
        (model(), list(IMAGES), LABELS, "images: found list, expected an array"),
        (model(), IMAGES, LABELS.tolist(), "labels: found list, expected an array"),
        (model(), IMAGES[:, 0, 0], LABELS, r"images are \(20,\), expected \(n, H, W\)"),
        (SEGMENTER, IMAGES, MAPS.astype(np.int64), "labels are int64, expected uint8"),
    ],
)
def test_arrays_of_another_kind_are_told_by_name(tmp_path, network, images, labels, words) -> None:
    with pytest.raises(DataError, match=f"training data: {words}"):
        loop.train(
            network, recipe(), images, labels, preprocessing=PREPROCESSING.to_json(),
            class_names=CLASSES, out=tmp_path / "run.safetensors",
        )  # fmt: skip
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"threads": 0}, ConfigError, "threads is 0, expected an integer of at least 1"),
        ({"threads": -1}, ConfigError, "threads is -1"),
        ({"params": {}}, ShapeError, "patch_embed.weight: missing parameter"),
        ({"params": [1]}, DtypeError, "params is list; expected a dict of arrays"),
        ({"card": {"loss": float("nan")}}, ConfigError, "card: .*expected JSON values"),
    ],
)
def test_other_arguments_are_told_before_the_first_step(tmp_path, options, error, words) -> None:
    with pytest.raises(error, match=words):
        train(tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_a_segmenter_cannot_teach_a_classifier(tmp_path) -> None:
    teacher = SEGMENTER, SEGMENTER.init(np.random.default_rng(0), np.dtype(np.float32))
    with pytest.raises(ConfigError, match="made for segmentation, expected a classifier"):
        train(tmp_path, recipe(distillation=0.5), teacher=teacher)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"preprocessing": PREPROCESSING.inverted()}, "another preprocessing: invert"),
        ({"class_names": ("left", "both", "right")}, "another classes"),
        ({"validation": (IMAGES[:4], LABELS[:4])}, "another validation data"),
    ],
)
def test_a_run_is_resumed_with_what_its_numbers_mean_only(tmp_path, changed, words) -> None:
    given = {
        "preprocessing": PREPROCESSING,
        "class_names": CLASSES,
        "validation": (IMAGES[:8], LABELS[:8]),
    }

    def go_on(**options):
        read = options.pop("preprocessing").to_json()
        out = tmp_path / "run.safetensors"
        return loop.train(model(), recipe(), IMAGES, LABELS, out=out, preprocessing=read, **options)

    with pytest.raises(ZeroDivisionError):
        go_on(**given, watch=_Stops())
    with pytest.raises(ConfigError, match=words):
        go_on(**given | changed, resume=True)
    assert len(go_on(**given, resume=True).history) == recipe().epochs


class _Stops(loop.Watch):
    def epoch(self, *_) -> None:
        raise ZeroDivisionError


@pytest.mark.parametrize("held_out", [None, (IMAGES[:4], LABELS[:4])])
def test_what_is_not_finite_after_the_last_step_is_told_as_within(tmp_path, held_out) -> None:
    wild = recipe(learning_rate=1e38, batch_size=20, epochs=1, warmup_fraction=0)
    words = r"training diverged at step 1 \(epoch 1\) of stage full: .*; lower learning_rate"
    with pytest.raises(NonFiniteError, match=words):
        train(tmp_path, wild, validation=held_out)
    # what is there to resume is what was finite
    (checkpoint,) = tmp_path.glob("*.checkpoint")
    saved = checkpoints.load(checkpoint)
    assert all(np.isfinite(value).all() for value in saved.params.values())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--resume"], "no such checkpoint; there is nothing to resume"),
        (["--distillation", 0.5], "distillation is 0.5, expected 0.0: there is no teacher"),
        (["--shift", 28], "shift is 28 pixels, expected fewer"),
        (["--set", "binarize=none", "--activation-epochs", 1], "activation_epochs is 1, expected"),
        (["--set", "norm=batch"], "norm is 'batch'"),
    ],
)
def test_what_no_data_can_mend_is_told_before_they_are_read(tmp_path, options, words) -> None:
    out = tmp_path / "run.safetensors"
    asked = ("train", "--data", tmp_path / "missing", "--model", "didb_micro", "-o", out)
    assert_one_line(run(*asked, *options), words)


@pytest.mark.parametrize("out", [".", "/"])
def test_a_folder_is_no_name_of_a_model(out) -> None:
    assert_one_line(
        run("train", "--data", SMALL, "--model", "didb_micro", "-o", out), "is a folder"
    )


def test_images_are_cropped_once(tmp_path, monkeypatch) -> None:
    """A network that reads the middle of an image learns from that, as it is evaluated on it."""
    image = np.full((32, 32), 255, np.uint8)
    image[8:24, 8:24] = np.arange(16 * 16).reshape(16, 16)  # the middle that is kept, 1:1
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.fromarray(image).save(tmp_path / "data" / name / "0.png")
    read = Preprocessing((16, 16), "grey", (0.0,), (1.0,), crop=0.5, resampling="nearest")
    net = model(image_size=16, num_classes=2)
    params = net.init(np.random.default_rng(0), np.dtype(np.float32))
    start = tmp_path / "s.safetensors"
    files.save(start, net, params, class_names=["a", "b"], preprocessing=read.to_json(), card={})
    seen = []

    def spy(*given, objective, **options):
        seen.append(objective.prepare(given[2]))
        teacher.append(objective.teacher(given[2]))
        return gradients(*given, objective=objective, **options)

    teacher: list[np.ndarray] = []
    gradients = loop.batch_gradients
    monkeypatch.setattr(loop, "batch_gradients", spy)
    asked = ("train", "--data", tmp_path / "data", "--init", start, "--teacher", start)
    result = run(
        *asked, "--distillation", 0.5, "--epochs", 1, "--shift", 0, "-o", tmp_path / "f.safetensors"
    )
    assert result.status == 0, result.err
    wanted = image[None, 8:24, 8:24].astype(np.float32) / np.float32(255)
    assert all(np.allclose(one, wanted, atol=1e-6) for one in seen[0])
    assert refimpl.load(tmp_path / "f.safetensors")[0].preprocessing.crop == 0.5
    (answer,) = refimpl.classifier(start)(tmp_path / "data" / "a" / "0.png")
    assert np.allclose(teacher[0], answer.probabilities, atol=1e-5)


def test_held_out_images_are_not_measured(tmp_path) -> None:
    for name, level in (("a", 0), ("b", 10)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(4):
            pixels = np.full((8, 8), level + i, np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{i}.png")
    out = tmp_path / "run.safetensors"
    sizes = [f"--set={field}" for field in ("image_size=8", "dim=16", "depth=1", "num_classes=2")]
    asked = ("train", "--data", tmp_path / "data", "--model", "didb_micro", *sizes, "--epochs", 1)
    assert run(*asked, "--shift", 0, "--validation", 2, "-o", out).status == 0
    pixels = np.stack([np.full((8, 8), level + i, np.uint8) for level in (0, 10) for i in range(4)])
    kept, _ = refimpl.training.hold_out(pixels, np.arange(8) // 4, 2, seed=0).training
    plain = Preprocessing.plain((8, 8), 1)
    found = refimpl.load(out)[0].preprocessing
    assert found == plain.measured(kept) != plain.measured(pixels)
