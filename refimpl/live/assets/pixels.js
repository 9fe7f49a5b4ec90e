"use strict";
// Pictures and pen strokes to the pixels that a model reads; it runs in a browser and in Node.
// `apply` is refimpl.data.preprocessing: crop, grey or RGB, resize as Pillow does it, to the bit.
// Strokes are {points: [[x, y], …], colour}, x and y from 0 to 1, colour one level a channel.
const pixels = (() => {
  const FILTERS = {
    box: [0.5, (x) => (x > -0.5 && x <= 0.5 ? 1 : 0)],
    bilinear: [1, (x) => Math.max(0, 1 - Math.abs(x))],
    bicubic: [2, (x) => cubic(Math.abs(x))],
    lanczos: [3, (x) => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0)],
  };
  const sinc = (x) => (x === 0 ? 1 : Math.sin(x * Math.PI) / (x * Math.PI));
  function cubic(x) {
    if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
    return x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
  }
  const ONE = 2 ** 22; // Pillow's weights are whole numbers of this

  // For every output of an axis: the first input, and weights from there on.
  function weightsOf(inputs, begin, end, outputs, filter) {
    const [reach, of] = FILTERS[filter], step = (end - begin) / outputs, wide = Math.max(1, step);
    return Array.from({ length: outputs }, (_, i) => {
      const centre = begin + (i + 0.5) * step;
      const from = Math.max(0, Math.trunc(centre - reach * wide + 0.5));
      const to = Math.min(inputs, Math.trunc(centre + reach * wide + 0.5));
      const weights = [];
      for (let k = from; k < to; k++) weights.push(of((k - centre + 0.5) / wide));
      const total = weights.reduce((sum, weight) => sum + weight, 0) || 1;
      return [from, weights.map((w) => Math.trunc((w / total) * ONE + (w < 0 ? -0.5 : 0.5)))];
    });
  }

  // One axis of uint8 (length of what lies before, inputs, after), through a filter.
  function along(data, before, inputs, after, axis) {
    const made = new Uint8ClampedArray(before * axis.length * after);
    for (let b = 0, i = 0; b < before; b++) {
      for (const [from, weights] of axis) {
        for (let a = 0; a < after; a++, i++) {
          let sum = ONE / 2;
          for (let k = 0; k < weights.length; k++) sum += weights[k] * data[(b * inputs + from + k) * after + a];
          made[i] = Math.floor(sum / ONE);
        }
      }
    }
    return made;
  }

  function nearest(data, [H, W], channels, size, [left, top, right, bottom]) {
    const made = new Uint8ClampedArray(size[0] * size[1] * channels);
    const at = (i, begin, end, outputs) => Math.floor(begin + ((i + 0.5) * (end - begin)) / outputs);
    for (let row = 0, i = 0; row < size[0]; row++) {
      for (let column = 0; column < size[1]; column++) {
        const begin = (at(row, top, bottom, size[0]) * W + at(column, left, right, size[1])) * channels;
        for (let c = 0; c < channels; c++, i++) made[i] = data[begin + c];
      }
    }
    return made;
  }

  // uint8 (H, W, channels) -> (size, channels), of the crop about the centre.
  function resize(data, [H, W], channels, size, resampling, crop) {
    const [left, top] = [(W * (1 - crop)) / 2, (H * (1 - crop)) / 2];
    const box = [left, top, W - left, H - top];
    if (resampling === "nearest") return nearest(data, [H, W], channels, size, box);
    if (W !== size[1] || crop < 1) {
      data = along(data, H, W, channels, weightsOf(W, left, W - left, size[1], resampling));
    }
    if (H !== size[0] || crop < 1) {
      data = along(data, 1, H, size[1] * channels, weightsOf(H, top, H - top, size[0], resampling));
    }
    return data;
  }

  // RGBA as a canvas gives it, (H, W) -> uint8 (size, channels) as `preprocessing` says.
  function apply(rgba, shape, { size, mode, resampling, crop, invert }) {
    const channels = mode === "grey" ? 1 : 3, count = shape[0] * shape[1];
    const plain = new Uint8ClampedArray(count * channels);
    for (let i = 0, k = 0; i < count; i++) {
      const [r, g, b] = [rgba[4 * i], rgba[4 * i + 1], rgba[4 * i + 2]];
      if (mode === "grey") plain[k++] = (r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16;
      else [plain[k++], plain[k++], plain[k++]] = [r, g, b];
    }
    const read = resize(plain, shape, channels, size, resampling, crop);
    return invert ? read.map((level) => 255 - level) : read;
  }

  // --- strokes -----------------------------------------------------------------------------------

  const BOX = 20 / 28; // of the side: what MNIST scales a digit to
  const PEN = 1.2 / 28; // radius, of the side: that of a pen in MNIST
  const SMALL = 0.25; // of the board: what is smaller is not enlarged any further

  // Where strokes lie on an image: pixel = scale * point + offset. As they are, or as MNIST's
  // digits: the longer side 20 pixels of 28, then the centre of mass in the middle.
  function placed(strokes, [H, W], centre) {
    const side = Math.min(H, W), radius = PEN * side;
    if (!centre || !strokes.length) return { scale: [W, H], offset: [0, 0], radius };
    const ends = [0, 1].map((axis) => {
      const all = strokes.flatMap(({ points }) => points.map((point) => point[axis]));
      return [Math.min(...all), Math.max(...all)];
    });
    const longest = Math.max(SMALL, ...ends.map(([low, high]) => high - low));
    const scale = (BOX * side - 2 * radius) / longest;
    const place = { scale: [scale, scale], radius };
    place.offset = ends.map(([low, high], axis) => [W, H][axis] / 2 - (scale * (low + high)) / 2);
    const [x, y] = massOf(ink(strokes, [H, W], place), W);
    place.offset = [place.offset[0] + W / 2 - x, place.offset[1] + H / 2 - y];
    return place;
  }

  function massOf(covered, W) {
    let [total, x, y] = [1e-9, 0, 0];
    covered.forEach((share, i) => {
      total += share;
      x += share * ((i % W) + 0.5);
      y += share * (Math.floor(i / W) + 0.5);
    });
    return [x / total, y / total];
  }

  // The share of each pixel that strokes cover, (H, W).
  function ink(strokes, [H, W], { scale, offset, radius }) {
    const covered = new Float32Array(H * W);
    for (const { points } of strokes) {
      const line = points.map((point) => [0, 1].map((axis) => scale[axis] * point[axis] + offset[axis]));
      line.forEach((end, i) => cover(covered, [H, W], line[Math.max(0, i - 1)], end, radius));
    }
    return covered;
  }

  // One straight piece of a line, with round ends and an edge as soft as a pixel.
  function cover(covered, [H, W], [x0, y0], [x1, y1], radius) {
    const range = (a, b, side) => [
      Math.max(0, Math.floor(Math.min(a, b) - radius - 1)), Math.min(side, Math.ceil(Math.max(a, b) + radius + 1)),
    ];
    const [left, right] = range(x0, x1, W), [top, bottom] = range(y0, y1, H);
    const [dx, dy] = [x1 - x0, y1 - y0], length = dx * dx + dy * dy || 1;
    for (let row = top; row < bottom; row++) {
      for (let column = left; column < right; column++) {
        const [x, y] = [column + 0.5 - x0, row + 0.5 - y0];
        const along = Math.min(1, Math.max(0, (x * dx + y * dy) / length));
        const share = radius + 0.5 - Math.hypot(x - along * dx, y - along * dy);
        const i = row * W + column;
        covered[i] = Math.max(covered[i], Math.min(1, share));
      }
    }
  }

  // Strokes on paper -> uint8 (H, W, channels), the last one on top.
  function drawn(strokes, size, place, paper) {
    const made = new Uint8ClampedArray(size[0] * size[1] * paper.length);
    for (let i = 0; i < made.length; i++) made[i] = paper[i % paper.length];
    for (const stroke of strokes) {
      const covered = ink([stroke], size, place);
      covered.forEach((share, i) => {
        stroke.colour.forEach((level, c) => {
          const k = i * paper.length + c;
          made[k] = Math.round(made[k] + share * (level - made[k]));
        });
      });
    }
    return made;
  }

  return { apply, resize, placed, drawn };
})();
if (typeof module === "object") module.exports = pixels;
