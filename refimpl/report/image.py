"""What one image does inside the network, as a page for the browser: one file, no network.

The network runs once with a listener; every picture is a tap [SPEC 8.1], drawn by the script in
the page from the values in the page. Parts that an architecture does not have (Haar bands, the
differential term, bits in a `deit`, whose attention is real) are not on its page.

Texts that come from outside (names of files and classes) are escaped, and a content security
policy lets nothing run or load but what this module put there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from threadpoolctl import threadpool_limits

import refimpl
from refimpl import ops
from refimpl.classifiers import Classifier, Prediction
from refimpl.conventions import ConfigError
from refimpl.data.preprocessing import Preprocessing
from refimpl.models import Config, binary, summary
from refimpl.report import html, timing, trace

CLASSES = 10  # that are listed at most, the most probable ones
ORIGINAL = 320  # longest side of the image as it was given

ARIA = 'role="img" aria-label=""'  # the script fills in the chosen token
BITS = {"q": "queries", "k": "keys", "v": "values"}
# What has a threshold in a block, beside them.
THRESHOLDS = {
    "prob": "attention",
    "proj": "input of the projection after attention",
    "up": "input of the MLP",
    "down": "hidden layer of the MLP",
}


class Page(NamedTuple):
    content: bytes  # UTF-8
    prediction: Prediction


def page(ask: Classifier, picture: Image.Image, image: str, model: str) -> Page:
    """The page of a picture as `images.open_image` gives it, L or RGB.

    `image` and `model` are what the page calls them.

    NonFiniteError, with the name of the layer, where weights of absurd size leave no number;
    ConfigError for a network with windows.
    """
    if ask.model.config.window:
        raise ConfigError(
            f"{model}: found windows of {ask.model.config.window}; "
            "expected attention over all tokens, which is what a page shows"
        )
    (prediction,) = ask([picture])
    pixels = ask.preprocessing.pixels(picture)
    x = ask.preprocessing.normalise(pixels[None]).astype(ask.dtype)
    network = ask.model.network
    taps = trace.look(ask, x)
    data = trace.embedded(network, taps)
    with threadpool_limits(1):  # threads of BLAS that wait for each other are no layer's time
        timed = timing.measure(ask.model, ask.params, x, ops)
    config = ask.model.config
    first = config.tokens - config.grid[0] * config.grid[1]
    height, width = config.image_size
    seen = html.png(Image.fromarray(_as_read(pixels, ask.preprocessing)))
    sections = [
        _answer(prediction, picture, seen),
        *(_block(i, config, data, trace.margins(network, taps, i)) for i in range(config.depth)),
        _budget(config, timed),
    ]
    content = html.filled(
        html.asset("image.html"),
        html.asset("image.css"),
        html.asset("drawing.js") + html.asset("image.js"),
        label=escape(prediction.label),
        model=escape(model),
        image=escape(image),
        kicker=_kicker(config),
        lead=_lead(config, prediction),
        picture=seen,
        width=width,
        height=height,
        patches=patch_buttons(config),
        class_token=class_token_button(first),
        legend=_legend(config, data),
        contents=_contents(config.depth),
        main="\n".join(sections),
        footer=_footer(),
        data=embedded_json({"grid": config.grid, "first": first, "taps": data}),
    )
    return Page(content, prediction)


# --- parts ----------------------------------------------------------------------------------------


def _kicker(config: Config) -> str:
    what = "A 1-bit vision transformer" if _is_binary(config) else "A 32-bit vision transformer"
    if config.binarize in ("activations", "weights"):
        what = f"A vision transformer with 1-bit {config.binarize}"
    return f"{what}, looked into · refimpl {refimpl.__version__}"


def _is_binary(config: Config) -> bool:
    """Whether any of its numbers has a single bit."""
    return config.block == "binary" and config.binarize != "none"


def _lead(config: Config, prediction: Prediction) -> str:
    answer = (
        f"It answers <strong><bdi>{escape(prediction.label)}</bdi></strong>, "
        f"with probability {prediction.probability:.1%}."
    )
    gh, gw = config.grid
    cut = f"The image is cut into {gh} × {gw} patches, and {_count(config.depth, 'block')}"
    if not _is_binary(config):
        return f"{answer} {cut} of real numbers let them look at one another."
    return (
        f"{answer} {cut} let them look at one another, with numbers of a single bit where other "
        "networks multiply: −1 or +1, attend or not."
    )


def _answer(prediction: Prediction, picture: Image.Image, seen: str) -> str:
    original = Image.fromarray(np.asarray(picture))  # without what a camera noted beside it
    original.thumbnail((ORIGINAL, ORIGINAL))
    top = prediction.top(CLASSES)
    rows = [
        f'<tr><th scope="row"><bdi>{escape(name)}</bdi></th><td>{_bar(share)}</td>'
        f"<td>{share:.2%}</td></tr>"
        for name, share in top
    ]
    warning = ""
    if prediction.warning is not None:
        warning = f'<p class="warning">Careful: {escape(prediction.warning)}.</p>'
    others = len(prediction.class_names) - len(top)
    note = f'<p class="note">{_count(others, "class", "classes")} more, less probable.</p>'
    return f"""<section id="answer"><h2>The answer</h2>
<p>Each class gets a probability; together they are 100 %.</p>{warning}
<div class="answer"><figure class="input"><img src="{html.png(original)}" alt="The image as given">
<figcaption>The image as it was given; the one to click is what the network reads.</figcaption>
</figure><div class="scroll"><table><thead><tr><th scope="col">class</th><td></td>
<th scope="col">probability</th></tr></thead>
<tbody>{"".join(rows)}</tbody></table>{note if others else ""}</div></div></section>"""


def _block(i: int, config: Config, data: Mapping[str, Any], margins: list[trace.Margins]) -> str:
    prefix = f"blocks.{i}.attn"
    parts = [
        _bands(f"blocks.{i}", config, data),
        _planes(prefix, config, data),
        _attention(prefix, config, data),
        _differential(prefix, config, data),
        _margins(margins),
    ]
    return f'<section id="block-{i}"><h2>Block {i}</h2>{"".join(parts)}</section>'


def _bands(prefix: str, config: Config, data: Mapping[str, Any]) -> str:
    if f"{prefix}.attn.low" not in data:
        return ""
    names = (f"{prefix}.norm1.out", f"{prefix}.attn.low", f"{prefix}.attn.high")
    titles = (
        ("Tokens", "one small map of the image for each channel"),
        ("Low band", "the mean of a patch and its neighbours right and below"),
        ("High band", "the differences: rows, columns, diagonal"),
    )
    return f"""<h3>Haar bands</h3><p>A Haar transform splits the tokens into a smooth part and the
details, and queries and keys are made from each: an edge need not drown in what surrounds it.</p>
{_equation(names, titles, "=+", config, data)}"""


def _planes(prefix: str, config: Config, data: Mapping[str, Any]) -> str:
    names = [f"{prefix}.{t}.head_bit" for t in config.attention_inputs if t != "v"]
    figures = []
    for name in (name for name in names if name in data):
        title = bits_of(name.split(".")[3]).capitalize()
        every = f"{title}: the sign of each channel, patch by patch"
        below = f"{title}: the bits of {{token}}, one row a head"
        figures.append(
            f"<figure>{_canvas('planes', name, every)}{_canvas('bits', name, below)}"
            f"<figcaption><strong>{title}</strong> <code>{name}</code></figcaption></figure>"
        )
    if not figures:
        return ""
    return f"""<h3>Bit planes of queries and keys</h3><p>Only the signs of queries and keys are
kept, so two tokens are compared by counting the bits in which they agree. Each small map is one
channel over the image; below are the bits of the chosen token, a row a head.</p>
<div class="planes">{"".join(figures)}</div>"""


def bits_of(t: str) -> str:
    """ "q_low" in words."""
    kind, _, band = t.partition("_")
    return BITS[kind] + (f", {band} band" if band else "")


def _attention(prefix: str, config: Config, data: Mapping[str, Any]) -> str:
    binary = f"{prefix}.prob.bit" in data
    soft = f"{prefix}.prob.z" if binary else f"{prefix}.prob"
    hard = f"{prefix}.prob.bit" if binary else soft
    heads = []
    for head in range(config.heads):
        chosen = f'<span data-count="{hard}" data-head="{head}"></span>' if binary else ""
        maps = [("probability", soft, "Softmax", "How strongly {token} attends to each token")]
        if binary:
            what = f"Bits: {chosen} tokens"
            maps.append(("boolean", hard, what, "The tokens that {token} attends to"))
        maps.append(
            ("matrix", hard, "All tokens", "Attention of all tokens, that of {token} framed")
        )
        figures = (
            f"<figure>{_canvas(draw, tap, f'{label}, head {head}', head)}"
            f"<figcaption>{what}</figcaption></figure>"
            for draw, tap, what, label in maps
        )
        heads.append(f'<div><h4>Head {head}</h4><div class="maps">{"".join(figures)}</div></div>')
    if binary:
        title = "Boolean attention of the chosen token"
        text = """A token attends to another or it does not: where the softmax is above half of the
learned step α a bit is set, and the values of those tokens are simply added. Full colour of the
softmax is α and more."""
    else:
        title = "Attention of the chosen token"
        text = """A token takes a weighted mean of the values of all tokens, and the weights are
real. Full colour is the largest weight of a token."""
    square = " The square in front is the class token." if config.pool == "cls" else ""
    return f"""<h3>{title}</h3><p>{text}{square} The last map has a row for each token; the chosen
one is framed. <code>{hard}</code></p><div class="heads">{"".join(heads)}</div>"""


def _differential(prefix: str, config: Config, data: Mapping[str, Any]) -> str:
    names = (f"{prefix}.v.out", f"{prefix}.neighbour_mean", f"{prefix}.differential")
    if names[-1] not in data:
        return ""
    titles = (
        ("Values", "what each token hands on"),
        ("Mean of the neighbours", "up to eight of them on the grid"),
        (
            "Differential term",
            "values λ<sub>s</sub> − mean λ<sub>n</sub>, learned for each channel",
        ),
    )
    return f"""<h3>The differential term</h3><p>A sum over tokens blurs; what sets a token apart
from its neighbours is lost in it, and a learned difference brings it back.</p>
{_equation(names, titles, "−→", config, data)}"""


def _margins(margins: list[trace.Margins]) -> str:
    if not margins:
        return ""
    rows = [
        f'<tr><th scope="row">{threshold_words(row.name)}</th>'
        f"<td>{_histogram(row)}</td><td>{row.count:,}</td>"
        f"<td>{row.near:.2%}</td><td>{row.closest:.1e}</td><td>{row.zero:,}</td></tr>"
        for row in margins
    ]
    return f"""<h3>Margins: how close the signs are to flipping</h3>
<p>A bit is the side of a threshold on which a value falls; the nearer it is, the sooner another
rounding, chip or kernel flips it.</p>
<div class="scroll"><table><caption>Distances are in units of the root mean square of the same
values; the histograms reach from −{trace.REACH:g} to +{trace.REACH:g}.</caption><thead><tr>
<th scope="col">in front of a bit</th><th scope="col">distribution</th><th scope="col">bits</th>
<th scope="col">closer than {trace.NEAR:g}</th><th scope="col">closest</th>
<th scope="col">on the threshold</th></tr></thead><tbody>{"".join(rows)}</tbody></table></div>"""


def threshold_words(name: str) -> str:
    """The tap in front of a threshold, in words and by its name in the block."""
    *_, what, leaf = name.split(".")
    words = THRESHOLDS.get(what)
    if words is None:
        words = bits_of(what) if leaf == "head_z" else f"input of the {bits_of(what)}"
    return f"{words} <code>{name.split('.', 2)[2]}</code>"


def _budget(config: Config, timed: timing.Timing) -> str:
    found = summary.summarise(config)
    total = found.total
    groups: dict[str, list[summary.Row]] = {}
    blocks = {node.layer: node.block for node in binary.network(config).nodes}
    for row in found.rows:
        block = blocks[row.name]
        groups.setdefault(row.name if block is None else f"blocks.{block}", []).append(row)
    groups_and_layers = groups, {row.name: [row] for row in found.rows}
    parts, layers = (
        [_cost(name, rows, timed) for name, rows in table.items()] for table in groups_and_layers
    )
    everything = _cost("total", found.rows, timed)
    macs = total.macs_1bit + total.macs_32bit
    share = total.macs_1bit / macs
    text = f"Every one of the {macs:,} multiplications and additions takes 32 bits."
    if total.macs_1bit:
        text = (
            f"{share:.1%} of the multiplications and additions take one bit, and 64 of those count "
            f"as one 32-bit operation: {found.ops:,.0f} operations in all instead of {macs:,}."
        )
    return f"""<section id="budget"><h2>The budget</h2>
<p>{text}</p>
<svg class="split" role="img" aria-label="{share:.1%} 1-bit, {1 - share:.1%} 32-bit"><rect
class="full" width="100%" height="100%"/><rect class="share" width="{100 * share:.3f}%"
height="100%"/></svg>
<ul class="legend"><li>{swatch("share")}1-bit multiply-accumulates: {total.macs_1bit:,}</li>
<li>{swatch("full")}32-bit multiply-accumulates: {total.macs_32bit:,}</li></ul>
{_costs(parts, everything, timed)}
<details><summary>Every layer</summary>{_costs(layers, everything, timed)}</details></section>"""


# --- pieces ---------------------------------------------------------------------------------------


def _canvas(draw: str, tap: str, label: str, head: int = 0) -> str:
    return (
        f'<canvas data-draw="{draw}" data-tap="{tap}" data-head="{head}" data-label="{label}" '
        f"{ARIA}></canvas>"
    )


def _equation(
    names: Iterable[str],
    titles: Iterable[tuple[str, str]],
    signs: str,
    config: Config,
    data: Mapping[str, Any],
) -> str:
    """Maps of channels with signs between them."""
    figures = [
        f"<figure>{_canvas('channels', name, f'{title}, channel by channel')}<figcaption>"
        f"<strong>{title}</strong>: {text}. <code>{name}</code></figcaption></figure>"
        for name, (title, text) in zip(names, titles, strict=True)
    ]
    parts = [figures[0]]
    for sign, figure in zip(signs, figures[1:], strict=True):
        parts += [f'<span class="sign" aria-hidden="true">{sign}</span>', figure]
    some = ""
    if config.dim > trace.CHANNELS:
        some = f" Shown are the first {trace.CHANNELS} of {config.dim} channels."
    scale = next(data[name]["scale"] for name in names)
    return (
        f'<div class="equation">{"".join(parts)}</div>'
        f'<p class="note">Full colour is ±{scale:.2g} and beyond, in all three.{some}</p>'
    )


def _bar(share: float) -> str:
    return (
        f'<svg class="bar" aria-hidden="true"><rect class="share" width="{100 * share:.2f}%" '
        'height="100%"/></svg>'
    )


def swatch(colour: str) -> str:
    return f'<svg aria-hidden="true"><rect class="{colour}" width="100%" height="100%"/></svg>'


def _histogram(margins: trace.Margins) -> str:
    bins, top = trace.BINS, max(1, int(margins.histogram.max()))
    heights = 20 * margins.histogram / top
    paths = []
    for colour, begin in (("minus", 0), ("plus", bins // 2)):
        steps = "".join(f"V{20 - h:.3g}h1" for h in heights[begin : begin + bins // 2])
        paths.append(f'<path class="{colour}" d="M{begin} 20{steps}V20z"/>')
    middle = bins // 2
    return (
        f'<svg class="histogram" viewBox="0 0 {bins} 20" preserveAspectRatio="none" '
        f'aria-hidden="true">{"".join(paths)}'
        f'<path class="axis" d="M{middle} 0V20"/></svg>'
    )


def _cost(name: str, rows: list[summary.Row], timed: timing.Timing) -> str:
    one, full = (sum(getattr(row, f"macs_{width}") for row in rows) for width in ("1bit", "32bit"))
    seconds = sum(timed.layers[row.name] for row in rows)
    share = seconds / sum(timed.layers.values())
    return (
        f'<tr><th scope="row"><code>{name}</code></th><td>{one:,}</td><td>{full:,}</td>'
        f"<td>{1000 * seconds:.3f}</td><td>{_bar(share)}</td></tr>"
    )


def _costs(rows: Iterable[str], total: str, timed: timing.Timing) -> str:
    return f"""<div class="scroll"><table><caption>For one image. Time: in the operations of the
NumPy reference, median of {_count(timed.runs, "run")}; a whole run takes
{1000 * timed.seconds:.1f} ms.</caption><thead><tr><th scope="col">layer</th>
<th scope="col">1-bit</th><th scope="col">32-bit</th><th scope="col">ms</th>
<th scope="col">share of the time</th></tr></thead>
<tbody>{"".join(rows)}</tbody><tfoot>{total}</tfoot></table></div>"""


def patch_buttons(config: Config) -> str:
    gh, gw = config.grid
    rows = []
    for row in range(1, gh + 1):
        cells = (
            f'<button type="button" role="gridcell" tabindex="-1" aria-selected="false" '
            f'aria-label="Row {row}, column {column}"></button>'
            for column in range(1, gw + 1)
        )
        rows.append(f'<div role="row">{"".join(cells)}</div>')
    return "".join(rows)


def class_token_button(first: int) -> str:
    if not first:
        return ""
    return (
        '<button type="button" id="class-token" aria-pressed="false">Class token, from which the '
        "answer is read</button>"
    )


def _legend(config: Config, data: Mapping[str, Any]) -> str:
    lines = []
    if config.block == "binary":
        lines = [f"{swatch('minus')}−1, and below 0", f"{swatch('plus')}+1, and above 0"]
    lines.append(f"{swatch('one')}attends")
    if any("margins" in tap for tap in data.values()):
        lines.append(
            '<label for="fade"><input type="checkbox" id="fade"></label>'
            '<label for="fade">fade bits that nearly flip</label>'
        )
    return f'<ul class="legend">{"".join(f"<li>{line}</li>" for line in lines)}</ul>'


def _contents(depth: int) -> str:
    parts = [("answer", "Answer"), *((f"block-{i}", f"Block {i}") for i in range(depth))]
    parts.append(("budget", "Budget"))
    return "".join(f'<li><a href="#{anchor}">{text}</a></li>' for anchor, text in parts)


def _footer() -> str:
    return (
        f"<p>Written by <code>refimpl report</code>, refimpl {refimpl.__version__}. Names in this "
        "type are those of the taps in the specification, section 8.</p>"
    )


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


# --- into the file --------------------------------------------------------------------------------


def _as_read(pixels: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """uint8 pixels with dark and light as the network gets them."""
    return 255 - pixels if preprocessing.invert else pixels


def embedded_json(value: Any) -> str:
    """JSON that cannot end the script element that it stands in."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")
