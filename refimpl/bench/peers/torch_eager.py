"""PyTorch in float32, eager: its product, `deit` and `swin` written with its own functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from refimpl.bench.measure import Contender, timed
from refimpl.bench.work import Network, Product
from refimpl.models import Config
from refimpl.models.stage import Stage
from refimpl.ops import position_bias, windows

REQUIRES = ("torch",)


def products(work: Product, threads: int) -> Iterator[Contender]:
    """Into a tensor that is there already."""
    import torch

    a, b = torch.from_numpy(work.factor), torch.from_numpy(work.b).mT.contiguous()
    out = torch.empty(*a.shape[:-1], b.shape[-1])

    def multiply() -> torch.Tensor:
        return torch.matmul(a, b, out=out)

    yield Contender(
        "torch float32", timed(multiply), lambda: multiply().numpy(), work.macs, threads
    )


def networks(work: Network, threads: int) -> Iterator[Contender]:
    """The module in inference mode."""
    import torch

    network, images = module(work), torch.tensor(work.images)

    def run(calls: int) -> float:
        with torch.inference_mode():
            return timed(lambda: network(images))(calls)

    def logits() -> np.ndarray:
        with torch.inference_mode():
            return network(images).numpy()

    yield Contender("torch float32", run, logits, work.macs, threads)


def module(work: Network) -> Any:
    """A real network with these parameters as a torch module, images -> logits."""
    import torch

    class Real(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for path, value in work.parameters.items():
                # a dot in a name is torch's own way to name a module's parameter
                parameter = torch.nn.Parameter(torch.tensor(value), requires_grad=False)
                self.register_parameter(path.replace(".", "_"), parameter)

        def forward(self, images):
            return forward(work.config, lambda path: getattr(self, path.replace(".", "_")), images)

    return Real().eval()


def forward(config: Config, parameter: Callable, images: Any, layers: Any = None) -> Any:
    """images (B, channels, H, W) -> logits of the network of [SPEC 6.3, 6.7].

    `parameter` finds one by its dotted name. `layers` has a block, (config, parameter, path, x,
    stage) -> x, and a merge, (config, parameter, path, neighbours) -> x; without it both are real.
    """
    import torch
    from torch.nn import functional as F

    block, merge = (layers.block, layers.merge) if layers else (_real_block, _real_merge)
    affine = affine_of(parameter)
    x = F.conv2d(images, *affine("patch_embed"), stride=config.patch_size)
    x = x.flatten(2).transpose(1, 2)  # (B, gh*gw, C); the exporter knows no mT
    if config.pool == "cls":
        cls_token = parameter("cls_token").expand(images.shape[0], -1, -1)
        x = torch.cat((cls_token, x), dim=1)
    x = norm(config, parameter, "embed_norm", x) if config.window else x + parameter("pos_embed")
    for i in range(config.num_blocks):
        if i in config.merges:
            before = config.stage_of(i - 1)
            x = merge(config, parameter, f"merges.{config.merges[i]}", neighbours(x, before))
        x = block(config, parameter, f"blocks.{i}", x, config.stage_of(i))
    x = norm(config, parameter, "norm", x)
    return F.linear(x[:, 0] if config.pool == "cls" else x.mean(1), *affine("head"))


def affine_of(parameter: Callable) -> Callable[[str], tuple]:
    """dotted name of a layer -> its weight and bias."""
    return lambda path: (parameter(f"{path}.weight"), parameter(f"{path}.bias"))


def norm(config: Config, parameter: Callable, path: str, x: Any) -> Any:
    """The LayerNorm of this name over the last axis."""
    from torch.nn import functional as F

    return F.layer_norm(x, x.shape[-1:], *affine_of(parameter)(path), eps=config.norm_eps)


def cut(x: Any, stage: Stage) -> Any:
    """(B, N, C) -> windows (B nW, M M, C) [SPEC 6.7]; x itself where all tokens are one."""
    if stage.num_windows == 1:  # without windows, too
        return x
    (gh, gw), M = stage.grid, stage.window
    x = x.unflatten(1, stage.grid)
    if stage.shift:
        x = x.roll((-stage.shift, -stage.shift), (1, 2))
    x = x.unflatten(2, (gw // M, M)).unflatten(1, (gh // M, M))  # (B, gh / M, M, gw / M, M, C)
    return x.transpose(2, 3).flatten(3, 4).flatten(0, 2)


def put_back(x: Any, stage: Stage) -> Any:
    """(B nW, M M, C) -> (B, N, C), the inverse."""
    if stage.num_windows == 1:
        return x
    (gh, gw), M = stage.grid, stage.window
    x = x.unflatten(1, (M, M)).unflatten(0, (-1, gh // M, gw // M))
    x = x.transpose(2, 3).flatten(3, 4).flatten(1, 2)  # (B, gh, gw, C)
    if stage.shift:
        x = x.roll((stage.shift, stage.shift), (1, 2))
    return x.flatten(1, 2)


def added(parameter: Callable, path: str, stage: Stage, batch: int) -> Any:
    """What the scores (B nW, heads, M M, M M) get: position bias, -inf for masked keys.

    None without windows.
    """
    import torch

    if not stage.window:
        return None
    table = parameter(f"{path}.position_bias")
    bias = table[torch.from_numpy(position_bias.offsets(stage.window))].permute(2, 0, 1)
    if not stage.shift:
        return bias
    seen = torch.from_numpy(windows.mask(stage.grid, stage.window, stage.shift))
    masked = torch.zeros(seen.shape, dtype=bias.dtype).masked_fill(~seen, -torch.inf)
    return (bias + masked[:, None]).repeat(batch, 1, 1, 1)


def neighbours(x: Any, stage: Stage) -> Any:
    """(B, N, C) -> (B, N / 4, 4C), in Swin's order [SPEC 6.7]."""
    gh, gw = stage.grid
    x = x.unflatten(1, (gh // 2, 2, gw // 2, 2))  # (B, gh / 2, row, gw / 2, column, C)
    return x.permute(0, 1, 3, 4, 2, 5).flatten(3).flatten(1, 2)


def _real_merge(config: Config, parameter: Callable, path: str, x: Any) -> Any:
    """x (B, N, 4C) -> (B, N, 2C)."""
    from torch.nn import functional as F

    return F.linear(norm(config, parameter, f"{path}.norm", x), parameter(f"{path}.proj.weight"))


def _real_block(config: Config, parameter: Callable, path: str, x: Any, stage: Stage) -> Any:
    """x (B, N, C) -> the same shape."""
    from torch.nn import functional as F

    affine = affine_of(parameter)
    qkv = F.linear(norm(config, parameter, f"{path}.norm1", x), *affine(f"{path}.attn.qkv"))
    qkv = cut(qkv, stage).unflatten(2, (3, stage.heads, config.head_dim)).permute(2, 0, 3, 1, 4)
    bias = added(parameter, f"{path}.attn", stage, x.shape[0])
    context = F.scaled_dot_product_attention(*qkv.unbind(), attn_mask=bias)  # (B, heads, N, d)
    context = put_back(context.transpose(1, 2).flatten(2), stage)
    x = x + F.linear(context, *affine(f"{path}.attn.proj"))
    hidden = norm(config, parameter, f"{path}.norm2", x)
    hidden = F.gelu(F.linear(hidden, *affine(f"{path}.mlp.fc1")))
    return x + F.linear(hidden, *affine(f"{path}.mlp.fc2"))
