"""Brings what is in the buffer to the centre, in order, and lets go of it once it is durable there."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncConfig:
    """[sync]

    url                   the collector, https://host:port
    ca_file               certificate authority to trust for it (PEM); none: the system's
    key_file              file with the agent's API key
    batch_bytes_max       bytes of batches in one request
    rate_bytes_per_s_max  0: no limit
    timeout_s             of one request, its answer included
    backoff_s_max         longest wait between two tries while the collector is away
    allow_plaintext       http:// to other than this computer; the events then travel unprotected
    """

    url: str
    ca_file: str | None = None
    key_file: str | None = None
    batch_bytes_max: Annotated[int, Ge(16_384)] = 1_048_576
    rate_bytes_per_s_max: Annotated[int, Ge(0)] = 0
    timeout_s: Annotated[float, Gt(0)] = 30.0
    backoff_s_max: Annotated[float, Gt(0)] = 60.0
    allow_plaintext: bool = False
