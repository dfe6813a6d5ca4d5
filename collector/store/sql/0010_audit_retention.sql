-- The oldest stretch of the audit log may leave, and only as a tombstone says. A tombstone stands for other things than days of events now.

ALTER TABLE tombstones DROP CONSTRAINT tombstones_kind_check;
ALTER TABLE tombstones ADD CONSTRAINT tombstones_kind_check CHECK (kind IN ('dropped', 'deleted', 'audit', 'alerts'));
COMMENT ON COLUMN tombstones.day IS 'Day, UTC, on which the events were received; of kind audit and alerts that of the youngest that went';
COMMENT ON COLUMN tombstones.kind IS 'dropped: the whole day with its frames. deleted: rows of it; their frames stay until the day is dropped. audit: the oldest records of audit_log. alerts: closed incidents';
COMMENT ON COLUMN tombstones.events IS 'How many events; 0 of kind audit and alerts, whose numbers stand in streams';
COMMENT ON COLUMN tombstones.streams IS 'Of a dropped day: each stream with its first and last batch number and hash, and its number of events. Of kind audit: numbers, prev and hash of the stretch. Of kind alerts: the incidents';

DROP TRIGGER audit_log_kept ON audit_log;
CREATE TRIGGER audit_log_kept BEFORE UPDATE ON audit_log FOR EACH ROW EXECUTE FUNCTION audit_refuse();

CREATE FUNCTION audit_leave() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    ends record;
BEGIN
    SELECT count(*) AS records, min(no) AS first, max(no) AS last, max(time) AS youngest,
           (array_agg(prev ORDER BY no))[1] AS prev, (array_agg(hash ORDER BY no DESC))[1] AS hash
    INTO ends FROM gone;
    IF ends.records = 0 THEN
        RETURN NULL;
    END IF;
    IF NOT EXISTS (
        SELECT FROM tombstones t WHERE t.kind = 'audit' AND t.streams @> jsonb_build_array(jsonb_build_object(
            'first', ends.first, 'last', ends.last, 'records', ends.records,
            'prev', encode(ends.prev, 'hex'), 'hash', encode(ends.hash, 'hex')))
    ) THEN
        RAISE EXCEPTION 'the audit log only grows: % on % is refused, no tombstone stands for these records', TG_OP, TG_TABLE_NAME
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    IF EXISTS (SELECT FROM audit_log WHERE no < ends.last) OR NOT EXISTS (SELECT FROM audit_log WHERE no > ends.last) THEN
        RAISE EXCEPTION 'the audit log only grows: only its oldest records leave, and never all' USING ERRCODE = 'insufficient_privilege';
    END IF;
    IF ends.youngest > now() - interval '365 days' THEN
        RAISE EXCEPTION 'the audit log only grows: a record of % is not 365 days old', ends.youngest USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NULL;
END $$;
COMMENT ON FUNCTION audit_leave() IS 'Lets the oldest stretch of the audit log go where a tombstone stands for just that, and nothing else';
CREATE TRIGGER audit_log_left AFTER DELETE ON audit_log REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION audit_leave();

COMMENT ON TABLE audit_log IS 'Who did what, from where, and how it ended. It only grows; its oldest records leave by [retention] audit_days, against a tombstone';
COMMENT ON COLUMN audit_log.no IS 'Number of the record: 1, 2, 3 …, without a gap; where the oldest left, behind the last that a tombstone stands for';
