"use strict";
// Names of the operations of the page's engine, as JSON.
const path = require("node:path");
const engine = require(path.join(process.argv[2], "engine.js"));
process.stdout.write(JSON.stringify(Object.keys(engine.ops)));
