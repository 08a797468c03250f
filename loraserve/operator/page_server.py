"""`loraserve page`: a page to try models in a browser, for one person on one machine.

The gateway allows no page of another origin, so this server passes the page's calls on. It holds no key: the page sends
the one that was typed into it.
"""

import json
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import urllib3

from loraserve.errors import LoraserveError
from loraserve.planning.cold_start import PATIENCE_SECONDS

_FILES = {
    "/": ("index.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
}
_PASSED_ON = {("GET", "/v1/models"), ("POST", "/v1/chat/completions")}
_SENT_ON = ("Authorization", "Content-Type")
_SENT_BACK = ("Content-Type", "X-Request-Id", "X-Loraserve-Model", "X-Loraserve-Fallback")
_PROTECTION = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class PortTaken(LoraserveError):
    """Another process listens there."""


class PageServer(ThreadingHTTPServer):
    """Listens on this machine only. `gateway` is its URL, without /v1; port 0 takes a free one. Raises PortTaken."""

    daemon_threads = True

    def __init__(self, gateway: str, port: int) -> None:
        self.gateway = gateway
        self.http = urllib3.PoolManager(
            maxsize=8, retries=False, timeout=urllib3.Timeout(connect=10, read=PATIENCE_SECONDS)
        )
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except OSError as error:
            raise PortTaken(f"cannot listen on port {port} ({error.strerror}); name another --port") from None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"


class _Handler(BaseHTTPRequestHandler):
    server: PageServer  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        if self._is_ours():
            if self.path in _FILES:
                self._send_file(*_FILES[self.path])
            else:
                self._pass_on()

    def do_POST(self) -> None:
        if self._is_ours():
            self._pass_on()

    def _is_ours(self) -> bool:
        """A page whose name was made to point at this machine calls it by that name."""
        port = self.server.server_port
        if self.headers.get("Host") in (f"127.0.0.1:{port}", f"localhost:{port}"):
            return True
        self.send_error(HTTPStatus.MISDIRECTED_REQUEST)
        return False

    def _send_file(self, name: str, kind: str) -> None:
        content = Path(__file__).with_name("page").joinpath(name).read_bytes()
        self.send_response(HTTPStatus.OK)
        for header, value in {"Content-Type": f"{kind}; charset=utf-8", **_PROTECTION}.items():
            self.send_header(header, value)
        self.end_headers()
        self.wfile.write(content)

    def _pass_on(self) -> None:
        if (self.command, self.path) not in _PASSED_ON:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name: self.headers[name] for name in _SENT_ON if name in self.headers}
        url = f"{self.server.gateway}{self.path}"
        try:
            answer = self.server.http.request(self.command, url, body=body, headers=headers, preload_content=False)
        except urllib3.exceptions.HTTPError as error:
            self._refuse(f"The gateway cannot be reached ({error}): start `loraserve page` again.")
            return
        try:
            self.send_response(answer.status)
            for name in _SENT_BACK:
                if name in answer.headers:
                    self.send_header(name, answer.headers[name])
            self.end_headers()
            for piece in answer.stream():
                self.wfile.write(piece)
        except (urllib3.exceptions.HTTPError, ConnectionError):
            pass  # either side has gone; the page says so
        finally:
            answer.close()  # a stopped answer is not generated any further

    def _refuse(self, message: str) -> None:
        self.send_response(HTTPStatus.BAD_GATEWAY)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps({"error": {"message": message}}).encode())

    def log_message(self, format: str, *args: object) -> None:
        """A person reads this terminal."""
