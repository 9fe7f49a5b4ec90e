"""Composition of the operations into networks, no new mathematics. Start with `binary.py`."""

from refimpl.models.config import Config
from refimpl.models.params import flatten, unflatten
from refimpl.models.vit import VisionTransformer, create_model

__all__ = ["Config", "VisionTransformer", "create_model", "flatten", "unflatten"]
