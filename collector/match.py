"""Whether an event fits a filter, decided here and not in SQL: what streams need, where one event meets many filters.

It means what `store.events.where_of` means; a test holds both against each other.
"""

import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from agent.wire import bounds
from collector.store.events import ALL, Filter, Record, within

Matches = Callable[[Record], bool]


def matcher(wanted: Filter) -> Matches:
    """The filter as a function. A value that is compared is prepared once."""
    tests: list[Matches] = []

    def one_of(name: str, values: tuple[Any, ...]) -> None:
        if values:
            among = frozenset(values)
            tests.append(lambda row: row[name] in among)

    begin, end, least = wanted.begin, wanted.end, wanted.severity_min
    if begin is not None:
        tests.append(lambda row: bool(row["time"] >= begin))
    if end is not None:
        tests.append(lambda row: bool(row["time"] < end))
    if least is not None:
        tests.append(lambda row: bool(row["severity"] >= least))
    if wanted.scope != ALL:
        tests.append(lambda row: within(wanted.scope, row["site"], row["line"], row["station"]))
    for name, values in (
        ("agent_id", wanted.agents), ("site", wanted.sites), ("line", wanted.lines), ("station", wanted.stations),
        ("category", wanted.categories), ("severity", wanted.severities), ("source", wanted.sources), ("actor", wanted.actors),
        ("src_ip", wanted.src_ips), ("target", wanted.targets), ("outcome", wanted.outcomes),
    ):  # fmt: skip
        one_of(name, values)
    if wanted.correlation_id is not None:
        one_of("correlation_id", (wanted.correlation_id,))
    if wanted.types:
        tests.append(_type_test(wanted.types))
    tests += _content_tests(wanted)
    return lambda row: all(test(row) for test in tests)


def _type_test(types: tuple[str, ...]) -> Matches:
    exact = frozenset(name.removesuffix(".*") for name in types)
    below = tuple(name.removesuffix("*") for name in types if name.endswith(".*"))
    return lambda row: row["type"] in exact or (bool(below) and row["type"].startswith(below))


def _content_tests(wanted: Filter) -> list[Matches]:
    tests: list[Matches] = []
    if (by := wanted.pseudonyms) is not None:
        tests.append(lambda row: row["actor"] is not None and by.of(row["actor"]) in by.values)
    if wanted.text is not None:
        part = wanted.text.lower()
        tests.append(lambda row: row["message"] is not None and part in row["message"].lower())
    if wanted.data is not None:
        inner = _decoded(wanted.data)
        tests.append(lambda row: row["data"] is not None and _holds(row["data"], inner))
    return tests


def _holds(text: str, inner: Any) -> bool:
    # What was stored before values had bounds fits no filter, and stops no stream.
    return bounds.excess(text.encode()) is None and contains(_decoded(text), inner)


def _decoded(text: str) -> Any:
    return json.loads(text, parse_float=Decimal, parse_int=Decimal)


def contains(outer: Any, inner: Any) -> bool:
    """`outer @> inner` of PostgreSQL for decoded JSON, numbers as Decimal. Nesting is bounded by what was decoded."""
    if isinstance(inner, dict):
        return isinstance(outer, dict) and all(
            key in outer and contains(outer[key], value) for key, value in inner.items()
        )
    if isinstance(inner, list):
        return isinstance(outer, list) and all(any(contains(mine, value) for mine in outer) for value in inner)
    return type(outer) is type(inner) and bool(outer == inner)
