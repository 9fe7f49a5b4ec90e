"use strict";
// pixels.js in Node, with JSON on stdin: a list of calls {name, args}, and their results as JSON.
const fs = require("node:fs");
const path = require("node:path");
const pixels = require(path.join(process.argv[2], "pixels.js"));
const calls = JSON.parse(fs.readFileSync(0, "utf8"));
const plain = (value) => (ArrayBuffer.isView(value) ? Array.from(value) : value);
process.stdout.write(JSON.stringify(calls.map(({ name, args }) => plain(pixels[name](...args)))));
