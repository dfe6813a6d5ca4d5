-- Incidents that were closed long ago may leave with all that belongs to them, and only as a tombstone says.

DROP TRIGGER alert_history_kept ON alert_history;
CREATE TRIGGER alert_history_kept BEFORE UPDATE ON alert_history FOR EACH ROW EXECUTE FUNCTION alert_history_refuse();

CREATE FUNCTION alert_history_leave() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    stray bigint;
BEGIN
    SELECT g.incident_id INTO stray FROM (SELECT DISTINCT incident_id FROM gone) g
    WHERE NOT EXISTS (
        SELECT FROM tombstones t WHERE t.kind = 'alerts'
            AND t.streams @> jsonb_build_array(jsonb_build_object('incidents', jsonb_build_array(g.incident_id)))
    ) OR EXISTS (SELECT FROM alerts a WHERE a.incident_id = g.incident_id AND a.state <> 'closed')
      OR EXISTS (SELECT FROM alert_history h WHERE h.incident_id = g.incident_id)
    LIMIT 1;
    IF stray IS NOT NULL THEN
        RAISE EXCEPTION 'the history of alerts only grows: % is refused, no tombstone stands for all of incident %, or it is not closed',
            TG_OP, stray USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NULL;
END $$;
COMMENT ON FUNCTION alert_history_leave() IS 'Lets the whole history of a closed incident go where a tombstone names it, and nothing else';
CREATE TRIGGER alert_history_left AFTER DELETE ON alert_history REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION alert_history_leave();

CREATE INDEX notification_outbox_alert ON notification_outbox (alert_id);
COMMENT ON TABLE alert_history IS 'What was done with alerts; it only grows, until its incident leaves as a whole against a tombstone';
