"use strict";
// Draws the taps in #data with drawing.js. A canvas says what it shows: data-draw (a key of `draw`),
// data-tap, and data-head where one head is meant. Texts and tables are in the page already.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const [rows, columns] = data.grid;
  const first = data.first; // 1 where there is a class token, in front of the patches
  const pen = drawing({ rows, columns, first });
  const { colours, mix, css, signed } = pen;
  const picture = document.getElementById("picture");
  const fade = document.getElementById("fade");
  const cells = [...document.querySelectorAll(".patches button")];
  const classToken = document.getElementById("class-token");
  let token = first + Math.floor(rows / 2) * columns + Math.floor(columns / 2);

  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  for (const tap of Object.values(data.taps)) {
    tap.bytes = bytes(tap.data);
    if (tap.margins) tap.margins = bytes(tap.margins);
    if (tap.scale) tap.signed = new Int8Array(tap.bytes.buffer);
  }
  const bit = (tap, i) => (tap.bytes[i >> 3] >> (i & 7)) & 1; // least significant first

  function bitColour(tap, i) {
    const colour = bit(tap, i) ? colours.plus : colours.minus;
    if (!fade.checked) return colour;
    return mix(colours.card, colour, Math.min(1, 0.08 + (2 * tap.margins[i]) / 255));
  }

  // The picture without its colours, for maps of attention.
  const grey = document.createElement("canvas");
  function readPicture() {
    [grey.width, grey.height] = [picture.naturalWidth, picture.naturalHeight];
    const context = grey.getContext("2d");
    context.drawImage(picture, 0, 0);
    context.globalCompositeOperation = "saturation";
    context.fillStyle = "#808080";
    context.fillRect(0, 0, grey.width, grey.height);
  }

  const draw = {
    channels(canvas, tap) {
      const channels = tap.shape[1];
      pen.mosaic(canvas, 1, channels, 250, token, (group, channel, i) => signed(Math.max(-1, tap.signed[i * channels + channel] / 127)));
    },
    planes(canvas, tap) {
      const [heads, tokens, d] = tap.shape;
      pen.mosaic(canvas, heads, d, 190, token, (head, channel, i) => bitColour(tap, (head * tokens + i) * d + channel));
    },
    bits(canvas, tap) {
      const [heads, tokens, d] = tap.shape;
      const small = pen.pixels(d, 2 * heads - 1, (x, y) => (y % 2 ? null : bitColour(tap, ((y / 2) * tokens + token) * d + x)));
      pen.enlarge(canvas, small, 190);
    },
    boolean(canvas, tap, head) {
      const tokens = tap.shape[1];
      const lit = (i) => bit(tap, (head * tokens + token) * tokens + i);
      pen.tokenMap(canvas, token, (i) => (lit(i) ? colours.one : colours.zero), lit, grey);
    },
    probability(canvas, tap, head) {
      const tokens = tap.shape[1];
      pen.tokenMap(canvas, token, (i) => mix(colours.card, colours.one, tap.bytes[(head * tokens + token) * tokens + i] / 255));
    },
    matrix(canvas, tap, head) {
      const tokens = tap.shape[1];
      const binary = tap.bytes.length < tap.shape[0] * tokens * tokens;
      const [context, size] = pen.paint(canvas, tokens, tokens, 140, (x, y) => {
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
    pen.forget();
    pen.readColours();
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
  pen.readColours();
  picture.decode().then(readPicture).finally(() => choose(token));
})();
