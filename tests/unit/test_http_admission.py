"""Which connection gets a place, and which gives way."""

import ipaddress

import pytest

from collector.http_admission import Admission, Phase, Slot, Ticket, network_of, prove
from collector.limits import Budget

PROXIES = (ipaddress.ip_network("10.0.0.0/8"),)


class Line:
    """A connection, as far as it matters here."""

    def __init__(self) -> None:
        self.is_cut = False
        self.looks: list[float] = []

    def cut(self) -> None:
        """It had to go."""
        self.is_cut = True

    def look(self, now: float) -> None:
        """It was looked at."""
        self.looks.append(now)


def enter(admission: Admission, address: str, phase: Phase = Phase.HEAD, owner: str = "") -> tuple[Line, Slot | None]:
    line = Line()
    slot = admission.enter(address, line)
    if slot is not None:
        slot.phase = phase
        if owner:
            admission.prove(slot, owner)
    return line, slot


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("192.0.2.7", "192.0.2.7"), ("::ffff:192.0.2.7", "192.0.2.7"), ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8::ffff:1", "2001:db8::/64"), ("fe80::1%eth0", "fe80::/64"), ("10.1.2.3", ""), ("::ffff:10.1.2.3", ""),
        ("no address", "no address"),
    ],
)  # fmt: skip
def test_an_address_counts_by_its_network_and_a_proxy_for_none(address: str, name: str) -> None:
    assert network_of(address, PROXIES) == name


def test_of_one_address_the_oldest_connection_without_a_credential_gives_way_to_the_next() -> None:
    admission = Admission(1_000, address_unproven_max=4)
    lines = [enter(admission, "192.0.2.7")[0] for _ in range(10)]
    assert [line.is_cut for line in lines] == [True] * 6 + [False] * 4
    assert len(admission) == admission.unproven == 4
    other, _ = enter(admission, "192.0.2.8")
    assert not other.is_cut


def test_an_idle_connection_gives_way_before_a_head_and_a_head_before_a_body() -> None:
    admission = Admission(1_000, address_unproven_max=3)
    body, _ = enter(admission, "192.0.2.7", Phase.BODY)
    head, _ = enter(admission, "192.0.2.7", Phase.HEAD)
    idle, _ = enter(admission, "192.0.2.7", Phase.IDLE)
    order = []
    for _ in range(3):
        enter(admission, "192.0.2.7", Phase.ANSWER)
        order.append([line.is_cut for line in (body, head, idle)])
    assert order == [[False, False, True], [False, True, True], [True, True, True]]


def test_a_request_that_is_being_answered_never_gives_way() -> None:
    admission = Admission(1_000, address_unproven_max=2)
    answered = [enter(admission, "192.0.2.7", Phase.ANSWER)[0] for _ in range(2)]
    _, slot = enter(admission, "192.0.2.7")
    assert slot is None
    assert not any(line.is_cut for line in answered)
    assert admission.counts["refused"] == 1


def test_connections_that_showed_a_credential_do_not_count_for_their_address() -> None:
    admission = Admission(1_000, address_unproven_max=2)
    agents = [enter(admission, "192.0.2.7", Phase.IDLE, f"key {n}")[0] for n in range(200)]
    strangers = [enter(admission, "192.0.2.7")[0] for _ in range(50)]
    assert not any(line.is_cut for line in agents)
    assert sum(line.is_cut for line in strangers) == 48


def test_strangers_from_many_addresses_get_a_quarter_and_the_address_that_has_most_gives_way() -> None:
    admission = Admission(40, address_unproven_max=8)
    honest, _ = enter(admission, "192.0.2.1")
    many = [enter(admission, "192.0.2.2")[0] for _ in range(8)]
    enter(admission, "192.0.2.3")
    for n in range(4, 9):
        enter(admission, f"192.0.2.{n}")
    assert admission.unproven == 10
    assert not honest.is_cut
    assert sum(line.is_cut for line in many) == 5


def test_one_key_gets_a_quarter_of_all_connections() -> None:
    admission = Admission(40)
    lines = [enter(admission, "192.0.2.7", Phase.IDLE, "key a")[0] for _ in range(15)]
    assert [line.is_cut for line in lines] == [True] * 5 + [False] * 10
    assert not enter(admission, "192.0.2.7", Phase.IDLE, "key b")[0].is_cut


def test_where_all_are_taken_an_idle_connection_of_a_known_sender_gives_way_to_a_new_one() -> None:
    admission = Admission(16)
    idle = [enter(admission, f"192.0.2.{n}", Phase.IDLE, f"key {n}") for n in range(16)]
    slot = idle[0][1]
    assert slot is not None
    admission.prove(slot, "key 0")  # used again
    assert enter(admission, "192.0.2.99")[1] is not None
    assert [line.is_cut for line, _ in idle[:3]] == [False, True, False]


def test_leaving_twice_frees_one_place_and_proving_after_it_none() -> None:
    admission = Admission(16)
    _, slot = enter(admission, "192.0.2.7")
    assert slot is not None
    admission.leave(slot)
    admission.leave(slot)
    admission.prove(slot, "key a")
    assert (len(admission), admission.unproven) == (0, 0)


def test_the_application_proves_the_connection_of_its_request() -> None:
    admission = Admission(16)
    _, slot = enter(admission, "192.0.2.7")
    assert slot is not None
    ticket = Ticket(admission, slot)
    prove({"linewarden.connection": ticket}, "key a")
    assert ticket.proven
    assert (slot.owner, admission.unproven) == ("key a", 0)
    prove({}, "key a")  # under another server


def test_an_account_of_bytes_holds_all_and_each() -> None:
    budget = Budget(100, 60)
    assert budget.take("a", 60)
    assert not budget.take("a", 1)
    budget.give("a", 1)
    assert not budget.take("b", 41)
    budget.give("b", 41)
    assert budget.take("b", 40)
    budget.give("a", 60)
    budget.give("b", 40)
    assert (budget.total, budget._held) == (0, {})
