"""The same address attacks several stations: each of them sees a little, together it is a campaign."""

from collector.rules.base import Finding, Spread, SpreadSection, stations

_HERE = r"^(localhost|(::ffff:)?127(\.[0-9]{1,3}){3}|::1|(0{1,4}:){7}0{0,3}1)$"


class Config(SpreadSection):
    """See SpreadSection."""


class Rule:
    """By refused sign-ins, refused rights, scans, and alerts that name an address."""

    name = "address"
    types = (
        "authentication.failure", "authentication.lockout", "authentication.session.rejected", "access.denied", "network.scan", "alert",
        "alert.*",
    )  # fmt: skip

    key = f"CASE WHEN e.src_ip <> '' AND e.src_ip !~ '{_HERE}' THEN e.src_ip END"

    def __init__(self, config: Config) -> None:
        self.at_least, self.within_s = config.at_least, config.within_s

    def found(self, spread: Spread) -> Finding:
        """See SpreadRule."""
        where = stations(spread)
        return Finding(
            rule=self.name,
            key=spread.key,
            type="alert.fleet.address",
            severity=5,
            message=f"{spread.key} attacks {len(spread.members)} stations",
            src_ip=spread.key,
            data={"stations": where, "count": len(spread.members), "window_s": self.within_s, "technique": "T0859"},
        )
