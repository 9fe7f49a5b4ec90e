"""How far a correct port may be from the reference at every element of a tap [SPEC 8.2].

Computed, never guessed: the op of the tap runs on arrays that carry a bound of their error. What
an op writes into an array that it made, where an error would get lost, is written out here.

    replay   the op alone, on exactly these inputs; gamma_n * sum |terms|, in any order
    free     every input off by free_margin * u already: free_margin * u * sum |terms|, the largest
             along the last axis, since errors of earlier layers mix along it. Or, where that is
             more, what an error becomes on its way through all ops before: a LayerNorm of a row
             that hardly varies divides it by sqrt(var + eps), and no term of a later op shows that
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from refimpl import ops
from refimpl.golden import record
from refimpl.golden.bounded import SECOND_ORDER, Arithmetic, Bounded
from refimpl.golden.record import GRADS, INPUT, Step, kind_of, z_of
from refimpl.models import (
    Config,
    VisionTransformer,
    flatten,
    heads,
    linear_decoder,
    packing,
    projection,
)
from refimpl.models.params import Params, block_of
from refimpl.models.run import signs
from refimpl.models.stage import Stage

FREE_MARGIN = 64
# Of free_margin: a value's own noise, 8 u, where errors add up in squares. A mean of 6 equal
# numbers is off by 2 u; one of 200, added up one by one, by up to 50 u: such rows would need more.
NOISE = 1 / 8
CORRELATED = 16.0  # what follows from one open kink of a gradient adds up, other than noise
UNITS = {name: float(np.finfo(name).eps) / 2 for name in ("float32", "float64")}
REFERENCE = UNITS["float64"]
# Numbers below this are lost to underflow in float32, or made of lost ones.
UNDERFLOW = float(np.finfo(np.float32).tiny) * 2.0**20
UNKNOWN = 1e20  # an error beyond it is as good as none that is known; no port computes such values
LATEST = 50  # arrays that are kept because a tap soon after reads them


class Reference(NamedTuple):
    """The float64 network whose taps are judged."""

    config: Config
    params: Params
    steps: Mapping[str, Step]  # as `record.trace` gave them


def reference(
    model: VisionTransformer,
    params: Params,
    images: np.ndarray,
    dlogits: np.ndarray | None = None,
) -> Reference:
    """Run a network in float64, whatever the types of its arrays; errors as `model.forward`."""
    params, images = record.cast(params, np.float64), images.astype(np.float64)
    dlogits = None if dlogits is None else dlogits.astype(np.float64)
    return Reference(model.config, params, record.trace(model, params, images, dlogits))


def replay(
    reference: Reference, name: str, inputs: Sequence[np.ndarray], unit: float
) -> np.ndarray:
    """Bound for tap `name`, computed with unit roundoff `unit` from exactly `inputs`.

    `inputs`: values of the step's inputs, reals as float64. Of a bit it is tau, the bound of its z,
    where `inputs` are those of z. Like the value, float64.
    """
    name = z_of(name) if kind_of(reference.steps[name].value) == "bit" else name
    # the reference rounds, too
    arithmetic = Arithmetic(unit + REFERENCE)
    given = [arithmetic.value(x) for x in inputs]
    # on absurd inputs everything may be off: exp of an error of 1000 is more than float64 holds
    with np.errstate(over="ignore", invalid="ignore"):
        error = SECOND_ORDER * _bounded(reference, name, given, arithmetic).error() + UNDERFLOW
    return np.where(np.isnan(error), np.inf, error)


class Free:
    """Bounds for a whole run with unit roundoff `unit`, tap by tap: `Free(reference, unit)[name]`.

    Of a bit it is tau of its z. The terms of a band are its pixels, since its details cancel. A
    real inherits what the op before it adds, where that is more. What came before that op arrives
    in squares, for errors that know nothing of one another: every value is off by its own noise,
    and by what the op makes of the noise of all values before it. A gradient may cancel down to
    nothing but that; its values are off by the whole margin.
    """

    def __init__(self, reference: Reference, unit: float, margin: float = FREE_MARGIN):
        self.reference, self.steps = reference, reference.steps
        self.unit, self.spread = unit, margin * unit
        self._terms: dict[str, np.ndarray] = {}  # tap -> spread * sum |terms|
        self._squares: dict[str, np.ndarray] = {}  # tap -> square of what it inherits

    def __getitem__(self, name: str) -> np.ndarray:
        kind = kind_of(self.steps[name].value)
        if kind == "int":
            return np.full(self.steps[name].value.shape, UNDERFLOW)
        z = z_of(name) if kind == "bit" else name
        if name.startswith(GRADS):
            error = _spread_out(np.maximum(self._arriving(z), self._rounding(z)))
        else:
            error = np.maximum(self._of_last_ops(z, kind), self._arriving(z))
        return error + UNDERFLOW

    def _of_last_ops(self, z: str, kind: str) -> np.ndarray:
        """From the terms of the op that made it; those of a real's inputs have terms, too."""
        if z.endswith(".prob.z"):
            return self._terms_of(z)
        if kind == "bit":
            return _spread_out(self._terms_of(z))
        terms = self._run(z, self.steps[z].inputs)
        return _spread_out(np.maximum(terms, self._rounding(z)))

    def _rounding(self, name: str) -> np.ndarray:
        """A probability has no terms, but it rounds."""
        return self.spread * np.abs(self.steps[name].value)

    def _terms_of(self, name: str) -> np.ndarray:
        """spread * sum |terms| of the op that gives this tap."""
        if name not in self._terms:
            bands = [read for read in self.steps[name].inputs if _is_band(read)]
            self._terms[name] = self._run(name, bands)
            if len(self._terms) > LATEST:
                del self._terms[next(iter(self._terms))]
        return self._terms[name]

    def _run(self, name: str, composed: Sequence[str]) -> np.ndarray:
        """The op with every input off by `spread`; those of `composed` by that of their terms."""
        if name.endswith(".prob.z"):
            return self.spread * self.steps[name].value
        arithmetic, given = Arithmetic(0.0, self.spread), []
        for read in self.steps[name].inputs:
            given.append(arithmetic.value(self.steps[read].value))
            if read in composed and kind_of(self.steps[read].value) == "real" and read != INPUT:
                given[-1].inherited = np.maximum(given[-1].inherited, self._terms_of(read))
        return _bounded(self.reference, name, given, arithmetic).error()

    def _arriving(self, name: str) -> np.ndarray:
        """The error that all steps up to this one leave in it.

        In order of computation, since a chain of them is deeper than Python calls functions.
        """
        names = list(self.steps)
        for step in names[: names.index(name) + 1]:
            if step not in self._squares or step == name:
                found = self._with_history(step)
                self._squares[step] = np.fmin(found.inherited, UNKNOWN**2)  # of no number, too
        return np.fmin(found.error(), UNKNOWN)

    def _with_history(self, name: str) -> Bounded:
        """The op on inputs that carry their noise and what has arrived in them."""
        if name.startswith(GRADS):
            arithmetic = Arithmetic(self.unit, self.spread, power=2, jump=CORRELATED)
        else:
            arithmetic = Arithmetic(0.0, NOISE * self.spread, power=2)
        step = self.steps[name]
        if kind_of(step.value) != "real" or name == INPUT:
            return Bounded(step.value, np.zeros(()), 0, np.zeros(()), arithmetic)
        given = [self._given(read, name, arithmetic) for read in step.inputs]
        # far beyond UNKNOWN an exp or a square is infinite, and a difference of such no number
        with np.errstate(over="ignore", invalid="ignore"):
            return _bounded(self.reference, name, given, arithmetic)

    def _given(self, read: str, reader: str, arithmetic: Arithmetic) -> Bounded:
        given = arithmetic.value(self.steps[read].value)
        if reader.startswith(GRADS) and not read.startswith(GRADS):
            given.inherited = _spread_out(given.inherited)
        given.inherited = given.inherited + self._squares[read]
        return given


def _is_band(name: str) -> bool:
    return name.endswith((".attn.low", ".attn.high")) and not name.startswith(GRADS)


def _spread_out(error: np.ndarray) -> np.ndarray:
    """Earlier errors mix along the last axis: each element may have the largest of its row."""
    if not error.ndim:
        return error
    return np.broadcast_to(error.max(axis=-1, keepdims=True), error.shape)


def _bounded(
    reference: Reference, name: str, given: Sequence[Bounded], arithmetic: Arithmetic
) -> Bounded:
    result = _run(reference, name, given, arithmetic)
    if isinstance(result, Bounded):
        return result
    zero = np.zeros(result.shape)  # a whole number, or a gradient that is 0 by declaration
    return Bounded(result, zero, 0, zero, arithmetic)


def _run(
    reference: Reference, name: str, given: Sequence[Bounded], arithmetic: Arithmetic
) -> Bounded | np.ndarray:
    step = reference.steps[name]
    if kind_of(step.value) == "int":
        return step.value
    if step.op is None:  # the gradient of the logits: given, and cast to the candidate's type
        return arithmetic.value(step.value, roundings=1)
    for matches, run in WRITTEN_OUT:
        if matches(name, reference.config):
            return run(reference, name, given, arithmetic)
    result = step.op(*given)
    # np.array and np.asarray wrap what they do not know
    return result.item() if isinstance(result, np.ndarray) and result.dtype == object else result


# Ops that write into arrays of their own, or whose parameters alone decide on a branch


def _tokens(reference: Reference, name: str, given, arithmetic: Arithmetic) -> Bounded:
    (patches,) = given
    params = reference.params
    if "embed_norm" in params:
        return reference.steps[name].op(patches)
    if "cls_token" in params:
        shape = (patches.shape[0], *params["cls_token"].shape[1:])
        cls_token = np.broadcast_to(params["cls_token"], shape)
        patches = np.concatenate([cls_token, patches], axis=1)
    return patches + params["pos_embed"]


def _of_weight(reference: Reference, name: str, given, arithmetic: Arithmetic) -> Bounded:
    """p.weight.z and p.weight.scale."""
    path, what = name.rsplit(".", 1)
    centred, _, scale = ops.weight_binarizer.binarize(_weight(reference, path, arithmetic))
    return centred if what == "z" else scale


def _weight(reference: Reference, path: str, arithmetic: Arithmetic) -> Bounded:
    return arithmetic.value(flatten(reference.params)[path], roundings=1)


def _weight_gradient(reference: Reference, name: str, given, arithmetic: Arithmetic) -> Bounded:
    """The clip at |Wc| <= 1 may be open: Wc is not among the inputs."""
    dlinear, bit = given
    rows = signs(bit, float).reshape(-1, bit.shape[-1])
    dused = dlinear.reshape(-1, dlinear.shape[-1]).T @ rows
    weight = _weight(reference, name.removeprefix(f"{GRADS}param."), arithmetic)
    centred = ops.weight_binarizer.binarize(weight).centred
    return ops.weight_binarizer.backward(dused, ops.weight_binarizer.Cache(centred))[0]


def _ratio(reference: Reference, name: str, given, arithmetic: Arithmetic) -> Bounded:
    """q = softmax(s) / alpha': q * (gamma_{N+8} + 4 u (|s| + max |s|)), and what s is off by."""
    (scores,) = given
    q = reference.steps[name].op(scores.value)
    magnitude, inherited = np.abs(scores.value), scores.error()
    argument = magnitude + magnitude.max(axis=-1, keepdims=True)
    shift = inherited + inherited.max(axis=-1, keepdims=True)
    tokens, unit = q.shape[-1], arithmetic.unit
    error = q * (arithmetic.gamma(tokens + 8) + 4 * unit * argument + np.expm1(shift))
    return Bounded(q, q, 0, error**arithmetic.power, arithmetic)


def _mean(function: Callable, x: Bounded, roundings: int) -> Bounded:
    """`function` takes weighted means; of |x| it is the sum of the terms."""
    parts = function(x.value), function(x.size), x.roundings + roundings, function(x.inherited)
    return Bounded(*parts, x.arithmetic)


def _bands(reference: Reference, name: str, given, arithmetic: Arithmetic) -> Bounded:
    (x,), config = given, reference.config
    options = (_stage(config, name).grid, config.haar_mode, config.haar_cls)
    split = config.haar_mode != "none"
    low = _mean(lambda a: ops.bands.forward(a, *options)[0][0], x, roundings=5 if split else 0)
    if name.endswith(".low"):
        return low
    # each detail has the four pixels of the low band as its terms, and the sum has three details
    details = 3 if split else 1
    high = Bounded(
        reference.steps[name].op(x.value),
        details * low.size,
        low.roundings,
        details * low.inherited,
        x.arithmetic,
    )
    if config.haar_cls == "low" and config.pool == "cls":
        high.size[:, 0] = high.inherited[:, 0] = 0
    return high


def _neighbour_mean(reference: Reference, name: str, given, arithmetic: Arithmetic) -> Bounded:
    config = reference.config
    grid = _stage(config, name).grid
    return _mean(
        lambda a: ops.neighbours.forward(a, grid, config.neighbours)[0],
        given[0],
        roundings=9,
    )


def _band_gradients(reference: Reference, name: str, given, arithmetic: Arithmetic) -> Bounded:
    """The gradient of attention's input: 4 pixels a band; the three details have one gradient."""
    dlow, dhigh, dz, dnorm = given
    config = reference.config
    cache = ops.bands.Cache(_stage(config, name).grid, config.haar_mode, config.haar_cls)

    def adjoint(dlow: np.ndarray, dhigh: np.ndarray) -> np.ndarray:
        return ops.bands.backward((dlow, dhigh), cache)[0]

    # the adjoint of the low band takes means: of errors with weights 1 and 3 (the three details),
    # of their squares with the sums of the squared coefficients
    low, high = {1: (1.0, 3.0), 2: (0.25, 0.75)}[arithmetic.power]
    details = 3
    if config.haar_mode == "none":  # each band is x
        low, high, details = 1.0, 1.0, 1
    dx = Bounded(
        adjoint(dlow.value, dhigh.value),
        adjoint(dlow.size + details * dhigh.size, 0 * dhigh.size),
        dlow.roundings + dhigh.roundings + 16,
        adjoint(low * dlow.inherited + high * dhigh.inherited, 0 * dhigh.inherited),
        arithmetic,
    )
    return dx + projection.input_gradient(dz, dnorm)


def _value_gradient(reference: Reference, name: str, given, arithmetic: Arithmetic) -> Bounded:
    """Of m_v: through the learned shortcut, the neighbour mean and the heads."""
    dsum, dz, dmean = given
    config, attention = reference.config, _attention(reference, name)
    stage = _stage(config, name)
    _, cache = ops.neighbours.forward(np.zeros(dsum.shape), stage.grid, config.neighbours)
    through_mean = _mean(lambda a: ops.neighbours.backward(a, cache)[0], dmean, roundings=9)
    return attention["shortcut"] * dsum + through_mean + heads.join_values(dz, stage)


def _stage(config: Config, name: str) -> Stage:
    return config.stage_of(block_of(name.removeprefix(GRADS)))


def _attention(reference: Reference, name: str) -> Params:
    block = name.removeprefix(GRADS).split(".")[1]
    return reference.params["blocks"][block]["attn"]


def _enlarged(reference: Reference, name: str, given, arithmetic: Arithmetic) -> Bounded:
    """A pixel is the weighted mean of four tokens, one axis after the other."""
    config = reference.config
    found = _mean(lambda a: linear_decoder.enlarge(a, config), given[0], roundings=6)
    return _placed(found, found.size.max(axis=(-2, -1), keepdims=True), config)


def _enlarged_gradient(reference: Reference, name: str, given, arithmetic: Arithmetic) -> Bounded:
    """Of a token: a sum over all pixels of its columns, then over all of its rows."""
    config = reference.config
    roundings = sum(config.image_size) + 2
    found = _mean(lambda a: linear_decoder.enlarge_backward(a, config), given[0], roundings)
    return _placed(found, found.size.max(axis=1, keepdims=True), config)


def _placed(found: Bounded, largest: np.ndarray, config: Config) -> Bounded:
    """A port may compute where a pixel lies among the tokens in its own type, as PyTorch does.

    The weights of both neighbours are then off by the rounding of a number as large as the grid,
    also where they should be 0.
    """
    error = 8 * sum(config.grid) * found.arithmetic.unit * largest
    found.inherited = found.inherited + error**found.arithmetic.power
    return found


def _last_norm_gradient(reference: Reference, name: str, given, arithmetic: Arithmetic) -> Bounded:
    dlogits, _ = given
    config, tokens = reference.config, reference.config.last_stage.tokens
    if config.decoder == "linear":
        dpatches = dlogits @ reference.params["head"]["weight"]
        rest = np.zeros((dpatches.shape[0], config.first_patch, dpatches.shape[2]))
        return np.concatenate([rest, dpatches], axis=1)
    dpooled = dlogits @ reference.params["head"]["weight"]
    if config.pool == "mean":
        dpooled = dpooled / float(tokens)
    # the same at every token, or at the class token alone
    count = tokens if config.pool == "mean" else 1
    rows = [dpooled[:, None]] * count
    rest = np.zeros((dpooled.shape[0], tokens - count, dpooled.shape[1]))
    return np.concatenate([*rows, rest], axis=1)


def _is_binary_weight_gradient(name: str, config: Config) -> bool:
    binary = name.startswith(f"{GRADS}param.") and packing.binary_matrices(config)
    return bool(binary) and name.removeprefix(f"{GRADS}param.") in binary


def _ends(*ends: str, gradient: bool = False):
    return lambda name, config: name.endswith(ends) and name.startswith(GRADS) == gradient


# Which taps -> how they are run; the first that matches. All others run their own op.
WRITTEN_OUT = (
    (lambda name, config: name == "tokens", _tokens),
    (_ends(".weight.z", ".weight.scale"), _of_weight),
    (_ends(".attn.low", ".attn.high"), _bands),
    (_ends(".attn.neighbour_mean"), _neighbour_mean),
    (_ends(".attn.prob.z"), _ratio),
    (_is_binary_weight_gradient, _weight_gradient),
    (lambda name, config: name == "logits" and config.decoder != "none", _enlarged),
    (lambda name, config: name == f"{GRADS}head.out", _enlarged_gradient),
    (
        lambda name, config: name == f"{GRADS}norm.out" and config.decoder != "fpn",
        _last_norm_gradient,
    ),
    (
        lambda name, config: (
            config.similarity == "haar" and _ends(".norm1.out", gradient=True)(name, config)
        ),
        _band_gradients,
    ),
    (
        lambda name, config: (
            config.attention == "differential" and _ends(".attn.v.out", gradient=True)(name, config)
        ),
        _value_gradient,
    ),
)
