"""A headless Chromium, and the pages that it opens. Tests here run by `pytest -m web tests/web` only."""

import html
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

SCHEMES = {"dark": 0, "light": 1}  # Chromium's numbers
WIDTHS = (360, 1400)  # pixels
PROBE = Path(__file__).parent / "probe.js"


@dataclass(frozen=True)
class Seen:
    """What the browser shows of a page in one colour scheme: by width, and what it logged."""

    widths: dict[int, dict[str, Any]]
    console: list[str]


@pytest.fixture(scope="session")
def look(tmp_path_factory):
    """A function (page, scheme) -> Seen. The page is framed at each width, and its boxes and colours are measured."""
    found = shutil.which("chromium")
    assert found, "no chromium on PATH; `make test-web` installs Debian's"
    made = {}

    def open_page(page: Path, scheme: str) -> Seen:
        if (page, scheme) in made:
            return made[page, scheme]
        folder = tmp_path_factory.mktemp("browser")
        frames = "".join(
            f'<iframe width="{width}" height="900" srcdoc="{html.escape(page.read_text())}"></iframe>'
            for width in WIDTHS
        )
        probe = folder / "probe.html"
        probe.write_text(
            f'<!DOCTYPE html><meta charset="utf-8"><link rel="icon" href="data:,">{frames}<pre id="seen"></pre>'
            f"<script>{PROBE.read_text()}</script>"
        )
        flags = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--host-resolver-rules=MAP * ~NOTFOUND",  # whatever wants the network fails, and says so
            f"--user-data-dir={folder / 'profile'}",
            "--window-size=1600,1200",
            f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}",
            "--enable-logging=stderr",
            "--dump-dom",
        ]
        done = subprocess.run([found, *flags, probe.as_uri()], capture_output=True, text=True, timeout=120, check=True)
        (shown,) = re.findall(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)
        widths = {one["width"]: one for one in json.loads(html.unescape(shown))}
        console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        made[page, scheme] = Seen(widths, console)
        return made[page, scheme]

    return open_page
