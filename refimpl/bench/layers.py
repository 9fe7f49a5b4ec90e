"""`refimpl bench layers`: where the time of an image goes in the engine, by kind of work.

The engine is compiled once more with a clock that is read between its kernels, so times are those
of kernels in their place, with whatever is in the caches then. Beside them stands what no program
for this processor could do better with the same instructions: how many a vector of sixteen values
takes, counted on paper in `count`, at the rate of the popcount roofline.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from refimpl import engine
from refimpl.bench.measure import timed
from refimpl.bench.models import BINARY
from refimpl.bench.ours import ROOFLINE_WORDS
from refimpl.bench.work import network
from refimpl.conventions import require_choice
from refimpl.engine.clock import KINDS
from refimpl.kernels import popcount
from refimpl.kernels.popcount import WORD
from refimpl.kernels.vector import LANES
from refimpl.models.config import Config
from refimpl.models.stage import Stage

ROUNDS = 20
VECTOR = 4 * LANES  # bytes


class Row(NamedTuple):
    """One kind of work; the fields are those of its JSON object."""

    kind: str
    milliseconds: float  # of an image, the smallest of the rounds
    share: float  # of all kinds
    vectors: int  # of sixteen values, that it makes
    nanoseconds: float  # a vector
    instructions: float  # a vector, of vectors
    bytes: float  # a vector, read and written
    limit: float  # nanoseconds a vector, if nothing but its instructions took time


class Counted(NamedTuple):
    """On paper: so many vectors of a kind, and of each its instructions and bytes."""

    kind: str
    vectors: int
    instructions: float
    bytes: float


def run(
    name: str = "didb_tiny",
    *,
    rounds: int = ROUNDS,
    progress: Callable[[], object] = lambda: None,
) -> list[Row]:
    """A row for each kind of work of one image, on one thread, with random parameters.

    `progress` is called after each round. ConfigError for a name that is not in BINARY.
    """
    require_choice("bench", "model", name, BINARY)
    work = network(name, 1)
    compiled = engine.compile(work.model, work.params)
    compiled.laps(work.images[0])  # may compile
    found = []
    for _ in range(rounds):
        found.append(list(compiled.laps(work.images[0]).values()))
        progress()
    seconds = dict(zip(KINDS, np.min(found, axis=0), strict=True))
    return rows(work.config, seconds, _instructions_a_second())


def rows(config: Config, seconds: dict[str, float], rate: float) -> list[Row]:
    """Measured seconds of each kind beside what is counted; rate: instructions a second."""
    total, found = sum(seconds.values()), []
    for kind in KINDS:
        counted = [c for c in count(config) if c.kind == kind]
        vectors = sum(c.vectors for c in counted)
        if vectors == 0:  # no work of this kind in this network
            continue
        instructions = sum(c.vectors * c.instructions for c in counted) / vectors
        found.append(
            Row(
                kind=kind,
                milliseconds=1e3 * seconds[kind],
                share=seconds[kind] / total,
                vectors=vectors,
                nanoseconds=1e9 * seconds[kind] / vectors,
                instructions=instructions,
                bytes=sum(c.vectors * c.bytes for c in counted) / vectors,
                limit=1e9 * instructions / rate,
            )
        )
    return found


def count(config: Config) -> Iterator[Counted]:
    """What the kernels do for one image, stage by stage."""
    stages = list(config.stages)
    first, last = stages[0], stages[-1]
    pixels = config.channels * config.patch_size**2
    yield Counted("embedding", _tiles(first) * first.dim, pixels + 3, 4 * pixels + 4 * VECTOR)
    for s, (stage, depth) in enumerate(zip(stages, config.depths, strict=True)):
        if s > 0:
            yield from _merge(stage)
        for block in range(depth):
            alone = config.pool == "cls" and config.decoder == "none"
            behind = s == len(config.depths) - 1 and block == depth - 1
            yield from _block(config, stage, 1 if alone and behind else _tiles(stage))
    classes = -(-config.num_classes // LANES)
    yield Counted("head", classes, last.dim, last.dim * VECTOR)


def _block(config: Config, stage: Stage, read: int) -> Iterator[Counted]:
    """A block of which so many tiles are read afterwards."""
    C, tiles, bands = stage.dim, _tiles(stage), len(config.bands)
    hidden, heads, slots = C * config.mlp_ratio, stage.heads, -(-stage.num_keys // LANES)
    queries = stage.num_windows * min(slots, read) * heads
    keys_and_values = tiles * (bands + 1)
    yield Counted("layer norm", (tiles + 2 * read) * C, 6, 4 * VECTOR)
    if config.similarity == "haar":
        yield Counted("bands", tiles * C, 17, 6 * VECTOR)
    yield Counted("pack", (keys_and_values + read * (bands + 2)) * C, 2, VECTOR)
    yield _product((keys_and_values + read * (bands + 1)) * C, C)
    yield _product(read * hidden, C)
    yield _product(read * C, hidden)
    yield Counted("norm and RPReLU", (tiles + read) * bands * C, 11, 4 * VECTOR)  # q, k: sign, sum
    yield Counted("norm and RPReLU", tiles * C, 8, 3 * VECTOR)  # values
    yield Counted("norm and RPReLU", read * hidden, 11, 2.25 * VECTOR)  # sign, means of four
    yield Counted("norm and RPReLU", 2 * read * C, 10, 4 * VECTOR)  # with the residual addition
    yield Counted("norm and RPReLU", read * C, 9, 4 * VECTOR)  # what attention gathers
    yield Counted("values", tiles * C, 2, VECTOR)
    words = -(-config.head_dim // WORD)
    yield Counted("scores", queries * bands * slots * LANES, 3 * words - 1, 4 * words + VECTOR)
    yield Counted("softmax", queries * stage.num_keys, 2 * bands + 14, (bands + 2) * VECTOR)
    words = -(-stage.num_keys // WORD)
    yield Counted("context", queries * config.head_dim, 3 * words + 2, 4 * words + 3 * VECTOR)
    if config.attention == "differential":
        yield Counted("neighbours", read * C, 11, 11 * VECTOR)
    if config.window:  # copies, value by value
        yield Counted("windows", stage.num_windows * slots * C, 0, 4 * VECTOR)


def _merge(stage: Stage) -> Iterator[Counted]:
    """Patch merging that leads to a stage."""
    outputs, inputs = _tiles(stage) * stage.dim, 2 * _tiles(stage) * stage.dim
    yield Counted("windows", inputs, 0, 2 * VECTOR)
    yield Counted("layer norm", inputs, 6, 4 * VECTOR)
    yield Counted("pack", inputs, 2, VECTOR)
    yield _product(outputs, 2 * stage.dim)
    yield Counted("norm and RPReLU", outputs, 10, 4 * VECTOR)


def _product(vectors: int, inputs: int) -> Counted:
    """Of packed signs, with its conversion to deviations from a level."""
    words = -(-inputs // WORD)
    return Counted("product", vectors, 3 * words + 4, 4 * words + 3 * VECTOR)


def _tiles(stage: Stage) -> int:
    return -(-stage.num_tokens // LANES)


def _instructions_a_second() -> float:
    """Of the roofline, which does three for each word of a sum."""
    path, one = popcount.path(), np.int32(1)
    roofline = timed(lambda: popcount.run_roofline(path, ROOFLINE_WORDS, one))
    roofline(1)
    return 3 * ROOFLINE_WORDS * path.sums / min(roofline(1) for _ in range(ROUNDS))
