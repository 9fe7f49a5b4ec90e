"""Packed inference: a network compiled once into bits and a fixed order of kernels.

engine = refimpl.engine.load("packed.safetensors")
logits = engine(images)                     # float32 (B, channels, H, W) -> (B, classes)
"""

from refimpl.engine.engine import Engine, compile, load, of_file

__all__ = ["Engine", "compile", "load", "of_file"]
