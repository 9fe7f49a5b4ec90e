"""A page for the browser into which one draws, with a packed network in it: one file, no network.

The page holds the network as `export` writes it and the engine that runs it at every stroke. What
is drawn of a run is what `refimpl report` draws of one. Parts that an architecture does not have
(Haar bands, the differential term, shifts of tokens) are not on its page.

Names that come from outside are escaped, and a content security policy lets nothing run or load
but what this module put there.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from typing import Any

import numpy as np
from PIL import Image

import refimpl
from refimpl.data import bundled
from refimpl.data.images import open_image
from refimpl.data.preprocessing import Preprocessing
from refimpl.live.export import export
from refimpl.models import Config, binary, summary
from refimpl.models.nodes import Network
from refimpl.report import html, image, trace

DIGITS = tuple("0123456789")
SCRIPTS = ("engine.js", "pixels.js", "page.js")
# Operation -> what it is called, what one loses without it; the engine knows its strength.
IDEAS = {
    "bands": ("Haar bands", "tokens are compared as they are, not a smooth and a sharp half each"),
    "differential": (
        "Differential term",
        "no token hears in what it differs from its neighbours",
    ),
    "rprelu": ("Token shifts of RPReLU", "the activation is the same for every token"),
}


def page(
    config: Config,
    arrays: Mapping[str, np.ndarray],
    preprocessing: Preprocessing,
    class_names: Sequence[str],
    model: str,
) -> bytes:
    """The page, UTF-8, of a classifier; `arrays` as `packing.pack` gives, `model` its name.

    ConfigError, with the node and its operation, where the page's engine cannot run the network.
    """
    network, written = binary.network(config), export(config, arrays)
    digits = tuple(class_names) == DIGITS
    data = {
        "network": written,
        "grid": config.grid,
        "first": config.tokens - config.grid[0] * config.grid[1],
        "classes": list(class_names),
        "preprocessing": _preprocessing(preprocessing),
        "digits": digits,
        "blocks": [_block(network, i) for i in range(config.depth)],
        "samples": [_sample(path, preprocessing) for path in _samples(class_names, preprocessing)],
    }
    height, width = config.image_size
    return html.filled(
        _asset("live.html"),
        html.asset("image.css") + _asset("live.css"),
        html.asset("drawing.js") + "".join(map(_asset, SCRIPTS)),
        model=escape(model),
        version=refimpl.__version__,
        heading="Draw a digit" if digits else "Drop a picture",
        lead=_lead(config, model, digits),
        height=height,
        width=width,
        patches=image.patch_buttons(config),
        class_token=image.class_token_button(data["first"]),
        samples=_sample_buttons(data["samples"]),
        colours=_colours(preprocessing),
        centre=_CENTRE if digits else "",
        bars=_bars(class_names),
        ideas=_ideas(network),
        blocks=_block_choice(config.depth),
        attention=_attention(config),
        parts=_parts(data["blocks"][0]),
        data=image.embedded_json(data),
    )


def _asset(name: str) -> str:
    return (resources.files("refimpl.live") / "assets" / name).read_text(encoding="utf-8")


# --- what the script reads ------------------------------------------------------------------------


def _preprocessing(given: Preprocessing) -> dict[str, Any]:
    """What `pixels.js` needs, and the floats of every level (channels, 256), inverted already."""
    levels = np.arange(256, dtype=np.uint8)
    levels = 255 - levels if given.invert else levels
    of_channels = levels if given.mode == "grey" else np.stack([levels] * 3, axis=-1)
    floats = given.normalise(of_channels[None, None]).reshape(given.channels, 256)
    dark = given.mean[0] < 0.5 or given.mode == "rgb"  # what most pixels are
    return {
        "size": given.size,
        "mode": given.mode,
        "resampling": given.resampling,
        "crop": given.crop,
        "invert": given.invert,
        "brightness": given.brightness,
        "paper": [0 if dark else 255] * given.channels,
        "floats": base64.b64encode(floats.astype("<f4").tobytes()).decode("ascii"),
    }


def _block(network: Network, block: int) -> dict[str, Any]:
    """Names of the values of a block that are drawn, by what they are."""
    terms = {node.layer: node.name for node in network.nodes if node.op == "differential"}
    found: dict[str, Any] = {"planes": [], "thresholds": []}
    for drawn, what, names in trace.drawn_in(network):
        if drawn.block != block:
            continue
        if what == "signs":
            found["planes"].append(names)
        elif what == "tokens":
            term = names[-1] in terms
            found["differential" if term else "bands"] = [terms.get(n, n) for n in names]
        else:
            found[what] = names[0]  # ratios, booleans
    columns = {
        node.name for node in network.nodes if node.attributes.get("transposed")
    }  # of whose values a token is a column, not a row
    for compared, name, threshold in trace.thresholds(network):
        if compared.block == block:
            found["thresholds"].append([name, threshold, name in columns])
    return found


def _samples(class_names: Sequence[str], preprocessing: Preprocessing) -> list[Any]:
    """The bundled images of things for which the model has a class."""
    if preprocessing.mode == "grey":
        return bundled.digits() if tuple(class_names) == DIGITS else []
    photographs = bundled.photographs()
    return [path for path in photographs if path.name.split("_")[0] in class_names]


def _sample(path: Any, preprocessing: Preprocessing) -> dict[str, str]:
    pixels = preprocessing.pixels(open_image(path))
    return {
        "label": path.name.split("_")[0],
        "pixels": base64.b64encode(pixels.tobytes()).decode("ascii"),
        "picture": html.png(Image.fromarray(pixels)),
    }


# --- what stands on the page ----------------------------------------------------------------------


def _lead(config: Config, model: str, digits: bool) -> str:
    total = summary.summarise(config).total
    share = total.macs_1bit / (total.macs_1bit + total.macs_32bit)
    what = "Every stroke runs" if digits else "Every picture runs through"
    return (
        f"{what} all of <strong><bdi>{escape(model)}</bdi></strong>, a vision transformer of "
        f"{config.depth} blocks, in this page: {share:.1%} of its multiplications are single bits, "
        "counted in 32-bit words. No server, nothing leaves this device."
    )


_CENTRE = (
    '<label><input type="checkbox" id="centre" checked> centre and scale as MNIST does</label>'
)


def _colours(preprocessing: Preprocessing) -> str:
    if preprocessing.mode == "grey":
        return ""
    return '<label>pen <input type="color" id="colour" value="#f2d024"></label>'


def _sample_buttons(samples: Sequence[Mapping[str, str]]) -> str:
    buttons = (
        f'<button type="button" data-sample="{i}"><img src="{sample["picture"]}" '
        f'alt="Example: {escape(sample["label"])}"></button>'
        for i, sample in enumerate(samples)
    )
    return "".join(buttons)


def _bars(class_names: Sequence[str]) -> str:
    """A row for each of the most probable classes; where there are few, for each in its order."""
    rows = (
        f'<tr><th scope="row"><bdi>{escape(name)}</bdi></th>'
        '<td><span class="track"><span></span></span></td><td></td></tr>'
        for name in class_names[: image.CLASSES]
    )
    return "".join(rows)


def _ideas(network: Network) -> str:
    """A slider for each idea that the network has."""
    ops = {node.op for node in network.nodes if node.op != "bands" or _transforms(node.attributes)}
    per_token = any(node.op == "rprelu" and len(node.params) > 3 for node in network.nodes)
    there = [op for op in IDEAS if op in ops and (op != "rprelu" or per_token)]
    if not there:
        return ""
    sliders = "".join(_slider(op, *IDEAS[op]) for op in there)
    return f"""<section id="ideas"><h2>Take one idea away</h2>
<div class="ideas">{sliders}</div><p id="difference"></p></section>"""


def _transforms(attributes: Mapping[str, Any]) -> bool:
    return attributes["mode"] != "none"


def _slider(op: str, name: str, without: str) -> str:
    return f"""<div><label for="idea-{op}">{name}</label> <output for="idea-{op}">100 %</output>
<input type="range" id="idea-{op}" data-op="{op}" min="0" max="100" step="5" value="100"
aria-describedby="without-{op}"><p class="note" id="without-{op}">Without: {without}.</p></div>"""


def _block_choice(depth: int) -> str:
    return "".join(
        f'<label><input type="radio" name="block" value="{i}"{" checked" * (not i)}>'
        f"<span>Block {i}</span></label>"
        for i in range(depth)
    )


def _parts(block: Mapping[str, Any]) -> str:
    parts = [
        _bands() if "bands" in block else "",
        _planes([names[0] for names in block["planes"]]),
        _differential() if "differential" in block else "",
        _flips([name for name, *_ in block["thresholds"]]),
    ]
    return "".join(parts)


def _figure(draw: str, at: object, title: str, text: str, label: str, head: int = 0) -> str:
    """A canvas that the script fills; `at` says which of the block's values it shows."""
    return (
        f'<figure><canvas data-draw="{draw}" data-at="{at}" data-head="{head}" role="img" '
        f'data-label="{label}" aria-label="{label}"></canvas>'
        f"<figcaption><strong>{title}</strong>{text}</figcaption></figure>"
    )


def _attention(config: Config) -> str:
    heads = []
    for head in range(config.heads):
        figures = [
            _figure("ratio", "ratios", "softmax / α", "", f"Softmax of {{token}}, head {head}",
                    head),
            _figure("boolean", "booleans", f'<span data-count="{head}"></span>', "",
                    f"Tokens that {{token}} attends to, head {head}", head),
        ]  # fmt: skip
        heads.append(f'<div><h3>Head {head}</h3><div class="maps">{"".join(figures)}</div></div>')
    front = " The square in front is the class token." if config.pool == "cls" else ""
    return f"""<section><h2>Whom <span class="token"></span> attends to</h2>
<p>A bit is set where the softmax is above half of the learned step α, and the values of those
tokens are added up.{front}</p>
<div class="heads">{"".join(heads)}</div></section>"""


def _equation(part: str, signs: str, *titles: tuple[str, str]) -> str:
    figures = [
        _figure("channels", f"{part}.{i}", title, f": {text}", f"{title}, channel by channel")
        for i, (title, text) in enumerate(titles)
    ]
    found = [figures[0]]
    for sign, figure in zip(signs, figures[1:], strict=True):
        found += [f'<span class="sign" aria-hidden="true">{sign}</span>', figure]
    return f'<div class="equation">{"".join(found)}</div>'


def _bands() -> str:
    figures = _equation(
        "bands", "=+",
        ("Tokens", "one small map of the image for each channel"),
        ("Low band", "means of four patches that touch"),
        ("High band", "their differences: edges"),
    )  # fmt: skip
    return f"""<section><h2>Haar bands</h2><p>Queries and keys are made of a smooth and of a sharp
half of the tokens, so that an edge need not drown in what surrounds it.</p>{figures}</section>"""


def _planes(names: Sequence[str]) -> str:
    figures = []
    for i, name in enumerate(names):
        title = image.bits_of(name.split(".")[3]).capitalize()
        figures.append(_figure("planes", i, title, "", f"{title}: signs, channel by channel"))
    return f"""<section><h2>Planes of bits</h2><p>Of queries and keys the signs are left. How alike
two tokens are is then counted: the bits in which they agree. <span class="gold">Gold</span> bits
are about to flip.</p><div class="planes">{"".join(figures)}</div></section>"""


def _differential() -> str:
    figures = _equation(
        "differential", "−→",
        ("Values", "what each token hands on"),
        ("Mean of the neighbours", "up to eight of them"),
        ("Differential term", "values λ<sub>s</sub> − mean λ<sub>n</sub>"),
    )  # fmt: skip
    return f"""<section><h2>The differential term</h2><p>A sum over tokens blurs. What sets a token
apart from its neighbours is lost in it, and comes back here.</p>{figures}</section>"""


def _flips(names: Sequence[str]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{image.threshold_words(name)}</th>'
        '<td><canvas class="histogram" aria-hidden="true"></canvas></td><td></td><td></td></tr>'
        for name in names
    )
    near = _figure(
        "near", "thresholds", "Where", ": the more gold, the more of a patch's signs",
        "Patches by how many of their signs are about to flip",
    )  # fmt: skip
    return f"""<section><h2>Signs about to flip</h2><p>A bit is the side of a threshold on which a
number falls. Closer than {trace.NEAR:g} of the usual distance, a touch of the pen, another chip or
another rounding may turn it over.</p><div class="flips">{near}
<div class="scroll"><table id="margins"><thead><tr><th scope="col">in front of a bit</th>
<th scope="col">distances from −{trace.REACH:g} to +{trace.REACH:g}</th>
<th scope="col">about to flip</th><th scope="col">of</th></tr></thead>
<tbody>{rows}</tbody></table></div></div></section>"""
