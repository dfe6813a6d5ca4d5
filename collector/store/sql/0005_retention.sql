-- What leaves, and what must not.

CREATE TABLE legal_holds (
    hold_id     integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name        text NOT NULL,
    query       text NOT NULL,
    created     timestamptz NOT NULL DEFAULT now(),
    released    timestamptz
);
COMMENT ON TABLE legal_holds IS 'Events that retention must leave alone';
COMMENT ON COLUMN legal_holds.hold_id IS 'Number of the hold';
COMMENT ON COLUMN legal_holds.name IS 'What it is for';
COMMENT ON COLUMN legal_holds.query IS 'Which events: parameters as of GET /v1/events, as a query string';
COMMENT ON COLUMN legal_holds.created IS 'Since when';
COMMENT ON COLUMN legal_holds.released IS 'Until when; null: it holds';

CREATE TABLE tombstones (
    tombstone_id    bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    made            timestamptz NOT NULL,
    day             date NOT NULL,
    kind            text NOT NULL CHECK (kind IN ('dropped', 'deleted')),
    rule            text NOT NULL,
    rule_key        text NOT NULL,
    events          bigint NOT NULL,
    streams         jsonb NOT NULL,
    prev            text NOT NULL,
    hash            text NOT NULL
);
CREATE INDEX tombstones_day ON tombstones (day, rule_key);
COMMENT ON TABLE tombstones IS 'What retention took away: each names its predecessor by hash, so that none can be removed or changed unseen';
COMMENT ON COLUMN tombstones.tombstone_id IS 'Number of the tombstone';
COMMENT ON COLUMN tombstones.made IS 'When';
COMMENT ON COLUMN tombstones.day IS 'Day, UTC, on which the events were received';
COMMENT ON COLUMN tombstones.kind IS 'dropped: the whole day with its frames. deleted: rows of it; their frames stay until the day is dropped';
COMMENT ON COLUMN tombstones.rule IS 'Why, in words';
COMMENT ON COLUMN tombstones.rule_key IS 'Identifies rule and holds: done once is not done again';
COMMENT ON COLUMN tombstones.events IS 'How many events';
COMMENT ON COLUMN tombstones.streams IS 'Of a dropped day: each stream with its first and last batch number and hash, and its number of events';
COMMENT ON COLUMN tombstones.prev IS 'Hash of the tombstone before, hex; zeros for the first';
COMMENT ON COLUMN tombstones.hash IS 'SHA-256 of prev and of the fields above as sorted JSON, hex';
