"""What a signal means: the keys of a point or node that tell the built-in handlers what they may expect of its values.

They travel in `data` of every event of the signal, put together once, so that a signal without them costs nothing and one with them
no more than a dictionary that is a little longer:

    quantity           what is measured or counted, of a closed vocabulary
    range              [low, high]: beyond these nothing can be measured there; a broken wire, or somebody who sends values
    maintenance_at_h   run_hours at which maintenance is due
    machine            which of the machines behind one source it belongs to; signals of a machine are judged together
"""

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Gt, MaxLen, MinLen

Quantity = Literal[
    "temperature", "vibration", "current", "pressure", "flow", "level", "speed", "power", "torque", "voltage", "humidity",
    "running", "run_hours", "cycle_time", "good_count", "scrap_count", "total_count",
]  # fmt: skip
COUNTED = frozenset({"good_count", "scrap_count", "total_count"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigSignal:
    """The keys that say what a signal means. All may be left out."""

    quantity: Quantity | None = None
    range: tuple[float, float] | None = None
    maintenance_at_h: Annotated[float, Gt(0)] | None = None
    machine: Annotated[str, MinLen(1), MaxLen(100)] | None = None

    def signal_data(self) -> dict[str, Any]:
        """What of it stands in the data of every event."""
        data: dict[str, Any] = {}
        if self.quantity is not None:
            data["quantity"] = self.quantity
        if self.range is not None:
            data["range"] = list(self.range)
        if self.maintenance_at_h is not None:
            data["maintenance_at_h"] = self.maintenance_at_h
        if self.machine is not None:
            data["machine"] = self.machine
        return data


def check_signal(config: ConfigSignal, role: str, *, numeric: bool) -> None:
    """Raise ValueError where the keys do not go together, or not with the role of the point."""
    quantity = config.quantity
    if quantity is not None and role in ("setpoint", "mode", "identity"):
        raise ValueError(f"quantity: it is for what is measured, and a {role} is set by somebody; remove it")
    if quantity in COUNTED and role != "counter":
        raise ValueError(f'quantity: {quantity} is counted, so the point needs role = "counter"')
    if quantity is not None and quantity not in COUNTED and role == "counter":
        raise ValueError(f"quantity: a counter is one of {', '.join(sorted(COUNTED))}, not {quantity}")
    if quantity is not None and role == "state" and quantity != "running":
        raise ValueError(f"quantity: a state can only be running; give {quantity} the role reading")
    if quantity not in (None, "running") and not numeric:
        raise ValueError(f"quantity: {quantity} is a number, and this is none")
    if config.range is not None:
        if role != "reading" or not numeric:
            raise ValueError("range: it is for numbers of the role reading; remove it")
        if not usable_range(*config.range):
            raise ValueError("range: write [low, high] with low below high, in the unit that is reported (after scale)")
    if config.maintenance_at_h is not None and quantity != "run_hours":
        raise ValueError('maintenance_at_h: it needs quantity = "run_hours"')


def usable_range(low: object, high: object) -> bool:
    """Whether the two are finite numbers, the first below the second."""
    return (
        isinstance(low, int | float)
        and isinstance(high, int | float)
        and math.isfinite(low)
        and math.isfinite(high)
        and low < high
    )
