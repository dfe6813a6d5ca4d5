// A station program that logs with winston, into a file and by HTTP: see tests/integration/test_winston.py.
//
//     node winston_application.js OPTIONS          OPTIONS is JSON: {file, http, sockets, paced, splat}
//
// READY when it runs. Each line on stdin is JSON, and is answered by a line of JSON when it has been done:
//     {"log": [level, message, …]}    {"fail": text, "of": code}    {"burst": [from, to]}    {"heard": true}    {"end": true}
"use strict";

const http = require("http");
const { once } = require("events");
const { setTimeout } = require("timers/promises");
const readline = require("readline");
const winston = require("winston");

const options = JSON.parse(process.argv[2]);
const { combine, errors, json, splat, timestamp } = winston.format;
// The values for the places of a message stay beside it, so that the reader has the sentence and the values apart.
const apart = winston.format((info) => {
  const values = info[Symbol.for("splat")];
  if (values && /%[sdifjoOc]/.test(info.message)) info.splat = values;
  return info;
});
const format = combine(timestamp(), errors({ stack: true }), options.splat === "apart" ? apart() : splat(), json());

const transports = [];
const heard = { logged: 0, warned: [] };
if (options.file) transports.push(new winston.transports.File(options.file));
if (options.http) {
  // As many connections as are told; otherwise node opens one for each request that is under way.
  const agent = options.sockets ? new http.Agent({ keepAlive: true, maxSockets: options.sockets }) : undefined;
  const posting = new winston.transports.Http({ ...options.http, agent });
  posting.on("logged", () => (heard.logged += 1));
  posting.on("warn", (error) => heard.warned.push(error.code || error.message));
  transports.push(posting);
}
const logger = winston.createLogger({ levels: { emerg: 0, error: 1, warn: 2, info: 3, http: 4, debug: 5 }, level: "debug", format, transports });

async function obey(command) {
  if (command.log) logger.log(...command.log);
  if (command.fail) logger.error(Object.assign(new TypeError(command.fail), { code: command.of, correlationId: "c-fail" }));
  if (command.burst) {
    for (let n = command.burst[0]; n < command.burst[1]; n++) {
      // Paced: winston drops records that come in a burst while it changes files.
      const written = options.paced && Promise.race([once(transports[0], "logged"), setTimeout(500)]);
      logger.info("cycle done", { n, correlationId: `order-${n % 7}`, padding: "x".repeat(100) });
      if (n % 50 === 0) await new Promise((resolve) => setImmediate(resolve));
      await written;
    }
  }
  if (command.end) {
    logger.end();
    if (options.file) await new Promise((resolve) => logger.on("finish", resolve));
  }
  console.log(JSON.stringify(command.heard ? heard : "DONE"));
}

const lines = readline.createInterface({ input: process.stdin });
let before = Promise.resolve();
lines.on("line", (line) => (before = before.then(() => obey(JSON.parse(line)))));
console.log(JSON.stringify("READY"));
