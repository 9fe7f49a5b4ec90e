"""What a network asks of each operation besides its arithmetic: shapes, and what backward reads.

Shapes are those of one image, with windows of all of its windows. `needs` says for the gradient of
each argument which inputs, by position, it is computed from; where it is the output, `of_output`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from refimpl import ops

Shape = tuple[int, ...]


class Operation(NamedTuple):
    """How an operation of `refimpl.ops` behaves in a list."""

    shape: Callable[..., Any]  # shapes of the arguments, attributes -> shape, several of several
    needs: Callable[[int], tuple[int, ...]] = lambda argument: (0,)
    cache: Callable[..., Any] | None = None  # arguments, attributes -> cache; None: by forward
    of_output: bool = False  # the cache holds the output alone
    order: tuple[int, ...] = ()  # in which gradients of arguments are shown, if not as usual
    late: bool = False  # gradients of parameters are shown behind those of what is combined
    macs: Callable[..., int] = lambda *shapes: 0  # of arguments and output


def _same(x: Shape, *others: Shape, **attributes: Any) -> Shape:
    return x


def _nothing(argument: int) -> tuple[int, ...]:
    return ()


def _rows(x: Shape, weight: Shape, *rest: Any, **attributes: Any) -> Shape:
    return (*x[:-1], weight[0])


def _cut(x: Shape, grid: Any, window: int, shift: int) -> Shape:
    return (x[0] * x[1] // window**2, window**2, x[2])


def _joined(x: Shape, grid: tuple[int, int], window: int, shift: int) -> Shape:
    return (1, math.prod(grid), x[2])


def _heads(x: Shape, heads: int, transposed: bool = False) -> Shape:
    batch, tokens, channels = x
    last = (channels // heads, tokens) if transposed else (tokens, channels // heads)
    return (batch, heads, *last)


def _resized(x: Shape, grid: tuple[int, int], new_grid: tuple[int, int]) -> Shape:
    tokens = math.prod(new_grid) - math.prod(grid)
    return (x[0] + tokens,) if len(x) == 1 else (1, x[1] + tokens, x[2])


def _of_weight(x: Shape, weight: Shape, *rest: Shape) -> int:
    """Every row of the output is a product with the whole weight."""
    return math.prod(rest[-1][:-1]) * math.prod(weight)


def _of_two(a: Shape, b: Shape, *rest: Shape) -> int:
    """An entry of the output is a sum along the last axis of both."""
    return math.prod(rest[-1]) * b[-1]


OPERATIONS: dict[str, Operation] = {
    "add": Operation(_same, _nothing),
    "band_sum": Operation(
        _same,
        lambda argument: (0, 1) if argument == 2 else (),
        lambda low, high, w, head_dim: ops.band_sum.Cache(low, high, w[:, :, None, None], head_dim),
        late=True,
    ),
    "bands": Operation(lambda x, **attributes: (x, x), _nothing),
    "batch_norm": Operation(_same),
    "binary_linear": Operation(
        _rows, lambda argument: (0,) if argument == 1 else (), macs=_of_weight
    ),
    "boolean_attention": Operation(
        lambda prob, value, alpha, **attributes: (*prob[:3], value[2]),
        lambda argument: (0, 1),
        order=(0, 1, 2),
        macs=_of_two,
    ),
    "box": Operation(_same, _nothing),
    "class_token": Operation(lambda x, token: (x[0], x[1] + 1, x[2]), _nothing),
    "convolution": Operation(_rows, cache=lambda x, w, b, grid: ops.convolution.Cache(x, w, grid),
                             macs=_of_weight),
    "differential": Operation(
        _same,
        lambda argument: {2: (0,), 3: (1,)}.get(argument, ()),
        ops.differential.Cache,
        order=(3, 2, 0, 1),
    ),
    "divide": Operation(_same, _nothing),
    "drop_class_token": Operation(lambda x: (x[0], x[1] - 1, x[2]), _nothing),
    "fit": Operation(lambda x, outputs: (*x[:-1], outputs), _nothing),
    "from_grid": Operation(lambda x: (x[0], x[2] * x[3], x[1]), _nothing),
    "gelu": Operation(_same),
    "identity": Operation(_same, _nothing),
    "interpolate": Operation(lambda x, size, mode: (*x[:-2], *size), _nothing),
    "join_windows": Operation(_joined, _nothing),
    "layer_norm": Operation(_same),
    "layer_scale": Operation(_same),
    "linear": Operation(
        _rows, cache=lambda x, w, b=None: ops.linear.Cache(x, w, b is not None), macs=_of_weight
    ),
    "matmul": Operation(
        lambda a, b: (*a[:-1], b[-2]),
        lambda argument: (1 - argument,),
        ops.matmul.Cache,
        macs=_of_two,
    ),
    "merge_heads": Operation(lambda x: (x[0], x[2], x[1] * x[3]), _nothing),
    "merge_patches": Operation(lambda x, grid: (x[0], x[1] // 4, 4 * x[2]), _nothing),
    "neighbours": Operation(_same, _nothing),
    "patch_embed": Operation(
        lambda x, w, b: (x[0], math.prod(x[2:]) // w[-1] ** 2, w[0]), macs=_of_weight
    ),
    "pool": Operation(lambda x, pool: (x[0], x[2]), _nothing),
    "position_bias": Operation(_same, _nothing, late=True),
    "position_embedding": Operation(_same, _nothing),
    "rescale": Operation(_same, _nothing),
    "resize_tokens": Operation(_resized, _nothing),
    "rprelu": Operation(_same),
    "shift": Operation(_same, _nothing),
    "sign": Operation(_same, cache=lambda z, ste: ops.sign.Cache(z, ste)),
    "softmax": Operation(_same, cache=ops.softmax.Cache, of_output=True),
    "split": Operation(lambda x, parts: ((*x[:-1], x[-1] // parts),) * parts, _nothing),
    "split_heads": Operation(_heads, _nothing),
    "stop_gradient": Operation(_same, _nothing),
    "to_grid": Operation(lambda x, grid: (x[0], x[2], *grid), _nothing),
    "weight_binarizer": Operation(_same),
    "window_softmax": Operation(_same, cache=ops.softmax.Cache, of_output=True),
    "windows": Operation(_cut, _nothing),
}


def forward(node: Any, args: list[Any]) -> Any:
    """Run a node's operation of `refimpl.ops` on its arguments, without its cache."""
    return getattr(ops, node.op).forward(*args, **node.attributes)[0]


def cache_of(node: Any, args: list[Any], output: Any) -> Any:
    """Make the cache of a node's operation for its backward of what `needs` or `of_output` say."""
    operation = OPERATIONS[node.op]
    if operation.of_output:
        return operation.cache(output)
    if operation.cache is not None:
        return operation.cache(*args, **node.attributes)
    return getattr(ops, node.op).forward(*args, **node.attributes)[1]
