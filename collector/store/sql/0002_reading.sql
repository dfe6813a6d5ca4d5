-- Reading: indexes that questions need, and roll-ups.
--
-- Why one GIN index and no more: each costs at ingest. With the five B-trees of 0001, a bare COPY fell from 127,000 rows a second to 105,000
-- with GIN over data at its default pending list, 115,000 with one of 16 MB, 100,000 with trigrams over message, 82,000 with both. So data has
-- its index everywhere, and message has one only in the partitions of days that are over, where nothing is written (see partitions.py).

CREATE INDEX security_events_data ON security_events USING gin (data jsonb_path_ops) WITH (gin_pending_list_limit = 16384);

-- Streams read batches in the order in which they were committed.
CREATE INDEX evidence_xid ON evidence (xid, batch_id);

-- Roll-ups. Ingest only appends to metric_deltas, in the transaction that stores the events: collectors that store at the same time
-- never wait for each other there. One of them at a time folds deltas into event_metrics. A reader adds both, in one statement, so that
-- what it sees is always the sum of the events stored, however far folding is.

CREATE TABLE metric_deltas (
    delta_id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    hour             timestamptz NOT NULL,
    place_id         integer NOT NULL,
    type             text NOT NULL,
    category         text NOT NULL,
    severity         smallint NOT NULL,
    source           text NOT NULL,
    outcome          text NOT NULL,
    events           bigint NOT NULL,
    latency_count    bigint NOT NULL,
    latency_sum      numeric NOT NULL,
    latency_min      bigint,
    latency_max      bigint,
    latency_bins     bytea NOT NULL,
    processing_count bigint NOT NULL,
    processing_sum   numeric NOT NULL,
    processing_min   bigint,
    processing_max   bigint,
    processing_bins  bytea NOT NULL
) WITH (autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_scale_factor = 0, autovacuum_analyze_threshold = 5000, autovacuum_analyze_scale_factor = 0);
COMMENT ON TABLE metric_deltas IS 'What requests added to the roll-ups and is not folded into event_metrics yet';
COMMENT ON COLUMN metric_deltas.delta_id IS 'Number of the row';
COMMENT ON COLUMN metric_deltas.hour IS 'Hour in which the events happened';
COMMENT ON COLUMN metric_deltas.place_id IS 'Where, see places';
COMMENT ON COLUMN metric_deltas.type IS 'Type of the events';
COMMENT ON COLUMN metric_deltas.category IS 'Category of the type';
COMMENT ON COLUMN metric_deltas.severity IS 'Severity of the events';
COMMENT ON COLUMN metric_deltas.source IS 'Source of the events, its first 200 characters';
COMMENT ON COLUMN metric_deltas.outcome IS 'Outcome of the events, its first 200 characters; empty: none';
COMMENT ON COLUMN metric_deltas.events IS 'How many';
COMMENT ON COLUMN metric_deltas.latency_count IS 'Events of which the latency is known: from when it happened to when the centre took it';
COMMENT ON COLUMN metric_deltas.latency_sum IS 'Sum of the latency, microseconds';
COMMENT ON COLUMN metric_deltas.latency_min IS 'Least latency, microseconds; negative where a clock runs ahead';
COMMENT ON COLUMN metric_deltas.latency_max IS 'Greatest latency, microseconds';
COMMENT ON COLUMN metric_deltas.latency_bins IS 'Distribution of the latency: a DDSketch of 2 %, see collector/store/sketch.py';
COMMENT ON COLUMN metric_deltas.processing_count IS 'Events of which the processing is known: from when the agent saw it to when the centre took it';
COMMENT ON COLUMN metric_deltas.processing_sum IS 'Sum of the processing, microseconds';
COMMENT ON COLUMN metric_deltas.processing_min IS 'Least processing, microseconds; negative where a clock runs ahead';
COMMENT ON COLUMN metric_deltas.processing_max IS 'Greatest processing, microseconds';
COMMENT ON COLUMN metric_deltas.processing_bins IS 'Distribution of the processing: a DDSketch of 2 %, see collector/store/sketch.py';

CREATE TABLE event_metrics (
    period           text NOT NULL,
    bucket           timestamptz NOT NULL,
    place_id         integer NOT NULL,
    type             text NOT NULL,
    category         text NOT NULL,
    severity         smallint NOT NULL,
    source           text NOT NULL,
    outcome          text NOT NULL,
    events           bigint NOT NULL,
    latency_count    bigint NOT NULL,
    latency_sum      numeric NOT NULL,
    latency_min      bigint,
    latency_max      bigint,
    latency_bins     bytea NOT NULL,
    processing_count bigint NOT NULL,
    processing_sum   numeric NOT NULL,
    processing_min   bigint,
    processing_max   bigint,
    processing_bins  bytea NOT NULL,
    PRIMARY KEY (period, place_id, bucket, type, category, severity, source, outcome),
    CHECK (period IN ('hour', 'day', 'week', 'month'))
) WITH (fillfactor = 70);
COMMENT ON TABLE event_metrics IS 'Events counted and measured by the period in which they happened; add metric_deltas for what is not folded yet';
COMMENT ON COLUMN event_metrics.period IS 'hour, day, week (from Monday) or month, UTC';
COMMENT ON COLUMN event_metrics.bucket IS 'When the period begins';
COMMENT ON COLUMN event_metrics.place_id IS 'Where, see places; 0: everywhere together';
COMMENT ON COLUMN event_metrics.type IS 'Type of the events';
COMMENT ON COLUMN event_metrics.category IS 'Category of the type';
COMMENT ON COLUMN event_metrics.severity IS 'Severity of the events';
COMMENT ON COLUMN event_metrics.source IS 'Source of the events, its first 200 characters';
COMMENT ON COLUMN event_metrics.outcome IS 'Outcome of the events, its first 200 characters; empty: none';
COMMENT ON COLUMN event_metrics.events IS 'How many';
COMMENT ON COLUMN event_metrics.latency_count IS 'Events of which the latency is known: from when it happened to when the centre took it';
COMMENT ON COLUMN event_metrics.latency_sum IS 'Sum of the latency, microseconds';
COMMENT ON COLUMN event_metrics.latency_min IS 'Least latency, microseconds; negative where a clock runs ahead';
COMMENT ON COLUMN event_metrics.latency_max IS 'Greatest latency, microseconds';
COMMENT ON COLUMN event_metrics.latency_bins IS 'Distribution of the latency: a DDSketch of 2 %, see collector/store/sketch.py';
COMMENT ON COLUMN event_metrics.processing_count IS 'Events of which the processing is known: from when the agent saw it to when the centre took it';
COMMENT ON COLUMN event_metrics.processing_sum IS 'Sum of the processing, microseconds';
COMMENT ON COLUMN event_metrics.processing_min IS 'Least processing, microseconds; negative where a clock runs ahead';
COMMENT ON COLUMN event_metrics.processing_max IS 'Greatest processing, microseconds';
COMMENT ON COLUMN event_metrics.processing_bins IS 'Distribution of the processing: a DDSketch of 2 %, see collector/store/sketch.py';
