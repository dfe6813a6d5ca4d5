"""The virtual line's press cell: a real OPC UA server whose values follow a seeded model.

What the cell does is a pure function of its seed and of how many steps it has made: `PressModel.step()` says which nodes change to
what, and the server writes just that. Whoever tests a reader therefore knows every value that ever was: `Press.Cycles` grows
by exactly one a step, so that a lost change is a hole in its numbers, and `--truth FILE` writes each change down, one JSON object a
line, after the server has taken it.

    python -m agent.simulator.opcua_server --port 4840 --seed 7 --rate 10 --control

With `--control` it obeys JSON lines on stdin: {"set": "Setpoint.Speed", "value": 1900}, {"event": "login", "user": "eve", "ok": false},
{"rate": 50}. That is how a scenario plays an attacker, an operator or a fault.
"""

import argparse
import asyncio
import contextlib
import json
import logging
import random
import signal
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from asyncua import ua as _ua
from asyncua.crypto.cert_gen import setup_self_signed_certificate
from asyncua.crypto.permission_rules import User, UserRole
from asyncua.server.server import Server
from asyncua.server.user_managers import UserManager
from cryptography.x509.oid import ExtendedKeyUsageOID

ua: Any = _ua
"""asyncua's generated types, as Any: they ask for int and str subclasses of their own everywhere."""

NAMESPACE = "http://acme/press"
APPLICATION_URI = "urn:acme:press:cell4"
USER, PASSWORD = "agent", "press-cell-4"

_DOUBLE, _INT32, _UINT32, _STRING = (
    ua.VariantType.Double,
    ua.VariantType.Int32,
    ua.VariantType.UInt32,
    ua.VariantType.String,
)

NODES: dict[str, tuple[ua.VariantType, Any]] = {
    "Spindle.Temp": (_DOUBLE, 41.0),
    "Spindle.Speed": (_DOUBLE, 1200.0),
    "Spindle.Vibration": (_DOUBLE, 0.8),
    "Oil.Temp": (_DOUBLE, 55.0),
    "Oil.Pressure": (_DOUBLE, 160.0),
    "Press.Cycles": (_UINT32, 0),
    "Press.Good": (_UINT32, 0),
    "Press.Scrap": (_UINT32, 0),
    "Press.Mode": (_INT32, 0),
    "Setpoint.Speed": (_DOUBLE, 1200.0),
    "Setpoint.Temp": (_DOUBLE, 41.0),
    "Quality.Width": (_DOUBLE, 100.0),
    "Quality.Result": (_STRING, "ok"),
    "Line.Press.Status": (_STRING, "running"),
    "Line.Feeder.Status": (_STRING, "running"),
    "Line.Robot.Status": (_STRING, "running"),
}
"""Every variable: its type and its value before the first step. Those under `Line.` hang below the object `Line`."""

RANGES: dict[str, dict[str, tuple[float, float]]] = {
    "Spindle.Temp": {"EURange": (10.0, 90.0), "InstrumentRange": (-20.0, 150.0)},
    "Spindle.Vibration": {"EURange": (0.0, 20.0)},
    "Spindle.Speed": {"EURange": (0.0, 0.0)},  # as many servers have it, where nobody filled it in
}
"""What the server says of the ranges of its variables, by property."""

WIDTH_MM, WIDTH_TOLERANCE_MM = 100.0, 0.05
_STATES = ("running", "running", "running", "idle", "starved", "fault")


class PressModel:
    """What the cell does, step by step: no clock, no network, the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.values: dict[str, Any] = {name: value for name, (_, value) in NODES.items()}

    def step(self) -> dict[str, Any]:
        """The nodes that change with this step and their new values; `Press.Cycles` is always one of them."""
        changes: dict[str, Any] = {"Press.Cycles": self.values["Press.Cycles"] + 1}
        changes |= self._analogue()
        changes |= self._quality()
        if changes["Press.Cycles"] % 25 == 0:
            name = self._random.choice([name for name in NODES if name.endswith(".Status")])
            changes[name] = self._random.choice(_STATES)
        changes = {name: value for name, value in changes.items() if value != self.values[name]}
        self.values |= changes
        return changes

    def _analogue(self) -> dict[str, Any]:
        """Temperatures, speed and the like drift back to where the setpoints want them."""
        draw = self._random.gauss
        now, wanted = self.values, self.values
        return {
            "Spindle.Temp": round(
                now["Spindle.Temp"] + (wanted["Setpoint.Temp"] - now["Spindle.Temp"]) * 0.05 + draw(0, 0.2), 3
            ),
            "Spindle.Speed": round(
                now["Spindle.Speed"] + (wanted["Setpoint.Speed"] - now["Spindle.Speed"]) * 0.2 + draw(0, 2), 1
            ),
            "Spindle.Vibration": round(abs(0.8 + draw(0, 0.05)), 4),
            "Oil.Temp": round(now["Oil.Temp"] + (55.0 - now["Oil.Temp"]) * 0.02 + draw(0, 0.1), 3),
            "Oil.Pressure": round(160.0 + draw(0, 1.5), 2),
        }

    def _quality(self) -> dict[str, Any]:
        """Every fifth cycle makes a part; too far from its width and it is scrap."""
        if (self.values["Press.Cycles"] + 1) % 5:
            return {}
        width = round(self._random.gauss(WIDTH_MM, 0.02), 4)
        good = abs(width - WIDTH_MM) < WIDTH_TOLERANCE_MM
        counter = "Press.Good" if good else "Press.Scrap"
        return {"Quality.Width": width, "Quality.Result": "ok" if good else "nok", counter: self.values[counter] + 1}


class _Users(UserManager):
    """Anonymous may read unless told otherwise; one user may log in. Every attempt is handed on."""

    def __init__(self, cell: "PressCell") -> None:
        self._cell = cell

    def get_user(
        self, iserver: Any, username: str | None = None, password: str | None = None, certificate: bytes | None = None
    ) -> User | None:
        del iserver
        if username is None and certificate in self._cell.user_certificates:
            self._cell.login("certificate", ok=True)
            return User(role=UserRole.User, name="certificate")
        if username is None:
            return User(role=UserRole.User, name="anonymous") if self._cell.anonymous else None
        ok = username == self._cell.user and password == self._cell.password
        self._cell.login(username, ok=ok)
        return User(role=UserRole.User, name=username) if ok else None


class PressCell:
    """The server around the model. `start`, then `step` as often as wanted, or `run`; `stop` at the end."""

    def __init__(
        self,
        *,
        port: int,
        seed: int = 1,
        host: str = "127.0.0.1",
        certificates: Path | None = None,
        truth: Path | None = None,
        anonymous: bool = True,
        user: str = USER,
        password: str = PASSWORD,
        user_certificates: frozenset[bytes] = frozenset(),
        every_policy: bool = False,
    ) -> None:
        """`user_certificates`: DER, whose holders may sign in. `every_policy`: offer the withdrawn ones too, as old machines do."""
        self.url = f"opc.tcp://{host}:{port}/press"
        self.model = PressModel(seed)
        self.anonymous, self.user, self.password = anonymous, user, password
        self.user_certificates = user_certificates
        self._every_policy = every_policy
        self.server: Any = None
        self.rate = 1.0
        self.logins: list[tuple[str, bool]] = []
        self._certificates = certificates
        self._truth_path = truth
        self._truth: IO[str] | None = None
        self._ids: dict[str, ua.NodeId] = {}
        self._generators: dict[int, Any] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Build the address space and listen."""
        if self._truth_path is not None:
            self._truth = self._truth_path.open("a", encoding="utf-8")
        self.server = Server(user_manager=_Users(self))
        await self.server.init()
        self.server.set_endpoint(self.url)
        self.server.set_server_name("ACME press cell 4")
        await self.server.set_application_uri(APPLICATION_URI)
        policies = [ua.SecurityPolicyType.NoSecurity]
        if self._certificates is not None:
            await self._load_certificate(self._certificates)
            policies = [
                each
                for each in ua.SecurityPolicyType
                if self._every_policy or not each.name.startswith(("Basic128Rsa15_", "Basic256_"))
            ]
        self.server.set_security_policy(policies)
        self.server.set_identity_tokens([ua.AnonymousIdentityToken, ua.UserNameIdentityToken, ua.X509IdentityToken])
        await self._make_nodes()
        await self.server.start()

    async def _load_certificate(self, folder: Path) -> None:
        await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
        key, certificate = folder / "server_key.pem", folder / "server.der"
        if (folder / "given.der").exists():
            # By an authority: taken as it is, whatever it says.
            await self.server.load_certificate(folder / "given.der")
            await self.server.load_private_key(key)
            return
        uses = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
        await setup_self_signed_certificate(
            key, certificate, APPLICATION_URI, "localhost", uses, {"organizationName": "ACME"}
        )
        await self.server.load_certificate(certificate)
        await self.server.load_private_key(key)

    async def _make_nodes(self) -> None:
        index = await self.server.register_namespace(NAMESPACE)
        objects = self.server.nodes.objects
        cell = await objects.add_object(ua.NodeId("Cell", index), ua.QualifiedName("Cell", index))
        line = await objects.add_object(ua.NodeId("Line", index), ua.QualifiedName("Line", index))
        for name, (kind, value) in NODES.items():
            parent, shown = (line, name.removeprefix("Line.")) if name.startswith("Line.") else (cell, name)
            self._ids[name] = ua.NodeId(name, index)
            variable = await parent.add_variable(
                self._ids[name], ua.QualifiedName(shown, index), ua.Variant(value, kind)
            )
            for title, (low, high) in RANGES.get(name, {}).items():
                limits = ua.Variant(ua.Range(Low=low, High=high), ua.VariantType.ExtensionObject)
                await variable.add_property(ua.NodeId(f"{name}.{title}", index), ua.QualifiedName(title, 0), limits)

    async def stop(self) -> None:
        """Close every connection and the port."""
        for task in self._tasks:
            task.cancel()
        if self.server is not None:
            await self.server.stop()
        if self._truth is not None:
            self._truth.close()

    async def set(self, name: str, value: Any, *, status: int = 0) -> None:
        """Write a value as the machine, an operator or an attacker would, and into the truth. `status` is an OPC UA status code."""
        if status == 0:
            self.model.values[name] = value
        await self._publish(name, value, status)

    async def step(self) -> dict[str, Any]:
        """One step of the model, on the server."""
        changes = self.model.step()
        for name, value in changes.items():
            await self._publish(name, value, 0)
        return changes

    async def _publish(self, name: str, value: Any, status: int) -> None:
        now = datetime.now(UTC)
        variant = ua.Variant() if value is None else ua.Variant(value, NODES[name][0] if name in NODES else None)
        data = ua.DataValue(Value=variant, StatusCode=ua.StatusCode(status), SourceTimestamp=now, ServerTimestamp=now)
        await self.server.write_attribute_value(self._ids[name], data)
        if self._truth is not None:
            record = {"node": name, "value": value, "time_us": round(now.timestamp() * 1_000_000)}
            self._truth.write(json.dumps(record) + "\n")
            self._truth.flush()

    async def add(self, name: str, value: int) -> None:
        """A new variable, as a program download brings."""
        parent = self.server.get_node(ua.NodeId("Cell", self._ids["Oil.Temp"].NamespaceIndex))
        self._ids[name] = ua.NodeId(name, parent.nodeid.NamespaceIndex)
        await parent.add_variable(self._ids[name], ua.QualifiedName(name, parent.nodeid.NamespaceIndex), value)

    async def remove(self, name: str) -> None:
        """Take a variable away, as a program download does."""
        await self.server.delete_nodes([self.server.get_node(self._ids[name])])

    async def run(self, rate: float, steps: int = 0) -> None:
        """Step at a fixed rate, drift-free; for ever when `steps` is 0."""
        self.rate = rate
        due, done = time.monotonic(), 0
        while steps == 0 or done < steps:
            await self.step()
            done += 1
            due = max(due + 1 / self.rate, time.monotonic() - 1)
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    def login(self, user: str, *, ok: bool) -> None:
        """Somebody tried to sign in: remembered, and announced as an audit event."""
        self.logins.append((user, ok))
        task = asyncio.get_running_loop().create_task(self.audit_login(user, ok=ok))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def audit_login(self, user: str, *, ok: bool) -> None:
        """An AuditActivateSession event, with severity 0 and no message: what real stacks send."""
        await self.audit(
            ua.ObjectIds.AuditActivateSessionEventType,
            ClientUserId=user,
            Status=ok,
            SourceName="Session/ActivateSession",
            StatusCodeId=ua.StatusCode(0 if ok else ua.StatusCodes.BadUserAccessDenied),
        )

    async def audit(self, kind: int, **fields: Any) -> None:
        """An event of the given standard type (an `ua.ObjectIds` value) from the Server object."""
        if kind not in self._generators:
            self._generators[kind] = await self.server.get_event_generator(ua.NodeId(kind), ua.ObjectIds.Server)
            # asyncua keeps the id of a derived type (UtcTime) where it later wants a built-in one: let it guess from the value.
            kinds = self._generators[kind].event.data_types
            kinds.update({name: None for name, each in kinds.items() if not isinstance(each, ua.VariantType)})
        generator = self._generators[kind]
        generator.event.Severity = 0
        if "ActionTimeStamp" in generator.event.data_types:
            generator.event.ActionTimeStamp = datetime.now(UTC)
        for name, value in fields.items():
            setattr(generator.event, name, value)
        await generator.trigger(message="")

    async def obey(self, line: str) -> None:
        """One command of `--control`. What cannot be understood is answered on stderr and changes nothing."""
        try:
            command = json.loads(line)
            if "set" in command:
                await self.set(command["set"], command["value"], status=int(command.get("status", 0)))
            elif command.get("event") == "login":
                await self.audit_login(str(command["user"]), ok=bool(command["ok"]))
            elif "rate" in command:
                self.rate = max(0.01, float(command["rate"]))
            else:
                print(f"control: there is no such command: {line.strip()[:200]!r}", file=sys.stderr)
        except (ValueError, KeyError, TypeError, AttributeError, ua.UaError) as error:
            print(f"control: {line.strip()[:200]!r}: {error}", file=sys.stderr)


async def _control(cell: PressCell) -> None:
    reader = asyncio.StreamReader(limit=65_536)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        await cell.obey(line.decode("utf-8", "replace"))


async def _main(arguments: argparse.Namespace) -> None:
    cell = PressCell(
        port=arguments.port,
        seed=arguments.seed,
        host=arguments.host,
        certificates=arguments.certificates,
        truth=arguments.truth,
        anonymous=not arguments.login_required,
        user=arguments.user,
        password=arguments.password,
    )
    await cell.start()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    print(f"READY {cell.url}", flush=True)
    tasks = [asyncio.create_task(cell.run(arguments.rate, arguments.steps)), asyncio.create_task(stopped.wait())]
    if arguments.control:
        tasks.append(asyncio.create_task(_control(cell)))
    try:
        await stopped.wait()
    finally:
        for task in tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks)
        await cell.stop()


def _arguments() -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    yield ("--port",), {"type": int, "default": 4840}
    yield ("--host",), {"default": "127.0.0.1"}
    yield ("--seed",), {"type": int, "default": 1, "help": "the same seed makes the same values"}
    yield ("--rate",), {"type": float, "default": 10.0, "help": "steps a second"}
    yield ("--steps",), {"type": int, "default": 0, "help": "stop changing after so many steps; 0: never"}
    yield ("--truth",), {"type": Path, "help": "write every change here, one JSON object a line"}
    yield (
        ("--certificates",),
        {"type": Path, "help": "folder of the server's key and certificate, made if absent; offers encryption"},
    )
    yield ("--user",), {"default": USER}
    yield ("--password",), {"default": PASSWORD}
    yield ("--login-required",), {"action": "store_true", "help": "refuse anonymous readers"}
    yield ("--control",), {"action": "store_true", "help": "obey JSON lines on stdin"}


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(
        prog="python -m agent.simulator.opcua_server", description="A virtual press cell that speaks OPC UA."
    )
    for flags, options in _arguments():
        parser.add_argument(*flags, **options)
    logging.getLogger("asyncua").setLevel(logging.CRITICAL)  # its warnings are about what the tests do on purpose
    asyncio.run(_main(parser.parse_args()))


if __name__ == "__main__":
    main()
