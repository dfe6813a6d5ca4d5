-- Sign-in by OpenID Connect: each answer of the provider is taken once.

CREATE TABLE oidc_states (
    state   bytea PRIMARY KEY,
    used    timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX oidc_states_used ON oidc_states (used);
COMMENT ON TABLE oidc_states IS 'Sign-ins that came back from the provider, so that none comes back twice; forgotten when they would be too old anyway';
COMMENT ON COLUMN oidc_states.state IS 'SHA-256 of the state that went along';
COMMENT ON COLUMN oidc_states.used IS 'When it came back';
