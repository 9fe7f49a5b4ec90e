"""AdamW, Muon and clipping by global norm [SPEC 7], on flat dicts: dotted parameter name -> array.

AdamW (Loshchilov and Hutter, arXiv 1711.05101), step t = 1, 2, ...:

    first  = beta1 * first  + (1 - beta1) * gradient
    second = beta2 * second + (1 - beta2) * gradient^2
    parameter -= rate * decay * parameter                    only parameters in `decayed`
    parameter -= rate * (first / (1 - beta1^t)) / (sqrt(second / (1 - beta2^t)) + eps)

A step is about as long as the rate, however small the parameter. `attn.alpha` starts at 1/N: at the
rate of all others it can fall below zero within some tens of steps, where it has no gradient, every
bit of the attention is 1 and queries and keys learn nothing any more. It has a rate of its own,
`Recipe.alpha_rate` times that of the others.

Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) is for the matrices of blocks, where
`Recipe.muon_rate` is not 0. With M = U S V^T the singular value decomposition, its step is about
U V^T, all directions of a matrix alike:

    momentum = 0.95 * momentum + 0.05 * gradient
    update = orthogonal(0.95 * momentum + 0.05 * gradient)
    parameter -= rate * decay * parameter                    only parameters in `decayed`
    parameter -= rate * 0.2 * sqrt(max(rows, columns)) * update

The factor makes the root mean square of a step's entries about 0.2, which is AdamW's (Liu et al.,
arXiv 2502.16982, section 2.2), so that rates of the one fit the other.

Everything is computed in the widest dtype of the parameters; they and moments change in place.

>>> weight = {"w": np.array([1.0, -1.0])}
>>> optimizer = AdamW(weight)
>>> optimizer.step({"w": np.array([0.3, 0.0])}, rate=0.1)     # the first step has length rate
>>> weight["w"].round(6).tolist()
[0.9, -1.0]
"""

import math
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Protocol

import numpy as np

from refimpl.models.nodes import Network
from refimpl.models.params import decayed
from refimpl.training.recipes import Recipe

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8
CHUNK = 1 << 15  # entries that are worked on at a time: all that is needed of them is in the caches
MOMENTUM = 0.95
# a x + b x^3 + c x^5, five times: x from 0.003 to 1 comes out between 0.68 and 1.21
QUINTIC = (3.4445, -4.7750, 2.0315)
TURNS = 5
MATRICES = ("matrix", "latent_matrix", "binary_matrix")  # roles of parameters


class Optimizer(Protocol):
    """What the loop asks of an optimizer, which changes its parameters in place."""

    steps: int  # that were made

    def step(self, gradients: Mapping[str, np.ndarray], rate: float) -> None: ...
    def state(self) -> dict[str, np.ndarray]: ...
    def restore(self, state: Mapping[str, np.ndarray]) -> None: ...


class AdamW:
    """AdamW over a flat dict of parameters, which it changes in place.

    Weight decay is decoupled from the gradient and applies to the names in `decayed` only. The
    rate of a name in `shares` is that share of the others'.
    """

    def __init__(
        self,
        params: dict[str, np.ndarray],
        decay: float = 0.0,
        decayed: Collection[str] = (),
        shares: Mapping[str, float] = MappingProxyType({}),
    ):
        self.params = params
        self.shares = {name: shares.get(name, 1.0) for name in params}
        self.decay = {name: decay if name in decayed else 0.0 for name in params}
        self.steps = 0
        # each is one array, of which every name has its part: some long operations a step
        # instead of a dozen for each of hundreds of names
        size, dtype = sum(value.size for value in params.values()), _dtype_of(params)
        self._first, self._second = np.zeros(size, dtype), np.zeros(size, dtype)
        self._change = np.empty(size, dtype)
        self.first, self.second = self._parts(self._first), self._parts(self._second)
        self._changes = self._parts(self._change)

    @np.errstate(all="ignore")  # a run that diverges is told once, by name; see loop.py
    def step(self, gradients: Mapping[str, np.ndarray], rate: float) -> None:
        """One update with learning rate `rate`; gradients are named and shaped like params."""
        self.steps += 1
        length = rate / (1 - BETA1**self.steps)
        scale = 1 / math.sqrt(1 - BETA2**self.steps)
        for name, part in self._changes.items():
            part[...] = gradients[name]
        for begin in range(0, self._change.size, CHUNK):
            some = slice(begin, begin + CHUNK)
            _update(self._first[some], self._second[some], self._change[some], scale)
        for name, value in self.params.items():
            share, change = self.shares[name], self._changes[name]
            if self.decay[name]:
                value *= 1 - rate * share * self.decay[name]
            change *= length * share
            value -= change

    def _parts(self, array: np.ndarray) -> dict[str, np.ndarray]:
        """Views of a flat array, one for each parameter."""
        sizes = [value.size for value in self.params.values()]
        parts = np.split(array, np.cumsum(sizes)[:-1])
        shapes = [value.shape for value in self.params.values()]
        return {
            name: part.reshape(shape)
            for name, part, shape in zip(self.params, parts, shapes, strict=True)
        }

    def state(self) -> dict[str, np.ndarray]:
        """All that a later `restore` needs: `steps`, `first.<name>` and `second.<name>`."""
        moments = {f"first.{name}": value for name, value in self.first.items()}
        moments |= {f"second.{name}": value for name, value in self.second.items()}
        return {"steps": np.array(self.steps), **moments}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on from what `state()` returned for the same parameters."""
        self.steps = int(state["steps"])
        for name in self.params:
            self.first[name][...] = state[f"first.{name}"]
            self.second[name][...] = state[f"second.{name}"]


def _dtype_of(params: Mapping[str, np.ndarray]) -> np.dtype:
    """The widest: none of several types loses anything, and none at all is float32."""
    return np.result_type(np.float32, *(value.dtype for value in params.values()))


def _update(first: np.ndarray, second: np.ndarray, change: np.ndarray, scale: float) -> None:
    """The moments, and in `change`, which holds the gradient, the step of length 1."""
    scratch = change * (1 - BETA1)
    first *= BETA1
    first += scratch

    np.multiply(change, change, out=scratch)
    scratch *= 1 - BETA2
    second *= BETA2
    second += scratch

    np.sqrt(second, out=scratch)
    scratch *= scale
    scratch += EPS
    np.divide(first, scratch, out=change)


class Muon:
    """Muon over a flat dict of matrices, which it changes in place.

    parts: how many matrices one below the other a name has, as queries, keys and values are, where
    that is not 1; each is stepped by itself. Weight decay as in AdamW.
    """

    def __init__(
        self,
        params: dict[str, np.ndarray],
        decay: float = 0.0,
        decayed: Collection[str] = (),
        parts: Mapping[str, int] = MappingProxyType({}),
    ):
        self.params = params
        self.parts = {name: parts.get(name, 1) for name in params}
        self.decay = {name: decay if name in decayed else 0.0 for name in params}
        self.momentum = {name: np.zeros_like(value) for name, value in params.items()}

    @np.errstate(all="ignore")  # as in AdamW
    def step(self, gradients: Mapping[str, np.ndarray], rate: float) -> None:
        """One update with learning rate `rate`; gradients are named and shaped like params."""
        for name, value in self.params.items():
            momentum, gradient = self.momentum[name], gradients[name] * (1 - MOMENTUM)
            momentum *= MOMENTUM
            momentum += gradient
            if self.decay[name]:
                value *= 1 - rate * self.decay[name]
            parts = self.parts[name]
            for part, change in zip(
                np.split(value, parts), np.split(momentum * MOMENTUM + gradient, parts), strict=True
            ):
                part -= (rate * 0.2 * math.sqrt(max(part.shape))) * orthogonal(change)

    def state(self) -> dict[str, np.ndarray]:
        """All that a later `restore` needs: `momentum.<name>`."""
        return {f"momentum.{name}": value for name, value in self.momentum.items()}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on from what `state()` returned for the same parameters."""
        for name, value in self.momentum.items():
            value[...] = state[f"momentum.{name}"]


def orthogonal(matrix: np.ndarray) -> np.ndarray:
    """Bring all singular values of a matrix near 1, by Newton and Schulz's iteration.

    (m, n) -> (m, n) of the same dtype: U p(S) V^T for `matrix` = U S V^T, with every p(s) in 0.68
    to 1.21 where s is above 0.003 of the Frobenius norm. All 0 stays so. Source: Muon, above.

    >>> np.linalg.svd(orthogonal(np.diag([5.0, -2.0, 0.5])), compute_uv=False).round(2).tolist()
    [1.05, 0.72, 0.68]
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / (np.linalg.norm(wide) + np.asarray(1e-7, wide.dtype))
    a, b, c = QUINTIC
    for _ in range(TURNS):
        square = wide @ wide.T
        wide = a * wide + (b * square + c * (square @ square)) @ wide
    return wide if matrix.shape[0] <= matrix.shape[1] else wide.T


class Both:
    """Muon over some matrices, and AdamW over all other parameters."""

    def __init__(self, muon: Muon, share: float, adamw: AdamW):
        self.muon, self.share, self.adamw = muon, share, adamw

    @property
    def steps(self) -> int:
        return self.adamw.steps

    def step(self, gradients: Mapping[str, np.ndarray], rate: float) -> None:
        """One update with learning rate `rate`, of Muon's matrices with its share of it."""
        self.adamw.step(gradients, rate)
        self.muon.step(gradients, rate * self.share)

    def state(self) -> dict[str, np.ndarray]:
        """All that a later `restore` needs: both states."""
        return self.adamw.state() | self.muon.state()

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on from what `state()` returned for the same parameters."""
        self.adamw.restore(state)
        self.muon.restore(state)


def for_network(network: Network, params: dict[str, np.ndarray], recipe: Recipe) -> Optimizer:
    """The optimizer of a stage; `params`, flat, are those that its network declares."""
    declared = network.parameters
    shares = {path: recipe.alpha_rate for path, found in declared.items() if found.role == "alpha"}
    decay = recipe.weight_decay, decayed(declared)
    if recipe.muon_rate == 0:
        return AdamW(params, *decay, shares)
    inside = {p for p, f in declared.items() if f.role in MATRICES and f.block is not None}
    matrices = {path: value for path, value in params.items() if path in inside}
    rest = {path: value for path, value in params.items() if path not in inside}
    muon = Muon(matrices, *decay, _parts(network))
    return Both(muon, recipe.muon_rate, AdamW(rest, *decay, shares))


def _parts(network: Network) -> dict[str, int]:
    """Of a matrix whose output is split, in how many parts."""
    splits = [node for node in network.nodes if node.op == "split"]
    makers = [network.nodes[network.maker[node.inputs[0]]] for node in splits]
    return {made.params[0]: n.attributes["parts"] for made, n in zip(makers, splits, strict=True)}


def clip_by_global_norm(
    gradients: Mapping[str, np.ndarray], most: float
) -> tuple[dict[str, np.ndarray], float]:
    """Scale all gradients together so that their common L2 norm is at most `most`.

    Returns (gradients, norm before clipping); the norm is accumulated in float64, and does not
    depend on the order of the names. Gradients that are short enough come back as they are.
    """
    squares = (float(np.sum(np.square(g, dtype=np.float64))) for g in gradients.values())
    norm = math.sqrt(math.fsum(squares))
    if norm <= most:
        return dict(gradients), norm
    scale = most / norm
    return {name: gradient * scale for name, gradient in gradients.items()}, norm
