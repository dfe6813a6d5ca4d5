"""Every code that a problem of this collector may carry: one enum, one table with its meaning and the event that reports it.

A code is a promise to programs (`code`, and the end of `type`, in problem+json; the reason in audit records). Every code raised anywhere is
a member here, and every member has a row in `TABLE`: a test reads the sources for both. A row with an event type is reported to the SOC
by that event whenever a refusal with this code is recorded (see enrol_signature.py), so that no second table has to be kept.
"""

from enum import StrEnum
from typing import NamedTuple

SIGNATURE_REFUSED = "security.signature.refused"
ENROLMENT_REFUSED = "security.enrolment.refused"


class Code(StrEnum):
    """A code. Adding one is free; renaming one breaks programs."""

    AGENT = "agent"
    AGENT_KNOWN = "agent_known"
    ALERT = "alert"
    BUSY = "busy"
    CHECKPOINT = "checkpoint"
    CODE = "code"
    CODE_MISSING = "code-missing"
    CSRF = "csrf"
    CURSOR = "cursor"
    DEEP = "deep"
    DEFECT = "defect"
    ENCODING = "encoding"
    EVENT = "event"
    EXPIRES = "expires"
    FILTER = "filter"
    FORKED = "forked"
    FRAME = "frame"
    HEADER = "header"
    HTTP = "http"
    INCIDENT = "incident"
    KEY = "key"
    KEY_ENDED = "key_ended"
    KEY_FOLLOWED = "key_followed"
    KEY_KNOWN = "key_known"
    KEY_UNKNOWN = "key_unknown"
    LOCKED = "locked"
    MALFORMED = "malformed"
    MISSING = "missing"
    NOTIFICATION = "notification"
    OIDC_AGAIN = "oidc-again"
    OIDC_AUDIENCE = "oidc-audience"
    OIDC_CANCELLED = "oidc-cancelled"
    OIDC_CLIENT = "oidc-client"
    OIDC_CLOCK = "oidc-clock"
    OIDC_CODE = "oidc-code"
    OIDC_DISABLED = "oidc-disabled"
    OIDC_END = "oidc-end"
    OIDC_EXPIRED = "oidc-expired"
    OIDC_GROUP = "oidc-group"
    OIDC_OFF = "oidc-off"
    OIDC_PLACE = "oidc-place"
    OIDC_PROVIDER = "oidc-provider"
    OIDC_REFUSED = "oidc-refused"
    OIDC_RETURN = "oidc-return"
    OIDC_REUSED = "oidc-reused"
    OIDC_STATE = "oidc-state"
    OIDC_TOKEN = "oidc-token"  # noqa: S105 - a code, and no secret
    ORIGIN = "origin"
    PASSWORD = "password"  # noqa: S105
    PATH = "path"
    PERSONAL = "personal"
    PIPELINE = "pipeline"
    RATE = "rate"
    REVOKED = "revoked"
    ROLE = "role"
    SCOPE = "scope"
    SELECTION = "selection"
    SESSION = "session"
    SIGNATURE = "signature"
    SLOW = "slow"
    STATE = "state"
    STORE = "store"
    STREAMS = "streams"
    SUPPRESSION = "suppression"
    TAKEN = "taken"
    TEXT = "text"
    TARGET = "target"
    TOKEN = "token"  # noqa: S105
    TOKEN_AGENT = "token_agent"  # noqa: S105
    TOKEN_USED = "token_used"  # noqa: S105
    TOOLARGE = "toolarge"
    TOTP = "totp"
    TREE = "tree"
    UNSIGNED = "unsigned"
    USER = "user"
    VERSION = "version"
    WEAK = "weak"


class Meaning(NamedTuple):
    """What a code means, in words that complete "was refused: …", and the type of the event that reports it; None: no event does."""

    words: str
    event: str | None = None


_AGENT = Code.AGENT, Code.KEY_UNKNOWN, Code.KEY_ENDED, Code.KEY_FOLLOWED, Code.REVOKED, Code.SIGNATURE, Code.UNSIGNED
_ENROLMENT = Code.TOKEN, Code.TOKEN_AGENT, Code.TOKEN_USED, Code.AGENT_KNOWN, Code.KEY_KNOWN
_EVENTS = {**dict.fromkeys(_AGENT, SIGNATURE_REFUSED), **dict.fromkeys(_ENROLMENT, ENROLMENT_REFUSED)}

_WORDS: dict[Code, str] = {
    Code.AGENT: "the batches are of another agent than the key",
    Code.AGENT_KNOWN: "the agent is known already, and the token is not for it",
    Code.ALERT: "no such alert in the caller's scope",
    Code.BUSY: "more work at once than the limit",
    Code.CHECKPOINT: "no such checkpoint",
    Code.CODE: "the one-time code is wrong or used",
    Code.CODE_MISSING: "the one-time code is missing",
    Code.CSRF: "the CSRF token is missing or wrong",
    Code.CURSOR: "not a cursor of this collector",
    Code.DEEP: "the body is nested too deep",
    Code.DEFECT: "a defect of the collector",
    Code.ENCODING: "an unknown content encoding",
    Code.EVENT: "no such event in the caller's scope",
    Code.EXPIRES: "an expiry that is past or too far ahead",
    Code.FILTER: "an unknown or invalid parameter",
    Code.FORKED: "another batch is stored under this number",
    Code.FRAME: "the stored frame is damaged",
    Code.HEADER: "the head of the request is larger than the limit",
    Code.HTTP: "the bytes are no request of HTTP/1.1",
    Code.INCIDENT: "no such incident in the caller's scope",
    Code.KEY: "the API key is missing, unknown, expired or revoked",
    Code.KEY_ENDED: "another key has taken the place of this one",
    Code.KEY_FOLLOWED: "the key has been followed by another already",
    Code.KEY_KNOWN: "the key was enrolled before",
    Code.KEY_UNKNOWN: "the key is not known",
    Code.LOCKED: "too many failures; the wait is not over",
    Code.MALFORMED: "the request cannot be understood",
    Code.MISSING: "earlier batches are missing",
    Code.NOTIFICATION: "no such notification",
    Code.OIDC_AGAIN: "the user is being made at this moment",
    Code.OIDC_AUDIENCE: "the ID token is for another application",
    Code.OIDC_CANCELLED: "the sign-in was cancelled at the provider",
    Code.OIDC_CLIENT: "the provider refuses this collector as a client",
    Code.OIDC_CLOCK: "the clocks of provider and collector disagree",
    Code.OIDC_CODE: "the provider refuses the authorization code",
    Code.OIDC_DISABLED: "the user is disabled",
    Code.OIDC_END: "the provider has no page to sign out",
    Code.OIDC_EXPIRED: "the sign-in took too long",
    Code.OIDC_GROUP: "no group of the person has a role here",
    Code.OIDC_OFF: "no provider is configured",
    Code.OIDC_PLACE: "no place is given to the person",
    Code.OIDC_PROVIDER: "the provider cannot be reached or answers wrongly",
    Code.OIDC_REFUSED: "the provider refused the sign-in",
    Code.OIDC_RETURN: "the return address is no path of this collector",
    Code.OIDC_REUSED: "the answer of the provider was used before",
    Code.OIDC_STATE: "the sign-in was not begun by this browser",
    Code.OIDC_TOKEN: "the ID token cannot be believed",
    Code.ORIGIN: "the request comes from a page of another origin",
    Code.PASSWORD: "the name or the password is wrong, or the user is disabled",
    Code.PATH: "the path is not spelled as it is served",
    Code.PERSONAL: "the role may not see personal data",
    Code.PIPELINE: "too many requests are sent ahead of their answers",
    Code.RATE: "too many requests",
    Code.REVOKED: "the key was revoked",
    Code.ROLE: "the role may not do this",
    Code.SCOPE: "outside of the caller's scope",
    Code.SELECTION: "no such preview, or it was applied already",
    Code.SESSION: "the session has ended, or a session is needed",
    Code.SIGNATURE: "a signature does not hold",
    Code.SLOW: "it takes longer than the limit",
    Code.STATE: "the action does not fit the state",
    Code.STORE: "the database is not available",
    Code.STREAMS: "the agent has more streams than the limit",
    Code.SUPPRESSION: "no such suppression, or it has ended",
    Code.TAKEN: "the name is taken",
    Code.TEXT: "a text that cannot be stored",
    Code.TARGET: "the target of the request is longer than the limit",
    Code.TOKEN: "the token is not known, expired or revoked",
    Code.TOKEN_AGENT: "the token is for another agent",
    Code.TOKEN_USED: "the token was used by another agent",
    Code.TOOLARGE: "the request is too large",
    Code.TOTP: "one-time codes are in use already",
    Code.TREE: "the Merkle tree is not whole",
    Code.UNSIGNED: "an enrolled agent's batches came without a signature",
    Code.USER: "no such user in the caller's scope",
    Code.VERSION: "the version is not the current one",
    Code.WEAK: "the password is too weak",
}

TABLE: dict[Code, Meaning] = {code: Meaning(words, _EVENTS.get(code)) for code, words in _WORDS.items()}


def meaning(code: str) -> Meaning | None:
    """Return the row of a code; None for a problem without one."""
    return TABLE[Code(code)] if code in _VALUES else None


_VALUES = frozenset(Code)
