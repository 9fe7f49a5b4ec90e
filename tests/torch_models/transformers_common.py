"""What `deit` and `swin` as networks of the `transformers` library have in common.

A model of ours says how its names become theirs: pairs (pattern, replacement), of which the first
that matches counts. Where ours has one matrix for q, k and v, theirs are three.

Attention is "sdpa": the "eager" one takes its softmax in float32, in a float64 model too. The two
are the same equation.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from tests.torch_models import vit

Rules = Sequence[tuple[str, str]]
TheirNames = Callable[[str], list[str]]


def renamed(name: str, rules: Rules) -> list[str]:
    """One name of theirs, or for qkv three."""
    for pattern, replacement in rules:
        found, count = re.subn(pattern, replacement, name)
        if count:
            parts = "qkv" if ".qkv." in found else ""
            return [found.replace(".qkv.", f".{part}_proj.") for part in parts] or [found]
    raise ValueError(f"{name}: not a parameter of this network")


def fields(config: vit.Config) -> dict[str, Any]:
    """The fields that their configurations share."""
    return {
        "image_size": vit._image_size(config),
        "patch_size": config["patch_size"],
        "num_channels": config["channels"],
        "layer_norm_eps": config["norm_eps"],
        "num_labels": config["num_classes"],
        "hidden_act": "gelu",
        "attn_implementation": "sdpa",
    }


def fill(module: nn.Module, flat: Mapping[str, np.ndarray], their_names: TheirNames) -> None:
    """Give a module of theirs our parameters `flat` (dotted name -> array)."""
    theirs = {}
    for name, value in flat.items():
        names = their_names(name)
        theirs.update(zip(names, np.split(value, len(names))))
    vit.fill(module, theirs)


def run(
    module: nn.Module,
    their_names: TheirNames,
    names: Sequence[str],
    images: np.ndarray,
    dlogits: np.ndarray,
    **options: Any,
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Logits, gradient of the images, and under our `names` those of the parameters."""
    logits, dimages = vit.forward_backward(lambda x: module(x, **options).logits, images, dlogits)
    theirs = vit.gradients(module)
    grads = {name: np.concatenate([theirs[part] for part in their_names(name)]) for name in names}
    return logits, dimages, grads
