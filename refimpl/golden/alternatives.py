"""What a mistake inside an operation makes of its tap, by running that operation wrongly.

The operation of one tap is traced from a network that has only the tap's block, with a parameter,
a field of the configuration or an input changed. With windows it has all of them: blocks differ.
Each function takes a Case and yields guesses, as in `fingerprints`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from refimpl import ops
from refimpl.conventions import RefimplError
from refimpl.golden.fingerprints import LAYOUTS, Case, Guess
from refimpl.models import Config, VisionTransformer, flatten, heads, unflatten
from refimpl.models.packing import WORD
from refimpl.models.run import dot, signs

# Fields of the configuration that a port may have got wrong: taps concerned, values.
FIELDS = {
    "haar_mode": (r"\.(low|high)$", ops.bands.MODES),
    "haar_cls": (r"\.(low|high)$", ("both", "low")),
    "neighbours": (r"(neighbour_mean|\.v\.out)$", ("existing", "eight")),
    "norm_eps": (r"norm\d?(\.out)?$", (1e-5, 1e-6, 1e-12, 0.0)),
    "ste": (r"^grads/.*z$", ("polynomial", "clip")),
    "pool": (r"^(grads/)?(logits|norm\.out)$", ("cls", "mean")),
}
# The last part of a tap's name -> parameters, below the same path, that its operation may use.
PARAMETERS = {
    "z": ("move", "alpha"),
    "linear": ("weight",),
    "norm": ("norm",),
    "out": ("rprelu", "shortcut", "neighbour", "weight", "bias", "scale2"),
    "mid": ("scale1",),
    "scores": ("band_weight", "position_bias"),
    "context": ("alpha",),
    "tokens": ("cls_token", "pos_embed", "embed_norm"),
    "logits": ("head",),
}
FACTORS = ("weight", "slope", "alpha", "shortcut", "band_weight")  # left out, they are 1, not 0


class _Found(Exception):
    """Ends a trace at the tap that was looked for."""


class Operation:
    """The operation behind one tap; `config` is that of the whole network."""

    def __init__(self, name: str, reads: Sequence[str], config: Config, params: Mapping[str, Any]):
        """`reads`: names of the taps it reads; params: nested, of the whole network."""
        self.name = name
        self.reads = tuple(reads)
        self.config = config
        block = re.match(r"(?:grads/(?:param\.)?)?blocks\.(\d+)\.", name)
        whole = bool(config.window)
        self._block = int(block[1]) if block and not whole else 0
        self._depth = config.depth if whole else 1
        # The gradient of a block's result belongs to the block above it, unless it is the last.
        above = name == f"grads/blocks.{self._block}.out" and self._block + 1 < config.num_blocks
        self.known = whole or not above
        self.params = {
            path.replace(f"blocks.{self._block}.", "blocks.0.", 1): value.astype(np.float64)
            for path, value in flatten(params).items()
            if whole or not path.startswith("blocks.") or path.startswith(f"blocks.{self._block}.")
        }

    def __call__(
        self,
        inputs: Sequence[np.ndarray],
        params: Mapping[str, np.ndarray] | None = None,
        **fields: Any,
    ) -> np.ndarray | None:
        """The tap from its inputs, with other parameters or fields; None if that is impossible."""
        try:
            op = self._altered(params or {}, fields) if params or fields else self._op
            return None if op is None else op(*inputs)
        except (RefimplError, ValueError, IndexError, TypeError):  # no network has this mistake
            return None

    def own_params(self) -> Iterator[tuple[str, str]]:
        """Paths of the parameters that the operation may use: (here, in the whole network)."""
        here = self.here(self.name)
        parent, leaf = re.sub(r"(^|(\.prob)?\.)[^.]+$", "", here), here.rpartition(".")[2]
        for path in self.params:
            below = path.startswith(f"{parent}.") or not parent
            group = path.removeprefix(f"{parent}.").split(".")[0]
            if (below and group in PARAMETERS.get(leaf, ())) or (
                leaf == "head_z" and path == f"{parent}_move"
            ):
                yield path, path.replace("blocks.0.", f"blocks.{self._block}.", 1)

    def here(self, name: str) -> str:
        """A path of the whole network as one of the network that has only the tap's block."""
        return name.replace(f"blocks.{self._block}.", "blocks.0.", 1)

    @cached_property
    def _op(self) -> Callable[..., np.ndarray] | None:
        return self._altered({}, {})

    def _altered(self, params: Mapping[str, np.ndarray], fields: Mapping[str, Any]) -> Any:
        model = VisionTransformer(self.config.replace(depth=self._depth, **fields))
        config, wanted, found = model.config, self.here(self.name), []

        def tap(name: str, value: Any, op: Any, inputs: Any) -> None:
            if name == wanted:
                found.append(op)
                raise _Found

        image = np.zeros((1, config.channels, *config.image_size))
        backward = wanted.startswith("grads/")
        try:
            logits, cache = model.forward(
                unflatten({**self.params, **params}), image, tap=None if backward else tap
            )
            if backward:
                model.backward(np.ones_like(logits), cache, tap=tap)
        except _Found:
            pass
        return found[0] if found and self.known else None


# --- an input, a parameter, a field ---------------------------------------------------------------


def inputs_changed(case: Case) -> Iterator[Guess]:
    """An input left out, taken for another one, or handed on as it was."""
    op, inputs = case.operation, case.inputs()
    for name, value in zip(op.reads, inputs):
        if value.shape == case.expected.shape and value.dtype != bool:
            yield Guess(_nothing_done(case.name, name), value.astype(np.float64))
    for i, value in enumerate(inputs):
        if len(inputs) > 1 and value.dtype.kind in "fi":
            changed = [*inputs[:i], np.zeros_like(value), *inputs[i + 1 :]]
            yield from _guess(f"{op.reads[i]} left out", op(changed))
    for i in range(len(inputs)):
        for j in range(i):
            same = inputs[i].shape == inputs[j].shape and inputs[i].dtype == inputs[j].dtype
            if same:
                changed = list(inputs)
                changed[i], changed[j] = inputs[j], inputs[i]
                yield from _guess(f"{op.reads[j]} and {op.reads[i]} exchanged", op(changed))


def _nothing_done(name: str, read: str) -> str:
    if name.endswith(".scores"):
        return "scale missing: no division by sqrt(d)"
    if name.endswith((".linear", ".context")):
        return f"scale missing: equal to {read}"
    if name.endswith(".z") and not name.startswith("grads/"):
        return f"move missing: equal to {read}"
    return f"nothing done: equal to {read}"


def params_changed(case: Case) -> Iterator[Guess]:
    """A parameter left out, or with the wrong sign."""
    op, inputs = case.operation, case.inputs()
    for path, name in op.own_params():
        value = op.params[path]
        neutral = np.ones_like(value) if path.split(".")[-1] in FACTORS else np.zeros_like(value)
        yield from _guess(f"{name} left out", op(inputs, {path: neutral}))
        yield from _guess(f"{name} has the wrong sign", op(inputs, {path: -value}))


def kernels_turned(case: Case) -> Iterator[Guess]:
    """The kernel of a convolution, or of the patch embedding, read in another order."""
    op, inputs = case.operation, case.inputs()
    for path, name in op.own_params():
        kernel = op.params[path]
        if kernel.ndim == 4:
            turned, exchanged = kernel[:, :, ::-1, ::-1], kernel.swapaxes(2, 3)
            yield from _guess(f"{name}: the kernel turned around", op(inputs, {path: turned}))
            cause = f"{name}: rows and columns of the kernel exchanged"
            yield from _guess(cause, op(inputs, {path: exchanged}))


def fields_changed(case: Case) -> Iterator[Guess]:
    """Another value of a field of the configuration."""
    op, inputs = case.operation, case.inputs()
    for field, (taps, values) in FIELDS.items():
        own = getattr(op.config, field)
        for value in values if re.search(taps, case.name) else ():
            if value != own:
                cause = f"{field} is {own!r}, the candidate seems to take {value!r}"
                yield from _guess(cause, op(inputs, **{field: value}))


# --- products of bits -----------------------------------------------------------------------------


def operands(case: Case) -> Iterator[Guess]:
    """A product of the right bits, read wrongly."""
    op, inputs = case.operation, case.inputs()
    if len(inputs) != 2 or any(value.dtype != bool for value in inputs):
        return
    a, b = inputs
    for cause, change in LAYOUTS.items():
        yield from _guess(f"{cause}, in one operand of the product", op([change(a), b]))
    boolean = case.name.endswith("context.int")
    size = a.shape[-1]
    for width in (WORD, 32, 8):
        whole = size // width * width
        cause = f"the last {size - whole} of {size} bits left out: a word that is not full"
        part = op([a[..., :whole], b[..., :whole]]) if whole < size else None
        if part is not None:
            yield Guess(cause, part)
            if not boolean:  # K - 2 popcount(a ^ w) with the whole K: as if they were equal
                yield Guess(cause, part + (size - whole))
    if boolean:
        cause = "the boolean matrix taken as -1 and +1; its bits mean 0 and 1"
        yield from _guess(cause, dot(signs(a, np.int32), signs(b, np.int32)))
        cause = "polarity inverted: the boolean matrix's bits"
        yield from _guess(cause, op([~a, b]))


# --- single operations ----------------------------------------------------------------------------


def haar(case: Case) -> Iterator[Guess]:
    """Norm of the bands, rows and columns, details."""
    if not case.name.endswith((".attn.low", ".attn.high")) or case.name.startswith("grads/"):
        return
    op, (x,) = case.operation, case.inputs()
    first = x.shape[1] - case.grid[0] * case.grid[1]
    for factor, norm in ((2.0, "ortho"), (4.0, "no norm")):
        cause = f"Haar norm: {norm} instead of average, factor {factor:g} on the patches"
        yield Guess(
            cause, np.concatenate([case.expected[:, :first], factor * case.expected[:, first:]], 1)
        )
    without = case.expected.copy()
    without[:, :first] = 0
    yield Guess(f"class token left out of {case.name}", without)
    flipped = (x, case.grid[::-1], op.config.haar_mode, op.config.haar_cls)
    band = int(case.name.endswith("high"))
    cause = "H and V bands swapped: rows and columns of the patch grid exchanged"
    yield Guess(cause, ops.bands.forward(*flipped)[0][band])
    if band and op.config.haar_mode != "none":
        yield from _details(case, x, first)


def _details(case: Case, x: np.ndarray, first: int) -> Iterator[Guess]:
    grid = x[:, first:].reshape(len(x), *case.grid, -1).transpose(0, 3, 1, 2)
    _, (cH, cV, cD) = ops.haar.swt2(grid, case.operation.config.haar_mode, norm="average")
    for cause, high in (
        ("H and V bands swapped: V taken twice, H never", cV + cV + cD),
        ("H and V bands swapped: H taken twice, V never", cH + cH + cD),
        ("the H band has the wrong sign", cV - cH + cD),
        ("the V band has the wrong sign", cH - cV + cD),
        ("the D band has the wrong sign", cH + cV - cD),
        ("the H band left out", cV + cD),
        ("the V band left out", cH + cD),
        ("the D band left out", cH + cV),
    ):
        patches = high.transpose(0, 2, 3, 1).reshape(x[:, first:].shape)
        yield Guess(cause, np.concatenate([case.expected[:, :first], patches], axis=1))


def softmax(case: Case) -> Iterator[Guess]:
    """The axis of the softmax."""
    if case.name.endswith((".prob.z", ".prob")) and not case.name.startswith("grads/"):
        op, (scores,) = case.operation, case.inputs()
        wrong = op([scores.swapaxes(-1, -2)])
        if wrong is not None:
            yield Guess("softmax over the queries, not the keys", wrong.swapaxes(-1, -2))


def layer_norm(case: Case) -> Iterator[Guess]:
    """The variance's divisor."""
    if not re.search(r"(norm\d?\.out|\.norm)$", case.name) or case.name.startswith("grads/"):
        return
    C = case.expected.shape[-1]
    for path, _ in case.operation.own_params():
        if re.search(r"norm\d?\.bias$", path):
            bias = case.operation.params[path]
            value = (case.expected - bias) * np.sqrt((C - 1) / C) + bias
            yield Guess("unbiased variance: divided by C - 1, not by C", value)


def merged_heads(case: Case) -> Iterator[Guess]:
    """Channels of the heads put together in another order."""
    if case.name.endswith(".attn.norm.out") and not case.name.startswith("grads/"):
        (context,) = case.inputs()  # (B, heads, N, d)
        batch, count, tokens, d = context.shape
        apart = context.transpose(0, 2, 3, 1).reshape(batch, tokens, count * d)
        unmoved = context.reshape(batch, tokens, count * d)
        for channels in (apart, unmoved):
            value = case.operation([heads.split(channels, count)])
            yield from _guess("heads transposed: channel c belongs to head c // d", value)


def rprelu(case: Case) -> Iterator[Guess]:
    """The side of the slope, the sign and the axis of the shifts."""
    op, inputs = case.operation, case.inputs()
    own = {path.split(".")[-1]: path for path, _ in op.own_params() if ".rprelu." in path}
    if not own or not case.name.endswith(".out") or case.name.startswith("grads/"):
        return
    params = {leaf: op.params[path] for leaf, path in own.items()}
    neutral = {leaf: np.full_like(p, leaf == "slope") for leaf, p in params.items()}
    y = op(inputs, {own[leaf]: value for leaf, value in neutral.items()})  # what RPReLU reads
    if y is None:
        return
    channel = {leaf: params[leaf] for leaf in ("shift_in", "slope", "shift_out")}
    token = {leaf: value for leaf, value in params.items() if leaf.startswith("token")}
    yield from _guess("RPReLU's slope on the wrong side", _wrong_side(y, params))
    if token:
        yield from _wrong_axis(y, channel, token)
        late = {leaf: np.roll(value, 1) for leaf, value in token.items()}
        early = {leaf: np.roll(value, -1) for leaf, value in token.items()}
        for moved in (late, early):
            value = ops.rprelu.forward(y, **channel, **moved)[0]
            yield Guess("off-by-one shift of the token shifts", value)
        yield Guess("token shifts left out", ops.rprelu.forward(y, **channel)[0])
    yield from _fit(case, y, params)


def _wrong_axis(
    y: np.ndarray, channel: Mapping[str, np.ndarray], token: Mapping[str, np.ndarray]
) -> Iterator[Guess]:
    """Shift n mod N at channel n, for one of the token shifts or both."""
    right = {leaf: value[:, None] for leaf, value in token.items()}  # (N, 1)
    wrong = {leaf: np.resize(value, y.shape[-1]) for leaf, value in token.items()}  # (C,)
    for chosen in (
        wrong,
        {**right, "token_shift_in": wrong["token_shift_in"]},
        {**right, "token_shift_out": wrong["token_shift_out"]},
    ):
        inner = ops.rprelu.forward(y - chosen["token_shift_in"], **channel)[0]
        cause = "token shifts on the wrong axis: along the channels"
        yield Guess(cause, inner + chosen["token_shift_out"])


def _wrong_side(y: np.ndarray, params: Mapping[str, np.ndarray]) -> np.ndarray:
    """where(u > 0, slope u, u) = -RPReLU(-y) with the shifts' signs turned."""
    turned = {leaf: value if leaf == "slope" else -value for leaf, value in params.items()}
    return -ops.rprelu.forward(-y, **turned)[0]


def _fit(case: Case, y: np.ndarray, params: Mapping[str, np.ndarray]) -> Iterator[Guess]:
    """Channels of the shortcut of a projection in another order."""
    if len(case.inputs()) != 2:  # attention's output has no fit
        return
    norm, x = case.inputs()
    inputs, outputs = x.shape[-1], norm.shape[-1]
    if outputs > inputs:
        wrong, cause = np.repeat(x, outputs // inputs, axis=-1), "fit by repeat instead of tile"
    elif inputs > outputs:
        wrong = x.reshape(*x.shape[:-1], inputs // outputs, outputs).mean(axis=-2)
        cause = "fit by means over channels O apart instead of neighbours"
    else:
        return
    yield Guess(cause, ops.rprelu.forward(norm + wrong, **params)[0])
    yield Guess("fit left out", ops.rprelu.forward(norm, **params)[0])


def weights(case: Case) -> Iterator[Guess]:
    """Centring and scale of binary weights."""
    if not case.name.endswith((".weight.z", ".weight.scale", ".weight.bit")):
        return
    path = case.operation.here(case.name.rpartition(".")[0])
    weight = case.operation.params[path]
    centred = weight - weight.mean(axis=1, keepdims=True)
    columns = weight - weight.mean(axis=0)
    bit = case.kind == "bit"
    if case.name.endswith(".scale"):
        yield Guess("scale from the centred weights, not the weights", np.abs(centred).mean(axis=1))
        yield Guess("scale is the largest weight, not the mean", np.abs(weight).max(axis=1))
    else:
        yield Guess("weights not centred", weight >= 0 if bit else weight)
        cause = "weights centred over the outputs, not over the inputs"
        yield Guess(cause, columns >= 0 if bit else columns)


def mask(case: Case) -> Iterator[Guess]:
    """The clipped surrogate gradient at |z| = 1."""
    if case.operation.config.ste != "clip" or not re.search(r"^grads/.*z$", case.name):
        return
    z = case.inputs()[-1]
    if z.shape == case.expected.shape:
        value = np.where(np.abs(z) == 1, 0.0, case.expected)
        yield Guess("surrogate gradient cut off at |z| = 1, where it still passes", value)


def weight_gradient(case: Case) -> Iterator[Guess]:
    """The way back through the binarizer of the weights."""
    if not re.search(r"^grads/param\..*\.weight$", case.name) or len(case.inputs()) != 2:
        return
    dlinear, bit = case.inputs()
    if bit.dtype != bool:
        return
    path = case.operation.here(case.name.removeprefix("grads/param."))
    centred, used, s = ops.weight_binarizer.binarize(case.operation.params[path])
    rows = dlinear.reshape(-1, dlinear.shape[-1])
    dused = rows.T @ signs(bit, np.float64).reshape(-1, bit.shape[-1])
    inside = dused * (np.abs(centred) <= 1)
    yield Guess("centring forgotten in the gradient of the weights", inside)
    yield Guess(
        "gradient of the weights not clipped at |Wc| = 1", dused - dused.mean(1, keepdims=True)
    )
    scale = s.reshape(-1, 1)
    yield Guess("gradient of the weights times their scale", case.expected * scale)
    weight = case.operation.params[path]
    through = (dused * signs(centred >= 0, np.float64)).sum(1, keepdims=True)
    through = through * np.sign(weight) / weight.shape[1]
    yield Guess("gradient through the weight scale, which is a constant", case.expected + through)


def _guess(cause: str, value: np.ndarray | None) -> Iterator[Guess]:
    if value is not None:
        yield Guess(cause, value)
