"""The picture of a block: all that is in the list of its operations, and nothing overlaps."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refimpl.conventions import shown
from refimpl.models import binary, files, listing
from refimpl.report import diagram, layout
from tests import networks
from tests.command_line import assert_one_line, run

COMMITTED = Path(__file__).parent.parent / "refimpl" / "block.svg"
TITLE = "{http://www.w3.org/2000/svg}title"
BLOCKS = [
    ("react_micro", 0),
    ("didb_micro", 3),
    ("deit_micro", 1),
    ("didb_swin_micro", 1),
    ("swin_micro", 0),
    ("segmenter_didb_micro", 0),
]


def network(name: str):
    return binary.network(files.read_config(name), None)


def texts(page: bytes) -> list[str]:
    return [e.text for e in ElementTree.fromstring(page).iter("{http://www.w3.org/2000/svg}text")]


def test_the_committed_picture_is_what_the_command_draws(tmp_path) -> None:
    file = tmp_path / "block.svg"
    assert run("show", "didb_micro", "--block", 0, "--diagram", file).status == 0
    assert file.read_bytes() == COMMITTED.read_bytes()


def test_it_needs_no_other_file_and_has_a_ground_of_its_own() -> None:
    root = ElementTree.fromstring(COMMITTED.read_bytes())
    tags = {e.tag.rpartition("}")[2] for e in root.iter()}
    assert tags == {"svg", "title", "style", "rect", "text", "g", "path"}
    ground = next(e for e in root if e.tag.endswith("rect"))
    assert ground.attrib["fill"] == "#ffffff"
    assert [ground.attrib[k] for k in ("width", "height")] == [
        root.attrib[k] for k in ("width", "height")
    ]
    assert not any("href" in name for e in root.iter() for name in e.attrib)


@pytest.mark.parametrize(("name", "block"), BLOCKS)
def test_every_operation_is_drawn_once(name, block) -> None:
    """Those of the first projection in full, of the others the output alone."""
    net = network(name)
    entries = listing.entries(net, block)
    parts = diagram._projections(entries)
    inner = {i for begin, end in parts for i in range(begin, end - 1)}
    rows = diagram._block_rows(entries, parts)
    given = [n for row in rows for n in row.gives]
    expected = [e for i, e in enumerate(entries) if i not in inner]
    steps = [s["name"] for e in expected for s in e["inside"]]
    assert sorted(given) == sorted(steps + [n for e in expected for n in e["outputs"]])
    kinds = {n: row.kind for row in rows for n in row.gives}
    taps = {e["name"]: e["tap"] or "real" for e in expected}
    taps |= {s["name"]: s["kind"] for e in expected for s in e["inside"]}
    assert all(kinds[n] == kind for n, kind in taps.items())

    found = texts(diagram.svg(net, block, "a title & more"))
    assert found[0] == "a title & more"
    assert found.count("sign") == sum(row.words == "sign" for row in rows) + 2 * bool(parts)
    headings = [text for text in found if text.startswith("inside every P")]
    first = [entries[begin]["layer"].removeprefix(f"blocks.{block}.") for begin, _ in parts[:1]]
    assert headings == [f"inside every P, here {part}" for part in first]


def test_what_a_binary_block_is_made_of() -> None:
    """By eye, of one block: what [SPEC 6.2] says that it has."""
    words = texts(COMMITTED.read_bytes())
    counts = {"P: 64 → 64": 6, "P: 64 → 256": 1, "P: 256 → 64": 1, "XOR, popcount": 3, "softmax": 1}
    counts |= {"sign": 7, "> ½": 1, "AND, popcount": 1, "RPReLU, by token": 2, "add": 4}
    counts |= {"Haar: low, high": 1, "mean of 8 neighbours": 1, "λs · v − λn · mean": 1}
    assert {word: words.count(word) for word in counts} == counts
    assert not {"RPReLU, by token", "Haar: low, high"} & set(
        texts(diagram.svg(network("react_micro"), 0, ""))
    )


@pytest.mark.parametrize("config", [networks.small(**networks.DIDB), networks.small(block="real")])
def test_words_and_kinds_go_by_no_name(config) -> None:
    made, rows = networks.make(config, 0), []
    for one in (made, networks.renamed(made)[0]):
        entries = listing.entries(one.model.network, 0)
        parts = diagram._projections(entries)
        shown = diagram._block_rows(entries, parts)
        shown += [row for a, b in parts for row in diagram._projection_rows(entries[a:b])]
        rows.append([(row.words, row.shape, row.kind, row.idea) for row in shown])
    assert rows[0] == rows[1]


# --- the layout -----------------------------------------------------------------------------------


def assert_readable(boxes, wires, placed: layout.Placed) -> None:
    """Nothing overlaps; wires run along right angles, downwards, and through no box."""
    areas = {
        n: (x, y, x + boxes[n].width, y + boxes[n].height) for n, (x, y) in placed.boxes.items()
    }
    assert areas.keys() == boxes.keys()
    for (_, a), (_, b) in itertools.combinations(areas.items(), 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
    for wire, corners in zip(wires, placed.wires, strict=True):
        (x, y), (to_x, to_y) = corners[0], corners[-1]
        source, target = areas[wire.source], areas[wire.target]
        assert source[0] < x < source[2] and abs(y - source[3]) < 0.1
        assert target[0] < to_x < target[2] and abs(to_y - target[1]) < 0.1
        for (ax, ay), (bx, by) in itertools.pairwise(corners):
            assert ay <= by and min(abs(ax - bx), abs(ay - by)) < 0.6
            for left, top, right, bottom in areas.values():
                beside = max(ax, bx) <= left or min(ax, bx) >= right
                assert beside or by <= top + 0.1 or ay >= bottom - 0.1
    assert max(area[2] for area in areas.values()) <= placed.width + 0.1
    assert max(area[3] for area in areas.values()) <= placed.height + 0.1


COVERING = list(networks.covering().items())[::4]  # values of all fields, a part of them


@pytest.mark.parametrize("config", [c for _, c in COVERING], ids=[name for name, _ in COVERING])
def test_no_wire_runs_through_a_box(config) -> None:
    net = binary.network(config, None)
    entries = listing.entries(net, 0)
    diagram.svg(net, 0, "")
    rows = diagram._block_rows(entries, diagram._projections(entries))
    drawn = diagram._Drawing(diagram._stacked(rows), "", diagram._branches(net))
    assert_readable(drawn.sizes, drawn.wires, drawn.placed)
    read = {name for row in rows for name in row.reads}
    assert {n for row in rows for n in row.gives} - read == {"blocks.0.out"}  # no loose ends
    assert {n for e in entries for n in e["inputs"]} - read == {
        n for begin, end in diagram._projections(entries) for e in entries[begin + 1 : end]
        for n in e["inputs"]
    }  # fmt: skip


@st.composite
def graphs(draw):
    """Boxes in some order, and wires from earlier to later ones."""
    count = draw(st.integers(2, 9))
    sizes = st.floats(30, 200)
    boxes = {
        f"b{i}": layout.Box(draw(sizes), draw(sizes), (f"v{i}", f"w{i}")) for i in range(count)
    }
    pairs = list(itertools.combinations(range(count), 2))
    chosen = draw(st.lists(st.sampled_from(pairs), min_size=1, unique=True))
    wires = [layout.Wire(f"{draw(st.sampled_from('vw'))}{a}", f"b{a}", f"b{b}") for a, b in chosen]
    return boxes, wires


@given(graphs())
def test_any_graph_is_laid_out(graph) -> None:
    boxes, wires = graph
    assert_readable(boxes, wires, layout.place(boxes, wires))


def test_layers_follow_the_longest_way() -> None:
    wires = [layout.Wire(a, a, b) for a, b in ("ab", "bc", "ac", "dc")]
    assert layout.layers("abcd", wires) == {"a": 0, "b": 1, "c": 2, "d": 1}
    assert layout.layers("abcd", wires, [["b", "d"]]) == {"a": 0, "b": 1, "c": 2, "d": 1}
    assert layout.layers("abcde", [*wires, layout.Wire("b", "b", "e")], [["e", "c"]])["c"] == 2


@given(st.lists(st.tuples(st.floats(-50, 50), st.floats(0.1, 10), st.floats(0, 20)), min_size=1))
def test_spread_is_the_nearest_in_order(items) -> None:
    """Against small moves: none of them that keeps the gaps is nearer to what is wanted."""
    wanted, weights, gaps = map(list, zip(*items, strict=True))
    places = layout.spread(wanted, weights, gaps)
    assert all(b - a >= gap - 1e-9 for a, b, gap in zip(places, places[1:], gaps[1:], strict=False))

    def cost(found):
        return sum(w * (x - want) ** 2 for x, want, w in zip(found, wanted, weights, strict=True))

    for begin, end in itertools.combinations(range(len(places) + 1), 2):
        for step in (-0.01, 0.01):
            moved = [x + step * (begin <= i < end) for i, x in enumerate(places)]
            pairs = zip(moved, moved[1:], gaps[1:], strict=False)
            if all(b - a >= gap - 1e-9 for a, b, gap in pairs):
                assert cost(moved) >= cost(places) - 1e-6


# --- the command ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["didb_micro", "react_micro", "segmenter_didb_micro"])
def test_a_network_of_another_size_is_drawn_as_one_of_its_own(name, tmp_path) -> None:
    """Token shifts are interpolated there, which no image waits for."""
    drawn = []
    for size in (56, 112):
        file = tmp_path / f"{size}.svg"
        result = run("show", name, "--image-size", size, "--block", 0, "--diagram", file)
        assert result.status == 0, result.err
        drawn.append(file.read_text())
    boxes = [text.count("<rect") for text in drawn]
    assert boxes[0] == boxes[1] > 10 and "resize" not in "".join(drawn)


@pytest.mark.parametrize("name", [b"caf\xe9", b"a\x01b\x1b", b"<&>"])
def test_a_name_that_is_no_xml(tmp_path, name) -> None:
    title = f"Block 0 of {os.fsdecode(name)}"
    (shown_as,) = ElementTree.fromstring(diagram.svg(network("didb_micro"), 0, title)).iter(TITLE)
    assert shown_as.text == shown(title)


def test_what_the_command_refuses(tmp_path) -> None:
    file = tmp_path / "block.svg"
    show = ("show", "didb_micro", "--diagram")
    assert_one_line(run(*show, tmp_path / "block.png"), "block.png", ".svg")
    assert_one_line(run(*show, file, "--backward"), "--backward", "forward")
    assert_one_line(run(*show, file, "--block", 4), "block is 4", "0 to 3")
    assert not list(tmp_path.iterdir())
    file.write_text("mine")
    assert_one_line(run(*show, file), "block.svg", "exists")
    assert file.read_text() == "mine"
    assert run(*show, file, "--force").status == 0
    assert file.read_bytes() == COMMITTED.read_bytes()
