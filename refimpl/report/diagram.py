"""A block of a network as a picture, drawn from the list of its operations [SPEC 6].

An operation is a row of a box, and rows that are read by nothing but the next one share a box. A
row has the colour of what it gives: bits, whole numbers or floats; so has a wire. A projection
[SPEC 5] is one row of the block, and the first one is drawn beside it in full.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import Any, NamedTuple

from refimpl.conventions import shown
from refimpl.models import listing
from refimpl.models.nodes import Network
from refimpl.report import layout

ROW, PAD, GAP = 34, 10, 44  # pixels: height of a row, room inside a box, between the two drawings
MARGIN, HEAD, ROUND, PAGE = 24, 84, 6, 1040
WIDE, NARROW = 7.6, 5.8  # pixels of a letter in the first and in the second line of a row
KINDS = {  # of what a row gives: its name, its fill, its text, its wire
    "real": ("floats", "#eef4fb", "#10243a", "#4a6f99"),
    "int": ("whole numbers", "#ffd98a", "#3a2a00", "#b97700"),
    "bit": ("bits", "#2b2b33", "#ffffff", "#2b2b33"),
}
DASHES = {"bit": "2 3", "int": "7 3", "real": ""}

STYLE = (
    "text{font-family:system-ui,'Segoe UI',Helvetica,Arial,sans-serif}"
    ".t{font-size:15px;font-weight:600;fill:#10243a}"
    ".w{font-size:12.5px;font-weight:600}.s{font-size:9.5px}.e{text-anchor:end}"
    ".b{stroke:#5b6b7d}.l{fill:none;stroke-width:1.6}.i{stroke:#0a9a6e;stroke-width:4}"
)

# What a row says of its operation, where the name of the operation would say less.
WORDS: dict[str, str | Callable[[dict], str]] = {
    "add": "add",
    "band_sum": lambda a: f"(w·low + w·high) / √{a['head_dim']}",
    "bands": "Haar: low, high",
    "binary_linear": lambda a: "· scale" if a["binarize"] == "full" else "· W",
    "boolean_attention": lambda a: "weighted sum of v" if a["binarize"] == "none" else "· α",
    "batch_norm": "BatchNorm",
    "box": lambda a: f"mean of {a['side']} {'columns' if a['axis'] else 'rows'}",
    "differential": "λs · v − λn · mean",
    "divide": lambda a: f"/ {_root(a['divisor'])}",
    "fit": "fit the channels",
    "gelu": "GELU",
    "join_windows": "join windows",
    "layer_norm": "LayerNorm",
    "layer_scale": "LayerScale",
    "matmul": "product",
    "merge_heads": "join heads",
    "neighbours": "mean of 8 neighbours",
    "position_bias": "+ position bias",
    "rprelu": "RPReLU",
    "shift": "+ move",
    "split": "split into q, k, v",
    "split_heads": "to heads",
    "window_softmax": "softmax in windows",
    "windows": "cut into windows",
}
INSIDE = {  # operation -> step inside it
    "binary_linear": {
        "weight.z": "W − mean of its row",
        "weight.bit": "sign",
        "weight.scale": "mean |W| of a row",
        "bit": "sign",
        "int": "XOR, popcount",
    },
    "boolean_attention": {
        "prob.z": "/ α",
        "prob.bit": "> ½",
        "context.int": "AND, popcount",
    },
}
IDEAS = ("band_sum", "bands", "differential", "neighbours")


class Row(NamedTuple):
    """One operation: what it does, the values that it reads and gives, and of which kind."""

    words: str
    reads: tuple[str, ...]
    gives: tuple[str, ...]
    shape: str
    kind: str
    idea: bool = False  # one that DIDB-ViT adds to the baseline


def svg(network: Network, block: int, title: str) -> bytes:
    """Draw a block of a network as a standalone SVG.

    title: what stands above it. ConfigError where there is no such block.
    """
    title = shown(title)  # the name of a file may hold what XML may not
    # what is made of parameters alone, such as an interpolated shift, is none of the picture
    entries = [e for e in listing.entries(network, block) if e["inputs"]]
    prefix = f"blocks.{block}."
    parts = _projections(entries)
    main = _Drawing(_stacked(_block_rows(entries, parts)), prefix, _branches(network))
    inner = None
    if parts:
        begin, end = parts[0]
        inner = _Drawing(_stacked(_projection_rows(entries[begin:end])), prefix)
    return _page(main, inner, title, parts and _short(_path(entries[parts[0][0]]), prefix))


# --- rows -----------------------------------------------------------------------------------------


def _projections(entries: Sequence[dict]) -> list[tuple[int, int]]:
    """The stretches of the list that are a binary projection: from its input to its RPReLU."""
    begins = [i for i, entry in enumerate(entries) if entry["op"] == "identity"]
    ends = [i for i, entry in enumerate(entries) if entry["op"] == "rprelu"]
    return [(begin, 1 + min(end for end in ends if end > begin)) for begin in begins]


def _path(entry: dict) -> str:
    return entry["name"].removesuffix(".x")


def _branches(network: Network) -> list[list[set[str]]]:
    """Regions of the list whose branches lie beside each other: the values that each gives."""
    nodes = network.nodes
    return [[{n for i in branch for n in nodes[i].outputs} for branch in region]
            for region in network.branches]  # fmt: skip


def _block_rows(entries: Sequence[dict], parts: Sequence[tuple[int, int]]) -> list[Row]:
    rows, ends = [], dict(parts)
    i = 0
    while i < len(entries):
        if i in ends:
            rows.append(_projection_row(entries[i], entries[ends[i] - 1]))
            i = ends[i]
        else:
            rows += _rows(entries[i])
            i += 1
    return rows


def _projection_row(first: dict, last: dict) -> Row:
    given, made = first["shapes"]["inputs"][0], last["shapes"]["outputs"][0]
    words = f"P: {given[-1]} → {made[-1]}"
    return Row(words, tuple(first["inputs"]), tuple(last["outputs"]), _shape(made), "real")


def _projection_rows(entries: Sequence[dict]) -> list[Row]:
    """A projection in full: every operation and every step, and its matrix as it is stored."""
    first, *rest = entries
    source = first["inputs"][0]
    rows = []
    for entry in rest:
        entry = entry | {"inputs": [source if n == first["name"] else n for n in entry["inputs"]]}
        rows += _rows(entry)
    return rows


def _rows(entry: dict) -> list[Row]:
    """An operation as a row, or as one for each step inside it and one for what is behind them."""
    steps, words = entry["inside"], INSIDE.get(entry["op"])
    inner = {step["name"]: words[step["step"]] for step in steps}
    known = {*entry["inputs"], *inner}
    rows = []
    for step in steps:
        reads = tuple(name for name in step["reads"] if name in known)
        name = step["name"]
        rows.append(Row(inner[name], reads, (name,), _step_shape(step), step["kind"]))
    read = {name for step in steps for name in step["reads"]}
    last = [name for name in (*entry["inputs"], *inner) if name not in read]
    made = entry["shapes"]["outputs"][0]
    kind = entry["tap"] if entry["tap"] in ("bit", "int") else "real"
    said = "XOR, popcount" if (entry["op"], kind) == ("matmul", "int") else _words(entry)
    row = Row(said, tuple(last), tuple(entry["outputs"]), _shape(made), kind, _is_idea(entry))
    return [*rows, row]


def _is_idea(entry: dict) -> bool:
    """Whether an operation is what DIDB-ViT adds: a band, a difference, a shift for every token."""
    return entry["op"] in IDEAS or (entry["op"], len(entry["parameters"])) == ("rprelu", 5)


def _step_shape(step: dict) -> str:
    shape = step["shape"]
    return _shape(shape if str(shape[0]).startswith("B") else ["B", *shape])


def _words(entry: dict) -> str:
    if _is_idea(entry) and entry["op"] == "rprelu":
        return "RPReLU, by token"
    words = WORDS.get(entry["op"], entry["op"].replace("_", " "))
    return words if isinstance(words, str) else words(entry["attributes"])


def _root(number: float) -> str:
    square = round(number * number)
    return f"√{square}" if math.isclose(number * number, square) else f"{number:g}"


def _shape(shape: Sequence[Any]) -> str:
    """The shape for one image."""
    count = str(shape[0]).removeprefix("B").removeprefix("*")
    return "×".join(map(str, ([count] if count else []) + list(shape[1:])))


def _stacked(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows as boxes: one that alone reads all that the row before it gives stands below it."""
    readers: dict[str, list[Row]] = {}
    for row in rows:
        for name in row.reads:
            readers.setdefault(name, []).append(row)
    boxes: list[list[Row]] = []
    for row in rows:
        above = next((b for b in boxes if set(row.reads) == set(b[-1].gives)), None)
        if above and all(readers[name] == [row] for name in row.reads):
            above.append(row)
        else:
            boxes.append([row])
    return boxes


# --- the drawing ----------------------------------------------------------------------------------


class _Drawing:
    """Boxes and wires in their places, with the values that come from outside as boxes, too."""

    def __init__(
        self, boxes: list[list[Row]], prefix: str, branches: Sequence[Sequence[set[str]]] = ()
    ):
        self.prefix = prefix
        made = {name for box in boxes for row in box for name in row.gives}
        read = dict.fromkeys(name for box in boxes for row in box for name in row.reads)
        outside = [n for n in read if n not in made and any(n in b[0].reads for b in boxes)]
        self.boxes = {n: [Row("in", (), (n,), "", "real")] for n in outside}
        self.boxes |= {box[0].gives[0]: box for box in boxes}
        self.kinds = {n: r.kind for box in self.boxes.values() for r in box for n in r.gives}
        maker = {n: key for key, box in self.boxes.items() for n in box[-1].gives}
        self.wires = [layout.Wire(name, maker[name], key)
                      for key, box in self.boxes.items() for name in dict.fromkeys(box[0].reads)
                      if name in maker]  # fmt: skip
        sizes = {key: layout.Box(self._width(box), ROW * len(box), box[-1].gives)
                 for key, box in self.boxes.items()}  # fmt: skip
        self.sizes = sizes
        self.ideas = any(row.idea for box in boxes for row in box)
        self.placed = layout.place(sizes, self.wires, self._level(branches))

    def _level(self, branches: Sequence[Sequence[set[str]]]) -> list[list[str]]:
        """The first boxes of branches beside each other, their second ones, and so on."""
        found = []
        for region in branches:
            columns = [[key for key in self.boxes if key in values] for values in region]
            found += [list(row) for row in zip(*columns, strict=False)]
        return found

    def _width(self, box: list[Row]) -> float:
        lines = [WIDE * len(row.words) for row in box]
        lines += [NARROW * (len(name) + len(row.shape) + 2)
                  for row, name in zip(box, self._names(box), strict=True)]  # fmt: skip
        return 2 * PAD + max(lines)

    def _names(self, box: list[Row]) -> list[str]:
        """The values of each row; below another one of the same part without its name."""
        found, part = [], None
        for row in box:
            names = [_short(name, self.prefix) for name in row.gives]
            before, (part, _, leaf) = part, names[0].rpartition(".")
            found.append(f".{leaf}" if part and part == before else ", ".join(names))
        return found

    def drawn(self, x: float, y: float) -> str:
        wires = "".join(map(self._wire, self.wires, self.placed.wires))
        boxes = "".join(self._box(key) for key in self.boxes)
        return f'<g transform="translate({_n(x)} {_n(y)})">\n{wires}{boxes}</g>\n'

    def _wire(self, wire: layout.Wire, corners: list[layout.Point]) -> str:
        kind = self.kinds[wire.value]
        colour, dashes = KINDS[kind][3], DASHES[kind]
        (x, y) = corners[-1]
        dash = f' stroke-dasharray="{dashes}"' if dashes else ""
        head = f"M{_n(x - 4)} {_n(y - 7)}L{_n(x)} {_n(y)}L{_n(x + 4)} {_n(y - 7)}Z"
        line = f'class="l" stroke="{colour}"{dash}'
        return f'<path d="{_rounded(corners)}" {line}/><path d="{head}" fill="{colour}"/>\n'

    def _box(self, key: str) -> str:
        (x, y), size = self.placed.boxes[key], self.sizes[key]
        rows, count = self.boxes[key], len(self.boxes[key])
        parts = []
        for i, (row, names) in enumerate(zip(rows, self._names(rows), strict=True)):
            shape = _outline(x, y + ROW * i, size.width, top=i == 0, bottom=i == count - 1)
            parts.append(_row(row, names, x, y + ROW * i, size.width, shape))
        frame = (
            f'<rect x="{_n(x)}" y="{_n(y)}" width="{_n(size.width)}" height="{_n(size.height)}" '
            f'rx="{ROUND}" fill="none" class="b"/>\n'
        )
        return "".join(parts) + frame


def _row(row: Row, names: str, x: float, y: float, width: float, shape: str) -> str:
    _, fill, ink, _ = KINDS[row.kind]
    bar = f'<path d="M{_n(x + 2.5)} {_n(y + 5)}v{ROW - 10}" class="i"/>' if row.idea else ""
    left, right = _n(x + PAD), _n(x + width - PAD)
    first, second = f'y="{_n(y + 15)}" class="w"', f'y="{_n(y + 27)}" class="s'
    size = f'<text x="{right}" {second} e">{row.shape}</text>' if row.shape else ""
    return (
        f'<g fill="{ink}"><path d="{shape}" fill="{fill}"/>{bar}'
        f'<text x="{left}" {first}>{escape(row.words)}</text>'
        f'<text x="{left}" {second}">{escape(names)}</text>{size}</g>\n'
    )


def _page(main: _Drawing, inner: _Drawing | None, title: str, part: str) -> bytes:
    width, height = main.placed.width, main.placed.height
    body = main.drawn(MARGIN, HEAD)
    if inner:
        left, top = _free_place(main.placed, inner.placed)
        words = f"inside every P, here {part}"
        body += (
            f'<text x="{_n(MARGIN + left)}" y="{_n(HEAD + top - 14)}" class="t">{words}</text>\n'
        )
        body += inner.drawn(MARGIN + left, HEAD + top)
        width = max(width, left + inner.placed.width)
        height = max(height, top + inner.placed.height)
    width, height = width + 2 * MARGIN, height + HEAD + MARGIN
    size = f'width="{width:.0f}" height="{height:.0f}"'
    head = f'<text x="{MARGIN}" y="32" class="t">{escape(title)}</text>\n{_legend(main.ideas)}'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} '
        f'viewBox="0 0 {width:.0f} {height:.0f}" role="img">\n<title>{escape(title)}</title>\n'
        f"<style>{STYLE}</style>\n"
        f'<rect {size} rx="10" fill="#ffffff"/>\n'
        f"{head}{body}</svg>\n"
    ).encode()


def _free_place(main: layout.Placed, inner: layout.Placed) -> layout.Point:
    """Where a second drawing stands: on a page of the usual width, and then of the least height."""

    def whole(top: float) -> tuple[float, float, float, float]:
        left = GAP + main.right_of(top - HEAD / 2, top + inner.height)
        width, height = max(main.width, left + inner.width), max(main.height, top + inner.height)
        return max(width, PAGE), height, width, top

    _, _, width, top = min(whole(float(top)) for top in range(0, int(main.height) + GAP, GAP // 2))
    return width - inner.width, top


def _legend(ideas: bool) -> str:
    found, x = [], float(MARGIN)
    for kind, (name, fill, _, wire) in KINDS.items():
        dash = f' stroke-dasharray="{DASHES[kind]}"' if DASHES[kind] else ""
        found.append(
            f'<rect x="{_n(x)}" y="44" width="18" height="14" rx="3" fill="{fill}" class="b"/>'
            f'<path d="M{_n(x + 24)} 51H{_n(x + 52)}" class="l" stroke="{wire}"{dash}/>'
            f'<text x="{_n(x + 58)}" y="55" class="s">{name}</text>\n'
        )
        x += 58 + NARROW * len(name) + 24
    if ideas:
        found.append(
            f'<path d="M{_n(x)} 44v14" class="i"/>'
            f'<text x="{_n(x + 8)}" y="55" class="s">what DIDB-ViT adds</text>\n'
        )
    return "".join(found)


def _outline(x: float, y: float, width: float, top: bool, bottom: bool) -> str:
    a, b = ROUND if top else 0, ROUND if bottom else 0
    return (
        f"M{_n(x)} {_n(y + a)}q0 {-a} {a} {-a}h{_n(width - 2 * a)}q{a} 0 {a} {a}"
        f"V{_n(y + ROW - b)}q0 {b} {-b} {b}h{_n(2 * b - width)}q{-b} 0 {-b} {-b}Z"
    )


def _rounded(corners: list[layout.Point]) -> str:
    """A way along right angles, its corners rounded."""
    x, y = corners[0]
    found = f"M{_n(x)} {_n(y)}"
    for (ax, ay), (bx, by), (cx, cy) in zip(corners, corners[1:], corners[2:], strict=False):
        before, after = abs(bx - ax) + abs(by - ay), abs(cx - bx) + abs(cy - by)
        r = min(ROUND, before / 2, after / 2)
        found += f"L{_n(bx - r * _sign(bx - ax))} {_n(by - r * _sign(by - ay))}"
        found += f"Q{_n(bx)} {_n(by)} {_n(bx + r * _sign(cx - bx))} {_n(by + r * _sign(cy - by))}"
    x, y = corners[-1]
    return f"{found}L{_n(x)} {_n(y)}"


def _sign(number: float) -> int:
    return (number > 0) - (number < 0)


def _short(name: str, prefix: str) -> str:
    return name.removeprefix(prefix)


def _n(number: float) -> str:
    """A coordinate, to a tenth of a pixel."""
    return f"{round(number, 1) + 0.0:g}"
