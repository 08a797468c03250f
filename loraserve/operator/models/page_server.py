"""`loraserve page`: a page to try models in a browser, for one person on one machine.

The gateway allows no page of another origin, so this server passes the page's calls on. It holds no key: the page sends
the one that was typed into it.
"""

import json
from http import HTTPStatus
from pathlib import Path

import urllib3

from loraserve.operator.access.local_page import LocalHandler, LocalServer
from loraserve.planning.cold_start import PATIENCE_SECONDS

_FILES = {
    "/": ("index.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
}
_PASSED_ON = {("GET", "/v1/models"), ("POST", "/v1/chat/completions")}
_SENT_ON = ("Authorization", "Content-Type")
_SENT_BACK = ("Content-Type", "X-Request-Id", "X-Loraserve-Model", "X-Loraserve-Fallback")


class PageServer(LocalServer):
    """`gateway` is its URL, without /v1. Raises PortTaken."""

    def __init__(self, gateway: str, port: int) -> None:
        self.gateway = gateway
        self.http = urllib3.PoolManager(
            maxsize=8, retries=False, timeout=urllib3.Timeout(connect=10, read=PATIENCE_SECONDS)
        )
        super().__init__(port, _Handler)


class _Handler(LocalHandler):
    server: PageServer  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        if self.is_ours():
            if self.path in _FILES:
                name, kind = _FILES[self.path]
                self.send_content(Path(__file__).with_name("page").joinpath(name).read_bytes(), kind)
            else:
                self._pass_on()

    def do_POST(self) -> None:
        if self.is_ours():
            self._pass_on()

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
