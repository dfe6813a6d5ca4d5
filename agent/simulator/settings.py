"""The configuration files of the demo: what a user would write for such a line, and may copy from."""

import json
from pathlib import Path
from typing import Any

from agent.simulator.plc import configuration

LOG_SOURCE = "station_log"
"""Name of the log source; the judge compares its events with the file."""
ENROLMENT_FILE = "enrolment.token"
CHECKPOINTS_FILE = "checkpoints"


def write_collector(path: Path, *, port: int, dsn: str) -> Path:
    """collector.toml. Plain HTTP: it is reached from this computer alone."""
    kept = path.with_name(CHECKPOINTS_FILE)
    path.write_text(
        f'[server]\nlisten = "127.0.0.1:{port}"\n\n[database]\ndsn = {json.dumps(dsn)}\n\n'
        # In earnest the target is on another machine, where nobody of this one can change it.
        f"[evidence]\nkey_file = {json.dumps(str(path.with_name('checkpoint.key')))}\ncheckpoint_every_s = 30\n"
        f"targets = [{json.dumps(f'file://{kept}')}]\n",
        encoding="utf-8",
    )
    return path


def write_agent(folder: Path, *, addresses: dict[str, Any], collector: str, token: str, health_port: int) -> Path:
    """agent.toml and the secrets that it names, in `folder`; its state goes there too."""
    folder.mkdir(mode=0o700)
    for name, secret in ((ENROLMENT_FILE, token), ("cell.password", addresses["opcua_password"])):
        (folder / name).touch(mode=0o600)
        (folder / name).write_text(f"{secret}\n", encoding="ascii")
    values = {
        "state": folder,
        "collector": collector,
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
    {{ node = "nsu=http://acme/press;s=Spindle.Temp", quantity = "temperature" }},
    {{ node = "nsu=http://acme/press;s=Spindle.Speed", quantity = "speed" }},
    {{ node = "nsu=http://acme/press;s=Spindle.Vibration", quantity = "vibration" }},
    {{ node = "nsu=http://acme/press;s=Oil.Temp", quantity = "temperature" }},
    {{ node = "nsu=http://acme/press;s=Oil.Pressure", quantity = "pressure", range = [0, 400] }},
    "nsu=http://acme/press;s=Quality.Width",
    {{ node = "nsu=http://acme/press;s=Press.Good", role = "counter", quantity = "good_count" }},
    {{ node = "nsu=http://acme/press;s=Press.Scrap", role = "counter", quantity = "scrap_count" }},
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
