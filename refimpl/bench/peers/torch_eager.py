"""PyTorch in float32, eager: its product, and `deit` written with its own functions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from refimpl.bench.measure import Contender, timed
from refimpl.bench.work import Network, Product
from refimpl.models import Config

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
    """`deit` with these parameters as a torch module: images (B, channels, H, W) -> logits."""
    import torch

    class Deit(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for path, value in work.parameters.items():
                # a dot in a name is torch's own way to name a module's parameter
                parameter = torch.nn.Parameter(torch.tensor(value), requires_grad=False)
                self.register_parameter(path.replace(".", "_"), parameter)

        def forward(self, images):
            return _forward(work.config, lambda path: getattr(self, path.replace(".", "_")), images)

    return Deit().eval()


def _forward(config: Config, parameter, images):
    """The network of [SPEC 6.3] with the class token; `parameter` finds one by its dotted name."""
    import torch
    from torch.nn import functional as F

    def affine(path: str) -> tuple:
        return parameter(f"{path}.weight"), parameter(f"{path}.bias")

    def norm(path: str, x):
        return F.layer_norm(x, (config.dim,), *affine(path), eps=config.norm_eps)

    x = F.conv2d(images, *affine("patch_embed"), stride=config.patch_size)
    x = x.flatten(2).transpose(1, 2)  # (B, gh*gw, C); the exporter knows no mT
    cls_token = parameter("cls_token").expand(images.shape[0], -1, -1)
    x = torch.cat((cls_token, x), dim=1) + parameter("pos_embed")  # (B, N, C)
    for i in range(config.depth):
        block = f"blocks.{i}"
        qkv = F.linear(norm(f"{block}.norm1", x), *affine(f"{block}.attn.qkv"))
        qkv = qkv.unflatten(2, (3, config.heads, config.head_dim)).permute(2, 0, 3, 1, 4)
        context = F.scaled_dot_product_attention(*qkv.unbind())  # (B, heads, N, d)
        x = x + F.linear(context.transpose(1, 2).flatten(2), *affine(f"{block}.attn.proj"))
        hidden = F.gelu(F.linear(norm(f"{block}.norm2", x), *affine(f"{block}.mlp.fc1")))
        x = x + F.linear(hidden, *affine(f"{block}.mlp.fc2"))
    return F.linear(norm("norm", x)[:, 0], *affine("head"))
