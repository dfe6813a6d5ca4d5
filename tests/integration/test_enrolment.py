"""Who may send: a token lets one key in, whatever races and whoever is killed; what is not signed with a good key is refused and told."""

import asyncio
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519

from agent import cli
from agent.component import now_us
from agent.identity import IdentityConfig, Keyring, Saved, load_or_create
from agent.simulator.postgres import Postgres
from agent.wire.batch import Sealed
from agent.wire.signature import HEADER, enrolment_text, holds, key_id_of, read_text
from agent.wire.token import read_token
from collector.store.keys import Role
from tests.agent_process import Agent, log_source
from tests.collector_process import ROOT, Chain, Collector, event, events_of, poll_until, run_cli
from tests.commands import run_main
from tests.postgres import connected


@pytest.fixture(scope="module")
def strict(postgres: Postgres) -> Iterator[Collector]:
    """A collector that takes signed batches alone."""
    with Collector(postgres.create_database("identity"), IDENTITY__UNSIGNED="refuse") as running:
        yield running


def fetch(collector: Collector, sql: str, *values: Any) -> list[Any]:
    async def ask() -> list[Any]:
        async with connected(collector.dsn) as connection:
            return list(await connection.fetch(sql, *values))

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, ask()).result()


def call(collector: Collector, role: Role, method: str, path: str) -> httpx.Response:
    with collector.client(collector.key(role)) as client:
        return client.request(method, path)


def token_of(collector: Collector, *options: str) -> str:
    done = run_cli(collector.dsn, "token", "create", "--url", collector.url, *options)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def agent_command(*arguments: str, stdin: str = "", **environment: str) -> "subprocess.CompletedProcess[str]":
    return run_main(cli.main, *arguments, environ={**os.environ, **environment}, stdin=stdin)


class Station:
    """The state folder of an agent, and what it would send."""

    def __init__(self, folder: Path, collector: Collector) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.collector = collector
        self.config = folder / "agent.toml"
        self.config.write_text(
            f'[agent]\nstate_dir = "{folder / "state"}"\n[sync]\nurl = "{collector.url}"\n[buffer]\nfree_bytes_min = 0\n'
        )
        self.id = load_or_create(folder / "state")
        self.chain = Chain(self.id)
        self.keyring = Keyring(folder / "state", IdentityConfig())

    def enroll(self, token: str, *options: str) -> "subprocess.CompletedProcess[str]":
        return agent_command("enroll", "--token", "-", *options, "--config", str(self.config), stdin=token)

    def post(self, *batches: Sealed, **changed: str) -> httpx.Response:
        return post_signed(self.collector, self.keyring, self.id, *batches, **changed)

    @property
    def saved(self) -> Saved:
        saved = self.keyring.saved()
        assert saved is not None
        return saved


def post_signed(collector: Collector, keyring: Keyring, agent: str, *batches: Sealed, **changed: str) -> httpx.Response:
    sent, status = now_us(), "{}"
    body = b"".join(batch.frame for batch in batches)
    signature = keyring.sign(agent, [batch.frame for batch in batches], body, status, sent)
    assert signature is not None
    headers = {HEADER: signature, "Linewarden-Agent-Time": str(sent), "Linewarden-Status": status, **changed}
    with collector.client() as client:
        return client.post("/v1/batches", content=body, headers=headers)


def enrolled(folder: Path, collector: Collector, *options: str) -> Station:
    station = Station(folder, collector)
    done = station.enroll(token_of(collector, *options))
    assert done.returncode == 0, done.stderr
    return station


# ── getting in ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_token_lets_an_agent_in_which_then_needs_nothing_but_its_key(tmp_path: Path, strict: Collector) -> None:
    place = ("--site", "plant", "--line", "l1", "--station", f"s{uuid4().hex[:6]}")
    station = enrolled(tmp_path, strict, *place)
    key = tmp_path / "state" / "identity" / "key.pem"
    assert key.stat().st_mode & 0o777 == 0o600
    assert (station.saved.site, station.saved.line, station.saved.station) == (place[1], place[3], place[5])
    assert station.post(station.chain.batch("one"), station.chain.batch("two")).status_code == 200
    listed = call(strict, "viewer", "GET", "/v1/agents").json()
    (found,) = [each for each in listed["agents"] if each["agent_id"] == station.id]
    assert (found["site"], found["station"]) == ("plant", place[5])
    # The secret is nowhere: neither in the database nor in the audit log.
    (row,) = fetch(strict, "SELECT * FROM enrolment_tokens WHERE used_agent = $1", UUID(station.id))
    assert row["used_key"] == station.saved.key_id
    (record,) = fetch(
        strict, "SELECT action, data FROM audit_log WHERE action = 'agent.enrol' AND target = $1", station.id
    )
    assert station.saved.key_id in str(record["data"])


def test_every_stored_batch_is_covered_by_a_signature_that_holds(tmp_path: Path, strict: Collector) -> None:
    station = enrolled(tmp_path, strict)
    lost = hashlib.sha256(b"lost").hexdigest()
    assert station.post(station.chain.batch("a"), station.chain.batch("b")).status_code == 200
    gap = station.chain.seal([event()], gap=4, last=lost)
    assert station.post(gap, station.chain.batch("after")).status_code == 200
    rows = fetch(
        strict,
        "SELECT v.batch_no, v.through, v.hash, v.prev, s.signed, s.signature, k.public_key FROM evidence v "
        "JOIN signatures s USING (signature_id, received) JOIN agent_keys k USING (key_id) WHERE v.agent_id = $1 ORDER BY v.batch_no",
        UUID(station.id),
    )
    assert [row["batch_no"] for row in rows] == [1, 2, 3, 7]
    for row in rows:
        assert holds(row["public_key"], row["signed"].encode(), row["signature"])
        said = read_text(row["signed"].encode())
        assert [run for run in said.runs if run.first <= row["batch_no"] and row["through"] <= run.through]
    ends = {run.hash for row in rows for run in read_text(row["signed"].encode()).runs}
    assert {rows[1]["hash"], rows[2]["hash"], rows[3]["hash"]} == ends


def test_of_twenty_who_use_a_token_at_once_at_several_collectors_one_gets_in(
    strict: Collector,
) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    token = read_token(token_of(strict))

    def body(agent: str) -> dict[str, Any]:
        private = Ed25519PrivateKey.generate()
        public, sent = private.public_key().public_bytes_raw(), now_us()
        secret = hashlib.sha256(token.secret.encode()).hexdigest()
        text = enrolment_text(agent=agent, public_key=public, token=secret, url="https://c", sent_us=sent)
        return {
            "token": token.shown, "agent_id": agent, "public_key": public.hex(), "url": "https://c", "sent_us": sent,
            "signature": private.sign(text).hex(),
        }  # fmt: skip

    with Collector(strict.dsn) as second:
        urls = [strict.url, second.url]

        def ask(number: int) -> int:
            answer = httpx.post(f"{urls[number % 2]}/v1/enroll", json=body(str(uuid4())), timeout=60, trust_env=False)
            assert answer.status_code == 200 or answer.json()["code"] == "token_used", answer.text
            return answer.status_code

        with ThreadPoolExecutor(20) as pool:
            codes = list(pool.map(ask, range(20)))
    assert sorted(codes) == [200] + [403] * 19
    (row,) = fetch(
        strict,
        "SELECT count(*) FROM agent_keys k JOIN enrolment_tokens t USING (token_id) WHERE t.prefix = $1",
        token.prefix,
    )
    assert row[0] == 1


def test_enrolling_again_with_the_same_token_gives_the_same_identity(tmp_path: Path, strict: Collector) -> None:
    station = Station(tmp_path, strict)
    token = token_of(strict)
    first, second = station.enroll(token, "--json"), station.enroll(token, "--json")
    assert (first.returncode, second.returncode) == (0, 0), second.stderr
    assert json.loads(first.stdout) == json.loads(second.stdout)


def test_a_token_of_no_use_is_refused_with_what_to_do(tmp_path: Path, strict: Collector) -> None:
    used = token_of(strict)
    enrolled_station = Station(tmp_path / "a", strict)
    assert enrolled_station.enroll(used).returncode == 0
    other = Station(tmp_path / "b", strict)
    revoked = token_of(strict)
    assert run_cli(strict.dsn, "token", "revoke", read_token(revoked).prefix).returncode == 0
    late = token_of(strict)
    fetch(strict, "UPDATE enrolment_tokens SET expires = now() WHERE prefix = $1", read_token(late).prefix)
    forged = late[:14] + ("A" * 43) + late[57:]
    for token, says in (
        (used, "was used"),
        (revoked, "was revoked"),
        (late, "has expired"),
        (forged, "no such token"),
        ("x", "no enrolment token"),
    ):
        done = other.enroll(token)
        assert done.returncode in (1, 2)
        assert says in done.stderr
        assert "token" in done.stderr
        assert "Traceback" not in done.stderr
    assert other.keyring.saved() is None


def test_a_token_for_anybody_does_not_let_its_holder_speak_for_an_agent_that_is_known(
    tmp_path: Path, strict: Collector
) -> None:
    known = enrolled(tmp_path / "a", strict)
    thief = Station(tmp_path / "b", strict)
    (tmp_path / "b" / "state" / "agent_id").write_text(f"{known.id}\n")
    done = thief.enroll(token_of(strict))
    assert done.returncode == 1
    assert "--agent" in done.stderr
    assert known.post(known.chain.batch()).status_code == 200


KILLED = """
import os, sys
from pathlib import Path
at, step = os.environ["KILL_AT"], os.environ["KILL_STEP"]
from agent import identity, uplink, enrolment
def die():
    os.kill(os.getpid(), 9)
rename, exchange = os.rename, uplink.exchange
def renaming(old, new, **folders):
    hit = Path(new).name == step
    if hit and at == "before": die()
    rename(old, new, **folders)
    if hit and at == "after": die()
async def asking(method, url, tls, body=None):
    if step == "POST" and method == "POST" and at == "before": die()
    done = await exchange(method, url, tls, body)
    if step == "POST" and method == "POST" and at == "after": die()
    return done
os.rename = renaming
enrolment.exchange = asking
from agent.cli import main
sys.exit(main(sys.argv[1:]))
"""


KILLS = [
    ("before", "key.new.pem"),
    ("after", "key.new.pem"),
    ("after", "POST"),
    ("after", "identity.json"),
    ("after", "key.pem"),
]
"""Every state of the disk and of the collector in between."""


def killed_at(at: str, step: str, *arguments: str, stdin: str = "") -> int:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments], cwd=ROOT, input=stdin, text=True, capture_output=True, check=False, timeout=60,
        env={**os.environ, "KILL_AT": at, "KILL_STEP": step},
    )  # fmt: skip
    return done.returncode


@pytest.mark.parametrize(("at", "step"), KILLS)
def test_enrolling_that_is_killed_at_any_step_is_finished_by_doing_it_again(
    tmp_path: Path, strict: Collector, at: str, step: str
) -> None:
    station = Station(tmp_path, strict)
    token = token_of(strict)
    assert killed_at(at, step, "enroll", "--token", "-", "--config", str(station.config), stdin=token) == -9
    done = station.enroll(token)
    assert done.returncode == 0, done.stderr
    assert station.post(station.chain.batch()).status_code == 200
    rows = fetch(strict, "SELECT key_id FROM agent_keys WHERE agent_id = $1", UUID(station.id))
    assert [row["key_id"] for row in rows] == [station.saved.key_id]
    left = {path.name for path in (tmp_path / "state" / "identity").iterdir()}
    assert left == {"identity.json", "key.pem", "lock"}


# ── changing the key ─────────────────────────────────────────────────────────────────────────────────────────────────


def rotate(station: Station) -> "subprocess.CompletedProcess[str]":
    return agent_command("rotate-key", "--config", str(station.config))


def test_a_new_key_takes_the_place_of_the_old_one_which_stays_good_for_requests_under_way(
    tmp_path: Path, strict: Collector
) -> None:
    station = enrolled(tmp_path, strict)
    before = station.keyring.current()
    late = station.chain.batch("signed with the old key")
    sent = now_us()
    old_header = station.keyring.sign(station.id, [late.frame], late.frame, "{}", sent)
    done = rotate(station)
    assert done.returncode == 0, done.stderr
    after = station.keyring.current()
    assert before is not None
    assert after is not None
    assert before.key_id != after.key_id
    with strict.client() as client:
        headers = {HEADER: str(old_header), "Linewarden-Agent-Time": str(sent), "Linewarden-Status": "{}"}
        assert client.post("/v1/batches", content=late.frame, headers=headers).status_code == 200
    assert station.post(station.chain.batch("with the new one")).status_code == 200
    fetch(strict, "UPDATE agent_keys SET valid_until = now() WHERE key_id = $1", before.key_id)
    with strict.client() as client:
        answer = client.post("/v1/batches", content=late.frame, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (403, "key_ended")
    listed = json.loads(run_cli(strict.dsn, "agents", "keys", station.id, "--json").stdout)
    assert [(key["key_id"], key["good"]) for key in listed] == [(before.key_id, False), (after.key_id, True)]


@pytest.mark.parametrize(("at", "step"), KILLS)
def test_a_change_of_key_that_is_killed_at_any_step_leaves_an_agent_that_sends_and_can_be_finished(
    tmp_path: Path, strict: Collector, at: str, step: str
) -> None:
    station = enrolled(tmp_path, strict)
    assert killed_at(at, step, "rotate-key", "--config", str(station.config)) == -9
    assert station.post(station.chain.batch("in between")).status_code == 200
    # Long after: the old key is not good any more, if the collector had heard of the new one.
    fetch(
        strict,
        "UPDATE agent_keys SET valid_until = now() WHERE agent_id = $1 AND valid_until IS NOT NULL",
        UUID(station.id),
    )
    done = rotate(station)
    assert done.returncode == 0, done.stderr
    assert station.post(station.chain.batch("after")).status_code == 200
    rows = fetch(
        strict, "SELECT count(*) FROM agent_keys WHERE agent_id = $1 AND valid_until IS NULL", UUID(station.id)
    )
    assert rows[0][0] == 1


def test_a_key_that_is_too_old_is_changed_by_the_agent_itself_and_told(tmp_path: Path, strict: Collector) -> None:
    agent = Agent(tmp_path, strict.url, "", identity={"rotate_days": 1})
    done = agent_command("enroll", "--token", token_of(strict), "--config", str(agent.config))
    assert done.returncode == 0, done.stderr
    file = tmp_path / "state" / "identity" / "identity.json"
    saved = json.loads(file.read_text())
    file.write_text(json.dumps({**saved, "key_us": now_us() - 2 * 86_400_000_000}))
    with agent:
        poll_until(lambda: json.loads(file.read_text())["key_id"] != saved["key_id"], why="the key is not changed")
        sql = "SELECT FROM security_events WHERE agent_id = $1 AND type = 'agent.key.changed'"
        poll_until(lambda: fetch(strict, sql, UUID(agent.id)), why="the agent does not tell of it")
        poll_until(agent.drained)
    keys = fetch(strict, "SELECT valid_until FROM agent_keys WHERE agent_id = $1 ORDER BY valid_from", UUID(agent.id))
    assert [key["valid_until"] is None for key in keys] == [False, True]


def test_of_two_clones_that_change_their_key_one_is_told_that_it_was_followed(
    tmp_path: Path, strict: Collector
) -> None:
    import shutil

    station = enrolled(tmp_path / "a", strict)
    shutil.copytree(tmp_path / "a" / "state", tmp_path / "b" / "state")
    clone = Station(tmp_path / "b", strict)
    assert rotate(station).returncode == 0
    done = rotate(clone)
    assert done.returncode == 1
    assert "cloned" in done.stderr


def test_a_clone_that_signs_with_the_same_key_is_found_by_its_fork_and_told_and_verify_names_the_agent(
    tmp_path: Path, strict: Collector
) -> None:
    """Both have the key, so both signatures hold: only the chain tells them apart."""
    import shutil

    station = enrolled(tmp_path / "a", strict)
    assert station.post(station.chain.batch("before")).status_code == 200
    shutil.copytree(tmp_path / "a" / "state", tmp_path / "b" / "state")
    clone = Station(tmp_path / "b", strict)
    clone.chain = station.chain.twin()
    assert station.post(station.chain.batch("of the one")).status_code == 200
    refused = clone.post(clone.chain.batch("of the other"))
    assert (refused.status_code, refused.json()["code"]) == (409, "forked")
    with strict.client(strict.key("viewer")) as client:
        (told,) = poll_until(lambda: events_of(client, type="security.chain.forked", target=station.id))
        stored = [one["message"] for one in events_of(client, agent=station.id)]
    assert stored == ["of the one", "before"]
    assert told["data"]["no"] == 2
    done = run_cli(strict.dsn, "verify", "--agent", station.id, "--json")
    report = json.loads(done.stdout)
    # What is stored holds; that somebody said something else is told by name.
    assert (done.returncode, report["findings"], report["forks"]) == (0, [], 1)
    (note,) = report["notes"]
    assert f"agent {station.id}, buffer {station.chain.buffer}, lane 1: another batch 2 " in note


def test_a_flood_of_wrong_tokens_is_refused_within_a_bound_recorded_within_another_and_ends_with_itself(
    dsn: str,
) -> None:
    with Collector(dsn, ACCESS__REQUESTS_PER_S="1", ACCESS__REQUESTS_BURST="5") as collector:
        key = ed25519.Ed25519PrivateKey.generate()
        public = key.public_key().public_bytes_raw()

        def ask(token: str) -> httpx.Response:
            agent, sent = str(uuid4()), now_us()
            secret = hashlib.sha256(token.partition(".")[2].encode()).hexdigest()
            text = enrolment_text(agent=agent, public_key=public, token=secret, url=collector.url, sent_us=sent)
            body = {
                "token": token, "agent_id": agent, "public_key": public.hex(), "url": collector.url, "sent_us": sent,
                "signature": key.sign(text).hex(),
            }  # fmt: skip
            return client.post("/v1/enroll", json=body)

        with collector.client() as client:
            answers = [ask(f"nobody{n}.{'0' * 64}") for n in range(40)]
            let_through = sum(answer.status_code == 403 for answer in answers)
            assert {answer.status_code for answer in answers} == {403, 429}
            assert 5 <= let_through <= 15
            assert all(int(answer.headers["Retry-After"]) >= 1 for answer in answers if answer.status_code == 429)
            assert len(fetch(collector, "SELECT FROM audit_log WHERE result = 'refused'")) <= let_through
            # Who has a good one waits and gets in.
            good = read_token(token_of(collector))
            poll_until(lambda: ask(f"{good.prefix}.{good.secret}").status_code == 200)


# ── being put out ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_revoked_agent_is_refused_with_its_next_request_keeps_its_data_and_says_what_to_do(
    tmp_path: Path, strict: Collector
) -> None:
    log = tmp_path / "auth.log"
    log.write_text("")
    agent = Agent(tmp_path, strict.url, "", log_source(log))
    done = agent_command("enroll", "--token", token_of(strict), "--config", str(agent.config))
    assert done.returncode == 0, done.stderr
    with agent:
        poll_until(agent.drained, why="nothing is sent")
        (told,) = poll_until(
            lambda: fetch(
                strict,
                "SELECT data FROM security_events WHERE agent_id = $1 AND type = 'agent.enrolled'",
                UUID(agent.id),
            ),
            why="the agent does not say that it was enrolled",
        )
        assert "key_id" in told["data"]
        assert call(strict, "analyst", "POST", f"/v1/agents/{agent.id}/revoke").status_code == 403
        answer = call(strict, "admin", "POST", f"/v1/agents/{agent.id}/revoke")
        assert (answer.status_code, answer.json()["keys"]) == (200, 1)
        line = "Jan  1 00:00:00 host sshd[1]: Failed password for root from 10.0.0.1 port 1 ssh2\n"
        with log.open("a") as file:
            file.write(line)
        said = poll_until(lambda: agent.status()["sync"]["last_error"], why="the agent does not say that it is refused")
        assert "revoked" in said
        assert f"token create --agent {agent.id}" in said
        poll_until(lambda: agent.status()["buffer"]["events"] > 0)
        health = poll_until(
            lambda: found if (found := agent.get("/healthz").json())["state"] == "degraded" else None,
            why="health says nothing of the refusal",
        )
        assert "revoked" in health["checks"]["collector"]["detail"]
        assert "enroll" in health["checks"]["collector"]["remedy"]
        # Enrolled again, it goes on where it stood.
        again = token_of(strict, "--agent", agent.id)
        done = agent_command("enroll", "--new-key", "--token", again, "--config", str(agent.config))
        assert done.returncode == 0, done.stderr
        poll_until(agent.drained, within_s=90, why="it does not go on")
        poll_until(lambda: "takes events again" in agent.log, why="the log says nothing of the return")
    lines = [line for line in agent.log.splitlines() if "the collector takes nothing" in line]
    assert len(lines) == 1, "one line for the state, not one for each try"
    assert all(word in lines[0] for word in ("WARNING", "revoked", "Next try in", "linewarden-agent enroll"))
    count = (
        "SELECT count(*) FROM security_events WHERE agent_id = $1 AND src_ip = '10.0.0.1' AND type NOT LIKE 'alert.%'"
    )
    assert fetch(strict, count, UUID(agent.id))[0][0] == 1
    links = fetch(strict, "SELECT batch_no, hash FROM agent_links WHERE agent_id = $1", UUID(agent.id))
    assert links
    assert all(row["batch_no"] > 0 for row in links)
    (record,) = fetch(strict, "SELECT who_kind FROM audit_log WHERE action = 'agent.revoke' AND target = $1", agent.id)
    assert record["who_kind"] == "key"


def test_forged_unknown_unsigned_and_foreign_requests_are_refused_and_told_once_however_many_come(
    tmp_path: Path, strict: Collector
) -> None:
    station, other = enrolled(tmp_path / "a", strict), enrolled(tmp_path / "b", strict)
    batch = station.chain.batch()
    forged = station.post(batch, **{"Linewarden-Status": '{"forged":1}'})
    assert (forged.status_code, forged.json()["code"]) == (401, "signature")
    for _ in range(20):
        assert station.post(batch, **{"Linewarden-Agent-Time": "1"}).status_code == 401
    foreign = post_signed(strict, other.keyring, other.id, batch)
    assert foreign.status_code == 401 or foreign.json()["code"] == "agent"
    unknown = station.post(batch, **{HEADER: f"1 {'0' * 32} {'0' * 128}"})
    assert (unknown.status_code, unknown.json()["code"]) == (401, "key_unknown")
    with strict.client(strict.key("agent")) as client:
        unsigned = client.post("/v1/batches", content=batch.frame)
    assert (unsigned.status_code, unsigned.json()["code"]) == (403, "unsigned")
    assert "enroll" in unsigned.json()["detail"]
    sql = "SELECT data FROM security_events WHERE type = 'security.signature.refused' AND target = $1"
    poll_until(lambda: fetch(strict, sql, station.id), why="nobody is told")
    assert len(fetch(strict, sql, station.id)) <= 2
    assert not fetch(strict, "SELECT FROM evidence WHERE agent_id = $1", UUID(station.id))
    # And the agent itself goes on.
    assert station.post(batch).status_code == 200


def test_an_enrolled_agent_cannot_go_back_to_an_api_key(tmp_path: Path, collector: Collector) -> None:
    station = enrolled(tmp_path, collector)
    with collector.client(collector.key("agent")) as client:
        answer = client.post("/v1/batches", content=station.chain.batch().frame)
    assert (answer.status_code, answer.json()["code"]) == (403, "unsigned")


def test_a_request_that_comes_again_changes_nothing_and_is_no_sign_of_life(tmp_path: Path, strict: Collector) -> None:
    station = enrolled(tmp_path, strict)
    batch = station.chain.batch()
    sent = now_us()
    header = station.keyring.sign(station.id, [batch.frame], batch.frame, "{}", sent)
    headers = {HEADER: str(header), "Linewarden-Agent-Time": str(sent), "Linewarden-Status": "{}"}
    seen = "SELECT last_seen, status FROM agents WHERE agent_id = $1"
    with strict.client() as client:
        assert client.post("/v1/batches", content=batch.frame, headers=headers).status_code == 200
        before = fetch(strict, seen, UUID(station.id))
        for _ in range(3):
            assert client.post("/v1/batches", content=batch.frame, headers=headers).json()["events"] == 0
    assert fetch(strict, seen, UUID(station.id)) == before
    assert fetch(strict, "SELECT count(*) FROM evidence WHERE agent_id = $1", UUID(station.id))[0][0] == 1


def test_a_new_machine_at_a_station_is_linked_to_where_the_old_one_s_streams_ended(
    tmp_path: Path, strict: Collector
) -> None:
    place = ("--site", "p", "--line", "l", "--station", uuid4().hex)
    old = enrolled(tmp_path / "old", strict, *place)
    last = old.chain.batch("the last of the old disk")
    assert old.post(last).status_code == 200
    new = enrolled(tmp_path / "new", strict, *place)
    (link,) = new.saved.links
    assert (link.agent_id, link.buffer, link.lane, link.no, link.hash) == (old.id, old.chain.buffer, 1, 1, last.hash)
    (row,) = fetch(strict, "SELECT * FROM agent_links WHERE agent_id = $1", UUID(new.id))
    assert (row["earlier_agent"], row["batch_no"], row["hash"]) == (UUID(old.id), 1, last.hash)


def test_a_key_that_others_may_read_is_not_used(tmp_path: Path, strict: Collector) -> None:
    station = enrolled(tmp_path, strict)
    (tmp_path / "state" / "identity" / "key.pem").chmod(0o644)
    done = rotate(station)
    assert done.returncode == 2
    assert "chmod 600" in done.stderr


def test_the_key_may_be_kept_by_something_else(tmp_path: Path, strict: Collector) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    private = Ed25519PrivateKey.generate()
    credential = tmp_path / "credential"
    credential.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    credential.chmod(0o400)
    station = Station(tmp_path, strict)
    with station.config.open("a") as file:
        file.write(f'[identity]\nkey_file = "{credential}"\n')
    done = station.enroll(token_of(strict))
    assert done.returncode == 0, done.stderr
    assert station.saved.key_id == key_id_of(private.public_key().public_bytes_raw())
    assert not (tmp_path / "state" / "identity" / "key.pem").exists()
    assert rotate(station).returncode == 2


def test_tokens_are_listed_without_their_secrets(strict: Collector) -> None:
    token = token_of(strict, "--site", "x")
    listed = run_cli(strict.dsn, "token", "list")
    assert read_token(token).prefix in listed.stdout
    assert read_token(token).secret not in listed.stdout + run_cli(strict.dsn, "token", "list", "--json").stdout


def test_what_is_told_of_refused_enrolments_reaches_the_soc(tmp_path: Path, strict: Collector) -> None:
    token = token_of(strict)
    assert Station(tmp_path / "a", strict).enroll(token).returncode == 0
    other = Station(tmp_path / "b", strict)
    assert other.enroll(token).returncode == 1
    with strict.client(strict.key("viewer")) as client:
        found = poll_until(lambda: events_of(client, type="security.enrolment.refused", target=other.id) or None)
        assert found[0]["data"]["reason"] == "token_used"
        # The same key once more, by a token that would let in another.
        assert other.enroll(token_of(strict)).returncode == 0
        assert ask_again(strict, other, token_of(strict, "--agent", other.id)).json()["code"] == "key_known"

        def reasons() -> set[str]:
            found = events_of(client, type="security.enrolment.refused", target=other.id)
            return {one["data"]["reason"] for one in found}

        poll_until(lambda: "key_known" in reasons(), why="a refused enrolment with a known key does not reach the SOC")


def ask_again(collector: Collector, station: Station, token: str) -> httpx.Response:
    """Ask to be enrolled with the key that the station has already."""
    word, key = read_token(token), station.keyring.current()
    assert key is not None
    sent, secret = now_us(), hashlib.sha256(word.secret.encode()).hexdigest()
    text = enrolment_text(agent=station.id, public_key=key.public, token=secret, url=collector.url, sent_us=sent)
    body = {
        "token": f"{word.prefix}.{word.secret}", "agent_id": station.id, "public_key": key.public.hex(), "url": collector.url,
        "sent_us": sent, "signature": key.sign(text).hex(),
    }  # fmt: skip
    with collector.client() as client:
        return client.post("/v1/enroll", json=body)


def test_verify_holds_what_enrolled_agents_sent_over_changes_of_key_revocation_and_a_new_machine(
    tmp_path: Path, postgres: Postgres
) -> None:
    place = ("--site", "p", "--line", "l", "--station", "s")
    with Collector(postgres.create_database("verified"), IDENTITY__UNSIGNED="refuse") as own:
        station = enrolled(tmp_path / "old", own, *place)
        assert station.post(station.chain.batch("with the first key")).status_code == 200
        assert rotate(station).returncode == 0
        assert station.post(station.chain.batch("with the second")).status_code == 200
        assert run_cli(own.dsn, "agents", "revoke", station.id).returncode == 0
        refused = station.post(station.chain.batch("too late"))
        assert (refused.status_code, refused.json()["code"]) == (403, "revoked")
        new = enrolled(tmp_path / "new", own, *place)
        assert new.post(new.chain.batch("the new machine")).status_code == 200
        done = run_cli(own.dsn, "verify")
        assert done.returncode == 0, done.stdout + done.stderr
        fetch(
            own,
            "UPDATE signatures SET signature = set_byte(signature, 5, get_byte(signature, 5) # 1) WHERE agent_id = $1",
            UUID(new.id),
        )
        assert run_cli(own.dsn, "verify").returncode == 1
