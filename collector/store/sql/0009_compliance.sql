-- What compliance is asked of the roll-ups: types of events by requirement. The table is the taxonomy of the program, written by it.

CREATE TABLE taxonomy_tags (
    standard    text NOT NULL,
    requirement text NOT NULL,
    type        text NOT NULL,
    PRIMARY KEY (standard, requirement, type)
);
COMMENT ON TABLE taxonomy_tags IS 'Which types of events back which requirement: the taxonomy of the program that runs, written at its start';
COMMENT ON COLUMN taxonomy_tags.standard IS 'IEC 62443-3-3, NIST CSF 2.0 or GDPR';
COMMENT ON COLUMN taxonomy_tags.requirement IS 'Requirement, subcategory or article, as the standard counts them';
COMMENT ON COLUMN taxonomy_tags.type IS 'Type of event; a type below it that the taxonomy does not know counts here';

CREATE VIEW v_compliance_coverage AS
WITH counted AS (
    SELECT m.type, sum(m.events) AS events, count(DISTINCT m.place_id) AS places, max(m.bucket) AS last_day
    FROM event_metrics m WHERE m.period = 'day' AND m.place_id <> 0 AND m.bucket >= now() - interval '30 days' GROUP BY m.type
), known AS (
    SELECT DISTINCT type FROM taxonomy_tags
), named AS (
    SELECT c.*, (SELECT k.type FROM known k WHERE c.type = k.type OR starts_with(c.type, k.type || '.') ORDER BY length(k.type) DESC LIMIT 1) AS tag
    FROM counted c
)
SELECT t.standard, t.requirement, count(DISTINCT t.type) AS types, count(DISTINCT n.tag) AS types_recorded,
    coalesce(sum(n.events), 0)::bigint AS events, coalesce(max(n.places), 0)::bigint AS places_most, max(n.last_day) AS last_day
FROM taxonomy_tags t LEFT JOIN named n ON n.tag = t.type GROUP BY t.standard, t.requirement;
COMMENT ON VIEW v_compliance_coverage IS 'By requirement: how many types of events back it, and what of them was recorded in the last 30 days. GET /v1/compliance says more';
COMMENT ON COLUMN v_compliance_coverage.standard IS 'IEC 62443-3-3, NIST CSF 2.0 or GDPR';
COMMENT ON COLUMN v_compliance_coverage.requirement IS 'Requirement, subcategory or article';
COMMENT ON COLUMN v_compliance_coverage.types IS 'Types of events that back it';
COMMENT ON COLUMN v_compliance_coverage.types_recorded IS 'How many of them were recorded';
COMMENT ON COLUMN v_compliance_coverage.events IS 'Events of these types';
COMMENT ON COLUMN v_compliance_coverage.places_most IS 'Places at which the most widespread of these types was recorded';
COMMENT ON COLUMN v_compliance_coverage.last_day IS 'Last day on which one was recorded';
