"""Lines of code of a folder: those that are not blank, comment or docstring, by room.

    python -m tests.code_lines refimpl
    python -m tests.code_lines refimpl --without "cluster/*" "importing/*"
"""

from __future__ import annotations

import argparse
import ast
import collections
import fnmatch
import tokenize
from pathlib import Path

SILENT = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
    tokenize.ENDMARKER,
}  # fmt: skip
DOCUMENTED = ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef


def count(path: Path) -> int:
    """Lines of a file on which there is code."""
    with tokenize.open(path) as file:
        source = file.read()
    lines: set[int] = set()
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type not in SILENT and token.type != tokenize.ENCODING:
                lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            text = node.body[0]
            lines.difference_update(range(text.lineno, text.end_lineno + 1))
    return len(lines)


def main() -> None:
    """Print a line a room, and the sum."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--without", nargs="+", default=[], metavar="GLOB", help="paths in it")
    args = parser.parse_args()
    rooms: collections.Counter[str] = collections.Counter()
    for path in sorted(args.folder.rglob("*.py")):
        name = path.relative_to(args.folder).as_posix()
        if not any(fnmatch.fnmatch(name, pattern) for pattern in args.without):
            rooms[name.partition("/")[0]] += count(path)
    for room, lines in rooms.items():
        print(f"{lines:7,} {room}")
    print(f"{rooms.total():7,} in all")


if __name__ == "__main__":
    main()
