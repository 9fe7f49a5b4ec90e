"""refimpl: the golden reference of DIDB-ViT, a vision transformer of 1-bit weights and activations.

Pure NumPy for the equations (`refimpl.ops`), forward and backward written out by hand; read
`refimpl/SPEC.md` for what is computed and `refimpl/conventions.py` for how it is written.

    ask = refimpl.classifier("didb_micro_mnist")
    ask("seven.png")[0].label

    model, params = refimpl.load("didb_micro_mnist")
    logits, cache = model.forward(params, model.prepare(images))    # images uint8 (n, H, W)
    dimages, grads = model.backward(dlogits, cache)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from refimpl import engine, golden, kernels, models, ops
    from refimpl.classifiers import classifier
    from refimpl.importing import load_checkpoint
    from refimpl.models import create_model, flatten, unflatten
    from refimpl.models.files import list_models, load, save
    from refimpl.segmenters import segmenter

__version__ = "0.1.0"

__all__ = [
    "classifier",
    "cluster",
    "create_model",
    "engine",
    "flatten",
    "golden",
    "kernels",
    "list_models",
    "load",
    "load_checkpoint",
    "models",
    "ops",
    "save",
    "segmenter",
    "unflatten",
]

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
        return getattr(importlib.import_module(f"refimpl.{_FUNCTIONS[name]}"), name)
    # `torch` is no name of `import *`: it would take that of PyTorch itself
    if name in (*__all__, "torch"):
        return importlib.import_module(f"refimpl.{name}")
    raise AttributeError(f"module 'refimpl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
