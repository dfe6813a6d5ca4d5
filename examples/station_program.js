// A station program in Node that logs with winston (npm install winston): run it beside an agent that has an `intake` source, or a `log`
// source with parser = "winston" over logs/mes*.log.
//
//     node examples/station_program.js                  # 127.0.0.1:8801
//     node examples/station_program.js 127.0.0.1 8801 logs/mes.log
"use strict";

const http = require("http");
const winston = require("winston");

const [host = "127.0.0.1", port = "8801", filename = "logs/mes.log"] = process.argv.slice(2);
const { combine, errors, json, splat, timestamp } = winston.format;

// The file is the way that loses nothing: winston posts each record once and forgets it, whether or not the agent was there.
const posting = new winston.transports.Http({
  host, port: Number(port), path: "/v1/events/winston",
  agent: new http.Agent({ keepAlive: true, maxSockets: 4 }),  // without it: a connection for each record, and the agent has 64
});
posting.on("warn", (error) => console.error(`not taken by the agent: ${error.message}`));

const logger = winston.createLogger({
  format: combine(timestamp(), errors({ stack: true }), splat(), json()),
  transports: [new winston.transports.File({ filename, maxsize: 10_000_000, maxFiles: 10, tailable: true }), posting],
});

logger.info("order %s started", "4711", { correlationId: "order-4711", user: "ann" });
logger.warn("pressure is high", { correlationId: "order-4711", pressure_bar: 7.2 });
logger.error(Object.assign(new Error("the drawer is jammed"), { correlationId: "order-4711" }));
