"""A server on loopback, in a thread, whose every byte a test chooses."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class RawReply:
    """A response."""

    status: int = 200
    body: bytes = b"{}"
    headers: Mapping[str, str] = field(default_factory=dict)


MODELS = RawReply(body=b'{"data": [{"id": "m"}]}')


@contextmanager
def raw_server(generate: Callable[[bytes], RawReply], models: Callable[[], RawReply] = lambda: MODELS) -> Iterator[str]:
    """Yield the URL of a server that answers each POST with `generate` of its body, and each GET with `models`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            self._answer(models())

        def do_POST(self) -> None:
            self._answer(generate(self.rfile.read(int(self.headers.get("Content-Length", 0)))))

        def _answer(self, reply: RawReply) -> None:
            self.send_response(reply.status)
            for name, value in {"Content-Length": str(len(reply.body)), **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(reply.body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
