"""Checkpoints as the `transformers` library writes them, with its own logits and gradients."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers as hf
from torch.nn import functional as F

_VIT = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "patch_size": 4,
        "intermediate_size": 24, "image_size": 8, "num_labels": 5, "num_channels": 3}  # fmt: skip
_SWIN = {"embed_dim": 8, "depths": [2, 2], "num_heads": [2, 4], "window_size": 2, "patch_size": 2,
         "mlp_ratio": 3.0, "image_size": 16, "num_labels": 5, "num_channels": 3}  # fmt: skip
KINDS = {
    "vit": (hf.ViTForImageClassification, hf.ViTConfig, _VIT),
    "deit": (hf.DeiTForImageClassification, hf.DeiTConfig, _VIT),
    "teacher": (hf.DeiTForImageClassificationWithTeacher, hf.DeiTConfig, _VIT),
    "swin": (hf.SwinForImageClassification, hf.SwinConfig, _SWIN),
}


class Saved(NamedTuple):
    """A folder, and what the library computes with it in float64."""

    images: np.ndarray
    dlogits: np.ndarray
    logits: np.ndarray
    gradients: dict[str, np.ndarray]  # by the names of the module in memory


def save(kind: str, folder: Path, seed: int, **fields: Any) -> Saved:
    """Write a random network into a folder: config.json and model.safetensors, float32."""
    network, config, usual = KINDS[kind]
    torch.manual_seed(seed)
    # the eager attention takes its softmax in float32, in a float64 model too
    module = network(config(**{**usual, **fields}, attn_implementation="sdpa")).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape))
    module.save_pretrained(folder)
    module = module.double()
    side, channels = module.config.image_size, module.config.num_channels
    size = side if isinstance(side, (list, tuple)) else (side, side)
    images = torch.randn(2, channels, *size, dtype=torch.float64)
    logits = module(images).logits
    dlogits = torch.randn(logits.shape, dtype=torch.float64)
    logits.backward(dlogits)
    gradients = {name: p.grad.numpy() for name, p in module.named_parameters()}
    return Saved(images.numpy(), dlogits.numpy(), logits.detach().numpy(), gradients)


def state_dict(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a folder by their names in memory, which its file does not have."""
    return hf.AutoModelForImageClassification.from_pretrained(folder).state_dict()


def pickled(path: Path, arrays: dict[str, np.ndarray], how: str) -> None:
    """Write arrays as a training script does."""
    tensors = {key: torch.tensor(value) for key, value in arrays.items()}
    other = {key: 0.9 * value for key, value in tensors.items()}
    wrapped = {
        "bare": tensors,
        "old": tensors,
        "model": {"model": tensors, "epoch": 3},
        "script": {"model": tensors, "model_ema": other, "optimizer": {"state": {}},
                   "args": argparse.Namespace(model="vit_x", lr=0.1)},
        "timm": {"state_dict": tensors, "arch": "vit_x", "state_dict_ema": other},
        "ema": {"model_ema": tensors},
        "module": {"model": {f"module.{key}": value for key, value in tensors.items()}},
        "lightning": {"state_dict": {f"model.{key}": value for key, value in tensors.items()}},
        "bfloat16": {key: value.to(torch.bfloat16) for key, value in tensors.items()},
        "float16": {key: value.half() for key, value in tensors.items()},
        "double": {key: value.double() for key, value in tensors.items()},
        "float8": {key: value.to(torch.float8_e4m3fn) for key, value in tensors.items()},
        "averaged": {"n_averaged": torch.tensor(3),
                     **{f"module.{key}": value for key, value in tensors.items()}},
        "nothing": {"model": {}},
        "list": [1, 2],
        "nested": {"model": {"a": {"b": tensors}}},
        "number": 3,
    }[how]  # fmt: skip
    torch.save(wrapped, path, _use_new_zipfile_serialization=how != "old")


def cross_entropy_gradient(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Of the mean over the batch."""
    logits = torch.tensor(logits, requires_grad=True)
    F.cross_entropy(logits, torch.tensor(labels)).backward()
    return logits.grad.numpy()
