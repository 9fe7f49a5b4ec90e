"""How kernels are compiled: once a machine, kept on disk, and said aloud while it happens.

Numba's own cache looks at the file of a function and at the kind of CPU, not at what the function
calls, and trusts whatever lies on the disk. `cache` says where and how machine code is kept
instead. Where nothing can be written kernels are compiled anew in every process.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import pickle
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numba
from numba import types
from numba.core import caching, cgutils, compiler, config, event, serialize
from numba.core.registry import cpu_target
from numba.core.typing.templates import AttributeTemplate, infer_getattr
from numba.extending import (
    intrinsic,
    lower_builtin,
    lower_getattr_generic,
    models,
    register_jitable,
    register_model,
    type_callable,
)

from refimpl.kernels import cache

# no fast-math; a division by zero is NumPy's infinity or NaN: a check would keep loops from vectors
OPTIONS = {"nogil": True, "error_model": "numpy"}


class _Announcement(event.Listener):
    """One line on stderr when the first kernel is compiled, since that takes a while."""

    def __init__(self) -> None:
        self.said = False

    def on_start(self, event: event.Event) -> None:
        module = event.data["dispatcher"].py_func.__module__
        if self.said or not module.startswith("refimpl."):
            return
        self.said = True
        how_often = "once; `refimpl compile` does so beforehand"
        if _unkept() is not None:
            how_often = f"in every process, since none can be kept: {_unkept()}"
        _say(f"compiling the kernels for this CPU, {how_often}")

    def on_end(self, event: event.Event) -> None:
        pass


def _say(text: str) -> None:
    if sys.stderr is not None:  # without one print would take stdout
        with contextlib.suppress(OSError):
            print(f"refimpl: {text}", file=sys.stderr)


ANNOUNCEMENT = _Announcement()
event.register("numba:compile", ANNOUNCEMENT)


@functools.cache
def _unkept() -> str | None:
    """Why no machine code can be kept; None where it can."""
    try:
        cache.require_writable()
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    cache.remove_unused()
    return None


@functools.cache
def _use_cache() -> None:
    """At the first look into the cache, once."""
    cache.mark_used()


class _Kept(caching._Cache):
    """The machine code of a function on disk, a file for each signature.

    What is called in it belongs to the folder (see `cache`), its own code to the name of the file:
    the function of a benchmark lies elsewhere.
    """

    def __init__(self, name: str, function: Callable):
        self._name = name
        code = function.__code__
        numbers = [value for value in code.co_consts if isinstance(value, (int, float))]
        self._code = (code.co_code, code.co_names, numbers)

    @property
    def cache_path(self) -> str:
        return str(cache.folder())

    def load_overload(self, sig: Any, target_context: Any) -> compiler.CompileResult | None:
        _use_cache()
        target_context.refresh()
        data = cache.read(self._file(sig, target_context.codegen()))
        if data is None:
            return None
        return compiler.CompileResult._rebuild(target_context, *pickle.loads(data))

    def save_overload(self, sig: Any, data: compiler.CompileResult) -> None:
        if _unkept() is not None:  # that was said
            return
        try:
            cache.write(self._file(sig, data.codegen), serialize.dumps(data._reduce()))
        except OSError as error:  # the disk is full
            why = f"{error.filename}: {error.strerror}"
            _say(f"warning: a kernel cannot be kept: {why}")

    def _file(self, sig: Any, codegen: Any) -> str:
        parts = (sig, codegen.magic_tuple(), self._code)
        key = hashlib.sha256(repr(parts).encode()).hexdigest()
        return f"{self._name}{key[:16]}"

    def enable(self) -> None:
        """Nothing is ever switched off."""

    disable = flush = enable


def entry(function: Callable, name: str, written: Callable | None = None) -> Callable:
    """A compiled function that only Python calls; what is kept of it has a name that begins so.

    written: the function whose code tells it from others; without it, this one.
    """
    if config.DISABLE_JIT:
        return function
    compiled = numba.njit(**OPTIONS)(function)
    compiled._cache = _Kept(name, written or function)
    return compiled


def bound(compiled: Callable, arguments: tuple) -> Callable:
    """What an `entry` runs for arguments of these types, as a function of any such arguments.

    A call of an entry looks at the type of each array and number of every NamedTuple: for plan and
    work that takes as long as a kernel.
    """
    if config.DISABLE_JIT:
        return compiled
    return compiled.compile(tuple(map(compiled.typeof_pyval, arguments)))


class _Kernel:
    """A compiled function, for Python, and within others that are compiled."""

    def __init__(self, function: Callable):
        functools.update_wrapper(self, function)
        register_jitable(**OPTIONS)(function)
        lending = _lending(function)
        self._compiled = entry(lending, f"{function.__module__}.{function.__qualname__}-", function)

    @property
    def _numba_type_(self) -> types.Type:
        """What Numba asks a global for: there a kernel is the plain function."""
        return cpu_target.typing_context.resolve_value_type(self.__wrapped__)

    def __call__(self, *arguments: Any) -> Any:
        return self._compiled(*arguments)


def _lent(typing: Any, value: types.Type) -> Any:
    def lent(context, builder, kind, value):
        if isinstance(kind, types.Array):
            array = context.make_array(kind)(context, builder, value)
            array.meminfo = array.meminfo.type(None)
            return array._getvalue()
        if isinstance(kind, types.UniTuple):
            each = cgutils.unpack_tuple(builder, value)
            made = [lent(context, builder, kind.dtype, one) for one in each]
            return context.make_tuple(builder, kind, made)
        return value

    def generate(context, builder, signature, values):
        return lent(context, builder, signature.args[0], values[0])

    return value(value), generate


def _lending(function: Callable) -> Callable:
    """The function for Python, which keeps the arrays for it: no counts of references of them.

    A count is changed atomically, wherever a kernel hands an array to another or takes a part of
    it; in a loop over rows that takes longer than the work. So a kernel that Python calls must not
    return an array, and room for its inner loops is better handed to it than made by it.
    """
    names = ", ".join(inspect.signature(function).parameters)
    lent = ", ".join(f"lent({name})" for name in inspect.signature(function).parameters)
    namespace = {"inner": function, "lent": intrinsic(_lent)}
    exec(f"def lending({names}):\n    return inner({lent})", namespace)
    return functools.update_wrapper(namespace["lending"], function)


def jit(function: Callable) -> Callable:
    """Compile on first use: no fast-math, the GIL released, the machine code kept on disk.

    Within another kernel it becomes a part of that, whatever of its arguments are constants, and
    without the code by which Python would call it.
    """
    return function if config.DISABLE_JIT else _Kernel(function)


def is_kernel(value: object) -> bool:
    """Whether it is what `jit` gave."""
    return isinstance(value, _Kernel)


def inlined(function: Callable) -> Callable:
    """Pasted into the kernels that call it: for what is shorter than a call."""
    return numba.njit(inline="always")(function)


class Borrowed(types.Type):
    """The Numba type of a NamedTuple of arrays and numbers that lies in its caller's memory."""

    def __init__(self, held: types.NamedTuple):
        self.held = held
        digest = hashlib.sha256(held.name.encode()).hexdigest()
        super().__init__(name=f"{held.instance_class.__name__}_{digest[:8]}")

    def place(self, field: str) -> int | None:
        """Which of the fields has this name."""
        fields = self.held.fields
        return fields.index(field) if field in fields else None


@register_model(Borrowed)
class _BorrowedModel(models.PrimitiveModel):
    def __init__(self, manager, frontend):
        super().__init__(manager, frontend, manager[frontend.held].get_value_type().as_pointer())


@infer_getattr
class _BorrowedFields(AttributeTemplate):
    key = Borrowed

    def generic_resolve(self, borrowed, name):
        place = borrowed.place(name)
        return None if place is None else borrowed.held[place]


@lower_getattr_generic(Borrowed)
def _field(context, builder, borrowed, pointer, name):
    place = borrowed.place(name)
    kind = borrowed.held[place]
    value = builder.load(cgutils.gep_inbounds(builder, pointer, 0, place))
    if isinstance(kind, types.Array):
        array = context.make_array(kind)(context, builder, value)
        array.meminfo = array.meminfo.type(None)
        value = array._getvalue()
    return value


def borrow(held: NamedTuple) -> NamedTuple:
    """The same arrays and numbers, handed on as one address and without counts of references.

    Plan and work are some 270 numbers: to hand them on takes as long as a kernel, and to compile a
    call that does so longer than one. A count is changed atomically, by every kernel that gets an
    array; whoever calls keeps the arrays for us.
    """
    return held


@type_callable(borrow)
def _borrow_type(context):
    return lambda held: Borrowed(held)


@lower_builtin(borrow, types.BaseNamedTuple)
def _borrow(context, builder, signature, values):
    return cgutils.alloca_once_value(builder, values[0])
