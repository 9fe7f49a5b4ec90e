"""Two stages [SPEC 7]: binary activations with real weights first, then everything binary."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

import refimpl
from refimpl.conventions import ConfigError
from refimpl.models import VisionTransformer
from refimpl.training import stages
from refimpl.training.optimizers import AdamW
from refimpl.training.schedules import warmup_cosine
from tests.training_runs import RECIPE, bars, model, recipe, same_bits, timeless, train

TWO = recipe(activation_epochs=2, epochs=3)


def test_the_plan_of_one_and_of_two_stages() -> None:
    (only,) = stages.plan(model(), recipe(epochs=4))
    assert (only.name, only.first, only.last) == ("full", 0, 4)
    first, second = stages.plan(model(), TWO)
    assert (first.name, first.first, first.last) == ("activations", 0, 2)
    assert (second.name, second.first, second.last) == ("full", 2, 5)
    assert first.model == model(binarize="activations")
    assert second.model == model()


@pytest.mark.parametrize("name", ["deit_micro", "didb_micro"])
def test_a_model_that_is_not_fully_binary_has_one_stage(name: str) -> None:
    fields = {} if name == "deit_micro" else {"binarize": "none"}
    network = model(name, **fields)
    (only,) = stages.plan(network, recipe())
    assert (only.name, only.model) == ("real" if name == "deit_micro" else "none", network)
    with pytest.raises(ConfigError, match=f"activation_epochs is 2.*{only.name!r}"):
        stages.plan(network, TWO)


def test_the_stages_of_a_run(tmp_path, capsys) -> None:
    trained = train(tmp_path, TWO, progress=True, validation=bars(7))
    assert [(r.stage, r.epoch, r.epochs) for r in trained.history] == [
        ("activations", 1, 2),
        ("activations", 2, 2),
        ("full", 1, 3),
        ("full", 2, 3),
        ("full", 3, 3),
    ]
    lines = capsys.readouterr().err.splitlines()
    assert lines[1].startswith("activations epoch 2/2  loss ")
    assert lines[2].startswith("full epoch 1/3  loss ")
    network, params = refimpl.load(tmp_path / "run.safetensors")
    assert network.config == model().config
    assert same_bits(params, trained.params)
    card = json.loads((tmp_path / "run.json").read_text())
    assert card["recipe"]["activation_epochs"] == 2
    assert [row["stage"] for row in card["history"]] == ["activations"] * 2 + ["full"] * 3
    assert card["config"]["binarize"] == "full"


def test_each_stage_runs_its_own_model_schedule_and_optimizer(tmp_path, monkeypatch) -> None:
    seen, rates = [], []
    forward, step = VisionTransformer.forward, AdamW.step

    def spy(self, *arguments, **options):
        seen.append(self.config.binarize)
        return forward(self, *arguments, **options)

    def rate_spy(self, gradients, rate):
        step(self, gradients, rate)
        rates.append((self.steps, rate))

    monkeypatch.setattr(VisionTransformer, "forward", spy)
    monkeypatch.setattr(AdamW, "step", rate_spy)
    trained = train(tmp_path, recipe(activation_epochs=1, epochs=2, warmup_fraction=0.4, shards=1))
    assert seen == ["activations"] * 3 + ["full"] * 6
    expected = [
        (step + 1, warmup_cosine(step, steps=steps, peak=3e-3, warmup=warmup))
        for steps, warmup in ((3, 1), (6, 2))
        for step in range(steps)
    ]
    assert rates == expected
    assert [result.learning_rate for result in trained.history] == [rates[i][1] for i in (2, 5, 8)]


def test_the_second_stage_starts_where_the_first_one_ended(tmp_path) -> None:
    """A run of two stages is two runs, but for the random numbers of the later epochs."""
    still = {"shift": 0, "batch_size": 20, "shards": 1}  # whole batches: their order is rounding
    first = train(tmp_path, recipe(epochs=2, **still), "first", model=model(binarize="activations"))
    second = train(tmp_path, recipe(epochs=1, **still), "second", params=first.params)
    both = train(tmp_path, recipe(activation_epochs=2, epochs=1, **still), "both")
    assert [r.loss for r in both.history[:2]] == [r.loss for r in first.history]
    assert both.history[2].loss == pytest.approx(second.history[0].loss, rel=1e-5)


def test_validation_is_measured_with_the_model_of_the_stage(tmp_path, monkeypatch) -> None:
    seen = []
    predict = VisionTransformer.predict

    def spy(self, *arguments, **options):
        seen.append(self.config.binarize)
        return predict(self, *arguments, **options)

    monkeypatch.setattr(VisionTransformer, "predict", spy)
    train(tmp_path, recipe(activation_epochs=1, epochs=2), validation=bars(5))
    parts = math.ceil(5 / math.ceil(RECIPE.batch_size / RECIPE.shards))  # of the validation
    assert seen == ["activations"] * parts + ["full"] * 2 * parts


def test_two_stages_give_the_same_bits_twice(tmp_path) -> None:
    first, second = (train(tmp_path, TWO, name) for name in ("first", "second"))
    assert same_bits(first.params, second.params)
    assert timeless(first.history) == timeless(second.history)
    assert np.isfinite([result.loss for result in first.history]).all()
