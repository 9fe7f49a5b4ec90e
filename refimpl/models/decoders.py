"""From tokens to the logits of every pixel: decoder="linear" and decoder="fpn" [SPEC 10]."""

from __future__ import annotations

from collections.abc import Callable

from refimpl.models.config import Config
from refimpl.models.parts import Parts

Grid = tuple[int, int]


def pixels(net: Parts, x: str, c: Config) -> str:
    """List the way from x, the last norm's output, to the logits of every pixel."""
    grid = c.decoded_stage.grid
    if c.decoder == "fpn":
        x = _pyramid(net, [*net.features, x], c)
    elif c.num_prefix_tokens:
        x = net.hidden("patches", "drop_class_token", [x])
    net.at("head")
    token = net.linear("head.out", "head", x, c.num_classes, shell=True)
    net.at("logits")
    image = net.hidden("head.grid", "to_grid", [token], grid=grid)
    return net(
        "logits", "interpolate", [image], shell=True, size=c.image_size, mode="bilinear"
    )


def _pyramid(net: Parts, features: list[str], c: Config) -> str:
    """Outputs of all stages, the last one normalised -> GELU(sum of the levels on stage 0's grid).

    lateral_s = LayerNorm_s(x_s) W_s^T + b_s
    top_s     = lateral_s + top_{s+1} on the grid of stage s
    smooth_s  = conv_s(top_s)
    """
    with net.branches() as level:
        tops = _tops(net, features, c, level)
        smooths = []
        for s, (stage, top) in enumerate(zip(c.stages, tops, strict=True)):
            level(s)
            net.at(f"decoder.{s}.smooth")
            net.stage = stage
            params = [f"decoder.{s}.smooth.weight", f"decoder.{s}.smooth.bias"]
            name = f"decoder.{s}.smooth.out"
            smooths.append(net(name, "convolution", [top], params, grid=stage.grid))
        net.at("decoder.sum")
        first, placed = c.decoded_stage.grid, []
        for s, (stage, smooth) in enumerate(zip(c.stages, smooths, strict=True)):
            level(s)
            placed.append(_enlarged(net, f"decoder.{s}.placed", smooth, stage.grid, first))
    net.stage = c.decoded_stage
    total = net("decoder.sum", "add", placed)
    net.at("decoder.gelu")
    return net("decoder.gelu.out", "gelu", [total], shell=True)


def _tops(net: Parts, features: list[str], c: Config, level: Callable[[int], None]) -> list[str]:
    stages, last = list(c.stages), len(features) - 1
    tops = []
    for s, x in enumerate(features):
        level(s)
        net.stage = stages[s]
        if s < last:
            net.at(f"decoder.{s}.norm")
            x = net.norm(f"decoder.{s}.norm.out", f"decoder.{s}.norm", x)
        net.at(f"decoder.{s}.lateral")
        tops.append(net.linear(f"decoder.{s}.lateral.out", f"decoder.{s}.lateral", x, c.dim))
        net.at(f"decoder.{s}.smooth")  # in files behind lateral
        net.param(f"decoder.{s}.smooth.weight", (c.dim, c.dim, 3, 3), "kernel")
        net.param(f"decoder.{s}.smooth.bias", (c.dim,), "bias")
    for s in reversed(range(last)):
        level(s)
        net.at(f"decoder.{s}.top")
        net.stage = stages[s]
        grid, above = stages[s].grid, stages[s + 1].grid
        above = _enlarged(net, f"decoder.{s}.above", tops[s + 1], above, grid)
        tops[s] = net(f"decoder.{s}.top", "add", [tops[s], above])
    return tops


def _enlarged(net: Parts, name: str, x: str, grid: Grid, size: Grid) -> str:
    """Tokens of one grid on another, bilinearly."""
    image = net.hidden(f"{name}.grid", "to_grid", [x], grid=grid)
    image = net.hidden(f"{name}.image", "interpolate", [image], size=size, mode="bilinear")
    return net.hidden(name, "from_grid", [image])
