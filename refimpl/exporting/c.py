"""A network as C99: a header and a source that needs memcpy and math.h alone.

The source is written from the list of nodes: a call of a function of `ops.c` for every node, the
parameters as constant arrays, all values in static arrays whose places are used again once their
last reader has run. `OPS` has one function an operation, which writes the call.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from typing import Any, NamedTuple

import numpy as np

from refimpl import disk, ops
from refimpl.exporting import places
from refimpl.exporting.places import Block, Place
from refimpl.exporting.source import Source, require_ops
from refimpl.models import packing
from refimpl.models.nodes import INPUT, Network, Node

WIDTH = 96  # columns of a line of numbers
# Operations that only look at a value in another way, of which nothing is computed.
VIEWS = ("identity", "fit", "drop_class_token")
# Those of a run from scores to context, which is computed head after head.
OF_HEADS = (
    "matmul", "divide", "band_sum", "position_bias", "softmax", "window_softmax",
    "boolean_attention",
)  # fmt: skip


def write(path: str | os.PathLike, source: Source, *, overwrite: bool = False) -> str:
    """Write `<name>.h` and `<name>.c` into a folder -> a line that says what they need.

    OutputError where the folder exists, with `overwrite` where it is no such export; ExportError
    for an operation that is not held. Nothing is written then.
    """
    program = Program(source)
    texts = {f"{source.name}.h": program.header(), f"{source.name}.c": program.text()}
    contents = {name: text.encode() for name, text in texts.items()}
    disk.write_folder(path, contents, overwrite=overwrite)
    return f"{os.fspath(path)}: {program.function}, {program.needs}"


class Constant(NamedTuple):
    """An array of the program that never changes."""

    name: str
    array: np.ndarray  # float32, uint32 or uint8; of words uint64

    def __str__(self) -> str:
        return self.name


class Call(NamedTuple):
    """A line of the program."""

    function: str  # "" of a line that is no call
    args: tuple[Any, ...]
    taps: bool  # in a program that shows its values alone
    depth: int = 1  # of indentation


class Loop(NamedTuple):
    """A run of nodes that is computed for each head of each window, number `k`."""

    last: int  # index of its last node
    batch: int  # windows
    heads: int
    begin: int  # its first line
    outside: set[Block]  # that live before it or behind it, too
    made: list[str]  # values that hold one head alone


class Program:
    """The program of a network, made in one walk along its list."""

    def __init__(self, source: Source):
        self.source, self.network = source, source.network
        nodes = [node for node in self.network.nodes if node.inputs]
        require_ops(nodes, OPS, "C")
        self.calls: list[Call] = []
        self.parameter_taps: list[Call] = []
        self.constants: dict[str, Constant] = {}
        self.blocks: list[Block] = []
        self.moved: dict[str, tuple[Place, Constant]] = {}  # see `_later`
        self.later = _later(self.network)
        self.roots = _roots(self.network, self.later)
        self.last_read = _last_reads(self.network, self.roots)
        self.layer = ""
        self.loop: Loop | None = None
        self.values: dict[str, Place] = {INPUT: Place(Block("image", self.count(INPUT)), 0)}
        loops = _loops(self.network)
        for index, node in enumerate(self.network.nodes):
            self.index = index
            if index in loops:
                self.begin_loop(loops[index])
            if node.inputs:
                self.add(node)
            if self.loop and index == self.loop.last:
                self.end_loop()
        self.sizes = places.arrange(self.blocks)

    def add(self, node: Node) -> None:
        """Add the lines of a node, below the name of its layer."""
        if node.layer != self.layer:
            self.layer = node.layer
            self.line("")
            self.line(f"/* {node.layer} */")
        OPS[node.op](self, node)
        self.show(node)

    def begin_loop(self, last: int) -> None:
        """Begin the run of nodes up to `last`, which is computed for each head of each window."""
        batch, heads, *_ = self.shape(self.network.nodes[last].name)
        begin = len(self.calls)
        self.line("")
        self.line(f"for (int k = 0; k < {batch * heads}; k++) {{")
        self.loop = Loop(last, batch, heads, begin, set(), [])
        self.line("tap_part = k;", taps=True)

    def end_loop(self) -> None:
        """End it: what lives outside of it too lives throughout."""
        self.line("tap_part = 0;", taps=True)
        for block in self.loop.outside:
            block.use(self.loop.begin)
            block.use(len(self.calls))
        self.loop = None
        self.line("}")

    # --- values ---

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a value for one image; in a loop of one head."""
        shape = self.network.shape(name)
        return (1, 1, *shape[2:]) if self.loop else shape

    def count(self, name: str) -> int:
        return math.prod(self.shape(name))

    def rows(self, name: str) -> tuple[int, int]:
        """Rows of a value, and numbers in a row."""
        *rows, n = self.shape(name)
        return math.prod(rows), n

    def place(self, name: str) -> Place:
        """Where a value lies; in a loop the part of a head, where it holds all of them."""
        place = self.values[name]
        if self.loop is None or name in self.loop.made:
            return place
        rows, n = self.rows(name)
        self.loop.outside.add(place.block)
        each = rows * -(-n // packing.WORD) if place.block.array == "words" else rows * n
        return place._replace(step=each)

    def is_bits(self, name: str) -> bool:
        return self.place(name).block.array == "words"

    def new(self, array: str, size: int) -> Place:
        """A place of its own in "numbers" or "words"."""
        block = Block(array, size)
        self.blocks.append(block)
        return Place(block, 0)

    def out(self, name: str) -> Place:
        """A place of its own for a value that a node gives."""
        size = self.count(name)
        if name == self.network.output:
            self.values[name] = Place(Block("logits", size), 0)
        elif self.loop and self.index == self.loop.last:
            self.values[name] = self.new("numbers", size * self.loop.batch * self.loop.heads)
        else:
            self.values[name] = self.new("numbers", size)
            if self.loop:
                self.loop.made.append(name)
        return self.place(name)

    def shown(self, name: str) -> Place:
        """A place for a value that is there for whoever sees values alone."""
        self.values[name] = place = self.new("shown", self.count(name))
        return place

    def over(self, node: Node, name: str) -> Place:
        """The place of an input, which the output takes: of a copy, where it is read again."""
        x, size = self.place(name), self.count(name)
        last = self.last_read[self.roots[name]] == self.index
        whole = x.offset == 0 and x.block.size == size and x.block.array == "numbers"
        if last and whole and x.step == 0 and node.name != self.network.output:
            self.values[node.name] = x
            if self.loop:
                self.loop.made.append(node.name)
            return x
        y = self.out(node.name)
        self.call("memcpy", y, x, f"sizeof(float) * {size}")
        return y

    # --- constants ---

    def constant(self, name: str, array: np.ndarray) -> Constant:
        """An array of the program, by a dotted name; of the same name the same one."""
        name = re.sub(r"\W", "__", name)  # q.move is another one than q_move
        return self.constants.setdefault(name, Constant(name, array))

    def param(self, node: Node, position: int) -> Constant | str:
        """A parameter of a node as it is; NULL where there is none."""
        if position >= len(node.params):
            return "NULL"
        name = node.params[position]
        return self.constant(name, self.source.array(name))

    def params(self, node: Node) -> list[Constant | str]:
        return [self.param(node, position) for position in range(len(node.params))]

    def matrix(self, node: Node) -> Constant:
        """The weight of a real linear map, (I, O)."""
        name = node.params[0]
        weight = self.source.array(name)
        return self.constant(name, weight.reshape(len(weight), -1).T)

    # --- calls ---

    def line(self, text: str, taps: bool = False) -> None:
        """Add a line that is no call."""
        self.calls.append(Call("", (text,), taps, 2 if self.loop else 1))

    def call(self, function: str, *args: Any, taps: bool = False) -> None:
        """Add a line; where its arguments lie is known when all lines are."""
        for arg in args:
            if isinstance(arg, Place):
                arg.block.use(len(self.calls))
        self.calls.append(Call(function, args, taps, 2 if self.loop else 1))

    def show(self, node: Node) -> None:
        """Let whoever wants to see values see the outputs of a node."""
        kind = {"reader": "real", "gradient": ""}.get(node.tap, node.tap)
        for name in node.outputs if kind else ():
            self.dump(kind, name, self.place(name), self.network.shape(name))

    def dump(self, kind: str, name: str, place: Place | Constant, shape: Sequence[int]) -> None:
        """Add a line that shows a value of a kind of [SPEC 8.1]; the shape is that of all heads."""
        if kind == "bit":
            shape = (*shape[:-1], -(-shape[-1] // packing.WORD))
        rest = "".join(f" {side}," for side in shape[1:]).removesuffix(",")
        letter = {"real": "'f'", "int": "'i'", "bit": "'u'"}[kind]
        parts = self.loop.batch * self.loop.heads if self.loop else 1
        args = place, shape[0], f'"{rest}"', math.prod(shape) // parts
        if isinstance(place, Constant):
            letter = letter.replace("u", "U")  # weights are by words, see `whole_numbers`
            self.parameter_taps.append(Call("tap", (f'"{name}"', letter, *args), True))
        else:
            self.call("tap", f'"{name}"', letter, *args, taps=True)

    # --- text ---

    @property
    def function(self) -> str:
        verb = "classify" if self.source.model.config.task == "classification" else "segment"
        return f"{self.source.name}_{verb}"

    @property
    def needs(self) -> str:
        constants = sum(constant.array.nbytes for constant in self.constants.values())
        ram = 4 * self.sizes["numbers"] + 8 * self.sizes["words"]
        return f"{ram:,} bytes of RAM, {constants:,} bytes of constants"

    def declaration(self) -> str:
        return f"int {self.function}(const float *image, float *logits)"

    def header(self) -> str:
        config, name = self.source.model.config, self.source.name
        guard = f"{name.upper()}_H"
        return (
            f"/* {self._about()}\n */\n#ifndef {guard}\n#define {guard}\n\n"
            f"#define {name.upper()}_PIXELS {self.count(INPUT)}"
            f" /* {' x '.join(map(str, self.shape(INPUT)[1:]))} */\n"
            f"#define {name.upper()}_LOGITS {math.prod(config.logits_shape)}\n\n"
            f'#ifdef __cplusplus\nextern "C"\n#endif\n{self.declaration()};\n\n#endif\n'
        )

    def _about(self) -> str:
        config, prepared = self.source.model.config, self.source.model.preprocessing
        channels, height, width = self.shape(INPUT)[1:]
        answer = "class, the first of equal ones, or"
        if config.task == "segmentation":
            answer = "0, or"
        images = f"image ({channels}, {height}, {width})"
        lines = [
            f"{self.source.name}: written by refimpl export from a model file of the SHA-256",
            self.source.sha256,
            "",
            f"RAM    {self.needs.split(' of RAM')[0]}, in static arrays; the stack stays small",
            f"Flash  {self.needs.split(', ', 1)[1]}, beside the code (see size)",
            "",
            f"{self.function}: {images} -> logits {config.logits_shape}",
            f"    returns the {answer} -1 where a pixel or a logit is no finite number.",
            "    Values lie in static arrays: one call at a time.",
        ]
        if prepared is not None:
            mean, std = (", ".join(map(str, v)) for v in (prepared.mean, prepared.std))
            value = "1 - value" if prepared.invert else "value"
            size = " x ".join(map(str, prepared.size))
            lines += [
                f"    It reads a picture in {prepared.mode}, the middle {prepared.crop:g} of each",
                f"    side, {prepared.resampling} to {size}, and of a pixel, value in 0 ... 1,",
                f"    ({value} - mean) / std: mean {mean}, std {std}",
            ]
        lines += [
            "",
            "Compile without contraction to fused multiply-adds, which round once where the",
            f"reference rounds twice: cc -std=c99 -O2 -ffp-contract=off -c {self.source.name}.c",
            "-DPOPCOUNT_TABLE, -DPOPCOUNT_BUILTIN: how bits are counted (default: AVX2 where the",
            "compiler may use it, else the builtin where there is one). -DTAPS: a program that",
            f"shows every value: {self.source.name} input_0.npy FOLDER",
        ]
        return "\n".join(f" * {line}".rstrip() for line in lines)[3:]

    def text(self) -> str:
        """The source file."""
        head, functions, for_taps = _functions(
            {call.function for call in self.calls if not call.taps},
            {call.function for call in self.calls},
        )
        shown = [f"static float shown[{self.sizes['shown']}];"] * bool(self.sizes["shown"])
        parts = [
            f"/* {self._about()}\n */\n#ifdef __clang__\n#pragma STDC FP_CONTRACT OFF\n#endif\n",
            f'#include "{self.source.name}.h"\n',
            *(f"{piece}\n" for piece in (head, *functions)),
            "#ifdef TAPS",
            *(f"{piece}\n" for piece in (*for_taps, *shown)),
            _resource("taps.c").rstrip(),
            "#endif\n",
            "/* --- parameters --- */\n",
            *(_constant(constant) for constant in self.constants.values()),
            "/* --- the network --- */\n",
            *self._network(),
            "#ifdef TAPS",
            *self._main(),
            "#endif\n",
        ]
        return "\n".join(parts)

    def _network(self) -> list[str]:
        """The function that is the network, below the arrays in which its values lie."""
        config = self.source.model.config
        answer = _ARGMAX if config.task == "classification" else _FINITE
        arrays = [
            f"static {c_type} {array}[{self.sizes[array]}];"
            for array, c_type in (("numbers", "float"), ("words", "word"))
            if self.sizes[array]
        ]
        return [
            *arrays,
            f"\n{self.declaration()}\n{{",
            "    int i;",
            f"    for (i = 0; i < {self.count(INPUT)}; i++)",
            "        if (!isfinite(image[i]))",
            "            return -1;",
            *_in_sections(self.calls, [self._line(call) for call in self.calls]),
            answer.replace("COUNT", str(math.prod(config.logits_shape))),
            "}\n",
        ]

    def _main(self) -> list[str]:
        """The program that shows values."""
        shape = "".join(f", {side}" for side in self.shape(INPUT)[1:])
        return [
            f"#define PIXELS {self.count(INPUT)}",
            f"#define LOGITS {math.prod(self.source.model.config.logits_shape)}",
            f'#define SHAPE "{shape})"',
            f"#define RUN {self.function}\n",
            "static void tap_parameters(void)",
            "{",
            *map(self._line, self.parameter_taps),
            "}\n",
            _resource("main.c").strip(),
        ]

    def _line(self, call: Call) -> str:
        if not call.function:
            text = str(call.args[0])
        else:
            text = f"{call.function}({', '.join(map(_argument, call.args))});"
        return f"{'    ' * call.depth}{text}" if text else ""


_FINITE = """
    for (i = 0; i < COUNT; i++)
        if (!isfinite(logits[i]))
            return -1;
    return 0;"""
_ARGMAX = """
    {
        int best = 0;
        for (i = 0; i < COUNT; i++) {
            if (!isfinite(logits[i]))
                return -1;
            if (logits[i] > logits[best])
                best = i;
        }
        return best;
    }"""


def _in_sections(calls: Sequence[Call], lines: Sequence[str]) -> list[str]:
    """Lines with those that show values between #ifdef TAPS and #endif."""
    found, taps = [], False
    for call, line in zip(calls, lines, strict=True):
        if call.taps != taps:
            found.append("#ifdef TAPS" if call.taps else "#endif")
        taps = call.taps
        found.append(line)
    return [*found, "#endif"] if taps else found


def _argument(value: Any) -> str:
    if isinstance(value, float):
        return _float(np.float32(value))
    return str(int(value)) if isinstance(value, bool) else str(value)


def _float(value: np.float32) -> str:
    text = f"{value:.9g}"
    return f"{text}f" if "." in text or "e" in text else f"{text}.0f"


_TYPES = {
    "float32": ("float", _float),
    "uint64": ("word", lambda value: f"0x{value:x}u"),
    "uint32": ("uint32_t", str),
    "uint8": ("unsigned char", str),
}


def _constant(constant: Constant) -> str:
    c_type, text = _TYPES[constant.array.dtype.name]
    lines, line = [], ""
    for value in constant.array.ravel():
        word = f"{text(value)},"
        if len(line) + len(word) >= WIDTH:
            lines.append(line)
            line = ""
        line += f" {word}" if line else f"    {word}"
    lines.append(line.removesuffix(","))
    numbers = "\n".join(lines)
    return f"static const {c_type} {constant.name}[{constant.array.size}] = {{\n{numbers}\n}};\n"


def _resource(name: str) -> str:
    return (resources.files("refimpl.exporting") / name).read_text(encoding="utf-8")


def _functions(called: set[str], with_taps: set[str]) -> tuple[str, list[str], list[str]]:
    """What `ops.c` begins with, its functions that are called, and those that only taps call."""
    text = _resource("ops.c")
    head, body = text[text.index("#include") :].split("\n\n/* --- ", maxsplit=1)
    # a function, or several between #if and #endif, with the comment above
    defined = {
        piece: set(re.findall(r"^(?:static|OPERATION) \w+ (\w+)\(", piece, re.MULTILINE))
        for piece in body.strip().split("\n\n")
    }
    always, all_ = _needed(defined, called), _needed(defined, with_taps)
    return head, always, [piece for piece in all_ if piece not in always]


def _needed(defined: Mapping[str, set[str]], called: set[str]) -> list[str]:
    """The pieces of code that define what is called, by the lines or by each other."""
    wanted, before = set(called), set()
    while wanted != before:
        before = set(wanted)
        for piece, names in defined.items():
            if names & before:
                wanted |= set(re.findall(r"\b(\w+)\(", piece))
    return [piece for piece, names in defined.items() if names & wanted]


def _loops(network: Network) -> dict[int, int]:
    """Indices of the first and the last node of each run from scores to context."""
    found, i = {}, 0
    while i < len(network.nodes):
        end = i
        while end < len(network.nodes) and network.nodes[end].op in OF_HEADS:
            end += 1
        if end > i and network.nodes[i].op == "matmul":
            found[i] = end - 1
        i = max(end, i + 1)
    return found


def _later(network: Network) -> set[str]:
    """Values that signs alone read, x + move and its heads: bits are made of x itself."""
    found: set[str] = set()
    for node in reversed(network.nodes):
        readers = [network.nodes[i] for i, _ in network.readers.get(node.name, ())]
        if node.op in ("shift", "split_heads") and all(_is_sign(r, found) for r in readers):
            found.add(node.name)
    makers = {name: network.nodes[network.maker[name]] for name in found}
    # heads of what is moved, not of windows
    return {n for n, node in makers.items() if node.op == "shift" or node.inputs[0] in found}


def _is_sign(reader: Node, later: set[str]) -> bool:
    binary = reader.op == "binary_linear" and reader.attributes["binarize"] == "full"
    return binary or reader.op == "sign" or reader.name in later


def _roots(network: Network, later: set[str]) -> dict[str, str]:
    """Value -> the one in whose place it lies, or of which it is made when it is read."""
    roots = {INPUT: INPUT}
    for node in network.nodes:
        view = node.op in VIEWS or (node.op == "pool" and node.attributes["pool"] == "cls")
        for name in node.outputs:
            made = (view or name in later) and node.inputs
            roots[name] = roots[node.inputs[0]] if made else name
    return roots


def _last_reads(network: Network, roots: dict[str, str]) -> dict[str, int]:
    return {roots[name]: i for i, node in enumerate(network.nodes) for name in node.inputs}


# --- operations -----------------------------------------------------------------------------------


def _view(p: Program, node: Node, offset: int = 0) -> None:
    x = p.place(node.inputs[0])
    p.values[node.name] = x._replace(offset=x.offset + offset)


def _elements(p: Program, node: Node, *options: Any) -> None:
    """An operation on single elements."""
    (x,) = node.inputs
    p.call(node.op, p.over(node, x), p.count(x), *options)


def _of_rows(p: Program, node: Node, *options: Any, function: str = "") -> None:
    """An operation on rows of channels, with parameters a channel."""
    (x,) = node.inputs
    p.call(function or node.op, p.over(node, x), *p.params(node), *p.rows(x), *options)


def _add(p: Program, node: Node) -> None:
    first, *others = node.inputs
    out, (rows, outputs) = p.over(node, first), p.rows(first)
    for other in others:
        fitted = p.network.nodes[p.network.maker[other]]
        inputs = p.rows(fitted.inputs[0])[1] if fitted.op == "fit" else outputs
        if inputs == outputs:
            p.call("add", out, p.place(other), rows * outputs)
        else:
            function = "add_repeated" if inputs < outputs else "add_means"
            p.call(function, out, p.place(other), rows, inputs, outputs)


def _of_head(p: Program, table: Constant) -> str:
    """The number of a constant array that is this head's."""
    return f"{table}[k % {p.loop.heads}]"


def _band_sum(p: Program, node: Node) -> None:
    low, high = node.inputs
    weight, root = p.param(node, 0), math.sqrt(node.attributes["head_dim"])
    weights = _of_head(p, weight), f"{weight}[{p.loop.heads} + k % {p.loop.heads}]"
    p.call("band_sum", p.over(node, low), p.place(high), *weights, p.count(low), root)


def _bands(p: Program, node: Node) -> None:
    (x,), (low, high) = node.inputs, (p.out(name) for name in node.outputs)
    (gh, gw), mode = node.attributes["grid"], node.attributes["mode"]
    (rows, n), place = p.rows(x), p.place(x)
    first = rows - gh * gw
    if mode == "none":
        p.call("memcpy", low, place, f"sizeof(float) * {rows * n}")
        p.call("memcpy", high, place, f"sizeof(float) * {rows * n}")
    else:
        p.call("bands", place, first, gh, gw, n, mode == "periodic", low, high)
    if first and node.attributes["cls"] == "low":
        p.call("zero", high, first * n)


def _batch_norm(p: Program, node: Node) -> None:
    x = node.inputs[0]
    weight, bias, mean = (p.param(node, i) for i in range(3))
    variance = p.source.array(node.params[3]).astype(np.float64)
    std = np.sqrt(variance + node.attributes["eps"]).astype(np.float32)
    std = p.constant(f"{node.params[3]}.std", std)
    p.call("batch_norm", p.over(node, x), weight, bias, mean, std, *p.rows(x))


def _binary_linear(p: Program, node: Node) -> None:
    x, path, stage = node.inputs[0], node.params[0], node.attributes["binarize"]
    (rows, inputs), (_, outputs) = p.rows(x), p.rows(node.name)
    if stage != "none":
        bits = p.new("words", rows * -(-inputs // packing.WORD))
        if x in p.moved:
            p.call("sign_moved", *p.moved[x], rows, inputs, bits)
        else:
            p.call("sign", p.place(x), rows, inputs, bits, taps=stage == "activations")
        p.dump("bit", node.inside["bit"], bits, p.shape(x))
    if stage != "full":
        place = p.place(x)
        if stage == "activations":
            place = p.over(node, x)
            p.call("sign_values", place, p.count(x))
        out = p.out(node.name)
        p.call("linear", place, p.matrix(node), "NULL", rows, inputs, outputs, out)
        return
    bit, scale = p.source.matrix(path)
    words = packing.pack_rows(bit).view("<u8").astype(np.uint64).T  # by words, see `whole_numbers`
    weight = p.constant(f"{path}.bits", words)
    scale = p.constant(f"{path}.scale", scale)
    out = p.out(node.name)
    p.dump("bit", node.inside["weight.bit"], weight, bit.shape)
    p.dump("real", node.inside["weight.scale"], scale, (outputs,))
    sizes = (rows, inputs, outputs, out)
    p.call("binary_linear", bits, weight, "NULL", *sizes, taps=True)
    p.dump("int", node.inside["int"], out, p.shape(node.name))
    p.call("binary_linear", bits, weight, scale, *sizes)


def _boolean_attention(p: Program, node: Node) -> None:
    prob, value = node.inputs
    *_, n, d = p.shape(node.name)
    differences = node.attributes["context"] == "differences"
    place, out = p.place(prob), p.out(node.name)
    if node.attributes["binarize"] == "none":
        p.call("matmul", place, p.place(value), n, d, n, out)
        if differences:
            p.call("minus_own", out, place, p.place(value), n, d)
        return
    alpha, shape = p.source.array(node.params[0]), p.network.shape(prob)
    steps = np.broadcast_to(ops.boolean.step_of(alpha).reshape(-1), (p.loop.heads,))
    step = _of_head(p, p.constant(f"{node.params[0]}.step", steps))
    p.call("divide", place, n * n, step)
    p.dump("real", node.inside["prob.z"], place, shape)
    bits = p.new("words", n * -(-n // packing.WORD))
    p.call("above_half", place, n, n, bits)
    p.dump("bit", node.inside["prob.bit"], bits, shape)
    sizes = n, d, differences, out
    p.call("boolean_attention", bits, p.place(value), 1.0, *sizes, taps=True)
    p.dump("int", node.inside["context.int"], out, p.network.shape(node.name))
    p.call("boolean_attention", bits, p.place(value), step, *sizes)


def _on_grid(p: Program, node: Node, *options: Any) -> None:
    """An operation on the patch grid, which may have tokens in front."""
    x, (gh, gw) = node.inputs[0], node.attributes["grid"]
    rows, n = p.rows(x)
    p.call(node.op, p.place(x), rows - gh * gw, gh, gw, n, *options, p.out(node.name))


def _box(p: Program, node: Node) -> None:
    x, a = node.inputs[0], node.attributes
    sizes = (*a["grid"], p.rows(x)[1], a["side"], a["axis"])
    p.call("box", p.place(x), *sizes, p.out(node.name))


def _class_token(p: Program, node: Node) -> None:
    x = node.inputs[0]
    p.call("class_token", p.place(x), p.param(node, 0), *p.rows(x), p.out(node.name))


def _convolution(p: Program, node: Node) -> None:
    x, name = node.inputs[0], node.params[0]
    weight = p.source.array(name).transpose(2, 3, 1, 0)  # (3, 3, I, O)
    weight = p.constant(name, weight)
    sizes = (*node.attributes["grid"], p.rows(x)[1], p.rows(node.name)[1])
    p.call("convolution", p.place(x), weight, p.param(node, 1), *sizes, p.out(node.name))


def _differential(p: Program, node: Node) -> None:
    value, mean = node.inputs
    args = p.place(value), *p.params(node), *p.rows(value)
    p.call("differential", p.over(node, mean), *args)


def _interpolate(p: Program, node: Node) -> None:
    x = node.inputs[0]
    _, maps, h, w = p.shape(x)
    size, tables = node.attributes["size"], []
    for axis, old, new in (("rows", h, size[0]), ("columns", w, size[1])):
        first, second, share = ops.interpolate.between(old, new)
        pairs = np.stack([first, second], axis=1).astype(np.uint32)
        tables.append(p.constant(f"{node.name}.{axis}", pairs))
        tables.append(p.constant(f"{node.name}.{axis}.share", share.astype(np.float32)))
    p.call("interpolate", p.place(x), *tables, maps, h, w, *size, p.out(node.name))


def _layer_scale(p: Program, node: Node) -> None:
    x = node.inputs[0]
    params = p.param(node, 0), p.param(node, 1)
    p.call("layer_scale", p.over(node, x), *params, *p.rows(x))


def _linear(p: Program, node: Node) -> None:
    x = node.inputs[0]
    (rows, inputs), (_, outputs) = p.rows(x), p.rows(node.name)
    params = p.matrix(node), p.param(node, 1)
    p.call("linear", p.place(x), *params, rows, inputs, outputs, p.out(node.name))


def _matmul(p: Program, node: Node) -> None:
    a, b = node.inputs
    function = "binary_matmul" if p.is_bits(a) else "matmul"
    sizes = (*p.shape(node.name)[2:], p.shape(a)[-1])
    p.call(function, p.place(a), p.place(b), *sizes, p.out(node.name))


def _merge_heads(p: Program, node: Node) -> None:
    x = node.inputs[0]
    batch, heads, tokens, d = p.shape(x)
    p.call("merge_heads", p.place(x), batch, tokens, heads, d, p.out(node.name))


def _patch_embed(p: Program, node: Node) -> None:
    x, (channels, height, width) = node.inputs[0], p.shape(node.inputs[0])[1:]
    side = p.source.array(node.params[0]).shape[-1]
    params = p.matrix(node), p.param(node, 1)
    sizes = (channels, height // side, width // side, side, p.rows(node.name)[1])
    p.call("patch_embed", p.place(x), *params, *sizes, p.out(node.name))


def _pool(p: Program, node: Node) -> None:
    if node.attributes["pool"] == "cls":
        return _view(p, node)
    x = node.inputs[0]
    return p.call("mean_of_rows", p.place(x), *p.rows(x), p.out(node.name))


def _position_bias(p: Program, node: Node) -> None:
    x, heads = node.inputs[0], p.loop.heads
    table = f"{p.param(node, 0)} + k % {heads}"
    p.call("position_bias", p.over(node, x), table, heads, math.isqrt(p.shape(x)[-1]))


def _position_embedding(p: Program, node: Node) -> None:
    x = node.inputs[0]
    p.call("add", p.over(node, x), p.param(node, 0), p.count(x))


def _rprelu(p: Program, node: Node) -> None:
    _of_rows(p, node, function="rprelu_tokens" if len(node.params) > 3 else "rprelu")


def _shift(p: Program, node: Node) -> None:
    x, move = node.inputs[0], p.param(node, 0)
    later = node.name in p.later
    out = p.shown(node.name) if later else p.out(node.name)
    p.call("shift", p.place(x), move, *p.rows(x), out, taps=later)
    if later:
        p.moved[node.name] = p.place(x), move


def _sign(p: Program, node: Node) -> None:
    x, (rows, n) = node.inputs[0], p.rows(node.inputs[0])
    p.values[node.name] = out = p.new("words", rows * -(-n // packing.WORD))
    if x not in p.moved:
        p.call("sign", p.place(x), rows, n, out)
        return
    split = p.network.nodes[p.network.maker[x]]
    transposed, (_, tokens, channels) = split.attributes["transposed"], p.shape(split.inputs[0])
    heads = split.attributes["heads"]
    function = "sign_heads_transposed" if transposed else "sign_heads"
    p.call(function, *p.moved[x], tokens, heads, channels // heads, out)


def _split(p: Program, node: Node) -> None:
    x = node.inputs[0]
    rows, n = p.rows(x)
    for i, name in enumerate(node.outputs):
        each = n // node.attributes["parts"]
        p.call("split", p.place(x), rows, n, i * each, each, p.out(name))


def _split_heads(p: Program, node: Node) -> None:
    x, heads = node.inputs[0], node.attributes["heads"]
    batch, tokens, n = p.shape(x)
    function = "split_heads_transposed" if node.attributes["transposed"] else "split_heads"
    later = node.name in p.later
    out = p.shown(node.name) if later else p.out(node.name)
    p.call(function, p.place(x), batch, tokens, heads, n // heads, out, taps=later)
    if later:
        p.moved[node.name] = p.moved[x]


def _softmax(p: Program, node: Node) -> None:
    x = node.inputs[0]
    p.call("softmax", p.over(node, x), *p.rows(x))


def _window_softmax(p: Program, node: Node) -> None:
    x, a, (gh, gw) = node.inputs[0], node.attributes, node.attributes["grid"]
    rows, columns = np.indices((gh, gw)) < a["shift"]
    side = (2 * rows + columns).reshape(1, -1, 1).astype(np.float64)
    side = ops.windows.forward(side, **a)[0].astype(np.uint8)
    side = p.constant(f"side.{gh}.{gw}.{a['window']}.{a['shift']}", side)
    keys = p.shape(x)[-1]
    own = f"{side} + k / {p.loop.heads} * {keys}"
    p.call("window_softmax", p.over(node, x), own, keys)


def _transposed(p: Program, node: Node) -> None:
    """Tokens as maps, or maps as tokens."""
    x, rows = node.inputs[0], p.shape(node.inputs[0])[1]
    n = p.count(x) // rows
    p.call("split_heads_transposed", p.place(x), 1, rows, 1, n, p.out(node.name))


def _gather(p: Program, node: Node) -> None:
    """Tokens in another order: the operation itself says which, on their numbers."""
    x, a = node.inputs[0], node.attributes
    n = p.shape(x)[-1]
    rows = p.count(x) // n
    numbers = np.arange(float(rows)).reshape(*p.shape(x)[:-1], 1)
    order = getattr(ops, node.op).forward(numbers, **a)[0].reshape(-1).astype(np.uint32)
    sizes = ".".join(str(v) for v in (*a["grid"], a.get("window", 2), a.get("shift", 0)))
    order = p.constant(f"{node.op}.{sizes}", order)
    p.call("gather", p.place(x), order, rows, n, p.out(node.name))


OPS: dict[str, Callable[[Program, Node], None]] = {
    "add": _add,
    "band_sum": _band_sum,
    "bands": _bands,
    "batch_norm": _batch_norm,
    "binary_linear": _binary_linear,
    "boolean_attention": _boolean_attention,
    "box": _box,
    "class_token": _class_token,
    "convolution": _convolution,
    "differential": _differential,
    "divide": lambda p, node: _elements(p, node, node.attributes["divisor"]),
    "drop_class_token": lambda p, node: _view(p, node, p.rows(node.inputs[0])[1]),
    "fit": _view,
    "from_grid": _transposed,
    "gelu": _elements,
    "identity": _view,
    "interpolate": _interpolate,
    "join_windows": _gather,
    "layer_norm": lambda p, node: _of_rows(p, node, node.attributes["eps"]),
    "layer_scale": _layer_scale,
    "linear": _linear,
    "matmul": _matmul,
    "merge_heads": _merge_heads,
    "merge_patches": _gather,
    "neighbours": lambda p, node: _on_grid(p, node, node.attributes["border"] == "eight"),
    "patch_embed": _patch_embed,
    "pool": _pool,
    "position_bias": _position_bias,
    "position_embedding": _position_embedding,
    "rescale": lambda p, node: _elements(p, node, node.attributes["factor"]),
    "rprelu": _rprelu,
    "shift": _shift,
    "sign": _sign,
    "softmax": _softmax,
    "split": _split,
    "split_heads": _split_heads,
    "to_grid": _transposed,
    "window_softmax": _window_softmax,
    "windows": _gather,
}
