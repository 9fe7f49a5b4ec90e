"""`deit` as the ViT of the `transformers` library: an oracle that nobody here has written.

Only `pool="cls"`: that library's classifier knows no other.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from transformers import ViTConfig, ViTForImageClassification

from tests.torch_models import transformers_common as common
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
    return common.renamed(name, _NAMES)


def build(config: vit.Config, flat: Mapping[str, np.ndarray]) -> ViTForImageClassification:
    """`transformers`' ViT with the deit parameters `flat` (dotted name -> array)."""
    if config["pool"] != "cls" or config["block"] != "real":
        raise ValueError(f"found pool={config['pool']!r} and block={config['block']!r},"
                         " expected 'cls' and 'real'")  # fmt: skip
    theirs = ViTConfig(
        **common.fields(config),
        hidden_size=config["dim"],
        num_hidden_layers=config["depth"],
        num_attention_heads=config["heads"],
        intermediate_size=config["dim"] * config["mlp_ratio"],
    )
    module = ViTForImageClassification(theirs).eval()
    common.fill(module, flat, _their_names)
    return module


def run(
    config: vit.Config, flat: Mapping[str, np.ndarray], images: np.ndarray, dlogits: np.ndarray
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Logits, gradient of the images, and under our names those of the parameters."""
    # it interpolates from square grids only
    other_size = images.shape[2:] != vit._image_size(config)
    options = {"interpolate_pos_encoding": other_size}
    return common.run(build(config, flat), _their_names, list(flat), images, dlogits, **options)
