"""What classes are called, by the name of their folder: a tench is in ImageNet's n01440764.

n01440764 tench, Tinca tinca        a line each, as in ImageNet's LOC_synset_mapping.txt
{"n01440764": "tench"}              the same as .json

An accented letter may be written as one character or two: all names are taken in the composed form.
"""

import json
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from refimpl.conventions import DataError, shown
from refimpl.disk import read_text


def composed(name: str) -> str:
    """A name in Unicode's composed form, NFC: macOS writes é as two characters, others as one."""
    return unicodedata.normalize("NFC", name)


def distinct(names: Sequence[str], keys: Sequence[object]) -> tuple[str, ...]:
    """The names; those that occur twice are followed by their keys, as in "crane (n02012849)".

    >>> distinct(["crane", "wall", "crane"], [1, 2, 7])
    ('crane (1)', 'wall', 'crane (7)')
    """
    found = tuple(names)
    while len(set(found)) < len(found):  # once more where another class has just that name
        counts = Counter(found)
        pairs = zip(found, keys, strict=True)
        found = tuple(name if counts[name] == 1 else f"{name} ({key})" for name, key in pairs)
    return found


def same(names: Sequence[str], others: Sequence[str]) -> bool:
    """Whether two lists name the same classes, in the same order."""
    return tuple(map(composed, names)) == tuple(map(composed, others))


def listing(names: Sequence[str]) -> str:
    """How many there are, and the first of them.

    >>> listing(["ant", "bee"])
    '2 classes (ant, bee)'
    """
    first = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
    return f"{len(names)} classes ({first})"


def text(path: str | Path) -> str:
    """What a file with names says, without an editor's mark; DataError where it is no such text."""
    try:
        return read_text(path)
    except OSError as error:
        raise DataError(f"{path}: cannot read the class names: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8, expected text") from None


def read(path: str | Path) -> dict[str, str]:
    """Folder -> name, from a file as above; DataError says what is wrong with it, and where."""
    path = Path(path)
    pairs = (_json if path.suffix.lower() == ".json" else _lines)(path, text(path))
    names: dict[str, str] = {}
    for where, folder, name in pairs:
        folder, name = composed(folder), composed(name)
        if not name or shown(name) != name:
            raise DataError(f"{path}: {where}: found the name {name!r}, expected printable text")
        if folder in names:
            raise DataError(f"{path}: {where}: a second name, expected one for each folder")
        names[folder] = name
    if not names:
        raise DataError(f"{path}: no class names in it, expected lines such as 'n01440764 tench'")
    return names


def apply(path: str | Path, folders: Sequence[str]) -> tuple[str, ...]:
    """The name of each folder by the file at `path`, in their order; DataError if one has none.

    Where two are called the same, as ImageNet's two cranes are, the folder follows in brackets.
    """
    names = read(path)
    folders = tuple(map(composed, folders))
    for folder in folders:
        if folder not in names:
            raise DataError(f"{path}: no name for the class folder {folder!r}")
    # of the whole file: the same name whatever the data
    called = dict(zip(names, distinct(tuple(names.values()), tuple(names)), strict=True))
    return tuple(called[folder] for folder in folders)


def _lines(path: Path, text: str) -> list[tuple[str, str, str]]:
    """(where, folder, name) of each line."""
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        folder, *name = line.split(maxsplit=1)
        if not name:
            raise DataError(f"{path}: line {number} is {line!r:.80}, expected FOLDER NAME")
        found.append((f"line {number}, {folder!r}", folder, name[0].strip()))
    return found


def _json(path: Path, text: str) -> list[tuple[str, str, str]]:
    try:
        pairs = json.loads(text, object_pairs_hook=list)  # a dict would hide a repeated folder
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON: {error}") from None
    if text.lstrip()[:1] != "{" or not all(isinstance(name, str) for _, name in pairs):
        raise DataError(f'{path}: expected an object of texts such as {{"n01440764": "tench"}}')
    return [(repr(folder), folder, name) for folder, name in pairs]
