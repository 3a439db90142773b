"""A web server for files, in a thread, that can be made to fail."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Server:
    """Serves the files of a folder at ``url``.

    Attributes:
        fetched: names of the files that were asked for, in order; not those of which only the size was.
        cut: names of files that end after their first half.
        claimed: sizes by name, which a question for the size gets in place of the real ones.
        delay: seconds before a file is sent.
        sized: whether the server states sizes.
    """

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.url = folder, f"http://127.0.0.1:{port}"
        self.fetched: list[str] = []
        self.requests = 0
        self.cut: set[str] = set()
        self.claimed: dict[str, int] = {}
        self.delay = 0.0
        self.sized = True


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """A `Server` of a folder, until the block ends."""

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(folder))

        def do_HEAD(self) -> None:
            server.requests += 1
            if (size := server.claimed.get(self.path[1:])) is None:
                super().do_HEAD()
            else:
                self.send_response(200)
                self.send_header("Content-Length", str(size))
                self.end_headers()

        def do_GET(self) -> None:
            server.requests += 1
            server.fetched.append(self.path[1:])
            time.sleep(server.delay)
            if self.path[1:] in server.cut:
                content = (folder / self.path[1:]).read_bytes()
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) // 2])
            else:
                with suppress(BrokenPipeError):  # a client that asks for the size alone
                    super().do_GET()

        def send_header(self, keyword: str, value: str) -> None:
            if server.sized or keyword != "Content-Length":
                super().send_header(keyword, value)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        server = Server(folder, running.server_port)
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        running.shutdown()
