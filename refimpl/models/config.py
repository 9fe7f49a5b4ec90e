"""Configuration of a network: every field of [SPEC 6.5] and the readings of [SPEC 9].

`react_*` and `didb_*` are two configurations of one binary block; `deit_*` and `swin_*` have real
blocks. A configuration with windows is a Swin: `depth` is then a list, one number a stage.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import numbers
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from refimpl.conventions import ConfigError, did_you_mean
from refimpl.models.stage import Stage
from refimpl.ops.bands import CLS, MODES
from refimpl.ops.binary_linear import STAGES
from refimpl.ops.boolean_attention import CONTEXTS
from refimpl.ops.neighbours import BORDERS
from refimpl.ops.sign import STES

# Fields of [SPEC 6.8], for the networks of others, and what they are elsewhere.
IMPORTED = {
    "last_norm": "tokens", "position": "usual", "distillation": "none",
    "norm": "layer", "box": "none", "qkv_bias": True, "merge_eps": None,
}  # fmt: skip
BOXES = {"none": (), "3": (3,), "5": (5,), "3+5": (3, 5)}  # box -> sides of its means
# A slip of a digit, or a hostile file, is told at once instead of filling the memory.
MOST_BLOCKS = 1000
MOST_LABELS = 255  # of a segmenter: a pixel's class is a byte, 255 is none
LARGEST = 10**6  # of any whole number; of depth see above


def _choice(default: str, *choices: str) -> Any:
    """A field of the binary block with a closed list of values."""
    return field(default=default, metadata={"choices": choices or (default,), "binary": True})


@dataclass(frozen=True)
class Config:
    """Describe one network [SPEC 6.5, 9]. Invalid values and contradictions raise ConfigError.

    >>> config = Config(28, 4, 1, dim=64, depth=4, heads=2, mlp_ratio=4, num_classes=10)
    >>> config.image_size, config.replace(similarity="haar").similarity
    ((28, 28), 'haar')
    >>> config.replace(patch_size=5)
    Traceback (most recent call last):
        ...
    refimpl.conventions.ConfigError: config: image_size has a side of 28; expected a multiple of \
patch_size 5
    """

    image_size: tuple[int, int]  # (H, W); an int means a square
    patch_size: int
    channels: int  # of the image
    dim: int  # C, of stage 0
    depth: int | tuple[int, ...]  # blocks; with windows those of each stage
    heads: int  # of stage 0
    mlp_ratio: float  # r; of binary blocks a whole number
    num_classes: int
    norm_eps: float = 1e-5
    merge_eps: float | None = None  # with windows: of embed_norm and of merges; None: norm_eps
    window: int = 0  # side of a window; 0: attention over all tokens
    block: str = field(default="binary", metadata={"choices": ("binary", "real")})
    # "patches": the mean, without the class token, which is there all the same
    pool: str = field(default="cls", metadata={"choices": ("cls", "mean", "patches")})
    # "pooled": the last norm stands behind the pooling, timm's fc_norm
    last_norm: str = field(default="tokens", metadata={"choices": ("tokens", "pooled")})
    # "patches": the position embedding has no entry of tokens in front; with windows there is one
    position: str = field(default="usual", metadata={"choices": ("usual", "patches")})
    # a token behind the class token, and with "head" a head of its own
    distillation: str = field(default="none", metadata={"choices": ("none", "token", "head")})
    decoder: str = field(default="none", metadata={"choices": ("none", "linear", "fpn")})
    binarize: str = _choice("full", *STAGES, "weights")
    ste: str = _choice("polynomial", *STES)
    layer_scale: bool = False
    qkv_bias: bool = field(default=True, metadata={"real": True})
    norm: str = _choice("layer", "layer", "batch")
    box: str = _choice("none", *BOXES)
    alpha_scope: str = _choice("layer", "layer", "head")
    similarity: str = _choice("plain", "plain", "haar")
    attention: str = _choice("plain", "plain", "differential")
    rprelu: str = _choice("channel", "channel", "token")
    context: str = _choice("sum", *CONTEXTS)
    neighbours: str = _choice("existing", *BORDERS, "none")
    haar_mode: str = _choice("edge", *MODES)
    haar_cls: str = _choice("both", *CLS)
    band_weights: str = _choice("learned", "learned", "fixed")

    def __post_init__(self) -> None:
        size = self.image_size
        size = tuple(size) if isinstance(size, (list, tuple)) else (size, size)
        _require(len(size) == 2, f"image_size is {size}", "(height, width)")
        size = tuple(_positive_integer("image_size", side) for side in size)
        object.__setattr__(self, "image_size", size)
        for name in ("patch_size", "channels", "dim", "heads", "num_classes"):
            object.__setattr__(self, name, _positive_integer(name, getattr(self, name)))
        for side in size:
            expected = f"a multiple of patch_size {self.patch_size}"
            _require(side % self.patch_size == 0, f"image_size has a side of {side}", expected)
        is_multiple = self.dim % self.heads == 0
        _require(is_multiple, f"dim is {self.dim}", f"a multiple of heads {self.heads}")
        object.__setattr__(self, "norm_eps", _fraction("norm_eps", self.norm_eps))
        if self.merge_eps is not None:
            object.__setattr__(self, "merge_eps", _fraction("merge_eps", self.merge_eps))
        for name in ("layer_scale", "qkv_bias"):
            value = getattr(self, name)
            _require(isinstance(value, bool), f"{name} is {value!r}", "true or false")
        self._check_choices()
        fits = self.task == "classification" or self.num_classes <= MOST_LABELS
        expected = f"at most {MOST_LABELS} in a segmenter"
        _require(fits, f"num_classes is {self.num_classes}", expected)
        self._check_ratio()
        self._check_windows()
        self._check_tokens()

    def _check_choices(self) -> None:
        for f in dataclasses.fields(self):
            value, choices = getattr(self, f.name), f.metadata.get("choices")
            if choices:
                is_one = isinstance(value, str) and value in choices
                wanted = ", ".join(map(repr, choices))
                _require(is_one, f"{f.name} is {value!r}", f"one of {wanted}")
            other = "real" if self.block == "binary" else "binary"
            _require(
                value == f.default or not f.metadata.get(other),
                f"{f.name} is {value!r}, but {self.block} blocks have no such choice",
                f"it left at {f.default!r}",
            )

    def _check_ratio(self) -> None:
        """A real MLP may have any number of hidden channels, and so any ratio that gives one."""
        ratio = self.mlp_ratio
        if self.block == "real" and isinstance(ratio, float) and ratio.is_integer():
            ratio = int(ratio)
        if self.block == "binary" or not isinstance(ratio, float):
            object.__setattr__(self, "mlp_ratio", _positive_integer("mlp_ratio", ratio))
        else:
            gives_one = 0 < ratio <= LARGEST and hidden_channels(ratio, self.dim) > 0
            expected = f"a number that gives {self.dim} channels at least 1 hidden one"
            _require(gives_one, f"mlp_ratio is {ratio!r}", expected)

    def _check_tokens(self) -> None:
        """What belongs to a class token, or to a head, needs one."""
        needs = (
            ("distillation", "none", "pool", "cls"),
            ("distillation", "none", "decoder", "none"),
            ("last_norm", "tokens", "decoder", "none"),
            ("last_norm", "tokens", "distillation", "none"),
            ("similarity", "plain", "distillation", "none"),
            ("attention", "plain", "distillation", "none"),
            ("box", "none", "pool", "mean"),
        )
        for name, default, other, expected in needs:
            value, found = getattr(self, name), getattr(self, other)
            _require(
                value == default or found == expected,
                f"{other} is {found!r}",
                f"{expected!r}, since {name} is {value!r}",
            )

    def _check_windows(self) -> None:
        window, depth = self.window, self.depth
        if window != 0 or isinstance(window, bool):  # 0 is no window
            object.__setattr__(self, "window", _positive_integer("window", window))
        if not self.window:
            found = f"merge_eps is {self.merge_eps}"
            _require(self.merge_eps is None, found, "null, since window is 0")
            object.__setattr__(self, "depth", _positive_integer("depth", depth, math.inf))
            self._check_blocks()
            found = "decoder is 'fpn', which reads stages, but window is 0"
            expected = "'none' or 'linear', or a network with windows"
            _require(self.decoder != "fpn", found, expected)
            return
        is_list = isinstance(depth, (list, tuple)) and len(depth) > 0
        expected = f"a list with a number a stage, since window is {window}"
        _require(is_list, f"depth is {depth!r}", expected)
        depths = tuple(_positive_integer("depth", d, math.inf) for d in depth)
        object.__setattr__(self, "depth", depths)
        self._check_blocks()
        since = f"'mean', since window is {window}"
        _require(self.pool == "mean", f"pool is {self.pool!r}", since)
        self._check_grids()

    def _check_blocks(self) -> None:
        is_small = self.num_blocks <= MOST_BLOCKS
        _require(is_small, f"depth is {self.depth}", f"at most {MOST_BLOCKS:,} blocks")

    def _check_grids(self) -> None:
        last = len(self.depths) - 1
        for s, stage in enumerate(self.stages):
            (gh, gw), M = stage.grid, stage.window
            found = f"stage {s} has a grid of {gh} x {gw}"
            _require(gh % M == gw % M == 0, found, f"multiples of its window {M}")
            is_even = gh % 2 == gw % 2 == 0
            _require(s == last or is_even, found, "even sides, which patch merging halves")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the patch grid, (gh, gw); that of stage 0."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def tokens(self) -> int:
        """N: the patches, and what is in front of them; of stage 0."""
        return self.grid[0] * self.grid[1] + self.num_prefix_tokens

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens in front of the patches: 1, the class token, 2 with a distillation token."""
        return int(self.pool != "mean") + int(self.distillation != "none")

    @property
    def has_signs(self) -> bool:
        """Whether activations are binary: signs of them, and boolean attention."""
        return self.block == "binary" and self.binarize in ("full", "activations")

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
        """d, channels a head, in every stage."""
        return self.dim // self.heads

    @property
    def depths(self) -> tuple[int, ...]:
        """Blocks of each stage; without windows there is one stage."""
        return self.depth if self.window else (self.depth,)

    @property
    def num_blocks(self) -> int:
        """Blocks of all stages."""
        return sum(self.depths)

    @property
    def stages(self) -> Iterator[Stage]:
        """Every stage, as its first block, which has no shift, sees it."""
        (gh, gw), first = self.grid, self.num_prefix_tokens
        for s in range(len(self.depths)):
            window = min(self.window, gh, gw)
            yield Stage((gh, gw), first, 2**s * self.dim, 2**s * self.heads, window, shift=0)
            gh, gw = gh // 2, gw // 2

    @property
    def last_stage(self) -> Stage:
        """The stage whose tokens the head sees."""
        *_, last = self.stages
        return last

    @property
    def decoded_stage(self) -> Stage:
        """The stage on whose grid a decoder has tokens: all meet on the first one's with "fpn"."""
        return next(self.stages) if self.decoder == "fpn" else self.last_stage

    def stage_of(self, block: int) -> Stage:
        """Give the stage of a block, counted through the whole network, with the block's shift."""
        s, block = self.place_of(block)
        stage = list(self.stages)[s]
        shifted = block % 2 == 1 and min(stage.grid) > stage.window > 0
        return stage._replace(shift=stage.window // 2 * shifted)

    def place_of(self, block: int) -> tuple[int, int]:
        """Say which stage a block is in, and which block of it."""
        s = 0
        while block >= self.depths[s]:
            block -= self.depths[s]
            s += 1
        return s, block

    @property
    def merges(self) -> dict[int, int]:
        """Block -> the patch merging in front of it: that of the stage before."""
        starts = itertools.accumulate(self.depths[:-1])
        return {block: s for s, block in enumerate(starts)}

    @property
    def bands(self) -> tuple[str, ...]:
        """Suffixes of the query and key projections, low before high."""
        return ("_low", "_high") if self.similarity == "haar" else ("",)

    @property
    def attention_inputs(self) -> tuple[str, ...]:
        """Names t of the projections that feed attention, in order of computation."""
        return (*(f"{t}{band}" for band in self.bands for t in "qk"), "v")

    def replace(self, **fields: Any) -> Config:
        """Give a copy with other values in some fields."""
        return Config.from_json({**self.to_json(), **fields})

    def with_depths(self, depths: Sequence[int]) -> Config:
        """Give a copy with other numbers of blocks, one a stage."""
        return self.replace(depth=list(depths) if self.window else depths[0])

    def to_json(self) -> dict[str, Any]:
        """Give plain JSON values; `Config.from_json` takes them back.

        Fields of [SPEC 6.8] are named where they are used: all other networks are said as before.
        """
        depth = list(self.depth) if self.window else self.depth
        left_out = {name for name, usual in IMPORTED.items() if getattr(self, name) == usual}
        named = {k: v for k, v in dataclasses.asdict(self).items() if k not in left_out}
        return {**named, "image_size": list(self.image_size), "depth": depth}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Config:
        """Make one from a dict of fields; unknown and missing ones raise ConfigError."""
        if not isinstance(fields, dict):
            raise ConfigError(f"config: found {type(fields).__name__}; expected an object")
        known = {f.name: f for f in dataclasses.fields(cls)}
        if unknown := sorted(set(fields) - set(known)):
            raise ConfigError(
                f"config: unknown field {unknown[0]!r}; expected one of {', '.join(known)}"
                f"{did_you_mean(unknown[0], known)}"
            )
        required = [name for name, f in known.items() if f.default is dataclasses.MISSING]
        if missing := [name for name in required if name not in fields]:
            raise ConfigError(f"config: field {missing[0]!r} is missing")
        return cls(**fields)


def _require(holds: bool, found: str, expected: str) -> None:
    if not holds:
        raise ConfigError(f"config: {found}; expected {expected}")


def _positive_integer(name: str, value: object, most: float = LARGEST) -> int:
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"config: {name} is {value!r}; expected a whole number of at least 1")
    if value > most:
        raise ConfigError(f"config: {name} is {value}; expected at most {most:,}")
    return int(value)  # NumPy's integers have no place in JSON


def hidden_channels(ratio: float, dim: int) -> int:
    """Give the hidden channels of an MLP on `dim` channels: ratio * dim, rounded down [SPEC 6.5].

    A product that is a whole number but for its own rounding is that number.

    >>> hidden_channels(4, 96), hidden_channels(3.3, 96), hidden_channels(2.3, 100)
    (384, 316, 230)
    """
    product = ratio * dim
    is_whole = abs(product - round(product)) <= 1e-9 * product
    return round(product) if is_whole else math.floor(product)


def _fraction(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 < value < 1:
        raise ConfigError(f"config: {name} is {value!r}; expected a number between 0 and 1")
    return float(value)
