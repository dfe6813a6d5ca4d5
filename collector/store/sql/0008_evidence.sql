-- Proof: what retention took away row by row, the Merkle tree over everything accepted, and its checkpoints.

ALTER TABLE evidence ADD COLUMN place_id integer;
COMMENT ON COLUMN evidence.place_id IS 'Where the agent stood when it came, as in its events; null in batches from before this column';

ALTER TABLE tombstones ADD COLUMN rows_hash text, ADD COLUMN signature text, ADD COLUMN key_id text;
COMMENT ON COLUMN tombstones.rows_hash IS 'SHA-256 over its lines of tombstone_rows, hex; part of hash where it is there';
COMMENT ON COLUMN tombstones.signature IS 'Ed25519 over "linewarden tombstone" and hash by the key of the installation, base64; null: it had none then';
COMMENT ON COLUMN tombstones.key_id IS 'Key that signed it, see checkpoint_keys';

CREATE TABLE tombstone_rows (
    tombstone_id    bigint NOT NULL,
    batch_id        bigint NOT NULL,
    idx             int4multirange NOT NULL,
    PRIMARY KEY (batch_id, tombstone_id)
);
COMMENT ON TABLE tombstone_rows IS 'Which rows a tombstone of kind deleted stands for; goes when the frames of the day go';
COMMENT ON COLUMN tombstone_rows.tombstone_id IS 'The tombstone';
COMMENT ON COLUMN tombstone_rows.batch_id IS 'Batch of the rows';
COMMENT ON COLUMN tombstone_rows.idx IS 'Their places in the batch';

CREATE TABLE merkle_tiles (
    level       smallint NOT NULL,
    tile        bigint NOT NULL,
    hashes      bytea NOT NULL,
    PRIMARY KEY (level, tile)
);
ALTER TABLE merkle_tiles ALTER COLUMN hashes SET STORAGE EXTERNAL;
COMMENT ON TABLE merkle_tiles IS 'The Merkle tree (RFC 9162) over accepted batches, tombstones and audit records, in tiles of 256 hashes';
COMMENT ON COLUMN merkle_tiles.level IS '0: hashes of leaves; n: each hash is the root of a full tile of level n - 1';
COMMENT ON COLUMN merkle_tiles.tile IS 'Number of the tile in its level, from 0';
COMMENT ON COLUMN merkle_tiles.hashes IS 'Up to 256 hashes of 32 bytes';

CREATE TABLE merkle_leaves (
    tile        bigint PRIMARY KEY,
    kinds       text NOT NULL,
    refs        bigint[] NOT NULL,
    span        int8range NOT NULL
);
CREATE INDEX merkle_leaves_span ON merkle_leaves USING gist (span);
COMMENT ON TABLE merkle_leaves IS 'What the leaves of each tile of level 0 are';
COMMENT ON COLUMN merkle_leaves.tile IS 'Number of the tile';
COMMENT ON COLUMN merkle_leaves.kinds IS 'A letter each leaf: b batch, t tombstone, a audit record';
COMMENT ON COLUMN merkle_leaves.refs IS 'Its batch_id, tombstone_id or number in audit_log';
COMMENT ON COLUMN merkle_leaves.span IS 'From the least to the greatest batch_id in refs; empty without a batch';

CREATE TABLE merkle_state (
    only_one    boolean PRIMARY KEY DEFAULT true CHECK (only_one),
    leaves      bigint NOT NULL DEFAULT 0,
    xid         xid8 NOT NULL DEFAULT '0',
    tombstone   bigint NOT NULL DEFAULT 0,
    audit       bigint NOT NULL DEFAULT 0
);
INSERT INTO merkle_state DEFAULT VALUES;
COMMENT ON TABLE merkle_state IS 'How far the tree has come: one row';
COMMENT ON COLUMN merkle_state.only_one IS 'Always true: keeps it to one row';
COMMENT ON COLUMN merkle_state.leaves IS 'Leaves in the tree';
COMMENT ON COLUMN merkle_state.xid IS 'All batches of transactions before this one are in the tree';
COMMENT ON COLUMN merkle_state.tombstone IS 'Last tombstone in the tree';
COMMENT ON COLUMN merkle_state.audit IS 'Last audit record in the tree';

CREATE TABLE checkpoint_keys (
    key_id      text PRIMARY KEY,
    verifier    text NOT NULL,
    since       timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE checkpoint_keys IS 'Public keys with which this installation signed';
COMMENT ON COLUMN checkpoint_keys.key_id IS 'First eight hex digits of the SHA-256 of name and key, as in a signed note';
COMMENT ON COLUMN checkpoint_keys.verifier IS 'Name, key_id and public key, as a signed note''s verifier key';
COMMENT ON COLUMN checkpoint_keys.since IS 'When it was first used here';

CREATE TABLE checkpoints (
    checkpoint_id   bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    made            timestamptz NOT NULL,
    leaves          bigint NOT NULL,
    root            text NOT NULL,
    key_id          text NOT NULL,
    note            text NOT NULL
);
COMMENT ON TABLE checkpoints IS 'Signed roots of the tree';
COMMENT ON COLUMN checkpoints.checkpoint_id IS 'Number of the checkpoint';
COMMENT ON COLUMN checkpoints.made IS 'When';
COMMENT ON COLUMN checkpoints.leaves IS 'Leaves under the root';
COMMENT ON COLUMN checkpoints.root IS 'Root, hex';
COMMENT ON COLUMN checkpoints.key_id IS 'Key that signed it, see checkpoint_keys';
COMMENT ON COLUMN checkpoints.note IS 'The signed note as it was written off the machine';

CREATE TABLE checkpoint_targets (
    target      text PRIMARY KEY,
    written     bigint NOT NULL DEFAULT 0,
    changed     timestamptz NOT NULL DEFAULT now(),
    trouble     text,
    since       timestamptz
);
COMMENT ON TABLE checkpoint_targets IS 'Where checkpoints are written to, and how far';
COMMENT ON COLUMN checkpoint_targets.target IS 'Its address as configured';
COMMENT ON COLUMN checkpoint_targets.written IS 'Last checkpoint that was written there';
COMMENT ON COLUMN checkpoint_targets.changed IS 'When that was, or when it last failed';
COMMENT ON COLUMN checkpoint_targets.trouble IS 'Why the next could not be written; null: it could';
COMMENT ON COLUMN checkpoint_targets.since IS 'Since when it fails';

CREATE TABLE erasures (
    erasure_id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    state           text NOT NULL CHECK (state IN ('requested', 'running', 'done', 'withdrawn')),
    names           jsonb,
    reason          text NOT NULL,
    requested       timestamptz NOT NULL DEFAULT now(),
    requested_by    text NOT NULL,
    confirmed       timestamptz,
    confirmed_by    text,
    finished        timestamptz,
    standing_until  timestamptz,
    events          bigint NOT NULL DEFAULT 0,
    batches         bigint NOT NULL DEFAULT 0
);
COMMENT ON TABLE erasures IS 'Requests to erase a person, and what was done';
COMMENT ON COLUMN erasures.erasure_id IS 'Number of the request';
COMMENT ON COLUMN erasures.state IS 'requested: waits to be confirmed; running: begun, or standing; done; withdrawn';
COMMENT ON COLUMN erasures.names IS 'Personal: the names of the person; null once it is done';
COMMENT ON COLUMN erasures.reason IS 'Why, in words without personal data';
COMMENT ON COLUMN erasures.requested IS 'When it was asked for';
COMMENT ON COLUMN erasures.requested_by IS 'By whom';
COMMENT ON COLUMN erasures.confirmed IS 'When it was confirmed';
COMMENT ON COLUMN erasures.confirmed_by IS 'By whom';
COMMENT ON COLUMN erasures.finished IS 'When the last of it was erased';
COMMENT ON COLUMN erasures.standing_until IS 'Until when events that come late are erased too; null: it ended when it was done';
COMMENT ON COLUMN erasures.events IS 'Events whose personal line was erased';
COMMENT ON COLUMN erasures.batches IS 'Batches that they lie in';

CREATE TABLE erased_lines (
    batch_id    bigint NOT NULL,
    erasure_id  bigint NOT NULL,
    idx         int4multirange NOT NULL,
    PRIMARY KEY (batch_id, erasure_id)
);
COMMENT ON TABLE erased_lines IS 'Which personal lines were erased, in rows and frames alike';
COMMENT ON COLUMN erased_lines.batch_id IS 'Batch of the lines';
COMMENT ON COLUMN erased_lines.erasure_id IS 'The request';
COMMENT ON COLUMN erased_lines.idx IS 'Their places in the batch';
