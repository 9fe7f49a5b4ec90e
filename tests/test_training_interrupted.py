"""Runs that are interrupted, and go on to the same bits as those that are not."""

from __future__ import annotations

import dataclasses
import os
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.numpy

import refimpl
from refimpl.conventions import ConfigError, ModelFileError, NonFiniteError, OutputError
from refimpl.training import batches, checkpoints, history, loop
from refimpl.training.optimizers import AdamW
from tests.training_runs import bars, model, recipe, same_bits, timeless, train

TWO = recipe(activation_epochs=2, epochs=2)
LONG_THERE = ("epochs", "batch_size", "learning_rate", "shift", "seed", "shards")  # not the default


class Cut(Exception):
    """Stands for whatever ends a run from inside."""


def _cut(folder, monkeypatch, part: int, **options) -> None:
    """A run that ends at its part number `part` of a batch, counted from 0; 6 an epoch."""
    shard, calls = batches._shard, []

    def cut(*arguments):
        calls.append(None)
        if len(calls) > part:
            raise Cut
        return shard(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(batches, "_shard", cut)
        with pytest.raises(Cut):
            train(folder, name="cut", **options)


@pytest.mark.parametrize("part", [3, 9, 12, 15, 21])  # 12: between the stages
def test_an_interrupted_run_resumes_to_the_same_bits(tmp_path, monkeypatch, part: int) -> None:
    whole = train(tmp_path, TWO, "whole")
    _cut(tmp_path, monkeypatch, part, recipe=TWO)
    assert not (tmp_path / "cut.safetensors").exists()
    resumed = train(tmp_path, TWO, "cut", resume=True)
    assert same_bits(whole.params, resumed.params)
    assert timeless(whole.history) == timeless(resumed.history)
    elapsed = [result.elapsed for result in resumed.history]
    assert elapsed == sorted(elapsed)


def test_a_run_with_muon_resumes_to_the_same_bits(tmp_path, monkeypatch) -> None:
    muon = dataclasses.replace(TWO, muon_rate=2.0)
    whole = train(tmp_path, muon, "whole")
    assert not same_bits(whole.params, train(tmp_path, TWO, "other").params)
    _cut(tmp_path, monkeypatch, 21, recipe=muon)
    assert same_bits(whole.params, train(tmp_path, muon, "cut", resume=True).params)


def test_a_run_can_be_interrupted_again_and_again(tmp_path, monkeypatch) -> None:
    whole = train(tmp_path, TWO, "whole")
    _cut(tmp_path, monkeypatch, 8, recipe=TWO)
    for part in (2, 8, 1):
        _cut(tmp_path, monkeypatch, part, recipe=TWO, resume=True)
    assert same_bits(whole.params, train(tmp_path, TWO, "cut", resume=True).params)


def test_a_run_that_lacks_nothing_but_its_file(tmp_path, monkeypatch) -> None:
    def fail(*arguments, **options):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(loop.files, "save", fail)
        with pytest.raises(OSError, match="no space"):
            train(tmp_path, TWO)
    assert os.listdir(tmp_path) == ["run.checkpoint"]
    monkeypatch.setattr(loop, "_epoch", lambda *arguments: pytest.fail("it trained"))
    train(tmp_path, TWO, resume=True, curves=True)
    assert sorted(os.listdir(tmp_path)) == ["run.csv", "run.json", "run.safetensors"]
    assert (tmp_path / "run.csv").read_text().count("\n") == 5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"recipe": recipe(learning_rate=1.0)}, r"recipe: learning_rate \(0.003, now 1.0\)"),
        ({"model": model(haar_mode="periodic")}, r"config: haar_mode \('?edge'?, now periodic\)"),
        ({"count": 19}, "training data"),
        ({"backend": SimpleNamespace(__name__="other")}, r"backend \(--backend\).*now other\)"),
    ],
)
def test_resume_refuses_another_run(tmp_path, monkeypatch, change, words: str) -> None:
    _cut(tmp_path, monkeypatch, 8)
    with pytest.raises(ConfigError, match=rf"cut\.checkpoint.*{words}") as caught:
        train(tmp_path, name="cut", resume=True, **change)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_that_is_older_than_a_field_of_recipes(tmp_path, monkeypatch) -> None:
    """The run had what is the default now; with another value it is another run."""
    whole = train(tmp_path, TWO, "whole")
    _cut(tmp_path, monkeypatch, 8, recipe=TWO)
    path = tmp_path / "cut.checkpoint"
    saved = checkpoints.load(path)
    older = {name: saved.progress["recipe"][name] for name in ("activation_epochs", *LONG_THERE)}
    checkpoints.save(path, saved._replace(progress=saved.progress | {"recipe": older}))
    with pytest.raises(ConfigError, match=r"recipe: muon_rate \(0.0, now 2.0\)"):
        train(tmp_path, dataclasses.replace(TWO, muon_rate=2.0), "cut", resume=True)
    assert same_bits(whole.params, train(tmp_path, TWO, "cut", resume=True).params)


def test_resume_refuses_other_images_of_the_same_number(tmp_path, monkeypatch) -> None:
    _cut(tmp_path, monkeypatch, 8)
    images, labels = bars(20)
    images[11, 3, 4] ^= 1
    monkeypatch.setattr("tests.training_runs.bars", lambda count: (images, labels))
    with pytest.raises(ConfigError, match="training data"):
        train(tmp_path, name="cut", resume=True)


def test_there_must_be_something_to_resume(tmp_path) -> None:
    with pytest.raises(ModelFileError, match=r"run\.checkpoint: no such checkpoint"):
        train(tmp_path, resume=True)


def test_the_epochs_of_an_interrupted_run_are_not_overwritten(tmp_path, monkeypatch) -> None:
    """Whoever forgets to resume must not lose the hours before."""
    _cut(tmp_path, monkeypatch, 15, recipe=TWO)
    before = (tmp_path / "cut.checkpoint").read_bytes()
    with pytest.raises(ModelFileError, match=r"cut\.checkpoint: holds 2 epochs.*resume"):
        train(tmp_path, TWO, "cut")
    assert (tmp_path / "cut.checkpoint").read_bytes() == before
    (tmp_path / "cut.checkpoint").unlink()
    train(tmp_path, name="cut")


@pytest.mark.parametrize("kept", ["run.safetensors", "run.json"])
def test_a_finished_run_is_not_overwritten(tmp_path, monkeypatch, kept: str) -> None:
    train(tmp_path)
    for name in {"run.safetensors", "run.json"} - {kept}:
        (tmp_path / name).unlink()
    before = (tmp_path / kept).read_bytes()
    monkeypatch.setattr(loop, "_epoch", lambda *arguments: pytest.fail("it trained"))
    with pytest.raises(OutputError, match=rf"{kept}: exists; expected the name of a new file$"):
        train(tmp_path)
    assert os.listdir(tmp_path) == [kept]
    assert (tmp_path / kept).read_bytes() == before


def test_a_checkpoint_without_an_epoch_is_nothing_to_keep(tmp_path, monkeypatch) -> None:
    _cut(tmp_path, monkeypatch, 3)
    train(tmp_path, recipe(seed=8), "cut")


@pytest.mark.parametrize("place", ["preprocessing", "recipe"])
def test_a_field_that_is_null_is_as_one_that_another_version_has_not(
    tmp_path, monkeypatch, place: str
) -> None:
    whole = train(tmp_path, TWO, "whole")
    _cut(tmp_path, monkeypatch, 8, recipe=TWO)
    path = tmp_path / "cut.checkpoint"
    saved = checkpoints.load(path)
    fields = saved.progress[place]
    if place == "preprocessing":
        del fields["colour"]  # of an older one
    else:
        fields["invented_later"] = None
    checkpoints.save(path, saved)
    assert same_bits(whole.params, train(tmp_path, TWO, "cut", resume=True).params)


@pytest.mark.parametrize(
    "change", ["missing", "unknown", "shape", "dtype", "moment", "history", "cpus"]
)
def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path, monkeypatch, change: str) -> None:
    _cut(tmp_path, monkeypatch, 8)
    path = tmp_path / "cut.checkpoint"
    params, optimizer, progress = checkpoints.load(path)
    if change == "missing":
        del params["head.bias"]
    elif change == "unknown":
        params["head.scale"] = params["head.bias"]
    elif change == "shape":
        params["head.bias"] = params["head.bias"][:2]
    elif change == "dtype":
        params["head.bias"] = params["head.bias"].astype(np.float64)
    elif change == "moment":
        del optimizer["first.head.bias"]
    else:
        progress[change] = 3
    checkpoints.save(path, checkpoints.Checkpoint(params, optimizer, progress))
    words = change if change in progress else r"head\.(bias|scale)"
    with pytest.raises(ModelFileError, match=rf"cut\.checkpoint.*{words}"):
        train(tmp_path, name="cut", resume=True)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_divergence_leaves_the_checkpoint_of_the_epoch_before(tmp_path, monkeypatch) -> None:
    _cut(tmp_path, monkeypatch, 6)
    after_an_epoch = checkpoints.load(tmp_path / "cut.checkpoint")
    step, calls = AdamW.step, []

    def diverge(self, gradients, rate):
        calls.append(None)
        step(self, gradients, rate if len(calls) < 5 else 1e30)

    monkeypatch.setattr(AdamW, "step", diverge)
    with pytest.raises(NonFiniteError, match=r"step 6 \(epoch 2\) of stage full"):
        train(tmp_path)
    kept = checkpoints.load(tmp_path / "run.checkpoint")
    assert same_bits(refimpl.unflatten(kept.params), refimpl.unflatten(after_an_epoch.params))
    assert len(kept.progress["history"]) == 1
    assert not (tmp_path / "run.safetensors").exists()


EPOCH = history.EpochResult("full", 1, 2, 1.5, 0.5, None, 1e-3, 9.0, 1.0)._asdict()


@pytest.mark.parametrize(
    "history",
    [
        [1],
        [{"epoch": 1}],
        [{"colour": "red"}],
        [EPOCH | {"elapsed": None}],
        [EPOCH | {"loss": "1"}],
        [EPOCH | {"epoch": True}],
    ],
)
def test_a_history_of_another_kind_is_told(tmp_path, monkeypatch, history) -> None:
    _cut(tmp_path, monkeypatch, 15, recipe=TWO)
    path = tmp_path / "cut.checkpoint"
    saved = checkpoints.load(path)
    checkpoints.save(path, saved._replace(progress=saved.progress | {"history": history}))
    with pytest.raises(ModelFileError, match=r"cut\.checkpoint: history: "):
        train(tmp_path, TWO, "cut", resume=True)


def test_a_progress_that_is_nested_without_end_is_told(tmp_path) -> None:
    path = tmp_path / "run.checkpoint"
    metadata = {"checkpoint": checkpoints.VERSION, "progress": "[" * 100_000}
    path.write_bytes(safetensors.numpy.save({"params.a": np.zeros(1)}, metadata))
    with pytest.raises(ModelFileError, match=r"run\.checkpoint: not a readable checkpoint"):
        train(tmp_path, resume=True)
