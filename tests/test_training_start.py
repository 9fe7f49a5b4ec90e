"""Fine-tuning: a run starts from a trained network, whose head is drawn anew for other classes."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

import refimpl
from refimpl.conventions import ConfigError
from refimpl.models import VisionTransformer, cards, flatten
from refimpl.training import starts
from tests import networks
from tests.command_line import SMALL, assert_one_line, run
from tests.training_runs import CLASSES, PREPROCESSING, RECIPE, model, recipe, same_bits, train

NETWORKS = networks.covering() | networks.imported()
SHORT = ("--epochs", 1, "--batch-size", 8)


@pytest.mark.parametrize("name", NETWORKS)
def test_only_what_speaks_of_classes_is_drawn_anew(name: str) -> None:
    config = NETWORKS[name]
    net = networks.make(config, 0, np.float32)
    classes = [f"class {i}" for i in range(config.num_classes + 2)]
    adapted, params = starts.start(net.model, net.params, classes, seed=1)

    assert adapted.config == config.replace(num_classes=len(classes))
    assert adapted.class_names == tuple(classes)
    before, after = flatten(net.params), flatten(params)
    new = {path for path in after if after[path] is not before[path]}
    assert new == {path for path in after if after[path].shape != before[path].shape}
    # a weight and a bias; a pyramid or a distilled network has several heads
    assert len(new) >= 2 and all(len(classes) in after[path].shape for path in new)
    assert adapted.predict(params, net.images).shape[1] == len(classes)


def test_as_many_classes_of_other_names_have_a_new_head_too() -> None:
    net = networks.make(networks.small(), 0, np.float32)
    count = net.model.config.num_classes
    old, new = ([f"{word} {i}" for i in range(count)] for word in ("old", "new"))
    named = VisionTransformer(net.model.config, None, tuple(old))

    same, params = starts.start(named, net.params, old, seed=1)
    assert same is named and params is net.params
    _, params = starts.start(named, net.params, new, seed=1)
    assert not same_bits(params["head"], net.params["head"])
    assert same_bits(params["norm"], net.params["norm"])


@pytest.mark.parametrize("count", [1, 255])
def test_a_segmenter_of_any_number_of_classes_has_a_new_head(count) -> None:
    net = networks.make(networks.small(decoder="linear", num_classes=count), 0, np.float32)
    adapted, params = starts.start(net.model, net.params, ("ant", "bee"), seed=1)
    assert params["head"]["weight"].shape == (2, adapted.config.dim)
    assert same_bits(params["norm"], net.params["norm"])


def test_a_name_in_two_forms_of_unicode_is_one_class() -> None:
    """macOS writes an accented letter as two characters: the head must not be lost for that."""
    net = networks.make(networks.small(num_classes=2), 0, np.float32)
    named = VisionTransformer(net.model.config, None, ("caf\u00e9", "bee"))
    assert starts.start(named, net.params, ("cafe\u0301", "bee"), seed=1)[1] is net.params


def test_a_run_starts_there_and_is_resumed_with_the_same_start_only(tmp_path) -> None:
    first = train(tmp_path)
    second = train(tmp_path, name="second", params=first.params)
    assert second.history[0].loss < first.history[0].loss

    other = model().init(np.random.default_rng(9))
    short = recipe(epochs=1)
    with pytest.raises(ZeroDivisionError):
        train(tmp_path, short, name="third", params=other, watch=_stops_after_one_epoch())
    words = r"another start \(the parameters of --init\) \(sha256 \w{12}\.\.\., now sha256"
    with pytest.raises(ConfigError, match=words):
        train(tmp_path, short, name="third", params=first.params, resume=True)
    resumed = train(tmp_path, short, name="third", params=other, resume=True)
    assert same_bits(resumed.params, train(tmp_path, short, name="whole", params=other).params)


def _stops_after_one_epoch():
    from refimpl.training.watch import Watch

    class Stops(Watch):
        def epoch(self, *_):
            raise ZeroDivisionError

    return Stops()


def test_running_statistics_stay_as_they_are(tmp_path) -> None:
    batch_norms = model(norm="batch")
    with pytest.raises(ConfigError, match="or a trained network to start from"):
        train(tmp_path, model=batch_norms)
    start = networks.parameters(batch_norms.config, np.random.default_rng(0), np.float32)
    trained = flatten(train(tmp_path, RECIPE, model=batch_norms, params=start).params)
    frozen = {path for path in trained if path.rpartition(".")[2].startswith("running")}
    assert frozen
    before = flatten(start)
    moved = {path for path in trained if trained[path].tobytes() != before[path].tobytes()}
    assert not moved & frozen and len(moved) > len(trained) // 2


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A trained file with the preprocessing and class names of its own."""
    folder = tmp_path_factory.mktemp("start")
    train(folder)
    return folder / "run.safetensors"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Images of two classes that the file does not know."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for name in ("up", "down"):
        (folder / "train" / name).mkdir(parents=True)
        for index in range(6):
            pixels = rng.integers(0, 255, (8, 12), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "train" / name / f"{index}.png")
    return folder


def test_the_command_goes_on_from_a_file(start, pictures, tmp_path) -> None:
    out = tmp_path / "mine.safetensors"
    result = run("train", "--data", pictures, "--init", start, *SHORT, "-o", out)
    assert result.status == 0, result.err
    fine, params = refimpl.load(out)
    assert fine.class_names == ("down", "up")
    prepared = fine.preprocessing
    assert prepared.brightness is not None  # of the new images, by which odd ones are told
    # all else is the file's own
    plain = dataclasses.replace(prepared, brightness=None, contrast=None, colour=None)
    assert plain == PREPROCESSING
    assert fine.config == model(num_classes=2).config
    assert params["head"]["weight"].shape[0] == 2
    assert json.loads(cards.path_of(out).read_text())["init"] == str(start)


def test_with_the_same_classes_the_head_stays(start, tmp_path) -> None:
    old, _ = refimpl.load(start)
    same, params = starts.start(*refimpl.load(start), CLASSES, seed=0)
    assert same.config == old.config
    assert same_bits(params, refimpl.load(start)[1])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--init", "{start}", "--model", "didb_micro"], ["not allowed with argument"]),
        (["--init", "{start}", "--set", "depth=2"], ["--set depth", "expected an architecture"]),
        (["--init", "{start}.missing"], ["no such file or model"]),
        (["--init", "{packed}"], ["kind 'packed'", "expected 'latent'"]),
        (["--init", "didb_tiny"], ["untrained architecture"]),
        ([], ["one of the arguments --model --init is required"]),
    ],
)
def test_a_start_that_cannot_be_is_one_line(start, tmp_path, options, words) -> None:
    packed, out = tmp_path / "packed.safetensors", tmp_path / "out.safetensors"
    assert run("pack", start, "-o", packed).status == 0
    options = [option.format(start=start, packed=packed) for option in options]
    result = run("train", "--data", SMALL, *options, *SHORT, "-o", out)
    assert result.status == 2 and not out.exists()
    assert all(word in result.err.splitlines()[-1] for word in words), result.err


def test_the_start_is_never_overwritten(start, pictures) -> None:
    before = start.read_bytes()
    command = ("train", "--data", pictures, "--init", start, *SHORT, "-o", start, "--force")
    assert_one_line(run(*command), "is the init itself")
    assert start.read_bytes() == before
