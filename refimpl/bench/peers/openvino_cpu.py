"""OpenVINO on the CPU: its BinaryConvolution as a product, and real networks as they are run.

BinaryConvolution 1 x 1 is the product of signs that a published CPU library offers. Its input is
quantized to bits by FakeQuantize, which is how its models do it; the weights are bits from the
start. Tokens are the pixels of one image in a row, or images of one pixel each: the first gives
the fastest node, the second has its rows where ours are and needs no change of layout.

The time of the node itself comes from OpenVINO's counters: whole microseconds, rounded down for
each call and for the mean of the calls, so up to two too few. Several images a call, as many as
keep the output in the second level cache, make that small; a product for which it stays large has
no row of the node.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from refimpl.bench.measure import Contender, timed
from refimpl.bench.peers import onnx_export
from refimpl.bench.work import Network, Product

REQUIRES = ("openvino",)
NETWORK_REQUIRES = (*onnx_export.REQUIRES, *REQUIRES)
QUANTIZED_REQUIRES = (*NETWORK_REQUIRES, "nncf")
OUTPUT_BYTES = 512 * 1024
NODE_MACS = 5_000_000  # at least, in a call that is timed by the counters: some microseconds


def products(work: Product, threads: int) -> Iterator[Contender]:
    """The node alone, and from floats to the product in both layouts.

    None for the products of attention, since the weights of the node are constants, and none where
    the inputs do not fill bytes, since its rows then overlap and the answer is wrong.
    """
    if work.b.ndim > 2 or work.a.shape[-1] % 8:
        return
    several = _several(work)
    if work.macs * len(several) >= NODE_MACS:
        run = _node_timer(work, several, threads)
        yield Contender("OpenVINO node", run, _answer(work, several), work.macs, threads)
    for layout, data in (
        ("one row of pixels", _pixels(work)),
        ("images of one pixel", _images(work)),
    ):
        infer = _infer_request(work, data, threads).infer
        who = f"OpenVINO end to end, {layout}"
        yield Contender(who, timed(infer), _answer(work, data), work.macs, threads)


def _pixels(work: Product) -> np.ndarray:
    """(M, K) -> (1, K, 1, M)."""
    return np.ascontiguousarray(work.a.T)[None, :, None, :]


def _images(work: Product) -> np.ndarray:
    """(M, K) -> (M, K, 1, 1)."""
    return work.a[:, :, None, None]


def _several(work: Product) -> np.ndarray:
    """(M, K) -> (images, K, 1, M), the same image several times."""
    fit = OUTPUT_BYTES // (4 * len(work.a) * len(work.b))
    return np.repeat(_pixels(work), max(1, fit), axis=0)


def _answer(work: Product, data: np.ndarray) -> Callable[[], np.ndarray]:
    """() -> the product (M, N), of the last image where there are several."""

    def answer() -> np.ndarray:
        request = _infer_request(work, data, threads=1)
        request.infer()
        y = request.get_output_tensor().data  # (images, N, 1, pixels)
        return y.transpose(0, 2, 3, 1).reshape(-1, y.shape[1])[-len(work.a) :].copy()

    return answer


def _node_timer(work: Product, data: np.ndarray, threads: int) -> Callable[[int], float]:
    """number of calls -> seconds of the node in as many products.

    The counters are means since the model was compiled, so every turn compiles it anew.
    """

    def run(calls: int) -> float:
        request = _infer_request(work, data, threads, counters=True)
        for _ in range(math.ceil(calls / len(data))):
            request.infer()
        nodes = request.get_profiling_info()
        (node,) = (node for node in nodes if node.node_type == "BinaryConvolution")
        return calls * node.real_time.total_seconds() / len(data)

    return run


def _infer_request(work: Product, data: np.ndarray, threads: int, counters: bool = False) -> Any:
    """FakeQuantize (bit = x > 0), then BinaryConvolution, for this data (images, K, 1, pixels)."""
    import openvino
    from openvino import opset1

    def scalar(value: float) -> Any:
        return opset1.constant(np.full((1, 1, 1, 1), value, np.float32))

    bits = np.packbits((work.b > 0).ravel(), bitorder="little")  # read by Constant in `compile`
    filters = openvino.Tensor(bits, openvino.Shape([*work.b.shape, 1, 1]), openvino.Type.u1)
    images = opset1.parameter(data.shape, np.float32)
    # outputs 0 and 1 are what it turns into bits; with -1 and 1 it stays in floats
    quantized = opset1.fake_quantize(images, scalar(0), scalar(0), scalar(0), scalar(1), levels=2)
    product = opset1.binary_convolution(
        quantized,
        openvino.op.Constant(filters, shared_memory=False),
        strides=[1, 1],
        pads_begin=[0, 0],
        pads_end=[0, 0],
        dilations=[1, 1],
        mode="xnor-popcount",
        pad_value=0.0,
    )
    model = openvino.Model([opset1.result(product)], [images], "product")
    options = {**_options(threads), "PERF_COUNT": counters}
    request = openvino.Core().compile_model(model, "CPU", options).create_infer_request()
    request.set_input_tensor(openvino.Tensor(data))
    return request


def networks(work: Network, threads: int) -> Iterator[Contender]:
    """The real network in float32, and in bfloat16 where the processor has it."""
    yield from _in_each_precision(work, _read(work), "float32", "bfloat16", threads)


def quantized_networks(work: Network, threads: int) -> Iterator[Contender]:
    """The real network in int8, quantized after training, what is left in float32 or bfloat16."""
    model = _quantize(work, _read(work))
    yield from _in_each_precision(work, model, "int8", "int8 and bfloat16", threads)


def _in_each_precision(
    work: Network, model: Any, single: str, half: str, threads: int
) -> Iterator[Contender]:
    import openvino

    yield _contender(work, model, single, threads, "f32")
    if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        yield _contender(work, model, half, threads, "bf16")


def _read(work: Network) -> Any:
    import openvino

    return openvino.Core().read_model(onnx_export.export(work), b"")


def _quantize(work: Network, model: Any) -> Any:
    """By NNCF, as its manual does a transformer. What it calibrates with changes no time."""
    import nncf

    nncf.set_log_level(logging.ERROR)
    images = nncf.Dataset([work.images])
    with contextlib.redirect_stdout(io.StringIO()):  # bars of its progress
        return nncf.quantize(model, images, model_type=nncf.ModelType.TRANSFORMER, subset_size=1)


def _contender(work: Network, model: Any, kind: str, threads: int, precision: str) -> Contender:
    import openvino

    options = _options(threads, precision)
    request = openvino.Core().compile_model(model, "CPU", options).create_infer_request()
    request.set_input_tensor(openvino.Tensor(work.images))

    def logits() -> np.ndarray:
        request.infer()
        return request.get_output_tensor().data.copy()

    return Contender(f"OpenVINO {kind}", timed(request.infer), logits, work.macs, threads)


def _options(threads: int, precision: str = "f32") -> dict[str, Any]:
    return {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": precision,  # without it bfloat16 where the processor has it
    }
