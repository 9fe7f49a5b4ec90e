"""Signs, binary weights, products of bits, boolean attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from refimpl import ops
from refimpl.golden.fingerprints import LAYOUTS
from refimpl.golden.mistakes.declared import OUTPUT, Call, Mistake, Site, family, mistake
from refimpl.models.insides import dot, signs
from refimpl.models.packing import WORD

# --- weights --------------------------------------------------------------------------------------


@mistake("binary_linear", what="weight.z", words="weights not centred")
def not_centred(call: Call) -> np.ndarray:
    return call["p0"]


@mistake("binary_linear", what="weight.z",
         words="weights centred over the outputs, not over the inputs")  # fmt: skip
def centred_over_outputs(call: Call) -> np.ndarray:
    return call["p0"] - call["p0"].mean(axis=0)


@mistake("binary_linear", what="weight.z", words="weights centred by the mean of the whole matrix")
def centred_by_all(call: Call) -> np.ndarray:
    return call["p0"] - call["p0"].mean()


@mistake("binary_linear", what="weight.z", words="weights centred by the mean of their magnitudes")
def centred_by_magnitude(call: Call) -> np.ndarray:
    return call["p0"] - np.abs(call["p0"]).mean(axis=1, keepdims=True)


@mistake("binary_linear", what="weight.z", words="the median taken off the weights, not the mean")
def centred_by_median(call: Call) -> np.ndarray:
    return call["p0"] - np.median(call["p0"], axis=1, keepdims=True)


@mistake("binary_linear", what="weight.z", words="weights divided by their deviation, too")
def standardised(call: Call) -> np.ndarray:
    return call.right() / call["p0"].std(axis=1, keepdims=True)


@mistake("binary_linear", what="weight.scale",
         words="scale from the centred weights, not the weights")  # fmt: skip
def scale_of_centred(call: Call) -> np.ndarray:
    return np.abs(call["p0"] - call["p0"].mean(axis=1, keepdims=True)).mean(axis=1)


SCALES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "scale is the largest weight, not the mean": lambda w: np.abs(w).max(axis=1),
    "scale is a sum of magnitudes, no mean": lambda w: np.abs(w).sum(axis=1),
    "scale is a root mean square, not the mean of magnitudes":
        lambda w: np.sqrt(np.square(w).mean(axis=1)),
    "scale is the deviation of the weights": lambda w: w.std(axis=1),
    "scale is the mean without magnitudes": lambda w: w.mean(axis=1),
    "one scale a tensor, not an output channel": lambda w: np.full(len(w), np.abs(w).mean()),
    "scale is the norm of the row": lambda w: np.linalg.norm(w, axis=1),
    "scale is a mean over one weight too few": lambda w: np.abs(w).sum(axis=1) / (w.shape[1] - 1),
    "scale is a mean over the outputs, not over the inputs":
        lambda w: np.resize(np.abs(w).mean(axis=0), len(w)),
    "scale rounded to a power of 2": lambda w: _power(np.rint, w),
    "scale is the next power of 2": lambda w: _power(np.ceil, w),
    "scale is the power of 2 below": lambda w: _power(np.floor, w),
    "scale is half the range of the weights": lambda w: (w.max(axis=1) - w.min(axis=1)) / 2,
    "scale is the median of the magnitudes": lambda w: np.median(np.abs(w), axis=1),
}  # fmt: skip


def _power(rounded: Callable[[np.ndarray], np.ndarray], w: np.ndarray) -> np.ndarray:
    return np.exp2(rounded(np.log2(np.abs(w).mean(axis=1))))


@family("binary_linear", what="weight.scale")
def scales(site: Site) -> Iterator[Mistake]:
    for words, scale in SCALES.items():
        yield Mistake(words, lambda call, scale=scale: scale(call["p0"]))


@mistake("binary_linear", words="scale missing: equal to the whole number")
def no_scale(call: Call) -> np.ndarray | None:
    return call["int"] * 1.0 if "int" in call.keys else None


@mistake("binary_linear", words="the scale twice")
def scale_twice(call: Call) -> np.ndarray | None:
    return call.right() * call["weight.scale"] if "int" in call.keys else None


@mistake("binary_linear", words="divided by the scale, not multiplied")
def by_the_scale(call: Call) -> np.ndarray | None:
    return call["int"] / call["weight.scale"] if "int" in call.keys else None


@mistake("binary_linear", words="a scale a token, not an output channel")
def scale_a_token(call: Call) -> np.ndarray | None:
    if "int" not in call.keys:
        return None
    whole, scale = call["int"], call["weight.scale"]
    rows = np.arange(whole[..., 0].size).reshape(*whole.shape[:-1], 1)
    return whole * scale[rows % len(scale)]


@mistake("binary_linear", words="one scale for all outputs: the mean")
def scale_mean(call: Call) -> np.ndarray | None:
    return call["int"] * call["weight.scale"].mean() if "int" in call.keys else None


@mistake("binary_linear", words="one scale for all outputs: the first")
def scale_first(call: Call) -> np.ndarray | None:
    return call["int"] * call["weight.scale"][0] if "int" in call.keys else None


@mistake("binary_linear", words="the scale of another output channel: one late")
def scale_late(call: Call) -> np.ndarray | None:
    return call["int"] * np.roll(call["weight.scale"], 1) if "int" in call.keys else None


@mistake("binary_linear", words="the scale of another output channel: one early")
def scale_early(call: Call) -> np.ndarray | None:
    return call["int"] * np.roll(call["weight.scale"], -1) if "int" in call.keys else None


@mistake("binary_linear", words="float16 scales", rank=5)
def scale_in_half(call: Call) -> np.ndarray | None:
    if "int" not in call.keys:
        return None
    return call["int"] * call["weight.scale"].astype(np.float16).astype(np.float64)


# --- signs ----------------------------------------------------------------------------------------


@mistake("binary_linear", what="bit", words="sign of zero: sign(0) is +1, the candidate takes -1")
def sign_of_zero(call: Call) -> np.ndarray:
    return call.args[0] > 0


@mistake("binary_linear", what="weight.bit",
         words="sign of zero: sign(0) is +1, the candidate takes -1")  # fmt: skip
def sign_of_zero_weight(call: Call) -> np.ndarray:
    return call.args[0] > 0


@mistake("sign", words="sign of zero: sign(0) is +1, the candidate takes -1")
def sign_of_zero_activation(call: Call) -> np.ndarray:
    return np.where(call["x0"] > 0, 1.0, -1.0)


@mistake("binary_linear", what="bit", words="the threshold is the row's mean, not 0")
def mean_threshold(call: Call) -> np.ndarray:
    return call.args[0] >= call.args[0].mean(axis=-1, keepdims=True)


@mistake("binary_linear", what="bit", words="the threshold is 1/2, as if the bit were 0 and 1")
def half_threshold(call: Call) -> np.ndarray:
    return call.args[0] > 0.5


@mistake("sign", words="the threshold is 1/2, as if the bit were 0 and 1")
def half_threshold_of_sign(call: Call) -> np.ndarray:
    return np.where(call["x0"] > 0.5, 1.0, -1.0)


# --- products of bits -----------------------------------------------------------------------------


def operands(call: Call) -> tuple[np.ndarray, np.ndarray, bool] | None:
    """Bits a, b and whether a is boolean; None of a product that is not one of bits."""
    if call.node.op == "matmul":
        a, b = call.args
        return (a > 0, b > 0, False) if set(np.unique(a)) <= {-1, 1} else None
    a, b = call.args
    if call.site.what == "context.int":
        return a, b > 0, True
    return a, b, False


def _product(call: Call, a: np.ndarray, b: np.ndarray, boolean: bool) -> np.ndarray:
    left = a.astype(np.int32) if boolean else signs(a, np.int32)
    return dot(left, signs(b, np.int32))


def _popcounts(a: np.ndarray, b: np.ndarray, boolean: bool) -> np.ndarray:
    """Of a ^ b, of a boolean a & b."""
    size, total = a.shape[-1], dot(signs(a, np.int32), signs(b, np.int32))
    if boolean:
        return dot(a.astype(np.int32), b.astype(np.int32))
    return (size - total) // 2


def _ones(a: np.ndarray) -> np.ndarray:
    return a.sum(axis=-1, keepdims=True).astype(np.int32)


Rule = Callable[[np.ndarray, np.ndarray, bool], np.ndarray | None]


def _counted(change: Callable[[np.ndarray, int], np.ndarray | None]) -> Rule:
    """A rule of the popcount and of K for the product of signs."""

    def rule(a: np.ndarray, b: np.ndarray, boolean: bool) -> np.ndarray | None:
        return None if boolean else change(_popcounts(a, b, False), a.shape[-1])

    return rule


def _boolean(change: Callable[[np.ndarray, np.ndarray, int], np.ndarray | None]) -> Rule:
    """A rule of popcount(a & v), popcount(a) and K for the boolean product."""

    def rule(a: np.ndarray, b: np.ndarray, boolean: bool) -> np.ndarray | None:
        return change(_popcounts(a, b, True), _ones(a), a.shape[-1]) if boolean else None

    return rule


def _limited(change: Callable[[np.ndarray], np.ndarray]) -> Rule:
    """The popcount passes through a narrow register."""

    def rule(a: np.ndarray, b: np.ndarray, boolean: bool) -> np.ndarray:
        if boolean:
            return 2 * change(_popcounts(a, b, True)) - change(_ones(a))
        return a.shape[-1] - 2 * change(_popcounts(a, b, False))

    return rule


def _lower(a: np.ndarray, b: np.ndarray, boolean: bool) -> np.ndarray | None:
    kept = np.arange(a.shape[-1]) % WORD < WORD // 2
    if boolean or kept.all():
        return None
    return a.shape[-1] - 2 * _popcounts(a[..., kept], b[..., kept], False)


OPERANDS = ("the first operand", "the second operand")
RULES: dict[str, Rule] = {
    "polarity inverted: every product has the other sign": _counted(lambda n, K: 2 * n - K),
    "scale missing: popcount(a ^ w), not K - 2 popcount(a ^ w)": _counted(lambda n, K: n),
    "scale missing: the number of equal bits, not 2 of it - K": _counted(lambda n, K: K - n),
    "scale missing: every product is twice as large": _counted(lambda n, K: 2 * (K - 2 * n)),
    "K - popcount(a ^ w) * 2 with K rounded to half": _counted(lambda n, K: K // 2 - n),
    "boolean product without - popcount(a): 2 popcount(a & v)": _boolean(lambda n, k, K: 2 * n),
    "boolean product is popcount(a & v) alone": _boolean(lambda n, k, K: n),
    "boolean product with popcount(v) in the place of popcount(a)":
        lambda a, b, boolean: (2 * _popcounts(a, b, True) - _ones(b).swapaxes(-1, -2)
                               if boolean else None),
    "boolean product with popcount(a) of the first query for all": _boolean(
        lambda n, k, K: 2 * n - k[..., :1, :]),
    "boolean product with popcount(a) of the query before": _boolean(
        lambda n, k, K: 2 * n - np.roll(k, 1, axis=-2)),
    "boolean product with popcount(a) of the query behind": _boolean(
        lambda n, k, K: 2 * n - np.roll(k, -1, axis=-2)),
    "boolean product with popcount(a) of head 0 for all": _boolean(
        lambda n, k, K: 2 * n - k[:, :1]),
    "boolean product with K in the place of popcount(a)": _boolean(lambda n, k, K: 2 * n - K),
    "boolean product popcount(a & v) - popcount(a), without the factor 2":
        _boolean(lambda n, k, K: n - k),
    "only the lower 32 bits of every word of 64 counted": _lower,
    "overflow: the popcount wraps around at 128 (7 bits)": _limited(lambda n: n % 128),
    "overflow: the popcount wraps around at 256 (8 bits)": _limited(lambda n: n % 256),
    "overflow: the popcount wraps around at 64 (6 bits)": _limited(lambda n: n % 64),
    "overflow: the popcount wraps around at 32 (5 bits)": _limited(lambda n: n % 32),
    "overflow: the popcount is an int8 that wraps around":
        _limited(lambda n: n.astype(np.int8).astype(np.int32)),
    "overflow: the popcount saturates at 127": _limited(lambda n: np.minimum(n, 127)),
    "overflow: the popcount saturates at 255": _limited(lambda n: np.minimum(n, 255)),
    "overflow: the popcount saturates at 63": _limited(lambda n: np.minimum(n, 63)),
    "overflow: the popcount saturates at 31": _limited(lambda n: np.minimum(n, 31)),
}  # fmt: skip
NARROW: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "overflow: the products were added in int8": lambda x: x.astype(np.int8),
    "overflow: the products were added in int16": lambda x: x.astype(np.int16),
    "overflow: the products were clipped to int8, -128 to 127": lambda x: np.clip(x, -128, 127),
    "overflow: the products were clipped to -127 to 127": lambda x: np.clip(x, -127, 127),
    "overflow: the products were clipped to 6 bits, -32 to 31": lambda x: np.clip(x, -32, 31),
    "overflow: the products were clipped to 7 bits, -64 to 63": lambda x: np.clip(x, -64, 63),
    "overflow: the products were clipped to 5 bits, -16 to 15": lambda x: np.clip(x, -16, 15),
    "overflow: the products were wrapped to 7 bits": lambda x: (x + 64) % 128 - 64,
    "overflow: the products were wrapped to 6 bits": lambda x: (x + 32) % 64 - 32,
    "overflow: the products were clipped to 4 bits, -8 to 7": lambda x: np.clip(x, -8, 7),
}


# Overflows that few networks reach, by words in their own.
NEEDS = {
    "int16": "sums of 32,768, so rows of as many bits",
    "at 255": "popcounts of 256, so rows of as many bits",
    "at 256": "popcounts of 256, so rows of as many bits",
}


def _needed(words: str) -> str:
    """What a network must have to show an overflow."""
    return next((needs for part, needs in NEEDS.items() if part in words), "")


def _declare(op: str, what: str) -> None:
    @family(op, what=what)
    def products(site: Site) -> Iterator[Mistake]:
        """A product of the right bits, counted or read wrongly."""
        for words, rule in RULES.items():
            yield Mistake(words, _by_rule(rule), needs=_needed(words))
        for words, change in NARROW.items():
            edit = lambda call, change=change: _narrowed(call, change)  # noqa: E731
            yield Mistake(words, edit, needs=_needed(words))
        yield from _padding(site)
        yield from _last_words(site)
        yield from _strides(site)
        yield from _operations(site)
        yield Mistake("1 << i is an int of 32 bits: bit 32 + i falls on bit i, bit 31 on all above",
                      lambda c: _of_words(c, _shifted_int))  # fmt: skip
        yield Mistake("bit 32 + i falls on bit i: a shift of 32 bits",
                      lambda c: _of_words(c, _shifted_unsigned))  # fmt: skip
        for words, change in LAYOUTS.items():
            for which in (0, 1):
                spoken = f"{words}, in {OPERANDS[which]} of the product"
                yield Mistake(spoken, _laid_out(which, change))
        yield Mistake("a query's own value counted once, not once for each of its keys", _own_once)
        yield Mistake("the boolean matrix taken as -1 and +1; its bits mean 0 and 1", _as_signs)
        yield Mistake("polarity inverted: the boolean matrix's bits", _inverted)
        yield Mistake("polarity inverted: the signs of the second operand", _second_inverted)
        yield Mistake("the signs taken as 0 and 1: popcount(a & w)", _as_zeros)
        yield Mistake("the second operand read transposed", _second_transposed)
        yield Mistake("the second operand stored transposed", _second_as_if_transposed)
        yield Mistake("the second operand read as if it lay transposed", _second_read_transposed)
        yield Mistake("bits of a row in reverse order, in one operand", _reversed_bits)


def _result(call: Call, value: np.ndarray | None) -> np.ndarray | None:
    if value is None:
        return None
    value = value.astype(np.int32)
    if call.site.what == "context.int" and call.node.attributes["context"] == "differences":
        a, b, _ = operands(call)
        value = value - _ones(a) * signs(b, np.int32).swapaxes(-1, -2)
    return value.astype(call.args[0].dtype) if call.node.op == "matmul" else value


def _by_rule(rule: Rule) -> Callable[[Call], np.ndarray | None]:
    def edit(call: Call) -> np.ndarray | None:
        found = operands(call)
        return None if found is None else _result(call, rule(*found))

    return edit


def _narrowed(call: Call, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray | None:
    found = operands(call)
    return None if found is None else _result(call, change(_product(call, *found)))


def _length(site: Site) -> int:
    """K of the product."""
    return site.network.shapes[site.node.inputs[0]][-1]


def _padding(site: Site) -> Iterator[Mistake]:
    """Padding bits counted as products of +1, or bits beyond K left in the length."""
    K, stage = _length(site), site.node.stage
    for other, of in ((stage.dim, "the network's dim"), (stage.num_keys, "keys")):
        if other != K:
            words = f"K is taken for {other}, the number of {of}, not {K}"
            words = words.replace("the number of the", "the")
            yield Mistake(words, _moved(other - K), f"K is that of {of}")
    for width in (WORD, 32, 8):
        padding = -K % width
        for sign, word in ((1, "large"), (-1, "small")) if padding else ():
            words = f"padding counted: every value is {padding} too {word}, K = {K} is padded"
            words += f" to {K + padding}"
            kind = f"padding counted: every value too {word}, up to whole words of {width}"
            yield Mistake(words, _moved(sign * padding), kind)
        if padding:
            words = f"padding counted: its {padding} zeros as agreeing, 2 popcount(~(a ^ w)) - K"
            kind = f"padding counted: its zeros as agreeing, up to whole words of {width}"
            yield Mistake(words, _moved(2 * padding), kind)


def _moved(by: int) -> Callable[[Call], np.ndarray | None]:
    def edit(call: Call) -> np.ndarray | None:
        found = operands(call)
        return None if found is None else _result(call, _product(call, *found) + by)

    return edit


def _last_words(site: Site) -> Iterator[Mistake]:
    """A loop over whole words alone."""
    K = _length(site)
    for width in (WORD, 32, 8):
        rest = K % width
        words = f"the last {rest} of {K} bits left out: a word of {width} that is not full"
        kind = f"the last bits left out: a word of {width} that is not full"
        for counted in (False, True) if rest else ():
            ends = ", counted as equal" if counted else ""
            yield Mistake(words + ends, _cut_off(rest, counted), kind + ends)


def _cut_off(rest: int, counted: bool) -> Callable[[Call], np.ndarray | None]:
    def edit(call: Call) -> np.ndarray | None:
        found = operands(call)
        if found is None or (counted and found[2]):
            return None
        a, b, boolean = found
        part = _product(call, a[..., :-rest], b[..., :-rest], boolean)
        return _result(call, part + (rest if counted else 0))

    return edit


# Products with another operation of words, from n = popcount(a & w), the ones of a and of w, K, and
# the bits of whole words: where the operation makes ones of zeros, those of the padding count.
Made = Callable[[np.ndarray, np.ndarray, np.ndarray, int, int], np.ndarray]
OF_SIGNS: dict[str, Made] = {
    "K - 2 popcount(a & w)": lambda n, a, w, K, size: K - 2 * n,
    "K - 2 popcount(a | w)": lambda n, a, w, K, size: K - 2 * (a + w - n),
    "K - 2 popcount(a & ~w)": lambda n, a, w, K, size: K - 2 * (a - n),
    "K - 2 popcount(~a & w)": lambda n, a, w, K, size: K - 2 * (w - n),
    "2 popcount(a & w) - K": lambda n, a, w, K, size: 2 * n - K,
    "2 popcount(a | w) - K": lambda n, a, w, K, size: 2 * (a + w - n) - K,
    "K - 2 popcount(~(a & w))": lambda n, a, w, K, size: K - 2 * (size - n),
    "K - 2 popcount(~(a | w))": lambda n, a, w, K, size: K - 2 * (size - (a + w - n)),
    "K - 2 popcount(~(a ^ w))": lambda n, a, w, K, size: K - 2 * (size - (a + w - 2 * n)),
    "2 popcount(~(a & w)) - K": lambda n, a, w, K, size: 2 * (size - n) - K,
    "2 popcount(~(a | w)) - K": lambda n, a, w, K, size: 2 * (size - (a + w - n)) - K,
}
OF_BOOLEAN: dict[str, Made] = {
    "2 popcount(a | v) - popcount(a)": lambda n, a, v, K, size: 2 * (a + v - n) - a,
    "2 popcount(a ^ v) - popcount(a)": lambda n, a, v, K, size: 2 * (a + v - 2 * n) - a,
    "2 popcount(~a & v) - popcount(a)": lambda n, a, v, K, size: 2 * (v - n) - a,
    "2 popcount(~(a & v)) - popcount(a)": lambda n, a, v, K, size: 2 * (size - n) - a,
    "2 popcount(~(a | v)) - popcount(a)": lambda n, a, v, K, size: 2 * (size - (a + v - n)) - a,
    "2 popcount(~(a ^ v)) - popcount(a)":
        lambda n, a, v, K, size: 2 * (size - (a + v - 2 * n)) - a,
}  # fmt: skip


def _operations(site: Site) -> Iterator[Mistake]:
    """AND, OR and the like in the place of XOR, of XNOR or, of a boolean product, of AND."""
    K, found = _length(site), {}
    for made, product in (OF_BOOLEAN if site.what == "context.int" else OF_SIGNS).items():
        for width in (WORD, 32, 8) if "~(" in made else (1,):
            padding = -K % width
            words = kind = f"another bit operation in the product: {made}"
            if padding:
                words += f", the {padding} bits of padding counted"
                kind += f", padding counted up to whole words of {width}"
            found[kind] = Mistake(words, _operated(product, K + padding), kind)
    yield from found.values()


def _operated(product: Made, size: int) -> Callable[[Call], np.ndarray | None]:
    def edit(call: Call) -> np.ndarray | None:
        found = operands(call)
        if found is None:
            return None
        a, w, _ = found
        ones = _ones(a), _ones(w).swapaxes(-1, -2)
        return _result(call, product(_popcounts(a, w, True), *ones, a.shape[-1], size))

    return edit


def _words(bits: np.ndarray) -> np.ndarray:
    """Rows padded with zeros to whole words (..., words, 64)."""
    padded = np.pad(bits, [(0, 0)] * (bits.ndim - 1) + [(0, -bits.shape[-1] % WORD)])
    return padded.reshape(*bits.shape[:-1], -1, WORD)


def _shifted_unsigned(words: np.ndarray) -> np.ndarray:
    low = words[..., : WORD // 2] | words[..., WORD // 2 :]
    return np.concatenate([low, np.zeros_like(low)], axis=-1)


def _shifted_int(words: np.ndarray) -> np.ndarray:
    low = words[..., : WORD // 2] | words[..., WORD // 2 :]
    return np.concatenate([low, np.broadcast_to(low[..., -1:], low.shape)], axis=-1)


def _of_words(call: Call, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray | None:
    """Words filled in another way, on both sides; the length stays."""
    found = operands(call)
    if found is None or found[2]:
        return None
    a, b = (change(_words(bits)).reshape(*bits.shape[:-1], -1) for bits in found[:2])
    return _result(call, found[0].shape[-1] - 2 * _popcounts(a, b, False))


def _strides(site: Site) -> Iterator[Mistake]:
    """Rows of words that are looked for at other places of the memory."""
    K = _length(site)
    whole, least = -(-K // WORD) * WORD, K // WORD * WORD
    for stride in dict.fromkeys((-(-K // 8) * 8, -(-K // 32) * 32, least, whole + WORD)):
        for which in (0, 1) if stride not in (0, whole) else ():
            words = f"rows looked for {stride} bits apart, not {whole}, in {OPERANDS[which]}"
            yield Mistake(words, lambda c, s=stride, w=which: _strided(c, s, w))
    for which in (0, 1) if K > WORD else ():
        for step, word in ((-1, "behind"), (1, "before")):
            words = f"the words behind the first are those of the row {word}, in {OPERANDS[which]}"
            yield Mistake(words, lambda c, s=step, w=which: _next_words(c, s, w))


def _strided(call: Call, stride: int, which: int) -> np.ndarray | None:
    def change(bits: np.ndarray) -> np.ndarray:
        memory = _words(bits).reshape(*bits.shape[:-2], -1)
        rows, length = bits.shape[-2:]
        places = np.arange(rows)[:, None] * stride + np.arange(length)
        return memory[..., places % memory.shape[-1]]

    return _with_operand(call, change, which)


def _next_words(call: Call, step: int, which: int) -> np.ndarray | None:
    def change(bits: np.ndarray) -> np.ndarray:
        rest = np.roll(bits[..., WORD:], step, axis=-2)
        return np.concatenate([bits[..., :WORD], rest], axis=-1)

    return _with_operand(call, change, which)


def _with_operand(call: Call, change: Callable, which: int) -> np.ndarray | None:
    found = operands(call)
    if found is None:
        return None
    changed = list(found)
    changed[which] = change(changed[which])
    return _result(call, _product(call, *changed))


def _laid_out(which: int, change: Callable) -> Callable[[Call], np.ndarray | None]:
    return lambda call: _with_operand(call, change, which)


def _own_once(call: Call) -> np.ndarray | None:
    if call.node.attributes.get("context") != "differences":
        return None
    a, b, _ = operands(call)
    return _product(call, a, b, True) - signs(b, np.int32).swapaxes(-1, -2)


def _as_signs(call: Call) -> np.ndarray | None:
    found = operands(call)
    return _result(call, _product(call, *found[:2], False)) if found and found[2] else None


def _inverted(call: Call) -> np.ndarray | None:
    found = operands(call)
    return _result(call, _product(call, ~found[0], *found[1:])) if found and found[2] else None


def _second_inverted(call: Call) -> np.ndarray | None:
    found = operands(call)
    return _result(call, -_product(call, *found)) if found and found[2] else None


def _as_zeros(call: Call) -> np.ndarray | None:
    found = operands(call)
    if found is None or found[2]:
        return None
    return _result(call, dot(found[0].astype(np.int32), found[1].astype(np.int32)))


def _second_transposed(call: Call) -> np.ndarray | None:
    found = operands(call)
    if found is None or found[1].shape[-1] != found[1].shape[-2]:
        return None
    return _result(call, _product(call, found[0], found[1].swapaxes(-1, -2), found[2]))


def _second_as_if_transposed(call: Call) -> np.ndarray | None:
    found = operands(call)
    if found is None or found[1].shape[-1] == found[1].shape[-2]:
        return None
    b = found[1]
    stored = np.ascontiguousarray(b.swapaxes(-1, -2)).reshape(b.shape)
    return _result(call, _product(call, found[0], stored, found[2]))


def _second_read_transposed(call: Call) -> np.ndarray | None:
    found = operands(call)
    if found is None or found[1].shape[-1] == found[1].shape[-2]:
        return None
    b = found[1]
    read = b.reshape(*b.shape[:-2], b.shape[-1], b.shape[-2]).swapaxes(-1, -2)
    return _result(call, _product(call, found[0], read, found[2]))


def _reversed_bits(call: Call) -> np.ndarray | None:
    found = operands(call)
    return _result(call, _product(call, found[0][..., ::-1], *found[1:])) if found else None


_declare("binary_linear", "int")
_declare("boolean_attention", "context.int")
_declare("matmul", OUTPUT)


# --- boolean attention ----------------------------------------------------------------------------


def _probabilities(call: Call) -> np.ndarray:
    return call["x0"]


def _alpha(call: Call) -> np.ndarray:
    return call["p0"]


def _with_minimum(least: np.float32) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """As a port has it: an alpha of the same float32 is itself, so that there is no minimum."""
    return lambda p, a: p / np.maximum(a, float(least))


ALPHAS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray | None]] = {
    "alpha left out: the probabilities themselves": lambda p, a: p,
    "probabilities times alpha, not divided by it": lambda p, a: p * ops.boolean.step_of(a),
    "alpha without its minimum 1e-5": lambda p, a: p / a,
    "alpha's magnitude: |alpha|, not max(alpha, 1e-5)":
        lambda p, a: p / np.maximum(np.abs(a), 1e-5),
    "alpha's minimum is added, not a maximum": lambda p, a: p / (a + 1e-5),
    "alpha of head 0 for all heads": lambda p, a: p / np.maximum(a.flat[0], 1e-5),
    "alpha of the heads in reverse order": lambda p, a: p / ops.boolean.step_of(a[::-1]),
    "the mean of alpha for all heads": lambda p, a: p / np.maximum(a.mean(), 1e-5),
    "alpha times the number of keys": lambda p, a: p / ops.boolean.step_of(a) / p.shape[-1],
    "1 / N in the place of alpha": lambda p, a: p * p.shape[-1],
    "alpha's square root": lambda p, a: p / np.sqrt(ops.boolean.step_of(a)),
    "alpha is subtracted, not divided by": lambda p, a: p - ops.boolean.step_of(a) + 0.5,
    **{
        f"alpha with a minimum of {least:g}, not 1e-5": _with_minimum(np.float32(least))
        for least in (1e-1, 1e-2, 1e-3, 1e-4, 1e-6, 1e-7, 1e-8, 1e-12)
    },
    "the row's largest probability in the place of alpha":
        lambda p, a: p / p.max(axis=-1, keepdims=True),
}  # fmt: skip


@family("boolean_attention", what="prob.z")
def alphas(site: Site) -> Iterator[Mistake]:
    for words, change in ALPHAS.items():
        yield Mistake(words, lambda call, c=change: c(_probabilities(call), _alpha(call)))


THRESHOLDS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "rounding half up: q = 1/2 rounds to 0, half to even": lambda q: q >= 0.5,
    "the threshold of attention is 1, not 1/2": lambda q: q > 1.0,
    "the threshold of attention is 1, not 1/2, and 1 is above it": lambda q: q >= 1.0,
    "the threshold of attention is 0, not 1/2": lambda q: q > 0.0,
    "the threshold of attention is the row's mean": lambda q: q >= q.mean(axis=-1, keepdims=True),
    "only the row's largest probability is 1": lambda q: q == q.max(axis=-1, keepdims=True),
    "the bit is 1 below the threshold": lambda q: q < 0.5,
    "q above 1 gives 0: not clipped to 1": lambda q: (q > 0.5) & (q <= 1.5),
    "the threshold of attention is 1/4, not 1/2": lambda q: q > 0.25,
    "the integer part of q, not its rounding": lambda q: np.floor(q) >= 1,
}


@family("boolean_attention", what="prob.bit")
def thresholds(site: Site) -> Iterator[Mistake]:
    for words, change in THRESHOLDS.items():
        yield Mistake(words, lambda call, change=change: change(call.args[0]))


@family("boolean_attention")
def of_context(site: Site) -> Iterator[Mistake]:
    for words, change in {
        "scale missing: context without alpha": lambda c: c["context.int"] * 1.0,
        "context with alpha twice": lambda c: c.right() * ops.boolean.step_of(_alpha(c)),
        "context divided by alpha": lambda c: c["context.int"] / ops.boolean.step_of(_alpha(c)),
        "context with alpha as it is, without its minimum 1e-5":
            lambda c: c["context.int"] * _alpha(c),
        "context with the magnitude of alpha": lambda c: c["context.int"] * np.abs(_alpha(c)),
        "context divided by the number of ones": _by_ones,
        "context divided by the number of keys": _by_keys,
        "context with alpha of head 0 for all heads":
            lambda c: c["context.int"] * np.maximum(_alpha(c).flat[0], 1e-5),
        "context with alpha of the heads in reverse order":
            lambda c: c["context.int"] * ops.boolean.step_of(_alpha(c)[::-1]),
        "context with the mean of alpha for all heads":
            lambda c: c["context.int"] * np.maximum(_alpha(c).mean(), 1e-5),
    }.items():  # fmt: skip
        if "context.int" in site.keys:
            yield Mistake(words, change)


def _bits_of(call: Call) -> np.ndarray:
    return call.value(call.node.inside["prob.bit"])


def _by_ones(call: Call) -> np.ndarray:
    return call["context.int"] / np.maximum(_ones(_bits_of(call)), 1)


def _by_keys(call: Call) -> np.ndarray:
    return call.right() / _bits_of(call).shape[-1]


# --- backward: surrogates -------------------------------------------------------------------------


def _z(call: Call) -> np.ndarray:
    return call["x0"]


CUT_OFF = "surrogate gradient cut off at |z| = 1, where it still passes"
SURROGATES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "no surrogate: the gradient passes everywhere": lambda z: np.ones_like(z),
    CUT_OFF: lambda z: 1.0 * (np.abs(z) < 1),
    "surrogate gradient passes where |z| > 1, the wrong side": lambda z: 1.0 * (np.abs(z) > 1),
    "polynomial surrogate without its floor: below 0 beyond |z| = 1": lambda z: 2 - 2 * np.abs(z),
    "polynomial surrogate without its factor 2: 1 - |z|": lambda z: np.maximum(1 - np.abs(z), 0),
    "polynomial surrogate 2 - |z|": lambda z: np.where(np.abs(z) < 1, 2 - np.abs(z), 0),
    "polynomial surrogate with z in the place of |z|":
        lambda z: np.where(np.abs(z) < 1, 2 - 2 * z, 0),
    "polynomial surrogate 2 + 2|z|": lambda z: np.where(np.abs(z) < 1, 2 + 2 * np.abs(z), 0),
    "polynomial surrogate: 2|z|": lambda z: np.where(np.abs(z) < 1, 2 * np.abs(z), 0),
    "polynomial surrogate of one side: 0 for z < 0":
        lambda z: np.where((z >= 0) & (z < 1), 2 - 2 * z, 0),
    "surrogate gradient passes where z > 0 alone": lambda z: 1.0 * (z > 0),
    "surrogate is the derivative of tanh": lambda z: 1 - np.tanh(z) ** 2,
    "surrogate gradient passes up to |z| = 2": lambda z: 1.0 * (np.abs(z) <= 2),
    "surrogate gradient passes up to |z| = 1/2": lambda z: 1.0 * (np.abs(z) <= 0.5),
    "surrogate gradient is 0: sign's own derivative": lambda z: np.zeros_like(z),
}  # fmt: skip


def _declare_surrogates(op: str, key: str) -> None:
    @family(op, what="d.x0")
    def surrogates(site: Site) -> Iterator[Mistake]:
        clipped = site.node.attributes["ste"] == "clip"
        for words, of in SURROGATES.items() if key in site.keys else ():
            if clipped or words != CUT_OFF:
                yield Mistake(words, lambda call, of=of: call[key] * of(_z(call)))


_declare_surrogates("binary_linear", "d.bit")
_declare_surrogates("sign", "d")

# --- backward: weights ----------------------------------------------------------------------------


def _dused(call: Call) -> np.ndarray:
    """The gradient of the binary weights."""
    d, bit = call["d"], call["bit"]
    rows = signs(bit, np.float64).reshape(-1, bit.shape[-1])
    return d.reshape(-1, d.shape[-1]).T @ rows


def _centred(weight: np.ndarray) -> np.ndarray:
    return weight - weight.mean(axis=1, keepdims=True)


def _scale(weight: np.ndarray) -> np.ndarray:
    return np.abs(weight).mean(axis=1, keepdims=True)


def _through_scale(call: Call) -> np.ndarray:
    weight = call["p0"]
    dscale = (_dused(call) * signs(_centred(weight) >= 0, np.float64)).sum(axis=1, keepdims=True)
    return dscale * np.sign(weight) / weight.shape[1]


def _of_latent(call: Call) -> np.ndarray:
    """The gradient with the values in front of the signs, not the signs."""
    d, z = call["d"], call.value(call.site.name("x0"))
    dused = d.reshape(-1, d.shape[-1]).T @ z.reshape(-1, z.shape[-1])
    return _centred(dused * (np.abs(_centred(call["p0"])) <= 1))


def _masked(call: Call, weight: np.ndarray) -> np.ndarray:
    return _dused(call) * (np.abs(weight) <= 1)


WEIGHT_GRADIENTS: dict[str, Callable[[Call], np.ndarray]] = {
    "centring forgotten in the gradient of the weights": lambda c: _masked(c, _centred(c["p0"])),
    "gradient of the weights not clipped at |Wc| = 1": lambda c: _centred(_dused(c)),
    "gradient of the weights neither clipped nor centred": _dused,
    "gradient of the weights clipped by |W|, not |Wc|": lambda c: _centred(_masked(c, c["p0"])),
    "gradient of the weights times their scale": lambda c: c.right() * _scale(c["p0"]),
    "gradient of the weights times the scale of the centred ones":
        lambda c: c.right() * _scale(_centred(c["p0"])),
    "gradient through the weight scale, which is a constant":
        lambda c: c.right() + _through_scale(c),
    "gradient of the weights centred in front of the clip, not behind it":
        lambda c: _centred(_dused(c)) * (np.abs(_centred(c["p0"])) <= 1),
    "gradient of the weights centred over the outputs":
        lambda c: (lambda g: g - g.mean(axis=0))(_masked(c, _centred(c["p0"]))),
    "gradient of the weights passes where |Wc| > 1, the wrong side":
        lambda c: _centred(_dused(c) * (np.abs(_centred(c["p0"])) > 1)),
    "gradient of the weights with the activations in the place of their signs": _of_latent,
    "gradient of the weights with bits as 0 and 1":
        lambda c: _centred((_rows(c["d"]).T @ _rows(c["bit"].astype(float)))
                           * (np.abs(_centred(c["p0"])) <= 1)),
    "gradient of the weights by the polynomial surrogate":
        lambda c: _centred(_dused(c) * ops.sign.surrogate(_centred(c["p0"]))),
    "gradient of the weights divided by their scale": lambda c: c.right() / _scale(c["p0"]),
}  # fmt: skip


def _rows(x: np.ndarray) -> np.ndarray:
    return x.reshape(-1, x.shape[-1])


@family("binary_linear", what="d.p0")
def weight_gradients(site: Site) -> Iterator[Mistake]:
    if "p0" in site.keys:
        for words, edit in WEIGHT_GRADIENTS.items():
            yield Mistake(words, edit)


@family("binary_linear", what="d.bit")
def bit_gradients(site: Site) -> Iterator[Mistake]:
    if site.node.attributes["binarize"] != "full":
        return
    for words, weights in {
        "latent weights on the way back, not the binary ones": lambda w: w,
        "centred weights on the way back, not the binary ones": _centred,
        "signs of the weights on the way back, without their scale":
            lambda w: signs(_centred(w) >= 0, np.float64),
        "signs of weights that are not centred on the way back":
            lambda w: signs(w >= 0, np.float64) * _scale(w),
        "binary weights on the way back with one scale a tensor":
            lambda w: signs(_centred(w) >= 0, np.float64) * np.abs(w).mean(),
        "the scale twice on the way back":
            lambda w: signs(_centred(w) >= 0, np.float64) * _scale(w) ** 2,
    }.items():  # fmt: skip
        yield Mistake(words, lambda call, weights=weights: call["d"] @ weights(call["p0"]))
    yield Mistake("binary weights transposed on the way back", _transposed_back)


def _transposed_back(call: Call) -> np.ndarray | None:
    weight = call["p0"]
    if weight.shape[0] != weight.shape[1]:
        return None
    return call["d"] @ ops.weight_binarizer.forward(weight)[0].T


# --- backward: boolean attention ------------------------------------------------------------------


def _dweights(call: Call) -> np.ndarray:
    """The gradient of the binarized probabilities."""
    d, value = call["d"], call["x1"]
    found = d @ value
    if call.node.attributes["context"] == "differences":
        found = found - (d * value.swapaxes(-1, -2)).sum(axis=-1, keepdims=True)
    return found


def _alpha_terms(call: Call, inside: bool = True, above: bool = True) -> np.ndarray:
    q, dy = call["prob.z"], _dweights(call)
    terms = np.zeros_like(dy)
    if inside:
        terms = terms + dy * ((q >= 0) & (q <= 1)) * ((q > 0.5) - q)
    return terms + dy * (q > 1) if above else terms


def _summed(call: Call, terms: np.ndarray) -> np.ndarray:
    alpha = call["p0"]
    axes = tuple(i for i in range(terms.ndim) if i >= terms.ndim - alpha.ndim and
                 alpha.shape[i - terms.ndim + alpha.ndim] == 1)  # fmt: skip
    axes = (*range(terms.ndim - alpha.ndim), *axes)
    return terms.sum(axis=axes, keepdims=True).reshape(alpha.shape)


PROB_GRADIENTS: dict[str, Callable[[Call], np.ndarray]] = {
    "the gradient of the probabilities passes where q > 1, too": _dweights,
    "the gradient of the probabilities is divided by alpha":
        lambda c: c.right() / ops.boolean.step_of(c["p0"]),
    "the gradient of the probabilities is times alpha":
        lambda c: c.right() * ops.boolean.step_of(c["p0"]),
    "the gradient of the probabilities passes where q > 1 alone, the wrong side":
        lambda c: _dweights(c) * (c["prob.z"] > 1),
    "the gradient of the probabilities passes where the bit is 1":
        lambda c: _dweights(c) * (c["prob.z"] > 0.5),
    "the gradient of the probabilities passes where the bit is 0":
        lambda c: _dweights(c) * (c["prob.z"] <= 0.5),
    "the gradient of the probabilities by the polynomial surrogate":
        lambda c: _dweights(c) * ops.sign.surrogate(c["prob.z"]),
}  # fmt: skip
VALUE_GRADIENTS: dict[str, Callable[[Call], np.ndarray]] = {
    "the gradient of the values without alpha":
        lambda c: c.right() / ops.boolean.step_of(c["p0"]),
    "the gradient of the values has alpha twice":
        lambda c: c.right() * ops.boolean.step_of(c["p0"]),
    "the gradient of the values with the probabilities, not their bits":
        lambda c: (c["d"].swapaxes(-1, -2)
                   @ (c["prob.z"] * ops.boolean.step_of(c["p0"]))),
    "the gradient of the values with q clipped, not rounded":
        lambda c: (c["d"].swapaxes(-1, -2)
                   @ (np.clip(c["prob.z"], 0, 1) * ops.boolean.step_of(c["p0"]))),
    "the gradient of the values with the attention not transposed":
        lambda c: (c["d"].swapaxes(-1, -2)
                   @ ((c["prob.z"] > 0.5) * ops.boolean.step_of(c["p0"])).swapaxes(-1, -2)),
    "the gradient of the values with the boolean matrix as -1 and +1":
        lambda c: (c["d"].swapaxes(-1, -2)
                   @ (signs(c["prob.z"] > 0.5, np.float64) * ops.boolean.step_of(c["p0"]))),
}  # fmt: skip


def _of_summed(terms: Callable[[Call], np.ndarray]) -> Callable[[Call], np.ndarray]:
    return lambda call: _summed(call, terms(call)) * (call["p0"] >= ops.boolean.ALPHA_MIN)


ALPHA_GRADIENTS: dict[str, Callable[[Call], np.ndarray]] = {
    "the gradient of alpha without its branch q > 1": _of_summed(
        lambda c: _alpha_terms(c, above=False)),
    "the gradient of alpha of the branch q > 1 alone": _of_summed(
        lambda c: _alpha_terms(c, inside=False)),
    "the gradient of alpha without - q: the sum over bits": _of_summed(
        lambda c: _dweights(c) * (c["prob.z"] > 0.5)),
    "the gradient of alpha with - q where q > 1, too": _of_summed(
        lambda c: _dweights(c) * ((c["prob.z"] > 0.5) - c["prob.z"])),
    "the gradient of alpha with the wrong sign inside": _of_summed(
        lambda c: _alpha_terms(c, inside=False) - _alpha_terms(c, above=False)),
    "the gradient of alpha divided by alpha":
        lambda c: c.right() / ops.boolean.step_of(c["p0"]),
    "the gradient of alpha times alpha": lambda c: c.right() * ops.boolean.step_of(c["p0"]),
    "the gradient of alpha is a mean, no sum": lambda c: c.right() / (
        c["prob.z"].size / max(c["p0"].size, 1)),
    "the gradient of alpha with LSQ's factor 1 / sqrt(numbers)":
        lambda c: c.right() / np.sqrt(c["prob.z"].size),
    "the gradient of alpha is one number for all heads":
        lambda c: np.full_like(c["p0"], c.right().sum()),
    "the gradient of alpha passes below its minimum 1e-5, too":
        lambda c: _summed(c, _alpha_terms(c)),
    "the gradient of alpha with magnitudes": _of_summed(lambda c: np.abs(_alpha_terms(c))),
    "the gradient of alpha with the bit in the place of the clipped q": _of_summed(
        lambda c: _dweights(c) * (np.clip(c["prob.z"], 0, 1) - (c["prob.z"] > 0.5))),
    "the gradient of alpha with q clipped: no rounding": _of_summed(
        lambda c: _dweights(c) * np.clip(c["prob.z"], 0, 1)),
}  # fmt: skip


def _declare_gradients(what: str, table: dict[str, Callable[[Call], np.ndarray]]) -> None:
    @family("boolean_attention", what=what)
    def gradients(site: Site) -> Iterator[Mistake]:
        if "prob.z" in site.keys:
            for words, edit in table.items():
                yield Mistake(words, edit)


_declare_gradients("d.x0", PROB_GRADIENTS)
_declare_gradients("d.x1", VALUE_GRADIENTS)
_declare_gradients("d.p0", ALPHA_GRADIENTS)
