"""Recipes as files, and images held out."""

from __future__ import annotations

import json

import numpy as np
import pytest

from refimpl.conventions import ConfigError, DataError
from refimpl.training import Recipe, hold_out, recipes
from tests.training_runs import bars, train


def _write(folder, name: str, text: str):
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("quick.json", '{"epochs": 3, "learning_rate": 1e-3, "flip": true, "clip_norm": null}'),
        ("quick.toml", "# three of them\nepochs = 3\nlearning_rate = 1e-3\nflip = true\n"),
        ("quick.TOML", "epochs = 3\nlearning_rate = 0.001\nflip = true"),
    ],
)
def test_a_recipe_from_a_file(tmp_path, name: str, text: str) -> None:
    recipe = recipes.read(_write(tmp_path, name, text))
    assert recipe == Recipe(epochs=3, learning_rate=1e-3, flip=True)


def test_the_recipe_of_a_card_can_be_used_again(tmp_path) -> None:
    quick = _write(tmp_path, "quick.toml", "epochs = 1\nbatch_size = 8\nsmoothing = 0")
    train(tmp_path, recipes.read(quick))
    used = json.loads((tmp_path / "run.json").read_text())["recipe"]
    assert (used["epochs"], used["smoothing"], used["warmup_fraction"]) == (1, 0, 0.02)
    again = _write(tmp_path, "again.json", json.dumps(used))
    assert recipes.read(again) == recipes.read(quick)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("r.json", '{"epoch": 3}', "unknown field 'epoch', expected epochs, "),
        ("r.toml", "epochs = 3\n[schedule]\npeak = 1", "unknown field 'schedule'"),
        ("r.json", '{"epochs": "3"}', "epochs is '3', expected an integer"),
        ("r.toml", "epochs = 3.0", "epochs is 3.0, expected an integer"),
        ("r.json", '{"learning_rate": NaN}', "learning_rate is nan"),
        ("r.toml", "learning_rate = inf", "learning_rate is inf"),
        ("r.toml", 'flip = "no"', "flip is 'no', expected true or false"),
        ("r.json", '{"flip": 1}', "flip is 1, expected true or false"),
        ("r.toml", "epochs = 1979-05-27", "epochs is datetime.date"),
        ("r.json", "[1, 2]", r"found \[1, 2\], expected an object"),
        ("r.json", '{"epochs": 3', "no JSON: Expecting"),
        ("r.json", "", "no JSON: Expecting"),
        ("r.json", "[" * 100_000, "no JSON: "),
        ("r.toml", "epochs = ", "no TOML: Invalid value"),
        ("r.toml", "epochs = 1\nepochs = 2", "no TOML: Cannot overwrite"),
        ("r.json", '{"epochs": 1, "epochs": 2}', "no JSON: field 'epochs' is there twice"),
        ("r.toml", "a = " + "[" * 100_000, "no TOML: "),
        ("r.yaml", "epochs: 3", "suffix '.yaml', expected '.json' or '.toml'"),
    ],
)
def test_a_bad_file_is_one_clear_line(tmp_path, name: str, text: str, words: str) -> None:
    path = _write(tmp_path, name, text)
    with pytest.raises(ConfigError, match=words) as caught:
        recipes.read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_what_is_no_file_of_text(tmp_path) -> None:
    (tmp_path / "r.json").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "r.toml").mkdir()
    for name, words in (("r.json", "no JSON"), ("r.toml", "cannot be read"), ("x.json", "cannot")):
        with pytest.raises(ConfigError, match=words) as caught:
            recipes.read(tmp_path / name)
        assert name in str(caught.value)


# ---------------------------------------------------------------------------------- held out


def test_the_last_ones_are_held_out() -> None:
    images, labels = bars(9)
    split = hold_out(images, labels, 4)
    assert np.array_equal(split.training[0], images[:5])
    assert np.array_equal(split.training[1], labels[:5])
    assert np.array_equal(split.validation[0], images[5:])
    assert np.array_equal(split.validation[1], labels[5:])
    assert split.card == {"held_out": {"images": 4, "drawn": False, "seed": None}}


def test_drawn_ones_are_held_out() -> None:
    images, labels = np.arange(50, dtype=np.uint8)[:, None, None], np.arange(50)
    split, again, other = (hold_out(images, labels, 7, seed) for seed in (3, 3, 4))
    (kept_images, kept), (held_images, held) = split.training, split.validation
    assert (len(kept), len(held)) == (43, 7)
    assert sorted([*kept, *held]) == list(range(50))
    assert list(kept) == sorted(kept) and list(held) == sorted(held)
    assert np.array_equal(kept_images[:, 0, 0], kept)
    assert np.array_equal(held_images[:, 0, 0], held)
    assert np.array_equal(again.validation[1], held)
    assert not np.array_equal(other.validation[1], held)
    assert held.tolist() != list(range(43, 50))
    assert json.loads(json.dumps(split.card)) == {
        "held_out": {"images": 7, "drawn": True, "seed": 3}
    }


def test_nothing_is_held_out() -> None:
    images, labels = bars(3)
    split = hold_out(images, labels, 0, seed=3)
    assert split.training == (images, labels)
    assert (split.validation, split.card) == (None, {})


def test_what_cannot_be_held_out() -> None:
    with pytest.raises(DataError, match="3 images, too few to hold out 3"):
        hold_out(*bars(3), 3)
    for count in (-1, 1.5, True):
        with pytest.raises(ConfigError, match=f"number is {count}, expected an integer"):
            hold_out(*bars(3), count)
    with pytest.raises(ConfigError, match="seed is -2, expected an integer of at least 0"):
        hold_out(*bars(3), 1, seed=-2)
    images, labels = bars(3)
    with pytest.raises(DataError, match="3 images, 2 labels"):
        hold_out(images, labels[:2], 1)


def test_numbers_of_numpy_are_numbers() -> None:
    drawn = {"seed": np.arange(5)[4], "learning_rate": np.float32(0.5), "flip": np.bool_(True)}
    recipe = Recipe(epochs=np.int64(3), **drawn)
    assert recipe == Recipe(epochs=3, seed=4, learning_rate=0.5, flip=True)
    assert json.loads(json.dumps(recipe.to_json())) == recipe.to_json()
    card = hold_out(*bars(9), np.uint8(4), np.int64(0)).card
    assert json.loads(json.dumps(card)) == hold_out(*bars(9), 4, 0).card


@pytest.mark.parametrize("fields", [None, ["epochs"], "epochs"])
def test_fields_that_are_none(fields) -> None:
    with pytest.raises(ConfigError, match="recipe: found .*, expected an object with fields"):
        Recipe.from_json(fields)
