"use strict";
// The page's engine in Node: node taps.js ENGINE NETWORK IMAGE OUT [STRENGTHS]
// NETWORK is JSON of refimpl/live/export.py, IMAGE the JSON of {shape, data}, OUT a .safetensors.
const fs = require("node:fs");
const [, , source, networkFile, imageFile, out, strengths = "{}"] = process.argv;
const engine = require(source);
const network = engine.load(JSON.parse(fs.readFileSync(networkFile, "utf8")));
const { shape, data } = JSON.parse(fs.readFileSync(imageFile, "utf8"));
const image = { shape, data: Float32Array.from(data) };
const values = engine.run(network, image, JSON.parse(strengths));
fs.writeFileSync(out, engine.safetensors(engine.taps(network, values)));
