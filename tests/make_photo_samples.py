"""Writes the photographs of the package anew, from the packages that hold the originals.

    python -m tests.make_photo_samples WHEEL RCC

WHEEL is that of scikit-image, RCC the folder `usr/share/gcompris-qt/rcc` of Debian's
gcompris-qt-data; which versions is in the README.md beside the photographs.
"""

import argparse
import io
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from refimpl.data import bundled

SIZE, QUALITY = 256, 90


class Photo(NamedTuple):
    source: str  # the file in the wheel, or activity/file in GCompris
    left: int
    top: int
    side: int


FARM, WORLD = "explore_farm_animals/resource/animals", "explore_world_animals/resource/animals"
WHEEL = {
    "cat_chelsea": Photo("skimage/data/chelsea.png", 60, 0, 300),
    "horse_silhouette": Photo("skimage/data/horse.png", 0, -36, 400),
}
GCOMPRIS = {
    "bird_duck": Photo(f"{FARM}/duck.webp", 80, 150, 800),
    "bird_kingfisher": Photo("erase/resource/kingfisher.webp", 400, 50, 1000),
    "cat_kitten": Photo(f"{FARM}/cat.webp", 180, 0, 768),
    "deer_moose": Photo(f"{WORLD}/moose.webp", 130, 0, 683),
    "dog_shepherd": Photo(f"{FARM}/dog.webp", 140, 0, 768),
    "horse_nokota": Photo(f"{FARM}/horse.webp", 573, 190, 365),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the photographs of the package anew.")
    parser.add_argument("wheel", type=Path, metavar="WHEEL", help="scikit-image, a .whl file")
    parser.add_argument("rcc", type=Path, metavar="RCC", help="the folder with GCompris's *.rcc")
    arguments = parser.parse_args()
    bundled.photos().mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(arguments.wheel) as wheel:
        for name, photo in WHEEL.items():
            save(name, photo, wheel.read(photo.source))
    for name, photo in GCOMPRIS.items():
        activity = photo.source.split("/")[0]
        resources = dict(unpack((arguments.rcc / f"{activity}.rcc").read_bytes()))
        save(name, photo, resources[f"/gcompris/src/activities/{photo.source}"])


def save(name: str, photo: Photo, content: bytes) -> None:
    """A square part of the image on white, reduced, as a JPEG without metadata."""
    box = (photo.left, photo.top, photo.left + photo.side, photo.top + photo.side)
    part = Image.open(io.BytesIO(content)).convert("RGBA").crop(box)
    part = Image.alpha_composite(Image.new("RGBA", part.size, "white"), part).convert("RGB")
    part = part.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    part.save(bundled.photos() / f"{name}.jpg", quality=QUALITY, optimize=True)


def unpack(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Path and content of the uncompressed files of Qt's binary resources."""
    version, tree, data, names = struct.unpack_from(">4I", content, 4)
    size = 14 if version == 1 else 22  # of a node; later versions add the time of change

    def walk(node: int, path: str) -> Iterator[tuple[str, bytes]]:
        name, flags = struct.unpack_from(">IH", content, tree + node * size)
        if node:  # the root has no name
            (length,) = struct.unpack_from(">H", content, names + name)
            start = names + name + 6  # after the length and a hash
            path += "/" + content[start : start + 2 * length].decode("utf-16-be")
        if flags & 2:
            count, first = struct.unpack_from(">2I", content, tree + node * size + 6)
            for child in range(first, first + count):
                yield from walk(child, path)
        elif not flags:
            (start,) = struct.unpack_from(">I", content, tree + node * size + 10)
            (length,) = struct.unpack_from(">I", content, data + start)
            yield path, content[data + start + 4 : data + start + 4 + length]

    return walk(0, "")


if __name__ == "__main__":
    main()
