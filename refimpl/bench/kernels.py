"""`refimpl bench kernels`: products of signs, beside float32 products of the same shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from refimpl.bench import host, measure, ours, peers
from refimpl.bench.measure import Row
from refimpl.bench.peers import Peer, numpy_blas, openvino_cpu, torch_eager
from refimpl.bench.work import Product, product

PEERS = (
    Peer("refimpl", (), ours.products),
    Peer("NumPy", (), numpy_blas.products),
    Peer("torch", torch_eager.REQUIRES, torch_eager.products),
    Peer("OpenVINO", openvino_cpu.REQUIRES, openvino_cpu.products),
)

# tokens, inputs, outputs: the layers of `tiny`, one of `small`, and one of `base` with 8 images
SHAPES = (
    (197, 192, 192),
    (197, 192, 768),
    (197, 768, 192),
    (197, 384, 1536),
    (1576, 768, 768),
)
# heads, tokens, channels of a head: `tiny`, and `base`
HEADS = ((3, 197, 64), (12, 197, 64))


def run(
    shapes: Sequence[tuple[int, int, int]] = SHAPES,
    heads: Sequence[tuple[int, int, int]] = HEADS,
    *,
    threads: int = 1,
    rounds: int = 10,
    turn: float = measure.TURN,
    progress: Callable[[], object] = lambda: None,
) -> list[Row]:
    """Rows for each (tokens, inputs, outputs), and both products of attention for each of `heads`.

    `progress` is called after each round of each work.
    """
    rows = []
    with host.pinned(threads):
        for work in works(shapes, heads):
            entries = [(work.name, c) for c in peers.build(PEERS, work, threads)]
            rows += measure.compare(entries, rounds, turn, progress)
    return rows


def works(
    shapes: Sequence[tuple[int, int, int]], heads: Sequence[tuple[int, int, int]]
) -> list[Product]:
    """The products in the order of their rows."""
    found = [product(f"{m}x{k}x{n}", (m, k), (n, k)) for m, k, n in shapes]
    for h, n, d in heads:
        found.append(product(f"scores {h}x{n}x{d}x{n}", (h, n, d), (h, n, d)))
        found.append(product(f"context {h}x{n}x{n}x{d}", (h, n, n), (h, d, n), boolean=True))
    return found
