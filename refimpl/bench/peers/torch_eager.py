"""PyTorch in float32, eager: its product, and `deit` written with its own functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
            return forward(work.config, lambda path: getattr(self, path.replace(".", "_")), images)

    return Deit().eval()


def forward(config: Config, parameter: Callable, images: Any, block: Callable | None = None) -> Any:
    """images (B, channels, H, W) -> logits of the network of [SPEC 6.3] with the class token.

    `parameter` finds one by its dotted name; `block` is (config, parameter, path, x) -> x, without
    it that of `deit`.
    """
    import torch
    from torch.nn import functional as F

    affine = affine_of(parameter)
    x = F.conv2d(images, *affine("patch_embed"), stride=config.patch_size)
    x = x.flatten(2).transpose(1, 2)  # (B, gh*gw, C); the exporter knows no mT
    cls_token = parameter("cls_token").expand(images.shape[0], -1, -1)
    x = torch.cat((cls_token, x), dim=1) + parameter("pos_embed")  # (B, N, C)
    for i in range(config.depth):
        x = (block or _real_block)(config, parameter, f"blocks.{i}", x)
    x = F.layer_norm(x, (config.dim,), *affine("norm"), eps=config.norm_eps)
    return F.linear(x[:, 0], *affine("head"))


def affine_of(parameter: Callable) -> Callable[[str], tuple]:
    """dotted name of a layer -> its weight and bias."""
    return lambda path: (parameter(f"{path}.weight"), parameter(f"{path}.bias"))


def _real_block(config: Config, parameter: Callable, path: str, x: Any) -> Any:
    """x (B, N, C) -> the same shape."""
    from torch.nn import functional as F

    affine = affine_of(parameter)

    def norm(name: str, x):
        return F.layer_norm(x, (config.dim,), *affine(f"{path}.{name}"), eps=config.norm_eps)

    qkv = F.linear(norm("norm1", x), *affine(f"{path}.attn.qkv"))
    qkv = qkv.unflatten(2, (3, config.heads, config.head_dim)).permute(2, 0, 3, 1, 4)
    context = F.scaled_dot_product_attention(*qkv.unbind())  # (B, heads, N, d)
    x = x + F.linear(context.transpose(1, 2).flatten(2), *affine(f"{path}.attn.proj"))
    hidden = F.gelu(F.linear(norm("norm2", x), *affine(f"{path}.mlp.fc1")))
    return x + F.linear(hidden, *affine(f"{path}.mlp.fc2"))
