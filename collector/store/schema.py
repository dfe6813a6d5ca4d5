"""What guards the tables from within: the triggers and functions that the migrations make, held against those that are there.

The list is read from the migrations themselves, so that it cannot be out of date.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from collector.store import migrate

if TYPE_CHECKING:
    from collector.store.database import Anyone

_TRIGGER = re.compile(
    r"CREATE\s+(?:OR\s+REPLACE\s+)?(?:CONSTRAINT\s+)?TRIGGER\s+(\w+)\s+(BEFORE|AFTER)\s+([A-Z\s]+?)\s+ON\s+(\w+)(.*?)EXECUTE\s+(?:FUNCTION|PROCEDURE)"
    r"\s+(\w+)\(\)\s*;|DROP\s+TRIGGER\s+(?:IF\s+EXISTS\s+)?(\w+)\s+ON\s+(\w+)",
    re.DOTALL,
)
_FUNCTION = re.compile(r"CREATE\s+(?:OR\s+REPLACE\s+)?FUNCTION\s+(\w+)\s*\(.*?AS\s+\$\$(.*?)\$\$", re.DOTALL)
_BITS = {"INSERT": 4, "DELETE": 8, "UPDATE": 16, "TRUNCATE": 32}
_ROW, _BEFORE = 1, 2


class Trigger(NamedTuple):
    """A trigger as a migration makes it. `bits`: as in pg_trigger.tgtype."""

    table: str
    name: str
    function: str
    bits: int


class Trouble(NamedTuple):
    """Something that guards, and does not as it has to."""

    kind: str
    table: str
    text: str


def expected(files: "Sequence[migrate.Migration]") -> tuple[dict[tuple[str, str], Trigger], dict[str, str]]:
    """Return the triggers, by table and name, and the bodies of functions that migrations leave behind."""
    triggers: dict[tuple[str, str], Trigger] = {}
    functions: dict[str, str] = {}
    for file in files:
        for match in _TRIGGER.finditer(file.sql):
            name, when, events, table, more, function, dropped, of = match.groups()
            if dropped:
                triggers.pop((of, dropped), None)
                continue
            bits = sum(_BITS[event] for event in events.split() if event in _BITS)
            bits |= (_BEFORE if when == "BEFORE" else 0) | (_ROW if "FOR EACH ROW" in more else 0)
            triggers[table, name] = Trigger(table, name, function, bits)
        functions.update(_FUNCTION.findall(file.sql))
    return triggers, functions


async def troubles(connection: "Anyone") -> list[Trouble]:
    """Return what is not as the migrations left it: triggers gone, off, changed or foreign, rules, row policies, changed migrations."""
    applied = {
        row["version"]: row["sha256"] for row in await connection.fetch("SELECT version, sha256 FROM schema_migrations")
    }
    files = [file for file in migrate.migrations() if file.version in applied]
    found = [
        Trouble("migration.changed", "schema_migrations", f"{file.name} is not what ran here")
        for file in files
        if hashlib.sha256(file.sql.encode()).hexdigest() != applied[file.version]
    ]
    triggers, functions = expected(files)
    rows = await connection.fetch(_TRIGGERS)
    own = {(row["table"], row["name"]): row for row in rows if not row["internal"]}
    found += _missing(triggers, own)
    for row in rows:
        found += _judged(row, triggers.get((row["table"], row["name"])), functions)
    found += [
        Trouble("rule.unknown", row["table"], f"rule {row['name']} is of no migration")
        for row in await connection.fetch(_RULES)
    ]
    found += [
        Trouble("policy.unknown", row["table"], "row level security is on, which can hide rows")
        for row in await connection.fetch(_POLICIES)
    ]
    found += [
        Trouble(
            "trigger.disabled", "pg_db_role_setting", "session_replication_role is set, which switches triggers off"
        )
        for _ in await connection.fetch(_SETTINGS)
    ]
    return found


def _missing(triggers: dict[tuple[str, str], Trigger], own: "Mapping[tuple[str, str], Any]") -> Iterator[Trouble]:
    for (table, name), trigger in triggers.items():
        if (table, name) not in own:
            yield Trouble("trigger.deleted", table, f"trigger {name}, which calls {trigger.function}, is gone")


def _judged(row: Any, trigger: Trigger | None, functions: dict[str, str]) -> Iterator[Trouble]:
    table, name = str(row["table"]), str(row["name"])
    if row["enabled"] not in ("O", "A"):
        what = f"the check of foreign keys {row['function']}" if row["internal"] else f"trigger {name}"
        yield Trouble("trigger.disabled", table, f"{what} is off")
    if row["internal"]:
        return
    if trigger is None:
        yield Trouble("trigger.unknown", table, f"trigger {name}, which calls {row['function']}, is of no migration")
    elif (row["function"], row["bits"]) != (trigger.function, trigger.bits) or row["conditional"]:
        yield Trouble("trigger.changed", table, f"trigger {name} does not fire as its migration made it")
    elif trigger.function in functions and row["body"] != functions[trigger.function]:
        yield Trouble(
            "trigger.changed", table, f"function {trigger.function} of trigger {name} is not that of its migration"
        )


# Triggers of partitions are copies of those of their table.
_TRIGGERS = """
SELECT c.relname::text AS table, t.tgname::text AS name, t.tgenabled::text AS enabled, t.tgisinternal AS internal,
    t.tgtype::integer AS bits, p.proname::text AS function, p.prosrc AS body,
    t.tgqual IS NOT NULL OR array_length(t.tgattr::smallint[], 1) > 0 AS conditional
FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_proc p ON p.oid = t.tgfoid
WHERE c.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = 'audit_log'::regclass) AND t.tgparentid = 0
ORDER BY 1, 2
"""
_RULES = """
SELECT c.relname::text AS table, r.rulename::text AS name FROM pg_rewrite r JOIN pg_class c ON c.oid = r.ev_class
WHERE c.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = 'audit_log'::regclass) AND c.relkind IN ('r', 'p')
"""
_POLICIES = """
SELECT c.relname::text AS table FROM pg_class c
WHERE c.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = 'audit_log'::regclass) AND c.relrowsecurity
"""
_SETTINGS = "SELECT FROM pg_db_role_setting s, unnest(s.setconfig) AS line WHERE line LIKE 'session_replication_role=%'"
