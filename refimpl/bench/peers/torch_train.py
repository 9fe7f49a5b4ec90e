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
import functools
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


SMALLEST = 1e-5  # of alpha
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
    own = _functions()
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
    mean = _functions().NeighbourMean.apply(value, stage.grid)
    return value * parameter(f"{path}.shortcut") - mean * parameter(f"{path}.neighbour")


def _projection(config: Config, parameter: Callable, path: str, x: Any) -> Any:
    """[SPEC 5] x (B, N, I) -> (B, N, O)."""
    own = _functions()
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
    names = ["shift_in", "slope", "shift_out"]
    if config.rprelu == "token":
        names += ["token_shift_in", "token_shift_out"]
    return _functions().RPReLU.apply(y, *(parameter(f"{path}.{name}") for name in names))


@functools.cache
def _functions() -> SimpleNamespace:
    """Steps whose gradient is declared [SPEC 2], and those that autograd would do with more work.

    In a function, so that this module can be imported without torch.
    """
    import torch
    from torch.autograd import Function
    from torch.nn import functional as F

    def sign_(z):
        return z.ge_(0).mul_(2).sub_(1)

    def half_surrogate_(z):
        return torch.rsub(z.abs_(), 1).relu_()

    def pixels(x):
        """(B, N, C) -> (B, C, 1, N), channels last: a view."""
        return x.permute(0, 2, 1).unsqueeze(2)

    def product(x, weight):
        """x (B, N, I), weight (O, I) -> x W^T."""
        return F.conv2d(pixels(x), weight[:, :, None, None]).squeeze(2).permute(0, 2, 1)

    class Sign(Function):
        @staticmethod
        def forward(ctx, x, move):
            ctx.save_for_backward(x, move)
            return sign_(x + move)

        @staticmethod
        def backward(ctx, dy):
            x, move = ctx.saved_tensors
            dz = half_surrogate_(x + move).mul_(dy).mul_(2)
            return dz, dz.sum((0, 1))

    class SignLinear(Function):
        @staticmethod
        def forward(ctx, x, move, weight):
            ctx.save_for_backward(x, move, weight)
            return product(sign_(x + move), weight)

        @staticmethod
        def backward(ctx, dy):
            x, move, weight = ctx.saved_tensors
            z = x + move
            binary = pixels(sign_(z.clone()))
            dweight = torch.nn.grad.conv2d_weight(binary, (*weight.shape, 1, 1), pixels(dy))
            dz = half_surrogate_(z).mul_(product(dy, 2 * weight.mT))
            return dz, dz.sum((0, 1)), dweight.view_as(weight)

    class BinaryWeight(Function):
        @staticmethod
        def forward(ctx, weight):
            ctx.save_for_backward(weight)
            scale = weight.abs().mean(1, keepdim=True)
            return sign_(weight - weight.mean(1, keepdim=True)).mul_(scale)

        @staticmethod
        def backward(ctx, dy):
            (weight,) = ctx.saved_tensors
            dcentred = (weight - weight.mean(1, keepdim=True)).abs_().le_(1).mul_(dy)
            return dcentred.sub_(dcentred.mean(1, keepdim=True))

    class Mean(Function):
        """The shortcut of a projection with fewer outputs."""

        @staticmethod
        def forward(ctx, x, size):
            ctx.size = size
            return x.unflatten(2, (-1, size)) @ torch.full((size,), 1 / size, dtype=x.dtype)

        @staticmethod
        def backward(ctx, dy):
            dy = (dy / ctx.size).unsqueeze(3)
            return dy.expand(-1, -1, -1, ctx.size).flatten(2), None

    class RPReLU(Function):
        @staticmethod
        def forward(ctx, x, shift_in, slope, shift_out, token_shift_in=None, token_shift_out=None):
            ctx.tokens = token_shift_in is not None
            if ctx.tokens:
                shift_in = shift_in + token_shift_in[:, None]  # (N, C)
                shift_out = shift_out + token_shift_out[:, None]
            u = x - shift_in
            ctx.save_for_backward(u, slope)
            return F.prelu(u.view(-1, u.shape[-1]), slope).view_as(u).add_(shift_out)

        @staticmethod
        def backward(ctx, dy):
            u, slope = ctx.saved_tensors
            positive = torch.gt(u, 0, out=torch.empty_like(u)).mul_(dy)
            du = torch.lerp(positive, dy, slope)
            dslope = torch.sub(dy, positive, out=positive).mul_(u).sum((0, 1))
            din, dout = -du.sum(0), dy.sum(0)  # (N, C)
            tokens = (din.sum(1), dout.sum(1)) if ctx.tokens else (None, None)
            return du, din.sum(0), dslope, dout.sum(0), *tokens

    class BooleanProduct(Function):
        """alpha' * bits of prob, times the signs; probabilities are never below 0."""

        @staticmethod
        def forward(ctx, prob, signs, alpha):
            ctx.save_for_backward(prob, signs, alpha)
            step = alpha.clamp(min=SMALLEST)
            bits = torch.gt(prob, step / 2, out=torch.empty_like(prob))
            return (bits @ signs).mul_(step)

        @staticmethod
        def backward(ctx, dy):
            prob, signs, alpha = ctx.saved_tensors
            step = alpha.clamp(min=SMALLEST)
            bits = torch.gt(prob, step / 2, out=torch.empty_like(prob))
            dsigns = (bits.mT @ dy).mul_(step)
            dboolean = dy @ signs.mT
            dprob = torch.le(prob, step, out=torch.empty_like(prob)).mul_(dboolean)
            flat = dprob.view(-1)
            dalpha = dboolean.sum() - dprob.sum()  # where prob > alpha'
            dalpha += torch.dot(flat, bits.view(-1)) - torch.dot(flat, prob.view(-1)) / step
            return dprob, dsigns, dalpha * (alpha >= SMALLEST)

    class Bands(Function):
        """[SPEC 4] Low and high band: mode "edge", the class token in both."""

        @staticmethod
        def forward(ctx, x, grid):
            ctx.grid, first = grid, x.shape[1] - math.prod(grid)
            grid_x = x[:, first:].unflatten(1, grid)  # (B, gh, gw, C)
            rows = grid_x * 0.25
            rows[:, :-1].add_(grid_x[:, 1:], alpha=0.25)
            rows[:, -1] *= 2
            low, high = torch.empty_like(x), torch.empty_like(x)
            band = low[:, first:].unflatten(1, grid)
            torch.add(rows[:, :, :-1], rows[:, :, 1:], out=band[:, :, :-1])
            torch.mul(rows[:, :, -1], 2, out=band[:, :, -1])
            torch.sub(x[:, first:], low[:, first:], out=high[:, first:])
            low[:, :first] = high[:, :first] = x[:, :first]
            return low, high

        @staticmethod
        def backward(ctx, dlow, dhigh):
            dx, first = dhigh.clone(), dhigh.shape[1] - math.prod(ctx.grid)
            dx[:, :first] += dlow[:, :first]
            dband = (dlow - dhigh)[:, first:].unflatten(1, ctx.grid) * 0.25
            columns = dband.clone()
            columns[:, :, 1:] += dband[:, :, :-1]
            columns[:, :, -1] += dband[:, :, -1]
            grid_dx = dx[:, first:].unflatten(1, ctx.grid)
            grid_dx += columns
            grid_dx[:, 1:] += columns[:, :-1]
            grid_dx[:, -1] += columns[:, -1]
            return dx, None

    def square(x, grid):
        """Sums over 3 x 3 patches; the class token stays."""
        first = x.shape[1] - math.prod(grid)
        grid_x = x[:, first:].unflatten(1, grid)
        rows = grid_x.clone()
        rows[:, 1:] += grid_x[:, :-1]
        rows[:, :-1] += grid_x[:, 1:]
        y = torch.empty_like(x)
        y[:, :first] = x[:, :first]
        total = y[:, first:].unflatten(1, grid)
        total.copy_(rows)
        total[:, :, 1:] += rows[:, :, :-1]
        total[:, :, :-1] += rows[:, :, 1:]
        return y

    @functools.cache
    def shares(grid, tokens, dtype):
        """(1, N, 1): one over the number of neighbours, of the class token anything."""
        one = torch.ones(1, tokens, 1, dtype=dtype)
        return 1 / (square(one, grid) - one).clamp_(min=1)

    class NeighbourMean(Function):
        """[SPEC 6.2] Over those that exist; 0 for the class token."""

        @staticmethod
        def forward(ctx, x, grid):
            ctx.grid = grid
            return square(x, grid).sub_(x).mul_(shares(grid, x.shape[1], x.dtype))

        @staticmethod
        def backward(ctx, dy):
            dtotal = dy * shares(ctx.grid, dy.shape[1], dy.dtype)
            return square(dtotal, ctx.grid).sub_(dtotal), None

    found = (Sign, SignLinear, BinaryWeight, Mean, RPReLU, BooleanProduct, Bands, NeighbourMean)
    return SimpleNamespace(**{function.__name__: function for function in found})
