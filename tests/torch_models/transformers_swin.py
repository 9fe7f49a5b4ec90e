"""`swin` as that of the `transformers` library: an oracle that nobody here has written."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
from transformers import SwinConfig, SwinForImageClassification

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


def _their_names(name: str, config: vit.Config) -> list[str]:
    """One name, or for qkv three: theirs are separate matrices."""
    rules, prefix = _SHELL, ""
    if name.startswith("blocks."):
        _, number, name = name.split(".", 2)
        s, place = 0, int(number)
        while place >= config["depth"][s]:
            place -= config["depth"][s]
            s += 1
        rules, prefix = _BLOCK, f"swin.encoder.layers.{s}.blocks.{place}."
    for pattern, replacement in rules:
        renamed, count = re.subn(pattern, replacement, name)
        if count:
            parts = "qkv" if ".qkv." in renamed else ""
            names = [renamed.replace(".qkv.", f".{part}_proj.") for part in parts] or [renamed]
            return [prefix + one for one in names]
    raise ValueError(f"{name}: not a parameter of swin")


def build(config: vit.Config, flat: Mapping[str, np.ndarray]) -> SwinForImageClassification:
    """`transformers`' Swin with the parameters `flat` (dotted name -> array).

    Its windows are of one size in all stages, and two of its norms have no eps of their own.
    """
    if config["norm_eps"] != 1e-5 or config["block"] != "real":
        raise ValueError(f"found norm_eps={config['norm_eps']} and block={config['block']!r},"
                         " expected 1e-5 and 'real'")  # fmt: skip
    module = SwinForImageClassification(
        SwinConfig(
            image_size=vit._image_size(config),
            patch_size=config["patch_size"],
            num_channels=config["channels"],
            embed_dim=config["dim"],
            depths=list(config["depth"]),
            num_heads=[config["heads"] * 2**s for s in range(len(config["depth"]))],
            window_size=config["window"],
            mlp_ratio=config["mlp_ratio"],
            layer_norm_eps=config["norm_eps"],
            num_labels=config["num_classes"],
            hidden_act="gelu",
            attn_implementation="sdpa",
        )
    ).eval()
    theirs = {}
    for name, value in flat.items():
        names = _their_names(name, config)
        theirs.update(zip(names, np.split(value, len(names))))
    vit.fill(module, theirs)
    return module


def run(
    config: vit.Config, flat: Mapping[str, np.ndarray], images: np.ndarray, dlogits: np.ndarray
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Logits, gradient of the images, and under our names those of the parameters."""
    module = build(config, flat)
    logits, dimages = vit.forward_backward(lambda x: module(x).logits, images, dlogits)
    theirs = vit.gradients(module)
    grads = {
        name: np.concatenate([theirs[part] for part in _their_names(name, config)]) for name in flat
    }
    return logits, dimages, grads
