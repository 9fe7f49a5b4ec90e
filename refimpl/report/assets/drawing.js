"use strict";
// How pages draw what a network has for each token: primitives on canvases, in the colours of the
// page. `drawing` makes them for a grid of rows x columns patches behind `first` class tokens.
const drawing = ({ rows, columns, first }) => {
  const colours = {};

  function readColours() {
    const style = getComputedStyle(document.documentElement);
    for (const name of ["minus", "plus", "one", "zero", "card", "text"]) {
      const hex = style.getPropertyValue("--" + name).trim();
      colours[name] = [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
    }
  }
  const mix = (from, to, share) => from.map((value, i) => value + share * (to[i] - value));
  const css = (colour) => `rgb(${colour.map(Math.round).join(" ")})`;
  // A share from -1 to 1 of what full colour stands for.
  const signed = (share) => mix(colours.card, share < 0 ? colours.minus : colours.plus, Math.abs(share));

  // A canvas of width x height cells, squares of whole pixels, about `target` wide. Returns context and their size.
  function open(canvas, width, height, target) {
    const ratio = Math.ceil(window.devicePixelRatio || 1);
    const size = Math.max(1, Math.round(target / width));
    canvas.width = width * size * ratio;
    canvas.height = height * size * ratio;
    canvas.style.width = width * size + "px";
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = false;
    return [context, size * ratio];
  }

  // Cells coloured one by one, a pixel each; colourAt gives null for a gap.
  function pixels(width, height, colourAt) {
    const image = new ImageData(width, height);
    for (let y = 0, i = 0; y < height; y++) {
      for (let x = 0; x < width; x++, i += 4) {
        const colour = colourAt(x, y);
        if (!colour) continue;
        [image.data[i], image.data[i + 1], image.data[i + 2]] = colour;
        image.data[i + 3] = 255;
      }
    }
    const small = document.createElement("canvas");
    [small.width, small.height] = [width, height];
    small.getContext("2d").putImageData(image, 0, 0);
    return small;
  }

  function enlarge(canvas, small, target) {
    const [context, size] = open(canvas, small.width, small.height, target);
    context.drawImage(small, 0, 0, small.width * size, small.height * size);
    return [context, size];
  }

  // For what looks the same whichever token is chosen, until `forget`.
  const painted = new Map();
  const forget = () => painted.clear();
  function paint(canvas, width, height, target, colourAt) {
    if (!painted.has(canvas)) painted.set(canvas, pixels(width, height, colourAt));
    return enlarge(canvas, painted.get(canvas), target);
  }

  // One small map of the patches for each of `count` channels, side by side; `token` is framed.
  function mosaic(canvas, groups, count, target, token, colourAt) {
    const least = Math.ceil(Math.sqrt(groups * count));
    let wide = least;
    while (count % wide && wide < 2 * least) wide++; // full rows, where it is not too wide for it
    const high = Math.ceil(count / wide);
    const groupHeight = high * (rows + 1) + 1;
    const width = wide * (columns + 1) - 1;
    const height = groups * groupHeight - 2;
    const [context, size] = paint(canvas, width, height, target, (x, y) => {
      const group = Math.floor(y / groupHeight);
      const tileX = Math.floor(x / (columns + 1));
      const tileY = Math.floor((y % groupHeight) / (rows + 1));
      const column = x % (columns + 1);
      const row = (y % groupHeight) % (rows + 1);
      const channel = tileY * wide + tileX;
      if (column === columns || row === rows || tileY >= high || channel >= count) return null;
      return colourAt(group, channel, first + row * columns + column);
    });
    if (token < first) return;
    const column = (token - first) % columns;
    const row = Math.floor((token - first) / columns);
    context.strokeStyle = css(colours.text);
    context.lineWidth = Math.max(1, size / 5);
    for (let group = 0; group < groups; group++) {
      for (let channel = 0; channel < count; channel++) {
        const x = (channel % wide) * (columns + 1) + column;
        const y = group * groupHeight + Math.floor(channel / wide) * (rows + 1) + row;
        context.strokeRect(x * size, y * size, size, size);
      }
    }
  }

  // A map of the tokens, `token` framed; the class token, where there is one, is the square in front.
  // With `lit` the picture shines through, a canvas without colours: here they have a meaning.
  function tokenMap(canvas, token, colourAt, lit, grey, target = Math.max(140, rows * columns)) {
    const shift = first ? 1.5 : 0;
    const [context, size] = open(canvas, columns + shift, rows, target);
    for (let i = 0; i < first + rows * columns; i++) {
      const patch = i - first;
      const x = patch < 0 ? 0 : (shift + (patch % columns)) * size;
      const y = patch < 0 ? 0 : Math.floor(patch / columns) * size;
      context.fillStyle = css(colourAt(i));
      context.fillRect(x, y, size, size);
      if (lit && patch >= 0) {
        const [w, h] = [grey.width / columns, grey.height / rows];
        context.globalAlpha = lit(i) ? 0.35 : 0.25;
        context.drawImage(grey, (patch % columns) * w, Math.floor(patch / columns) * h, w, h, x, y, size, size);
        context.globalAlpha = 1;
      }
      context.strokeStyle = css(mix(colours.card, colours.text, 0.25));
      context.lineWidth = 1;
      context.strokeRect(x + 0.5, y + 0.5, size - 1, size - 1);
    }
    const patch = token - first;
    const x = patch < 0 ? 0 : (shift + (patch % columns)) * size;
    const y = patch < 0 ? 0 : Math.floor(patch / columns) * size;
    context.strokeStyle = css(colours.text);
    context.lineWidth = Math.max(2, size / 9);
    const inset = context.lineWidth / 2;
    context.strokeRect(x + inset, y + inset, size - 2 * inset, size - 2 * inset);
  }

  return { colours, readColours, mix, css, signed, open, pixels, enlarge, forget, paint, mosaic, tokenMap };
};
