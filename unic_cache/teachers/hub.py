"""Weights by timm's name: from the local cache, else from the network if it answers, and never a long wait.

timm stores weights in Hugging Face's cache folder. A file in it is used without any request. Other files are fetched
only if the hub answers within seconds; otherwise the error says what to do instead.
"""

import contextlib
import socket
import threading
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub
import timm
from huggingface_hub import constants
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from unic_cache.errors import TeacherError
from unic_cache.teachers.spec import TeacherSpec

ANSWER_WITHIN = 3.0  # seconds
FILES = ("model.safetensors", "pytorch_model.bin")


def hub_file(spec: TeacherSpec) -> Path:
    """The local file with timm's weights for `spec.arch`, fetched if it is not in the cache.

    TeacherError if timm has no such weights, or they can neither be found nor fetched.
    """
    config = timm.get_pretrained_cfg(spec.arch)
    if config is None or not config.hf_hub_id:
        elsewhere = f"; timm knows them at {config.url}" if config is not None and config.url else ""
        raise TeacherError(
            f"teacher {spec.name}: the hub has no weights named {spec.arch}{elsewhere}; "
            f"pass a file with --weights {spec.name}=FILE"
        )
    repo, _, revision = config.hf_hub_id.partition("@")
    found = repo_file(repo, (config.hf_hub_filename,) if config.hf_hub_filename else FILES, revision or None)
    if isinstance(found, Path):
        return found
    raise TeacherError(_instead(spec, repo, found))


def repo_file(repo: str, files: Sequence[str], revision: str | None = None) -> Path | str:
    """The local path of the first of `files` that a repository has, fetched if need be; or why there is none."""
    cached = {file: huggingface_hub.try_to_load_from_cache(repo, file, revision=revision) for file in files}
    found = next((path for path in cached.values() if isinstance(path, str)), None)
    if found is not None:
        return Path(found)
    unknown = [file for file, path in cached.items() if path is None]  # the cache knows that the others do not exist
    why_not = _unreachable() if unknown else None
    return (
        why_not or _downloaded(repo, unknown, revision) or f"none of the expected files is there ({', '.join(files)})"
    )


def _downloaded(repo: str, files: Sequence[str], revision: str | None) -> Path | str | None:
    """The first of `files` that the hub has, or why it cannot be had; None if it has none."""
    for file in files:
        try:
            return Path(huggingface_hub.hf_hub_download(repo, file, revision=revision))
        except Exception as error:  # the client raises its own, its HTTP library's and the system's errors
            if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
                continue
            return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
    return None


def _instead(spec: TeacherSpec, repo: str, reason: str) -> str:
    return (
        f"teacher {spec.name}: its weights ({repo}) are not in {constants.HF_HUB_CACHE} and cannot be fetched: "
        f"{reason}. Pass a file with --weights {spec.name}=FILE (published: {spec.published}), or run once on a "
        "machine with internet and copy that cache folder here"
    )


def _unreachable() -> str | None:
    """Why the hub cannot be asked; None if it can."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    answers = _reachable(constants.ENDPOINT)
    return None if answers else f"{constants.ENDPOINT} does not answer within {ANSWER_WITHIN:.0f} s"


def _reachable(url: str) -> bool:
    """Whether the host accepts a connection in time; assumed behind a proxy.

    Name lookup has no timeout of its own, hence the thread.
    """
    if urllib.request.getproxies():
        return True
    parts = urllib.parse.urlsplit(url)
    answered = threading.Event()

    def knock() -> None:
        with contextlib.suppress(OSError):
            socket.create_connection((parts.hostname or "", parts.port or 443), timeout=ANSWER_WITHIN).close()
            answered.set()

    thread = threading.Thread(target=knock, daemon=True)
    thread.start()
    thread.join(ANSWER_WITHIN)
    return answered.is_set()
