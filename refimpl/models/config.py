"""Configuration of a network: every field of [SPEC 6.5] and the readings of [SPEC 9].

`react_*` and `didb_*` are two configurations of one binary block; `deit_*` has real blocks.
"""

from __future__ import annotations

import dataclasses
import numbers
from dataclasses import dataclass, field
from typing import Any

from refimpl.conventions import ConfigError
from refimpl.ops.bands import CLS, MODES
from refimpl.ops.binary_linear import STAGES
from refimpl.ops.neighbours import BORDERS
from refimpl.ops.sign import STES


def _choice(default: str, *choices: str) -> Any:
    """A field of the binary block with a closed list of values."""
    return field(default=default, metadata={"choices": choices or (default,), "binary": True})


@dataclass(frozen=True)
class Config:
    """One network. Invalid values and contradictions raise ConfigError."""

    image_size: tuple[int, int]  # (H, W); an int means a square
    patch_size: int
    channels: int  # of the image
    dim: int  # C
    depth: int
    heads: int
    mlp_ratio: int  # r
    num_classes: int
    norm_eps: float = 1e-5
    block: str = field(default="binary", metadata={"choices": ("binary", "real")})
    pool: str = field(default="cls", metadata={"choices": ("cls", "mean")})
    decoder: str = field(default="none", metadata={"choices": ("none", "linear")})
    binarize: str = _choice("full", *STAGES)
    ste: str = _choice("polynomial", *STES)
    layer_scale: bool = field(default=False, metadata={"binary": True})
    alpha_scope: str = _choice("layer", "layer", "head")
    similarity: str = _choice("plain", "plain", "haar")
    attention: str = _choice("plain", "plain", "differential")
    rprelu: str = _choice("channel", "channel", "token")
    neighbours: str = _choice("existing", *BORDERS)
    haar_mode: str = _choice("edge", *MODES)
    haar_cls: str = _choice("both", *CLS)
    band_weights: str = _choice("learned", "learned", "fixed")

    def __post_init__(self) -> None:
        size = self.image_size
        size = tuple(size) if isinstance(size, (list, tuple)) else (size, size)
        if len(size) != 2:
            raise ConfigError(f"config: image_size is {size}; expected (height, width)")
        size = tuple(_positive_integer("image_size", side) for side in size)
        object.__setattr__(self, "image_size", size)
        for name in ("patch_size", "channels", "dim", "depth", "heads", "mlp_ratio", "num_classes"):
            object.__setattr__(self, name, _positive_integer(name, getattr(self, name)))
        for side in size:
            if side % self.patch_size:
                raise ConfigError(
                    f"config: image_size has a side of {side}; "
                    f"expected a multiple of patch_size {self.patch_size}"
                )
        if self.dim % self.heads:
            raise ConfigError(
                f"config: dim is {self.dim}; expected a multiple of heads {self.heads}"
            )
        object.__setattr__(self, "norm_eps", _fraction("norm_eps", self.norm_eps))
        if not isinstance(self.layer_scale, bool):
            raise ConfigError(
                f"config: layer_scale is {self.layer_scale!r}; expected true or false"
            )
        self._check_choices()

    def _check_choices(self) -> None:
        for f in dataclasses.fields(self):
            value, choices = getattr(self, f.name), f.metadata.get("choices")
            if choices and not (isinstance(value, str) and value in choices):
                wanted = ", ".join(map(repr, choices))
                raise ConfigError(f"config: {f.name} is {value!r}; expected one of {wanted}")
            if self.block == "real" and f.metadata.get("binary") and value != f.default:
                raise ConfigError(
                    f"config: {f.name} is {value!r}, but real blocks have no such choice; "
                    f"expected it left at {f.default!r}"
                )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the patch grid, (gh, gw)."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def tokens(self) -> int:
        """N: the patches, and the class token where pool="cls"."""
        return self.grid[0] * self.grid[1] + self.first_patch

    @property
    def first_patch(self) -> int:
        """Index of the first patch token: 1 behind a class token, else 0."""
        return int(self.pool == "cls")

    @property
    def task(self) -> str:
        """ "classification", or "segmentation" where there is a decoder."""
        return "classification" if self.decoder == "none" else "segmentation"

    @property
    def logits_shape(self) -> tuple[int, ...]:
        """Of one image: (classes,), or with a decoder (classes, H, W)."""
        size = self.image_size if self.task == "segmentation" else ()
        return (self.num_classes, *size)

    @property
    def head_dim(self) -> int:
        """d, channels a head."""
        return self.dim // self.heads

    @property
    def bands(self) -> tuple[str, ...]:
        """Suffixes of the query and key projections, low before high."""
        return ("_low", "_high") if self.similarity == "haar" else ("",)

    @property
    def attention_inputs(self) -> tuple[str, ...]:
        """Names t of the projections that feed attention, in order of computation."""
        return (*(f"{t}{band}" for band in self.bands for t in "qk"), "v")

    def replace(self, **fields: Any) -> Config:
        """A copy with other values in some fields."""
        return Config.from_json({**self.to_json(), **fields})

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `Config.from_json` takes them back."""
        return {**dataclasses.asdict(self), "image_size": list(self.image_size)}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Config:
        """From a dict of fields; unknown and missing ones raise ConfigError."""
        if not isinstance(fields, dict):
            raise ConfigError(f"config: found {type(fields).__name__}; expected an object")
        known = {f.name: f for f in dataclasses.fields(cls)}
        if unknown := sorted(set(fields) - set(known)):
            raise ConfigError(
                f"config: unknown field {unknown[0]!r}; expected one of {', '.join(known)}"
            )
        required = [name for name, f in known.items() if f.default is dataclasses.MISSING]
        if missing := [name for name in required if name not in fields]:
            raise ConfigError(f"config: field {missing[0]!r} is missing")
        return cls(**fields)


def _positive_integer(name: str, value: object) -> int:
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"config: {name} is {value!r}; expected a whole number of at least 1")
    return int(value)  # NumPy's integers have no place in JSON


def _fraction(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 < value < 1:
        raise ConfigError(f"config: {name} is {value!r}; expected a number between 0 and 1")
    return float(value)


_FAMILIES: dict[str, dict[str, Any]] = {
    "didb": {"similarity": "haar", "attention": "differential", "rprelu": "token"},
    "react": {},
    "deit": {"block": "real", "norm_eps": 1e-6},
}
_SIZES: dict[str, dict[str, int]] = {
    size: dict(
        zip(
            ("image_size", "channels", "patch_size", "dim", "depth", "heads", "num_classes"),
            row,
            strict=True,
        ),
        mlp_ratio=4,
    )
    for size, row in {
        "micro": (28, 1, 4, 64, 4, 2, 10),
        "cifar": (32, 3, 4, 128, 4, 2, 10),
        "tiny": (224, 3, 16, 192, 12, 3, 1000),
        "small": (224, 3, 16, 384, 12, 6, 1000),
        "base": (224, 3, 16, 768, 12, 12, 1000),
    }.items()
}
CLASSIFIERS = tuple(f"{family}_{size}" for family in _FAMILIES for size in _SIZES)
_SEGMENTER = "segmenter_"
_SEGMENTED: dict[str, dict[str, Any]] = {  # size -> what other images bring with them [SPEC 10]
    "micro": {"image_size": 56, "num_classes": 11},
    **{size: {"image_size": 512, "num_classes": 150} for size in ("tiny", "small", "base")},
}
NAMES = (
    *CLASSIFIERS,
    *(f"{_SEGMENTER}{family}_{size}" for family in _FAMILIES for size in _SEGMENTED),
)


def named(name: str, **overrides: Any) -> Config:
    """The configuration of an architecture of [SPEC 6.5, 10], some of its fields overridden."""
    if name not in NAMES:
        raise ConfigError(f"unknown architecture {name!r}; expected one of {', '.join(NAMES)}")
    family, size = name.removeprefix(_SEGMENTER).split("_")
    fields = {**_SIZES[size], **_FAMILIES[family]}
    if name.startswith(_SEGMENTER):
        fields |= {**_SEGMENTED[size], "decoder": "linear"}
    return Config.from_json({**fields, **overrides})
