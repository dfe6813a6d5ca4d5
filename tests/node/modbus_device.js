// Modbus servers of other makers, all with the same values: see tests/integration/modbus_counterpart.py.
//
//     node modbus_device.js jsmodbus|jsmodbus-rtu|modbus-serial|modbus-serial-rtu PORT|DEVICE
//
// READY when it listens. A number on stdin is written to the setpoint (holding 102) and answered by DONE.
"use strict";

const net = require("net");
const readline = require("readline");

const [maker, where] = process.argv.slice(2);
const HOLE = 110;
const holding = Buffer.alloc(2 * HOLE);
holding.writeFloatBE(61.5, 200);
holding.writeUInt16BE(1200, 204);
holding.writeInt32BE(-70000, 206);
holding.write("PRESS-4", 210, "ascii");
const input = Buffer.alloc(2);
input.writeUInt16BE(870, 0);
const coils = Buffer.alloc(250, 0b01010101);
const discrete = Buffer.from([1]);

function ready() {
  readline.createInterface({ input: process.stdin }).on("line", (line) => {
    holding.writeUInt16BE(Number(line), 204);
    console.log("DONE");
  });
  console.log("READY");
}

if (maker === "jsmodbus") {
  const server = new net.Server();
  new (require("jsmodbus").server.TCP)(server, { coils, discrete, holding, input });
  server.listen(Number(where), "127.0.0.1", ready);
} else if (maker === "jsmodbus-rtu") {
  const server = new net.Server((socket) => {
    socket.on("error", () => {});
    new (require("jsmodbus").server.RTU)(socket, { coils, discrete, holding, input });
  });
  server.listen(Number(where), "127.0.0.1", ready);
} else {
  const refused = () => Object.assign(new Error("there is no such address"), { modbusErrorCode: 2 });
  const vector = {
    getHoldingRegister: (address) => {
      if (address >= HOLE) throw refused();
      return holding.readUInt16BE(address * 2);
    },
    getInputRegister: (address) => {
      if (address > 0) throw refused();
      return input.readUInt16BE(0);
    },
    getCoil: (address) => address % 2 === 0,
    getDiscreteInput: (address) => address === 0,
  };
  const { ServerTCP, ServerSerial } = require("modbus-serial");
  if (maker === "modbus-serial") {
    const server = new ServerTCP(vector, { host: "127.0.0.1", port: Number(where), unitID: 1 });
    server.on("socketError", () => {});
    server.on("initialized", ready);
  } else {
    const server = new ServerSerial(vector, { port: where, baudRate: 19200, unitID: 1 });
    server.on("socketError", () => {});
    server.on("initialized", ready);
  }
}
