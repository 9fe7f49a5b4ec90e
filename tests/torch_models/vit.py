"""`react`, `didb` and `deit` as torch modules whose state_dict has the names of SPEC 6.4.

Those with windows are in `swin.py`; `build` and `run` take any.

`config` is a plain dict with the fields of SPEC 6.5 and 9 and `block`, "binary" or "real" (deit).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.torch_models import ops

Config = Mapping[str, Any]


def _parameter(*shape: int) -> nn.Parameter:
    """Zeros: `build` fills in the values."""
    return nn.Parameter(torch.zeros(shape))


def _image_size(config: Config) -> tuple[int, int]:
    size = config["image_size"]
    return (size, size) if isinstance(size, int) else tuple(size)


def _grid(config: Config) -> tuple[int, int]:
    height, width = _image_size(config)
    return height // config["patch_size"], width // config["patch_size"]


def _tokens(config: Config) -> int:
    """N: the patches, and the class token where there is one."""
    return math.prod(_grid(config)) + (config["pool"] == "cls")


def _on_grid(entries: Tensor, config: Config, grid: ops.Grid) -> Tensor:
    """[SPEC 6.3] (N, K), an entry a token of the network of `config` -> the same for `grid`."""
    own = _grid(config)
    class_token, patches = entries[: -math.prod(own)], entries[-math.prod(own) :]
    if grid == own:
        return entries
    image = ops.interpolate(patches.T.unflatten(1, own), grid)
    return torch.cat((class_token, image.flatten(1).T))


def _norm(config: Config, dim: int) -> nn.LayerNorm:
    return nn.LayerNorm(dim, eps=config["norm_eps"])


def _split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, N, C) -> (B, heads, N, d), channel c in head c // d."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def _merge_heads(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


class RPReLU(nn.Module):
    """[SPEC 3] For x (B, N, dim)."""

    def __init__(self, config: Config, dim: int) -> None:
        super().__init__()
        self.shift_in, self.slope, self.shift_out = (_parameter(dim) for _ in range(3))
        per_token = config["rprelu"] == "token"
        self.token_shift_in = _parameter(_tokens(config)) if per_token else None
        self.token_shift_out = _parameter(_tokens(config)) if per_token else None

        self.config = config

    def forward(self, x: Tensor, grid: ops.Grid) -> Tensor:
        shifts = (self.token_shift_in, self.token_shift_out)
        shifts = (s if s is None else _on_grid(s[:, None], self.config, grid)[:, 0] for s in shifts)
        return ops.rprelu(x, self.shift_in, self.slope, self.shift_out, *shifts)


class Projection(nn.Module):
    """[SPEC 5] P(x; I -> O): (B, N, I) -> (B, N, O)."""

    def __init__(self, config: Config, inputs: int, outputs: int) -> None:
        super().__init__()
        self.stage = {"binarize": config["binarize"], "ste": config["ste"]}
        self.move = _parameter(inputs)
        self.weight = _parameter(outputs, inputs)
        self.norm = _norm(config, outputs)
        self.rprelu = RPReLU(config, outputs)

    def fit(self, x: Tensor) -> Tensor:
        """The shortcut: repeated where the projection widens, averaged where it narrows."""
        outputs, inputs = self.weight.shape
        if outputs >= inputs:
            return x.repeat(1, 1, outputs // inputs)
        return F.avg_pool1d(x, inputs // outputs)

    def forward(self, x: Tensor, grid: ops.Grid) -> Tensor:
        linear = ops.binary_linear(x + self.move, self.weight, **self.stage)
        return self.rprelu(self.norm(linear) + self.fit(x), grid)


class Attention(nn.Module):
    """[SPEC 6.1, 6.2] Everything between LayerNorm1 and scale1, (B, N, C) -> (B, N, C)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        dim, heads = config["dim"], config["heads"]
        self.haar = config["similarity"] == "haar"
        self.names = ("q_low", "k_low", "q_high", "k_high", "v") if self.haar else ("q", "k", "v")
        for name in self.names:
            setattr(self, name, Projection(config, dim, dim))
            setattr(self, f"{name}_move", _parameter(dim))
        self.alpha = _parameter(*((heads, 1, 1) if config["alpha_scope"] == "head" else ()))
        if self.haar:
            self.band_weight = _parameter(2, heads)
        self.differential = config["attention"] == "differential"
        if self.differential:
            self.shortcut, self.neighbour = _parameter(dim), _parameter(dim)
        self.norm = _norm(config, dim)
        self.rprelu = RPReLU(config, dim)
        self.proj = Projection(config, dim, dim)

    def forward(self, x: Tensor, grid: ops.Grid) -> Tensor:
        binarize, heads = self.config["binarize"], self.config["heads"]
        real = {}  # m_t (B, N, C)
        bits = {}  # b_t (B, heads, N, d)
        for name, source in self._sources(x, grid).items():
            real[name] = getattr(self, name)(source, grid)
            moved = real[name] + getattr(self, f"{name}_move")
            if binarize in ("full", "activations"):
                moved = ops.sign(moved, self.config["ste"])
            bits[name] = _split_heads(moved, heads)
        prob = ops.softmax(*self._seen(self._scores(bits), grid))
        alpha, how = self._alpha(grid), self.config["context"]
        context = ops.boolean_attention(prob, bits["v"].mT, alpha, binarize, how)
        o = self.norm(_merge_heads(context)) + sum(real[name] for name in self.names[:-1])
        return self.proj(self.rprelu(o + self._values(real["v"], grid), grid), grid)

    def _alpha(self, grid: ops.Grid) -> Tensor:
        """[SPEC 6.3] For images of another size it shrinks as the number of keys grows."""
        own = _tokens(self.config)
        return self.alpha * (own / (own - math.prod(_grid(self.config)) + math.prod(grid)))

    def _seen(self, scores: Tensor, grid: ops.Grid) -> tuple[Tensor, Tensor | None]:
        """Scores, and which of them enter the softmax: without windows all, as they are."""
        return scores, None

    def _sources(self, x: Tensor, grid: ops.Grid) -> dict[str, Tensor]:
        """What each projection reads."""
        if not self.haar:
            return dict.fromkeys(self.names, x)
        config = self.config
        low, high = ops.bands(x, grid, config["haar_mode"], config["haar_cls"])
        return {"q_low": low, "k_low": low, "q_high": high, "k_high": high, "v": x}

    def _scores(self, bits: dict[str, Tensor]) -> Tensor:
        """(B, heads, N, N)"""
        head_dim = self.config["dim"] // self.config["heads"]
        if not self.haar:
            return ops.matmul(bits["q"], bits["k"]) / math.sqrt(head_dim)
        low = ops.matmul(bits["q_low"], bits["k_low"])
        high = ops.matmul(bits["q_high"], bits["k_high"])
        fixed = self.config["band_weights"] == "fixed"
        return ops.band_sum(
            low, high, self.band_weight.detach() if fixed else self.band_weight, head_dim
        )

    def _values(self, value: Tensor, grid: ops.Grid) -> Tensor:
        """The shortcut of m_v, with the differences of a token to its neighbours or without."""
        if not self.differential:
            return value
        mean = ops.neighbours(value, grid, self.config["neighbours"])
        return ops.differential(value, mean, self.shortcut, self.neighbour)


class Mlp(nn.Module):
    """[SPEC 6.1] P_down(P_up(x))."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        dim, hidden = config["dim"], config["dim"] * config["mlp_ratio"]
        self.up = Projection(config, dim, hidden)
        self.down = Projection(config, hidden, dim)

    def forward(self, x: Tensor, grid: ops.Grid) -> Tensor:
        return self.down(self.up(x, grid), grid)


class LayerScale(nn.Module):
    """[SPEC 6.1] alpha * x + beta."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.alpha, self.beta = _parameter(dim), _parameter(dim)

    def forward(self, x: Tensor) -> Tensor:
        return ops.layer_scale(x, self.alpha, self.beta)


class RealAttention(nn.Module):
    """[SPEC 6.3] DeiT's attention: softmax(q k^T / sqrt(d)) v."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.heads = config["heads"]
        self.qkv = nn.Linear(config["dim"], 3 * config["dim"])
        self.proj = nn.Linear(config["dim"], config["dim"])

    def forward(self, x: Tensor, grid: ops.Grid) -> Tensor:
        q, k, v = (_split_heads(t, self.heads) for t in self.qkv(x).chunk(3, dim=2))
        scores = self._seen(ops.matmul(q, k) / math.sqrt(q.shape[-1]), grid)
        return self.proj(_merge_heads(ops.softmax(*scores) @ v))

    def _seen(self, scores: Tensor, grid: ops.Grid) -> tuple[Tensor, Tensor | None]:
        return scores, None


class RealMlp(nn.Module):
    """[SPEC 6.3] fc1, GELU, fc2."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        dim, hidden = config["dim"], config["dim"] * config["mlp_ratio"]
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor, grid: ops.Grid) -> Tensor:
        return self.fc2(ops.gelu(self.fc1(x)))


class Block(nn.Module):
    """[SPEC 6.1, 6.3] Pre-norm, both halves with a shortcut; binary or real."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        dim = config["dim"]
        binary = {"binary": True, "real": False}[config["block"]]
        scaled = binary and config["layer_scale"]
        self.norm1, self.norm2 = _norm(config, dim), _norm(config, dim)
        self.attn = Attention(config) if binary else RealAttention(config)
        self.mlp = Mlp(config) if binary else RealMlp(config)
        self.scale1 = LayerScale(dim) if scaled else nn.Identity()
        self.scale2 = LayerScale(dim) if scaled else nn.Identity()

    def forward(self, x: Tensor, grid: ops.Grid) -> Tensor:
        x = x + self.scale1(self.attn(self.norm1(x), grid))
        return x + self.scale2(self.mlp(self.norm2(x), grid))


class PatchEmbed(nn.Module):
    """[SPEC 6.3] The real first layer."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        patch = config["patch_size"]
        self.weight = _parameter(config["dim"], config["channels"], patch, patch)
        self.bias = _parameter(config["dim"])

    def forward(self, image: Tensor) -> Tensor:
        return ops.patch_embed(image, self.weight, self.bias)


class VisionTransformer(nn.Module):
    """[SPEC 6.3] Images (B, channels, H, W) of any size that the patch divides -> logits (B, K).

    With a decoder (B, K, H, W) [SPEC 10].
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        dim = config["dim"]
        self.patch_embed = PatchEmbed(config)
        self.cls_token = _parameter(1, 1, dim) if config["pool"] == "cls" else None
        self.pos_embed = _parameter(1, _tokens(config), dim)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config["depth"]))
        self.config = config
        self.norm = _norm(config, dim)
        self.head = nn.Linear(dim, config["num_classes"])

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch_embed(images)
        if self.cls_token is not None:
            x = torch.cat((self.cls_token.expand(len(x), -1, -1), x), dim=1)
        grid = tuple(side // self.config["patch_size"] for side in images.shape[2:])
        x = x + _on_grid(self.pos_embed[0], self.config, grid)
        for block in self.blocks:
            x = block(x, grid)
        x = self.norm(x)
        if self.config.get("decoder") == "linear":
            return decode(self.head, x, grid, images.shape[2:])
        return self.head(x.mean(dim=1) if self.cls_token is None else x[:, 0])


def decode(head: nn.Linear, x: Tensor, grid: ops.Grid, size: tuple[int, int]) -> Tensor:
    """[SPEC 10] Tokens (B, N, C), those of the grid the last -> (B, num_classes, H, W)."""
    token = head(x[:, -math.prod(grid) :])
    return F.interpolate(token.mT.unflatten(2, grid), size, mode="bilinear", align_corners=False)


def fill(module: nn.Module, flat: Mapping[str, np.ndarray]) -> None:
    """Give `module` the parameters `flat` and their float type; names and shapes must match."""
    expected = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in flat.items()}
    if found != expected:
        different = sorted(set(found.items()) ^ set(expected.items()))
        raise ValueError(f"parameters differ in name or shape: {different[:6]}")
    dtypes = {value.dtype for value in flat.values()}
    if len(dtypes) != 1:
        raise TypeError(f"parameters: found float types {sorted(map(str, dtypes))}, expected one")
    tensors = {name: torch.tensor(value) for name, value in flat.items()}
    module.to(next(iter(tensors.values())).dtype).load_state_dict(tensors)


def build(config: Config, flat: Mapping[str, np.ndarray]) -> nn.Module:
    """The network of `config` with the parameters `flat` (dotted name -> array)."""
    from tests.torch_models import swin  # which is made of what is here

    module = swin.Swin(config) if config.get("window") else VisionTransformer(config)
    fill(module, flat)
    return module


def gradients(module: nn.Module) -> dict[str, np.ndarray]:
    """Dotted name -> gradient; zeros for a parameter that the loss did not reach."""
    return {name: (torch.zeros_like(value) if value.grad is None else value.grad).numpy()
            for name, value in module.named_parameters()}  # fmt: skip


def forward_backward(
    network: Callable[[Tensor], Tensor], images: np.ndarray, dlogits: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Logits (B, K) and the gradient of the images; parameters keep theirs for `gradients`."""
    tensor = torch.tensor(images, requires_grad=True)
    logits = network(tensor)
    logits.backward(torch.tensor(dlogits))
    return logits.detach().numpy(), tensor.grad.numpy()


def run(
    config: Config, flat: Mapping[str, np.ndarray], images: np.ndarray, dlogits: np.ndarray
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Logits, gradient of the images, gradients of the parameters, for the gradient `dlogits`."""
    module = build(config, flat)
    logits, dimages = forward_backward(module, images, dlogits)
    return logits, dimages, gradients(module)
