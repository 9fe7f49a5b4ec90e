"""`deit` as the ViT of the `transformers` library: an oracle that nobody here has written.

Attention is "sdpa": the "eager" one takes its softmax in float32, in a float64 model too. The two
are the same equation. Only `pool="cls"`: that library's classifier knows no other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
from transformers import ViTConfig, ViTForImageClassification

from tests.torch_models import vit

# Our names -> theirs (of transformers 5); of a name that starts like several the first counts.
_NAMES = (
    (r"^patch_embed\.", "vit.embeddings.patch_embeddings.projection."),
    (r"^cls_token$", "vit.embeddings.cls_token"),
    (r"^pos_embed$", "vit.embeddings.position_embeddings"),
    (r"^norm\.", "vit.layernorm."),
    (r"^head\.", "classifier."),
    (r"^blocks\.(\d+)\.norm1\.", r"vit.layers.\1.layernorm_before."),
    (r"^blocks\.(\d+)\.norm2\.", r"vit.layers.\1.layernorm_after."),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"vit.layers.\1.attention.o_proj."),
    (r"^blocks\.(\d+)\.attn\.qkv\.", r"vit.layers.\1.attention.qkv."),
    (r"^blocks\.(\d+)\.mlp\.", r"vit.layers.\1.mlp."),
)


def _their_names(name: str) -> list[str]:
    """One name, or for qkv three: theirs are separate matrices."""
    for pattern, replacement in _NAMES:
        renamed, count = re.subn(pattern, replacement, name)
        if count:
            parts = "qkv" if ".qkv." in renamed else ""
            return [renamed.replace(".qkv.", f".{part}_proj.") for part in parts] or [renamed]
    raise ValueError(f"{name}: not a parameter of deit")


def build(config: vit.Config, flat: Mapping[str, np.ndarray]) -> ViTForImageClassification:
    """`transformers`' ViT with the deit parameters `flat` (dotted name -> array)."""
    if config["pool"] != "cls" or config["block"] != "real":
        raise ValueError(f"found pool={config['pool']!r} and block={config['block']!r},"
                         " expected 'cls' and 'real'")  # fmt: skip
    module = ViTForImageClassification(
        ViTConfig(
            image_size=vit._image_size(config),
            patch_size=config["patch_size"],
            num_channels=config["channels"],
            hidden_size=config["dim"],
            num_hidden_layers=config["depth"],
            num_attention_heads=config["heads"],
            intermediate_size=config["dim"] * config["mlp_ratio"],
            layer_norm_eps=config["norm_eps"],
            num_labels=config["num_classes"],
            hidden_act="gelu",
            attn_implementation="sdpa",
        )
    ).eval()
    theirs = {}
    for name, value in flat.items():
        names = _their_names(name)
        theirs.update(zip(names, np.split(value, len(names))))
    vit.fill(module, theirs)
    return module


def run(
    config: vit.Config, flat: Mapping[str, np.ndarray], images: np.ndarray, dlogits: np.ndarray
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Logits, gradient of the images, and under our names those of the parameters."""
    module = build(config, flat)
    # it interpolates from square grids only
    other_size = images.shape[2:] != vit._image_size(config)
    logits, dimages = vit.forward_backward(
        lambda x: module(x, interpolate_pos_encoding=other_size).logits, images, dlogits
    )
    theirs = vit.gradients(module)
    grads = {name: np.concatenate([theirs[part] for part in _their_names(name)]) for name in flat}
    return logits, dimages, grads
