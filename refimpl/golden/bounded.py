"""Arrays that carry a bound of their rounding error through the ops [SPEC 8.2].

The reference's ops run on them unchanged: NumPy hands every operation to `Bounded`. A value is a
sum of terms, each with at most `roundings` roundings of size `unit`, in whatever order a program
adds them up, multiplies a sum out or contracts to fused multiply-add; so

    |computed - exact| <= inherited + gamma_n * size,     n = roundings, size = sum |terms|

and where a value enters something that is not linear, this becomes `inherited`. A comparison that
the error leaves open is a mask with an error of 1, or `Arithmetic.jump`, there.

>>> exact = Arithmetic(unit=2.0**-24)
>>> z = exact.value(np.array([1.0, -3.0])) + exact.value(np.array([2.0, 3.0]))
>>> z.value, z.size, z.roundings
(array([3., 0.]), array([3., 6.]), 1)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

SECOND_ORDER = 1.01  # products of errors, left out below, are less than a hundredth of them
ELEMENTARY = 4  # ulp of exp and erf in the libraries that ports use


class Arithmetic(NamedTuple):
    """Where errors come from.

    `unit` is the unit roundoff of one operation and of a parameter's cast to the candidate's type;
    `spread` the relative error that every given value and parameter has from the start. With
    `power` 1 inherited errors add up, as in the worst case; with 2 their squares do, as errors
    that know nothing of one another do. `jump` is the error of a comparison that is left open.
    """

    unit: float
    spread: float = 0.0
    power: int = 1
    jump: float = 1.0

    def gamma(self, n: int) -> float:
        """Of n roundings; of so many that nothing is left of the number, infinite."""
        return n * self.unit / (1 - n * self.unit) if n * self.unit < 1 else math.inf

    @property
    def is_worst_case(self) -> bool:
        """Given values are exact, or off by what they carry: nothing is measured or statistical."""
        return self.power == 1 and not self.spread

    def value(self, array: np.ndarray, roundings: int = 0) -> Bounded:
        """A given array; a parameter, which may have been cast, has one rounding."""
        size = np.abs(array).astype(np.float64)
        if array.dtype.kind != "f":  # bits and whole numbers are exact
            return Bounded(array, size, 0, 0 * size, self)
        return Bounded(array, size, roundings, (self.spread * size) ** self.power, self)

    def operand(self, x: Any) -> Bounded:
        """Whatever stands beside a Bounded: a parameter or a constant of the equation."""
        if isinstance(x, Bounded):
            return x
        # 2 or 0.5 is the same in every type; np.float64, a parameter, is a float, too
        if type(x) is float and float(np.float32(x)) == x:
            return Bounded(np.asarray(x), np.asarray(abs(x)), 0, np.asarray(0.0), self)
        return self.value(np.asarray(x), roundings=1)


class Bounded(NDArrayOperatorsMixin):
    """See the module's docstring; as much of an array as the ops need."""

    def __init__(
        self,
        value: np.ndarray,
        size: np.ndarray,
        roundings: int,
        inherited: np.ndarray,
        arithmetic: Arithmetic,
    ):
        self.value = value
        self.size = size  # like value
        self.roundings = roundings
        self.inherited = inherited  # like value: the error, to the power of the arithmetic
        self.arithmetic = arithmetic

    def error(self) -> np.ndarray:
        """Bound of |computed - exact| for every element."""
        inherited = self.inherited ** (1 / self.arithmetic.power)
        with np.errstate(invalid="ignore"):  # of no bound and no terms
            return inherited + self.arithmetic.gamma(self.roundings) * self.size

    # What an op asks of an array

    @property
    def dtype(self) -> np.dtype:
        return self.value.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape

    @property
    def ndim(self) -> int:
        return self.value.ndim

    @property
    def T(self) -> Bounded:
        return self._moved(np.transpose)

    def reshape(self, *shape: int) -> Bounded:
        return self._moved(lambda a: a.reshape(*shape))

    def transpose(self, *axes: int) -> Bounded:
        return self._moved(lambda a: a.transpose(*axes))

    def swapaxes(self, a: int, b: int) -> Bounded:
        return self._moved(lambda array: array.swapaxes(a, b))

    def copy(self) -> Bounded:
        return self._moved(np.copy)

    def __getitem__(self, index: Any) -> Bounded:
        return self._moved(lambda a: a[index])

    def astype(self, dtype: Any) -> Bounded:
        return self._with(self.value.astype(dtype))

    def max(self, axis: int, keepdims: bool = False) -> Bounded:
        return self._moved(lambda a: a.max(axis=axis, keepdims=keepdims))

    def min(self, axis: int, keepdims: bool = False) -> Bounded:
        parts = (a.max(axis=axis, keepdims=keepdims) for a in (self.size, self.inherited))
        size, inherited = parts
        value = self.value.min(axis=axis, keepdims=keepdims)
        return Bounded(value, size, self.roundings, inherited, self.arithmetic)

    def sum(self, axis: Any, keepdims: bool = False) -> Bounded:
        result = self._moved(lambda a: a.sum(axis=axis, keepdims=keepdims))
        result.roundings += max(self.value.size // max(result.value.size, 1) - 1, 0)
        return result

    def mean(self, axis: Any = None, keepdims: bool = False) -> Bounded:
        total = self.sum(axis, keepdims)
        return total / float(self.value.size // total.value.size)

    def _moved(self, function: Callable) -> Bounded:
        """The same numbers at other places; a sum of them has a sum of their errors."""
        parts = (function(a) for a in (self.value, self.size, self.inherited))
        value, size, inherited = map(np.asarray, parts)
        return Bounded(value, size, self.roundings, inherited, self.arithmetic)

    def _with(self, value: np.ndarray) -> Bounded:
        return Bounded(value, self.size, self.roundings, self.inherited, self.arithmetic)

    def _collapsed(self, value: np.ndarray, error: np.ndarray, roundings: int = 1) -> Bounded:
        """The result of something that is not linear: one term, whose error is known."""
        inherited = error**self.arithmetic.power
        return Bounded(value, np.abs(value), roundings, inherited, self.arithmetic)

    # NumPy's protocols

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **options):
        # `out` is the left side of y += x, which takes what is returned
        in_place = out is None or isinstance(out[0], Bounded)
        if method != "__call__" or not in_place or options or ufunc.__name__ not in UFUNCS:
            return NotImplemented
        return UFUNCS[ufunc.__name__](*map(self.arithmetic.operand, inputs))

    def __array_function__(self, function, types, args, kwargs):
        if function.__name__ not in FUNCTIONS:
            return NotImplemented
        return FUNCTIONS[function.__name__](self.arithmetic, *args, **kwargs)


def _add(a: Bounded, b: Bounded, sign: int = 1) -> Bounded:
    return Bounded(
        a.value + sign * b.value if sign == 1 else a.value - b.value,
        a.size + b.size,
        a.roundings + b.roundings + 1,  # of one chain, in whatever order it is added up
        a.inherited + b.inherited,
        a.arithmetic,
    )


def _subtract(a: Bounded, b: Bounded) -> Bounded:
    return _add(a, b, sign=-1)


def _multiply(a: Bounded, b: Bounded, product: Callable = np.multiply, terms: int = 1) -> Bounded:
    power = a.arithmetic.power
    inherited = product(a.inherited, (np.abs(b.value) + b.error()) ** power)
    inherited = inherited + product((np.abs(a.value) * 1.0) ** power, b.inherited)
    size, value = product(a.size, b.size), product(a.value, b.value)
    return Bounded(value, size, a.roundings + b.roundings + terms, inherited, a.arithmetic)


def _matmul(a: Bounded, b: Bounded) -> Bounded:
    return _multiply(a, b, np.matmul, terms=a.shape[-1])


def _divide(a: Bounded, b: Bounded) -> Bounded:
    power, error, magnitude = a.arithmetic.power, b.error(), np.abs(b.value)
    quotient = a.value / b.value
    least = 0.0 if a.arithmetic.is_worst_case else magnitude / 2
    divisor = np.maximum(magnitude - error, least)
    with np.errstate(divide="ignore", invalid="ignore"):  # a divisor that may be 0: no bound
        inherited = (a.inherited + (np.abs(quotient) * error) ** power) / divisor**power
    return Bounded(quotient, a.size / magnitude, a.roundings + 1, inherited, a.arithmetic)


def _negative(a: Bounded) -> Bounded:
    return a._with(-a.value)


def _absolute(a: Bounded) -> Bounded:
    return a._with(np.abs(a.value))


def _square(a: Bounded) -> Bounded:
    error = a.error()
    return a._collapsed(np.square(a.value), (2 * np.abs(a.value) + error) * error)


def _sqrt(a: Bounded) -> Bounded:
    root = np.sqrt(a.value)
    return a._collapsed(root, a.error() / np.maximum(root, np.finfo(float).tiny))


def _exp(a: Bounded) -> Bounded:
    value = np.exp(a.value)
    return a._collapsed(value, value * np.expm1(a.error()), ELEMENTARY)


def _log(a: Bounded) -> Bounded:
    least = np.maximum(np.abs(a.value) - a.error(), np.finfo(float).tiny)
    return a._collapsed(np.log(a.value), a.error() / least, ELEMENTARY)


def _erf(a: Bounded) -> Bounded:
    from scipy.special import erf

    steepest = 2 / math.sqrt(math.pi)
    return a._collapsed(erf(a.value), steepest * a.error(), ELEMENTARY)


def _extremum(function: Callable) -> Callable[[Bounded, Bounded], Bounded]:
    def extremum(a: Bounded, b: Bounded) -> Bounded:
        return Bounded(
            function(a.value, b.value),
            np.maximum(a.size, b.size),
            max(a.roundings, b.roundings),
            np.maximum(a.inherited, b.inherited),
            a.arithmetic,
        )

    return extremum


def _comparison(function: Callable) -> Callable[[Bounded, Bounded], Bounded]:
    def comparison(a: Bounded, b: Bounded) -> Bounded:
        error = a.error() + b.error()
        # at an error of 0 nothing is open, not even at the threshold
        is_open = (np.abs(a.value - b.value) <= error) & (error > 0)
        return _mask(function(a.value, b.value), is_open, a.arithmetic)

    return comparison


def _mask(value: np.ndarray, is_open: np.ndarray, arithmetic: Arithmetic) -> Bounded:
    error = arithmetic.jump**arithmetic.power
    return Bounded(value, value.astype(float), 0, error * is_open, arithmetic)


def _and(a: Bounded, b: Bounded) -> Bounded:
    is_open = np.maximum(a.inherited, b.inherited) > 0
    return _mask(a.value & b.value, is_open, a.arithmetic)


def _invert(a: Bounded) -> Bounded:
    return _mask(~a.value, a.inherited > 0, a.arithmetic)


UFUNCS = {
    "add": _add,
    "subtract": _subtract,
    "multiply": _multiply,
    "matmul": _matmul,
    "divide": _divide,
    "negative": _negative,
    "absolute": _absolute,
    "square": _square,
    "sqrt": _sqrt,
    "exp": _exp,
    "log": _log,
    "erf": _erf,
    "maximum": _extremum(np.maximum),
    "minimum": _extremum(np.minimum),
    "greater": _comparison(np.greater),
    "greater_equal": _comparison(np.greater_equal),
    "less_equal": _comparison(np.less_equal),
    "bitwise_and": _and,
    "invert": _invert,
    "isfinite": lambda a: np.isfinite(a.value),
}


def _joined(function: Callable) -> Callable[..., Bounded]:
    """concatenate and stack."""

    def join(arithmetic: Arithmetic, arrays: Sequence, axis: int = 0) -> Bounded:
        parts = [arithmetic.operand(a) for a in arrays]
        value, size, inherited = (
            function([getattr(p, name) for p in parts], axis=axis)
            for name in ("value", "size", "inherited")
        )
        return Bounded(value, size, max(p.roundings for p in parts), inherited, arithmetic)

    return join


def _where(arithmetic: Arithmetic, condition: Any, yes: Any, no: Any) -> Bounded:
    condition, yes, no = map(arithmetic.operand, (condition, yes, no))
    parts = [np.where(condition.value, getattr(yes, n), getattr(no, n)) for n in ("value", "size")]
    inherited = np.where(condition.value, yes.inherited, no.inherited)
    step = np.abs(yes.value - no.value) ** arithmetic.power
    if arithmetic.is_worst_case:  # the other side is off as well
        step = step + np.where(condition.value, no.error(), yes.error())
    inherited = inherited + condition.inherited * step
    return Bounded(*parts, max(yes.roundings, no.roundings), inherited, arithmetic)


def _split(arithmetic: Arithmetic, x: Bounded, sections: int, axis: int) -> list[Bounded]:
    return [x._moved(lambda a, i=i: np.split(a, sections, axis)[i]) for i in range(sections)]


def _repeat(arithmetic: Arithmetic, x: Bounded, repeats: int, axis: int) -> Bounded:
    return x._moved(lambda a: np.repeat(a, repeats, axis))


def _pad(arithmetic: Arithmetic, x: Bounded, width: Sequence[tuple[int, int]]) -> Bounded:
    """With zeros, which are exact."""
    return x._moved(lambda a: np.pad(a, width))


FUNCTIONS = {
    "concatenate": _joined(np.concatenate),
    "stack": _joined(np.stack),
    "where": _where,
    "split": _split,
    "repeat": _repeat,
    "pad": _pad,
    "shape": lambda arithmetic, x: x.shape,
    "zeros_like": lambda arithmetic, x: np.zeros(x.shape, x.dtype),
}
