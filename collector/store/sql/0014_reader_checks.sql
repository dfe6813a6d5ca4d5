-- What readers in the order of commits have read, held against what was stored; what they could not read; and what has to be read again.
--
-- Until this migration such readers ordered the numbers of transactions as text, in which 10 comes before 9. Whoever was behind when the
-- numbers grew by a digit skipped batches, or took some twice. So everything is read again once: alerts are counted by the identity of
-- their events, hence never twice, and the tables of analytics are made anew from the events that are kept.

CREATE TABLE reader_checks (
    reader      text PRIMARY KEY,
    base        text,
    batches     bigint NOT NULL DEFAULT 0,
    numbers     numeric NOT NULL DEFAULT 0,
    events      bigint NOT NULL DEFAULT 0,
    checked     timestamptz NOT NULL DEFAULT '-infinity',
    differed    timestamptz,
    repaired    timestamptz
);
COMMENT ON TABLE reader_checks IS 'What each reader in the order of commits has read since the last check, to be held against what was stored';
COMMENT ON COLUMN reader_checks.reader IS 'alerts or analytics';
COMMENT ON COLUMN reader_checks.base IS 'Snapshot up to which it was checked, see collector/store/stream.py; null: the next check begins';
COMMENT ON COLUMN reader_checks.batches IS 'Batches read since then';
COMMENT ON COLUMN reader_checks.numbers IS 'Sum of their batch_id: tells one skipped and another read twice from none';
COMMENT ON COLUMN reader_checks.events IS 'Events in them';
COMMENT ON COLUMN reader_checks.checked IS 'When it was last checked';
COMMENT ON COLUMN reader_checks.differed IS 'When a check last found a difference';
COMMENT ON COLUMN reader_checks.repaired IS 'When it was last made to read everything again because of one';
INSERT INTO reader_checks (reader) VALUES ('alerts'), ('analytics');

CREATE TABLE unread_events (
    reader      text NOT NULL,
    batch_id    bigint NOT NULL,
    idx         integer NOT NULL,
    received    timestamptz NOT NULL,
    reason      text NOT NULL,
    seen        timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (reader, batch_id, idx)
);
CREATE INDEX unread_events_seen ON unread_events (seen);
COMMENT ON TABLE unread_events IS 'Events that a reader could not read and passed over; each was reported as alert.collector.unread';
COMMENT ON COLUMN unread_events.reader IS 'alerts or analytics';
COMMENT ON COLUMN unread_events.batch_id IS 'Batch of the event';
COMMENT ON COLUMN unread_events.idx IS 'Place in the batch; -1: the whole batch';
COMMENT ON COLUMN unread_events.received IS 'When it was stored';
COMMENT ON COLUMN unread_events.reason IS 'Why it could not be read';
COMMENT ON COLUMN unread_events.seen IS 'When it was passed over';

ALTER TABLE alert_reader ADD COLUMN reread bigint, ADD COLUMN reread_to bigint;
COMMENT ON COLUMN alert_reader.reread IS 'Batches up to this number were read again; null: nothing is being read again';
COMMENT ON COLUMN alert_reader.reread_to IS 'Last batch that is to be read again';

ALTER TABLE analytics_state ADD COLUMN rebuild boolean NOT NULL DEFAULT false, ADD COLUMN whole_since timestamptz;
COMMENT ON COLUMN analytics_state.rebuild IS 'Whether the tables of analytics are to be made anew';
COMMENT ON COLUMN analytics_state.whole_since IS 'Where they were made anew: from when on. What is older was left, since its events are not all kept; null: from the first event on';

-- A position within a step meant another order: the step is taken as read, and what it skipped is read again.
UPDATE alert_reader SET cursor = jsonb_build_array(cursor::jsonb -> 0, cursor::jsonb -> 2, NULL, NULL)::text
WHERE jsonb_typeof(cursor::jsonb -> 2) = 'array';
UPDATE alert_reader SET reread = 0, reread_to = (SELECT max(batch_id) FROM evidence) WHERE EXISTS (SELECT FROM evidence);
UPDATE analytics_state SET rebuild = true WHERE cursor <> '';
