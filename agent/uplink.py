"""The sink that is a Linewarden collector: one POST a request, over one kept-alive connection.

Every answer is sorted by what sync has to do next: go on (Ack), send something else first (Ack with a Refusal), send less at
once (TooLarge), wait (Unavailable). An answer that cannot be read is none: the batches are sent again, which changes nothing.
"""

import json
import ssl
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Protocol

import msgspec
import zstandard
from msgspec import Struct

from agent.component import Ack, ConfigError, NotConnected, Refusal, TooLarge, Unavailable, now_us
from agent.wire.signature import HEAD as HEAD_HEADER
from agent.wire.signature import HEADER as SIGNATURE_HEADER

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
EXCHANGE_S_MAX = 30.0
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """Whom to trust, and who to be, on a TLS connection. TLS 1.3 and later."""

    ca_file: str | None = None
    """The authority; nobody else is trusted."""
    system: bool = False
    """Trust whom the operating system trusts, as well."""
    certificate_file: str | None = None
    """What a proxy in front of the collector may ask for."""
    key_file: str | None = None
    unknown: bool = False
    """Trust anybody, to ask what is believed by other means. Nothing secret may go over it."""

    def context(self) -> ssl.SSLContext:
        """Raises ConfigError."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        if self.unknown:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            return context
        # An authority that is pinned is the end of the chain, also where it did not sign itself.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        if self.ca_file is None and not self.system:
            remedy = "Enrol the agent, which brings it along, or give the PEM file; system_ca = true trusts whom this computer trusts."
            raise ConfigError("there is no authority to know the collector by", key="sync.ca_file", remedy=remedy)
        try:
            if self.ca_file is not None:
                context.load_verify_locations(self.ca_file)
        except (OSError, ssl.SSLError) as error:
            remedy = "Give the PEM file of the authority that signed the collector's certificate."
            raise ConfigError(
                f"{self.ca_file} is no certificate file: {error}", key="sync.ca_file", remedy=remedy
            ) from None
        if self.system:
            context.load_default_certs()
        if self.certificate_file is not None:
            try:
                context.load_cert_chain(self.certificate_file, self.key_file)
            except (OSError, ssl.SSLError) as error:
                text = f"{self.certificate_file} and its key cannot be used: {error}"
                remedy = "Give a certificate in PEM and the key that belongs to it."
                raise ConfigError(text, key="sync.certificate_file", remedy=remedy) from None
        return context


class Signer(Protocol):
    """Proves who sends."""

    def sign(self, agent_id: str, batches: Sequence[bytes], body: bytes, status: str, sent_us: int) -> str | None:
        """The header; None where the agent is not enrolled. Raises ConfigError."""
        ...

    def sign_head(self, agent_id: str, body: bytes, status: str, sent_us: int) -> str | None:
        """Return the header that signs the request's head; None where the agent is not enrolled. Raises ConfigError."""
        ...


async def exchange(method: str, url: str, tls: Tls, body: bytes | None = None) -> tuple[int, bytes]:
    """One request that is none of batches: status and content. Raises NotConnected, ConfigError."""
    context: ssl.SSLContext | bool = tls.context() if url.startswith("https") else False
    headers = {"Content-Type": "application/json"} if body is not None else {}
    try:
        async with httpx.AsyncClient(verify=context, timeout=EXCHANGE_S_MAX, trust_env=False) as client:
            response = await client.request(method, url, content=body, headers=headers)
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ssl.SSLError) as error:
        raise NotConnected(f"{url}: {str(error) or type(error).__name__}") from None
    if len(response.content) > ANSWER_BYTES_MAX:
        raise NotConnected(f"{url} answered with {len(response.content)} bytes, which nothing asked for")
    return response.status_code, response.content


class HttpSink:
    """See the module. Cold until `send`; `close` ends the connection."""

    def __init__(
        self,
        *,
        url: str,
        key_file: str | None = None,
        tls: Callable[[], Tls] = Tls,
        timeout_s: float,
        version: str,
        agent_id: str = "",
        signer: Signer | None = None,
    ) -> None:
        self._url = f"{url.rstrip('/')}/v1/batches"
        self._key_file = key_file
        self._tls = tls
        self._agent_id = agent_id
        self._signer = signer
        self._timeout_s = timeout_s
        self._version = version
        self._client: httpx.AsyncClient | None = None
        self._proven = False
        self._compressor = zstandard.ZstdCompressor(level=1)

    async def send(self, batches: Sequence[bytes], status: Mapping[str, Any]) -> Ack:
        """See `Sink`. Raises ConfigError where the key or the certificate file cannot be read."""
        client = self._client or self._connect()
        body = b"".join(batches)
        sent_us, said = now_us(), json.dumps(status, separators=(",", ":"))  # a header is ASCII
        headers = {
            "Content-Type": CONTENT_TYPE,
            "Linewarden-Version": self._version,
            "Linewarden-Agent-Time": str(sent_us),
            "Linewarden-Status": said,
        }
        if len(batches) >= COMPRESS_BATCHES_MIN:
            body = self._compressor.compress(body)
            headers["Content-Encoding"] = "zstd"
        signature = self._signer.sign(self._agent_id, batches, body, said, sent_us) if self._signer else None
        head = self._signer.sign_head(self._agent_id, body, said, sent_us) if self._signer else None
        if signature is not None and head is not None:
            headers |= {SIGNATURE_HEADER: signature, HEAD_HEADER: head}
        elif self._key_file:
            headers["Authorization"] = f"Bearer {_read_key(self._key_file)}"
        self._proven = signature is not None
        try:
            response = await client.post(self._url, content=body, headers=headers)
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ssl.SSLError) as error:
            # With the next try the certificate file is read again: it may have been the trouble.
            await self.close()
            raise Unavailable(f"{self._url}: {str(error) or type(error).__name__}") from None
        return self._sort(response)

    def _connect(self) -> httpx.AsyncClient:
        verify: ssl.SSLContext | bool = self._tls().context() if self._url.startswith("https") else False
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
            # Signed, the collector's own text says what to do. Nothing is lost meanwhile: it waits in the buffer.
            raise Unavailable(
                text if self._proven else f"{text}. {self._unproven()}", REFUSED_KEY_WAIT_S, kind="refused"
            )
        raise Unavailable(text, _retry_after(response.headers.get("Retry-After")), kind="busy")

    def _unproven(self) -> str:
        if self._key_file:
            return "Check the key in sync.key_file"
        return "This agent is not enrolled: linewarden-agent enroll --collector URL --token TOKEN"

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
