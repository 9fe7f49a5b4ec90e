"""Places for the boxes of a drawing in layers, from top to bottom, and the ways of its wires.

In the manner of Sugiyama: a box lies one layer below the last of those that it reads; a wire that
passes layers has a point in each; boxes are ordered so that few wires cross, then moved sideways
so that wires are straight. Between two layers a wire runs down, across on a track of its own, down.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple

APART, BESIDE = 16.0, 12.0  # pixels between two boxes of a layer, and from a wire to its neighbour
LEAD, TRACK = 14.0, 9.0  # above the first and below the last track between layers; between tracks
SWEEPS, ROUNDS = 60, 3
PULL, YIELD, FIRM = 0.3, 0.02, 1e9  # of a line to its ends, of a line on a box, of lines at last
STRAIGHT, SLIDE = 0.5, 14.0  # pixels by which a wire may step aside unseen, and its end may move
Point = tuple[float, float]


class Box(NamedTuple):
    """What is to be placed: its size in pixels, and the values that it gives."""

    width: float
    height: float
    values: tuple[str, ...]


class Wire(NamedTuple):
    """A value that one box gives and another reads."""

    value: str
    source: str
    target: str


class Placed(NamedTuple):
    """Left upper corners of the boxes, the corners of each wire, the size of the whole."""

    boxes: dict[str, Point]
    wires: list[list[Point]]
    width: float
    height: float
    sizes: Mapping[str, Box]

    def right_of(self, top: float, bottom: float) -> float:
        """The right end of what lies at these heights."""
        ends = [x + self.sizes[name].width for name, (x, y) in self.boxes.items()
                if y < bottom and y + self.sizes[name].height > top]  # fmt: skip
        for corners in self.wires:
            for (ax, ay), (bx, by) in itertools.pairwise(corners):
                ends += [max(ax, bx)] * (min(ay, by) < bottom and max(ay, by) > top)
        return max(ends, default=0.0)


class _Point(NamedTuple):
    """Where a wire passes a layer; those of one `net` are one line."""

    net: Hashable
    layer: int


def place(
    boxes: Mapping[str, Box], wires: Sequence[Wire], level: Iterable[Sequence[str]] = ()
) -> Placed:
    """Lay out a graph without cycles; the boxes of each group of `level` share a layer."""
    return _Layout(boxes, wires, level).placed()


def layers(
    boxes: Iterable[str], wires: Sequence[Wire], level: Iterable[Sequence[str]] = ()
) -> dict[str, int]:
    """Number the layers from 0: by the longest way to a box."""
    rank, before = dict.fromkeys(boxes, 0), None
    while rank != before:
        before = dict(rank)
        for wire in wires:
            rank[wire.target] = max(rank[wire.target], rank[wire.source] + 1)
        for group in level:
            rank |= dict.fromkeys(group, max(rank[name] for name in group))
    for name in rank.keys() - {
        wire.target for wire in wires
    }:  # what reads nothing: near its reader
        readers = [rank[wire.target] for wire in wires if wire.source == name]
        rank[name] = min(readers, default=1) - 1
    return rank


def spread(wanted: Sequence[float], weights: Sequence[float], gaps: Sequence[float]) -> list[float]:
    """Places nearest to the wanted ones, in least squares, each `gaps` behind the one before.

    gaps[0] counts for nothing. By pooling neighbours that violate the order.
    """
    shifts = list(itertools.accumulate(gaps[1:], initial=0.0))
    pools: list[tuple[float, float, int]] = []  # place, weight, how many
    for want, weight, shift in zip(wanted, weights, shifts, strict=True):
        pool = (want - shift, weight, 1)
        while pools and pools[-1][0] > pool[0]:
            place, other, count = pools.pop()
            total = other + pool[1]
            pool = ((place * other + pool[0] * pool[1]) / total, total, count + pool[2])
        pools.append(pool)
    places = [place for place, _, count in pools for _ in range(count)]
    return [place + shift for place, shift in zip(places, shifts, strict=True)]


class _Layout:
    def __init__(self, boxes: Mapping[str, Box], wires: Sequence[Wire], level: Iterable):
        self.boxes, self.wires = boxes, wires
        self.rank = layers(boxes, wires, list(level))
        self.rows: list[list[Hashable]] = [[] for _ in range(1 + max(self.rank.values()))]
        for name, rank in self.rank.items():
            self.rows[rank].append(name)
        self.ways = [self._way(wire) for wire in wires]
        # Between two layers: (node above, value or None of a point, node below).
        steps = {(a, self._value(a, w), b) for way, w in zip(self.ways, wires, strict=True)
                 for a, b in itertools.pairwise(way)}  # fmt: skip
        self.steps = sorted(steps, key=repr)
        self.above: dict[Hashable, list[tuple]] = {}
        self.below: dict[Hashable, list[tuple]] = {}
        for step in self.steps:
            self.below.setdefault(step[0], []).append(step)
            self.above.setdefault(step[2], []).append(step)
        self._order()
        self.x: dict[Hashable, float] = {}
        self._align()

    # --- layers -----------------------------------------------------------------------------------

    def _net(self, wire: Wire) -> Hashable:
        """Long wires from one layer to one box are joined, others are of their value."""
        begin = self.rank[wire.source]
        joined = [w for w in self.wires if w.target == wire.target and self._is_long(w)
                  and self.rank[w.source] == begin]  # fmt: skip
        return (wire.target, begin) if len(joined) > 2 and wire in joined else wire.value

    def _is_long(self, wire: Wire) -> bool:
        return self.rank[wire.target] - self.rank[wire.source] > 1

    def _way(self, wire: Wire) -> list[Hashable]:
        """The nodes along a wire: box, points, box. Points enter their rows when first met."""
        begin, end = self.rank[wire.source], self.rank[wire.target]
        points = [_Point(self._net(wire), layer) for layer in range(begin + 1, end)]
        for point in points:
            if point not in self.rows[point.layer]:
                self.rows[point.layer].append(point)
        return [wire.source, *points, wire.target]

    def _value(self, node: Hashable, wire: Wire) -> str | None:
        return None if isinstance(node, _Point) else wire.value

    # --- order ------------------------------------------------------------------------------------

    def _order(self) -> None:
        best, fewest = [list(row) for row in self.rows], self._crossings()
        for sweep in range(SWEEPS):
            down = sweep % 2 == 0
            for row in self.rows[1:] if down else self.rows[-2::-1]:
                places = self._places()
                found = {n: self._barycentre(n, self.above if down else self.below, places)
                         for n in row}  # fmt: skip
                row.sort(key=lambda n: found[n])
            crossings = self._crossings()
            if crossings < fewest:
                best, fewest = [list(row) for row in self.rows], crossings
        self.rows = best

    def _places(self) -> dict[Hashable, float]:
        """How far from the middle of its row a node stands."""
        return {node: i - (len(row) - 1) / 2 for row in self.rows for i, node in enumerate(row)}

    def _barycentre(self, node: Hashable, steps: Mapping, places: Mapping) -> float:
        others = [step[0] if step[2] == node else step[2] for step in steps.get(node, ())]
        return sum(places[n] for n in others) / len(others) if others else places[node]

    def _crossings(self) -> int:
        places, count = self._places(), 0
        for a, b in itertools.combinations(self.steps, 2):
            if self._layer(a[0]) == self._layer(b[0]):
                upper, lower = places[a[0]] - places[b[0]], places[a[2]] - places[b[2]]
                count += upper * lower < 0
        return count

    def _layer(self, node: Hashable) -> int:
        return node.layer if isinstance(node, _Point) else self.rank[node]

    # --- sideways ---------------------------------------------------------------------------------

    def _width(self, node: Hashable) -> float:
        return 0.0 if isinstance(node, _Point) else self.boxes[node].width

    def _gap(self, left: Hashable, right: Hashable) -> float:
        """From the middle of a node to that of the next one."""
        apart = BESIDE if isinstance(left, _Point) or isinstance(right, _Point) else APART
        return (self._width(left) + self._width(right)) / 2 + apart

    def _align(self) -> None:
        for row in self.rows:
            gaps = self._gaps(row)
            ends = list(itertools.accumulate(gaps))
            self.x |= {node: end - ends[-1] / 2 for node, end in zip(row, ends, strict=True)}
        for sweep in range(2 * SWEEPS):
            last = sweep >= SWEEPS
            lines = self._lines(last)
            for row in self.rows if sweep % 2 == 0 else self.rows[::-1]:
                self._settle(row, lines, FIRM if last else 1.0)
        self._tighten()

    def _tighten(self) -> None:
        """Let every long line run down in one piece, as near to its ends as its rows have room."""
        ends = self._ends()
        for _ in range(ROUNDS):
            for net, places in ends.items():
                points = [
                    n for row in self.rows for n in row if isinstance(n, _Point) and n.net == net
                ]
                rooms = [self._room(point) for point in points]
                low, high = max(r[0] for r in rooms), min(r[1] for r in rooms)
                if low <= high:
                    x = min(max(_mean(places), low), high)
                    self.x |= dict.fromkeys(points, x)

    def _room(self, point: _Point) -> tuple[float, float]:
        """How far to the left and to the right a point may move."""
        row = self.rows[point.layer]
        i = row.index(point)
        low = self.x[row[i - 1]] + self._gap(row[i - 1], point) if i else -math.inf
        high = self.x[row[i + 1]] - self._gap(point, row[i + 1]) if i + 1 < len(row) else math.inf
        return low, high

    def _lines(self, last: bool) -> dict[Hashable, float]:
        """Where each long line would run straight down: between its ends, where there is room."""
        places: dict[Hashable, list[float]] = {}
        for node in itertools.chain(*self.rows):
            if isinstance(node, _Point):
                places.setdefault(node.net, []).append(self.x[node])
        ends, pull = self._ends(), 0.0 if last else PULL
        return {n: (1 - pull) * _mean(x) + pull * _mean(ends[n]) for n, x in places.items()}

    def _ends(self) -> dict[Hashable, list[float]]:
        """Where each long line begins and ends at boxes."""
        ends: dict[Hashable, list[float]] = {}
        for step in self.steps:
            above, _, below = step
            if isinstance(above, _Point) and not isinstance(below, _Point):
                ends.setdefault(above.net, []).append(self._top(step))
            if isinstance(below, _Point) and not isinstance(above, _Point):
                ends.setdefault(below.net, []).append(self._bottom(step))
        return ends

    def _gaps(self, row: list[Hashable]) -> list[float]:
        return [0.0, *(self._gap(*pair) for pair in itertools.pairwise(row))]

    def _settle(self, row: list[Hashable], lines: Mapping, firm: float) -> None:
        wanted = [lines[n.net] if isinstance(n, _Point) else self._wanted(n) for n in row]
        weights = [firm if isinstance(n, _Point) else 1.0 for n in row]
        self.x |= dict(zip(row, spread(wanted, weights, self._gaps(row)), strict=True))

    def _wanted(self, node: str) -> float:
        """Where the wires of a box would be straight; long lines give way."""
        moves = [(self._bottom(s) - self._top(s), s[0]) for s in self.above.get(node, ())]
        moves += [(self._top(s) - self._bottom(s), s[2]) for s in self.below.get(node, ())]
        weights = [YIELD if isinstance(other, _Point) else 1.0 for _, other in moves]
        total = sum(weight * move for weight, (move, _) in zip(weights, moves, strict=True))
        return self.x[node] + total / max(sum(weights), 1e-9)

    def _top(self, step: tuple) -> float:
        """Where a step arrives at the node below: one place for each line, from left to right."""
        node = step[2]
        if isinstance(node, _Point):
            return self.x[node]
        lines = sorted({(self._bottom(s), *map(repr, s[:2])) for s in self.above[node]})
        index = lines.index((self._bottom(step), *map(repr, step[:2])))
        return self._port(node, index, len(lines))

    def _bottom(self, step: tuple) -> float:
        """Where a step leaves the node above: one place for each value."""
        node, value, _ = step
        if isinstance(node, _Point):
            return self.x[node]
        values = [v for v in self.boxes[node].values if any(s[1] == v for s in self.below[node])]
        return self._port(node, values.index(value), len(values))

    def _port(self, node: Hashable, index: int, count: int) -> float:
        return self.x[node] + self._width(node) * ((index + 1) / (count + 1) - 0.5)

    # --- downwards --------------------------------------------------------------------------------

    def placed(self) -> Placed:
        """Rows, tracks and corners as they are to be drawn."""
        left = min(self.x[n] - self._width(n) / 2 for row in self.rows for n in row)
        right = max(self.x[n] + self._width(n) / 2 for row in self.rows for n in row)
        y, tracks, tops = 0.0, {}, []
        for layer, row in enumerate(self.rows):
            tops.append(y)
            y += max(self.boxes[n].height for n in row if not isinstance(n, _Point))
            nets = self._tracks(layer)
            tracks |= {net: y + LEAD + TRACK * i for i, net in enumerate(nets)}
            y += 2 * LEAD + TRACK * max(len(nets) - 1, 0) if layer + 1 < len(self.rows) else 0
        boxes = {name: (self.x[name] - self._width(name) / 2 - left, tops[rank])
                 for name, rank in self.rank.items()}  # fmt: skip
        ways = [self._corners(way, wire, tops, tracks)
                for way, wire in zip(self.ways, self.wires, strict=True)]  # fmt: skip
        wires = [[(round(x - left, 1), round(y, 1)) for x, y in corners] for corners in ways]
        return Placed(boxes, wires, right - left, y, self.boxes)

    def _line(self, step: tuple) -> Hashable:
        """What is one line between two layers: a value, or what meets in one point."""
        source, value, target = step
        before = source.net if isinstance(source, _Point) else value
        meet = isinstance(target, _Point) and target.net != before
        layer = self._layer(source)
        return (layer, target) if meet else (layer, source, value)

    def _landing(self, step: tuple) -> float:
        """Where a step is drawn to arrive: a little beside its place, if it is straight then."""
        begin, end = self._bottom(step), self._top(step)
        if isinstance(step[2], _Point) or abs(begin - end) > SLIDE:
            return end
        others = [self._top(s) for s in self.above[step[2]] if self._line(s) != self._line(step)]
        return end if any(abs(begin - x) < BESIDE for x in others) else begin

    def _tracks(self, layer: int) -> list[Hashable]:
        """The lines that step aside below a layer, from above; so that few cross."""
        ends: dict[Hashable, tuple[list[float], list[float]]] = {}
        for step in self.steps:
            if self._layer(step[0]) == layer:
                line = ends.setdefault(self._line(step), ([], []))
                line[0].append(self._bottom(step))
                line[1].append(self._landing(step))
        bent = {k: e for k, e in ends.items() if max(e[0] + e[1]) - min(e[0] + e[1]) > STRAIGHT}

        def compare(a: Hashable, b: Hashable) -> float:
            return _cost(bent[a], bent[b]) - _cost(bent[b], bent[a])

        found = sorted(bent, key=lambda k: (min(bent[k][0] + bent[k][1]), repr(k)))
        return sorted(found, key=functools.cmp_to_key(compare))

    def _corners(self, way: list, wire: Wire, tops: list[float], tracks: Mapping) -> list[Point]:
        corners: list[Point] = []
        for a, b in itertools.pairwise(way):
            step = (a, self._value(a, wire), b)
            begin, end = self._bottom(step), self._landing(step)
            if not isinstance(a, _Point):
                corners.append((begin, tops[self.rank[a]] + self.boxes[a].height))
            if self._line(step) in tracks and abs(begin - end) > STRAIGHT:
                y = tracks[self._line(step)]
                corners += [(begin, y), (end, y)]
        return [*corners, (end, tops[self.rank[b]])]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _cost(upper: tuple[list[float], list[float]], lower: tuple[list[float], list[float]]) -> float:
    """What it costs that a line runs above another: crossings, and pieces that would coincide."""
    (above, down), (up, below) = upper, lower
    a, b = (min(above + down), max(above + down)), (min(up + below), max(up + below))
    crossings = sum(b[0] < x < b[1] for x in down) + sum(a[0] < x < a[1] for x in up)
    return crossings + 10 * sum(abs(x - z) < BESIDE / 2 for x in down for z in up)
