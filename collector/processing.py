"""The record of processing that GDPR 30 asks for, computed from the settings: it says what is configured, not what somebody once wrote
down.

What only people know (who is responsible, whom the works council agreed with) is left as lines to fill in, marked as such.
"""

import html as html_
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from agent.wire.taxonomy import PERSONAL_KEYS, TAXONOMY
from collector.config import Settings

FILL_IN = "(to be filled in by the controller)"
_PURPOSES = {
    "authentication": "finding misuse of accounts", "access": "finding misuse of rights", "account": "finding changes to accounts",
    "configuration": "tracing changes to machines", "data": "tracing access to data", "equipment": "running and protecting machines",
    "security": "answering security incidents", "application": "tracing use of station programs",
}  # fmt: skip


def record_of(settings: Settings) -> dict[str, Any]:
    """The record, in the order of the article."""
    return {
        "controller": FILL_IN,
        "data_protection_officer": FILL_IN,
        "purposes": [
            {"category": category, "purpose": purpose, "types": sorted(n for n, row in TAXONOMY.items() if row.category == category)}
            for category, purpose in _PURPOSES.items()
        ],
        "data_subjects": ["people who work at or administer machines of the plant", "people who use this system"],
        "personal_data": {
            "actor": "who did it, as the source names them",
            "raw": "the original line of a log, where a source keeps it (off unless configured)",
            "keys of data": sorted(PERSONAL_KEYS),
            "src_ip": "address of a computer, which may belong to one person",
            "audit log": "users of this system and what they did",
        },
        "retention": _retention(settings),
        "recipients": list(_recipients(settings)),
        "transfers_to_third_countries": FILL_IN,
        "security_measures": _measures(settings),
        "rights": {
            "access": "linewarden-collector subject export",
            "erasure": "linewarden-collector subject erase"
            + (", requested by one person and confirmed by another" if settings.privacy.erase_two_persons else ""),
            "not_erased": [
                "the audit log (GDPR 17 (3) b)", "events under a legal hold (GDPR 17 (3) e)", "backups, until they are replaced",
                "what was handed on to recipients before", "unsent events in buffers of agents, until they were sent",
            ],
        },
    }  # fmt: skip


def _retention(settings: Settings) -> list[dict[str, Any]]:
    return [
        {
            "types": list(rule.types) or ["all the rest"],
            "severity": f"{rule.severity_min} to {rule.severity_max}",
            "days": rule.days if rule.days is not None else "for ever",
        }
        for rule in settings.retention.policy
    ] + [
        {"types": [what], "severity": "all", "days": days}
        for what, days in (
            ("the audit log", settings.retention.audit_days),
            ("closed incidents and their alerts", settings.retention.alert_days),
        )
    ]


def _recipients(settings: Settings) -> Iterator[dict[str, str]]:
    """Every address in the settings but those that we listen at and the database."""
    for section, name, address in _addresses(settings.model_dump(mode="json")):
        if section in ("database", "server"):
            continue
        what = "signed hashes, no personal data" if section == "evidence" else "events or alerts, as configured there"
        yield {"setting": f"{section}.{name}", "address": address, "what": what}


def _addresses(dump: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    for section, values in dump.items():
        for path, value in _leaves(values, ""):
            if isinstance(value, str) and "://" in value:
                parts = urlsplit(value)
                # Neither a password nor a token in a path belongs into a record that is handed out.
                yield section, path, f"{parts.scheme}://{parts.hostname or parts.path}"


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}".lstrip("."))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _leaves(item, f"{path}[{number}]")
    else:
        yield path, value


def _measures(settings: Settings) -> list[str]:
    server, proof = settings.server, settings.evidence
    if server.certificate_file is not None:
        transport = "TLS 1.3 between agents and the collector"
    elif server.allow_plaintext:
        transport = "no TLS of its own: a proxy in front has to end it (server.allow_plaintext)"
    else:
        transport = "reachable on this computer alone"
    return [
        transport,
        "every access needs a key or a session with a role; what people do here is recorded in an audit log that only grows",
        "personal data lies apart from the rest of an event, with a random salt for each, so that it can be erased",
        "events are chained by hash and kept with their evidence; linewarden-collector verify finds any change",
        f"signed checkpoints every {proof.checkpoint_every_s} s, written to {len(proof.targets)} places" if proof.key
        else "no signed checkpoints (evidence.key_file is not set)",
        "erasure takes two persons" if settings.privacy.erase_two_persons else "erasure takes one person",
    ]  # fmt: skip


def html(record: dict[str, Any]) -> str:
    """The record as a page to print."""
    body = "".join(f"<h2>{_title(name)}</h2>{_html(value)}" for name, value in record.items())
    style = "body{font:16px/1.5 sans-serif;max-width:50em;margin:2em auto}dt{font-weight:bold}"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Record of processing</title><style>{style}</style>'
        f"<h1>Record of processing activities (GDPR 30)</h1>{body}</html>"
    )


def _title(name: str) -> str:
    return html_.escape(name.replace("_", " ").capitalize())


def _html(value: Any) -> str:
    if isinstance(value, dict):
        return "<dl>" + "".join(f"<dt>{_title(str(k))}</dt><dd>{_html(v)}</dd>" for k, v in value.items()) + "</dl>"
    if isinstance(value, list):
        return "<ul>" + "".join(f"<li>{_html(item)}</li>" for item in value) + "</ul>" if value else "<p>none</p>"
    return html_.escape(str(value))
