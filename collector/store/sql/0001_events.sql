-- Events, their evidence, and the streams that they came by.
--
-- Why both big tables are partitioned by `received` and not by the time of the event: the collector's own time is sane, so no
-- event can miss a partition because a station's clock is absurd; a batch lies whole in one partition; rows and the frames that
-- prove them leave together when a partition is dropped; and a late event cannot belong to a period that was dropped.

CREATE SEQUENCE batch_ids;
COMMENT ON SEQUENCE batch_ids IS 'Numbers of stored batches; a number is never given twice, and may be missing after a rollback';

CREATE TABLE installation (
    only_one    boolean PRIMARY KEY DEFAULT true CHECK (only_one),
    buffer_id   uuid NOT NULL DEFAULT gen_random_uuid(),
    created     timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE installation IS 'This database as a whole: one row';
COMMENT ON COLUMN installation.only_one IS 'Always true: keeps it to one row';
COMMENT ON COLUMN installation.buffer_id IS 'Buffer id of the stream in which the centre stores its own events';
COMMENT ON COLUMN installation.created IS 'When the tables were made';
INSERT INTO installation DEFAULT VALUES;

CREATE TABLE places (
    place_id    integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    site        text NOT NULL DEFAULT '',
    line        text NOT NULL DEFAULT '',
    station     text NOT NULL DEFAULT '',
    UNIQUE (site, line, station)
);
COMMENT ON TABLE places IS 'Where an agent can stand. Events keep the place of their agent at the time they came, in four bytes';
COMMENT ON COLUMN places.place_id IS 'Number of the place';
COMMENT ON COLUMN places.site IS 'Plant; empty: not said';
COMMENT ON COLUMN places.line IS 'Line of the plant; empty: not said';
COMMENT ON COLUMN places.station IS 'Station of the line; empty: not said';
INSERT INTO places DEFAULT VALUES;

CREATE TABLE agents (
    agent_id        uuid PRIMARY KEY,
    place_id        integer NOT NULL REFERENCES places,
    version         text,
    first_seen      timestamptz NOT NULL,
    last_seen       timestamptz NOT NULL,
    last_event      timestamptz,
    events          bigint NOT NULL DEFAULT 0,
    batches         bigint NOT NULL DEFAULT 0,
    gaps            bigint NOT NULL DEFAULT 0,
    clock_offset_us bigint,
    status          jsonb
);
COMMENT ON TABLE agents IS 'Agents that ever sent a batch';
COMMENT ON COLUMN agents.agent_id IS 'Identity that the agent chose at its first start; all zeros is the centre itself';
COMMENT ON COLUMN agents.place_id IS 'Where it stands now';
COMMENT ON COLUMN agents.version IS 'Version of the agent program, as it said last';
COMMENT ON COLUMN agents.first_seen IS 'When its first batch was stored';
COMMENT ON COLUMN agents.last_seen IS 'When it last sent anything that was accepted, new or again';
COMMENT ON COLUMN agents.last_event IS 'When its last new event was stored';
COMMENT ON COLUMN agents.events IS 'Events stored from it, ever';
COMMENT ON COLUMN agents.batches IS 'Batches stored from it, ever';
COMMENT ON COLUMN agents.gaps IS 'Gaps that it declared, ever';
COMMENT ON COLUMN agents.clock_offset_us IS 'Its clock minus ours in microseconds when it last sent, travel time included';
COMMENT ON COLUMN agents.status IS 'What it said of its buffer when it last sent';

CREATE TABLE batch_heads (
    agent_id    uuid NOT NULL,
    buffer_id   uuid NOT NULL,
    lane        smallint NOT NULL,
    batch_no    bigint NOT NULL DEFAULT 0,
    hash        text NOT NULL,
    batches     bigint NOT NULL DEFAULT 0,
    events      bigint NOT NULL DEFAULT 0,
    gaps        bigint NOT NULL DEFAULT 0,
    changed     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (agent_id, buffer_id, lane)
);
COMMENT ON TABLE batch_heads IS 'How far each stream (a lane of a buffer of an agent) is stored: decides whether a batch is new, again, missing or forked';
COMMENT ON COLUMN batch_heads.agent_id IS 'Agent of the stream';
COMMENT ON COLUMN batch_heads.buffer_id IS 'Buffer file of the agent, random at its making';
COMMENT ON COLUMN batch_heads.lane IS 'Lane of the buffer: 0 urgent, 1 bulk';
COMMENT ON COLUMN batch_heads.batch_no IS 'Number of the last batch stored, or end of the last gap; 0 before the first';
COMMENT ON COLUMN batch_heads.hash IS 'Hash that the next batch has to name as the one before it';
COMMENT ON COLUMN batch_heads.batches IS 'Batches stored of this stream, ever';
COMMENT ON COLUMN batch_heads.events IS 'Events stored of this stream, ever';
COMMENT ON COLUMN batch_heads.gaps IS 'Gaps declared in this stream, ever';
COMMENT ON COLUMN batch_heads.changed IS 'When the head last moved';

CREATE TABLE evidence (
    received    timestamptz NOT NULL,
    batch_id    bigint NOT NULL,
    batch_no    bigint NOT NULL,
    through     bigint NOT NULL,
    first_time  timestamptz NOT NULL,
    last_time   timestamptz NOT NULL,
    xid         xid8 NOT NULL DEFAULT pg_current_xact_id(),
    agent_id    uuid NOT NULL,
    buffer_id   uuid NOT NULL,
    events      integer NOT NULL,
    lane        smallint NOT NULL,
    hash        text NOT NULL,
    prev        text NOT NULL,
    frame       bytea NOT NULL,
    PRIMARY KEY (batch_id, received)
) PARTITION BY RANGE (received);
-- A frame is compressed already: out of line and as it is.
ALTER TABLE evidence ALTER COLUMN frame SET STORAGE EXTERNAL;
-- Not unique: a unique key of a partitioned table has to hold `received`. The lock on the head keeps it to one row.
CREATE INDEX evidence_stream ON evidence (agent_id, buffer_id, lane, batch_no);
COMMENT ON TABLE evidence IS 'Accepted batches, each with its frame as it came';
COMMENT ON COLUMN evidence.received IS 'When the collector took it; the same in its events';
COMMENT ON COLUMN evidence.batch_id IS 'Number of the batch in this database; links to its events';
COMMENT ON COLUMN evidence.batch_no IS 'Number of the batch in its stream';
COMMENT ON COLUMN evidence.through IS 'Last number that it stands for: its own, or the end of the gap that it declares';
COMMENT ON COLUMN evidence.first_time IS 'Earliest time of its events as stored';
COMMENT ON COLUMN evidence.last_time IS 'Latest time of its events as stored';
COMMENT ON COLUMN evidence.xid IS 'Transaction that stored it: orders batches by commit, which batch_id does not';
COMMENT ON COLUMN evidence.agent_id IS 'Agent of the stream';
COMMENT ON COLUMN evidence.buffer_id IS 'Buffer file of the agent';
COMMENT ON COLUMN evidence.events IS 'Events in it';
COMMENT ON COLUMN evidence.lane IS 'Lane of the buffer';
COMMENT ON COLUMN evidence.hash IS 'Hash of the batch, hex';
COMMENT ON COLUMN evidence.prev IS 'Hash of the batch before it, as its header says, hex';
COMMENT ON COLUMN evidence.frame IS 'The bytes that came';

CREATE TABLE security_events (
    received        timestamptz NOT NULL,
    time            timestamptz NOT NULL,
    observed        timestamptz,
    batch_id        bigint NOT NULL,
    batch_no        bigint NOT NULL,
    agent_id        uuid NOT NULL,
    buffer_id       uuid NOT NULL,
    idx             integer NOT NULL,
    place_id        integer NOT NULL,
    lane            smallint NOT NULL,
    severity        smallint NOT NULL,
    type            text NOT NULL,
    category        text NOT NULL,
    source          text NOT NULL,
    src_ip          text,
    target          text,
    outcome         text,
    message         text,
    correlation_id  text,
    data            jsonb,
    actor           text,
    raw             text,
    personal        jsonb,
    data_text       text,
    personal_text   text,
    time_claimed    bigint,
    time_flag       text
) PARTITION BY RANGE (received);
CREATE INDEX security_events_batch ON security_events (batch_id);
CREATE INDEX security_events_time ON security_events (time, batch_id, idx);
CREATE INDEX security_events_agent ON security_events (agent_id, time);
CREATE INDEX security_events_correlation ON security_events (correlation_id) WHERE correlation_id IS NOT NULL;
CREATE INDEX security_events_severe ON security_events (time, batch_id, idx) WHERE severity >= 4;
COMMENT ON TABLE security_events IS 'Events of all agents, one row each; identity: agent_id/buffer_id/lane/batch_no/idx';
COMMENT ON COLUMN security_events.received IS 'When the collector took its batch, by the clock of the database';
COMMENT ON COLUMN security_events.time IS 'When it happened, by the clock of its source; where time_flag is set, a time that the collector put in its place';
COMMENT ON COLUMN security_events.observed IS 'When the agent saw it, by the clock of the agent; null where that is no date';
COMMENT ON COLUMN security_events.batch_id IS 'Batch in which it came, see evidence';
COMMENT ON COLUMN security_events.batch_no IS 'Number of that batch in its stream';
COMMENT ON COLUMN security_events.agent_id IS 'Agent that collected it';
COMMENT ON COLUMN security_events.buffer_id IS 'Buffer file of the agent';
COMMENT ON COLUMN security_events.idx IS 'Place in the batch, from 0';
COMMENT ON COLUMN security_events.place_id IS 'Where the agent stood when it came, see places';
COMMENT ON COLUMN security_events.lane IS 'Lane of the buffer: 0 urgent, 1 bulk';
COMMENT ON COLUMN security_events.severity IS 'OCSF severity_id: 1 informational, 2 low, 3 medium, 4 high, 5 critical, 6 fatal';
COMMENT ON COLUMN security_events.type IS 'Dotted name of what happened';
COMMENT ON COLUMN security_events.category IS 'Category of the type, from the taxonomy';
COMMENT ON COLUMN security_events.source IS 'Configured source of the agent';
COMMENT ON COLUMN security_events.src_ip IS 'From where, as the source wrote it';
COMMENT ON COLUMN security_events.target IS 'On what';
COMMENT ON COLUMN security_events.outcome IS 'success or failure, where it applies';
COMMENT ON COLUMN security_events.message IS 'A sentence without personal data';
COMMENT ON COLUMN security_events.correlation_id IS 'Ties the events of one request, login or production order';
COMMENT ON COLUMN security_events.data IS 'All the rest, without what is personal; null where there is nothing, or where data_text has it';
COMMENT ON COLUMN security_events.actor IS 'Personal: who did it';
COMMENT ON COLUMN security_events.raw IS 'Personal: the original line';
COMMENT ON COLUMN security_events.personal IS 'Personal: the personal keys of data';
COMMENT ON COLUMN security_events.data_text IS 'data as it came where jsonb cannot hold it: NUL characters, numbers beyond numeric, too deep';
COMMENT ON COLUMN security_events.personal_text IS 'Personal: the same for personal';
COMMENT ON COLUMN security_events.time_claimed IS 'Microseconds since 1970 as the source said, where time_flag is set';
COMMENT ON COLUMN security_events.time_flag IS 'Why the claimed time was not taken: future, ancient, range; null where it was';

-- What no daily partition takes (a clock that jumped, a collector that stood still for a week) is caught here and moved later.
CREATE TABLE evidence_default PARTITION OF evidence DEFAULT;
CREATE TABLE security_events_default PARTITION OF security_events DEFAULT;

CREATE TABLE gaps (
    batch_id    bigint NOT NULL,
    idx         integer NOT NULL,
    received    timestamptz NOT NULL,
    time        timestamptz NOT NULL,
    agent_id    uuid NOT NULL,
    buffer_id   uuid NOT NULL,
    lane        smallint NOT NULL,
    batch_no    bigint NOT NULL,
    through     bigint,
    prev        text,
    last_hash   text,
    source      text NOT NULL,
    lost        bigint,
    reason      text,
    data        jsonb,
    PRIMARY KEY (batch_id, idx)
);
CREATE INDEX gaps_stream ON gaps (agent_id, buffer_id, lane, batch_no);
COMMENT ON TABLE gaps IS 'Declared losses: every collection.gap event. Kept when the events of that time are dropped';
COMMENT ON COLUMN gaps.batch_id IS 'Batch that declared it';
COMMENT ON COLUMN gaps.idx IS 'Place of the event in that batch';
COMMENT ON COLUMN gaps.received IS 'When the collector took the declaration';
COMMENT ON COLUMN gaps.time IS 'When it was declared, by the clock of its source';
COMMENT ON COLUMN gaps.agent_id IS 'Agent that lost the events';
COMMENT ON COLUMN gaps.buffer_id IS 'Buffer file of the agent';
COMMENT ON COLUMN gaps.lane IS 'Lane of the buffer';
COMMENT ON COLUMN gaps.batch_no IS 'Number of the declaring batch; where through is set, also the first number lost';
COMMENT ON COLUMN gaps.through IS 'Last batch number lost, where whole batches were; null where a source lost events before they were in a batch';
COMMENT ON COLUMN gaps.prev IS 'Hash before the first lost batch, where whole batches were lost';
COMMENT ON COLUMN gaps.last_hash IS 'Hash of the last lost batch, where whole batches were lost';
COMMENT ON COLUMN gaps.source IS 'Source that lost them; empty: the buffer';
COMMENT ON COLUMN gaps.lost IS 'How many events; null: unknown';
COMMENT ON COLUMN gaps.reason IS 'Why, as the agent says';
COMMENT ON COLUMN gaps.data IS 'All that the agent said of it';

CREATE TABLE forks (
    agent_id    uuid NOT NULL,
    buffer_id   uuid NOT NULL,
    lane        smallint NOT NULL,
    batch_no    bigint NOT NULL,
    hash        text NOT NULL,
    prev        text NOT NULL,
    stored_hash text NOT NULL,
    seen        timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (agent_id, buffer_id, lane, batch_no, hash)
);
COMMENT ON TABLE forks IS 'Batches that were refused because they contradict a stored one; each is reported once as security.chain.forked';
COMMENT ON COLUMN forks.agent_id IS 'Agent that sent it';
COMMENT ON COLUMN forks.buffer_id IS 'Buffer file that it names';
COMMENT ON COLUMN forks.lane IS 'Lane that it names';
COMMENT ON COLUMN forks.batch_no IS 'Number that it claims';
COMMENT ON COLUMN forks.hash IS 'Its hash';
COMMENT ON COLUMN forks.prev IS 'The hash before it, as it says';
COMMENT ON COLUMN forks.stored_hash IS 'The hash that the centre has at that point: of the batch, or of the one before it';
COMMENT ON COLUMN forks.seen IS 'When it was first seen';

CREATE TABLE api_keys (
    key_id      integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    prefix      text NOT NULL UNIQUE,
    hash        bytea NOT NULL,
    role        text NOT NULL CHECK (role IN ('agent', 'viewer', 'analyst', 'auditor', 'admin')),
    name        text NOT NULL DEFAULT '',
    site        text NOT NULL DEFAULT '',
    line        text NOT NULL DEFAULT '',
    station     text NOT NULL DEFAULT '',
    agent_id    uuid,
    created     timestamptz NOT NULL DEFAULT now(),
    expires     timestamptz,
    revoked     timestamptz,
    last_used   timestamptz
);
COMMENT ON TABLE api_keys IS 'Keys of agents and of people''s programs. The secret itself is not stored';
COMMENT ON COLUMN api_keys.key_id IS 'Number of the key';
COMMENT ON COLUMN api_keys.prefix IS 'Visible part of the key, to tell it by';
COMMENT ON COLUMN api_keys.hash IS 'SHA-256 of the whole key; its secret is 256 random bits, so no slow hash is needed';
COMMENT ON COLUMN api_keys.role IS 'What it may do: agent sends batches; viewer reads; analyst, auditor, admin do more';
COMMENT ON COLUMN api_keys.name IS 'What it is for';
COMMENT ON COLUMN api_keys.site IS 'An agent''s key: where it stands. Others: the only site that may be read; empty: all';
COMMENT ON COLUMN api_keys.line IS 'The same for the line';
COMMENT ON COLUMN api_keys.station IS 'The same for the station';
COMMENT ON COLUMN api_keys.agent_id IS 'Agent that used it first; no other may use it';
COMMENT ON COLUMN api_keys.created IS 'When it was made';
COMMENT ON COLUMN api_keys.expires IS 'From when on it is refused; null: never';
COMMENT ON COLUMN api_keys.revoked IS 'When it was taken back; null: it was not';
COMMENT ON COLUMN api_keys.last_used IS 'When it was last used, within a minute';

CREATE VIEW v_recent_critical AS
SELECT e.time, e.received, e.severity, e.type, e.category, p.site, p.line, p.station, e.source, e.src_ip, e.target, e.outcome, e.message,
       e.correlation_id, e.data, e.agent_id, e.buffer_id, e.lane, e.batch_no, e.idx
FROM security_events e JOIN places p USING (place_id)
WHERE e.severity >= 4 AND e.time > now() - interval '24 hours' AND e.received > now() - interval '25 hours';
COMMENT ON VIEW v_recent_critical IS 'Events of severity high and above of the last 24 hours';

CREATE VIEW v_authentication_failures AS
SELECT e.time, p.site, p.line, p.station, e.source, e.src_ip, e.target, e.actor, e.message, e.correlation_id, e.data, e.agent_id
FROM security_events e JOIN places p USING (place_id)
WHERE e.category = 'authentication' AND (e.outcome = 'failure' OR e.type IN ('authentication.failure', 'authentication.lockout'));
COMMENT ON VIEW v_authentication_failures IS 'Sign-ins that were refused';

CREATE VIEW v_equipment_health AS
SELECT e.time, p.site, p.line, p.station, e.source, e.target, e.type, e.severity, e.outcome, e.message, e.data, e.agent_id
FROM security_events e JOIN places p USING (place_id)
WHERE e.category IN ('equipment', 'device');
COMMENT ON VIEW v_equipment_health IS 'Events about machines and the contact with them';

CREATE VIEW v_quality AS
SELECT e.time, p.site, p.line, p.station, e.source, e.target, e.type, e.severity, e.outcome, e.message, e.data, e.agent_id
FROM security_events e JOIN places p USING (place_id)
WHERE e.category = 'quality';
COMMENT ON VIEW v_quality IS 'Events about the product';
