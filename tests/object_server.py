"""A small object store in memory that speaks Amazon's and Google's XML protocol, with faults to order.

It is here for what a real server does not do when asked: answer 503 to the next request, drop a connection before or
after the work, forget to honour If-None-Match. A real server's view of the same contract is in tests/s3.
"""

import hashlib
import re
import threading
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, unquote, urlsplit

PAGE = 2  # names a listing answers with at once


class ObjectServer(ThreadingHTTPServer):
    """One bucket named 'bucket' on loopback. `faults` are taken by the coming requests, one each:

    an HTTP status to answer with, "drop" (hang up instead of working) or "lose" (hang up instead of answering).
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        self.objects: dict[str, bytes] = {}
        self.faults: deque[int | str] = deque()
        self.asked: list[str] = []  # METHOD and path of each request
        self.honours_create_only = True
        self.lock = threading.Lock()

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore clients that disconnect."""


class _Handler(BaseHTTPRequestHandler):
    server: ObjectServer
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer goes out in one piece; in two, the second waits 40 ms for the first one's receipt

    def do_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with self.server.lock:
            self.server.asked.append(f"{self.command} {self.path}")
            fault = self.server.faults.popleft() if self.server.faults else None
            if isinstance(fault, int):
                answer = _error(fault, "Ordered")
            elif fault == "drop":
                answer = None
            else:
                answer = self._work(body)
        if answer is None or fault == "lose":
            self.close_connection = True
            return
        status, headers, content = answer
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = do_PUT = do_DELETE = do_any

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""

    def _work(self, body: bytes) -> "_Answer":
        url = urlsplit(self.path)
        bucket, _, key = unquote(url.path).lstrip("/").partition("/")
        if bucket != "bucket":
            return _error(404, "NoSuchBucket")
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        if not key:
            return _list(self.server.objects, query)
        work = {"PUT": self._put, "GET": self._get, "HEAD": self._get, "DELETE": self._delete}[self.command]
        return work(key, body)

    def _put(self, key: str, body: bytes) -> "_Answer":
        create_only = self.headers.get("If-None-Match") == "*" or self.headers.get("x-goog-if-generation-match") == "0"
        if create_only and self.server.honours_create_only and key in self.server.objects:
            return _error(412, "PreconditionFailed")
        self.server.objects[key] = body
        return 200, _about(body), b""

    def _get(self, key: str, body: bytes) -> "_Answer":
        if key not in self.server.objects:
            return _error(404, "NoSuchKey")
        data = self.server.objects[key]
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if not wanted:
            return 200, _about(data), data
        start, stop = int(wanted[1]), min(int(wanted[2]) + 1, len(data))
        if start >= len(data):
            return _error(416, "InvalidRange")
        return 206, {**_about(data), "Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}, data[start:stop]

    def _delete(self, key: str, body: bytes) -> "_Answer":
        self.server.objects.pop(key, None)
        return 204, {}, b""


_Answer = tuple[int, dict[str, str], bytes]


def _about(data: bytes) -> dict[str, str]:
    return {
        "ETag": f'"{hashlib.md5(data).hexdigest()}"',
        "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT",
        "x-goog-generation": "1",
    }


def _error(status: int, code: str) -> _Answer:
    return status, {}, f"<Error><Code>{code}</Code></Error>".encode()


def _list(objects: dict[str, bytes], query: dict[str, str]) -> _Answer:
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
    entries: dict[str, str] = {}
    for key in sorted(objects):
        if key.startswith(prefix):
            head, found, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
            folder = prefix + head + found
            entries[folder if found else key] = (
                f"<CommonPrefixes><Prefix>{folder}</Prefix></CommonPrefixes>"
                if found
                else f"<Contents><Key>{key}</Key><Size>{len(objects[key])}</Size><ETag>x</ETag>"
                "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
            )
    left = [name for name in entries if name > max(query.get("continuation-token", ""), query.get("start-after", ""))]
    more = len(left) > PAGE
    token = f"<NextContinuationToken>{left[PAGE - 1]}</NextContinuationToken>" if more else ""
    inside = "".join(entries[name] for name in left[:PAGE])
    truncated = f"<IsTruncated>{str(more).lower()}</IsTruncated>"
    return 200, {}, f"<ListBucketResult>{truncated}{token}{inside}</ListBucketResult>".encode()
