"""Pages for one person on one machine: a server that answers nobody else."""

from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from loraserve.errors import LoraserveError


class PortTaken(LoraserveError):
    """Another process listens there."""


class LocalServer(ThreadingHTTPServer):
    """Listens on this machine only; port 0 takes a free one. Raises PortTaken."""

    daemon_threads = True

    def __init__(self, port: int, handler: "type[LocalHandler]") -> None:
        try:
            super().__init__(("127.0.0.1", port), handler)
        except OSError as error:
            raise PortTaken(f"cannot listen on port {port} ({error.strerror}); name another --port") from None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"


class LocalHandler(BaseHTTPRequestHandler):
    server: LocalServer  # pyright: ignore[reportIncompatibleVariableOverride]

    protection: Mapping[str, str] = {
        "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-store",
    }

    def is_ours(self) -> bool:
        """A page whose name was made to point at this machine calls it by that name."""
        port = self.server.server_port
        if self.headers.get("Host") in (f"127.0.0.1:{port}", f"localhost:{port}"):
            return True
        self.send_error(HTTPStatus.MISDIRECTED_REQUEST)
        return False

    def send_content(self, content: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        for header, value in {"Content-Type": f"{kind}; charset=utf-8", **self.protection}.items():
            self.send_header(header, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """A person reads this terminal."""
