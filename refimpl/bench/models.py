"""`refimpl bench model`: the engine on `didb`, beside others on a real network of that size."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from refimpl.bench import host, measure, ours, peers
from refimpl.bench.measure import Row
from refimpl.bench.peers import Peer, onnx_runtime, openvino_cpu, torch_eager
from refimpl.bench.work import network
from refimpl.conventions import require_choice
from refimpl.models import architectures

PEERS = (
    Peer("torch", torch_eager.REQUIRES, torch_eager.networks),
    Peer("ONNX Runtime", onnx_runtime.REQUIRES, onnx_runtime.networks),
    Peer("OpenVINO", openvino_cpu.NETWORK_REQUIRES, openvino_cpu.networks),
    Peer("OpenVINO int8", openvino_cpu.QUANTIZED_REQUIRES, openvino_cpu.quantized_networks),
)
BINARY = tuple(
    name for name in architectures.CLASSIFIERS if architectures.named(name).block == "binary"
)
MODELS = ("didb_micro", "didb_tiny", "didb_small")


def run(
    names: Sequence[str] = MODELS,
    *,
    batch: int = 1,
    threads: int = 1,
    rounds: int = 10,
    turn: float = measure.TURN,
    progress: Callable[[], object] = lambda: None,
) -> list[Row]:
    """Rows for each name of BINARY, with random parameters.

    `progress` is called after each round of each name. ConfigError for another name.
    """
    for name in names:
        require_choice("bench", "model", name, BINARY)
    rows = []
    with host.pinned(threads):
        for name in names:
            binary, real = network(name, batch), network(real_twin(name), batch)
            contenders = [*ours.networks(binary, threads), *peers.build(PEERS, real, threads)]
            entries = [(f"{name}, batch {batch}", contender) for contender in contenders]
            rows += measure.compare(entries, rounds, turn, progress)
    return rows


def real_twin(name: str) -> str:
    """The `deit` of the same size, or the real `swin`."""
    size = name.partition("_")[2]
    return size if size.startswith("swin") else f"deit_{size}"
