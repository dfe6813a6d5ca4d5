"""A program of the station that posts events, with nothing but the standard library: over TCP, or a unix socket."""

import contextlib
import http.client
import json
import socket
from pathlib import Path
from typing import Any, NamedTuple, Self


class Answer(NamedTuple):
    """What was answered."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The body, read."""
        return json.loads(self.body)

    @property
    def paths(self) -> list[str]:
        """The paths that a refusal names."""
        return [each["path"] for each in self.json()["errors"]]


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.sock.settimeout(self.timeout)
            self.sock.connect(self._path)
        except OSError:
            self.sock.close()
            raise


class Poster:
    """Posts over one connection, which it makes anew where it broke. OSError where nobody answers."""

    def __init__(self, where: int | Path, *, timeout_s: float = 30) -> None:
        if isinstance(where, Path):
            self._connection: http.client.HTTPConnection = _UnixConnection(where, timeout_s)
        else:
            self._connection = http.client.HTTPConnection("127.0.0.1", where, timeout=timeout_s)

    def post(self, body: Any, *, path: str = "/v1/events", method: str = "POST", **headers: str) -> Answer:
        """A body as it is, where it is bytes, or as JSON. `Content_Type="…"` for a header."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {
            "Content-Type": "application/json",
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        try:
            self._connection.request(method, path, data, sent)
            answer = self._connection.getresponse()
            return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise OSError(f"no answer: {error!r}") from error

    def close(self) -> None:
        """End the connection."""
        with contextlib.suppress(OSError):
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
