// A node-opcua server for the tests: a counter that grows by one, a hundred variables, small operation limits, audits, logins.
//   node opcua_server.js PORT FOLDER      prints READY, then obeys JSON lines on stdin: {"count": 40}, {"set": "Oil.Temp", "value": 1.5}, {"alarm": "Oil.Level"}
"use strict";
const readline = require("node:readline");
const { OPCUAServer, OPCUACertificateManager, DataType, SecurityPolicy, StatusCodes, Variant } = require("node-opcua");

const [port, folder] = [Number(process.argv[2]), process.argv[3]];

async function main() {
  const certificates = new OPCUACertificateManager({ rootFolder: folder, automaticallyAcceptUnknownCertificate: true });
  await certificates.initialize();
  const server = new OPCUAServer({
    port,
    host: "127.0.0.1",
    resourcePath: "/press",
    serverCertificateManager: certificates,
    userCertificateManager: certificates,
    isAuditing: true,
    securityPolicies: [
      SecurityPolicy.None, SecurityPolicy.Basic128Rsa15, SecurityPolicy.Basic256, SecurityPolicy.Basic256Sha256,
      SecurityPolicy.Aes128_Sha256_RsaOaep, SecurityPolicy.Aes256_Sha256_RsaPss,
    ],
    allowAnonymous: true,
    userManager: { isValidUser: (user, password) => user === "agent" && password === "press-cell-4" },
    serverCapabilities: {
      maxSessions: 60,
      minSupportedSampleRate: 0, // or changes within 50 ms are one
      operationLimits: { maxNodesPerRead: 50, maxNodesPerBrowse: 10, maxMonitoredItemsPerCall: 20 },
    },
  });
  await server.initialize();
  const space = server.engine.addressSpace;
  const namespace = space.registerNamespace("http://acme/press");
  const cell = namespace.addObject({
    organizedBy: space.rootFolder.objects, nodeId: "s=Cell", browseName: "Cell", notifierOf: space.rootFolder.objects.server,
  });
  const variables = new Map();
  const add = (name, dataType, value) => {
    const variable = namespace.addVariable({ componentOf: cell, nodeId: `s=${name}`, browseName: name, dataType, minimumSamplingInterval: 0 });
    variable.setValueFromSource({ dataType, value });
    variables.set(name, [variable, dataType]);
  };
  add("Press.Cycles", DataType.UInt32, 0);
  add("Oil.Temp", DataType.Double, 55.0);
  add("Quality.Result", DataType.String, "ok");
  const level = namespace.addAnalogDataItem({
    componentOf: cell, nodeId: "s=Oil.Level", browseName: "Oil.Level", dataType: "Double", minimumSamplingInterval: 0,
    engineeringUnitsRange: { low: 0, high: 200 }, eventSourceOf: cell,
  });
  level.setValueFromSource({ dataType: DataType.Double, value: 100 });
  variables.set("Oil.Level", [level, DataType.Double]);
  for (let number = 0; number < 100; number++) add(`Many.${number}`, DataType.Double, number);
  await server.start();
  let cycles = 0;
  const set = (name, value) => {
    const [variable, dataType] = variables.get(name);
    variable.setValueFromSource(new Variant({ dataType, value }), StatusCodes.Good, new Date());
  };
  const alarm = (name) => {
    const [variable] = variables.get(name);
    space.installAlarmsAndConditionsService();
    namespace.instantiateExclusiveLimitAlarm("ExclusiveLimitAlarmType", {
      componentOf: cell, browseName: `${name}.Alarm`, conditionName: `${name}.Alarm`, conditionSource: variable, inputNode: variable,
      highLimit: 150, highHighLimit: 180, lowLimit: 50, lowLowLimit: 20,
    });
  };
  const obey = async (command) => {
    if (command.alarm) alarm(command.alarm);
    if (command.set) set(command.set, command.value);
    for (let left = command.count || 0; left > 0; left--) {
      set("Press.Cycles", ++cycles);
      // What is set twice in one turn of the event loop is one change to its monitored items.
      await new Promise((done) => setTimeout(done, 2));
    }
    process.stdout.write("DONE\n");
  };
  let turn = Promise.resolve();
  readline.createInterface({ input: process.stdin }).on("line", (line) => {
    turn = turn.then(() => obey(JSON.parse(line)));
  });
  process.stdin.on("end", () => process.exit(0));
  process.stdout.write("READY\n");
}

main().catch((error) => {
  process.stderr.write(`${error.stack}\n`);
  process.exit(1);
});
