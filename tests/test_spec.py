"""The pages of the specification that are formulas and numbers: they run, and give what we give."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import erf

import refimpl
from refimpl import golden, ops
from refimpl.golden import record, search, vector_cases
from refimpl.models import flatten
from tests import make_golden_bundles
from tests.float32_ports import FLOAT, Flat, Other, taps

SPEC = (Path(refimpl.__file__).parent / "SPEC.md").read_text(encoding="utf-8")


def section(heading: str) -> str:
    """The text below a heading, up to the next one."""
    return SPEC.partition(f"\n{heading}\n")[2].partition("\n## ")[0].partition("\n### ")[0]


def blocks(text: str) -> list[str]:
    """Indented lines, without their indent."""
    found = re.findall(r"(?:^    .*\n)+", text, re.MULTILINE)
    return [re.sub(r"^    ", "", block, flags=re.MULTILINE) for block in found]


def mean(x: np.ndarray) -> np.ndarray:
    return x.mean(axis=-1, keepdims=True)


def rows(x: np.ndarray) -> np.ndarray:
    return x.reshape(-1, x.shape[-1])


# --- 5.1 Plain operations -------------------------------------------------------------------------

HELPERS = {
    "mean": mean,
    "sum": lambda x: x.sum(axis=-1, keepdims=True),
    "max": lambda x: x.max(axis=-1, keepdims=True),
    "total": lambda x: rows(x).sum(axis=0),
    "heads_total": lambda x: x.sum(axis=(0, 2, 3)),
    "rows": rows,
    "T": lambda x: x.swapaxes(-1, -2),
    "erf": erf, "exp": np.exp, "log": np.log, "sqrt": np.sqrt, "pi": math.pi, "len": len,
}  # fmt: skip


def operations() -> dict[str, tuple[list[str], list[str]]]:
    """Name -> its arguments and its statements."""
    found: dict[str, tuple[list[str], list[str]]] = {}
    (block,) = blocks(section("### 5.1 Plain operations"))
    for line in block.splitlines():
        if head := re.fullmatch(r"(\w+)\((.+)\)", line):
            statements: list[str] = []
            found[head[1]] = (head[2].split(", "), statements)
        else:
            statements += [part.strip() for part in line.split(";")]
    return found


PLAIN = operations()


def cases(op: str) -> Iterator[tuple[list[Any], dict[str, Any]]]:
    """Arguments and attributes: those of the isolated vectors, in float64."""
    if op == "soft_cross_entropy":
        rng = np.random.default_rng(1)
        target = rng.random((5, 7))
        yield [rng.standard_normal((5, 7)), target / target.sum(1, keepdims=True)], {}
        return
    for case in vector_cases.of(op):
        args = [np.asarray(x, np.float64) for x in (*case.inputs.values(), *case.params.values())]
        if op != "linear" or len(args) == 3:
            yield args, dict(case.attributes)


def patches(image: np.ndarray, p: int) -> np.ndarray:
    """As the words below the formulas say, pixel by pixel."""
    B, channels, height, width = image.shape
    gh, gw = height // p, width // p
    found = np.zeros((B, gh * gw, channels * p * p))
    for r, c in np.ndindex(gh, gw):
        for k, (channel, i, j) in enumerate(np.ndindex(channels, p, p)):
            found[:, r * gw + c, k] = image[:, channel, r * p + i, c * p + j]
    return found


def unpatches(x: np.ndarray, shape: tuple[int, ...], p: int) -> np.ndarray:
    places = patches(np.arange(math.prod(shape), dtype=float).reshape(shape), p)
    found = np.zeros(math.prod(shape))
    found[places.astype(int)] = x
    return found.reshape(shape)


@pytest.mark.parametrize("op", PLAIN)
def test_formulas(op):
    names, statements = PLAIN[op]
    for args, attributes in cases(op):
        right, cache = getattr(ops, op).forward(*args, **attributes)
        dy = np.random.default_rng(2).standard_normal(np.shape(right)) if np.ndim(right) else 1.0
        gradients = getattr(ops, op).backward(dy, cache)
        values = dict(zip(names, [*args, *attributes.values()], strict=True))
        local = {**HELPERS, **values, "dy": dy}
        if op == "band_sum":  # a number a head
            local["w"] = args[2][:, :, None, None]
        if op == "patch_embed":
            p = args[1].shape[-1]
            local["patches"] = functools.partial(patches, p=p)
            local["unpatches"] = functools.partial(unpatches, shape=args[0].shape, p=p)
        for statement in statements:
            exec(statement, local)
        np.testing.assert_allclose(local["y"], right, rtol=1e-12, atol=1e-12)
        for name, gradient in zip(names, gradients, strict=False):
            scale = np.abs(gradient).max()
            np.testing.assert_allclose(local[f"d{name}"], gradient, 1e-10, 1e-12 * scale + 1e-300)


# --- 8.3 A row ------------------------------------------------------------------------------------


def test_the_row():
    block = next(b for b in blocks(section("### 8.3 For porters")) if b.startswith("z "))
    lines = [re.split(r"\s{2,}", line) for line in block.splitlines()]
    said = [text for _, text in lines]
    assert [name for name, _ in lines] == [
        "z", "bit", "bytes", "word", "weight.bit", "word", "a ^ w", "popcount", "int", "scale",
        "linear",
    ]  # fmt: skip
    z = np.array(said[0].split(), np.float32)
    weight = np.array(said[4].split(), int)
    assert (z == 0).sum() == 2 and np.signbit(z[3])
    bit = [int(value >= 0) for value in z]
    assert said[1].split() == [*map(str, bit)]
    a, w = (sum(int(one) << k for k, one in enumerate(row)) for row in (bit, weight))
    assert said[2] == a.to_bytes(8, "little").hex(" ")
    assert said[2] == refimpl.models.packing.pack_rows(np.array(bit, bool)).tobytes().hex(" ")
    assert [said[3], said[5], said[6]] == [f"{word:016x}" for word in (a, w, a ^ w)]
    different = bin(a ^ w).count("1")
    dot = int(np.where(bit, 1, -1) @ np.where(weight, 1, -1))
    assert said[7:9] == [f"{different}", f"{len(z)} - 2 * {different} = {dot}"]
    assert said[10] == f"{said[9]} * {dot} = {float(said[9]) * dot:g}"
    both, ones = bin(a & w).count("1"), sum(bit)
    boolean = int(np.array(bit) @ np.where(weight, 1, -1))
    text = f"`2 popcount(a & v) - popcount(a) = 2 * {both} - {ones} = {boolean}`"
    assert text in section("### 8.3 For porters")


# --- 8.4 The forward in execution order -----------------------------------------------------------

NAME = re.compile(r"(?<![\w.)\]])[a-z_]\w*(?:\.[a-z]\w*)*(?!\w*\()")


class Page:
    """Runs the lines of 8.4 on parameters and an image."""

    def __init__(self, model: Any, params: Flat, image: np.ndarray):
        self.config, self.params = model.config, params
        self.taps: dict[str, np.ndarray] = {}
        self.input = image
        shell, projection = blocks(section("### 8.4 The forward in execution order"))
        self.shell, self.projection = shell.splitlines(), projection.splitlines()[1:]

    def run(self) -> dict[str, np.ndarray]:
        lines = iter(self.shell)
        block = [line for line in self.shell if line.startswith("    ")]
        for line in lines:
            if line.startswith("for i in"):
                x = self.taps["tokens"]
                for i in range(self.config.depth):
                    x = self.block(block, f"blocks.{i}.", x)
            elif not line.startswith("    "):
                self.line(line, "", x if "norm.out" in line.split("=")[0] else None)
        return self.taps

    def block(self, lines: list[str], scope: str, x: np.ndarray) -> np.ndarray:
        inner = [line.strip() for line in lines if line.startswith(" " * 8)]
        for line in map(str.rstrip, lines):
            if line.startswith("    for t = "):
                for t, source in self.readers(line):
                    for each in inner:
                        each = each.replace("attn.t", f"attn.{t}").replace(", of)", f", {source})")
                        self.line(each, scope, x)
            elif not line.startswith(" " * 8):
                self.line(line.strip(), scope, x)
        return self.taps[f"{scope}out"]

    def readers(self, line: str) -> Iterator[tuple[str, str]]:
        """`for t = a, b of x, c of y:` -> (a, x), (b, x), (c, y)."""
        waiting: list[str] = []
        for part in line.strip().removeprefix("for t = ").rstrip(":").split(", "):
            name, of, source = part.partition(" of ")
            waiting.append(name)
            if of:
                yield from ((each, source) for each in waiting)
                waiting = []

    def line(self, text: str, scope: str, x: np.ndarray | None) -> None:
        if call := re.fullmatch(r"P\((\S+), (\S+)\)", text):
            path, source = f"{scope}{call[1]}.", self.taps[f"{scope}{call[2]}"]
            for line in self.projection:
                self.line(line.strip(), path, source)
            return
        name, _, expression = text.partition(" = ")
        name = scope + name.strip()
        assert name not in self.taps
        head, semicolon, path = expression.strip().rpartition("; ")
        if semicolon:  # parameters below a path
            expression = f"{head}, {scope + path.rstrip(')')!r})"
            quoted = expression[len(head) :]
            expression = NAME.sub(lambda m: f"value({m[0]!r})", head) + quoted
        else:
            expression = NAME.sub(lambda m: f"value({m[0]!r})", expression)
        local = {key: getattr(self, key) for key in FUNCTIONS}
        local |= {"mean": mean, "abs": np.abs, "max": np.maximum, "sqrt": np.sqrt}
        self.scope, self.x, self.transposed = scope, x, name.endswith("attn.v.head_z")
        self.taps[name] = eval(expression, {**local, "value": self.value})

    def value(self, name: str) -> Any:
        known = {"x": self.x, "input": self.input, "d": self.config.head_dim}
        if name in known:
            return known[name]
        if name in ("w_low", "w_high"):
            weights = self.params[f"{self.scope}attn.band_weight"]
            return weights[int(name == "w_high")][:, None, None]
        path = self.scope + name
        return self.taps[path] if path in self.taps else self.params[path]

    # the words of the page

    def patches(self, image):
        return patches(image, self.config.patch_size)

    def linear(self, x, path):
        weight = self.params[f"{path}.weight"]
        return x @ weight.reshape(len(weight), -1).T + self.params[f"{path}.bias"]

    def concatenate(self, token, x):
        return np.concatenate([np.repeat(token, len(x), axis=0), x], axis=1)

    def LayerNorm(self, x, path):
        d = x - mean(x)
        n = d / np.sqrt(mean(d * d) + self.config.norm_eps)
        return n * self.params[f"{path}.weight"] + self.params[f"{path}.bias"]

    def RPReLU(self, x, path):
        p = {leaf: self.params[f"{path}.{leaf}"] for leaf in ("shift_in", "slope", "shift_out")}
        token = {leaf: self.params[f"{path}.token_{leaf}"] for leaf in ("shift_in", "shift_out")}
        u = x - p["shift_in"] - token["shift_in"][:, None]
        bent = np.where(u > 0, u, p["slope"] * u)
        return bent + p["shift_out"] + token["shift_out"][:, None]

    def _bands(self, x):
        grid = x[:, 1:].reshape(len(x), *self.config.grid, -1)
        low, (h, v, d) = ops.haar.swt2(grid.transpose(0, 3, 1, 2))
        back = (b.transpose(0, 2, 3, 1).reshape(x[:, 1:].shape) for b in (low, (h + v) + d))
        return [np.concatenate([x[:, :1], band], axis=1) for band in back]

    def low(self, x):
        return self._bands(x)[0]

    def high(self, x):
        return self._bands(x)[1]

    def heads(self, x):
        B, N, C = x.shape
        y = x.reshape(B, N, self.config.heads, -1).swapaxes(1, 2)
        return y.swapaxes(-1, -2) if self.transposed else y

    def joined(self, x):
        return x.swapaxes(1, 2).reshape(len(x), x.shape[2], -1)

    def softmax(self, x):
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    def binary(self, a, b):
        different = (a[..., :, None, :] != b[..., None, :, :]).sum(-1)
        return (a.shape[-1] - 2 * different).astype(np.int32)

    def boolean(self, a, v):
        both = (a[..., :, None, :] & v[..., None, :, :]).sum(-1)
        return (2 * both - a.sum(-1, keepdims=True)).astype(np.int32)

    def neighbour_mean(self, x):
        return ops.neighbours.forward(x, self.config.grid)[0]

    def fit(self, x):
        outputs = self.taps[f"{self.scope}norm"].shape[-1]
        return ops.fit.forward(x, outputs)[0]


FUNCTIONS = [
    name for name in vars(Page) if not name.startswith("_")
    and name not in ("run", "block", "readers", "line", "value")
]  # fmt: skip


def test_the_forward_in_execution_order():
    model = refimpl.create_model("didb_micro", depth=2, dim=12, image_size=(12, 16), mlp_ratio=3)
    params, image = search.draw(model.config, 3)
    params, image = record.cast(params, np.float64), image.astype(np.float64)
    steps = record.trace(model, params, image)
    del steps["input"]
    found = Page(model, flatten(params), image).run()
    assert list(found) == list(steps)
    for name, step in steps.items():
        value = found[name]
        assert value.dtype == step.value.dtype and value.shape == step.value.shape, name
        if step.kind == "real":
            np.testing.assert_allclose(value, step.value, 1e-9, 1e-9, err_msg=name)
        else:
            np.testing.assert_array_equal(value, step.value, err_msg=name)


# --- 8.3 What counts as rounding ------------------------------------------------------------------


def in_order(name: str, params: Flat, right: Callable, x: np.ndarray, *rest) -> np.ndarray:
    """A LayerNorm whose sums run from the last channel to the first, one after the other."""
    def average(y):
        return np.add.accumulate(y[..., ::-1], axis=-1)[..., -1:] / FLOAT(y.shape[-1])

    d = x - average(x)
    return norm(name, params, d / np.sqrt(average(d * d) + FLOAT(1e-5)))


def norm(name: str, params: Flat, normed: np.ndarray) -> np.ndarray:
    path = name.removesuffix(".out")
    return normed * params[f"{path}.weight"] + params[f"{path}.bias"]


def reciprocal_root(name: str, params: Flat, right: Callable, x: np.ndarray, *rest) -> np.ndarray:
    d = x - mean(x)
    return norm(name, params, d * (FLOAT(1) / np.sqrt(mean(d * d) + FLOAT(1e-5))))


def one_pass(level: bool, name: str, params: Flat, right: Callable, x, *rest) -> np.ndarray:
    """The variance in one pass of differences to a level, or of the values themselves."""
    start = mean(x[..., : x.shape[-1] // 2]) if level else FLOAT(0)
    d = x - start
    variance = mean(d * d) - mean(d) * mean(d)
    normed = (x - (start + mean(d))) / np.sqrt(np.maximum(variance, 0) + FLOAT(1e-5))
    return norm(name, params, normed)


def half_sums(name: str, params: Flat, right: Callable, x: np.ndarray, *rest) -> np.ndarray:
    d = x - x.astype(np.float16).mean(-1, keepdims=True, dtype=np.float16).astype(FLOAT)
    return norm(name, params, d / np.sqrt(mean(d * d) + FLOAT(1e-5)))


def rest_of_low(name: str, params: Flat, right: Callable, x: np.ndarray) -> np.ndarray:
    low = ops.bands.forward(x, **right.node.attributes)[0][0]
    high = x - low
    high[:, 0] = x[:, 0]  # the class token is in both
    return high


def by_reciprocal(name: str, params: Flat, right: Callable, low, high) -> np.ndarray:
    weights = params[name.removesuffix("scores") + "band_weight"][:, :, None, None]
    d = right.node.attributes["head_dim"]
    return (weights[0] * low + weights[1] * high).astype(FLOAT) * FLOAT(1 / math.sqrt(d))


def powers_of_2(name: str, params: Flat, right: Callable, scores: np.ndarray) -> np.ndarray:
    alpha = params[name.removesuffix("prob.z") + "alpha"]
    e = np.exp2((scores - scores.max(-1, keepdims=True)) * FLOAT(math.log2(math.e)))
    return (e * (1 / e.sum(-1, keepdims=True))) * (1 / np.maximum(alpha, FLOAT(1e-5)))


def scaled_terms(name: str, params: Flat, right: Callable, product, scale) -> np.ndarray:
    """scale, added up for every equal bit and taken off for every different one."""
    length = {"mlp.down.linear": 63}.get(".".join(name.split(".")[-3:]), 21)
    found = np.zeros(product.shape, FLOAT)
    for k in range(length):
        found = found + np.where(k < (length + product) // 2, scale, -scale)
    return found.astype(FLOAT)


def tanh_gelu(name: str, params: Flat, right: Callable, x: np.ndarray) -> np.ndarray:
    inner = FLOAT(math.sqrt(2 / math.pi)) * (x + FLOAT(0.044715) * x**3)
    return FLOAT(0.5) * x * (1 + np.tanh(inner))


NORMS = r"(?!grads).*(blocks\.\d\.norm[12]\.out|(q|k|v|low|high|proj|up|down)\.norm)|norm\.out"
ROUNDING = {
    "sums in another order": Other(NORMS, in_order),
    "a product with 1 / sqrt(var + eps)": Other(NORMS, reciprocal_root),
    "one pass with a level": Other(NORMS, functools.partial(one_pass, True)),
    "high = x - low": Other(r"(?!grads).*\.high", rest_of_low),
    "a product with 1 / sqrt(d)": Other(r"(?!grads).*\.scores", by_reciprocal),
    "powers of 2 and reciprocals": Other(r"(?!grads).*\.prob\.z", powers_of_2),
}
MISTAKES = {
    "scaled terms": (
        "small_tie_free", Other(r"(?!grads).*\.linear", scaled_terms), "attn.q_low.linear",
    ),
    "sums in half precision": ("small_tie_free", Other(NORMS, half_sums), "norm1.out"),
    "one pass of squares": (
        "small_wide", Other(NORMS, functools.partial(one_pass, False)), "norm1.out",
    ),
    "GELU by tanh": ("small_deit", Other(r"(?!grads).*\.gelu\.out", tanh_gelu), "mlp.gelu.out"),
}  # fmt: skip


@functools.cache
def read(name: str) -> golden.Bundle:
    return golden.read(make_golden_bundles.FOLDER / name)


@pytest.mark.parametrize("mode", ["free", "replay"])
@pytest.mark.parametrize("name", ROUNDING)
def test_what_counts_as_rounding_passes(name, mode):
    bundle = read("small_tie_free")
    dump = taps(bundle, ROUNDING[name])
    assert any((dump[n] != v).any() for n, v in taps(bundle).items())  # it is another way
    assert golden.compare(bundle, dump, mode=mode, strict=True).passed


@pytest.mark.parametrize("mode", ["free", "replay"])
@pytest.mark.parametrize("name", MISTAKES)
def test_what_does_not_fails(name, mode):
    bundle, other, tap = MISTAKES[name]
    found = golden.compare(read(bundle), taps(read(bundle), other), mode=mode)
    if mode == "replay" or name != "scaled terms":  # free has room for what 64 u may be
        assert (found.outcome, found.first.name) == ("FAIL", f"blocks.0.{tap}")


# --- 8.3 Gradients are total ----------------------------------------------------------------------


@pytest.mark.parametrize("tap", ["tokens", "blocks.0.mid", "blocks.1.norm2.out", "blocks.0.out"])
def test_a_gradient_is_the_sum_over_all_readers(tap):
    """Of a smooth network: as the logits change when the tap alone is moved."""
    bundle = read("small_deit")
    steps, dlogits = bundle.reference.steps, bundle.value("grads/logits")
    direction = np.random.default_rng(4).standard_normal(steps[tap].value.shape)

    def moved(by: float) -> float:
        values: dict[str, np.ndarray] = {}
        for name, step in steps.items():
            if name.startswith("grads/"):
                break
            inputs = [values[one] for one in step.inputs]
            values[name] = step.value if step.op is None else step.op(*inputs)
            if name == tap:
                values[name] = values[name] + by * direction
        return float((values["logits"] * dlogits).sum())

    slope = (moved(1e-5) - moved(-1e-5)) / 2e-5
    gradient = bundle.value(f"grads/{tap}")
    assert math.isclose(slope, float((gradient * direction).sum()), rel_tol=1e-6)
