"""Small checkpoints as timm writes them, for the tests of what reads them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from refimpl.models import flatten
from tests import networks

HERE = Path(__file__).parent / "checkpoints"
GIVEN = Path(os.environ.get("REFIMPL_CHECKPOINTS", HERE))
# Folders of checkpoints with numbers of their own code, see the README.md in HERE
FOLDERS = sorted(path for path in {*HERE.iterdir(), *GIVEN.iterdir()} if path.is_dir())

# How images are made ready, as timm says it
DATA = {"mean": [0.5] * 3, "std": [0.25] * 3, "crop_pct": 0.875, "interpolation": "bicubic"}


def timm(
    seed: int = 0, **fields: Any
) -> tuple[networks.Network, dict[str, np.ndarray], dict[str, Any]]:
    """Our network, a checkpoint of timm's that holds the same, and its configuration."""
    net = networks.make(
        networks.small(**{"block": "real", "norm_eps": 1e-6, "image_size": (4, 4), **fields}),
        seed, np.float32,
    )  # fmt: skip
    config, last = net.model.config, "norm" if net.model.config.last_norm == "tokens" else "fc_norm"
    arrays = {}
    for path, value in flatten(net.params).items():
        key = path
        if path.startswith("patch_embed."):
            key = path.replace("patch_embed.", "patch_embed.proj.")
        elif path.startswith("norm."):
            key = path.replace("norm", last, 1)
        arrays[key] = np.array(value)
    pool = "token" if config.pool == "cls" else "avg"
    return net, arrays, {"num_heads": config.heads, "global_pool": pool}


def write(
    folder: Path, arrays: Mapping[str, np.ndarray], config: Mapping[str, Any] | None = None
) -> Path:
    """A folder of a checkpoint, with its configuration where there is one."""
    folder.mkdir(exist_ok=True)
    save_file(dict(arrays), folder / "model.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder
