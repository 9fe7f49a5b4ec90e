"use strict";
// The packed network in JavaScript: one small function an operation, as in refimpl/ops, and a loop
// over the list of nodes. It runs in a browser and in Node, and knows nothing of a page.
//
// A value is {shape, data}: floats in a Float32Array, whole numbers in an Int32Array. Bits are
// {shape, words, row}: signs packed along the last axis, least significant bit first, `row` 32-bit
// words a row, padded with 0 to 64 bits [SPEC 1]. The first axis of a shape is the one image.
// A sum is taken in JavaScript's only number, 64 bits wide, and rounded once, to 32, when stored.
const engine = (() => {
  const size = (shape) => shape.reduce((product, side) => product * side, 1);
  const last = (shape) => shape[shape.length - 1];
  const floats = (shape) => ({ shape, data: new Float32Array(size(shape)) });
  const whole = (shape) => ({ shape, data: new Int32Array(size(shape)) });

  function bitsOf({ shape, data }, isOne) {
    const K = last(shape), row = 2 * Math.ceil(K / 64);
    const words = new Uint32Array((size(shape) / K) * row);
    for (let i = 0, r = 0; r < words.length; r += row) {
      for (let k = 0; k < K; k += 32) {
        let word = 0;
        for (let b = 0; b < Math.min(32, K - k); b++, i++) if (isOne(data[i])) word |= 1 << b;
        words[r + (k >> 5)] = word;
      }
    }
    return { shape, words, row };
  }

  const bitAt = (bits, row, k) => (bits.words[row * bits.row + (k >> 5)] >>> (k & 31)) & 1;

  function popcount(x) {
    x -= (x >>> 1) & 0x55555555;
    x = (x & 0x33333333) + ((x >>> 2) & 0x33333333);
    return Math.imul((x + (x >>> 4)) & 0x0f0f0f0f, 0x01010101) >>> 24;
  }

  // Signs -1 and +1 of `rows` rows of a, from row i on, with `columns` of b, from row j on:
  // K - 2 popcount(a ^ b), into y from `at` on.
  function signProducts(a, i, rows, b, j, columns, y, at) {
    const K = last(a.shape), wide = a.row, left = a.words, right = b.words;
    for (let p = i * wide; p < (i + rows) * wide; p += wide) {
      for (let q = j * wide; q < (j + columns) * wide; q += wide, at++) {
        let differing = 0;
        for (let w = 0; w < wide; w++) differing += popcount(left[p + w] ^ right[q + w]);
        y[at] = K - 2 * differing;
      }
    }
  }

  // Position of a patch among the tokens; a class token stands in front.
  const firstOf = (x, grid) => x.shape[1] - grid[0] * grid[1];

  const ops = {
    patch_embed([image, weight, bias]) {
      const [, channels, H, W] = image.shape, [C, , p] = weight.shape;
      const y = floats([1, (H / p) * (W / p), C]);
      let i = 0;
      for (let top = 0; top < H; top += p) {
        for (let left = 0; left < W; left += p) {
          for (let c = 0; c < C; c++, i++) {
            let sum = 0, k = c * channels * p * p;
            for (let channel = 0; channel < channels; channel++) {
              for (let row = top; row < top + p; row++) {
                const begin = (channel * H + row) * W + left;
                for (let j = begin; j < begin + p; j++, k++) sum += image.data[j] * weight.data[k];
              }
            }
            y.data[i] = sum + bias.data[c];
          }
        }
      }
      return y;
    },

    class_token([x, token]) {
      const y = floats([1, x.shape[1] + 1, x.shape[2]]);
      y.data.set(token.data);
      y.data.set(x.data, x.shape[2]);
      return y;
    },

    drop_class_token([x]) {
      return { shape: [1, x.shape[1] - 1, x.shape[2]], data: x.data.slice(x.shape[2]) };
    },

    position_embedding: ([x, position]) => ops.add([x, position]),

    add(terms) {
      const y = floats(terms[0].shape);
      for (const { data } of terms) for (let i = 0; i < y.data.length; i++) y.data[i] += data[i];
      return y;
    },

    identity: ([x]) => x,
    stop_gradient: ([x]) => x,

    shift([x, move]) {
      const y = floats(x.shape), C = last(x.shape);
      for (let i = 0; i < y.data.length; ) {
        for (let c = 0; c < C; c++, i++) y.data[i] = x.data[i] + move.data[c];
      }
      return y;
    },

    layer_norm([x, weight, bias], { eps }) {
      const y = floats(x.shape), C = last(x.shape);
      for (let begin = 0; begin < y.data.length; begin += C) {
        let mean = 0, variance = 0;
        for (let c = 0; c < C; c++) mean += x.data[begin + c] / C;
        for (let c = 0; c < C; c++) variance += (x.data[begin + c] - mean) ** 2 / C;
        const std = Math.sqrt(variance + eps);
        for (let c = 0; c < C; c++) {
          y.data[begin + c] = ((x.data[begin + c] - mean) / std) * weight.data[c] + bias.data[c];
        }
      }
      return y;
    },

    batch_norm([x, weight, bias, mean, variance], { eps }) {
      const y = floats(x.shape), C = last(x.shape);
      for (let i = 0; i < y.data.length; ) {
        for (let c = 0; c < C; c++, i++) {
          const normalised = (x.data[i] - mean.data[c]) / Math.sqrt(variance.data[c] + eps);
          y.data[i] = normalised * weight.data[c] + bias.data[c];
        }
      }
      return y;
    },

    // The Haar transform of the tokens on their grid: low = cA, high = (cH + cV) + cD [SPEC 4].
    // What `strength` leaves out of it is the token itself, as with haar_mode="none".
    bands([x], { grid, mode, cls, strength = 1 }) {
      const [gh, gw] = grid, C = last(x.shape), first = firstOf(x, grid);
      const low = { shape: x.shape, data: x.data.slice() };
      const high = { shape: x.shape, data: x.data.slice() };
      const share = mode === "none" ? 0 : strength;
      const next = (i, side) => (i + 1 < side ? i + 1 : mode === "edge" ? i : 0);
      for (let i = 0; i < gh; i++) {
        for (let j = 0; j < gw; j++) {
          const at = (row, column) => (first + row * gw + column) * C;
          const [a, b] = [at(i, j), at(i, next(j, gw))];
          const [c, d] = [at(next(i, gh), j), at(next(i, gh), next(j, gw))];
          for (let k = 0; k < C; k++) {
            const own = x.data[a + k];
            const above = own + x.data[b + k], below = x.data[c + k] + x.data[d + k];
            const left = own - x.data[b + k], right = x.data[c + k] - x.data[d + k];
            const details = (above - below + (left + right) + (left - right)) / 4;
            low.data[a + k] = share * ((above + below) / 4) + (1 - share) * own;
            high.data[a + k] = share * details + (1 - share) * own;
          }
        }
      }
      if (cls === "low") high.data.fill(0, 0, first * C);
      return [low, high];
    },

    binary_linear([x, weight], attributes, inside) {
      const bit = inside("bit", ops.sign([x])), outputs = weight.bits.shape[0];
      const shape = [...x.shape.slice(0, -1), outputs];
      const int = inside("int", whole(shape));
      signProducts(bit, 0, int.data.length / outputs, weight.bits, 0, outputs, int.data, 0);
      const y = floats(shape);
      for (let i = 0; i < y.data.length; ) {
        for (let o = 0; o < outputs; o++, i++) y.data[i] = int.data[i] * weight.scale.data[o];
      }
      return y;
    },

    linear([x, weight, bias]) {
      const [O, I] = weight.shape, y = floats([...x.shape.slice(0, -1), O]);
      for (let i = 0, begin = 0; i < y.data.length; begin += I) {
        for (let o = 0; o < O; o++, i++) {
          let sum = 0;
          for (let k = 0; k < I; k++) sum += x.data[begin + k] * weight.data[o * I + k];
          y.data[i] = bias ? sum + bias.data[o] : sum;
        }
      }
      return y;
    },

    // The shortcut: tiled to more channels, or means of neighbouring ones.
    fit([x], { outputs }) {
      const inputs = last(x.shape);
      if (outputs === inputs) return x;
      const y = floats([...x.shape.slice(0, -1), outputs]);
      if (outputs > inputs) {
        for (let i = 0; i < y.data.length; i += inputs) {
          const begin = Math.floor(i / outputs) * inputs;
          y.data.set(x.data.subarray(begin, begin + inputs), i);
        }
        return y;
      }
      const group = inputs / outputs;
      for (let i = 0, k = 0; i < y.data.length; i++) {
        let sum = 0;
        for (const end = k + group; k < end; k++) sum += x.data[k];
        y.data[i] = sum / group;
      }
      return y;
    },

    // `strength` is that of the token shifts; at 0 it is the RPReLU of a channel.
    rprelu([x, shiftIn, slope, shiftOut, tokenIn, tokenOut], { strength = 1 }) {
      const y = floats(x.shape), C = last(x.shape);
      for (let i = 0, token = 0; i < y.data.length; token++) {
        const before = tokenIn ? strength * tokenIn.data[token] : 0;
        const behind = tokenOut ? strength * tokenOut.data[token] : 0;
        for (let c = 0; c < C; c++, i++) {
          const u = x.data[i] - shiftIn.data[c] - before;
          y.data[i] = (u > 0 ? u : slope.data[c] * u) + shiftOut.data[c] + behind;
        }
      }
      return y;
    },

    split_heads([x], { heads, transposed }) {
      const [, N, C] = x.shape, d = C / heads;
      const y = floats([1, heads, ...(transposed ? [d, N] : [N, d])]);
      for (let n = 0, i = 0; n < N; n++) {
        for (let h = 0; h < heads; h++) {
          for (let k = 0; k < d; k++, i++) y.data[h * N * d + (transposed ? k * N + n : n * d + k)] = x.data[i];
        }
      }
      return y;
    },

    merge_heads([x]) {
      const [, heads, N, d] = x.shape, y = floats([1, N, heads * d]);
      for (let h = 0, i = 0; h < heads; h++) {
        for (let n = 0; n < N; n++) {
          for (let k = 0; k < d; k++, i++) y.data[(n * heads + h) * d + k] = x.data[i];
        }
      }
      return y;
    },

    sign: ([z]) => bitsOf(z, (value) => value >= 0),

    // Of signs alone: (1, heads, N, d) with itself.
    matmul([a, b]) {
      const [, heads, N] = a.shape, M = b.shape[2], y = whole([1, heads, N, M]);
      for (let h = 0; h < heads; h++) signProducts(a, h * N, N, b, h * M, M, y.data, h * N * M);
      return y;
    },

    band_sum([low, high, weight], { head_dim }) {
      const y = floats(low.shape), heads = low.shape[1], each = y.data.length / heads;
      for (let h = 0, i = 0; h < heads; h++) {
        const a = weight.data[h], b = weight.data[heads + h];
        for (const end = i + each; i < end; i++) {
          y.data[i] = (a * low.data[i] + b * high.data[i]) / Math.sqrt(head_dim);
        }
      }
      return y;
    },

    divide: ([x], { divisor }) => ({ shape: x.shape, data: Float32Array.from(x.data, (v) => v / divisor) }),
    rescale: ([x], { factor }) => ({ shape: x.shape, data: Float32Array.from(x.data, (v) => v * factor) }),

    softmax([x]) {
      const y = floats(x.shape), N = last(x.shape);
      for (let begin = 0; begin < y.data.length; begin += N) {
        let most = -Infinity, sum = 0;
        for (let i = begin; i < begin + N; i++) most = Math.max(most, x.data[i]);
        for (let i = begin; i < begin + N; i++) sum += Math.exp(x.data[i] - most);
        for (let i = begin; i < begin + N; i++) y.data[i] = Math.exp(x.data[i] - most) / sum;
      }
      return y;
    },

    // Attend or not: q = prob / alpha' above 1/2; then 2 popcount(a & v) - popcount(a) [SPEC 2].
    boolean_attention([prob, value, alpha], { context }, inside) {
      const [, heads, N] = prob.shape, d = value.shape[2];
      const step = Float32Array.from(alpha.data, (a) => Math.max(a, Math.fround(1e-5)));
      const stepAt = (h) => step[h % step.length];
      const q = inside("prob.z", floats(prob.shape));
      for (let h = 0, i = 0; h < heads; h++) {
        for (const end = i + N * N; i < end; i++) q.data[i] = prob.data[i] / stepAt(h);
      }
      const bit = inside("prob.bit", bitsOf(q, (ratio) => ratio > 0.5));
      const int = inside("context.int", whole([1, heads, N, d])), y = floats(int.shape);
      for (let h = 0, i = 0; h < heads; h++) {
        for (let n = 0; n < N; n++) {
          for (let k = 0; k < d; k++, i++) {
            let both = 0, chosen = 0;
            for (let w = 0; w < bit.row; w++) {
              const attends = bit.words[(h * N + n) * bit.row + w];
              both += popcount(attends & value.words[(h * d + k) * value.row + w]);
              chosen += popcount(attends);
            }
            int.data[i] = 2 * both - chosen;
            if (context === "differences") int.data[i] -= chosen * (2 * bitAt(value, h * d + k, n) - 1);
            y.data[i] = int.data[i] * stepAt(h);
          }
        }
      }
      return y;
    },

    neighbours([x], { grid, border }) {
      const [gh, gw] = grid, C = last(x.shape), first = firstOf(x, grid), y = floats(x.shape);
      for (let i = 0; i < gh; i++) {
        for (let j = 0; j < gw; j++) {
          const found = [];
          for (let r = Math.max(0, i - 1); r <= Math.min(gh - 1, i + 1); r++) {
            for (let c = Math.max(0, j - 1); c <= Math.min(gw - 1, j + 1); c++) {
              if (r !== i || c !== j) found.push((first + r * gw + c) * C);
            }
          }
          const divisor = border === "existing" ? Math.max(1, found.length) : 8;
          for (let k = 0; k < C; k++) {
            let sum = 0;
            for (const begin of found) sum += x.data[begin + k];
            y.data[(first + i * gw + j) * C + k] = sum / divisor;
          }
        }
      }
      return y;
    },

    // Means along rows or columns; beyond the grid is 0.
    box([x], { grid, side, axis }) {
      const [gh, gw] = grid, C = last(x.shape), y = floats(x.shape), reach = (side - 1) / 2;
      for (let token = 0; token < gh * gw; token++) {
        const at = axis === 0 ? Math.floor(token / gw) : token % gw, step = axis === 0 ? gw : 1;
        for (let k = Math.max(-reach, -at); k <= Math.min(reach, grid[axis] - 1 - at); k++) {
          const begin = (token + k * step) * C;
          for (let c = 0; c < C; c++) y.data[token * C + c] += x.data[begin + c] / side;
        }
      }
      return y;
    },

    // `strength` is that of the neighbours; at 0 it is a learned shortcut, as with neighbours="none".
    differential([value, mean, shortcut, neighbour], { strength = 1 }) {
      const y = floats(value.shape), C = last(value.shape);
      for (let i = 0; i < y.data.length; ) {
        for (let c = 0; c < C; c++, i++) {
          y.data[i] = shortcut.data[c] * value.data[i] - strength * neighbour.data[c] * mean.data[i];
        }
      }
      return y;
    },

    layer_scale([x, alpha, beta]) {
      const y = floats(x.shape), C = last(x.shape);
      for (let i = 0; i < y.data.length; ) {
        for (let c = 0; c < C; c++, i++) y.data[i] = alpha.data[c] * x.data[i] + (beta ? beta.data[c] : 0);
      }
      return y;
    },

    pool([x], { pool }) {
      const [, N, C] = x.shape;
      if (pool === "cls") return { shape: [1, C], data: x.data.slice(0, C) };
      const y = floats([1, C]);
      for (let c = 0; c < C; c++) {
        let sum = 0;
        for (let n = 0; n < N; n++) sum += x.data[n * C + c];
        y.data[c] = sum / N;
      }
      return y;
    },
  };

  const bytesOf = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

  // What refimpl/live/export.py wrote -> a network: its nodes, and its parameters by path.
  function load(written) {
    const bits = new Uint32Array(bytesOf(written.bits).buffer); // little-endian, as every browser is
    const numbers = new Float32Array(bytesOf(written.floats).buffer);
    const parameters = new Map();
    let word = 0, number = 0;
    const take = (shape) => ({ shape, data: numbers.subarray(number, (number += size(shape))) });
    for (const [path, shape, binary] of written.parameters) {
      if (!binary) {
        parameters.set(path, take(shape));
        continue;
      }
      const row = 2 * Math.ceil(shape[1] / 64);
      const words = bits.subarray(word, (word += shape[0] * row));
      parameters.set(path, { bits: { shape, words, row }, scale: take([shape[0]]) });
    }
    return { nodes: written.nodes, parameters, output: written.output };
  }

  // An image {shape: [1, channels, H, W], data} -> every value by name. `strengths` gives operations
  // less of what they add, such as {bands: 0}.
  function run(network, image, strengths = {}) {
    const values = new Map([["input", image]]);
    const find = (name) => values.get(name) ?? network.parameters.get(name);
    for (const node of network.nodes) {
      const inside = (key, value) => {
        values.set(node.inside[key], value);
        return value;
      };
      const attributes = { ...node.attributes, strength: strengths[node.op] };
      const made = ops[node.op]([...node.inputs, ...node.params].map(find), attributes, inside);
      const outputs = Array.isArray(made) ? made : [made];
      node.outputs.forEach((name, i) => values.set(name, outputs[i]));
    }
    return values;
  }

  // Of the bits that two runs computed: [how many differ, how many there are].
  function flips(before, after) {
    let [differing, all] = [0, 0];
    for (const [name, { shape, words }] of after) {
      if (!words) continue;
      const others = before.get(name).words;
      for (let i = 0; i < words.length; i++) differing += popcount(words[i] ^ others[i]);
      all += size(shape);
    }
    return [differing, all];
  }

  // What a listener hears [SPEC 8.1], by name: values, bits, and the weights of binary matrices.
  // Of these a packed network has no `weight.z`.
  function taps(network, values) {
    const found = new Map();
    for (const node of network.nodes) {
      if (node.op === "binary_linear") {
        const weight = network.parameters.get(node.params[0]);
        found.set(node.inside["weight.bit"], weight.bits).set(node.inside["weight.scale"], weight.scale);
      }
      for (const name of Object.values(node.inside)) if (values.has(name)) found.set(name, values.get(name));
      if (node.heard) for (const name of node.outputs) found.set(name, values.get(name));
    }
    return found;
  }

  // Arrays by name as a .safetensors file; bits as words of 32.
  function safetensors(arrays) {
    const header = {}, parts = [];
    let begin = 0;
    for (const [name, { shape, data, words, row }] of arrays) {
      const values = words ?? data, end = begin + values.byteLength;
      const dtype = words ? "U32" : values instanceof Int32Array ? "I32" : "F32";
      header[name] = { dtype, shape: words ? [...shape.slice(0, -1), row] : shape, data_offsets: [begin, end] };
      parts.push([begin, new Uint8Array(values.buffer, values.byteOffset, values.byteLength)]);
      begin = end;
    }
    let text = JSON.stringify(header);
    text += " ".repeat((8 - (new TextEncoder().encode(text).length % 8)) % 8);
    const head = new TextEncoder().encode(text), file = new Uint8Array(8 + head.length + begin);
    new DataView(file.buffer).setBigUint64(0, BigInt(head.length), true);
    file.set(head, 8);
    for (const [offset, bytes] of parts) file.set(bytes, 8 + head.length + offset);
    return file;
  }

  return { ops, load, run, flips, taps, safetensors, bitAt };
})();
if (typeof module === "object") module.exports = engine;
