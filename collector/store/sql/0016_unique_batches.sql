-- A batch is stored once: so far by the lock on the head of its stream alone. Now the tables refuse a second one, too, within what a unique key
-- of a partitioned table can say: it has to hold `received`. Across moments it is the head that refuses: it moves only from where it was read.

CREATE UNIQUE INDEX evidence_once ON evidence (agent_id, buffer_id, lane, batch_no, received);
DROP INDEX evidence_stream;
CREATE UNIQUE INDEX security_events_once ON security_events (batch_id, idx, received);
DROP INDEX security_events_batch;
