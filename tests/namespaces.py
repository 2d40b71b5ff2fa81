"""Machines of a small network: namespaces with an address each, on one bridge. Needs root, and iproute2's `ip`."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

NETWORK = "10.213.7"
BRIDGE = "unic-bridge"


@dataclass
class Network:
    """The bridge, whose own address is this process's, and the machines on it."""

    machines: dict[str, str] = field(default_factory=dict)  # name -> address
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def address(self) -> str:
        """This process's address, that machines see."""
        return f"{NETWORK}.1"

    def add(self, name: str) -> str:
        """A machine of that name; its address."""
        number = len(self.machines) + 11
        self.machines[name] = f"{NETWORK}.{number}"
        _ip("netns", "add", f"unic-{name}")
        _ip("link", "add", f"unic-v{number}", "type", "veth", "peer", "name", "eth0", "netns", f"unic-{name}")
        _ip("link", "set", f"unic-v{number}", "master", BRIDGE, "up")
        _ip("-n", f"unic-{name}", "addr", "add", f"{NETWORK}.{number}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _ip("-n", f"unic-{name}", "link", "set", device, "up")
        return self.machines[name]

    def cut_off(self, name: str) -> None:
        """Take the machine's cable away; it goes on by itself."""
        self._cable(name, "down")

    def plug_in(self, name: str) -> None:
        """Give the cable back."""
        self._cable(name, "up")

    def _cable(self, name: str, state: str) -> None:
        _ip("link", "set", f"unic-v{self.machines[name].rpartition('.')[2]}", state)

    def start(self, name: str, words: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
        """Start a command on a machine; it ends with the network at the latest."""
        with open(log, "wb") as output:
            process = subprocess.Popen(
                ["ip", "netns", "exec", f"unic-{name}", *words],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.running.append(process)
        return process


@contextmanager
def network() -> Iterator[Network]:
    """A bridge without machines; at the end, whatever runs on them is ended, and all is removed."""
    made = Network()
    _ip("link", "add", BRIDGE, "type", "bridge")
    try:
        _ip("addr", "add", f"{made.address}/24", "dev", BRIDGE)
        _ip("link", "set", BRIDGE, "up")
        yield made
    finally:
        for process in made.running:
            process.terminate()
        for name in made.machines:
            there = subprocess.run(["ip", "netns", "pids", f"unic-{name}"], capture_output=True, text=True, check=False)
            for number in there.stdout.split():
                subprocess.run(["kill", "-9", number], check=False, capture_output=True)
            subprocess.run(["ip", "netns", "del", f"unic-{name}"], check=False)
        for process in made.running:
            process.wait()
        _ip("link", "del", BRIDGE)


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()}")
