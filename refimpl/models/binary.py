"""The binary network, line by line as in [SPEC 5, 6]: `react_*`, `didb_*`, with windows or without.

Read `network` first. Every call adds one operation to the list and gives the name of its output;
`hidden` ones have no tap. `p` is the path of a part, which begins the names of its values and
parameters; `c` the configuration, `s` the stage in which the part works.
"""

from __future__ import annotations

import functools
import math
from contextlib import nullcontext

from refimpl.models import decoders, real
from refimpl.models.config import BOXES, Config
from refimpl.models.nodes import INPUT, Network
from refimpl.models.parts import Parts
from refimpl.models.stage import Stage


@functools.lru_cache(maxsize=32)
def network(c: Config, image_size: tuple[int, int] | None = None) -> Network:
    """List the operations of a configuration, for its own images or those of another size."""
    net = Parts(c, c.replace(image_size=image_size or c.image_size))
    c = net.config
    x = _embed(net, c)
    for i in range(c.num_blocks):
        if i in c.merges:
            net.features.append(x)
            x = _merge(net, f"merges.{c.merges[i]}", x, c, net.enter(i))
        block = _block if c.block == "binary" else real.block
        x = block(net, f"blocks.{i}", x, c, net.enter(i))
    net.at("norm")
    if c.last_norm == "tokens":
        x = net.norm("norm.out", "norm", x, shell=True)
    if c.decoder != "none":
        decoders.pixels(net, x, c)
    else:
        _classify(net, x, c)
    return net.network()


def _embed(net: Parts, c: Config) -> str:
    """Patches to tokens [SPEC 6.3], with windows [SPEC 6.7]."""
    C, p, _ = c.dim, c.patch_size, net.enter(0)
    net.at("patch_embed")
    kernel = net.param("patch_embed.weight", (C, c.channels, p, p), "kernel")
    bias = net.param("patch_embed.bias", (C,), "bias")
    x = net("patch_embed.out", "patch_embed", [INPUT], [kernel, bias], shell=True)
    net.at("tokens")
    if c.window:
        usual = c.position == "usual"
        name = "tokens" if usual else "embed_norm.out"
        x = net.norm(name, "embed_norm", x, shell=True, eps=c.merge_eps)
        if usual:
            return x
    front = {"cls_token": c.pool != "mean", "dist_token": c.distillation != "none"}
    front = [net.param(path, (1, 1, C), "class_token") for path, there in front.items() if there]
    patches_only = c.position == "patches"
    steps = [("class_token", token, f"with_{token}") for token in reversed(front)]  # nearest first
    position = net.per_token("pos_embed", "position", C, patches_only)
    steps.insert(0 if patches_only else len(steps), ("position_embedding", position, "placed"))
    for op, param, name in steps[:-1]:
        x = net.hidden(name, op, [x], [param])
    op, param, _ = steps[-1]
    return net("tokens", op, [x], [param], shell=True)


def _classify(net: Parts, x: str, c: Config) -> None:
    """One vector an image, and the logits; with distillation the mean of two heads [SPEC 6.8]."""
    if c.last_norm == "tokens":
        net.at("head")
    tokens = net.hidden("patches", "drop_class_token", [x]) if c.pool == "patches" else x
    y = net.hidden("pooled", "pool", [tokens], pool="cls" if c.pool == "cls" else "mean")
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


def _block(net: Parts, p: str, x: str, c: Config, s: Stage) -> str:
    """mid = x + scale1(attention(LayerNorm1(x))), then likewise the MLP [SPEC 6.1]."""
    net.at(f"{p}.norm1")
    y = _attention(net, f"{p}.attn", net.norm(f"{p}.norm1.out", f"{p}.norm1", x), c, s)
    mid = net(f"{p}.mid", "add", [x, _scaled(net, f"{p}.scale1", y, c, s)], shell=True)
    net.at(f"{p}.norm2")
    y = net.norm(f"{p}.norm2.out", f"{p}.norm2", mid)
    y = projection(net, f"{p}.mlp.up", y, c.mlp_ratio * s.dim, c)
    y = projection(net, f"{p}.mlp.down", y, s.dim, c)
    y = _scaled(net, f"{p}.scale2", y, c, s)
    boxes = _boxes(net, p, f"{p}.norm2.out", c, s)
    return net(f"{p}.out", "add", [mid, y, *boxes], shell=True)


def _boxes(net: Parts, p: str, x: str, c: Config, s: Stage) -> list[str]:
    """Scaled means of neighbours along both axes, terms of the MLP's sum [SPEC 6.8]."""
    found = []
    for side in BOXES[c.box]:
        for axis, name in enumerate(("rows", "columns")):
            q = f"{p}.box{side}.{name}"
            net.at(q)
            y = net(f"{q}.mean", "box", [x], grid=s.grid, side=side, axis=axis)
            params = [
                net.param(f"{q}.alpha", (s.dim,), "layer_scale"),
                net.param(f"{q}.beta", (s.dim,), "bias"),
            ]
            found.append(net.hidden(q, "layer_scale", [y], params))
    return found


def _scaled(net: Parts, p: str, x: str, c: Config, s: Stage) -> str:
    if not c.layer_scale:
        return x
    net.at(p)
    alpha = net.param(f"{p}.alpha", (s.dim,), "layer_scale")
    return net.hidden(p, "layer_scale", [x], [alpha, net.param(f"{p}.beta", (s.dim,), "bias")])


def projection(net: Parts, p: str, x: str, outputs: int, c: Config, shell: bool = False) -> str:
    """P(x) = RPReLU(LayerNorm(sign(x + move) W_b^T) + fit(x)) [SPEC 5]."""
    net.at(p)
    inputs = net.channels(x)
    unit = net.unit("projection", x, binarize=c.binarize, ste=c.ste, eps=c.norm_eps)
    with unit if c.norm == "layer" and c.binarize != "weights" else nullcontext():
        x = net.hidden(f"{p}.x", "identity", [x])  # what the projection adds to dx is one term
        z = net(f"{p}.z", "shift", [x], [net.param(f"{p}.move", (inputs,), "move")], tap="reader")
        y = _product(net, p, z, outputs, c)
        y = net.norm(f"{p}.norm", f"{p}.norm", y)
        y = net.hidden(f"{p}.sum", "add", [y, net.hidden(f"{p}.fit", "fit", [x], outputs=outputs)])
        return _activate(net, p, y, c, shell)


def _product(net: Parts, p: str, z: str, outputs: int, c: Config) -> str:
    """sign(z) W_b^T, in other stages z or W as they are [SPEC 2]."""
    weight = net.param(f"{p}.weight", (outputs, net.channels(z)), net.matrix)
    if c.binarize == "weights":
        used = net.hidden(f"{p}.weight.used", "weight_binarizer", [], [weight])
        return net(f"{p}.linear", "linear", [z], [used])
    return net(
        f"{p}.linear", "binary_linear", [z], [weight],
        inside=net.inside(p, "weight.z", "weight.bit", "weight.scale", "bit", "int"),
        binarize=c.binarize, ste=c.ste,
    )  # fmt: skip


def _activate(net: Parts, p: str, x: str, c: Config, shell: bool = False) -> str:
    """The improved RPReLU [SPEC 3]."""
    C, q = net.channels(x), f"{p}.rprelu"
    params = [
        net.param(f"{q}.shift_in", (C,), "shift"),
        net.param(f"{q}.slope", (C,), "slope"),
        net.param(f"{q}.shift_out", (C,), "shift"),
    ]
    if c.rprelu == "token":
        for leaf in ("token_shift_in", "token_shift_out"):
            params.append(net.per_token(f"{q}.{leaf}", "token_shift"))
    return net(f"{p}.out", "rprelu", [x], params, shell=shell)


def _attention(net: Parts, p: str, x: str, c: Config, s: Stage) -> str:
    """Queries, keys and values, their product, what comes back beside it [SPEC 6.1, 6.2]."""
    net.where = p
    bands = dict.fromkeys(c.attention_inputs, x)  # what each projection reads
    if c.similarity == "haar":
        net.at(f"{p}.bands", p)
        low, high = net(
            (f"{p}.low", f"{p}.high"), "bands", [x], grid=s.grid, mode=c.haar_mode, cls=c.haar_cls
        )
        bands |= {"q_low": low, "k_low": low, "q_high": high, "k_high": high}
    m, b = {}, {}
    with net.branches() as branch:
        for t, source in bands.items():
            branch(t)
            m[t] = projection(net, f"{p}.{t}", source, s.dim, c)
            b[t] = _signs(net, f"{p}.{t}", m[t], c, s, transposed=t == "v")
    for t in bands:
        net.put_last(f"{p}.{t}_move")
    own = _own_params(net, p, c, s)
    scores = _scores(net, p, b, own, c, s)
    net.at(f"{p}.prob", p)
    prob = net.softmax(f"{p}.prob", scores, s, tap="gradient" if c.has_signs else "real")
    net.at(f"{p}.context", p)
    y = net(
        f"{p}.context", "boolean_attention", [prob, b["v"]], [own["alpha"]],
        inside=net.inside(p, "prob.z", "prob.bit", "context.int"),
        binarize=c.binarize if c.has_signs else "none", context=c.context,
    )  # fmt: skip
    net.at(f"{p}.norm", p)
    y = net.norm(f"{p}.norm.out", f"{p}.norm", net.join(f"{p}.joined", y, s))
    value = m["v"]
    if c.attention == "differential":
        value = _differential(net, p, value, own, c, s)
    net.at(f"{p}.rprelu", p)
    shortcuts = [m[t] for t in c.attention_inputs if t != "v"]
    y = _activate(net, p, net.hidden(f"{p}.sum", "add", [y, *shortcuts, value]), c)
    return projection(net, f"{p}.proj", y, s.dim, c)


def _own_params(net: Parts, p: str, c: Config, s: Stage) -> dict[str, str]:
    """Parameters of attention that are no projection's, in the order of files [SPEC 6.4]."""
    net.at(f"{p}.prob", p)
    shape = (s.heads, 1, 1) if c.alpha_scope == "head" else ()
    own = {"alpha": net.alpha(f"{p}.alpha", shape)}
    net.at(f"{p}.scores", p)
    if c.similarity == "haar":
        own["band_weight"] = net.param(f"{p}.band_weight", (2, s.heads), "band_weight")
    own["position_bias"] = net.position_bias(p, s)
    if c.attention == "differential":
        net.at(f"{p}.differential", p)
        own["shortcut"] = net.param(f"{p}.shortcut", (s.dim,), "shortcut")
        own["neighbour"] = net.param(f"{p}.neighbour", (s.dim,), "neighbour")
    return own


def _signs(net: Parts, p: str, m: str, c: Config, s: Stage, transposed: bool) -> str:
    """b = sign(m + move), cut into windows and heads."""
    z = net.hidden(f"{p}.moved", "shift", [m], [net.param(f"{p}_move", (s.dim,), "move")])
    z = net.cut(f"{p}.head_z", z, s, transposed)
    return net(f"{p}.head_bit", "sign", [z], tap="bit", ste=c.ste) if c.has_signs else z


def _scores(net: Parts, p: str, b: dict[str, str], own: dict, c: Config, s: Stage) -> str:
    """Products of queries and keys, of both bands with Haar, plus the position bias of windows."""
    net.at(f"{p}.scores", p)
    tap, products = "int" if c.has_signs else "", []
    with net.branches() as branch:
        for band in c.bands:
            branch(band)
            pair = [b[f"q{band}"], b[f"k{band}"]]
            products.append(net(f"{p}.scores{band}.int", "matmul", pair, tap=tap))
    last = f"{p}.scores"
    name = last if not s.window else f"{p}.unbiased_scores"
    tap = "real" if name == last else ""
    if c.similarity == "haar":
        weights = own["band_weight"]
        if c.band_weights == "fixed":
            weights = net.hidden(f"{p}.fixed_weights", "stop_gradient", [], [weights])
        y = net(name, "band_sum", products, [weights], tap=tap, head_dim=c.head_dim)
    else:
        y = net(name, "divide", products, tap=tap, divisor=math.sqrt(c.head_dim))
    return net(last, "position_bias", [y], [own["position_bias"]]) if s.window else y


def _differential(net: Parts, p: str, value: str, own: dict, c: Config, s: Stage) -> str:
    """lam_s m_v - lam_n neighbour_mean(m_v) [SPEC 6.2]."""
    net.at(f"{p}.differential", p)
    op, options = "neighbours", {"grid": s.grid, "border": c.neighbours}
    if c.neighbours == "none":  # the control of an ablation: the mean is 0
        op, options = "rescale", {"factor": 0.0}
    mean = net(f"{p}.neighbour_mean", op, [value], **options)
    return net.hidden(
        f"{p}.value_term", "differential", [value, mean], [own["shortcut"], own["neighbour"]]
    )


def _merge(net: Parts, p: str, x: str, c: Config, s: Stage) -> str:
    """Patch merging, which leads to stage s [SPEC 6.7]."""
    gh, gw = s.grid
    net.at(f"{p}.norm", p)
    x = net(f"{p}.patches", "merge_patches", [x], grid=(2 * gh, 2 * gw))
    x = net.norm(f"{p}.norm.out", f"{p}.norm", x, eps=c.merge_eps)
    if c.block == "binary":
        return projection(net, f"{p}.proj", x, s.dim, c, shell=True)
    net.at(f"{p}.proj")
    weight = net.param(f"{p}.proj.weight", (s.dim, 2 * s.dim), "matrix")
    return net(f"{p}.proj.out", "linear", [x], [weight], shell=True)
