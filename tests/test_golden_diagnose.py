"""The cause of a difference: every fingerprint is found by its name, and noise has none."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest

from refimpl import ops
from refimpl.golden import bounds, coordinates, diagnose, record
from refimpl.models import VisionTransformer, flatten, unflatten
from refimpl.models.packing import pack_rows
from tests import networks

A = "blocks.1.attn."
UP, DOWN, PROJ = "blocks.1.mlp.up.", "blocks.1.mlp.down.", f"{A}proj."


class Setting(NamedTuple):
    """A network's reference, as a bundle has it."""

    model: VisionTransformer
    params: dict[str, Any]
    steps: dict[str, record.Step]

    @property
    def reference(self) -> bounds.Reference:
        return bounds.Reference(self.model.network, flatten(self.params), self.steps)

    def value(self, name: str) -> np.ndarray:
        return self.steps[name].value

    def ask(self, name: str, dumped: np.ndarray, **others: np.ndarray) -> str | None:
        """The cause of the tap, if all else was dumped rightly, or as `others` say.

        Bits packed or not; the z of a bit was not dumped.
        """
        step, found = self.steps[name], dumped
        if step.value.dtype == bool and dumped.dtype == np.uint8:
            bits = unpacked(dumped, step.value.shape[-1])
            found = bits if bits.shape == step.value.shape else dumped
        verdict = SimpleNamespace(
            name=name,
            kind=record.kind_of(step.value),
            verdict="FAIL",
            expected=step.value,
            candidate=found,
            tolerance=np.full(step.value.shape, 1e-9 * np.abs(step.value).max(initial=1e-9)),
        )
        right = {n: s.value for n, s in self.steps.items() if n != "input"}
        if step.value.dtype == bool:
            del right[step.z]
        return diagnose.cause(verdict, self, {**right, name: dumped, **others})


def setting(**fields: Any) -> Setting:
    sizes = {"image_size": (6, 8), "dim": 70, "heads": 5}  # a grid of 3 x 4, rows of two words
    config = networks.small(**{**networks.DIDB, **sizes, **fields})
    model, params, images, dlogits = networks.make(config, 3)
    return Setting(model, params, record.trace(model, params, images, dlogits))


DIDB = setting()
SEGMENTER = setting(decoder="linear")
REACT = setting(similarity="plain", attention="plain", rprelu="channel")
DEIT = setting(block="real", norm_eps=1e-6, similarity="plain", attention="plain", rprelu="channel")
CLIP = setting(ste="clip")


def with_params(s: Setting, changes: dict[str, Callable[[np.ndarray], np.ndarray]]) -> Any:
    """The reference of the same network with other parameters, fed the right inputs tap by tap."""
    flat = flatten(s.params)
    flat |= {path: change(flat[path]) for path, change in changes.items()}
    return record.trace(s.model, unflatten(flat), s.value("input"), s.value("grads/logits"))


def op_with(s: Setting, name: str, path: str, change: Callable) -> np.ndarray:
    """One tap from the right inputs, by the operation with one parameter changed."""
    step = with_params(s, {path: change})[name]
    return step.op(*map(s.value, step.inputs))


def op_of(s: Setting, name: str, **fields: Any) -> np.ndarray:
    """One tap from the right inputs, by the operation with other fields."""
    other = s.model.replace(**fields)
    step = record.trace(other, s.params, s.value("input"), s.value("grads/logits"))[name]
    return step.op(*map(s.value, step.inputs))


def packed(dtype: str = "u1", order: str = "words") -> Callable[[np.ndarray], np.ndarray]:
    """Packed rows as other programs write them: words of another type, or in another order."""

    def changed(bit: np.ndarray) -> np.ndarray:
        rows = pack_rows(bit)
        words = rows.view(dtype)
        if order == "bytes":
            words = words.byteswap()
        elif order == "bits":
            bits = np.unpackbits(rows, axis=-1, bitorder="little")
            bits = bits.reshape(*words.shape, -1)[..., ::-1].reshape(bits.shape)
            return np.packbits(bits, axis=-1, bitorder="little")
        elif order == "halves":
            words = words.reshape(*words.shape[:-1], -1, 2)[..., ::-1].reshape(words.shape)
        else:
            words = words[..., ::-1]
        return np.ascontiguousarray(words).view(np.uint8)

    return changed


def unpacked(rows: np.ndarray, count: int) -> np.ndarray:
    """What a program takes for the bits of a row."""
    return np.unpackbits(rows, axis=-1, bitorder="little")[..., :count].astype(bool)


def patches(x: np.ndarray) -> np.ndarray:
    """(B, N, C) -> a copy (B, gh, gw, C) without the class token."""
    return x[:, 1:].reshape(len(x), 3, 4, -1).copy()


def with_patches(x: np.ndarray, new: np.ndarray) -> np.ndarray:
    return np.concatenate([x[:, :1], new.reshape(x[:, 1:].shape)], axis=1)


def high_of(s: Setting, combine: Callable) -> np.ndarray:
    """The high band with its details put together in another way."""
    x = s.value("blocks.1.norm1.out")
    _, details = ops.haar.swt2(patches(x).transpose(0, 3, 1, 2), "edge", norm="average")
    return with_patches(x, combine(*details).transpose(0, 2, 3, 1))


def projection_out(s: Setting, name: str, fit: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """P with another fit of the shortcut."""
    norm, source = (s.value(read) for read in s.steps[f"{name}out"].inputs)
    return ops.rprelu.forward(norm + fit(source), **rprelu_of(s, name))[0]


def rprelu_of(s: Setting, name: str) -> dict[str, np.ndarray]:
    start = f"{name}rprelu."
    flat = flatten(s.params)
    return {path.removeprefix(start): v for path, v in flat.items() if path.startswith(start)}


def before_rprelu(s: Setting, name: str) -> np.ndarray:
    norm, source = (s.value(read) for read in s.steps[f"{name}out"].inputs)
    return norm + ops.fit.forward(source, norm.shape[-1])[0]


def wrong_side(s: Setting, name: str) -> np.ndarray:
    p = rprelu_of(s, name)
    u = before_rprelu(s, name) - p["shift_in"] - p["token_shift_in"][:, None]
    y = np.where(u > 0, p["slope"] * u, u)
    return y + p["shift_out"] + p["token_shift_out"][:, None]


def other_axis(s: Setting, name: str) -> np.ndarray:
    """Token n of the shifts added to channel n mod N."""
    p = rprelu_of(s, name)
    y = before_rprelu(s, name)
    index = np.arange(y.shape[-1]) % y.shape[1]
    u = y - p["shift_in"] - p["token_shift_in"][index]
    return np.where(u > 0, u, p["slope"] * u) + p["shift_out"] + p["token_shift_out"][index]


def unbiased(s: Setting, name: str) -> np.ndarray:
    linear, p = s.value(f"{name}linear"), flatten(s.params)
    centred = linear - linear.mean(-1, keepdims=True)
    std = np.sqrt((centred**2).sum(-1, keepdims=True) / (linear.shape[-1] - 1) + 1e-5)
    return centred / std * p[f"{name}norm.weight"] + p[f"{name}norm.bias"]


def weight_gradient(s: Setting, name: str, centre: bool, scale: bool) -> np.ndarray:
    """dW with a step of the way back forgotten, or one too many."""
    dlinear = s.value(f"grads/{name}linear")
    bit = np.where(s.value(f"{name}bit"), 1.0, -1.0)
    W = flatten(s.params)[f"{name}weight"]
    Wc = W - W.mean(axis=1, keepdims=True)
    dused = np.einsum("bno,bni->oi", dlinear, bit)
    dW = dused * (np.abs(Wc) <= 1)
    if centre:
        dW = dW - dW.mean(axis=1, keepdims=True)
    if scale:
        through = (dused * np.where(Wc >= 0, 1, -1)).sum(axis=1, keepdims=True)
        dW = dW + through * np.sign(W) / W.shape[1]
    return dW


def signs(bit: np.ndarray) -> np.ndarray:
    return np.where(bit, 1, -1)


def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a @ b.swapaxes(-1, -2)).astype(np.int32)


def softmax(scores: np.ndarray, axis: int) -> np.ndarray:
    e = np.exp(scores - scores.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def heads_by_remainder(m: np.ndarray, heads: int) -> np.ndarray:
    """(B, N, C) -> (B, heads, N, d) with channel c in head c % heads."""
    return np.stack([m[..., h::heads] for h in range(heads)], axis=1)


def value_of(name: str) -> Callable[[Setting], np.ndarray]:
    return lambda s: s.value(name)


def changed(name: str, change: Callable[[np.ndarray], np.ndarray]) -> tuple:
    return name, lambda s: change(s.value(name))


BIT, INT, SCORES = f"{UP}bit", f"{UP}int", f"{A}scores_low.int"

MISTAKES: dict[str, tuple] = {
    # bits
    "polarity": (DIDB, *changed(BIT, lambda x: ~x), "polarity inverted"),
    "polarity of weights": (DIDB, *changed(f"{UP}weight.bit", lambda x: ~x), "polarity inverted"),
    "bit order": (DIDB, *changed(BIT, packed("u1", "bits")), "bit order reversed in every byte"),
    "bits of 32": (DIDB, *changed(BIT, packed("u4", "bits")), "bit order.*32-bit word"),
    "bits of 64": (DIDB, *changed(BIT, packed("u8", "bits")), "bit order.*64-bit word"),
    "bytes of 16": (DIDB, *changed(BIT, packed("u2", "bytes")), "bytes swapped.*16-bit"),
    "bytes of 32": (DIDB, *changed(BIT, packed("u4", "bytes")), "bytes swapped.*32-bit"),
    "bytes of 64": (DIDB, *changed(BIT, packed("u8", "bytes")), "bytes swapped.*64-bit"),
    "halves": (DIDB, *changed(BIT, packed("u4", "halves")), "words swapped, the 32-bit halves"),
    "words": (DIDB, *changed(BIT, packed("u8", "words")), "words swapped, the 64-bit words"),
    "polarity, padding and all": (
        DIDB,
        *changed(BIT, lambda x: ~pack_rows(x)),
        "polarity inverted",
    ),
    "padding": (
        DIDB,
        *changed(
            BIT, lambda x: pack_rows(np.pad(x, [(0, 0), (0, 0), (0, 58)], constant_values=True))
        ),
        "padding counted: bits beyond 70",
    ),
    "token late": (
        DIDB,
        *changed(BIT, lambda x: np.roll(x, 1, axis=1)),
        "off-by-one shift along the tokens: one place too late",
    ),
    "channel early": (
        DIDB,
        *changed(BIT, lambda x: np.roll(x, -1, axis=2)),
        "off-by-one shift along the channels.*early",
    ),
    "bits transposed": (
        DIDB,
        *changed(f"{A}q_low.head_bit", lambda x: x.transpose(0, 1, 3, 2).reshape(x.shape)),
        "values transposed: tokens for channels",
    ),
    "heads": (
        DIDB,
        f"{A}k_low.head_bit",
        lambda s: (
            heads_by_remainder(s.value(f"{A}k_low.out") + flatten(s.params)[f"{A}k_low_move"], 5)
            >= 0
        ),
        "heads transposed",
    ),
    "heads of the values": (
        DIDB,
        f"{A}v.head_bit",
        lambda s: (
            heads_by_remainder(s.value(f"{A}v.out") + flatten(s.params)[f"{A}v_move"], 5).swapaxes(
                -1, -2
            )
            >= 0
        ),
        "heads transposed",
    ),
    "never written": (DIDB, *changed(BIT, np.zeros_like), "all zero"),
    "no move, z not shown": (DIDB, BIT, lambda s: s.value("blocks.1.norm2.out") >= 0, "move"),
    "weights not centred": (
        DIDB,
        f"{UP}weight.bit",
        lambda s: flatten(s.params)[f"{UP}weight"] >= 0,
        "not centred",
    ),
    # whole numbers
    "negated": (DIDB, *changed(INT, lambda x: -x), "polarity inverted"),
    "popcount of xor": (DIDB, *changed(INT, lambda x: (70 - x) // 2), "scale missing.*popcount"),
    "equal bits": (DIDB, *changed(INT, lambda x: (70 + x) // 2), "scale missing.*equal bits"),
    "twice": (DIDB, *changed(INT, lambda x: 2 * x), "scale missing.*twice"),
    "padding of words": (
        DIDB,
        *changed(INT, lambda x: x + 58),
        "padding counted.*58 too large.*128",
    ),
    "padding of bytes": (DIDB, *changed(SCORES, lambda x: x + 2), "padding counted.*2 too large"),
    "offset": (DIDB, *changed(INT, lambda x: x + 7), "every product is 7 too large"),
    "narrow": (
        DIDB,
        *changed(INT, lambda x: (x * 9).astype(np.int8).astype(np.int32)),
        None,
    ),
    "scores transposed": (
        DIDB,
        *changed(SCORES, lambda x: x.swapaxes(-1, -2)),
        "transposed|exchanged",
    ),
    "words swapped in one operand": (
        DIDB,
        INT,
        lambda s: product(
            signs(unpacked(packed("u8")(s.value(BIT)), 70)), signs(s.value(f"{UP}weight.bit"))
        ),
        "words swapped.*operand",
    ),
    "bytes swapped in one operand": (
        DIDB,
        INT,
        lambda s: product(
            signs(unpacked(packed("u4", "bytes")(s.value(BIT)), 70)),
            signs(s.value(f"{UP}weight.bit")),
        ),
        "bytes swapped.*operand",
    ),
    "last word": (
        DIDB,
        INT,
        lambda s: product(signs(s.value(BIT))[..., :64], signs(s.value(f"{UP}weight.bit"))[:, :64]),
        "last 6 of 70 bits left out",
    ),
    "last word, counted as equal": (
        DIDB,
        INT,
        lambda s: (
            product(signs(s.value(BIT))[..., :64], signs(s.value(f"{UP}weight.bit"))[:, :64]) + 6
        ),
        "last 6 of 70 bits left out",
    ),
    "heads on the way back": (
        DIDB,
        f"{A}norm.out",
        lambda s: s.steps[f"{A}norm.out"].op(
            ops.split_heads.forward(
                s.value(f"{A}context").transpose(0, 2, 3, 1).reshape(2, 13, 70), 5
            )[0]
        ),
        "heads transposed",
    ),
    "boolean as binary": (
        DIDB,
        f"{A}context.int",
        lambda s: product(signs(s.value(f"{A}prob.bit")), signs(s.value(f"{A}v.head_bit"))),
        "boolean matrix taken as -1",
    ),
    # real numbers
    "sqrt(d)": (
        DIDB,
        *changed(f"{A}scores", lambda x: x * np.sqrt(14)),
        r"no division by sqrt\(d\)",
    ),
    "no scale": (
        DIDB,
        f"{UP}linear",
        lambda s: s.value(INT) * 1.0,
        "scale missing: equal to the whole number",
    ),
    "no alpha": (DIDB, f"{A}context", lambda s: s.value(f"{A}context.int") * 1.0, "scale missing"),
    "twice as large": (DIDB, *changed("tokens", lambda x: 2 * x), "scale missing.*2 times"),
    "no move": (DIDB, f"{UP}z", value_of("blocks.1.norm2.out"), "mlp.up.move left out"),
    "no head move": (
        DIDB,
        f"{A}q_low.head_z",
        lambda s: (
            s.value(f"{A}q_low.head_z") - flatten(s.params)[f"{A}q_low_move"].reshape(5, 1, 14)
        ),
        "blocks.1.attn.q_low_move left out",
    ),
    "no shortcut": (DIDB, "blocks.1.mid", value_of(f"{A}proj.out"), "left out|equal to"),
    "Haar ortho": (
        DIDB,
        f"{A}low",
        lambda s: with_patches(s.value(f"{A}low"), 2 * patches(s.value(f"{A}low"))),
        "Haar norm: ortho",
    ),
    "Haar ortho, high": (
        DIDB,
        f"{A}high",
        lambda s: with_patches(s.value(f"{A}high"), 2 * patches(s.value(f"{A}high"))),
        "Haar norm: ortho",
    ),
    "Haar periodic": (
        DIDB,
        f"{A}high",
        lambda s: op_of(s, f"{A}high", haar_mode="periodic"),
        "haar_mode",
    ),
    "class token in no band": (
        DIDB,
        f"{A}high",
        lambda s: op_of(s, f"{A}high", haar_cls="low"),
        "class token left out",
    ),
    "class token not in the low band": (
        DIDB,
        f"{A}low",
        lambda s: np.concatenate(
            [0 * s.value(f"{A}low")[:, :1], s.value(f"{A}low")[:, 1:]], axis=1
        ),
        "class token left out",
    ),
    "V twice": (DIDB, f"{A}high", lambda s: high_of(s, lambda h, v, d: v + v + d), "H and V bands"),
    "H twice": (DIDB, f"{A}high", lambda s: high_of(s, lambda h, v, d: h + h + d), "H and V bands"),
    "D forgotten": (
        DIDB,
        f"{A}high",
        lambda s: high_of(s, lambda h, v, d: h + v),
        "D band left out",
    ),
    "V negative": (
        DIDB,
        f"{A}high",
        lambda s: high_of(s, lambda h, v, d: h - v + d),
        "V band.*sign",
    ),
    "grid exchanged": (
        DIDB,
        f"{A}low",
        lambda s: ops.bands.forward(s.value("blocks.1.norm1.out"), (4, 3))[0][0],
        "H and V bands swapped: rows and columns",
    ),
    "grid by columns": (
        DIDB,
        "blocks.1.norm1.out",
        lambda s: with_patches(
            s.value("blocks.1.norm1.out"), patches(s.value("blocks.1.norm1.out")).swapaxes(1, 2)
        ),
        "patch grid column by column",
    ),
    "patches late": (
        DIDB,
        "blocks.1.norm1.out",
        lambda s: with_patches(
            s.value("blocks.1.norm1.out"), np.roll(s.value("blocks.1.norm1.out")[:, 1:], 1, axis=1)
        ),
        "off-by-one shift of the patches: one token too late",
    ),
    "eps": (DIDB, f"{A}norm.out", lambda s: op_of(s, f"{A}norm.out", norm_eps=1e-12), "norm_eps"),
    "unbiased": (DIDB, f"{UP}norm", lambda s: unbiased(s, UP), "unbiased variance"),
    "norm weight": (
        DIDB,
        f"{UP}norm",
        lambda s: op_with(s, f"{UP}norm", f"{UP}norm.weight", np.ones_like),
        "up.norm.weight left out",
    ),
    "norm bias": (
        DIDB,
        "blocks.0.norm1.out",
        lambda s: op_with(s, "blocks.0.norm1.out", "blocks.0.norm1.bias", np.zeros_like),
        "blocks.0.norm1.bias left out",
    ),
    "softmax axis": (
        DIDB,
        f"{A}prob.z",
        lambda s: softmax(s.value(f"{A}scores"), -2) / flatten(s.params)[f"{A}alpha"],
        "softmax over the queries",
    ),
    "softmax without alpha": (
        DIDB,
        f"{A}prob.z",
        lambda s: softmax(s.value(f"{A}scores"), -1),
        "alpha left out",
    ),
    "eight neighbours": (
        DIDB,
        f"{A}neighbour_mean",
        lambda s: op_of(s, f"{A}neighbour_mean", neighbours="eight"),
        "neighbours is 'existing'",
    ),
    "neighbour sign": (
        DIDB,
        f"{A}out",
        lambda s: op_with(s, f"{A}out", f"{A}neighbour", np.negative),
        "the differential term: . the neighbours, not -",
    ),
    "no neighbours": (
        DIDB,
        f"{A}out",
        lambda s: op_with(s, f"{A}out", f"{A}neighbour", np.zeros_like),
        "neighbour(_mean)? left out",
    ),
    "a query's shortcut": (
        DIDB,
        f"{A}out",
        lambda s: s.steps[f"{A}out"].op(
            *(
                s.value(read) * (not read.endswith("k_low.out"))
                for read in s.steps[f"{A}out"].inputs
            )
        ),
        "blocks.1.attn.k_low.out left out",
    ),
    "slope side": (DIDB, f"{UP}out", lambda s: wrong_side(s, UP), "slope on the wrong side"),
    "token axis": (DIDB, f"{UP}out", lambda s: other_axis(s, UP), "token shifts on the wrong axis"),
    "token shifts late": (
        DIDB,
        f"{UP}out",
        lambda s: ops.rprelu.forward(
            before_rprelu(s, UP),
            **{k: np.roll(v, 1) if "token" in k else v for k, v in rprelu_of(s, UP).items()},
        )[0],
        "off-by-one shift of the token shifts",
    ),
    "shift sign": (
        DIDB,
        f"{UP}out",
        lambda s: op_with(s, f"{UP}out", f"{UP}rprelu.shift_in", np.negative),
        "RPReLU: . shift_in, not -",
    ),
    "fit by repeat": (
        DIDB,
        f"{UP}out",
        lambda s: projection_out(s, UP, lambda x: np.repeat(x, 3, axis=-1)),
        "fit by repeat instead of tile",
    ),
    "fit by strides": (
        DIDB,
        f"{DOWN}out",
        lambda s: projection_out(s, DOWN, lambda x: x.reshape(*x.shape[:-1], 3, 70).mean(-2)),
        "fit by means over channels O apart",
    ),
    "position embedding": (
        DIDB,
        "tokens",
        lambda s: op_with(s, "tokens", "pos_embed", np.zeros_like),
        "pos_embed left out",
    ),
    "weight scale": (
        DIDB,
        f"{UP}weight.scale",
        lambda s: np.abs(s.value(f"{UP}weight.z")).mean(axis=1),
        "scale from the centred weights",
    ),
    "weight centring": (
        DIDB,
        f"{UP}weight.z",
        lambda s: flatten(s.params)[f"{UP}weight"],
        "not centred",
    ),
    "real qkv bias": (
        DEIT,
        f"{A}qkv.out",
        lambda s: op_with(s, f"{A}qkv.out", f"{A}qkv.bias", np.zeros_like),
        "qkv.bias left out",
    ),
    "real sqrt(d)": (DEIT, *changed(f"{A}scores", lambda x: x * np.sqrt(14)), r"sqrt\(d\)"),
    "plain sqrt(d)": (REACT, *changed(f"{A}scores", lambda x: x * np.sqrt(14)), r"sqrt\(d\)"),
    "head bias": (
        DIDB,
        "logits",
        lambda s: op_with(s, "logits", "head.bias", np.zeros_like),
        "head.bias",
    ),
    # gradients
    "gradient negated": (DIDB, *changed(f"grads/{UP}norm", np.negative), "polarity inverted"),
    "ste": (DIDB, f"grads/{UP}z", lambda s: op_of(s, f"grads/{UP}z", ste="clip"), "ste is 'poly"),
    "centring forgotten": (
        DIDB,
        f"grads/param.{UP}weight",
        lambda s: weight_gradient(s, UP, False, False),
        "centring forgotten",
    ),
    "through the scale": (
        DIDB,
        f"grads/param.{UP}weight",
        lambda s: weight_gradient(s, UP, True, True),
        "gradient through the weight scale",
    ),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_every_mistake_is_named(kind: str) -> None:
    s, name, make, words = MISTAKES[kind]
    found = s.ask(name, make(s))
    if words is None:
        assert found is None
    else:
        assert found and re.search(words, found), found


def test_every_mistake_is_named_where_everything_was_dumped_too() -> None:
    """The operation's inputs come from the candidate then, and a bit's z as well."""
    everything = {name: step.value for name, step in DIDB.steps.items()}
    for kind in ("polarity", "no scale", "V twice", "last word", "slope side", "fit by repeat"):
        s, name, make, words = MISTAKES[kind]
        found = s.ask(name, make(s), **{k: v for k, v in everything.items() if k != name})
        assert re.search(words, found), found


# Of bytes of words, as programs have them: the names of the operands are those in the cause.
OF_SIGNS = (
    "K - 2 popcount(a & w)", "K - 2 popcount(a | w)", "K - 2 popcount(a & ~w)",
    "K - 2 popcount(~a & w)", "K - 2 popcount(~(a & w))", "K - 2 popcount(~(a | w))",
    "K - 2 popcount(~(a ^ w))", "2 popcount(a & w) - K", "2 popcount(a | w) - K",
    "2 popcount(~(a & w)) - K", "2 popcount(~(a | w)) - K",
)  # fmt: skip
OF_BOOLEAN = tuple(
    f"2 popcount({made}) - popcount(a)"
    for made in ("a | v", "a ^ v", "~a & v", "~(a & v)", "~(a | v)", "~(a ^ v)")
)
PRODUCTS = {  # tap: what it is a product of; K is 70, 14 and 13
    f"{UP}int": (f"{UP}bit", f"{UP}weight.bit", OF_SIGNS),
    f"{A}scores_low.int": (f"{A}q_low.head_bit", f"{A}k_low.head_bit", OF_SIGNS),
    f"{A}context.int": (f"{A}prob.bit", f"{A}v.head_bit", OF_BOOLEAN),
}


def of_words(made: str, a: np.ndarray, w: np.ndarray, width: int) -> np.ndarray:
    """A product by its formula, of the bits of a port's words of a width."""
    K = a.shape[-1]
    rows = [np.pad(bits, [(0, 0)] * (bits.ndim - 1) + [(0, -K % width)]) for bits in (a, w)]
    first, second = (np.packbits(bits, axis=-1) for bits in rows)
    words = {"a": first[..., :, None, :], "w": second[..., None, :, :]}
    words["v"] = words["w"]

    def popcount(counted: np.ndarray) -> np.ndarray:
        return np.unpackbits(counted, axis=-1).sum(axis=-1, dtype=np.int32)

    return eval(made.replace("2 popcount", "2 * popcount"), {**words, "K": K, "popcount": popcount})


@pytest.mark.parametrize("width", [64, 8])
@pytest.mark.parametrize("name", PRODUCTS)
def test_another_operation_of_words_is_named(name: str, width: int) -> None:
    of, by, formulas = PRODUCTS[name]
    a, w = DIDB.value(of), DIDB.value(by)
    right = "2 popcount(a & v) - popcount(a)" if "context" in name else "K - 2 popcount(a ^ w)"
    np.testing.assert_array_equal(of_words(right, a, w, width), DIDB.value(name))
    for made in formulas:
        words = f"another bit operation in the product: {made}"
        if "~(" in made:
            words += f", the {-a.shape[-1] % width} bits of padding counted"
        assert DIDB.ask(name, of_words(made, a, w, width)) == words


# --- no false causes ------------------------------------------------------------------------------


def noise(rng: np.random.Generator, value: np.ndarray, part: float) -> np.ndarray:
    """A value with as much wrong as `part` says, without any rule."""
    hit = rng.random(value.shape) < part
    if value.dtype == bool:
        return value ^ hit
    if value.dtype.kind == "i":
        return value + (2 * rng.integers(-9, 10, value.shape) * hit).astype(np.int32)
    return value + rng.standard_normal(value.shape) * hit * np.abs(value).max()


@pytest.mark.parametrize("first", range(2))
@pytest.mark.parametrize("s", [DIDB, DEIT, CLIP], ids=["didb", "deit", "clip"])
def test_noise_has_no_cause(s: Setting, first: int) -> None:
    rng = np.random.default_rng(11)
    names = [name for name, step in s.steps.items() if step.op and step.value.size >= 30]
    for name, part in zip(names[first::96], itertools.cycle((0.5, 0.1, 0.01))):
        found = noise(rng, s.value(name), part)
        assert s.ask(name, found) is None, name


@pytest.mark.parametrize("size", [1e-6, 1e-3, 1.0])
def test_rounding_and_drift_have_no_cause(size: float) -> None:
    rng = np.random.default_rng(12)
    steps = {name: step for name, step in DIDB.steps.items() if step.op}
    for name in [name for name, step in steps.items() if step.value.dtype.kind == "f"][1::40]:
        drift = 1 + size * rng.uniform(-1, 1, steps[name].value.shape)
        found = (steps[name].value * drift).astype(np.float32)
        cause = DIDB.ask(name, found) if steps[name].value.size >= 8 else None
        # a thousandth is what numbers of half the length leave
        assert cause is None or (size == 1e-3 and cause.startswith("rounding as of ")), name


def test_random_bits_have_no_cause() -> None:
    rng = np.random.default_rng(13)
    for name in [name for name, step in DIDB.steps.items() if step.value.dtype == bool][::16]:
        assert DIDB.ask(name, rng.random(DIDB.value(name).shape) < 0.5) is None, name


@pytest.mark.parametrize("name", [BIT, INT, f"{A}scores", f"{UP}weight.bit"])
def test_a_right_value_whose_input_is_wrong(name: str) -> None:
    """In replay it is held against what the wrong input gives."""
    rng = np.random.default_rng(15)
    step = DIDB.steps[name]
    expected = step.op(*(noise(rng, DIDB.value(read), 0.9) for read in step.inputs))
    verdict = SimpleNamespace(
        name=name, kind=record.kind_of(step.value), verdict="FAIL", expected=expected,
        candidate=step.value, tolerance=np.full(step.value.shape, 1e-9),
    )  # fmt: skip
    assert diagnose.cause(verdict, DIDB, {name: step.value}) == diagnose.RIGHT


@pytest.mark.parametrize("size", [1e-3, 1e-6])
def test_a_candidate_of_another_size_is_no_zero(size: float) -> None:
    """As in replay, where an input of the port is far too large."""
    rng = np.random.default_rng(14)
    for name in (f"grads/{A}scores", f"{A}high", "blocks.1.mid", f"grads/param.{UP}move"):
        found = size * rng.standard_normal(DIDB.value(name).shape)
        assert DIDB.ask(name, found) is None, name


def test_a_single_flip_is_too_little_to_say_anything() -> None:
    for name in (BIT, INT, "logits"):
        for count in (1, 2):
            found = DIDB.value(name).copy()
            found.ravel()[:count] = ~found.ravel()[:count] if found.dtype == bool else 99
            assert DIDB.ask(name, found) is None


def test_nothing_to_say_about_what_is_not_there_or_not_finite() -> None:
    assert DIDB.ask("logits", np.full_like(DIDB.value("logits"), np.nan)) is None
    assert DIDB.ask("logits", np.full_like(DIDB.value("logits"), np.inf)) is None
    for verdict in ("EXACT", "TAINTED", "MISSING", "UNJUDGED"):
        nothing = SimpleNamespace(name="logits", verdict=verdict, expected=None, candidate=None)
        assert diagnose.cause(nothing, DIDB, {}) is None


def test_what_holds_no_numbers_of_its_class_has_no_cause() -> None:
    """Its reason says it all; read as bits, -1 and +1 as floats would all be 1."""
    bit, number = DIDB.value(BIT), DIDB.value(INT)
    for found in (np.where(bit, 1.0, -1.0), np.where(bit, 1.0, np.nan), 3 * bit.astype(np.int32)):
        assert DIDB.ask(BIT, found) is None
    for found in (np.full(number.shape, np.nan), number + 0.5, number > 0):
        assert DIDB.ask(INT, found) is None
    assert "image 0" in DIDB.ask(INT, np.repeat(number[:1], 2, 0).astype(np.float32))


@pytest.mark.parametrize(("name", "value"), [("tokens", 1e19), (INT, -7), (INT, 2**40)])
def test_one_number_everywhere_was_never_written(name: str, value: float) -> None:
    found = np.full(DIDB.value(name).shape, value)
    assert DIDB.ask(name, found) == f"every value is {value:.6g}: was it ever written?"


def test_a_gradient_that_comes_from_both_bands() -> None:
    """Nothing explains it, so that all is tried: also what the bands send back, two arrays."""
    name = "grads/blocks.1.norm1.out"
    found = DIDB.value(name) + np.random.default_rng(16).standard_normal(DIDB.value(name).shape)
    assert DIDB.ask(name, found) is None


# --- ties -----------------------------------------------------------------------------------------


def tied(s: Setting, name: str, zeros: np.ndarray) -> Setting:
    """The same network, the z of a bit exactly at its threshold in some places."""
    z_name, threshold = s.steps[name].z, s.steps[name].threshold
    z = np.where(zeros, threshold, s.value(z_name))
    bit = z > threshold if threshold else z >= 0
    steps = {z_name: z, name: bit}
    changes = {key: s.steps[key]._replace(value=value) for key, value in steps.items()}
    return s._replace(steps={**s.steps, **changes})


@pytest.mark.parametrize("count", [1, 5, 100])
def test_sign_of_zero(count: int) -> None:
    zeros = np.arange(DIDB.value(BIT).size).reshape(DIDB.value(BIT).shape) < count
    s = tied(DIDB, BIT, zeros)
    assert "sign of zero: sign(0) is +1" in s.ask(BIT, s.value(BIT) & ~zeros)
    if count > 1:  # who is beside one of them alone has no other rule
        one = np.unravel_index(zeros.argmax(), zeros.shape)
        beside = s.value(BIT).copy()
        beside[one] = not beside[one]
        assert "sign of zero" not in (s.ask(BIT, beside) or "")
    # where the port's own z is no zero there, its zeros are not to blame
    z = np.where(zeros, -1e-9, s.value(f"{UP}z"))
    assert s.ask(BIT, s.value(BIT) & ~zeros, **{f"{UP}z": z}) is None


def test_sign_of_minus_zero() -> None:
    zeros = np.arange(DIDB.value(BIT).size).reshape(DIDB.value(BIT).shape) < 9
    s = tied(DIDB, BIT, zeros)
    z = s.value(f"{UP}z")
    z.ravel()[:4] *= -1.0
    found = s.value(BIT) & ~np.signbit(np.where(zeros, z, 0.0))
    assert (found != s.value(BIT)).sum() == 4
    assert "sign(-0.0) is +1" in s.ask(BIT, found)


def test_rounding_half_up() -> None:
    name = f"{A}prob.bit"
    zeros = np.arange(DIDB.value(name).size).reshape(DIDB.value(name).shape) % 50 == 0
    s = tied(DIDB, name, zeros)
    assert "rounding half up" in s.ask(name, s.value(name) | zeros)


# --- stages ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("decoder", ["linear", "fpn"])
def test_the_grid_is_that_of_the_stage(decoder: str) -> None:
    """Walked column by column, on grids of 16 x 8, 8 x 4 and 4 x 2 tokens."""
    sizes = {"image_size": (32, 16), "window": 2, "depth": (1, 1, 1), "decoder": decoder}
    model, params, images, dlogits = networks.make(networks.swin(**networks.DIDB, **sizes), 3)
    s = Setting(model, params, record.trace(model, params, images, dlogits))
    places = {"patch_embed.out": 0, "blocks.1.out": 1, "merges.0.patches": 1}
    places |= {"merges.1.norm.out": 2, "norm.out": 2, "head.out": 2 if decoder == "linear" else 0}
    if decoder == "fpn":
        places |= {"decoder.1.top": 1, "decoder.2.lateral.out": 2, "decoder.sum": 0}
    for name, stage in places.items():
        (rows, columns), x = (16 >> stage, 8 >> stage), s.value(name)
        assert x.shape[1] == rows * columns, name
        walked = x.reshape(len(x), rows, columns, -1).swapaxes(1, 2).reshape(x.shape)
        assert "column by column" in s.ask(name, walked), name


# --- other shapes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        (
            f"{A}v.head_bit",
            lambda x: pack_rows(x.swapaxes(-1, -2)),
            r"axes in the order \(0, 1, 3, 2\)",
        ),
        (
            f"{A}q_low.head_bit",
            lambda x: x.transpose(0, 2, 1, 3),
            r"axes in the order \(0, 2, 1, 3\)",
        ),
        (INT, lambda x: x.swapaxes(1, 2), r"axes in the order \(0, 2, 1\)"),
        ("tokens", lambda x: x.transpose(2, 0, 1), r"axes in the order \(2, 0, 1\)"),
        ("tokens", lambda x: x.reshape(-1, 70), "the right values in another shape"),
        (BIT, lambda x: pack_rows(x).reshape(-1, 16), "the right values in another shape"),
        (INT, lambda x: x[:, :-1], None),
        ("tokens", lambda x: -x.swapaxes(1, 2), None),
        (BIT, lambda x: pack_rows(x)[..., :9], None),
        ("tokens", lambda x: x[..., None].astype(np.uint8), None),
        (INT, lambda x: pack_rows(x > 0), None),
    ],
)
def test_other_shapes(name: str, change: Callable, words: str | None) -> None:
    found = DIDB.ask(name, change(DIDB.value(name)))
    assert found is None if words is None else re.search(words, found), found


def axes_of(s: Setting, name: str) -> tuple[str, ...]:
    return coordinates.axes(s.model.network, s.steps[name])


def test_axes_have_the_names_of_the_spec() -> None:
    for name, step in DIDB.steps.items():
        for size, axis in zip(step.value.shape, axes_of(DIDB, name), strict=True):
            sizes = {"images": 2, "heads": 5, "tokens": 13, "queries": 13, "keys": 13, "classes": 4}
            assert size == sizes.get(axis, size), (name, axis)
            assert axis != "channels" or size in (14, 70, 210), name
    assert axes_of(DIDB, "logits") == ("images", "classes")
    assert axes_of(SEGMENTER, "logits") == ("images", "classes", "rows", "columns")
    assert axes_of(SEGMENTER, "head.out") == ("images", "patches", "classes")
    assert axes_of(DIDB, "patch_embed.out") == ("images", "patches", "channels")
    assert axes_of(DIDB, "grads/param.blocks.0.attn.q_low.weight") == ("axis 0", "axis 1")
    assert axes_of(DIDB, "blocks.0.attn.q_low.weight.bit") == ("axis 0", "axis 1")
    assert axes_of(DIDB, "blocks.0.attn.v.head_bit")[2:] == ("channels", "tokens")
    assert axes_of(DIDB, "blocks.0.attn.scores")[2:] == ("queries", "keys")
