"""The named architectures of [SPEC 6.5, 10], one line each."""

from __future__ import annotations

from typing import Any

from refimpl.conventions import ConfigError, did_you_mean
from refimpl.models.config import Config

_DIDB = {"similarity": "haar", "attention": "differential", "rprelu": "token"}
_DEIT = {"block": "real", "norm_eps": 1e-6}
_SWIN = {"block": "real"}


def _plain(size: int, channels: int, patch: int, dim: int, heads: int, classes: int, depth: int):
    return {"image_size": size, "channels": channels, "patch_size": patch, "dim": dim,
            "heads": heads, "num_classes": classes, "depth": depth, "mlp_ratio": 4}  # fmt: skip


_MICRO = _plain(28, 1, 4, 64, 2, 10, depth=4)
_CIFAR = _plain(32, 3, 4, 128, 2, 10, depth=4)
_CIFAR_MEAN = {**_CIFAR, "pool": "mean"}
_CIFAR_WIDE = {**_CIFAR_MEAN, "dim": 192, "heads": 3}
_TINY = _plain(224, 3, 16, 192, 3, 1000, depth=12)
_SMALL = _plain(224, 3, 16, 384, 6, 1000, depth=12)
_BASE = _plain(224, 3, 16, 768, 12, 1000, depth=12)
_WINDOWS = {"window": 7, "pool": "mean"}
_SWIN_MICRO = {**_plain(28, 1, 2, 32, 2, 10, depth=(2, 2)), **_WINDOWS}
_SWIN_TINY = {**_plain(224, 3, 4, 96, 3, 1000, depth=(2, 2, 6, 2)), **_WINDOWS}

CLASSIFIERS: dict[str, dict[str, Any]] = {
    "didb_micro": {**_MICRO, **_DIDB},
    "didb_cifar": {**_CIFAR, **_DIDB},
    "didb_cifar_mean": {**_CIFAR_MEAN, **_DIDB},
    "didb_cifar_wide": {**_CIFAR_WIDE, **_DIDB},
    "didb_tiny": {**_TINY, **_DIDB},
    "didb_small": {**_SMALL, **_DIDB},
    "didb_base": {**_BASE, **_DIDB},
    "react_micro": _MICRO,
    "react_cifar": _CIFAR,
    "react_cifar_mean": _CIFAR_MEAN,
    "react_cifar_wide": _CIFAR_WIDE,
    "react_tiny": _TINY,
    "react_small": _SMALL,
    "react_base": _BASE,
    "deit_micro": {**_MICRO, **_DEIT},
    "deit_cifar": {**_CIFAR, **_DEIT},
    "deit_cifar_mean": {**_CIFAR_MEAN, **_DEIT},
    "deit_cifar_wide": {**_CIFAR_WIDE, **_DEIT},
    "deit_tiny": {**_TINY, **_DEIT},
    "deit_small": {**_SMALL, **_DEIT},
    "deit_base": {**_BASE, **_DEIT},
    "didb_swin_micro": {**_SWIN_MICRO, **_DIDB},
    "didb_swin_tiny": {**_SWIN_TINY, **_DIDB},
    "react_swin_micro": _SWIN_MICRO,
    "react_swin_tiny": _SWIN_TINY,
    "swin_micro": {**_SWIN_MICRO, **_SWIN},
    "swin_tiny": {**_SWIN_TINY, **_SWIN},
}
_SCENES = {"image_size": 56, "num_classes": 11}
_ADE20K = {"image_size": 512, "num_classes": 150}
_ADE20K_SWIN = {"image_size": 448, "num_classes": 150}  # windows of 7 do not divide 512's grids


def _segmenter(name: str, decoder: str, images: dict[str, int]) -> dict[str, Any]:
    return {**CLASSIFIERS[name], **images, "decoder": decoder}


SEGMENTERS: dict[str, dict[str, Any]] = {
    "segmenter_didb_micro": _segmenter("didb_micro", "linear", _SCENES),
    "segmenter_didb_tiny": _segmenter("didb_tiny", "linear", _ADE20K),
    "segmenter_didb_small": _segmenter("didb_small", "linear", _ADE20K),
    "segmenter_didb_base": _segmenter("didb_base", "linear", _ADE20K),
    "segmenter_react_micro": _segmenter("react_micro", "linear", _SCENES),
    "segmenter_react_tiny": _segmenter("react_tiny", "linear", _ADE20K),
    "segmenter_react_small": _segmenter("react_small", "linear", _ADE20K),
    "segmenter_react_base": _segmenter("react_base", "linear", _ADE20K),
    "segmenter_deit_micro": _segmenter("deit_micro", "linear", _SCENES),
    "segmenter_deit_tiny": _segmenter("deit_tiny", "linear", _ADE20K),
    "segmenter_deit_small": _segmenter("deit_small", "linear", _ADE20K),
    "segmenter_deit_base": _segmenter("deit_base", "linear", _ADE20K),
    "segmenter_didb_swin_micro": _segmenter("didb_swin_micro", "fpn", _SCENES),
    "segmenter_didb_swin_tiny": _segmenter("didb_swin_tiny", "fpn", _ADE20K_SWIN),
    "segmenter_react_swin_micro": _segmenter("react_swin_micro", "fpn", _SCENES),
    "segmenter_react_swin_tiny": _segmenter("react_swin_tiny", "fpn", _ADE20K_SWIN),
    "segmenter_swin_micro": _segmenter("swin_micro", "fpn", _SCENES),
    "segmenter_swin_tiny": _segmenter("swin_tiny", "fpn", _ADE20K_SWIN),
}
_NAMED = {**CLASSIFIERS, **SEGMENTERS}
NAMES = tuple(_NAMED)


def named(name: str, /, **overrides: Any) -> Config:
    """Give the configuration of an architecture, some of its fields overridden."""
    if not isinstance(name, str) or name not in _NAMED:
        listing = f"expected one of {', '.join(NAMES)}{did_you_mean(name, NAMES)}"
        raise ConfigError(f"unknown architecture {name!r}; {listing}")
    return Config.from_json({**_NAMED[name], **overrides})
