"""What requirements ask, what the product does about them, and the tests that show it: data, one requirement a row.

A row is `standard | requirement | title | what the product does | check | tests`. `check` names a look at this installation (compliance.py).
`outside` as a check means that the requirement is for something else than this product; what it does then says for what. Tests are
module::function below tests/; a unit test looks that each is there. A row without a test is unmet, whatever its text says.
The types of events that back a requirement come from the taxonomy and are not repeated here.
"""

from typing import NamedTuple

from agent.wire.taxonomy import TAXONOMY

IEC, CSF, SP, GDPR = "IEC 62443-3-3", "NIST CSF 2.0", "NIST SP 800-82r3", "GDPR"
STANDARDS = (IEC, CSF, SP, GDPR)
OUTSIDE = "outside"


class Requirement(NamedTuple):
    """One row."""

    standard: str
    number: str
    title: str
    does: str
    check: str
    tests: tuple[str, ...]

    @property
    def name(self) -> str:
        """As its standard calls it."""
        return {IEC: "SR ", GDPR: "Art. "}.get(self.standard, "") + self.number


_TABLE = """
IEC | 1.1 | Human user identification | Every call is made with a key of its own or refused; sign-ins at machines and computers are recorded | agents | integration/test_collector_query.py::test_without_a_good_key_nothing_is_answered integration/test_opcua_events.py::test_a_refused_sign_in_at_the_server_is_an_authentication_failure_with_its_user_as_personal_data
IEC | 1.2 | Software and device identification | Each agent has a key of its own that it proves with every request; enrolment by a token that serves once | agents | integration/test_enrolment.py::test_a_token_lets_an_agent_in_which_then_needs_nothing_but_its_key integration/test_enrolment.py::test_of_twenty_who_use_a_token_at_once_at_several_collectors_one_gets_in
IEC | 1.3 | Account management | Changes to accounts and groups on watched systems are events; keys can be listed and taken back | agents | integration/test_collector_store.py::test_keys_are_listed_without_their_secret_and_revoked_by_prefix
IEC | 1.4 | Identifier management | Keys have a prefix of their own that names them in every record; agents an identity that is never given twice | none | integration/test_collector_store.py::test_keys_are_listed_without_their_secret_and_revoked_by_prefix integration/test_enrolment.py::test_enrolling_again_with_the_same_token_gives_the_same_identity
IEC | 1.5 | Authenticator management | Secrets are stored as hashes, expire, and are changed and taken back; password changes on watched systems are events | none | integration/test_collector_query.py::test_an_expired_key_is_refused integration/test_enrolment.py::test_a_new_key_takes_the_place_of_the_old_one_which_stays_good_for_requests_under_way
IEC | 1.6 | Wireless access management | Nothing: no part of the product is an access point | outside |
IEC | 1.7 | Strength of passwords | Keys are 256 random bits, so none can be weak; weak passwords of people are refused with the reason | none | integration/test_collector_access.py::test_weak_passwords_are_refused_with_the_reason
IEC | 1.8 | Public key infrastructure certificates | An authority for the installation; certificates of machines are pinned or checked; those that end are told in time | tls | integration/test_tls.py::test_made_keys_are_readable_by_their_owner_alone_and_a_renewal_keeps_the_authority integration/test_tls.py::test_a_certificate_that_ends_soon_is_told_thirty_days_before_and_when_it_has_ended integration/test_opcua.py::test_a_changed_server_certificate_is_an_event_once_and_then_waits_for_a_person
IEC | 1.9 | Strength of public key authentication | Ed25519 for agents and checkpoints; a key that others may read is not used; a revoked one is refused at once | none | integration/test_enrolment.py::test_a_key_that_others_may_read_is_not_used integration/test_enrolment.py::test_a_revoked_agent_is_refused_with_its_next_request_keeps_its_data_and_says_what_to_do
IEC | 1.10 | Authenticator feedback | A refused call does not say which part was wrong; secrets are shown once and never listed | none | integration/test_collector_access.py::test_wrong_passwords_and_unknown_names_are_answered_alike_and_recorded integration/test_collector_query.py::test_without_a_good_key_nothing_is_answered integration/test_enrolment.py::test_tokens_are_listed_without_their_secrets
IEC | 1.11 | Unsuccessful login attempts | Bursts of refused sign-ins at watched systems raise an alert that is on without configuration | agents | unit/test_handler_engine.py::test_builtin_login_burst_is_on_without_any_configuration unit/test_handler_count.py::test_burst_is_raised_once_until_its_key_has_been_quiet
IEC | 1.12 | System use notification | Nothing yet: a text before sign-in is for the console | none |
IEC | 1.13 | Access via untrusted networks | Agents only open connections to the centre; TLS 1.3; a proxy's word is taken only from the proxy | tls | integration/test_tls.py::test_tls_before_1_3_is_refused_by_both_ends integration/test_tls.py::test_a_proxy_lets_nobody_say_from_outside_who_they_are
IEC | 2.8 | Auditable events | Events with time, source, category, type, identity and outcome from machines, logs and computers | agents | integration/test_opcua_events.py::test_each_standard_audit_has_its_place_in_the_taxonomy integration/test_collector_query.py::test_each_role_may_do_its_own_and_nothing_else
IEC | 2.9 | Audit storage capacity | Buffers and disks warn before they are full; a full one declares what it lost; retention by rule | retention | unit/test_buffer.py::test_a_full_buffer_evicts_the_oldest_of_lane_1_and_says_how_many integration/test_host_events.py::test_a_disk_with_too_little_room_is_told_once integration/test_collector_retention.py::test_days_and_rows_leave_by_rule_and_age_and_what_is_held_stays integration/test_retention_logs.py::test_old_audit_records_leave_against_a_signed_tombstone_and_everything_still_holds
IEC | 2.10 | Response to audit processing failures | A full disk or an absent centre stops no polling; what is lost is a gap with count and reason | gaps | unit/test_buffer.py::test_a_full_disk_is_waited_out_and_nothing_is_lost integration/test_collector_ingest.py::test_gap_events_are_kept_in_gaps_with_count_and_reason faults/test_campaign.py::test_every_number_is_stored_or_pending_or_in_a_declared_gap
IEC | 2.11 | Timestamps | UTC; the clock of each agent is measured against the centre's; steps are events, absurd times kept and flagged | clocks | integration/test_collector_ingest.py::test_clock_offset_is_noted_and_nonsense_in_the_courtesy_headers_is_left_out integration/test_host_events.py::test_a_clock_that_steps_is_told_with_its_offset integration/test_collector_ingest.py::test_an_absurd_clock_is_kept_and_flagged
IEC | 2.12 | Non-repudiation | Batches are chained and signed by the agent's key; what users of the product do is in a chained log | signed | integration/test_enrolment.py::test_every_stored_batch_is_covered_by_a_signature_that_holds integration/test_evidence_signed.py::test_batches_of_an_enrolled_agent_hold_through_a_change_of_its_key
IEC | 3.1 | Communication integrity | TLS 1.3, and each batch names its predecessor by hash and is signed | tls | integration/test_collector_store.py::test_tls_is_1_3_and_the_certificate_is_read_again_on_hangup unit/test_signature.py::test_any_changed_byte_of_a_signed_text_is_noticed
IEC | 3.2 | Malicious code protection | Nothing of its own: what a scanner writes into a log is collected | outside |
IEC | 3.3 | Security functionality verification | The command check looks at a configuration without starting it; verify at everything that is stored | none | integration/test_check.py::test_each_broken_configuration_is_told_with_key_and_remedy integration/test_evidence_verify.py::test_the_command_says_where_and_ends_with_one_while_events_come_in
IEC | 3.4 | Software and information integrity | Changed setpoints, programs and configuration are events; any edit of stored events is found and located | agents | integration/test_evidence_verify.py::test_any_edit_of_any_stored_column_is_found integration/test_modbus.py::test_a_setpoint_changed_while_nobody_looked_is_an_event_after_the_restart integration/test_host_events.py::test_a_changed_configuration_is_told_with_its_hash_before_and_after_and_whether_it_runs
IEC | 3.5 | Input validation | Sizes, depths and counts are bounded; a filter that is misspelt is refused; a peer that floods is cut off | none | integration/test_modbus.py::test_a_peer_that_floods_is_cut_off_before_it_fills_the_memory integration/test_collector_analytics.py::test_questions_that_make_no_sense_are_refused_with_what_to_do
IEC | 3.6 | Deterministic output | Nothing: the product only reads from machines and puts nothing out to them | outside |
IEC | 3.7 | Error handling | Problems name what, where and what to do, and never how the program is made | none | unit/test_collector_config.py::test_a_problem_names_its_key_and_what_to_do
IEC | 3.8 | Session integrity | Sessions end when idle, at their time and with the password; a key that is taken back is refused with the next request | none | integration/test_collector_access.py::test_sessions_end_when_idle_at_their_time_with_the_password_and_when_there_are_too_many integration/test_collector_query.py::test_a_revoked_key_is_refused_from_the_next_request_on
IEC | 3.9 | Protection of audit information | Chains, a Merkle tree, signed checkpoints off the machine; what was tampered with is named | checkpoints | integration/test_evidence_verify.py::test_a_tampering_is_found_and_located integration/test_evidence_checkpoint.py::test_a_database_that_was_rewritten_as_a_whole_contradicts_the_checkpoint_that_was_kept_elsewhere
IEC | 6.1 | Audit log accessibility | Read-only API and exports by role and site | none | integration/test_collector_query.py::test_each_role_may_do_its_own_and_nothing_else integration/test_collector_retention.py::test_an_export_has_every_event_once_across_pages
IEC | 6.2 | Continuous monitoring | Machines, computers and the agents themselves are watched all the time; silence is told | agents | integration/test_host_events.py::test_how_long_a_source_has_been_silent_is_in_the_status_and_in_the_metrics_and_is_an_alert_where_one_is_wanted unit/test_handler_absence.py::test_silence_is_raised_once_when_its_time_is_up_and_again_after_the_key_was_heard
IEC | 7.1 | Denial of service protection | Everything is bounded: requests, queues, keys of handlers; a flood pushes out nobody who is watched | none | unit/test_handler_absence.py::test_flood_of_keys_pushes_out_nobody_who_is_watched integration/test_every_source.py::test_under_a_flood_its_memory_is_bounded_and_it_stops_within_five_seconds
IEC | 7.2 | Resource management | Services run as users of their own within bounds of memory and tasks; tables are bounded | none | integration/test_units.py::test_unit_runs_as_a_user_of_its_own_within_bounds integration/test_collector_analytics.py::test_a_place_has_so_many_keys_and_totals_hold_beyond_them
IEC | 7.3 | Control system backup | Machines are backed up elsewhere. A centre restored from a backup gets again what its agents still have | none | unit/test_buffer.py::test_a_centre_restored_from_a_backup_gets_again_what_is_still_here integration/test_evidence_checkpoint.py::test_batches_stored_after_a_dump_was_restored_elsewhere_get_into_the_tree
IEC | 7.4 | Recovery and reconstitution | Killed at any moment, agent, collector and PostgreSQL go on where they were; a replica takes over | none | integration/test_spine.py::test_rounds_of_kill_9_of_agent_collector_and_postgresql_lose_no_line_and_declare_every_lost_change faults/test_outage.py::test_a_replica_that_takes_over_has_everything_that_was_acknowledged_and_takes_what_comes
IEC | 7.5 | Emergency power | Nothing: for the plant | outside |
IEC | 7.6 | Network and security configuration settings | Configuration is a file that is checked before it runs; its changes are events with hashes | none | integration/test_check.py::test_a_configuration_that_is_right_is_said_to_be_so integration/test_host_events.py::test_a_changed_configuration_is_told_with_its_hash_before_and_after_and_whether_it_runs
IEC | 7.7 | Least functionality | The agent cannot write to a machine, and what leaves it on the network is watched in tests | none | unit/test_repository.py::test_the_agent_cannot_write_to_a_machine integration/test_modbus_counterparts.py::test_nothing_but_reads_ever_leaves_the_agent_while_an_attacker_s_write_is_noticed
IEC | 7.8 | Control system component inventory | The fleet by site, line and station, with versions. An inventory of all components is not made | none |
CSF | ID.AM-01 | Inventories of hardware | Devices that identify themselves otherwise than before are events; an inventory is not made | none |
CSF | PR.AA-01 | Identities and credentials are managed | Keys and agents are made, listed, and taken back; changes of accounts are events | none | integration/test_collector_store.py::test_keys_are_listed_without_their_secret_and_revoked_by_prefix integration/test_enrolment.py::test_a_revoked_agent_is_refused_with_its_next_request_keeps_its_data_and_says_what_to_do
CSF | PR.AA-03 | Users, services and hardware are authenticated | Every call has a key; every agent proves its own | tls | integration/test_collector_query.py::test_without_a_good_key_nothing_is_answered integration/test_enrolment.py::test_forged_unknown_unsigned_and_foreign_requests_are_refused_and_told_once_however_many_come
CSF | PR.AA-05 | Access permissions | Deny by default; roles and sites hold in pages, streams, exports, statistics and analytics | none | integration/test_collector_query.py::test_a_key_with_a_site_sees_that_site_only integration/test_collector_analytics.py::test_nothing_of_another_site_is_in_any_answer integration/test_collector_stream.py::test_filters_and_the_scope_of_the_key_hold_in_streams
CSF | PR.DS-01 | Data-at-rest is protected | Evidence that tells of any change. Encryption of disks is the computer's | checkpoints | integration/test_evidence_verify.py::test_a_tampering_is_found_and_located
CSF | PR.DS-02 | Data-in-transit is protected | TLS 1.3, certificates checked by both ends | tls | integration/test_tls.py::test_without_an_authority_nothing_is_trusted_not_even_what_the_computer_trusts integration/test_tls.py::test_a_token_does_not_go_to_another_computer_in_clear
CSF | PR.DS-11 | Backups | A restored centre is recognised and filled up from the agents; the tree goes on | none | unit/test_buffer.py::test_a_centre_restored_from_a_backup_gets_again_what_is_still_here
CSF | PR.PS-01 | Configuration management | Changes of setpoints, limits, modes and configuration are events | agents | integration/test_opcua.py::test_a_setpoint_first_seen_is_a_reading_and_changed_later_is_a_configuration_event
CSF | PR.PS-02 | Software is maintained | Changes of firmware and of the agent's version are events | none | unit/test_repository.py::test_the_lock_holds_every_package_that_the_project_asks_for
CSF | PR.PS-04 | Log records are generated | Logs of machines and computers, collected so that none is lost unseen | gaps | faults/test_campaign.py::test_every_number_is_stored_or_pending_or_in_a_declared_gap
CSF | DE.CM-01 | Networks are monitored | Contact with machines, new services, scans that a machine or log tells of | agents | integration/test_modbus_counterparts.py::test_nothing_but_reads_ever_leaves_the_agent_while_an_attacker_s_write_is_noticed
CSF | DE.CM-03 | Personnel activity is monitored | Sign-ins, use of rights, changes of accounts; unusual ones stand out | agents | unit/test_analytics.py::test_a_user_who_comes_at_night_is_found_and_one_never_seen_before_is_new
CSF | DE.CM-09 | Hardware, software and their data are monitored | Machines, computers, agents | agents | integration/test_host_events.py::test_certificates_that_the_configuration_names_are_told_before_they_end
CSF | DE.AE-02 | Adverse events are analysed | Handlers at the station; patterns, anomalies and threats at the centre | agents | unit/test_analytics.py::test_an_hour_far_above_its_hour_of_the_week_is_found_though_other_hours_reach_as_high
CSF | DE.AE-03 | Information is correlated | Sequences of events at the station; correlations between users, sources, types and stations | none | unit/test_analytics.py::test_stations_that_move_together_are_found_with_their_delay unit/test_handler_sequence.py::test_chain_is_whole_up_to_the_window_and_a_microsecond_more_is_too_long
CSF | DE.AE-06 | Information is provided to staff | Live streams, alerts, the threat assessment with what to do at once | none | unit/test_analytics.py::test_the_level_is_that_of_the_evidence_and_names_what_to_do
CSF | DE.AE-08 | Incidents are declared | Alerts of severity and technique. Declaring an incident is a person's decision | agents | unit/test_handler_engine.py::test_kill_in_the_middle_of_a_burst_raises_exactly_one_alert
CSF | RS.AN-06 | Actions of an investigation are recorded | Reads of personal data, exports and changes are in a chained log | audit | integration/test_collector_audit.py::test_what_was_recorded_cannot_be_changed_or_removed integration/test_collector_analytics.py::test_users_are_pseudonyms_viewers_get_no_addresses_and_asking_is_recorded
SP | 6.2.1 | Identity management and access control | Keys by role and site; agents by keys of their own | none | integration/test_collector_query.py::test_each_role_may_do_its_own_and_nothing_else
SP | 6.2.6 | Protective technology: logging without harm to operation | Requests to machines are bounded and only read | none | unit/test_repository.py::test_requests_to_modbus_devices_have_five_function_codes_and_no_other
SP | 6.3.1 | Anomalies and events | A baseline for each hour of the week; drifts, rates and relations at the station | agents | unit/test_analytics.py::test_anomalies_in_noise_are_hardly_ever_found
SP | 6.3.2 | Continuous monitoring | Central log of machines, computers and agents, with clocks compared | clocks | integration/test_collector_ingest.py::test_clock_offset_is_noted_and_nonsense_in_the_courtesy_headers_is_left_out
SP | 6.4 | Respond | The level of threat with evidence and immediate actions, by technique of ATT&CK for ICS | none | unit/test_analytics.py::test_every_technique_of_the_taxonomy_has_a_name_a_tactic_and_an_action
SP | 6.5 | Recover | Agents fill up what a restored centre lacks; what is gone is declared | none | unit/test_buffer.py::test_what_a_restored_centre_lacks_and_is_gone_here_is_declared
GDPR | 5 | Principles of processing | Personal data lies apart from the rest and leaves by rule; analytics keep pseudonyms | retention | unit/test_wire.py::test_core_section_holds_nothing_personal integration/test_collector_retention.py::test_days_and_rows_leave_by_rule_and_age_and_what_is_held_stays
GDPR | 15 | Right of access | Everything of a person in one file, and that it was read is recorded | none | integration/test_subject.py::test_an_export_has_everything_of_a_person_and_says_so_in_the_audit_log
GDPR | 17 | Right to erasure | A person is taken out of rows and frames, and the evidence still holds | none | integration/test_subject.py::test_nothing_of_a_person_is_left_anywhere_and_the_evidence_holds
GDPR | 25 | Data protection by design and by default | Arguments and original lines are not kept unless asked for; names never in messages | none | integration/test_opcua_events.py::test_old_and_new_value_of_a_write_are_kept_and_arguments_of_a_method_are_not unit/test_handler_count.py::test_alert_says_in_a_sentence_what_it_saw_without_naming_a_user
GDPR | 30 | Records of processing | Made from the settings: linewarden-collector subject record | none | integration/test_subject.py::test_the_record_of_processing_says_what_is_configured
GDPR | 32 | Security of processing | Encryption on the way, roles, evidence, recovery | tls | integration/test_collector_store.py::test_tls_is_1_3_and_the_certificate_is_read_again_on_hangup integration/test_spine.py::test_rounds_of_kill_9_of_agent_collector_and_postgresql_lose_no_line_and_declare_every_lost_change
"""
_NAMES = {"IEC": IEC, "CSF": CSF, "SP": SP, "GDPR": GDPR}


def _row(line: str) -> Requirement:
    standard, number, title, does, check, tests = (cell.strip() for cell in line.split("|"))
    return Requirement(_NAMES[standard], number, title, does, check, tuple(f"tests/{test}" for test in tests.split()))


REQUIREMENTS = [_row(line) for line in _TABLE.strip().splitlines()]


def tags() -> list[tuple[str, str, str]]:
    """(standard, requirement, type) of the taxonomy."""
    return [
        (standard, number, row.name)
        for row in TAXONOMY.values()
        for standard, numbers in ((IEC, row.iec62443), (CSF, row.nist_csf), (GDPR, row.gdpr))
        for number in numbers
    ]
