"""The configuration files of the demo: what a user would write for such a line, and may copy from."""

import json
from pathlib import Path
from typing import Any

from agent.simulator.plc import configuration

LOG_SOURCE = "station_log"
"""Name of the log source; the judge compares its events with the file."""


def write_collector(path: Path, *, port: int, dsn: str) -> Path:
    """collector.toml. Plain HTTP: it is reached from this computer alone."""
    path.write_text(f'[server]\nlisten = "127.0.0.1:{port}"\n\n[database]\ndsn = {json.dumps(dsn)}\n', encoding="utf-8")
    return path


def write_agent(folder: Path, *, addresses: dict[str, Any], collector: str, key: str, health_port: int) -> Path:
    """agent.toml and the secrets that it names, in `folder`; its state goes there too."""
    folder.mkdir(mode=0o700)
    for name, secret in (("collector.key", key), ("cell.password", addresses["opcua_password"])):
        (folder / name).touch(mode=0o600)
        (folder / name).write_text(f"{secret}\n", encoding="ascii")
    values = {
        "state": folder,
        "collector": collector,
        "key": folder / "collector.key",
        "health": f"127.0.0.1:{health_port}",
        "log": addresses["log"],
        "opcua": addresses["opcua"],
        "certificate": addresses["opcua_certificate"],
        "user": addresses["opcua_user"],
        "password": folder / "cell.password",
        "modbus": addresses["modbus"],
    }
    path = folder / "agent.toml"
    path.write_text(
        _AGENT.format_map({name: json.dumps(str(value)) for name, value in values.items()})
        + configuration("press_plc"),
        encoding="utf-8",
    )
    return path


_AGENT = """\
[agent]
state_dir = {state}

[sync]
url = {collector}
key_file = {key}

[health]
listen = {health}

[sources.station_log]
type = "log"
paths = [{log}]
parser = "auth"
keep_raw = true             # here, to compare what is stored with the file, line by line

[sources.press_cell]
type = "opcua"
url = {opcua}
security = "Basic256Sha256/SignAndEncrypt"
server_certificate_file = {certificate}
user = {user}
password_file = {password}
audit = true
nodes = [
    "nsu=http://acme/press;s=Spindle.Temp",
    "nsu=http://acme/press;s=Spindle.Speed",
    "nsu=http://acme/press;s=Oil.Temp",
    "nsu=http://acme/press;s=Oil.Pressure",
    "nsu=http://acme/press;s=Quality.Width",
    {{ node = "nsu=http://acme/press;s=Press.Cycles", role = "counter" }},
    {{ node = "nsu=http://acme/press;s=Setpoint.Speed", role = "setpoint" }},
]
browse = [{{ root = "nsu=http://acme/press;s=Line", match = "*.Status" }}]

[sources.press_plc]
type = "modbus"
url = {modbus}
unit = 1
interval_s = 0.5
"""
