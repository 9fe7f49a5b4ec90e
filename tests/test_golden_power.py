"""What a bundle cannot show, and that the bundles in git together show what is known."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest

from refimpl import golden
from refimpl.golden import mistakes, power, search, store
from refimpl.models import VisionTransformer
from tests import make_golden_bundles, networks
from tests.command_line import run

# Reached by no bundle, and why.
UNREACHED = {
    "overflow: the products were added in int16": "sums of 32,768 bits",
    "sign of zero: sign(0) is +1, the candidate takes -1": "a tie, which --strict alone fails",
    "rounding half up: q = 1/2 rounds to 0, half to even": "a tie, which --strict alone fails",
}


@functools.cache
def read(name: str) -> golden.Bundle:
    return golden.read(make_golden_bundles.FOLDER / name)


@functools.cache
def judged(name: str) -> power.Power:
    return power.of(read(name))


def hidden(name: str) -> dict[tuple[str, str], power.Hidden]:
    return {(found.op, found.words): found for found in judged(name).hidden}


SMALL = [name for name in make_golden_bundles.BUNDLES if name.startswith("small")]


def test_together_the_bundles_show_what_is_known():
    """Of every operation that any of them has: its own mistakes, forward and backward."""
    nowhere: set[tuple[str, bool]] = set()
    somewhere: set[tuple[str, bool]] = set()
    with np.errstate(all="ignore"):
        for name in SMALL:
            judge = power.Judge(read(name).reference)
            own = judge.own()
            for known in mistakes.known(judge.reference):
                key = (known.words, known.is_backward)
                if known.words not in own or key in somewhere:
                    continue
                verdict = judge.verdict(known)
                if verdict == power.SHOWN:
                    somewhere.add(key)
                elif verdict:
                    nowhere.add(key)
    left = {words for words, _ in nowhere - somewhere} - set(UNREACHED)
    assert len(left) <= 0.01 * len(somewhere), left
    assert len(somewhere) > 500


def test_what_is_hidden_and_why():
    wide, batch = hidden("small_wide"), hidden("small_batch")
    clamped = "overflow: the products were clipped to int8, -128 to 127"
    assert ("binary_linear", clamped) not in wide
    assert "from -14 to 16" in batch["binary_linear", clamped].why
    assert "the first of 8 taps" in batch["binary_linear", clamped].why
    magnitude = "alpha's magnitude: |alpha|, not max(alpha, 1e-5)"
    assert ("boolean_attention", magnitude) not in batch
    assert "blocks.0.attn.alpha is 0.09399 everywhere" in wide["boolean_attention", magnitude].why
    image = wide["class_token", "the class token for the first image alone"]
    assert "there is one image" in image.why and image.drawn
    widest = "overflow: the products were added in int16"
    assert wide["matmul", widest].needs == "sums of 32,768, so rows of as many bits"
    ties = wide["binary_linear", "sign of zero: sign(0) is +1, the candidate takes -1"]
    assert "at ties alone, which only --strict fails" in ties.why


def test_a_network_that_was_never_trained_hides_much(tmp_path):
    """Moves, shifts and lam_n of 0: the same network with drawn parameters shows them."""
    config = networks.small(**networks.DIDB, depth=1)
    model = VisionTransformer(config)
    fresh = model.init(np.random.default_rng(0))
    drawn, images = search.draw(config, 0, images=2)
    found = {}
    for name, params in (("fresh", fresh), ("drawn", drawn)):
        store.make(tmp_path / name, model, params, images)
        found[name] = power.of(golden.read(tmp_path / name))
    words = {h.words for h in found["fresh"].hidden if h.drawn}
    assert len(words) > 100 > len([h for h in found["drawn"].hidden if h.drawn])
    assert any("attn.neighbour left out" in text for text in words)
    assert found["fresh"].shown < found["drawn"].shown


@pytest.mark.parametrize("name", ["small_deit", "small_long"])
def test_each_kind_of_network(name):
    bundle, found = read(name), judged(name)
    assert found.shown > 10 * len([h for h in found.hidden if h.drawn])
    assert found.backward == bundle.manifest["grads"]
    assert "batch_norm" in found.absent and "softmax" not in found.absent


def test_the_words_of_the_command():
    shown = run("golden", "inspect", "small_wide", "--power")
    assert (shown.status, shown.err) == (0, "")
    first, *rest = shown.out.splitlines()
    assert first.startswith("small_wide: ") and first.endswith(" do not")
    assert "there are no gradients (golden make --grads)" in rest[0]
    assert any("the network has no such operation" in line for line in rest[:2])
    overflow = "some of which take popcounts of 256, so rows of as many bits; sums of 32,768, so"
    assert any(line.startswith(f"  overflow (19 kinds), {overflow}") for line in rest)
    told = json.loads(run("golden", "inspect", "small_wide", "--power", "--json").out)
    power_of = judged("small_wide")
    assert told["shown"] == power_of.shown and len(told["hidden"]) == len(power_of.hidden)
    assert f"{power_of.shown:,} known mistakes show, {len(power_of.hidden):,} do not" in first


def test_a_tap_and_power_are_two_questions():
    asked = run("golden", "inspect", "small_wide", "logits", "--power")
    assert asked.status == 2 and "not allowed with" in asked.err
