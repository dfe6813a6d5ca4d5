"""Legal holds as filters, and retention under them.

A hold that cannot be read any more stops whatever would take anything away: nothing leaves on a guess.
"""

from typing import TYPE_CHECKING, Any

from collector import audit, problems, query
from collector.store import logs, retention
from collector.store.database import StoreMisconfigured
from collector.store.events import ALL

if TYPE_CHECKING:
    from collector.config import RetentionSettings
    from collector.store.database import Anyone


async def held(connection: "Anyone") -> list[retention.Hold]:
    """The legal holds. Raises StoreMisconfigured."""
    found = []
    for row in await retention.holds(connection):
        try:
            found.append(retention.Hold(row["hold_id"], query.filter_of(row["query"], ALL)))
        except (problems.Problem, ValueError) as error:
            raise StoreMisconfigured(
                f"legal hold {row['hold_id']} cannot be read, so nothing leaves: {error}"
            ) from error
    return found


async def leave(
    connection: "Anyone", settings: "RetentionSettings", who: audit.Who, *, dry: bool, sign: "retention.Sign | None"
) -> list[retention.Action]:
    """Take away what is due of events, alerts and the audit log, or with `dry` only say it. Raises StoreMisconfigured."""
    holds = await held(connection)
    done: list[retention.Action] = []
    if settings.anything:
        done += await retention.run(connection, settings.policy, holds, dry=dry, sign=sign)
        if done and not dry:
            data = {"actions": len(done), "events": sum(action.events for action in done)}
            await audit.record(connection, who, "retention.run", data=data)

    async def note(within: "Anyone", action: str, data: dict[str, Any]) -> None:
        await audit.record(within, who, action, data=data)

    done += await logs.run(
        connection,
        audit_days=settings.audit_days,
        alert_days=settings.alert_days,
        holds=holds,
        dry=dry,
        sign=sign,
        note=note,
    )
    return done
