"""Networks of others: checkpoints of timm, transformers, Swin and BinaryViT become model files.

`containers` opens files, `said` reads what stands beside them, `families` knows names and sizes,
`checkpoint` puts them together. What a network computes is listed in [SPEC 6.8].
"""

from refimpl.importing.checkpoint import load_checkpoint

__all__ = ["load_checkpoint"]
