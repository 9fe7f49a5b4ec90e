"""What the networks of others have besides [SPEC 6.8], and `binary` and `real` have not."""

from __future__ import annotations

from refimpl.models.config import BOXES, Config
from refimpl.models.parts import Parts
from refimpl.models.stage import Stage


def tokens(net: Parts, x: str, c: Config) -> str:
    """Make tokens of patches, with a distillation token, or with positions of the patches alone."""
    if c.window:
        x = net.norm("embed_norm.out", "embed_norm", x, shell=True, eps=c.merge_eps)
    front = {"cls_token": c.pool != "mean", "dist_token": c.distillation != "none"}
    paths = [
        net.param(path, (1, 1, c.dim), "class_token") for path, there in front.items() if there
    ]
    patches_only = c.position == "patches"
    steps = [("class_token", token, f"with_{token}") for token in reversed(paths)]  # nearest first
    position = net.per_token("pos_embed", "position", c.dim, patches_only)
    steps.insert(0 if patches_only else len(steps), ("position_embedding", position, "placed"))
    for op, param, name in steps[:-1]:
        x = net.hidden(name, op, [x], [param])
    op, param, _ = steps[-1]
    return net("tokens", op, [x], [param], shell=True)


def classify(net: Parts, x: str, c: Config) -> None:
    """List the logits of pooled patches, of a norm behind the pooling, or the mean of two heads."""
    if c.last_norm == "tokens":
        net.at("head")
    patches = net.hidden("patches", "drop_class_token", [x]) if c.pool == "patches" else x
    y = net.hidden("pooled", "pool", [patches], pool="cls" if c.pool == "cls" else "mean")
    if c.last_norm == "pooled":
        y = net.norm("norm.out", "norm", y, shell=True)
        net.at("head")
    if c.distillation != "head":
        net.linear("logits", "head", y, c.num_classes, shell=True)
        return
    first = net.linear("head.out", "head", y, c.num_classes)
    net.at("head_dist")
    x = net.hidden("without_cls_token", "drop_class_token", [x])
    x = net.hidden("pooled_dist", "pool", [x], pool="cls")
    second = net.linear("head_dist.out", "head_dist", x, c.num_classes)
    net.at("logits")
    total = net("head_sum", "add", [first, second])
    net("logits", "divide", [total], shell=True, divisor=2.0)


def binary_weights(net: Parts, p: str, z: str, weight: str) -> str:
    """List z W_b^T, with real activations."""
    used = net.hidden(f"{p}.weight.used", "weight_binarizer", [], [weight])
    return net(f"{p}.linear", "linear", [z], [used])


def boxes(net: Parts, p: str, x: str, c: Config, s: Stage) -> list[str]:
    """List scaled means of neighbours along both axes, terms of the MLP's sum."""
    found = []
    for side in BOXES[c.box]:
        for axis, name in enumerate(("rows", "columns")):
            q = f"{p}.box{side}.{name}"
            net.at(q)
            y = net(f"{q}.mean", "box", [x], grid=s.grid, side=side, axis=axis)
            found.append(net.layer_scale(q, y, "alpha", "beta"))
    return found
