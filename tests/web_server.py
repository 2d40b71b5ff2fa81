"""Python's own web server over a folder, with and without the range requests that real servers answer."""

import re
from http.server import SimpleHTTPRequestHandler
from pathlib import Path


class WithoutRanges(SimpleHTTPRequestHandler):
    """Python's web server, silent."""

    def log_message(self, format: str, *args: object) -> None:
        pass


class WithRanges(WithoutRanges):
    def do_GET(self) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        path = Path(self.translate_path(self.path))
        if not wanted or not path.is_file():
            super().do_GET()
            return
        data = path.read_bytes()
        start, stop = int(wanted[1]), min(int(wanted[2]) + 1, len(data))
        if start >= len(data):
            self.send_error(416)
            return
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        self.wfile.write(data[start:stop])
