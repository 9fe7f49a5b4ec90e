"""PyTorch in float32, eager: a training step of the named networks in stage "full", for speed.

The same mathematics, written once more from the spec. What was optimised:

- Products with weights are 1 x 1 convolutions over the tokens, forward and backward: oneDNN's,
  which took half the time of `F.linear`, the product of the BLAS that torch was built with.
- A batch is taken in parts of MICRO_BATCH images whose gradients add up: half the memory.
- A sign, with the move before it, keeps the real value alone, which its neighbours share, and
  computes the signs again for the gradient. So does the boolean, which keeps the probabilities.
- The band weights go into the queries, and both bands into one product of twice the length.
- Haar bands and neighbours are sums of slices, rows first, and the high band is the rest: x - low.
- RPReLU adds the shifts of channels and tokens up first, and its gradient has no full-size mask.
- Comparisons write floats: `torch.where` took more than ten times as long.
- `F.layer_norm`, `F.prelu`, `F.scaled_dot_product_attention` (real blocks), `F.gelu`, fused AdamW.
- Images are prepared once, not at every step as ours are.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np

from refimpl.bench.peers import torch_eager
from refimpl.bench.peers.torch_eager import norm
from refimpl.bench.work import Lesson, Network
from refimpl.models import Config
from refimpl.models.binary import network
from refimpl.models.stage import Stage

REQUIRES = torch_eager.REQUIRES


MICRO_BATCH = 25  # images


def load() -> Any:
    """torch, with what the first optimizer would import."""
    import torch
    import torch._dynamo

    return torch


@contextlib.contextmanager
def start(torch: Any, work: Network, batch: Lesson, threads: int) -> Iterator[Callable[[], float]]:
    """A step from prepared images to the changed parameters; it returns the loss."""
    from refimpl.training.recipes import Recipe

    torch.set_num_threads(threads)
    recipe = Recipe()
    mirror = Mirror(work.config, work.parameters)
    declared = network(work.config).parameters
    groups: dict[tuple[float, float], list[Any]] = {}  # (decay, rate) -> parameters
    for path, parameter in mirror.parameters.items():
        decay = recipe.weight_decay if declared[path].traits.decayed else 0.0
        share = recipe.alpha_rate if declared[path].role == "alpha" else 1.0
        groups.setdefault((decay, recipe.learning_rate * share), []).append(parameter)
    optimizer = torch.optim.AdamW(
        [{"params": some, "weight_decay": d, "lr": rate} for (d, rate), some in groups.items()],
        fused=True,
    )
    images, labels = torch.tensor(batch.prepare(batch.images)), torch.tensor(batch.labels)

    def step() -> float:
        optimizer.zero_grad()
        total = 0.0
        for some, right in zip(images.split(MICRO_BATCH), labels.split(MICRO_BATCH), strict=True):
            loss = mirror.loss(some, right, recipe.smoothing) * (len(some) / len(images))
            loss.backward()
            total += loss.item()
        optimizer.step()
        return total

    yield step


class Mirror:
    """The network of `config` with its parameters, by dotted name, as leaves of autograd."""

    def __init__(self, config: Config, parameters: Mapping[str, np.ndarray]) -> None:
        import torch

        self.config = config
        self.parameters = {
            path: torch.tensor(value, requires_grad=True) for path, value in parameters.items()
        }

    def __call__(self, images: Any) -> Any:
        """(B, channels, H, W) -> logits (B, classes), both torch tensors."""
        layers = SimpleNamespace(block=_binary_block, merge=_binary_merge)
        layers = layers if self.config.block == "binary" else None
        return torch_eager.forward(self.config, self.parameters.__getitem__, images, layers)

    def loss(self, images: Any, labels: Any, smoothing: float) -> Any:
        """The mean over the images."""
        from torch.nn import functional as F

        return F.cross_entropy(self(images), labels, label_smoothing=smoothing)


def _binary_merge(config: Config, parameter: Callable, path: str, x: Any) -> Any:
    """[SPEC 6.7] x (B, N, 4C) -> (B, N, 2C)."""
    return _projection(
        config, parameter, f"{path}.proj", norm(config, parameter, f"{path}.norm", x)
    )


def _binary_block(config: Config, parameter: Callable, path: str, x: Any, stage: Stage) -> Any:
    """[SPEC 6.1, 6.2] x (B, N, C) -> the same shape."""
    n1 = norm(config, parameter, f"{path}.norm1", x)
    x = x + _attention(config, parameter, f"{path}.attn", n1, stage)
    n2 = norm(config, parameter, f"{path}.norm2", x)
    hidden = _projection(config, parameter, f"{path}.mlp.up", n2)
    return x + _projection(config, parameter, f"{path}.mlp.down", hidden)


def _attention(config: Config, parameter: Callable, path: str, x: Any, stage: Stage) -> Any:
    from refimpl.bench.peers import torch_functions as own

    sources = dict.fromkeys(config.attention_inputs, x)
    if config.similarity == "haar":
        low, high = own.Bands.apply(x, stage.grid)
        sources |= {"q_low": low, "k_low": low, "q_high": high, "k_high": high}
    real, signs = {}, {}  # m_t (B, N, C), b_t (B nW, heads, M M, d)
    for name, source in sources.items():
        real[name] = _projection(config, parameter, f"{path}.{name}", source)
        binary = own.Sign.apply(real[name], parameter(f"{path}.{name}_move"))
        binary = torch_eager.cut(binary, stage)
        signs[name] = binary.unflatten(2, (stage.heads, config.head_dim)).transpose(1, 2)
    queries, keys = _queries_and_keys(config, parameter, path, signs)
    scores = queries @ keys.mT  # (B nW, heads, M M, M M)
    if stage.window:
        scores.add_(torch_eager.added(parameter, path, stage, x.shape[0]))
    context = own.BooleanProduct.apply(scores.softmax(-1), signs["v"], parameter(f"{path}.alpha"))
    context = torch_eager.put_back(context.transpose(1, 2).flatten(2), stage)
    o = norm(config, parameter, f"{path}.norm", context)
    for name in config.attention_inputs[:-1]:
        o.add_(real[name])
    o = _rprelu(
        config, parameter, f"{path}.rprelu", o + _values(config, parameter, path, real["v"], stage)
    )
    return _projection(config, parameter, f"{path}.proj", o)


def _queries_and_keys(config: Config, parameter: Callable, path: str, signs: dict) -> tuple:
    """Their product is the scores, scaled and with Haar weighted."""
    import torch

    root = math.sqrt(config.head_dim)
    if config.similarity == "plain":
        return signs["q"] / root, signs["k"]
    low, high = (parameter(f"{path}.band_weight") / root)[..., None, None]  # (heads, 1, 1) each
    queries = torch.cat((signs["q_low"] * low, signs["q_high"] * high), dim=3)
    return queries, torch.cat((signs["k_low"], signs["k_high"]), dim=3)


def _values(config: Config, parameter: Callable, path: str, value: Any, stage: Stage) -> Any:
    """m_v (B, N, C), with differential attention lam_s * m_v - lam_n * neighbour_mean(m_v)."""
    if config.attention == "plain":
        return value
    from refimpl.bench.peers.torch_functions import NeighbourMean

    mean = NeighbourMean.apply(value, stage.grid)
    return value * parameter(f"{path}.shortcut") - mean * parameter(f"{path}.neighbour")


def _projection(config: Config, parameter: Callable, path: str, x: Any) -> Any:
    """[SPEC 5] x (B, N, I) -> (B, N, O)."""
    from refimpl.bench.peers import torch_functions as own

    weight = own.BinaryWeight.apply(parameter(f"{path}.weight"))
    linear = own.SignLinear.apply(x, parameter(f"{path}.move"), weight)
    y = norm(config, parameter, f"{path}.norm", linear)
    outputs, inputs = weight.shape
    if outputs < inputs:
        y.add_(own.Mean.apply(x, inputs // outputs))
    else:
        y = y.unflatten(2, (-1, inputs)).add_(x.unsqueeze(2)).flatten(2)
    return _rprelu(config, parameter, f"{path}.rprelu", y)


def _rprelu(config: Config, parameter: Callable, path: str, y: Any) -> Any:
    from refimpl.bench.peers.torch_functions import RPReLU

    names = ["shift_in", "slope", "shift_out"]
    if config.rprelu == "token":
        names += ["token_shift_in", "token_shift_out"]
    return RPReLU.apply(y, *(parameter(f"{path}.{name}") for name in names))
