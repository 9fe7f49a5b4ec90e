"""The mirror as a candidate for the golden comparison: every tap and gradient by name [SPEC 8.1].

Functions of `ops` and torch are exchanged for ones that note what goes in and out; the dotted names
of the modules are those of the taps. Two products are taken in the order that [SPEC 5] fixes for
every port: signs first, a whole number, then the scale.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

from tests.torch_models import ops, swin, vit

Config = Mapping[str, object]


class _Exchange(Function):
    """The value of one tensor with the gradient of another."""

    @staticmethod
    def forward(ctx, differentiable: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx, dy: Tensor):
        return dy, None


class Layouts(NamedTuple):
    """How the taps of an attention lie: its tensors have all tokens of an image, taps windows."""

    channels: Callable[[Tensor], Tensor]  # (B, N, C) -> (B nW, heads, M M, d)
    tokens: Callable[[Tensor], Tensor]  # (B, heads, N, d) -> the same
    pairs: Callable[[Tensor], Tensor]  # (B, heads, N, N) -> (B nW, heads, M M, M M)


def _layouts(module: nn.Module, grid: ops.Grid) -> Layouts:
    count = module.config["heads"] if isinstance(module, vit.Attention) else module.heads
    windowed = isinstance(module, (swin.Attention, swin.RealAttention))
    order = swin.order(grid, module.window, module.shift(grid)) if windowed else None

    def cut(x: Tensor, axis: int) -> Tensor:
        """(…, N, …) -> (…, nW, M M, …)"""
        return x.index_select(axis, order).unflatten(axis, (-1, module.window**2))

    def tokens(x: Tensor) -> Tensor:
        return x if order is None else cut(x, 2).movedim(2, 1).flatten(0, 1)

    def pairs(x: Tensor) -> Tensor:
        if order is None:
            return x
        windows = cut(cut(x, 3), 2).diagonal(dim1=2, dim2=4)  # (B, heads, M M, M M, nW)
        return windows.movedim(-1, 1).flatten(0, 1)

    return Layouts(lambda x: tokens(vit._split_heads(x, count)), tokens, pairs)


def _on_tokens(image: Tensor) -> Tensor:
    """(B, C, gh, gw) -> (B, N, C)"""
    return image.flatten(2).mT


class Recorder:
    """Notes the tensors of one forward; `run` turns them into arrays by name."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.path: list[str] = []  # of the modules that are running
        self.values: dict[str, Tensor] = {}  # taps without a gradient
        self.tensors: dict[str, tuple[Tensor, Callable]] = {}  # with one; how it is laid out
        # of the attention that is running: names t whose signs, and bands whose scores, are to come
        self.signs: list[str] = []
        self.bands_to_come: list[str] = []

    @property
    def here(self) -> str:
        return self.path[-1]

    def keep(self, name: str, tensor: Tensor, layout: Callable = lambda x: x, also=True) -> None:
        """A tensor of the graph; `also`: its value is a tap, not its gradient alone."""
        if tensor.requires_grad:
            tensor.retain_grad()
        self.tensors[name] = tensor, layout
        if also:
            self.values[name] = layout(tensor.detach())

    def attach(self, module: nn.Module) -> None:
        for name, child in module.named_modules():
            child.register_forward_pre_hook(lambda m, args, name=name: self._enter(name, m, args))
            child.register_forward_hook(lambda m, args, out, name=name: self._leave(name, m, out))

    def _enter(self, name: str, module: nn.Module, args: tuple) -> None:
        self.path.append(name)
        last = name.rsplit(".", 1)[-1]
        owner = name.removesuffix(f".{last}")
        if isinstance(module, (vit.Attention, vit.RealAttention)):
            self.layouts = _layouts(module, args[1])
        if name == "blocks.0":
            self.keep("tokens", args[0])
        elif re.fullmatch(r"merges\.\d+\.norm", name):
            self.keep(f"{owner}.patches", args[0])
        elif last == "norm2":
            self.keep(f"{owner}.mid", args[0])
        elif last == "norm" and self._is_projection(owner):
            self.keep(f"{owner}.linear", args[0])
        elif last == "smooth" and owner != f"decoder.{len(self.config['depth']) - 1}":
            self.keep(f"{owner}.top", args[0], _on_tokens)
        elif name.endswith("attn.proj") and isinstance(module, nn.Linear):
            self.keep(f"{owner}.context", args[0], self.layouts.channels)
        if isinstance(module, vit.Attention):
            self.signs = list(module.names)
            self.bands_to_come = ["_low", "_high"] if module.haar else [""]

    def _leave(self, name: str, module: nn.Module, out: Tensor) -> None:
        self.path.pop()
        last = name.rsplit(".", 1)[-1]
        owner = name.removesuffix(f".{last}")
        if last in ("norm1", "norm2") or name in ("norm", "patch_embed"):
            self.keep(f"{name}.out", out)
        elif name == "head" and self.config.get("decoder", "none") != "none":
            self.keep("head.out", out)
        elif last == "smooth":
            self.keep(f"{name}.out", out, _on_tokens)
        elif last == "norm" and isinstance(module, nn.LayerNorm):
            projection = self._is_projection(owner)
            self.keep(name if projection else f"{name}.out", out)
        elif name.endswith("attn.rprelu"):
            self.keep(f"{owner}.out", out)
        elif isinstance(module, (vit.Projection, vit.Block)) or (
            isinstance(module, nn.Linear) and name != "head"
        ):
            self.keep(f"{name}.out", out)

    def _is_projection(self, name: str) -> bool:
        if name.startswith("merges."):
            return name.endswith(".proj")
        return name.startswith("blocks.") and not name.endswith(".attn")

    # What stands in for the functions of ops

    def sign(self, original: Callable, z: Tensor, ste: str = "polynomial") -> Tensor:
        out = original(z, ste)
        if self.here.endswith(".attn"):
            t = self.signs.pop(0)
            name = f"{self.here}.{t}.head_"
            layouts = self.layouts
            layout = layouts.channels
            if t == "v":
                layout = lambda x: layouts.channels(x).mT  # noqa: E731
        else:
            name, layout = f"{self.here}.", lambda x: x
        self.keep(f"{name}z", z, layout)
        self.keep(f"{name}bit", out, layout, also=False)
        self.values[f"{name}bit"] = layout(out.detach()) > 0
        return out

    def binary_linear(self, original, x, weight, bias=None, binarize="full", ste="polynomial"):
        y = original(x, weight, bias, binarize, ste)
        if binarize == "none":
            self.keep(f"{self.here}.z", x)
        if binarize != "full":
            return y
        weight = weight.detach()
        centred = weight - weight.mean(dim=1, keepdim=True)
        scale = weight.abs().mean(dim=1)
        integers = self._signs(f"{self.here}.bit") @ (2 * (centred >= 0).to(y.dtype) - 1).T
        self.values |= {
            f"{self.here}.weight.z": centred,
            f"{self.here}.weight.bit": centred >= 0,
            f"{self.here}.weight.scale": scale,
            f"{self.here}.int": integers.int(),
        }
        return _Exchange.apply(y, integers * scale)

    def _signs(self, name: str) -> Tensor:
        bit = self.values[name]
        return 2 * bit.to(next(iter(self.values.values())).dtype) - 1

    def matmul(self, original, a, b):
        product = original(a, b)
        if self.config["block"] == "real":
            return product
        band = self.bands_to_come.pop(0)
        if self.config["binarize"] == "none":
            self.keep(f"{self.here}.q{band}.head_z", a, self.layouts.tokens)
            self.keep(f"{self.here}.k{band}.head_z", b, self.layouts.tokens)
        else:
            self.values[f"{self.here}.scores{band}.int"] = self.layouts.pairs(
                product.detach()
            ).int()
        return product

    def softmax(self, original, scores, mask=None):
        prob = original(scores, mask)
        self.keep(f"{self.here}.scores", scores, self.layouts.pairs)
        real = self.config["block"] == "real" or self.config["binarize"] == "none"
        self.keep(f"{self.here}.prob", prob, self.layouts.pairs, also=real)
        return prob

    def boolean_attention(self, original, prob, value, alpha, binarize="full", how="sum"):
        context = original(prob, value, alpha, binarize, how)
        layouts = self.layouts
        if binarize == "none":
            self.keep(f"{self.here}.v.head_z", value, lambda x: layouts.tokens(x.mT).mT)
        else:
            step = alpha.detach().clamp(min=1e-5)
            quotient = prob.detach() / step
            bit = quotient.round().clamp(0, 1)
            integers = bit @ value.detach().mT
            if how == "differences":
                integers = integers - bit.sum(-1, keepdim=True) * value.detach().mT
            context = _Exchange.apply(context, integers * step)
            self.values |= {
                f"{self.here}.prob.z": layouts.pairs(quotient),
                f"{self.here}.prob.bit": layouts.pairs(bit > 0),
                f"{self.here}.context.int": layouts.tokens(integers).int(),
            }
        self.keep(f"{self.here}.context", context, layouts.tokens)
        return context

    def bands(self, original, x, grid, mode="edge", cls="both"):
        low, high = original(x, grid, mode, cls)
        low = low.clone()  # where it is x itself, it has a gradient of its own all the same
        self.keep(f"{self.here}.low", low)
        self.keep(f"{self.here}.high", high)
        return low, high

    def neighbours(self, original, x, grid, border="existing"):
        mean = original(x, grid, border)
        self.keep(f"{self.here}.neighbour_mean", mean)
        return mean

    def gelu(self, original, x):
        y = original(x)
        if self.here == "decoder":
            self.keep("decoder.sum", x)
        self.keep(f"{self.here}.gelu.out", y)
        return y


WRAPPED = (
    "sign",
    "binary_linear",
    "matmul",
    "softmax",
    "boolean_attention",
    "bands",
    "neighbours",
    "gelu",
)


@contextlib.contextmanager
def _exchanged(module: object, functions: Mapping[str, Callable]) -> Iterator[None]:
    """Other functions in the place of some of a module's, for a while."""
    originals = {name: getattr(module, name) for name in functions}
    try:
        for name, function in functions.items():
            setattr(module, name, function)
        yield
    finally:
        for name, original in originals.items():
            setattr(module, name, original)


def _last_first(x: Tensor) -> Tensor:
    """Sum over the last axis, one after the other from its end."""
    return x.flip(-1).cumsum(-1)[..., -1:]


def _reversed_layer_norm(x, shape, weight=None, bias=None, eps=1e-5):
    count = x.shape[-1]
    centred = x - _last_first(x) / count
    return centred / (_last_first(centred**2) / count + eps).sqrt() * weight + bias


def _reversed_linear(x, weight, bias=None):
    y = x.flip(-1) @ weight.flip(-1).T
    return y if bias is None else y + bias


def _reversed_softmax(x, dim=None, **rest):
    e = (x - x.detach().amax(-1, keepdim=True)).exp()
    return e / _last_first(e)


REVERSED = {
    "layer_norm": _reversed_layer_norm, "linear": _reversed_linear, "softmax": _reversed_softmax,
}  # fmt: skip


def run(
    config: Config,
    flat: Mapping[str, np.ndarray],
    images: np.ndarray,
    dlogits: np.ndarray | None = None,
    backwards: bool = False,
) -> dict[str, np.ndarray]:
    """Taps by name, with `dlogits` gradients too; with `backwards` sums run from their end."""
    module, recorder = vit.build(config, flat), Recorder(config)
    recorder.attach(module)
    wrapped = {name: partial(getattr(recorder, name), getattr(ops, name)) for name in WRAPPED}
    tensor = torch.tensor(images, requires_grad=True)
    with _exchanged(ops, wrapped), _exchanged(F, REVERSED if backwards else {}):
        logits = module(tensor)
    recorder.keep("logits", logits)
    found = dict(recorder.values)
    if dlogits is not None:
        logits.backward(torch.tensor(dlogits))
        for name, (kept, layout) in recorder.tensors.items():
            gradient = torch.zeros_like(kept) if kept.grad is None else kept.grad
            found[f"grads/{name}"] = layout(gradient)
        found["grads/input"] = tensor.grad
        for path, gradient in vit.gradients(module).items():
            found[f"grads/param.{path}"] = torch.as_tensor(gradient)
    return {name: value.contiguous().numpy() for name, value in found.items()}
