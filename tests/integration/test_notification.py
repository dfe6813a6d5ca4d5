"""Notifications to a real HTTP server and a real mail server: signed, tried again, never a flood, and sent again with the same id."""

import hmac
import json
import threading
import time
from collections.abc import Iterator
from email import message_from_bytes
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.handlers import Message as MailHandler

from collector.notification_targets import signature
from tests.collector_process import Chain, Collector, poll_until, post, run_cli
from tests.exposition import parse
from tests.integration.test_alerts import alert
from tests.ports import free_port


class Hook:
    """An HTTP server that keeps what it is sent; `status` says what it answers, and it answers when `free` is set."""

    def __init__(self) -> None:
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.status = 200
        self.free = threading.Event()
        self.free.set()
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                hook.requests.append(({key.lower(): value for key, value in self.headers.items()}, body))
                hook.free.wait(20)
                try:
                    self.send_response(hook.status)
                    self.send_header("content-length", "0")
                    self.end_headers()
                except OSError:
                    pass

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/hook"

    def ids(self) -> list[str]:
        return [headers["idempotency-key"] for headers, _ in self.requests]


@pytest.fixture
def hook() -> Iterator[Hook]:
    made = Hook()
    yield made
    made.free.set()
    made.server.shutdown()
    made.server.server_close()


def target(tmp_path: Path, hook: Hook, **more: str) -> dict[str, str]:
    (tmp_path / "secret").write_text("a long random text")
    given = {
        "TYPE": "webhook",
        "URL": hook.url,
        "SECRET_FILE": str(tmp_path / "secret"),
        "BACKOFF_S": "0.2",
        "TIMEOUT_S": "1",
        **more,
    }
    return {f"NOTIFICATION__TARGETS__SOC__{key}": value for key, value in given.items()}


def send(collector: Collector, *events: Any) -> None:
    with collector.client(collector.key("agent", site="north", station="s1")) as client:
        assert post(client, Chain(lane=0).seal(list(events))).status_code == 200


def test_a_webhook_is_signed_tried_again_and_tells_nothing_personal(dsn: str, tmp_path: Path, hook: Hook) -> None:
    """wazuh#33328: an alert is handed over to another tool."""
    hook.status = 500
    with Collector(dsn, **target(tmp_path, hook)) as collector:
        send(collector, alert("ten failures", actor="ann", raw="ann logged in", severity=5))
        poll_until(lambda: len(hook.requests) >= 2)
        hook.status = 200
        with collector.client(collector.key("viewer")) as client:
            poll_until(lambda: client.get("/v1/notifications?state=sent").json()["messages"])
    assert len(set(hook.ids())) == 1
    headers, body = hook.requests[-1]
    at, mac = (part.partition("=")[2] for part in headers["linewarden-signature"].split(","))
    assert hmac.compare_digest(mac, signature("a long random text", int(at), body))
    said = json.loads(body)
    assert (said["count"], said["more"], said["alerts"][0]["message"]) == (1, 0, "ten failures")
    assert b"ann" not in body


def test_what_was_sent_and_not_marked_when_it_was_killed_is_sent_again_with_the_same_id(
    dsn: str, tmp_path: Path, hook: Hook
) -> None:
    hook.free.clear()
    settings = target(tmp_path, hook, TIMEOUT_S="0.5")
    with Collector(dsn, **settings) as collector:
        send(collector, alert())
        poll_until(lambda: hook.requests)
        collector.kill9()
        hook.free.set()
        collector.start()
        poll_until(lambda: len(hook.requests) >= 2, within_s=60)
    assert len(set(hook.ids())) == 1


def test_a_storm_is_a_few_messages_that_say_how_many_more_and_a_dead_one_is_shown(
    dsn: str, tmp_path: Path, hook: Hook
) -> None:
    hook.status = 503
    settings = target(tmp_path, hook, ATTEMPTS_MAX="2", PER_MINUTE_MAX="2", LISTED_MAX="5")
    with Collector(dsn, **settings) as collector:
        send(collector, *(alert(src_ip=f"10.0.{n // 250}.{n % 250}") for n in range(1_000)))
        with collector.client(collector.key("admin")) as client:
            dead = poll_until(lambda: client.get("/v1/notifications?state=dead").json()["messages"])
            assert "503" in dead[0]["trouble"]
            hook.status = 200
            assert client.post(f"/v1/notifications/{dead[0]['message_id']}/retry").status_code == 204
            poll_until(lambda: client.get("/v1/notifications?state=sent").json()["messages"])
    assert len(set(hook.ids())) <= 2
    said = json.loads(hook.requests[0][1])
    assert said["count"] - len(said["alerts"]) == said["more"]
    assert len(said["alerts"]) <= 5


def figures(collector: Collector) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """What /metrics says, by name without the prefix and by labels."""
    with collector.client(collector.key("viewer")) as client:
        families = parse(client.get("/metrics").text)
    return {name.removeprefix("linewarden_collector_"): family.samples for name, family in families.items()}


def test_metrics_count_alerts_incidents_and_what_waits_to_be_told(dsn: str, tmp_path: Path, hook: Hook) -> None:
    hook.status = 503
    settings = target(tmp_path, hook, ATTEMPTS_MAX="2", BACKOFF_S="0.1", PER_MINUTE_MAX="1")
    with Collector(dsn, ALERTS__LOOK_S="0.2", **settings) as collector:
        empty = figures(collector)
        assert empty["incidents_open"] == {(): 0}
        assert empty["notification_messages_waiting"] == {(("target", "soc"),): 0}
        assert "alerts" not in empty
        strange = alert(severity=5, data={"handler": 'a "rule"\\ of\nthe agent', "key": "k"}, src_ip="192.0.2.8")
        send(collector, alert(src_ip="192.0.2.7"), strange)
        with collector.client(collector.key("analyst")) as analyst:
            dead = poll_until(lambda: analyst.get("/v1/notifications?state=dead").json()["messages"])
            send(collector, *(alert(src_ip=f"192.0.2.{n}") for n in range(20, 25)))
            found = poll_until(lambda: len(a := analyst.get("/v1/alerts").json()["alerts"]) == 7 and a)
            one = next(a for a in found if a["src_ip"] == "192.0.2.7")
            body = {"action": "close", "reason": "resolved", "version": one["version"]}
            assert analyst.patch(f"/v1/alerts/{one['alert_id']}", json=body).status_code == 200
        # Read again at most every few seconds.
        said = poll_until(lambda: (f := figures(collector))["incidents_open"] == {(): 6} and f)
        rule = (("state", "open"), ("severity", "4"), ("rule", "login_burst"))
        other = (("state", "open"), ("severity", "5"), ("rule", 'a "rule"\\ of\nthe agent'))
        assert said["alerts"] == {rule: 5, other: 1}
        assert said["alerts_unclosed"] == {(("state", "open"),): 6, (("state", "acknowledged"),): 0}
        assert said["alert_events_total"] == {(): 7}
        at = ("target", "soc")
        assert said["notification_messages_dead"] == {(at,): len(dead)}
        assert said["notification_alerts_waiting"] == {(at,): 5}
        assert 0 < said["notification_oldest_seconds"][at,] < 60
        tries = said["notification_attempts_total"]
        assert (tries[at, ("outcome", "failed")], tries[at, ("outcome", "dead")]) == (1, 1)
        silent = (("rule", "silent"),)
        assert said["rule_runs_total"][silent] > 0
        assert said["rule_seconds_total"][silent] >= 0
        assert said["rule_last_run_timestamp_seconds"][silent] == pytest.approx(time.time(), abs=60)
        assert said["rules_looked_timestamp_seconds"][()] == pytest.approx(time.time(), abs=60)


class Mails(MailHandler):
    def __init__(self) -> None:
        super().__init__(Message)
        self.found: list[Message] = []

    def handle_message(self, message: Any) -> None:
        self.found.append(message_from_bytes(message.as_bytes()))


def test_a_mail_is_sent_and_the_test_command_says_whether_it_was_taken(dsn: str) -> None:
    mails = Mails()
    server = Controller(mails, hostname="127.0.0.1", port=free_port())
    server.start()
    given = {
        "TYPE": "mail", "HOST": "127.0.0.1", "PORT": str(server.port), "TLS": "none", "SENDER": "lw@corp.example",
        "TO": '["soc@corp.example"]',
    }  # fmt: skip
    settings = {f"NOTIFICATION__TARGETS__DUTY__{key}": value for key, value in given.items()}
    try:
        with Collector(dsn, **settings) as collector:
            send(collector, alert("ten failures", actor="ann"))
            poll_until(lambda: mails.found)
        tested = run_cli(
            dsn, "notify", "test", "duty", **{f"LINEWARDEN_COLLECTOR__{k}": v for k, v in settings.items()}
        )
        assert tested.returncode == 0, tested.stderr
        assert run_cli(dsn, "notify", "test", "nobody").returncode == 2
    finally:
        server.stop()
    mail, testing = mails.found
    assert "ten failures" in mail["Subject"]
    assert "ann" not in mail.as_string()
    assert testing["Message-ID"] != mail["Message-ID"]
