"""A real S3 server for the tests: Ceph's radosgw over one monitor and one memory-backed OSD, all on loopback.

`with radosgw() as gateway:` starts the three daemons in a temporary folder, on ports that are free, and stops them by
their process ids. `gateway.kill()` takes the gateway away as a crash does (what it acknowledged stays, in the OSD);
`gateway.restart()` brings it back at the same address. The programs are in Debian's radosgw, ceph-osd and ceph-mon.
"""

import base64
import contextlib
import hmac
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path

PROGRAMS = ("ceph", "ceph-authtool", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
PATIENCE = 120.0  # seconds for one step of the start

# cephx stays on: with `auth none` radosgw hangs at its start. Without tcp_nodelay small reads are several times slower.
# Paxos intervals: a start makes a dozen changes to the maps, and by default each of them waits a second.
CONFIGURATION = """
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{mon_port}/0]
public addr = 127.0.0.1
ms bind msgr1 = false
keyring = {folder}/keyring
run dir = {folder}
admin socket =
log file = {folder}/$name.log
mon data = {folder}/mon
osd data = {folder}/osd
osd objectstore = memstore
memstore device bytes = 4294967296
paxos propose interval = 0.02
paxos min wait = 0.01
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pgp num = 4
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon data avail crit = 1
rgw frontends = beast endpoint={host}:{gateway_port} tcp_nodelay=1
"""


class MissingPackagesError(RuntimeError):
    """Ceph's programs are not installed; the message names the packages."""


class Gateway:
    """A radosgw on loopback: where it listens and how to sign requests to it. `radosgw()` starts and stops it."""

    def __init__(self, folder: Path, host: str = "127.0.0.1") -> None:
        mon_port, gateway_port = free_ports(2)
        self.endpoint = f"http://{host}:{gateway_port}"
        self.access_key = "unic-cache-test"
        self.secret_key = secrets.token_hex(16)
        self._folder = folder
        self._mon = f"[v2:127.0.0.1:{mon_port}/0]"
        self._fsid = str(uuid.uuid4())
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        configuration = CONFIGURATION.format(
            fsid=self._fsid, folder=folder, mon_port=mon_port, host=host, gateway_port=gateway_port
        )
        (folder / "ceph.conf").write_text(configuration)

    def environment(self) -> dict[str, str]:
        """The variables by which an S3 client finds this gateway."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
        }

    def make_bucket(self, name: str) -> None:
        """PUT /name, signed by Amazon's version 2 rule: the HMAC-SHA1 of method, date and resource."""
        date = formatdate(usegmt=True)
        digest = hmac.digest(self.secret_key.encode(), f"PUT\n\n\n{date}\n/{name}".encode(), "sha1")
        headers = {"Date": date, "Authorization": f"AWS {self.access_key}:{base64.b64encode(digest).decode()}"}
        request = urllib.request.Request(f"{self.endpoint}/{name}", method="PUT", headers=headers)
        with urllib.request.urlopen(request, timeout=PATIENCE):
            pass

    def kill(self) -> None:
        """SIGKILL the gateway; monitor and OSD go on."""
        daemon = self._daemons.pop("radosgw")
        daemon.kill()
        daemon.wait()

    def restart(self) -> None:
        """Start the gateway at the same address; returns when it answers."""
        self._start("radosgw", "-n", "client.admin")
        self._wait(self._answers, f"radosgw did not answer at {self.endpoint}")

    def start(self) -> None:
        """Monitor, then OSD, then gateway, then the user."""
        self._start_monitor()
        self._start_osd()
        self.restart()
        user = ("--uid=test", "--display-name=test")
        keys = (f"--access-key={self.access_key}", f"--secret-key={self.secret_key}")
        self._call("radosgw-admin", "user", "create", *user, *keys)

    def stop(self) -> None:
        """Kill what was started, gateway first: asked politely the OSD takes seconds, and its store is memory."""
        for daemon in reversed(self._daemons.values()):
            daemon.kill()
            daemon.wait()
        self._daemons.clear()

    def _start_monitor(self) -> None:
        keyring, monmap = self._folder / "keyring", self._folder / "monmap"
        everything = ("--cap", "mon", "allow *")
        self._call("ceph-authtool", "--create-keyring", keyring, "--gen-key", "-n", "mon.", *everything)
        self._call("ceph-authtool", keyring, "--gen-key", "-n", "client.admin", *everything, "--cap", "osd", "allow *")
        self._call("monmaptool", "--create", "--fsid", self._fsid, "--addv", "a", self._mon, monmap)
        (self._folder / "mon").mkdir()
        self._call("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", keyring)
        self._start("ceph-mon", "-i", "a")

    def _start_osd(self) -> None:
        name = str(uuid.uuid4())
        number = self._call("ceph", "osd", "new", name).strip()
        key = self._call("ceph", "auth", "get-or-create", f"osd.{number}", "mon", "allow *", "osd", "allow *")
        with open(self._folder / "keyring", "a") as keyring:
            keyring.write(key)
        (self._folder / "osd").mkdir()
        self._call("ceph-osd", "--mkfs", "-i", number, "--osd-uuid", name)
        self._start("ceph-osd", "-i", number)

    def _call(self, *command: str | Path) -> str:
        done = subprocess.run(
            command, env=self._environment(), capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(map(str, command))} exited with {done.returncode}: {done.stderr[-2000:]}")
        return done.stdout

    def _start(self, program: str, *arguments: str) -> None:
        with open(self._folder / f"{program}.out", "ab") as output:
            self._daemons[program] = subprocess.Popen(
                [program, "-f", *arguments],
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "CEPH_CONF": str(self._folder / "ceph.conf")}

    def _wait(self, ready: Callable[[], bool], complaint: str) -> None:
        end = time.monotonic() + PATIENCE
        while not ready():
            for program, daemon in self._daemons.items():
                if daemon.poll() is not None:
                    output = (self._folder / f"{program}.out").read_text(errors="replace")
                    raise RuntimeError(f"{program} exited with {daemon.returncode}: {output[-2000:]}")
            if time.monotonic() > end:
                raise TimeoutError(f"{complaint} within {PATIENCE:.0f} s")
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(self.endpoint, timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False


@contextlib.contextmanager
def radosgw(host: str = "127.0.0.1") -> Iterator[Gateway]:
    """A fresh gateway at `host` with a user and no bucket; all it kept is gone afterwards.

    MissingPackagesError without Ceph.
    """
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        raise MissingPackagesError(
            f"{', '.join(missing)} not found; run `apt-get install --no-install-recommends radosgw ceph-osd ceph-mon`"
        )
    with tempfile.TemporaryDirectory(prefix="radosgw-") as folder:
        gateway = Gateway(Path(folder), host)
        try:
            gateway.start()
            yield gateway
        finally:
            gateway.stop()


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, below the range of outgoing connections so that none takes one during an outage."""
    found: list[int] = []
    while len(found) < count:
        port = 20000 + secrets.randbelow(12000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in found:
                found.append(port)
    return found
