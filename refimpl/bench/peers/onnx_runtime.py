"""ONNX Runtime on the CPU: float32, and int8 as its own tool quantizes it, dynamic or static."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from refimpl.bench.measure import Contender, timed
from refimpl.bench.peers import onnx_export
from refimpl.bench.work import Network

REQUIRES = (*onnx_export.REQUIRES, "onnxruntime")


def networks(work: Network, threads: int) -> Iterator[Contender]:
    """float32, then int8."""
    exported = onnx_export.export(work)
    dynamic, static = _quantize(work, exported)
    for kind, model in (("float32", exported), ("int8 dynamic", dynamic), ("int8 static", static)):
        logits = _session(model, work, threads)
        yield Contender(f"ONNX Runtime {kind}", timed(logits), logits, work.macs, threads)


def _session(model: bytes, work: Network, threads: int) -> Callable[[], np.ndarray]:
    import onnxruntime

    options = onnxruntime.SessionOptions()  # all its optimizations are on
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # else its threads would go on spinning while the next contender has its turn
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feeds = {onnx_export.INPUT: work.images}
    return lambda: session.run(None, feeds)[0]


def _quantize(work: Network, model: bytes) -> tuple[bytes, bytes]:
    """Weights to int8 ahead, activations when it runs, or ahead too; after its preprocessing.

    Products only: its convolution of integers is slower than that of floats, and the mask of
    windows holds infinities.
    """
    from onnxruntime.quantization import QuantFormat, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        exported, ready, dynamic, static = (Path(folder) / f"{name}.onnx" for name in "abcd")
        exported.write_bytes(model)
        quant_pre_process(exported, ready, skip_symbolic_shape=True)  # all shapes are known
        products = {"op_types_to_quantize": ["MatMul"]}
        quantize_dynamic(ready, dynamic, **products)
        quantize_static(ready, static, _once(work.images), QuantFormat.QDQ, **products)
        return dynamic.read_bytes(), static.read_bytes()


def _once(images: np.ndarray) -> Any:
    """What static quantization reads the ranges of activations from; which changes no time."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter([{onnx_export.INPUT: images}])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.left, None)

    return Reader()
