-- What analytics need beside the roll-ups: who and from where by hour, ten minutes, what follows what, readings by hour. A task folds
-- stored events into these tables in the order of their commits, each exactly once (see collector/store/analytics.py). Every table is
-- bounded: a place has so many keys a period, what comes beyond is counted under '(other)', and old periods leave.

CREATE TABLE analytics_state (
    only_one    boolean PRIMARY KEY DEFAULT true CHECK (only_one),
    cursor      text NOT NULL DEFAULT '',
    events      bigint NOT NULL DEFAULT 0,
    beyond      bigint NOT NULL DEFAULT 0,
    changed     timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE analytics_state IS 'How far events are folded into the tables of analytics: one row';
COMMENT ON COLUMN analytics_state.only_one IS 'Always true: keeps it to one row';
COMMENT ON COLUMN analytics_state.cursor IS 'Up to where, in the order of commits; empty: nothing yet';
COMMENT ON COLUMN analytics_state.events IS 'Events folded, ever';
COMMENT ON COLUMN analytics_state.beyond IS 'Counts that went to (other) since a period had its number of keys, ever';
COMMENT ON COLUMN analytics_state.changed IS 'When it was last looked at';
INSERT INTO analytics_state DEFAULT VALUES;

CREATE TABLE activity (
    bucket      timestamptz NOT NULL,
    place_id    integer NOT NULL,
    type        text NOT NULL,
    severity    smallint NOT NULL,
    source      text NOT NULL,
    events      bigint NOT NULL,
    PRIMARY KEY (bucket, place_id, type, severity, source)
) WITH (fillfactor = 80);
COMMENT ON TABLE activity IS 'Events counted by ten minutes, for the last weeks';
COMMENT ON COLUMN activity.bucket IS 'When the ten minutes begin, UTC';
COMMENT ON COLUMN activity.place_id IS 'Where, see places';
COMMENT ON COLUMN activity.type IS 'Type of the events';
COMMENT ON COLUMN activity.severity IS 'Severity of the events; 0 in the row of (other)';
COMMENT ON COLUMN activity.source IS 'Source of the events, its first 200 characters';
COMMENT ON COLUMN activity.events IS 'How many';

CREATE TABLE entity_activity (
    hour        timestamptz NOT NULL,
    place_id    integer NOT NULL,
    kind        text NOT NULL CHECK (kind IN ('user', 'address')),
    entity      text NOT NULL,
    type        text NOT NULL,
    severity    smallint NOT NULL,
    events      bigint NOT NULL,
    failures    bigint NOT NULL,
    PRIMARY KEY (hour, place_id, kind, entity, type, severity)
) WITH (fillfactor = 80);
CREATE INDEX entity_activity_entity ON entity_activity (kind, entity, hour);
COMMENT ON TABLE entity_activity IS 'Events by hour and by the user or address that they name. Users are pseudonyms: no name is kept here';
COMMENT ON COLUMN entity_activity.hour IS 'Hour in which they happened, UTC';
COMMENT ON COLUMN entity_activity.place_id IS 'Where, see places';
COMMENT ON COLUMN entity_activity.kind IS 'user or address';
COMMENT ON COLUMN entity_activity.entity IS 'Pseudonym of the user, or the address';
COMMENT ON COLUMN entity_activity.type IS 'Type of the events';
COMMENT ON COLUMN entity_activity.severity IS 'Severity of the events; 0 in the row of (other)';
COMMENT ON COLUMN entity_activity.events IS 'How many';
COMMENT ON COLUMN entity_activity.failures IS 'How many of them failed';

CREATE TABLE transitions (
    day         timestamptz NOT NULL,
    place_id    integer NOT NULL,
    kind        text NOT NULL CHECK (kind IN ('user', 'source')),
    entity      text NOT NULL,
    before      text NOT NULL,
    after       text NOT NULL,
    events      bigint NOT NULL,
    PRIMARY KEY (day, place_id, kind, entity, before, after)
) WITH (fillfactor = 80);
COMMENT ON TABLE transitions IS 'Which type of event follows which within half an hour, by user and by source';
COMMENT ON COLUMN transitions.day IS 'Day of the second event, UTC';
COMMENT ON COLUMN transitions.place_id IS 'Where, see places';
COMMENT ON COLUMN transitions.kind IS 'user or source';
COMMENT ON COLUMN transitions.entity IS 'Pseudonym of the user, or the source';
COMMENT ON COLUMN transitions.before IS 'Type of the first event';
COMMENT ON COLUMN transitions.after IS 'Type of the second event';
COMMENT ON COLUMN transitions.events IS 'How often';

CREATE TABLE sequence_heads (
    place_id    integer NOT NULL,
    kind        text NOT NULL,
    entity      text NOT NULL,
    type        text NOT NULL,
    time        timestamptz NOT NULL,
    PRIMARY KEY (place_id, kind, entity)
) WITH (fillfactor = 80);
CREATE INDEX sequence_heads_time ON sequence_heads (time);
COMMENT ON TABLE sequence_heads IS 'The last event of each user and source: what the next one follows';
COMMENT ON COLUMN sequence_heads.place_id IS 'Where, see places';
COMMENT ON COLUMN sequence_heads.kind IS 'user or source';
COMMENT ON COLUMN sequence_heads.entity IS 'Pseudonym of the user, or the source';
COMMENT ON COLUMN sequence_heads.type IS 'Type of its last event';
COMMENT ON COLUMN sequence_heads.time IS 'When that was';

CREATE TABLE signals (
    hour        timestamptz NOT NULL,
    place_id    integer NOT NULL,
    source      text NOT NULL,
    signal      text NOT NULL,
    kind        text NOT NULL CHECK (kind IN ('reading', 'counter')),
    readings    bigint NOT NULL,
    total       double precision NOT NULL,
    low         double precision NOT NULL,
    high        double precision NOT NULL,
    PRIMARY KEY (hour, place_id, source, signal, kind)
) WITH (fillfactor = 80);
CREATE INDEX signals_signal ON signals (signal, hour);
COMMENT ON TABLE signals IS 'Readings and counters of machines by hour';
COMMENT ON COLUMN signals.hour IS 'Hour of the readings, UTC';
COMMENT ON COLUMN signals.place_id IS 'Where, see places';
COMMENT ON COLUMN signals.source IS 'Source that read them, its first 200 characters';
COMMENT ON COLUMN signals.signal IS 'What was read: the target of the events, its first 200 characters';
COMMENT ON COLUMN signals.kind IS 'reading or counter';
COMMENT ON COLUMN signals.readings IS 'How many';
COMMENT ON COLUMN signals.total IS 'Their sum';
COMMENT ON COLUMN signals.low IS 'The least';
COMMENT ON COLUMN signals.high IS 'The greatest';
