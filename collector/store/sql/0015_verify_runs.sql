-- verify runs by itself: when it last did, and what came of it. And what it reads of the audit log, without a look at all of it.

CREATE TABLE verify_runs (
    run_id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    started     timestamptz NOT NULL,
    finished    timestamptz NOT NULL DEFAULT clock_timestamp(),
    findings    bigint,
    events      bigint NOT NULL DEFAULT 0,
    sampled     boolean NOT NULL DEFAULT false,
    trouble     text
);
CREATE INDEX verify_runs_finished ON verify_runs (finished);
COMMENT ON TABLE verify_runs IS 'When the collector last held everything stored against its evidence, by itself; a hundred days of it are kept';
COMMENT ON COLUMN verify_runs.run_id IS 'Number of the run';
COMMENT ON COLUMN verify_runs.started IS 'When it began';
COMMENT ON COLUMN verify_runs.finished IS 'When it ended';
COMMENT ON COLUMN verify_runs.findings IS 'How many things did not hold; null: it did not come to its end';
COMMENT ON COLUMN verify_runs.events IS 'Events whose rows were compared';
COMMENT ON COLUMN verify_runs.sampled IS 'Whether that was a sample';
COMMENT ON COLUMN verify_runs.trouble IS 'Why it did not come to its end; null: it did';

CREATE INDEX audit_log_state ON audit_log (no) WHERE data ? 'state';
