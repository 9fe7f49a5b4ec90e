"""What self-contained pages share: no file, script or font from anywhere else."""

from __future__ import annotations

import base64
import functools
import hashlib
import io
from importlib import resources
from string import Template

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


def filled(template: str, style: str, script: str = "", **texts: object) -> bytes:
    """A page, UTF-8: a template with its texts, its style and its script, and their hashes.

    The texts are HTML; names in them are escaped already.
    """
    own = {"style": style, "style_hash": content_hash(style)}
    own |= {"script": script, "script_hash": content_hash(script)}
    page = Template(template).substitute(own, **texts)
    return page.encode("utf-8", "backslashreplace")  # the name of a file need not be text


def content_hash(text: str) -> str:
    """What a content security policy calls an inline script or style."""
    digest = hashlib.sha256(text.encode()).digest()
    return "sha256-" + base64.b64encode(digest).decode("ascii")
