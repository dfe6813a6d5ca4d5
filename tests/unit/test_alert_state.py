"""The states of an alert, and whether an agent is heard: whatever happens in whatever order, what was promised of them holds."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from collector.alert_state import REASONS, STATES, VERBS, Action, NotAllowed, Standing, act, clear, fire
from collector.fleet_state import Contact, heard

NOW = datetime(2026, 1, 1, tzinfo=UTC)

actions = st.builds(
    Action,
    verb=st.sampled_from(VERBS),
    reason=st.none() | st.sampled_from(REASONS),
    until=st.none() | st.integers(-5, 50).map(lambda s: NOW + timedelta(seconds=s)),
    assignee=st.none() | st.sampled_from(["ann", "bob"]),
    comment=st.none() | st.just("why"),
)
steps = st.lists(st.one_of(actions, st.sampled_from(["fire", "suppressed", "clear"])), max_size=40)


@given(steps)
def test_whatever_is_done_an_alert_is_in_a_state_that_makes_sense(doing: list[Action | str]) -> None:
    """wazuh#26874, wazuh#26819."""
    standing = Standing()
    for second, step in enumerate(doing):
        before, now = standing, NOW + timedelta(seconds=second)
        if isinstance(step, Action):
            try:
                standing = act(before, step, now)
            except NotAllowed:
                continue
            assert standing.version == before.version + 1
        elif step == "clear":
            standing = clear(before)
            assert standing.state == "closed"
        else:
            standing = fire(before, now, suppressed=step == "suppressed")
            quiet = before.quiet_until is not None and now < before.quiet_until
            if step == "fire" and not quiet:
                assert standing.state != "closed"
            else:
                assert standing == before
        assert standing.state in STATES
        assert (standing.state == "closed") == (standing.reason is not None)
        assert standing.quiet_until is None or standing.reason == "false_positive"
        assert standing.reopened - before.reopened == (before.state != "open" and standing.state == "open")
        assert standing == before or standing.version > before.version or standing.state == before.state


@given(st.lists(st.integers(0, 100), min_size=1, max_size=60))
def test_an_agent_that_comes_and_goes_does_not_flap(ages_s: list[int]) -> None:
    """Fleet #37097: it is online again only after it was heard for a while without a pause."""
    contact: Contact | None = None
    good = 0
    for number, age_s in enumerate(ages_s):
        now = NOW + timedelta(seconds=10 * number)
        before, contact = contact, heard(contact, now - timedelta(seconds=age_s), now, (30, 60, 25))
        good = good + 1 if age_s <= 30 else 0
        if before is not None and before.state != "online" and contact.state == "online":
            assert good >= 4
        if before is not None and before.state == "silent":
            assert contact.state != "late"
        if age_s > 60:
            assert contact.state == "silent"
