"""`swin` as that of the `transformers` library: an oracle that nobody here has written."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
from transformers import SwinConfig, SwinForImageClassification

from tests.torch_models import transformers_common as common
from tests.torch_models import vit

# Our names -> theirs (of transformers 5), below a block; s and b are its stage and place there.
_BLOCK = (
    (r"^norm1\.", "layernorm_before."),
    (r"^norm2\.", "layernorm_after."),
    (r"^attn\.position_bias$", "attention.relative_position_bias.relative_position_bias_table"),
    (r"^attn\.proj\.", "attention.o_proj."),
    (r"^attn\.qkv\.", "attention.qkv."),
    (r"^mlp\.", "mlp."),
)
_SHELL = (
    (r"^patch_embed\.", "swin.embeddings.patch_embeddings.projection."),
    (r"^embed_norm\.", "swin.embeddings.norm."),
    (r"^norm\.", "swin.layernorm."),
    (r"^head\.", "classifier."),
    (r"^merges\.(\d+)\.norm\.", r"swin.encoder.layers.\1.downsample.norm."),
    (r"^merges\.(\d+)\.proj\.", r"swin.encoder.layers.\1.downsample.reduction."),
)


def _their_names(config: vit.Config, name: str) -> list[str]:
    if not name.startswith("blocks."):
        return common.renamed(name, _SHELL)
    _, number, name = name.split(".", 2)
    s, place = 0, int(number)
    while place >= config["depth"][s]:
        place -= config["depth"][s]
        s += 1
    names = common.renamed(name, _BLOCK)
    return [f"swin.encoder.layers.{s}.blocks.{place}.{theirs}" for theirs in names]


def build(config: vit.Config, flat: Mapping[str, np.ndarray]) -> SwinForImageClassification:
    """`transformers`' Swin with the parameters `flat` (dotted name -> array).

    Its windows are of one size in all stages, and two of its norms have no eps of their own.
    """
    if config["norm_eps"] != 1e-5 or config["block"] != "real":
        raise ValueError(f"found norm_eps={config['norm_eps']} and block={config['block']!r},"
                         " expected 1e-5 and 'real'")  # fmt: skip
    theirs = SwinConfig(
        **common.fields(config),
        embed_dim=config["dim"],
        depths=list(config["depth"]),
        num_heads=[config["heads"] * 2**s for s in range(len(config["depth"]))],
        window_size=config["window"],
        mlp_ratio=config["mlp_ratio"],
    )
    module = SwinForImageClassification(theirs).eval()
    common.fill(module, flat, partial(_their_names, config))
    return module


def run(
    config: vit.Config, flat: Mapping[str, np.ndarray], images: np.ndarray, dlogits: np.ndarray
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Logits, gradient of the images, and under our names those of the parameters."""
    names = partial(_their_names, config)
    return common.run(build(config, flat), names, list(flat), images, dlogits)
