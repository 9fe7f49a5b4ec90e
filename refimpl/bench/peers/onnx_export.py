"""A real network as an ONNX model, exported from the torch module for those who read ONNX."""

from __future__ import annotations

import io
import warnings

from refimpl.bench.peers import torch_eager
from refimpl.bench.work import Network

REQUIRES = (*torch_eager.REQUIRES, "onnx")
OPSET = 17  # the first with LayerNormalization in one node
INPUT, OUTPUT = "images", "logits"


def export(work: Network) -> bytes:
    """A file's content: images of the given shape -> logits."""
    import torch

    file = io.BytesIO()
    with warnings.catch_warnings():
        # the newer exporter needs one more package and gives the same graph
        warnings.simplefilter("ignore", DeprecationWarning)
        # offsets and masks of windows are meant to be constants
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        torch.onnx.export(
            torch_eager.module(work),
            (torch.tensor(work.images),),
            file,
            input_names=[INPUT],
            output_names=[OUTPUT],
            opset_version=OPSET,
            dynamo=False,
        )
    return file.getvalue()
