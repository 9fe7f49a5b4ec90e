"""[SPEC 6.7] `swin`, `react_swin` and `didb_swin`: the blocks of `vit.py` on stages, in windows.

Nothing is rolled or cut here: every token is compared with every other token of the grid, and a
softmax over all of them leaves out what is not in the same window, or not on the same side.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.torch_models import ops, vit


def window_side(config: vit.Config, grid: ops.Grid) -> int:
    """M"""
    return min(config["window"], *grid)


def places(grid: ops.Grid, window: int, shift: int) -> list[tuple[Tensor, Tensor]]:
    """For rows and for columns, (N,) each: the place of a token after the roll, and its side."""
    axes = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    axes = [axis.flatten() for axis in axes]
    return [((axis - shift) % size, axis < shift) for axis, size in zip(axes, grid)]


def order(grid: ops.Grid, window: int, shift: int) -> Tensor:
    """Tokens (N,) window by window, each row by row."""
    (rows, _), (columns, _) = places(grid, window, shift)
    numbers = (rows // window) * (grid[1] // window) + columns // window
    return ((numbers * window + rows % window) * window + columns % window).argsort()


def seen_pairs(grid: ops.Grid, window: int, shift: int) -> tuple[Tensor, Tensor]:
    """For query i and key j, (N, N): whether i sees j; in a window, the row of the table of R."""
    together, seen, offsets = torch.tensor(True), torch.tensor(True), []
    for rolled, side in places(grid, window, shift):
        number = rolled // window
        together = together & (number[:, None] == number)
        seen = seen & (side[:, None] == side)
        offsets.append(rolled[:, None] - rolled + window - 1)
    row = offsets[0] * (2 * window - 1) + offsets[1]
    return seen & together, torch.where(together, row, 0)


class _Windows:
    """Scores with their position bias, and which of them a query sees."""

    def in_windows(self, window: int, heads: int, shifted: bool) -> nn.Module:
        self.window, self.shifted = window, shifted
        self.position_bias = vit._parameter((2 * window - 1) ** 2, heads)
        return self

    def shift(self, grid: ops.Grid) -> int:
        return self.window // 2 if self.shifted and min(grid) > self.window else 0

    def _seen(self, scores: Tensor, grid: ops.Grid) -> tuple[Tensor, Tensor]:
        seen, row = seen_pairs(grid, self.window, self.shift(grid))
        return scores + self.position_bias[row].permute(2, 0, 1), seen


class Attention(_Windows, vit.Attention):
    def _alpha(self, grid: ops.Grid) -> Tensor:
        return self.alpha  # a window has as many keys on any grid


class RealAttention(_Windows, vit.RealAttention):
    pass


class Merge(nn.Module):
    """(B, N, C) -> (B, N / 4, 2C)"""

    def __init__(self, config: vit.Config, dim: int) -> None:
        super().__init__()
        self.norm = vit._norm(config, 4 * dim)
        if config["block"] == "binary":
            self.proj = vit.Projection(config, 4 * dim, 2 * dim)
        else:
            self.proj = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor, grid: ops.Grid) -> Tensor:
        x = self.norm(ops.merge_patches(x, grid))
        if isinstance(self.proj, nn.Linear):
            return self.proj(x)
        return self.proj(x, (grid[0] // 2, grid[1] // 2))


def stage_config(config: vit.Config, s: int) -> dict:
    """A network whose grid, channels and heads are those of stage s."""
    grid = tuple(side // 2**s for side in vit._grid(config))
    sizes = {"dim": config["dim"] * 2**s, "heads": config["heads"] * 2**s}
    return {**config, **sizes, "image_size": grid, "patch_size": 1}


def block(config: vit.Config, place: int) -> vit.Block:
    """The block of that number in the stage of `config`."""
    found = vit.Block(config)
    attention = Attention if config["block"] == "binary" else RealAttention
    window = window_side(config, vit._grid(config))
    found.attn = attention(config).in_windows(window, config["heads"], place % 2 == 1)
    return found


class Level(nn.Module):
    """[SPEC 10] What a stage of `dim` channels brings into a pyramid of `width` channels."""

    def __init__(self, config: vit.Config, dim: int, width: int, last: bool) -> None:
        super().__init__()
        self.norm = nn.Identity() if last else vit._norm(config, dim)
        self.lateral = nn.Linear(dim, width)
        self.smooth = nn.Conv2d(width, width, 3, padding=1)


class Pyramid(nn.ModuleList):
    """[SPEC 10] Tokens of every stage, (B, N_s, C_s), the last ones normalised -> (B, N_0, D)."""

    def __init__(self, config: vit.Config, dims: list[int]) -> None:
        super().__init__(Level(config, dim, config["dim"], dim == dims[-1]) for dim in dims)

    def forward(self, stages: list[tuple[Tensor, ops.Grid]]) -> Tensor:
        levels = [
            level.lateral(level.norm(x)).mT.unflatten(2, grid)
            for level, (x, grid) in zip(self, stages)
        ]
        for s in range(len(levels) - 2, -1, -1):
            levels[s] = levels[s] + self._enlarged(levels[s + 1], stages[s][1])
        smooth = [level.smooth(top) for level, top in zip(self, levels)]
        total = sum(self._enlarged(image, stages[0][1]) for image in smooth)
        return ops.gelu(total.flatten(2).mT)

    def _enlarged(self, image: Tensor, grid: ops.Grid) -> Tensor:
        return F.interpolate(image, grid, mode="bilinear", align_corners=False)


class Swin(nn.Module):
    """Images (B, channels, H, W) -> logits (B, K), with a decoder (B, K, H, W)."""

    def __init__(self, config: vit.Config) -> None:
        super().__init__()
        self.config = config
        stages = [stage_config(config, s) for s in range(len(config["depth"]))]
        self.patch_embed = vit.PatchEmbed(config)
        self.embed_norm = vit._norm(config, config["dim"])
        self.blocks = nn.ModuleList(
            block(stage, place)
            for stage, depth in zip(stages, config["depth"])
            for place in range(depth)
        )
        self.merges = nn.ModuleList(
            Merge(new, old["dim"]) for old, new in itertools.pairwise(stages)
        )
        self.norm = vit._norm(config, stages[-1]["dim"])
        dims = [stage["dim"] for stage in stages]
        fpn = config.get("decoder") == "fpn"
        self.decoder = Pyramid(config, dims) if fpn else None
        self.head = nn.Linear(dims[0] if fpn else dims[-1], config["num_classes"])

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed_norm(self.patch_embed(images))
        grid = tuple(side // self.config["patch_size"] for side in images.shape[2:])
        blocks, outputs = iter(self.blocks), []
        for s, depth in enumerate(self.config["depth"]):
            if s:
                x = self.merges[s - 1](x, grid)
                grid = (grid[0] // 2, grid[1] // 2)
            for _ in range(depth):
                x = next(blocks)(x, grid)
            outputs.append((x, grid))
        x = self.norm(x)
        if self.decoder is not None:
            grid = outputs[0][1]
            decoded = self.decoder([*outputs[:-1], (x, outputs[-1][1])])
            return vit.decode(self.head, decoded, grid, images.shape[2:])
        if self.config.get("decoder") == "linear":
            return vit.decode(self.head, x, grid, images.shape[2:])
        return self.head(x.mean(dim=1))
