"""What self-contained pages share: no file, script or font from anywhere else."""

from __future__ import annotations

import base64
import functools
import hashlib
import io
from importlib import resources

from PIL import Image


def png(image: Image.Image) -> str:
    """An image as the address of itself."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


@functools.cache
def asset(name: str) -> str:
    """A text file of refimpl/report/assets."""
    return (resources.files("refimpl.report") / "assets" / name).read_text(encoding="utf-8")


def content_hash(text: str) -> str:
    """What a content security policy calls an inline script or style."""
    digest = hashlib.sha256(text.encode()).digest()
    return "sha256-" + base64.b64encode(digest).decode("ascii")
