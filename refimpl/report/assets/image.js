"use strict";
// Draws the taps in #data. A canvas says what it shows: data-draw (a key of `draw`), data-tap, and
// data-head where one head is meant. Texts and tables are in the page already.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const [rows, columns] = data.grid;
  const first = data.first; // 1 where there is a class token, in front of the patches
  const picture = document.getElementById("picture");
  const fade = document.getElementById("fade");
  const cells = [...document.querySelectorAll(".patches button")];
  const classToken = document.getElementById("class-token");
  let token = first + Math.floor(rows / 2) * columns + Math.floor(columns / 2);
  const colours = {};

  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  for (const tap of Object.values(data.taps)) {
    tap.bytes = bytes(tap.data);
    if (tap.margins) tap.margins = bytes(tap.margins);
    if (tap.scale) tap.signed = new Int8Array(tap.bytes.buffer);
  }
  const bit = (tap, i) => (tap.bytes[i >> 3] >> (i & 7)) & 1; // least significant first

  function readColours() {
    const style = getComputedStyle(document.documentElement);
    for (const name of ["minus", "plus", "one", "zero", "card", "text"]) {
      const hex = style.getPropertyValue("--" + name).trim();
      colours[name] = [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
    }
  }
  const mix = (from, to, share) => from.map((value, i) => value + share * (to[i] - value));
  const css = (colour) => `rgb(${colour.map(Math.round).join(" ")})`;
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

  // For what looks the same whichever token is chosen.
  const painted = new Map();
  function paint(canvas, width, height, target, colourAt) {
    if (!painted.has(canvas)) painted.set(canvas, pixels(width, height, colourAt));
    return enlarge(canvas, painted.get(canvas), target);
  }

  // One small map of the patches for each of `count` channels, side by side.
  function mosaic(canvas, groups, count, target, colourAt) {
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

  function bitColour(tap, i) {
    const colour = bit(tap, i) ? colours.plus : colours.minus;
    if (!fade.checked) return colour;
    return mix(colours.card, colour, Math.min(1, 0.08 + (2 * tap.margins[i]) / 255));
  }

  // The picture without its colours: on a map of attention colour has a meaning.
  const grey = document.createElement("canvas");
  function readPicture() {
    [grey.width, grey.height] = [picture.naturalWidth, picture.naturalHeight];
    const context = grey.getContext("2d");
    context.drawImage(picture, 0, 0);
    context.globalCompositeOperation = "saturation";
    context.fillStyle = "#808080";
    context.fillRect(0, 0, grey.width, grey.height);
  }

  // A map of the tokens; the class token, where there is one, is the square in front.
  function tokenMap(canvas, colourAt, lit) {
    const shift = first ? 1.5 : 0;
    const target = Math.max(140, rows * columns); // as wide as the matrix
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

  const draw = {
    channels(canvas, tap) {
      const channels = tap.shape[1];
      mosaic(canvas, 1, channels, 250, (group, channel, i) => signed(Math.max(-1, tap.signed[i * channels + channel] / 127)));
    },
    planes(canvas, tap) {
      const [heads, tokens, d] = tap.shape;
      mosaic(canvas, heads, d, 190, (head, channel, i) => bitColour(tap, (head * tokens + i) * d + channel));
    },
    bits(canvas, tap) {
      const [heads, tokens, d] = tap.shape;
      const small = pixels(d, 2 * heads - 1, (x, y) => (y % 2 ? null : bitColour(tap, ((y / 2) * tokens + token) * d + x)));
      enlarge(canvas, small, 190);
    },
    boolean(canvas, tap, head) {
      const tokens = tap.shape[1];
      const lit = (i) => bit(tap, (head * tokens + token) * tokens + i);
      tokenMap(canvas, (i) => (lit(i) ? colours.one : colours.zero), lit);
    },
    probability(canvas, tap, head) {
      const tokens = tap.shape[1];
      tokenMap(canvas, (i) => mix(colours.card, colours.one, tap.bytes[(head * tokens + token) * tokens + i] / 255));
    },
    matrix(canvas, tap, head) {
      const tokens = tap.shape[1];
      const binary = tap.bytes.length < tap.shape[0] * tokens * tokens;
      const [context, size] = paint(canvas, tokens, tokens, 140, (x, y) => {
        const i = (head * tokens + y) * tokens + x;
        return mix(colours.zero, colours.one, binary ? bit(tap, i) : tap.bytes[i] / 255);
      });
      context.strokeStyle = css(colours.text);
      context.lineWidth = Math.max(1, size / 2);
      context.strokeRect(0, token * size, tokens * size, size);
    },
  };

  function name() {
    if (token < first) return "the class token";
    const patch = token - first;
    return `the patch in row ${Math.floor(patch / columns) + 1}, column ${(patch % columns) + 1}`;
  }

  function restart() {
    painted.clear();
    readColours();
    drawAll();
  }

  function drawAll() {
    for (const canvas of document.querySelectorAll("canvas[data-draw]")) {
      const { draw: kind, tap, head } = canvas.dataset;
      draw[kind](canvas, data.taps[tap], Number(head || 0));
      canvas.setAttribute("aria-label", canvas.dataset.label.replace("{token}", name()));
    }
    for (const count of document.querySelectorAll("[data-count]")) {
      const tap = data.taps[count.dataset.count];
      const tokens = tap.shape[1];
      let lit = 0;
      for (let i = 0; i < tokens; i++) lit += bit(tap, (Number(count.dataset.head) * tokens + token) * tokens + i);
      count.textContent = `${lit} of ${tokens}`;
    }
  }

  function choose(chosen) {
    token = chosen;
    cells.forEach((cell, patch) => {
      cell.setAttribute("aria-selected", String(patch === token - first));
      cell.tabIndex = patch === Math.max(0, token - first) ? 0 : -1;
    });
    if (classToken) classToken.setAttribute("aria-pressed", String(token < first));
    document.getElementById("chosen").textContent = name()[0].toUpperCase() + name().slice(1);
    drawAll();
  }

  const MOVES = {
    ArrowLeft: (row, column) => [row, column - 1],
    ArrowRight: (row, column) => [row, column + 1],
    ArrowUp: (row, column) => [row - 1, column],
    ArrowDown: (row, column) => [row + 1, column],
    Home: (row) => [row, 0],
    End: (row) => [row, columns - 1],
  };
  cells.forEach((cell, patch) => {
    cell.addEventListener("click", () => choose(first + patch));
  });
  document.addEventListener("keydown", (event) => {
    if (!(event.key in MOVES) || event.altKey || event.ctrlKey || event.metaKey) return;
    // without a click, too; but further down the page up and down are for scrolling
    const free = ["ArrowLeft", "ArrowRight"].includes(event.key) || window.scrollY === 0;
    if (!cells.includes(event.target) && !(event.target === document.body && free)) return;
    const patch = Math.max(0, token - first);
    const [row, column] = MOVES[event.key](Math.floor(patch / columns), patch % columns);
    if (row < 0 || row >= rows || column < 0 || column >= columns) return; // at the edge: scroll
    event.preventDefault();
    cells[row * columns + column].focus({ preventScroll: true });
    choose(first + row * columns + column);
  });
  if (classToken) classToken.addEventListener("click", () => choose(0));
  fade?.addEventListener("change", restart);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", restart);
  readColours();
  picture.decode().then(readPicture).finally(() => choose(token));
})();
