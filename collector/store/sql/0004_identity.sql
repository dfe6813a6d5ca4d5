-- Who an agent is: tokens that let it in once, its keys and the time in which each speaks for it, and what it signed.
--
-- A signature stands beside the frames that it covers and is partitioned like them, so that both leave together. `signed` is the text as
-- agent/wire/signature.py writes it: with the public key in agent_keys, each row can be checked without anything else.

CREATE TABLE enrolment_tokens (
    token_id    integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    prefix      text NOT NULL UNIQUE,
    hash        bytea NOT NULL,
    site        text NOT NULL DEFAULT '',
    line        text NOT NULL DEFAULT '',
    station     text NOT NULL DEFAULT '',
    agent_id    uuid,
    created     timestamptz NOT NULL DEFAULT now(),
    created_by  text NOT NULL,
    expires     timestamptz NOT NULL,
    revoked     timestamptz,
    used        timestamptz,
    used_agent  uuid,
    used_key    text
);
COMMENT ON TABLE enrolment_tokens IS 'Tokens that let one agent in, once. The secret itself is not stored';
COMMENT ON COLUMN enrolment_tokens.token_id IS 'Number of the token';
COMMENT ON COLUMN enrolment_tokens.prefix IS 'Visible part of the token, to tell it by';
COMMENT ON COLUMN enrolment_tokens.hash IS 'SHA-256 of its secret, which is 256 random bits';
COMMENT ON COLUMN enrolment_tokens.site IS 'Where the agent that uses it stands';
COMMENT ON COLUMN enrolment_tokens.line IS 'The same for the line';
COMMENT ON COLUMN enrolment_tokens.station IS 'The same for the station';
COMMENT ON COLUMN enrolment_tokens.agent_id IS 'The only agent that may use it, which may be known here already; null: any that is not known yet';
COMMENT ON COLUMN enrolment_tokens.created IS 'When it was made';
COMMENT ON COLUMN enrolment_tokens.created_by IS 'By whom';
COMMENT ON COLUMN enrolment_tokens.expires IS 'From when on it is refused';
COMMENT ON COLUMN enrolment_tokens.revoked IS 'When it was taken back; null: it was not';
COMMENT ON COLUMN enrolment_tokens.used IS 'When it was used; null: it was not';
COMMENT ON COLUMN enrolment_tokens.used_agent IS 'Agent that used it';
COMMENT ON COLUMN enrolment_tokens.used_key IS 'Key that was enrolled with it';

CREATE TABLE agent_keys (
    key_id          text PRIMARY KEY,
    agent_id        uuid NOT NULL,
    public_key      bytea NOT NULL CHECK (length(public_key) = 32),
    place_id        integer NOT NULL REFERENCES places,
    valid_from      timestamptz NOT NULL DEFAULT now(),
    valid_until     timestamptz,
    revoked         timestamptz,
    revoked_by      text,
    token_id        integer REFERENCES enrolment_tokens,
    parent          text REFERENCES agent_keys,
    proof           text NOT NULL,
    signature       bytea NOT NULL,
    parent_signature bytea,
    last_used       timestamptz,
    CHECK ((token_id IS NULL) <> (parent IS NULL))
);
CREATE INDEX agent_keys_agent ON agent_keys (agent_id, valid_from);
COMMENT ON TABLE agent_keys IS 'Keys of agents, Ed25519. A key speaks for its agent from valid_from until the earlier of valid_until and revoked';
COMMENT ON COLUMN agent_keys.key_id IS 'First 32 hex digits of the SHA-256 of public_key';
COMMENT ON COLUMN agent_keys.agent_id IS 'Agent that it speaks for';
COMMENT ON COLUMN agent_keys.public_key IS 'Its 32 bytes';
COMMENT ON COLUMN agent_keys.place_id IS 'Where the agent stands, by the token';
COMMENT ON COLUMN agent_keys.valid_from IS 'From when on it is taken';
COMMENT ON COLUMN agent_keys.valid_until IS 'Until when, where another has taken its place; null: no other has';
COMMENT ON COLUMN agent_keys.revoked IS 'When it was taken back; null: it was not';
COMMENT ON COLUMN agent_keys.revoked_by IS 'By whom it was taken back';
COMMENT ON COLUMN agent_keys.token_id IS 'Token that it was enrolled with; null where it took the place of another key';
COMMENT ON COLUMN agent_keys.parent IS 'Key whose place it took; null where it was enrolled';
COMMENT ON COLUMN agent_keys.proof IS 'What it signed when it was enrolled or took the place of its parent';
COMMENT ON COLUMN agent_keys.signature IS 'Its own signature of proof';
COMMENT ON COLUMN agent_keys.parent_signature IS 'Signature of proof by its parent; null where it was enrolled';
COMMENT ON COLUMN agent_keys.last_used IS 'When it last signed an accepted request, within a minute';

CREATE TABLE agent_links (
    agent_id        uuid NOT NULL,
    earlier_agent   uuid NOT NULL,
    buffer_id       uuid NOT NULL,
    lane            smallint NOT NULL,
    batch_no        bigint NOT NULL,
    hash            text NOT NULL,
    token_id        integer NOT NULL REFERENCES enrolment_tokens,
    made            timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (agent_id, earlier_agent, buffer_id, lane, token_id)
);
COMMENT ON TABLE agent_links IS 'Where a station got a new agent: the heads at which the streams of the earlier one stood then';
COMMENT ON COLUMN agent_links.agent_id IS 'The agent that was enrolled; its first signed batches declare the same in an event agent.enrolled';
COMMENT ON COLUMN agent_links.earlier_agent IS 'The agent that stood there before; may be the same, enrolled again';
COMMENT ON COLUMN agent_links.buffer_id IS 'Buffer file of the earlier agent';
COMMENT ON COLUMN agent_links.lane IS 'Lane of that buffer';
COMMENT ON COLUMN agent_links.batch_no IS 'Number up to which the stream was stored';
COMMENT ON COLUMN agent_links.hash IS 'Hash of the head, see batch_heads';
COMMENT ON COLUMN agent_links.token_id IS 'Token of the enrolment';
COMMENT ON COLUMN agent_links.made IS 'When';

CREATE TABLE signatures (
    received        timestamptz NOT NULL,
    signature_id    bigint NOT NULL,
    agent_id        uuid NOT NULL,
    key_id          text NOT NULL,
    signed          text NOT NULL,
    signature       bytea NOT NULL,
    PRIMARY KEY (signature_id, received)
) PARTITION BY RANGE (received);
CREATE TABLE signatures_default PARTITION OF signatures DEFAULT;
COMMENT ON TABLE signatures IS 'Signatures of requests of which batches were stored: each covers runs of batches by the hash of their last';
COMMENT ON COLUMN signatures.received IS 'When the collector took the request; the same in its batches';
COMMENT ON COLUMN signatures.signature_id IS 'Number of the first batch that was stored of the request';
COMMENT ON COLUMN signatures.agent_id IS 'Agent that signed';
COMMENT ON COLUMN signatures.key_id IS 'Its key, see agent_keys';
COMMENT ON COLUMN signatures.signed IS 'The text that was signed: agent, key, time, and the runs of batches';
COMMENT ON COLUMN signatures.signature IS 'Ed25519, 64 bytes';

ALTER TABLE evidence ADD COLUMN signature_id bigint;
COMMENT ON COLUMN evidence.signature_id IS 'Signature that covers it, see signatures; null: sent with an API key, or made by the centre itself';

ALTER TABLE agents ADD COLUMN sent_us bigint, ADD COLUMN revoked timestamptz;
COMMENT ON COLUMN agents.sent_us IS 'Time that its last signed request names, by its own clock: an older one that comes again is no sign of life';
COMMENT ON COLUMN agents.revoked IS 'When all its keys were taken back; null: they were not, or it was enrolled anew since';
