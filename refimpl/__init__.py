"""The golden reference of DIDB-ViT, a vision transformer with 1-bit weights and activations.

Pure NumPy for the equations (`refimpl.ops`), forward and backward written out by hand; read
`refimpl/SPEC.md` for what is computed and `refimpl/conventions.py` for how it is written.

The calls that matter:

    ask = refimpl.classifier("didb_micro_mnist")          # a trained network, ready to be asked
    ask("seven.png")[0].label
    refimpl.segmenter("segmenter_didb_scenes")("street.png").labels     # a class for every pixel

    model, params = refimpl.load("didb_micro_mnist")      # the same as functions of arrays
    x = model.prepare(images)                             # uint8 (n, H, W) -> what the model reads
    logits, cache = model.forward(params, x)
    dimages, grads = model.backward(dlogits, cache)
    refimpl.save("mine.safetensors", model, params)

    model = refimpl.create_model("didb_micro", depth=2)   # untrained; list_models() says which
    params = model.init(np.random.default_rng(0))
    run = refimpl.engine.compile(model, params)           # bits and popcounts: run(x) -> logits
    model, params = refimpl.load_checkpoint("vit-tiny")   # of timm, transformers or BinaryViT
    refimpl.golden.compare(refimpl.golden.read("bundle"), taps)         # judge a port

`python -m refimpl --help` lists what the command can do.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from refimpl import cluster as cluster
    from refimpl import (
        data,
        engine,
        exporting,
        golden,
        importing,
        kernels,
        live,
        models,
        ops,
        report,
        training,
    )
    from refimpl import torch as torch
    from refimpl.classifiers import classifier
    from refimpl.importing import load_checkpoint
    from refimpl.models import create_model, flatten, unflatten
    from refimpl.models.files import list_models, load, save
    from refimpl.segmenters import segmenter

__version__ = "0.1.0"

__all__ = [
    "classifier",
    "create_model",
    "data",
    "engine",
    "exporting",
    "flatten",
    "golden",
    "importing",
    "kernels",
    "list_models",
    "live",
    "load",
    "load_checkpoint",
    "models",
    "ops",
    "report",
    "save",
    "segmenter",
    "training",
    "unflatten",
]
# Rooms that need a package which an extra brings -> that package. They are as public as the others,
# but `from refimpl import *` works without them, and leaves PyTorch its name.
_EXTRAS = {"cluster": "distributed", "torch": "torch"}

# Function -> its module. All is imported when it is first asked for: so the command can be
# interrupted from its first moment on, and one operation costs no more than itself.
_FUNCTIONS = {
    "classifier": "classifiers",
    "create_model": "models",
    "flatten": "models",
    "list_models": "models.files",
    "load": "models.files",
    "load_checkpoint": "importing",
    "save": "models.files",
    "segmenter": "segmenters",
    "unflatten": "models",
}


def __getattr__(name: str) -> Any:
    if name in _FUNCTIONS:
        found = getattr(importlib.import_module(f"refimpl.{_FUNCTIONS[name]}"), name)
        globals()[name] = found
        return found
    if name in __all__ or name in _EXTRAS:
        return importlib.import_module(f"refimpl.{name}")
    raise AttributeError(f"module 'refimpl' has no attribute {name!r}")


def __dir__() -> list[str]:
    there = {room for room, package in _EXTRAS.items() if importlib.util.find_spec(package)}
    return sorted({*(name for name in globals() if name.startswith("__")), *__all__, *there})
