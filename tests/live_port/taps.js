"use strict";
// The page's engine in Node: node taps.js ASSETS, with JSON on stdin: a network as
// refimpl/live/export.py writes it, an image {shape, data}, strengths, and a .safetensors to write.
const fs = require("node:fs");
const path = require("node:path");
const engine = require(path.join(process.argv[2], "engine.js"));
const { network, image, strengths, out } = JSON.parse(fs.readFileSync(0, "utf8"));
const loaded = engine.load(network);
const values = engine.run(loaded, { shape: image.shape, data: Float32Array.from(image.data) }, strengths);
fs.writeFileSync(out, engine.safetensors(engine.taps(loaded, values)));
