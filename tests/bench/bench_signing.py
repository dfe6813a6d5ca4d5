"""What a signature costs: the same requests signed by an enrolled agent and with an API key alone, over HTTP into PostgreSQL.

Two forms: a heartbeat's worth (one batch of ten events, where a signature weighs most), and a backlog (requests of a mebibyte). Rounds
change their order, and the median of their ratios counts. Signed means signed here and checked, stored and covered there.

    LINEWARDEN_BENCH_ROUNDS=5 pytest -s -m bench tests/bench/bench_signing.py
"""

import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from agent.component import now_us
from agent.simulator.postgres import Postgres
from agent.wire.batch import Sealed
from agent.wire.signature import HEADER
from tests.collector_process import Chain, Collector, event
from tests.integration.test_enrolment import Station, enrolled

pytestmark = [pytest.mark.bench, pytest.mark.timeout(1200)]

ROUNDS = int(os.environ.get("LINEWARDEN_BENCH_ROUNDS", "5"))
RATIO_MIN = 0.8
FORMS = {"small": (200, 1, 10), "backlog": (6, 30, 400)}
"""Requests, batches in each, events in each batch."""

Send = Callable[[list[Sealed]], httpx.Response]


def _requests(chain: Chain, form: str) -> Iterator[list[Sealed]]:
    requests, batches, events = FORMS[form]
    some = [event("password refused", actor=f"user{n % 7}", data={"port": n}) for n in range(events)]
    for _ in range(requests):
        yield [chain.seal(some) for _ in range(batches)]


def _per_s(chain: Chain, form: str, send: Send) -> float:
    made = list(_requests(chain, form))
    began = time.perf_counter()
    for request in made:
        assert send(request).status_code == 200
    return sum(batch.header.events for request in made for batch in request) / (time.perf_counter() - began)


def _signing(station: Station, client: httpx.Client) -> Send:
    def send(request: list[Sealed]) -> httpx.Response:
        sent, body = now_us(), b"".join(batch.frame for batch in request)
        signature = station.keyring.sign(station.id, [batch.frame for batch in request], body, "{}", sent)
        assert signature is not None
        headers = {HEADER: signature, "Linewarden-Agent-Time": str(sent), "Linewarden-Status": "{}"}
        return client.post("/v1/batches", content=body, headers=headers)

    return send


def _bare(client: httpx.Client) -> Send:
    def send(request: list[Sealed]) -> httpx.Response:
        sent = str(now_us())
        headers = {"Linewarden-Agent-Time": sent, "Linewarden-Status": "{}"}
        return client.post("/v1/batches", content=b"".join(batch.frame for batch in request), headers=headers)

    return send


def test_signing_costs_little_beside_storing(tmp_path: Path, postgres: Postgres) -> None:
    ratios: dict[str, float] = {}
    with Collector(postgres.create_database("signing")) as collector:
        station, chain = enrolled(tmp_path, collector), Chain()
        with collector.client() as signed, collector.client(collector.key("agent")) as bare:
            kinds = (("signed", station.chain, _signing(station, signed)), ("bare", chain, _bare(bare)))
            for form, (requests, batches, events) in FORMS.items():
                speeds: dict[str, list[float]] = {"signed": [], "bare": []}
                for number in range(ROUNDS + 1):
                    for name, of, send in kinds if number % 2 else reversed(kinds):
                        speeds[name].append(_per_s(of, form, send))
                # The first round is not counted: programs are read from the disk, partitions are touched for the first time.
                pairs = list(zip(speeds["signed"][1:], speeds["bare"][1:], strict=True))
                ratios[form] = statistics.median(one / other for one, other in pairs)
                print(
                    f"\n{form}, {requests} requests of {batches * events:,} events: signed {statistics.median(a for a, _ in pairs):,.0f}/s,"
                    f" with a key {statistics.median(b for _, b in pairs):,.0f}/s, ratio {ratios[form]:.2f} (limit {RATIO_MIN})",
                    end="",
                )
    print()
    assert min(ratios.values()) >= RATIO_MIN, ratios
