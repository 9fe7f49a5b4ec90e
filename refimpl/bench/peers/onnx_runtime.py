"""ONNX Runtime on the CPU: float32, and dynamic int8 as its own tool quantizes it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from refimpl.bench.measure import Contender, timed
from refimpl.bench.peers import onnx_export
from refimpl.bench.work import Network

REQUIRES = (*onnx_export.REQUIRES, "onnxruntime")


def networks(work: Network, threads: int) -> Iterator[Contender]:
    """float32, then int8."""
    for who, run in sessions(work, threads).items():
        yield Contender(who, timed(run), work.macs, threads)


def sessions(work: Network, threads: int) -> dict[str, Callable[[], np.ndarray]]:
    """Name -> function that returns the logits (B, classes)."""
    exported = onnx_export.export(work)
    return {
        "ONNX Runtime float32": _session(exported, work, threads),
        "ONNX Runtime int8": _session(_quantize(exported), work, threads),
    }


def _session(model: bytes, work: Network, threads: int) -> Callable[[], np.ndarray]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # else its threads would go on spinning while the next contender has its turn
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feeds = {onnx_export.INPUT: work.images}
    return lambda: session.run(None, feeds)[0]


def _quantize(model: bytes) -> bytes:
    """Weights to int8 ahead, activations when it runs."""
    import onnx
    from onnxruntime.quantization import quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        quantize_dynamic(onnx.load_from_string(model), path)
        return path.read_bytes()
