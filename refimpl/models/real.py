"""The real block of `deit` and `swin`: pre-norm attention and MLP [SPEC 6.3, 6.7].

As in `transformers` and `timm`. With windows attention is inside each, with its position bias.
"""

from __future__ import annotations

import math

from refimpl.models.config import Config, hidden_channels
from refimpl.models.parts import Parts
from refimpl.models.stage import Stage


def block(net: Parts, p: str, x: str, c: Config, s: Stage) -> str:
    """List mid = x + proj(attention(LayerNorm1(x))), y = mid + fc2(gelu(fc1(LayerNorm2(mid)))).

    With LayerScale each sum's second term is ls1(...), ls2(...) [SPEC 6.8].
    """
    net.at(f"{p}.norm1", p)
    y = _attention(net, f"{p}.attn", net.norm(f"{p}.norm1.out", f"{p}.norm1", x), c, s, p)
    y = net.layer_scale(f"{p}.ls1", y, "gamma", where=p) if c.layer_scale else y
    mid = net(f"{p}.mid", "add", [x, y], shell=True)
    net.at(f"{p}.norm2", p)
    y = net.norm(f"{p}.norm2.out", f"{p}.norm2", mid)
    net.at(f"{p}.mlp.fc1", p)
    y = net.linear(f"{p}.mlp.fc1.out", f"{p}.mlp.fc1", y, hidden_channels(c.mlp_ratio, s.dim))
    net.at(f"{p}.mlp.gelu", p)
    y = net(f"{p}.mlp.gelu.out", "gelu", [y])
    net.at(f"{p}.mlp.fc2", p)
    y = net.linear(f"{p}.mlp.fc2.out", f"{p}.mlp.fc2", y, s.dim)
    y = net.layer_scale(f"{p}.ls2", y, "gamma", where=p) if c.layer_scale else y
    return net(f"{p}.out", "add", [mid, y], shell=True)


def _attention(net: Parts, p: str, x: str, c: Config, s: Stage, where: str) -> str:
    """proj(softmax(q k^T / sqrt(d)) v), with q, k, v = qkv(x)."""
    net.at(f"{p}.qkv", where)
    qkv = net.linear(f"{p}.qkv.out", f"{p}.qkv", x, 3 * s.dim, bias=c.qkv_bias)
    parts = net([f"{p}.{t}" for t in "qkv"], "split", [qkv], tap="", parts=3)
    q, k, v = (net.cut(f"{t}.heads", t, s, transposed=t == parts[2], tap="") for t in parts)
    net.at(f"{p}.scores", where)
    scores = net.hidden(f"{p}.products", "matmul", [q, k])
    biased = net.position_bias(p, s)
    name, tap = (f"{p}.unbiased_scores", "") if biased else (f"{p}.scores", "real")
    scores = net(name, "divide", [scores], tap=tap, divisor=math.sqrt(c.head_dim))
    if biased:
        scores = net(f"{p}.scores", "position_bias", [scores], [biased])
    net.at(f"{p}.prob", where)
    prob = net.softmax(f"{p}.prob", scores, s)
    net.at(f"{p}.context", where)
    y = net.join(f"{p}.joined", net(f"{p}.context", "matmul", [prob, v]), s)
    net.at(f"{p}.proj", where)
    return net.linear(f"{p}.proj.out", f"{p}.proj", y, s.dim)
