"""Sixteen lanes at once: the small vector type in which the kernels are written.

A kernel is ordinary Python: `load` sixteen neighbours of an array, `+ - * /`, compare, `select`,
`store`. Compiled, a vector is one LLVM register (`<16 x float>`, `<16 x i32>`): one register of
AVX-512, two of AVX2, four of NEON. The values are the same on all of them, since every lane is on
its own and nothing is contracted or reordered; `fma` is fused because a kernel says so. Without
compilation (NUMBA_DISABLE_JIT=1) the same kernels run on NumPy arrays of sixteen.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable

import numpy as np
from llvmlite import binding, ir
from numba import config, types
from numba.core.cgutils import get_or_insert_function
from numba.core.codegen import get_host_cpu_features
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

LANES = 16

X86 = binding.get_process_triple().startswith(("x86", "i386", "i686"))
# Whether this CPU multiplies and adds with one rounding: all but x86 before 2013.
FUSED = not X86 or bool(binding.get_host_cpu_features().get("fma"))
# Of x86, each with all before it: without one, machine code has none behind it either.
_ONE_IN_ANOTHER = ("avx", "avx2", "avx512f", "avx512bw")


def able(feature: str) -> bool:
    """Whether machine code is made for a CPU that has a feature, by LLVM's name for it.

    That is this CPU, without what NUMBA_ENABLE_AVX and NUMBA_CPU_FEATURES take away, or the one
    that NUMBA_CPU_NAME and NUMBA_CPU_FEATURES tell. An instruction that it has not ends the process
    as soon as LLVM meets it.
    """
    given = get_host_cpu_features() if config.CPU_FEATURES is None else config.CPU_FEATURES
    given = [part.strip() for part in given.split(",")]
    inner = _ONE_IN_ANOTHER[: _ONE_IN_ANOTHER.index(feature)] if feature in _ONE_IN_ANOTHER else ()
    if any(f"-{name}" in given for name in (*inner, feature)):
        return False
    own = config.CPU_NAME is None and bool(binding.get_host_cpu_features().get(feature))
    return own or f"+{feature}" in given


WIDE = able("avx512f")  # whether there are 32 registers of sixteen lanes

_INT, _BIT = ir.IntType(32), ir.IntType(1)
_ELEMENTS = {"float32": ir.FloatType(), "int32": _INT, "bool": _BIT}


class Vector(types.Type):
    """The Numba type of sixteen lanes of float32, int32 or bool."""

    def __init__(self, element: str):
        self.element = element
        super().__init__(name=f"vector_{element}_{LANES}")


FLOATS, INTS, MASK = Vector("float32"), Vector("int32"), Vector("bool")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, frontend):
        super().__init__(manager, frontend, ir.VectorType(_ELEMENTS[frontend.element], LANES))


def compiled_as(generate: Callable) -> Callable:
    """Decorate a definition in NumPy with the LLVM code that takes its place when compiled."""
    return lambda definition: definition if config.DISABLE_JIT else intrinsic(generate)


# --- memory ---------------------------------------------------------------------------------------


def pointer(context, builder, kind: types.Array, array, index):
    """LLVM's pointer to an element of an array, by its flat index."""
    return builder.gep(context.make_array(kind)(context, builder, array).data, [index])


def _of_array(array: types.Type) -> Vector | None:
    """The vector of an array's neighbours; None makes Numba refuse another array."""
    vectors = {types.float32: FLOATS, types.int32: INTS, types.uint32: INTS}
    # of a strided array Numba cannot see that a row's values are neighbours: the caller must
    adjacent = isinstance(array, types.Array) and (array.layout == "C" or array.ndim == 1)
    return vectors.get(array.dtype) if adjacent else None


def _lanes_at(context, builder, kinds, values, vector: Vector):
    element = pointer(context, builder, kinds[0], *values[:2])
    return builder.bitcast(element, context.get_value_type(vector).as_pointer())


def _load(typing, array, index):
    vector = _of_array(array)

    def generate(context, builder, signature, values):
        return builder.load(_lanes_at(context, builder, signature.args, values, vector), align=4)

    return vector and (vector(array, types.intp), generate)


def _store(typing, array, index, lanes):
    vector = _of_array(array)

    def generate(context, builder, signature, values):
        pointer = _lanes_at(context, builder, signature.args, values, vector)
        builder.store(values[2], pointer, align=4)
        return context.get_dummy_value()

    return vector and (types.none(array, types.intp, vector), generate)


@compiled_as(_load)
def load(array: np.ndarray, index: int) -> np.ndarray:
    """Sixteen neighbours in a float32, int32 or uint32 array, from a flat index on.

    The array is C-contiguous, or one row of values that lie side by side.
    """
    lanes = array.reshape(-1)[index : index + LANES].copy()
    return lanes.view(np.int32) if lanes.dtype == np.uint32 else lanes


@compiled_as(_store)
def store(array: np.ndarray, index: int, lanes: np.ndarray) -> None:
    """Write sixteen neighbours where `load` would read them."""
    array.reshape(-1)[index : index + LANES] = lanes.view(array.dtype)


def _load_as_floats(typing, array, index):
    vector = _of_array(array)

    def generate(context, builder, signature, values):
        lanes = builder.load(_lanes_at(context, builder, signature.args, values, vector), align=4)
        if vector == FLOATS:
            return lanes
        return builder.sitofp(lanes, context.get_value_type(FLOATS))

    return vector and (FLOATS(array, types.intp), generate)


@compiled_as(_load_as_floats)
def load_as_floats(array: np.ndarray, index: int) -> np.ndarray:
    """`load` of a float32 or an int32 array, as float32."""
    return load(array, index).astype(np.float32)


def _gather(typing, array, indices):
    vector = _of_array(array)

    def generate(context, builder, signature, values):
        floats, pointers = (ir.VectorType(kind, LANES) for kind in (ir.FloatType(), ir.IntType(64)))
        array, indices = values
        base = builder.ptrtoint(
            pointer(context, builder, signature.args[0], array, ir.Constant(ir.IntType(64), 0)),
            pointers.element,
        )
        places = builder.shl(builder.sext(indices, pointers), ir.Constant(pointers, [2] * LANES))
        places = builder.add(places, spread(builder, base))
        places = builder.inttoptr(places, ir.VectorType(ir.FloatType().as_pointer(), LANES))
        mask = ir.Constant(ir.VectorType(_BIT, LANES), [1] * LANES)
        kinds = [places.type, _INT, mask.type, floats]
        function = get_or_insert_function(
            builder.module, ir.FunctionType(floats, kinds), "llvm.masked.gather.v16f32.v16p0"
        )
        none = ir.Constant(floats, ir.Undefined)
        return builder.call(function, [places, ir.Constant(_INT, 4), mask, none])

    return (FLOATS(array, INTS), generate) if (vector, indices) == (FLOATS, INTS) else None


@compiled_as(_gather)
def gather(array: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Sixteen values of a flat float32 array, from a flat index each, none of them negative."""
    return array.reshape(-1)[indices]


def _sum_of(neighbours: int):
    """The generator of sums of so many neighbours, a power of two."""

    def typed(typing, array, index):
        def generate(context, builder, signature, values):
            start = _lanes_at(context, builder, signature.args, values, FLOATS)
            places = [builder.gep(start, [ir.Constant(_INT, k)]) for k in range(neighbours)]
            terms = [[builder.load(place, align=4) for place in places]]
            while len(terms[0]) > 1:  # every second value: of 0, 1, 2, 3 first 0, 2 and 1, 3
                terms = [_halved(builder, some, odd) for odd in (0, 1) for some in terms]
            total = terms[0][0]
            for (term,) in terms[1:]:
                total = builder.fadd(total, term)
            return total

        return (FLOATS(array, types.intp), generate) if _of_array(array) == FLOATS else None

    return typed


def _halved(builder, vectors, odd: int):
    """Every second value of vectors that lie side by side, from the first or the second on."""
    chosen = [ir.Constant(_INT, lane) for lane in range(odd, 2 * LANES, 2)]
    chosen = ir.Constant(ir.VectorType(_INT, LANES), chosen)
    pairs = zip(vectors[::2], vectors[1::2], strict=True)
    return [builder.shuffle_vector(a, b, chosen) for a, b in pairs]


def _store_repeated(times: int):
    """The generator that writes each lane so many times in a row."""

    def typed(typing, array, index, lanes):
        def generate(context, builder, signature, values):
            start = _lanes_at(context, builder, signature.args, values, FLOATS)
            for k in range(times):
                chosen = [(k * LANES + lane) // times for lane in range(LANES)]
                chosen = ir.Constant(ir.VectorType(_INT, LANES), chosen)
                repeated = builder.shuffle_vector(values[2], values[2], chosen)
                builder.store(repeated, builder.gep(start, [ir.Constant(_INT, k)]), align=4)
            return context.get_dummy_value()

        known = (_of_array(array), lanes) == (FLOATS, FLOATS)
        return (types.none(array, types.intp, lanes), generate) if known else None

    return typed


def _summing(neighbours: int) -> Callable:
    """sixteen sums of so many neighbours each, added from left to right."""

    @compiled_as(_sum_of(neighbours))
    def sums(array: np.ndarray, index: int) -> np.ndarray:
        terms = array.reshape(-1)[index : index + neighbours * LANES].reshape(LANES, neighbours)
        return functools.reduce(np.add, terms.T)

    return sums


def _repeating(times: int) -> Callable:
    """Write each lane so many times in a row."""

    @compiled_as(_store_repeated(times))
    def write(array: np.ndarray, index: int, lanes: np.ndarray) -> None:
        array.reshape(-1)[index : index + times * LANES] = lanes.repeat(times)

    return write


sums_of_2, sums_of_4 = _summing(2), _summing(4)
store_2_times, store_4_times = _repeating(2), _repeating(4)


# --- lanes ----------------------------------------------------------------------------------------


def constant(value: int) -> ir.Constant:
    """LLVM's vector with one int32 in all lanes."""
    return ir.Constant(ir.VectorType(_INT, LANES), [value] * LANES)


def spread(builder, value):
    """LLVM's vector with one value in all lanes."""
    undefined = ir.Constant(ir.VectorType(value.type, LANES), ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(_INT, 0))
    return builder.shuffle_vector(first, undefined, constant(0))


def call(builder, name: str, *vectors):
    """Call an LLVM intrinsic whose arguments and result are vectors of one type."""
    kind = vectors[0].type
    full_name = f"{name}.v{kind.count}{kind.element.intrinsic_name}"
    function = ir.FunctionType(kind, [kind] * len(vectors))
    return builder.call(get_or_insert_function(builder.module, function, full_name), vectors)


def fused(builder, a, b, c):
    """LLVM's a * b + c: one rounding, but on a CPU that has no such instruction two."""
    if FUSED:
        return call(builder, "llvm.fma", a, b, c)
    return builder.fadd(builder.fmul(a, b), c)


def _splat(typing, value):
    vector = {types.float32: FLOATS, types.int32: INTS, types.uint32: INTS}.get(value)

    def generate(context, builder, signature, values):
        return spread(builder, values[0])

    return vector and (vector(value), generate)


def _broadcast(typing, array, index):
    vector = _of_array(array)

    def generate(context, builder, signature, values):
        element = pointer(context, builder, signature.args[0], *values)
        return spread(builder, builder.load(element))

    return vector and (vector(array, types.intp), generate)


def _select(typing, mask, a, b):
    def generate(context, builder, signature, values):
        return builder.select(*values)

    return (a(mask, a, b), generate) if mask == MASK and a == b else None


def _fma(typing, a, b, c):
    def generate(context, builder, signature, values):
        return fused(builder, *values)

    return (a(a, b, c), generate) if (a, b, c) == (FLOATS,) * 3 else None


def _shift_in_sign(typing, word, x):
    def generate(context, builder, signature, values):
        word, x = values
        return call(builder, "llvm.fshl", word, builder.bitcast(x, word.type), constant(1))

    return (word(word, x), generate) if (word, x) == (INTS, FLOATS) else None


def _ones_of(typing, mask):
    def generate(context, builder, signature, values):
        return builder.zext(builder.bitcast(values[0], ir.IntType(LANES)), _INT)

    return (types.uint32(mask), generate) if mask == MASK else None


def _any_of(typing, mask):
    def generate(context, builder, signature, values):
        bits = builder.bitcast(values[0], ir.IntType(LANES))
        return builder.icmp_unsigned("!=", bits, ir.Constant(bits.type, 0))

    return (types.boolean(mask), generate) if mask == MASK else None


def _unary(kind: Vector, result: Vector, name: str, make: Callable) -> Callable:
    """The generator of a function of one vector."""

    def typed(typing, x):
        def generate(context, builder, signature, values):
            return make(builder, values[0], context.get_value_type(result))

        return (result(x), generate) if x == kind else None

    typed.__name__ = name
    return typed


@compiled_as(_splat)
def splat(value: np.generic) -> np.ndarray:
    """A float32, int32 or uint32 in all lanes."""
    lanes = np.full(LANES, value)
    return lanes.view(np.int32) if lanes.dtype == np.uint32 else lanes


@compiled_as(_broadcast)
def broadcast(array: np.ndarray, index: int) -> np.ndarray:
    """One value of a flat array in all lanes: `splat(array[index])` without a look at its sign."""
    return splat(array.reshape(-1)[index])


@compiled_as(_select)
def select(mask: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a where the mask is true, else b."""
    return np.where(mask, a, b)


@compiled_as(_fma)
def fma(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a * b + c with one rounding, wherever the CPU can; float32."""
    if not FUSED:
        return a * b + c
    product, c = a.astype(np.float64) * b, c.astype(np.float64)  # exact: 48 bits
    total = product + c
    # what total lost; an odd last bit keeps the second rounding from a tie that is none
    part = total - product
    lost = (product - (total - part)) + (c - part)
    even = total.view(np.int64) & 1 == 0
    moved = np.isfinite(total) & (lost != 0) & even
    odd = np.where(moved, np.nextafter(total, np.copysign(np.inf, lost)), total)
    return odd.astype(np.float32)


@compiled_as(_shift_in_sign)
def shift_in_sign(word: np.ndarray, x: np.ndarray) -> np.ndarray:
    """word * 2 + the sign bit of x, which is 1 for -0.0 too."""
    return (word << 1) | (x.view(np.int32) < 0)


@compiled_as(_ones_of)
def ones_of(mask: np.ndarray) -> np.uint32:
    """Bit l is lane l of the mask."""
    return np.packbits(mask, bitorder="little").view("<u2")[0].astype(np.uint32)


@compiled_as(_any_of)
def any_of(mask: np.ndarray) -> bool:
    """Whether a lane of the mask is true."""
    return bool(mask.any())


@compiled_as(_unary(INTS, FLOATS, "to_floats", lambda b, x, vector: b.sitofp(x, vector)))
def to_floats(x: np.ndarray) -> np.ndarray:
    """int32 lanes as float32."""
    return x.astype(np.float32)


@compiled_as(_unary(FLOATS, INTS, "bits_of", lambda b, x, vector: b.bitcast(x, vector)))
def bits_of(x: np.ndarray) -> np.ndarray:
    """The 32 bits of each float32 as an int32."""
    return x.view(np.int32)


@compiled_as(_unary(INTS, FLOATS, "of_bits", lambda b, x, vector: b.bitcast(x, vector)))
def of_bits(x: np.ndarray) -> np.ndarray:
    """The float32 of each 32 bits, the inverse of `bits_of`."""
    return x.view(np.float32)


@compiled_as(_unary(FLOATS, FLOATS, "square_root", lambda b, x, vector: call(b, "llvm.sqrt", x)))
def square_root(x: np.ndarray) -> np.ndarray:
    """Correctly rounded."""
    return np.sqrt(x)


@compiled_as(_unary(INTS, INTS, "popcount", lambda b, x, vector: call(b, "llvm.ctpop", x)))
def popcount(x: np.ndarray) -> np.ndarray:
    """The number of ones in each lane."""
    bits = np.unpackbits(x.view(np.uint8).reshape(LANES, 4), axis=1)
    return bits.sum(axis=1, dtype=np.int32)


def _of_lanes(combine: Callable) -> Callable:
    """The generator of one number of all lanes: of halves, and of their halves."""

    def typed(typing, x):
        def generate(context, builder, signature, values):
            total = values[0]
            while total.type.count > 1:
                half = total.type.count // 2
                none = ir.Constant(total.type, ir.Undefined)
                low, high = (
                    ir.Constant(ir.VectorType(_INT, half), list(range(begin, begin + half)))
                    for begin in (0, half)
                )
                low, high = (builder.shuffle_vector(total, none, part) for part in (low, high))
                total = combine(builder, low, high)
            return builder.extract_element(total, ir.Constant(_INT, 0))

        return (types.float32(x), generate) if x == FLOATS else None

    return typed


@compiled_as(_of_lanes(lambda b, x, y: b.select(b.fcmp_ordered(">", x, y), x, y)))
def max_of_lanes(x: np.ndarray) -> np.float32:
    """The largest lane of x."""
    return x.max()


@compiled_as(_of_lanes(lambda b, x, y: b.fadd(x, y)))
def sum_of_lanes(x: np.ndarray) -> np.float32:
    """The lanes of x added up: halves first, the same order on every CPU."""
    while len(x) > 1:
        x = x[: len(x) // 2] + x[len(x) // 2 :]
    return x[0]


def _quotient(typing, x, y, inverse):
    def generate(context, builder, signature, values):
        x, y, inverse = values
        if not FUSED:
            return builder.fdiv(x, y)
        minus = builder.fsub(ir.Constant(y.type, [0.0] * LANES), y)
        first = q = builder.fmul(x, inverse)
        for _ in range(2):
            q = fused(builder, fused(builder, minus, q, x), inverse, q)
        # infinity times 0 on the way: there the first is right
        return builder.select(builder.fcmp_ordered("ord", q, q), q, first)

    return (x(x, y, inverse), generate) if (x, y, inverse) == (FLOATS,) * 3 else None


@compiled_as(_quotient)
def quotient(x: np.ndarray, y: np.ndarray, inverse: np.ndarray) -> np.ndarray:
    """x / y, correctly rounded, where many are divided by the same: inverse is 1 / y.

    A division takes as long as ten multiplications. By Markstein's theorem a quotient that is next
    to the right one becomes it by one step more; it may differ where x is below 2^-100.
    """
    return x / y


def _register_operator(function: Callable, kind: Vector, make: Callable, result: Vector) -> None:
    @infer_global(function)
    class Template(AbstractTemplate):
        def generic(self, args, kws):
            return signature(result, kind, kind) if args == (kind, kind) else None

    @lower_builtin(function, kind, kind)
    def generate(context, builder, signature, values):
        return make(builder, *values)


for _function, _name in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _register_operator(
        _function, FLOATS, lambda b, x, y, name=_name: getattr(b, name)(x, y), FLOATS
    )
for _function, _name in (
    (operator.add, "add"),
    (operator.sub, "sub"),
    (operator.mul, "mul"),
    (operator.and_, "and_"),
    (operator.or_, "or_"),
    (operator.xor, "xor"),
    (operator.lshift, "shl"),
    (operator.rshift, "ashr"),
):
    _register_operator(_function, INTS, lambda b, x, y, name=_name: getattr(b, name)(x, y), INTS)
for _function, _name in ((operator.gt, ">"), (operator.ge, ">="), (operator.lt, "<")):
    _register_operator(
        _function, FLOATS, lambda b, x, y, name=_name: b.fcmp_ordered(name, x, y), MASK
    )
    _register_operator(_function, INTS, lambda b, x, y, name=_name: b.icmp_signed(name, x, y), MASK)
_register_operator(operator.or_, MASK, lambda b, x, y: b.or_(x, y), MASK)
_register_operator(operator.and_, MASK, lambda b, x, y: b.and_(x, y), MASK)
