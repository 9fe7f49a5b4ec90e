"""How many images a second networks answer, one at a time on one thread, side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from threadpoolctl import threadpool_limits

from refimpl.bench import measure
from refimpl.bench.measure import OURS, Contender, timed
from refimpl.bench.work import Network
from refimpl.models import packing

ROUNDS = 10


def images_per_second(networks: Mapping[str, Network]) -> dict[str, float]:
    """Networks by name -> images a second of each, by the quickest program of ours.

    That is the engine, or NumPy with or without the kernels where the engine does not run it. The
    parameters do not matter: no branch of a network depends on them.
    """
    entries = [
        (name, Contender(OURS, timed(program), None, network.macs, threads=1))
        for name, network in networks.items()
        for program in _programs(network)
    ]
    with threadpool_limits(1):
        rows = measure.compare(entries, ROUNDS)
    quickest = {name: min(r.median_ms for r in rows if r.work == name) for name in networks}
    return {
        name: 1000 * len(networks[name].images) / milliseconds
        for name, milliseconds in quickest.items()
    }


def _programs(work: Network) -> Iterator[Callable[[], Any]]:
    if packing.for_engine(work.config):
        from refimpl import engine

        compiled = engine.compile(work.model, work.params)
        yield lambda: compiled(work.images)
        return
    from refimpl.kernels import backend

    yield lambda: work.model.predict(work.params, work.images)
    yield lambda: work.model.predict(work.params, work.images, backend=backend)
