"""Several machines on one: network namespaces that a bridge joins, each with its own loopback and address. Needs root.

`with machines(2) as found:` makes them and removes them again; `found[0].start(command)` starts a process in the first.
A process there finds the others by address, and nobody by this machine's name.
"""

import contextlib
import os
import secrets
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

DEVICE = "eth0"  # in each namespace


@dataclass(frozen=True)
class Machine:
    """A namespace, its end of the cable, and its address."""

    name: str
    cable: str
    address: str

    def start(self, command: Sequence[str], environment: Mapping[str, str], **options: object) -> subprocess.Popen[str]:
        """Start a process there; its gloo connects through the cable."""
        own = {**os.environ, "GLOO_SOCKET_IFNAME": DEVICE, **environment}
        return subprocess.Popen(["ip", "netns", "exec", self.name, *command], env=own, text=True, **options)  # type: ignore[call-overload]

    def cut_off(self) -> None:
        """Pull the cable."""
        _ip("link", "set", self.cable, "down")

    def connect(self) -> None:
        """Plug it in again."""
        _ip("link", "set", self.cable, "up")


@contextlib.contextmanager
def machines(count: int) -> Iterator[list[Machine]]:
    """So many machines, which reach each other and nothing else."""
    tag, net = secrets.token_hex(3), f"10.{secrets.randbelow(200) + 20}.{secrets.randbelow(250)}"
    bridge, found = f"br{tag}", [Machine(f"m{tag}{i}", f"c{tag}{i}", f"{net}.{i + 1}") for i in range(count)]
    try:
        _ip("link", "add", bridge, "type", "bridge")
        _ip("link", "set", bridge, "up")
        for one in found:
            _ip("netns", "add", one.name)
            _ip("link", "add", one.cable, "type", "veth", "peer", "name", DEVICE, "netns", one.name)
            _ip("link", "set", one.cable, "master", bridge, "up")
            _ip("-n", one.name, "address", "add", f"{one.address}/24", "dev", DEVICE)
            for device in ("lo", DEVICE):
                _ip("-n", one.name, "link", "set", device, "up")
        yield found
    finally:
        for one in found:
            _ip("netns", "delete", one.name, check=False)
        _ip("link", "delete", bridge, check=False)


def _ip(*words: str, check: bool = True) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()}")
