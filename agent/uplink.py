"""The sink that is a Linewarden collector: one POST a request, over one kept-alive connection.

Every answer is sorted by what sync has to do next: go on (Ack), send something else first (Ack with a Refusal), send less at
once (TooLarge), wait (Unavailable). An answer that cannot be read is none: the batches are sent again, which changes nothing.
"""

import json
import ssl
import sys
from collections.abc import Mapping, Sequence
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import msgspec
import zstandard
from msgspec import Struct

from agent.component import Ack, ConfigError, Refusal, TooLarge, Unavailable, now_us

# httpx brings a command line of its own where click is installed (with the collector, say), at 6 MB of memory that no agent has use for.
_click = sys.modules.get("click")
sys.modules["click"] = None  # type: ignore[assignment]
import httpx  # noqa: E402

del sys.modules["click"]
if _click is not None:
    sys.modules["click"] = _click

CONTENT_TYPE = "application/vnd.linewarden.batches"
RETRY_AFTER_S_MAX = 3_600.0
REFUSED_KEY_WAIT_S = 30.0
"""A refused key needs a person: asking more often helps nobody."""
ANSWER_BYTES_MAX = 1_048_576
COMPRESS_BATCHES_MIN = 4
"""From so many batches on, the request is compressed as a whole too: the headers of small batches are much alike."""


class _Acked(Struct):
    buffer: str
    lane: int
    no: int


class _Answer(Struct):
    acked: list[_Acked]


class _Problem(Struct):
    """RFC 9457, with the collector's own members."""

    title: str = ""
    detail: str = ""
    code: str = ""
    buffer: str = ""
    lane: int = 0
    no: int = 0
    expected: int = 0
    head_hash: str = ""


class HttpSink:
    """See the module. Cold until `send`; `close` ends the connection."""

    def __init__(self, *, url: str, key_file: str | None, ca_file: str | None, timeout_s: float, version: str) -> None:
        self._url = f"{url.rstrip('/')}/v1/batches"
        self._key_file = key_file
        self._ca_file = ca_file
        self._timeout_s = timeout_s
        self._version = version
        self._client: httpx.AsyncClient | None = None
        self._compressor = zstandard.ZstdCompressor(level=1)

    async def send(self, batches: Sequence[bytes], status: Mapping[str, Any]) -> Ack:
        """See `Sink`. Raises ConfigError where the key or the certificate file cannot be read."""
        client = self._client or self._connect()
        body = b"".join(batches)
        headers = {
            "Content-Type": CONTENT_TYPE,
            "Linewarden-Version": self._version,
            "Linewarden-Agent-Time": str(now_us()),
            "Linewarden-Status": json.dumps(status, separators=(",", ":")),  # a header is ASCII
        }
        if self._key_file:
            headers["Authorization"] = f"Bearer {_read_key(self._key_file)}"
        if len(batches) >= COMPRESS_BATCHES_MIN:
            body = self._compressor.compress(body)
            headers["Content-Encoding"] = "zstd"
        try:
            response = await client.post(self._url, content=body, headers=headers)
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ssl.SSLError) as error:
            raise Unavailable(f"{self._url}: {str(error) or type(error).__name__}") from None
        return self._sort(response)

    def _connect(self) -> httpx.AsyncClient:
        verify: ssl.SSLContext | bool = False
        try:
            if self._url.startswith("https"):
                verify = ssl.create_default_context(cafile=self._ca_file)
                verify.minimum_version = ssl.TLSVersion.TLSv1_3
        except (OSError, ssl.SSLError) as error:
            remedy = "Give the PEM file of the authority that signed the collector's certificate."
            raise ConfigError(
                f"{self._ca_file} is no certificate file: {error}", key="sync.ca_file", remedy=remedy
            ) from None
        limits = httpx.Limits(max_connections=2, max_keepalive_connections=1, keepalive_expiry=300)
        # The environment's proxies are not ours: a station's events go where the configuration says and nowhere else.
        self._client = httpx.AsyncClient(verify=verify, timeout=self._timeout_s, limits=limits, trust_env=False)
        return self._client

    def _sort(self, response: httpx.Response) -> Ack:
        status = response.status_code
        if status == httpx.codes.OK:
            try:
                answer = msgspec.json.decode(response.content, type=_Answer)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                raise Unavailable(f"{self._url} answered 200 with something that is no acknowledgement") from None
            return Ack({(item.buffer, item.lane): item.no for item in answer.acked})
        problem = _problem(response)
        text = f"{self._url} answered {status}: {problem.detail or problem.title or 'no reason given'}"
        if status in (httpx.codes.CONFLICT, httpx.codes.UNPROCESSABLE_ENTITY) and problem.buffer:
            code = problem.code if status == httpx.codes.CONFLICT else "bad"
            refusal = Refusal(code, problem.buffer, problem.lane, problem.no, problem.expected, problem.head_hash, text)
            return Ack({}, refusal)
        if status == httpx.codes.REQUEST_ENTITY_TOO_LARGE:
            raise TooLarge(text)
        if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            raise Unavailable(f"{text}. Check the key in sync.key_file", REFUSED_KEY_WAIT_S)
        raise Unavailable(text, _retry_after(response.headers.get("Retry-After")))

    async def close(self) -> None:
        """End the connection; the next `send` makes a new one."""
        if self._client is not None:
            await self._client.aclose()
            self._client = None


def _read_key(key_file: str) -> str:
    # Read for each request: a key that was changed on the disk is the key.
    try:
        return Path(key_file).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        remedy = "Put the agent's key there, readable by the agent's user alone."
        raise ConfigError(
            f"the key file {key_file} cannot be read: {error}", key="sync.key_file", remedy=remedy
        ) from None


def _problem(response: httpx.Response) -> _Problem:
    if len(response.content) > ANSWER_BYTES_MAX:
        return _Problem()
    try:
        return msgspec.json.decode(response.content, type=_Problem)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return _Problem()


def _retry_after(value: str | None) -> float | None:
    if value is None:
        return None
    try:
        wait_s = float(value) if value.strip().isdigit() else parsedate_to_datetime(value).timestamp() - now_us() / 1e6
    except (ValueError, TypeError):
        return None
    return min(max(wait_s, 0.0), RETRY_AFTER_S_MAX)
