"""All of `didb_*` and `react_*`, line by line as in [SPEC 5, 6]; read `network` first.

Every call adds one operation and gives the name of its output; `hidden` ones have no tap. `p` is
the path of a part, its names begin with it; `c` the configuration, `s` the stage of the part.
"""

from __future__ import annotations

import functools
import math

from refimpl.models import decoders, others, real, units
from refimpl.models.config import Config
from refimpl.models.nodes import INPUT, Network
from refimpl.models.parts import Parts
from refimpl.models.stage import Stage


@functools.lru_cache(maxsize=32)
def network(c: Config, image_size: tuple[int, int] | None = None) -> Network:
    """List the operations of a configuration, for its own images or those of another size."""
    net = Parts(c, c.replace(image_size=image_size or c.image_size))
    c, block = net.config, _block if c.block == "binary" else real.block
    x = _embed(net, c)
    for i in range(c.num_blocks):
        net.block = None
        if i in c.merges:
            net.features.append(x)
            x = _merge(net, f"merges.{c.merges[i]}", x, c, net.enter(i))
        net.block = i
        x = block(net, f"blocks.{i}", x, c, net.enter(i))
    net.block = None
    net.at("norm")
    if c.last_norm == "tokens":
        x = net.norm("norm.out", "norm", x, shell=True)
    (_classify if c.decoder == "none" else decoders.pixels)(net, x, c)
    return net.network()


def _embed(net: Parts, c: Config) -> str:
    """Patches to tokens [SPEC 6.3], with windows [SPEC 6.7]."""
    C, p, _ = c.dim, c.patch_size, net.enter(0)
    net.at("patch_embed")
    kernel = net.param("patch_embed.weight", (C, c.channels, p, p), "kernel")
    bias = net.param("patch_embed.bias", (C,), "bias")
    x = net("patch_embed.out", "patch_embed", [INPUT], [kernel, bias], shell=True)
    net.at("tokens")
    if c.distillation != "none" or c.position != "usual":
        return others.tokens(net, x, c)
    if c.window:
        return net.norm("tokens", "embed_norm", x, shell=True, eps=c.merge_eps)
    if c.pool != "mean":
        token = net.param("cls_token", (1, 1, C), "class_token")
        x = net.hidden("with_cls_token", "class_token", [x], [token])
    position = net.per_token("pos_embed", "position", C)
    return net("tokens", "position_embedding", [x], [position], shell=True)


def _merge(net: Parts, p: str, x: str, c: Config, s: Stage) -> str:
    """Patch merging, which leads to stage s [SPEC 6.7]."""
    net.at(f"{p}.norm", p)
    x = net(f"{p}.patches", "merge_patches", [x], grid=(2 * s.grid[0], 2 * s.grid[1]))
    x = net.norm(f"{p}.norm.out", f"{p}.norm", x, eps=c.merge_eps)
    if c.block == "binary":
        return projection(net, f"{p}.proj", x, s.dim, c, shell=True)
    net.at(f"{p}.proj")
    return net.linear(f"{p}.proj.out", f"{p}.proj", x, s.dim, shell=True, bias=False)


def _classify(net: Parts, x: str, c: Config) -> None:
    """The logits, of the class token or of the mean [SPEC 6.3]."""
    if c.pool == "patches" or c.last_norm == "pooled" or c.distillation == "head":
        return others.classify(net, x, c)
    net.at("head")
    y = net.hidden("pooled", "pool", [x], pool=c.pool)
    net.linear("logits", "head", y, c.num_classes, shell=True)


def _block(net: Parts, p: str, x: str, c: Config, s: Stage) -> str:
    """mid = x + scale1(attention(LayerNorm1(x))), then likewise the MLP [SPEC 6.1]."""
    net.at(f"{p}.norm1")
    y = _attention(net, f"{p}.attn", net.norm(f"{p}.norm1.out", f"{p}.norm1", x), c, s)
    y = net.layer_scale(f"{p}.scale1", y, "alpha", "beta") if c.layer_scale else y
    mid = net(f"{p}.mid", "add", [x, y], shell=True)
    net.at(f"{p}.norm2")
    n2 = net.norm(f"{p}.norm2.out", f"{p}.norm2", mid)
    y = projection(net, f"{p}.mlp.up", n2, c.mlp_ratio * s.dim, c)
    y = projection(net, f"{p}.mlp.down", y, s.dim, c)
    y = net.layer_scale(f"{p}.scale2", y, "alpha", "beta") if c.layer_scale else y
    return net(f"{p}.out", "add", [mid, y, *others.boxes(net, p, n2, c, s)], shell=True)


def projection(net: Parts, p: str, x: str, outputs: int, c: Config, shell: bool = False) -> str:
    """List P(x) = RPReLU(LayerNorm(sign(x + move) W_b^T) + fit(x)) [SPEC 5]."""
    net.at(p)
    inputs = net.channels(x)
    with units.projection(net, c):
        x = net.hidden(f"{p}.x", "identity", [x])  # what the projection adds to dx is one term
        z = net(f"{p}.z", "shift", [x], [net.param(f"{p}.move", (inputs,), "move")], tap="reader")
        weight = net.param(f"{p}.weight", (outputs, inputs), net.matrix)
        if c.binarize == "weights":
            y = others.binary_weights(net, p, z, weight)
        else:
            y = net(
                f"{p}.linear", "binary_linear", [z], [weight],
                inside=net.inside(p, "weight.z", "weight.bit", "weight.scale", "bit", "int"),
                binarize=c.binarize, ste=c.ste,
            )  # fmt: skip
        y = net.norm(f"{p}.norm", f"{p}.norm", y)
        y = net.hidden(f"{p}.sum", "add", [y, net.hidden(f"{p}.fit", "fit", [x], outputs=outputs)])
        return _activate(net, p, y, c, shell)


def _activate(net: Parts, p: str, x: str, c: Config, shell: bool = False) -> str:
    """The improved RPReLU [SPEC 3]."""
    C, q = net.channels(x), f"{p}.rprelu"
    roles = {"shift_in": "shift", "slope": "slope", "shift_out": "shift"}
    params = [net.param(f"{q}.{leaf}", (C,), role) for leaf, role in roles.items()]
    if c.rprelu == "token":
        for leaf in ("token_shift_in", "token_shift_out"):
            params.append(net.per_token(f"{q}.{leaf}", "token_shift"))
    return net(f"{p}.out", "rprelu", [x], params, shell=shell)


def _attention(net: Parts, p: str, x: str, c: Config, s: Stage) -> str:
    """o = RPReLU(LayerNorm(Att b_v) + m_q + m_k + value), then P(o) [SPEC 6.1, 6.2]."""
    net.where = p
    read = dict.fromkeys(c.attention_inputs, x)  # t: what P_t reads
    if c.similarity == "haar":
        net.at(f"{p}.bands", p)
        names, options = (f"{p}.low", f"{p}.high"), {"mode": c.haar_mode, "cls": c.haar_cls}
        low, high = net(names, "bands", [x], grid=s.grid, **options)
        read |= {"q_low": low, "k_low": low, "q_high": high, "k_high": high}
    with units.attention(net, c, s):
        m, b = {}, {}
        with net.branches() as branch:
            for t, source in read.items():
                branch(t)
                m[t] = projection(net, f"{p}.{t}", source, s.dim, c)
                b[t] = _signs(net, f"{p}.{t}", m[t], c, s, transposed=t == "v")
        for t in read:
            net.put_last(f"{p}.{t}_move")
        own = net.attention_params(p, c, s)
        net.at(f"{p}.scores", p)
        scores = _scores(net, p, b, own, c, s)
        net.at(f"{p}.prob", p)
        prob = net.softmax(f"{p}.prob", scores, s, tap="gradient" if c.has_signs else "real")
        net.at(f"{p}.context", p)
        inside = net.inside(p, "prob.z", "prob.bit", "context.int")
        y = net(
            f"{p}.context", "boolean_attention", [prob, b["v"]], [own["alpha"]],
            inside=inside, binarize=c.binarize if c.has_signs else "none", context=c.context,
        )  # fmt: skip
        net.at(f"{p}.norm", p)
        y = net.norm(f"{p}.norm.out", f"{p}.norm", net.join(f"{p}.joined", y, s))
        net.at(f"{p}.differential", p)
        value = m["v"] if c.attention == "plain" else _differential(net, p, m["v"], own, c, s)
        net.at(f"{p}.rprelu", p)
        shortcuts = [m[t] for t in read if t != "v"]
        o = _activate(net, p, net.hidden(f"{p}.sum", "add", [y, *shortcuts, value]), c)
    return projection(net, f"{p}.proj", o, s.dim, c)


def _signs(net: Parts, p: str, m: str, c: Config, s: Stage, transposed: bool) -> str:
    """b = sign(m + move), cut into windows and heads."""
    z = net.hidden(f"{p}.moved", "shift", [m], [net.param(f"{p}_move", (s.dim,), "move")])
    z = net.cut(f"{p}.head_z", z, s, transposed)
    return net(f"{p}.head_bit", "sign", [z], tap="bit", ste=c.ste) if c.has_signs else z


def _scores(net: Parts, p: str, b: dict[str, str], own: dict, c: Config, s: Stage) -> str:
    """b_q b_k^T / sqrt(d), or the weighted sum of both bands, plus the position bias of windows."""
    tap, products = "int" if c.has_signs else "", []
    with net.branches() as branch:
        for band in c.bands:
            branch(band)
            pair = [b[f"q{band}"], b[f"k{band}"]]
            products.append(net(f"{p}.scores{band}.int", "matmul", pair, tap=tap))
    name, tap = (f"{p}.unbiased_scores", "") if s.window else (f"{p}.scores", "real")
    if c.similarity == "plain":
        y = net(name, "divide", products, tap=tap, divisor=math.sqrt(c.head_dim))
    else:
        weights = own["band_weight"]
        if c.band_weights == "fixed":
            weights = net.hidden(f"{p}.fixed_weights", "stop_gradient", [], [weights])
        y = net(name, "band_sum", products, [weights], tap=tap, head_dim=c.head_dim)
    return net(f"{p}.scores", "position_bias", [y], [own["position_bias"]]) if s.window else y


def _differential(net: Parts, p: str, value: str, own: dict, c: Config, s: Stage) -> str:
    """lam_s m_v - lam_n neighbour_mean(m_v) [SPEC 6.2]."""
    op, options = "neighbours", {"grid": s.grid, "border": c.neighbours}
    if c.neighbours == "none":  # the control of an ablation: the mean is 0
        op, options = "rescale", {"factor": 0.0}
    mean = net(f"{p}.neighbour_mean", op, [value], **options)
    weights = [own["shortcut"], own["neighbour"]]
    return net.hidden(f"{p}.value_term", "differential", [value, mean], weights)
