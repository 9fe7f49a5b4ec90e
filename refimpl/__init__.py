"""refimpl: the golden reference of DIDB-ViT, a vision transformer of 1-bit weights and activations.

Pure NumPy for the equations (`refimpl.ops`), forward and backward written out by hand; read
`refimpl/SPEC.md` for what is computed and `refimpl/conventions.py` for how it is written.

    model, params = refimpl.load("didb_micro_mnist")
    logits, cache = model.forward(params, images)
    dimages, grads = model.backward(dlogits, cache)
"""

import importlib
from types import ModuleType

from refimpl import models, ops
from refimpl.classifiers import classifier
from refimpl.models import create_model, flatten, unflatten
from refimpl.models.files import load, save
from refimpl.segmenters import segmenter

__version__ = "0.1.0"

__all__ = [
    "classifier",
    "create_model",
    "engine",
    "flatten",
    "golden",
    "kernels",
    "load",
    "models",
    "ops",
    "save",
    "segmenter",
    "unflatten",
]

_ON_DEMAND = ("engine", "golden", "kernels")  # Numba alone takes longer to import than all the rest


def __getattr__(name: str) -> ModuleType:
    if name in _ON_DEMAND:
        return importlib.import_module(f"refimpl.{name}")
    raise AttributeError(f"module 'refimpl' has no attribute {name!r}")
