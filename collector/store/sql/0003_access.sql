-- Who may come in, and who did what.
--
-- What is secret is stored as a hash where it is only compared (sessions, recovery codes, keys: random, so a fast hash serves; passwords:
-- argon2id), and sealed with the secret of the installation where it is needed again (TOTP).

CREATE TABLE installation_secrets (
    name    text PRIMARY KEY,
    value   bytea NOT NULL,
    made    timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE installation_secrets IS 'What is made once for an installation and shared by its collectors';
COMMENT ON COLUMN installation_secrets.name IS 'Which: secret';
COMMENT ON COLUMN installation_secrets.value IS 'Random bytes; keys for pseudonyms, cookies and TOTP are derived from them';
COMMENT ON COLUMN installation_secrets.made IS 'When it was made';

CREATE TABLE users (
    user_id             integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name                text NOT NULL UNIQUE CHECK (name = lower(name) AND length(name) BETWEEN 1 AND 100),
    display             text NOT NULL DEFAULT '',
    role                text NOT NULL CHECK (role IN ('viewer', 'analyst', 'auditor', 'admin')),
    origin              text NOT NULL DEFAULT 'local' CHECK (origin IN ('local', 'oidc')),
    password            text,
    password_changed    timestamptz,
    totp                bytea,
    totp_since          timestamptz,
    totp_step           bigint NOT NULL DEFAULT 0,
    created             timestamptz NOT NULL DEFAULT now(),
    disabled            timestamptz,
    last_sign_in        timestamptz
);
COMMENT ON TABLE users IS 'People who may sign in';
COMMENT ON COLUMN users.user_id IS 'Number of the user';
COMMENT ON COLUMN users.name IS 'Name to sign in with, in lower case';
COMMENT ON COLUMN users.display IS 'Name to show';
COMMENT ON COLUMN users.role IS 'What the user may do: viewer reads; analyst, auditor, admin do more';
COMMENT ON COLUMN users.origin IS 'local: with a password here; oidc: made by a sign-in through OpenID Connect, which sets role and scopes each time';
COMMENT ON COLUMN users.password IS 'argon2id; null: no sign-in with a password';
COMMENT ON COLUMN users.password_changed IS 'When the password was last set';
COMMENT ON COLUMN users.totp IS 'Secret of the one-time codes, sealed; null: none was made';
COMMENT ON COLUMN users.totp_since IS 'From when on a one-time code is asked for; null: not confirmed yet';
COMMENT ON COLUMN users.totp_step IS 'Time step of the last code that was taken: none is taken twice';
COMMENT ON COLUMN users.created IS 'When the user was made';
COMMENT ON COLUMN users.disabled IS 'When the user was shut out; null: not';
COMMENT ON COLUMN users.last_sign_in IS 'When the user last signed in';

CREATE TABLE user_scopes (
    user_id     integer NOT NULL REFERENCES users ON DELETE CASCADE,
    site        text NOT NULL DEFAULT '',
    line        text NOT NULL DEFAULT '',
    station     text NOT NULL DEFAULT '',
    PRIMARY KEY (user_id, site, line, station)
);
COMMENT ON TABLE user_scopes IS 'What each user may see: any of these. A user without a row sees nothing';
COMMENT ON COLUMN user_scopes.user_id IS 'Whose';
COMMENT ON COLUMN user_scopes.site IS 'The site; empty: every site';
COMMENT ON COLUMN user_scopes.line IS 'The line; empty: every line';
COMMENT ON COLUMN user_scopes.station IS 'The station; empty: every station';

CREATE TABLE recovery_codes (
    user_id     integer NOT NULL REFERENCES users ON DELETE CASCADE,
    hash        bytea NOT NULL,
    used        timestamptz,
    PRIMARY KEY (user_id, hash)
);
COMMENT ON TABLE recovery_codes IS 'Codes that each stand once for a one-time code';
COMMENT ON COLUMN recovery_codes.user_id IS 'Whose';
COMMENT ON COLUMN recovery_codes.hash IS 'SHA-256 of the code; it has 80 random bits';
COMMENT ON COLUMN recovery_codes.used IS 'When it was used; null: it was not';

CREATE TABLE oidc_identities (
    issuer      text NOT NULL,
    subject     text NOT NULL,
    user_id     integer NOT NULL REFERENCES users ON DELETE CASCADE,
    created     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (issuer, subject)
);
CREATE INDEX oidc_identities_user ON oidc_identities (user_id);
COMMENT ON TABLE oidc_identities IS 'Which person of an OpenID Connect provider is which user';
COMMENT ON COLUMN oidc_identities.issuer IS 'The provider';
COMMENT ON COLUMN oidc_identities.subject IS 'Who it is there: the one name that a provider never gives to another';
COMMENT ON COLUMN oidc_identities.user_id IS 'Who it is here';
COMMENT ON COLUMN oidc_identities.created IS 'When they first came';

CREATE TABLE sessions (
    hash        bytea PRIMARY KEY,
    user_id     integer NOT NULL REFERENCES users ON DELETE CASCADE,
    method      text NOT NULL,
    address     text NOT NULL,
    user_agent  text NOT NULL DEFAULT '',
    created     timestamptz NOT NULL DEFAULT now(),
    last_used   timestamptz NOT NULL DEFAULT now(),
    idle        interval NOT NULL,
    expires     timestamptz NOT NULL
);
CREATE INDEX sessions_user ON sessions (user_id, last_used);
CREATE INDEX sessions_expires ON sessions (expires);
COMMENT ON TABLE sessions IS 'Who is signed in';
COMMENT ON COLUMN sessions.hash IS 'SHA-256 of the token in the cookie; it has 256 random bits';
COMMENT ON COLUMN sessions.user_id IS 'Who';
COMMENT ON COLUMN sessions.method IS 'How: password, password+totp, password+recovery, oidc';
COMMENT ON COLUMN sessions.address IS 'From where';
COMMENT ON COLUMN sessions.user_agent IS 'With what, as it said, its first 200 characters';
COMMENT ON COLUMN sessions.created IS 'Since when';
COMMENT ON COLUMN sessions.last_used IS 'When it was last used, within a minute';
COMMENT ON COLUMN sessions.idle IS 'Unused for so long it ends';
COMMENT ON COLUMN sessions.expires IS 'When it ends however much it is used';

CREATE TABLE sign_in_failures (
    bucket      text PRIMARY KEY,
    failures    integer NOT NULL,
    last        timestamptz NOT NULL DEFAULT now(),
    until       timestamptz NOT NULL
);
CREATE INDEX sign_in_failures_last ON sign_in_failures (last);
COMMENT ON TABLE sign_in_failures IS 'Sign-ins that failed of late, by what they have in common; forgotten after a day';
COMMENT ON COLUMN sign_in_failures.bucket IS 'What they have in common, as a SHA-256 in hex: name, address, both, or a browser that signed in before';
COMMENT ON COLUMN sign_in_failures.failures IS 'How many in a row';
COMMENT ON COLUMN sign_in_failures.last IS 'When the last one was';
COMMENT ON COLUMN sign_in_failures.until IS 'Until when no other is looked at';

ALTER TABLE api_keys ADD COLUMN created_by text NOT NULL DEFAULT '';
COMMENT ON COLUMN api_keys.created_by IS 'Who made it';

-- The audit log. Each record holds the hash of the one before it; see collector/store/audit.py for the bytes that are hashed.

CREATE TABLE audit_log (
    no          bigint PRIMARY KEY,
    time        timestamptz NOT NULL,
    who         text NOT NULL,
    who_kind    text NOT NULL CHECK (who_kind IN ('key', 'user', 'agent', 'system', 'command', 'nobody')),
    role        text NOT NULL,
    address     text NOT NULL,
    action      text NOT NULL,
    target      text NOT NULL,
    result      text NOT NULL CHECK (result IN ('success', 'failure', 'refused')),
    data        jsonb NOT NULL,
    prev        bytea NOT NULL,
    hash        bytea NOT NULL
);
CREATE INDEX audit_log_time ON audit_log (time, no);
CREATE INDEX audit_log_who ON audit_log (who, no);
CREATE INDEX audit_log_action ON audit_log (action, no);
CREATE INDEX audit_log_target ON audit_log (target, no);
COMMENT ON TABLE audit_log IS 'Who did what, from where, and how it ended. It only grows';
COMMENT ON COLUMN audit_log.no IS 'Number of the record: 1, 2, 3 …, without a gap';
COMMENT ON COLUMN audit_log.time IS 'When, by the clock of the database';
COMMENT ON COLUMN audit_log.who IS 'Name of the user, prefix of the key, id of the agent, user of the operating system; empty: not known';
COMMENT ON COLUMN audit_log.who_kind IS 'What who is; system is the collector itself';
COMMENT ON COLUMN audit_log.role IS 'Role that it had; empty: none';
COMMENT ON COLUMN audit_log.address IS 'From where; empty: from this computer, by a command or by itself';
COMMENT ON COLUMN audit_log.action IS 'What was done or asked for, a dotted name';
COMMENT ON COLUMN audit_log.target IS 'On what';
COMMENT ON COLUMN audit_log.result IS 'success, failure, or refused';
COMMENT ON COLUMN audit_log.data IS 'More about it';
COMMENT ON COLUMN audit_log.prev IS 'Hash of the record before it; 32 zero bytes before the first';
COMMENT ON COLUMN audit_log.hash IS 'SHA-256 over prev and all the fields above';

CREATE TABLE audit_head (
    single  boolean PRIMARY KEY DEFAULT true CHECK (single),
    no      bigint NOT NULL,
    hash    bytea NOT NULL
);
INSERT INTO audit_head (no, hash) VALUES (0, decode(repeat('00', 32), 'hex'));
COMMENT ON TABLE audit_head IS 'The end of the audit log: its lock puts those who write in order, and a log that was cut off does not fit it';
COMMENT ON COLUMN audit_head.single IS 'There is one row';
COMMENT ON COLUMN audit_head.no IS 'Number of the last record; 0 before the first';
COMMENT ON COLUMN audit_head.hash IS 'Its hash';

CREATE FUNCTION audit_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the audit log only grows: % on % is refused', TG_OP, TG_TABLE_NAME USING ERRCODE = 'insufficient_privilege';
END $$;
COMMENT ON FUNCTION audit_refuse() IS 'Refuses to change what was recorded';

CREATE FUNCTION audit_advance() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.no <> OLD.no + 1 THEN
        RAISE EXCEPTION 'the audit log grows by one record at a time: % after % is refused', NEW.no, OLD.no
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NEW;
END $$;
COMMENT ON FUNCTION audit_advance() IS 'Lets the end of the audit log move on by one record, and not otherwise';

CREATE TRIGGER audit_log_kept BEFORE UPDATE OR DELETE ON audit_log FOR EACH ROW EXECUTE FUNCTION audit_refuse();
CREATE TRIGGER audit_log_whole BEFORE TRUNCATE ON audit_log FOR EACH STATEMENT EXECUTE FUNCTION audit_refuse();
CREATE TRIGGER audit_head_kept BEFORE DELETE ON audit_head FOR EACH ROW EXECUTE FUNCTION audit_refuse();
CREATE TRIGGER audit_head_whole BEFORE TRUNCATE ON audit_head FOR EACH STATEMENT EXECUTE FUNCTION audit_refuse();
CREATE TRIGGER audit_head_forward BEFORE UPDATE ON audit_head FOR EACH ROW EXECUTE FUNCTION audit_advance();
