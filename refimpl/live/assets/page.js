"use strict";
// What the page does: pen and pictures to pixels, pixels through the network, its values to
// canvases. A canvas says what it shows: data-draw, a key of `draw`, and data-at, which of the
// values of the chosen block.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const network = engine.load(data.network);
  const { grid: [rows, columns], first, preprocessing, classes } = data;
  const { size: [height, width], paper } = preprocessing;
  const channels = paper.length, tokens = first + rows * columns;
  const element = (id) => document.getElementById(id);
  const board = element("board"), picture = element("picture");
  const pen = drawing({ rows, columns, first });
  const { colours, mix, css, signed } = pen;
  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const levels = new Float32Array(bytes(preprocessing.floats).buffer);
  const NEAR = 0.01, REACH = 2, BINS = 40; // as in refimpl/report/trace.py
  const LARGE = 158; // pixels, about the width of a map of attention
  const STEPS = 28; // of the keyboard's cursor along a side

  let drawingNow = false; // with the pointer
  const state = {
    strokes: [], // see pixels.js
    image: null, // pixels of a picture, in the place of strokes
    changes: 0, // of the board; what was begun before the last of them is too late
    token: first + Math.floor(rows / 2) * columns + Math.floor(columns / 2),
    block: 0,
    strengths: {},
    cursor: null, // of the keyboard, [column, row]
    penDown: false,
    values: null, // of the last run
    before: null, // of the last run in front of the present stroke
    answer: null,
  };

  // --- the network -------------------------------------------------------------------------------

  const centred = () => Boolean(element("centre")?.checked) && !state.image;
  const place = () => pixels.placed(state.image ? [] : state.strokes, [height, width], centred());

  function read() {
    return state.image ?? pixels.drawn(state.strokes, [height, width], place(), paper);
  }

  function imageOf(seen) {
    const data = new Float32Array(channels * height * width);
    for (let i = 0, k = 0; i < height * width; i++) {
      for (let c = 0; c < channels; c++, k++) data[c * height * width + i] = levels[c * 256 + seen[k]];
    }
    return { shape: [1, channels, height, width], data };
  }

  function probabilities(values) {
    return engine.ops.softmax([values.get(network.output)]).data;
  }

  function run() {
    const begin = performance.now();
    const seen = read(), image = imageOf(seen);
    const changed = Object.values(state.strengths).some((strength) => strength < 1);
    state.whole = engine.run(network, image);
    state.values = changed ? engine.run(network, image, state.strengths) : state.whole;
    const computed = performance.now();
    answer();
    difference(changed);
    flipped();
    drawBoard();
    drawPicture(seen);
    drawInside();
    const end = performance.now();
    document.documentElement.dataset.milliseconds = (end - begin).toFixed(2);
    element("time").textContent =
      `${(end - begin).toFixed(0)} ms: ${(computed - begin).toFixed(0)} for the network, the rest for the pictures.`;
  }

  // In the next frame, each of them once: no drawing may take the place of a run that waits.
  let waiting = new Set();
  function later(...works) {
    if (!waiting.size) requestAnimationFrame(work);
    for (const each of works) waiting.add(each);
  }
  function work() {
    const now = waiting;
    waiting = new Set();
    for (const each of now) each();
  }

  // --- words -------------------------------------------------------------------------------------

  const percent = (share) => `${(100 * share).toFixed(1)} %`;
  const count = (number) => number.toLocaleString("en");
  const ranked = (shares) => Array.from(shares.keys()).sort((a, b) => shares[b] - shares[a]);

  function answer() {
    const shares = probabilities(state.values), order = ranked(shares), [best, second] = order;
    element("label").textContent = classes[best];
    element("probability").textContent = percent(shares[best]);
    const lines = [...element("bars").rows];
    const shown = classes.length > lines.length ? order : lines.map((_, i) => i);
    lines.forEach((line, i) => {
      const share = shares[shown[i]];
      line.classList.toggle("best", shown[i] === best);
      line.cells[0].firstChild.textContent = classes[shown[i]];
      line.cells[1].firstChild.firstChild.style.width = `${100 * share}%`;
      line.cells[2].textContent = percent(share);
    });
    state.answer = `${classes[best]}, ${percent(shares[best])}.`;
    if (order.length > 1) state.answer += ` Then ${classes[second]}, ${percent(shares[second])}.`;
  }

  const say = (text) => (element("status").textContent = text);
  const sayAnswer = () => say(state.answer);
  const sayDifference = () => say(element("difference").textContent);

  function flipped() {
    const [flips, all] = engine.flips(state.before ?? state.values, state.values);
    element("flipped").textContent = `This touch flipped ${count(flips)} of ${count(all)} bits.`;
  }

  function difference(changed) {
    const text = element("difference");
    if (!text) return;
    text.replaceChildren();
    if (!changed) {
      text.textContent = "Nothing is taken away: the network is as it was trained. Pull a slider, and draw on.";
      return;
    }
    const one = (values) => {
      const shares = probabilities(values), [best] = ranked(shares);
      const label = document.createElement("strong");
      label.textContent = `${classes[best]} (${percent(shares[best])})`;
      return label;
    };
    const [flips, all] = engine.flips(state.whole, state.values);
    text.append("Whole, it answers ", one(state.whole), "; so, ", one(state.values));
    text.append(`. ${percent(flips / all)} of its bits are others.`);
  }

  function tokenName() {
    if (state.token < first) return "the class token";
    const patch = state.token - first;
    return `the patch in row ${Math.floor(patch / columns) + 1}, column ${(patch % columns) + 1}`;
  }

  // --- pictures ----------------------------------------------------------------------------------

  const rgb = (seen, i) => (channels === 1 ? [seen[i], seen[i], seen[i]] : [...seen.slice(3 * i, 3 * i + 3)]);

  // The picture, and one without its colours for maps of attention, where they have a meaning.
  let grey = null, seenNow = null;
  function drawPicture(seen) {
    seenNow = pen.pixels(width, height, (x, y) => rgb(seen, y * width + x));
    grey = pen.pixels(width, height, (x, y) => {
      const colour = rgb(seen, y * width + x);
      return Array(3).fill(Math.round(colour.reduce((sum, level) => sum + level, 0) / 3));
    });
    pen.enlarge(picture, seenNow, 280);
    picture.style.width = "";
    if (state.image) drawBoard();
  }

  function drawBoard() {
    const side = Math.round(board.clientWidth * (window.devicePixelRatio || 1));
    [board.width, board.height] = [side, Math.round((side * height) / width)];
    const context = board.getContext("2d");
    context.fillStyle = css(paper.length === 1 ? [paper[0], paper[0], paper[0]] : paper);
    context.fillRect(0, 0, board.width, board.height);
    context.imageSmoothingEnabled = false;
    if (state.image && seenNow) context.drawImage(seenNow, 0, 0, board.width, board.height);
    context.lineCap = context.lineJoin = "round";
    context.lineWidth = (2.4 / 28) * side;
    for (const { points, colour } of state.strokes) {
      context.strokeStyle = css(colour.length === 1 ? [colour[0], colour[0], colour[0]] : colour);
      context.beginPath();
      points.forEach(([x, y]) => context.lineTo(x * board.width, y * board.height));
      if (points.length === 1) context.lineTo(points[0][0] * board.width + 0.01, points[0][1] * board.height);
      context.stroke();
    }
    if (!drawingNow) shadeAttended(context);
    frameToken(context);
    if (state.cursor) frameCursor(context);
  }

  // Where a token of the grid lies among the strokes: x, y, width, height on the board.
  function boxOf(token) {
    const patch = token - first, { scale, offset } = place();
    const at = ([index, patches, side], axis) => ((index * side) / patches - offset[axis]) / scale[axis];
    const [column, row] = [patch % columns, Math.floor(patch / columns)];
    const [x0, y0] = [[column, columns, width], [row, rows, height]].map(at);
    const [x1, y1] = [[column + 1, columns, width], [row + 1, rows, height]].map(at);
    return [x0 * board.width, y0 * board.height, (x1 - x0) * board.width, (y1 - y0) * board.height];
  }

  function frameToken(context) {
    if (state.token < first) return;
    context.strokeStyle = css(colours.plus);
    context.lineWidth = Math.max(2, board.width / 100);
    context.strokeRect(...boxOf(state.token));
  }

  // The patches to which the chosen token attends; those of several heads in a fuller colour.
  function shadeAttended(context) {
    const bits = state.values?.get(data.blocks[state.block].booleans);
    if (!bits) return;
    context.fillStyle = paper[0] < 128 ? "#a884f5" : "#6d3fc0";
    context.globalAlpha = 0.8 / bits.shape[1];
    for (let head = 0; head < bits.shape[1]; head++) {
      for (let i = first; i < tokens; i++) {
        if (!engine.bitAt(bits, head * tokens + state.token, i)) continue;
        const [x, y, w, h] = boxOf(i), gap = w * 0.06;
        context.fillRect(x + gap, y + gap, w - 2 * gap, h - 2 * gap);
      }
    }
    context.globalAlpha = 1;
  }

  function frameCursor(context) {
    const side = board.width / STEPS, [x, y] = state.cursor;
    context.strokeStyle = state.penDown ? css(colours.plus) : "#fff";
    context.lineWidth = Math.max(2, board.width / 120);
    context.strokeRect(x * side, (y * board.height) / STEPS, side, board.height / STEPS);
  }

  const rmsOf = (values, threshold) => {
    let sum = 0;
    for (const value of values) sum += (value - threshold) ** 2;
    return Math.sqrt(sum / values.length) || 1;
  };

  // Which token an entry of a value belongs to.
  function tokenOf({ shape }, ofColumns) {
    const last = shape[shape.length - 1];
    return ofColumns ? (i) => i % last : (i) => Math.floor(i / last) % tokens;
  }

  // The 97th percentile of the sizes of several values, which full colour stands for.
  function scaleOf(values) {
    const length = values[0].data.length, sizes = new Float32Array(values.length * length);
    values.forEach(({ data }, i) => sizes.set(data.map(Math.abs), i * length));
    sizes.sort();
    return sizes[Math.floor(0.97 * (sizes.length - 1))] || 1;
  }

  let scales = {}; // by part of the block
  const draw = {
    channels(canvas, at) {
      const [part, i] = at.split("."), block = data.blocks[state.block];
      const names = block[part], value = state.values.get(names[i]);
      scales[part] ??= scaleOf(names.map((name) => state.values.get(name)));
      const C = value.shape[2], shown = Math.min(C, 64);
      pen.mosaic(canvas, 1, shown, 230, state.token, (group, channel, token) => {
        return signed(Math.max(-1, Math.min(1, value.data[token * C + channel] / scales[part])));
      });
    },
    planes(canvas, at) {
      const [bits, before] = data.blocks[state.block].planes[at].map((name) => state.values.get(name));
      const [, heads, , d] = bits.shape, near = NEAR * rmsOf(before.data, 0);
      pen.mosaic(canvas, heads, d, 190, state.token, (head, channel, token) => {
        const row = head * tokens + token;
        if (Math.abs(before.data[row * d + channel]) < near) return colours.near;
        return engine.bitAt(bits, row, channel) ? colours.plus : colours.minus;
      });
    },
    ratio(canvas, at, head) {
      const { data: q } = state.values.get(data.blocks[state.block][at]);
      const begin = (head * tokens + state.token) * tokens;
      const colourAt = (i) => mix(colours.card, colours.one, Math.min(1, q[begin + i]));
      pen.tokenMap(canvas, state.token, colourAt, null, grey, LARGE);
    },
    boolean(canvas, at, head) {
      const bits = state.values.get(data.blocks[state.block][at]);
      const lit = (i) => engine.bitAt(bits, head * tokens + state.token, i);
      pen.tokenMap(canvas, state.token, (i) => (lit(i) ? colours.one : colours.zero), lit, grey, LARGE);
    },
    near(canvas) {
      const most = Math.max(1, ...nearTokens);
      const share = (i) => nearTokens[i] / most;
      pen.tokenMap(canvas, state.token, (i) => mix(colours.zero, colours.near, share(i)), () => true, grey);
    },
  };

  let nearTokens = [];
  function margins() {
    nearTokens = new Array(tokens).fill(0);
    const { thresholds } = data.blocks[state.block], lines = element("margins").tBodies[0].rows;
    thresholds.forEach(([name, threshold, ofColumns], i) => {
      const value = state.values.get(name), rms = rmsOf(value.data, threshold);
      const counts = new Array(BINS).fill(0), token = tokenOf(value, ofColumns);
      let near = 0;
      value.data.forEach((z, k) => {
        const distance = (z - threshold) / rms;
        const bin = Math.floor(((distance + REACH) / (2 * REACH)) * BINS);
        if (bin >= 0 && bin < BINS) counts[bin]++;
        if (Math.abs(distance) >= NEAR) return;
        near++;
        nearTokens[token(k)]++;
      });
      const [, canvasCell, nearCell, countCell] = lines[i].cells;
      histogram(canvasCell.firstChild, counts);
      [nearCell.textContent, countCell.textContent] = [count(near), count(value.data.length)];
    });
  }

  function histogram(canvas, counts) {
    const most = Math.max(1, ...counts), high = 24;
    [canvas.width, canvas.height] = [4 * BINS, high];
    const context = canvas.getContext("2d");
    counts.forEach((number, i) => {
      const tall = (number / most) * high;
      context.fillStyle = css(i < BINS / 2 ? colours.minus : colours.plus);
      context.fillRect(4 * i, high - tall, 3, tall);
    });
    context.fillStyle = css(colours.near);
    context.fillRect(2 * BINS - 1, 0, 2, high);
  }

  // Drawn is what can be seen; the rest when it comes into view.
  const canvases = [...document.querySelectorAll("canvas[data-draw]")], seenCanvases = new Set();
  const watcher = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      seenCanvases[isIntersecting ? "add" : "delete"](target);
      if (isIntersecting) drawOne(target);
    }
  }, { rootMargin: "100px" });

  function drawOne(canvas) {
    const { draw: kind, at, head, label } = canvas.dataset;
    if (kind === "near" && !nearTokens.length) margins();
    draw[kind](canvas, at, Number(head));
    canvas.setAttribute("aria-label", label.replace("{token}", tokenName()));
  }

  function drawInside() {
    pen.forget();
    [scales, nearTokens] = [{}, []];
    drawChosen();
  }

  // After another choice of a token nothing is computed anew.
  function drawChosen() {
    seenCanvases.forEach(drawOne);
    const bits = state.values.get(data.blocks[state.block].booleans);
    for (const text of document.querySelectorAll("[data-count]")) {
      let chosen = 0;
      for (let i = 0; i < tokens; i++) chosen += engine.bitAt(bits, Number(text.dataset.count) * tokens + state.token, i);
      text.textContent = `attends to ${chosen} of ${tokens}`;
    }
    for (const text of document.querySelectorAll(".token")) text.textContent = tokenName();
  }

  // --- choosing ----------------------------------------------------------------------------------

  const cells = [...document.querySelectorAll(".patches button")];
  const classToken = element("class-token");

  function choose(token) {
    if (token === state.token) return;
    state.token = token;
    mark();
    drawBoard();
    drawChosen();
  }

  function mark() {
    cells.forEach((cell, patch) => {
      cell.setAttribute("aria-selected", String(patch === state.token - first));
      cell.tabIndex = patch === Math.max(0, state.token - first) ? 0 : -1;
    });
    classToken?.setAttribute("aria-pressed", String(state.token < first));
  }

  const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const inside = (value, count) => Math.max(0, Math.min(count - 1, value));

  cells.forEach((cell, patch) => {
    cell.addEventListener("click", () => choose(first + patch));
    cell.addEventListener("pointerenter", () => choose(first + patch));
    cell.addEventListener("keydown", (event) => {
      const move = MOVES[event.key];
      if (!move || event.altKey || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      const column = inside((patch % columns) + move[0], columns);
      const row = inside(Math.floor(patch / columns) + move[1], rows);
      cells[row * columns + column].focus({ preventScroll: true });
      choose(first + row * columns + column);
      say(`${tokenName()}: ${[...document.querySelectorAll("[data-count]")].map((text) => text.textContent).join(", ")}`);
    });
  });
  classToken?.addEventListener("click", () => choose(0));
  for (const radio of document.querySelectorAll("[name=block]")) {
    radio.addEventListener("change", () => {
      state.block = Number(radio.value);
      drawBoard();
      drawInside();
    });
  }

  // --- pen and keyboard --------------------------------------------------------------------------

  const ink = () => {
    const chosen = element("colour")?.value;
    if (chosen) return [1, 3, 5].map((i) => parseInt(chosen.slice(i, i + 2), 16));
    return paper.map((level) => 255 - level);
  };

  function touch() {
    state.before = state.values;
    state.changes++;
  }

  let stroke = null; // the one that is drawn; undone meanwhile, it goes on where nobody sees it
  function begin(point) {
    touch();
    if (state.image) state.strokes = []; // a picture is drawn anew, not over what it had replaced
    forgetPicture();
    stroke = { points: [point], colour: ink() };
    state.strokes.push(stroke);
  }

  const follow = (point) => stroke.points.push(point);

  // The patch under a point of the board.
  function underneath([x, y]) {
    const { scale, offset } = place();
    const column = inside(Math.floor(((x * scale[0] + offset[0]) / width) * columns), columns);
    const row = inside(Math.floor(((y * scale[1] + offset[1]) / height) * rows), rows);
    return first + row * columns + column;
  }

  function pointOf(event) {
    const box = board.getBoundingClientRect();
    const share = (value) => Math.max(0, Math.min(1, value));
    return [share((event.clientX - box.left) / box.width), share((event.clientY - box.top) / box.height)];
  }

  board.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || !event.isPrimary) return; // a second finger draws no second line
    board.setPointerCapture(event.pointerId);
    drawingNow = true;
    state.cursor = null;
    begin(pointOf(event));
    later(run);
  });
  board.addEventListener("pointermove", (event) => {
    if (!event.isPrimary) return;
    const point = pointOf(event);
    if (drawingNow) {
      const between = event.getCoalescedEvents?.() ?? [];
      for (const each of between.length ? between : [event]) follow(pointOf(each));
    }
    const token = underneath(point), other = token !== state.token;
    state.token = token;
    if (other) mark();
    if (drawingNow) later(run);
    else if (other) later(drawBoard, drawChosen);
  });
  for (const kind of ["pointerup", "pointercancel"]) {
    board.addEventListener(kind, (event) => {
      if (!drawingNow || !event.isPrimary) return;
      drawingNow = false;
      later(run, sayAnswer);
    });
  }

  const cursorPoint = () => state.cursor.map((step) => (step + 0.5) / STEPS);
  function pressed(event) {
    if (event.altKey || event.ctrlKey || event.metaKey) return false;
    state.cursor ??= [STEPS / 2, STEPS / 4];
    const where = () => `row ${state.cursor[1] + 1}, column ${state.cursor[0] + 1}`;
    if (event.key in MOVES) {
      state.cursor = state.cursor.map((step, axis) => inside(step + MOVES[event.key][axis], STEPS));
      if (state.penDown) follow(cursorPoint());
      state.token = underneath(cursorPoint());
      mark();
      say(state.penDown ? `drawing, ${where()}` : where());
      if (state.penDown) run();
      else (drawBoard(), drawChosen());
    } else if (event.key === " " || event.key === "Enter") {
      state.penDown = !state.penDown;
      if (state.penDown) begin(cursorPoint());
      run();
      say(state.penDown ? `pen down, ${where()}` : `pen up. ${state.answer}`);
    } else if (event.key === "Backspace" || event.key === "Delete") undo();
    else return false;
    return true;
  }
  board.addEventListener("keydown", (event) => {
    if (pressed(event)) event.preventDefault();
  });
  board.addEventListener("focus", () => {
    if (board.matches(":focus-visible") && !drawingNow) {
      state.cursor ??= [STEPS / 2, STEPS / 4];
      drawBoard();
    }
  });
  board.addEventListener("blur", () => {
    [state.penDown, state.cursor] = [false, null];
    drawBoard();
  });

  function undo() {
    touch();
    if (state.image) forgetPicture();
    else state.strokes.pop();
    state.penDown = false;
    run();
    sayAnswer();
  }
  element("undo").addEventListener("click", undo);
  element("clear").addEventListener("click", () => {
    touch();
    state.strokes = [];
    forgetPicture();
    run();
    say("cleared");
  });
  element("centre")?.addEventListener("change", run);

  // --- pictures from elsewhere -------------------------------------------------------------------

  function show(seen) {
    touch();
    state.image = seen;
    warn(seen);
    run();
    sayAnswer();
  }

  let given = null; // the picture that was dropped, to be read once more
  function forgetPicture() {
    [given, state.image] = [null, null];
    element("warning").hidden = true;
  }

  function take(rgba, shape) {
    given = [rgba, shape];
    const invert = preprocessing.invert !== element("exchange").checked;
    show(pixels.apply(rgba, shape, { ...preprocessing, invert }));
  }
  element("exchange").addEventListener("change", () => given && take(...given));

  function warn(seen) {
    const text = element("warning"), mean = seen.reduce((sum, level) => sum + level, 0) / seen.length / 255;
    const bounds = preprocessing.brightness;
    const [low, high] = bounds && preprocessing.invert ? [1 - bounds[1], 1 - bounds[0]] : bounds ?? [0, 1];
    text.hidden = mean >= low && mean <= high;
    if (!text.hidden) {
      text.textContent = `Careful: brightness ${mean.toFixed(2)}, the images of the training had ${low.toFixed(2)} to ${high.toFixed(2)}.`;
    }
  }

  // The RGBA of a file and its [height, width]; an error where it is no picture, or too large a one.
  async function decoded(file) {
    const bitmap = await createImageBitmap(file, { colorSpaceConversion: "none" });
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [bitmap.width, bitmap.height];
    const context = canvas.getContext("2d");
    context.fillStyle = "#fff"; // what is transparent lies on white
    context.fillRect(0, 0, bitmap.width, bitmap.height);
    context.drawImage(bitmap, 0, 0);
    return [context.getImageData(0, 0, bitmap.width, bitmap.height).data, [bitmap.height, bitmap.width]];
  }

  async function open(file) {
    const mine = ++state.changes;
    let read;
    try {
      read = await decoded(file);
    } catch {
      if (mine !== state.changes) return;
      element("warning").hidden = false;
      element("warning").textContent = `${file.name}: no picture that this browser can read.`;
      say(element("warning").textContent);
      return;
    }
    if (mine === state.changes) take(...read);
  }
  element("file").addEventListener("change", ({ target }) => {
    if (target.files[0]) open(target.files[0]);
    target.value = ""; // so that the same file, chosen again, is a change
  });
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    if (event.dataTransfer.files[0]) open(event.dataTransfer.files[0]);
  });
  for (const button of document.querySelectorAll("[data-sample]")) {
    button.addEventListener("click", () => {
      given = null;
      const sample = bytes(data.samples[button.dataset.sample].pixels);
      show(preprocessing.invert ? sample.map((level) => 255 - level) : sample);
    });
  }

  // --- taking one idea away ----------------------------------------------------------------------

  const sliders = [...document.querySelectorAll("[data-op]")];
  for (const slider of sliders) {
    slider.addEventListener("input", () => {
      for (const other of sliders) if (other !== slider) other.value = 100; // one at a time
      state.strengths = {};
      for (const { dataset, value } of sliders) state.strengths[dataset.op] = value / 100;
      for (const { value, id } of sliders) document.querySelector(`output[for=${id}]`).textContent = `${value} %`;
      later(run);
    });
    slider.addEventListener("change", () => later(run, sayDifference));
  }

  element("save").addEventListener("click", () => {
    const file = engine.safetensors(engine.taps(network, state.values));
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([file]));
    link.download = "taps.safetensors";
    link.click();
    URL.revokeObjectURL(link.href);
  });

  function readColours() {
    pen.readColours();
    const hex = getComputedStyle(document.documentElement).getPropertyValue("--near").trim();
    colours.near = [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    readColours();
    run();
  });
  new ResizeObserver(() => drawBoard()).observe(board.parentElement);
  readColours();
  mark();
  canvases.forEach((canvas) => watcher.observe(canvas));
  const [start] = document.querySelectorAll("[data-sample]");
  if (start) start.click();
  else run();
  // A browser compiles what has run a few times: let the first stroke find it done.
  let cold = 8;
  setTimeout(function warm() {
    engine.run(network, imageOf(read()));
    if (--cold) setTimeout(warm, 30);
  }, 100);
})();
