"""Weights by timm's name: the local cache first, then a short knock at the door, never a long wait."""

import socket
import threading
import time

import pytest
import safetensors.torch
import timm
import torch
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError

from unic_cache.errors import TeacherError
from unic_cache.teachers import hub
from unic_cache.teachers.catalog import resolve
from unic_cache.teachers.model import load_teacher


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder, no proxy, and a hub whose port is closed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setattr("urllib.request.getproxies", dict)
    return tmp_path


def put(cache, repo: str, state: dict[str, torch.Tensor]) -> None:
    folder = cache / f"models--{repo.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("1234")
    (folder / "snapshots" / "1234").mkdir(parents=True)
    safetensors.torch.save_file(state, folder / "snapshots" / "1234" / "model.safetensors")


def test_cached_weights_are_used_without_asking_anybody(cache, monkeypatch):
    monkeypatch.setattr(hub, "_reachable", lambda url: pytest.fail("asked the network"))
    own = timm.create_model("test_vit.r160_in1k").eval()
    put(cache, "timm/test_vit.r160_in1k", own.state_dict())
    teacher = load_teacher(resolve("timm:test_vit"))
    own.reset_classifier(0)
    loaded = teacher.model.state_dict()
    assert loaded.keys() == own.state_dict().keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in own.state_dict().items())


def test_cached_weights_in_their_authors_layout_go_through_timms_converter(cache):
    own = timm.create_model("test_vit.r160_in1k")
    put(cache, "timm/test_vit.r160_in1k", {**own.state_dict(), "mask_token": torch.zeros(1, 64)})
    teacher = load_teacher(resolve("timm:test_vit"))
    assert torch.equal(teacher.model.pos_embed, own.pos_embed)


def test_without_internet_it_fails_at_once_and_says_what_to_do(cache):
    begun = time.monotonic()
    with pytest.raises(TeacherError) as caught:
        load_teacher(resolve("dino"))
    assert time.monotonic() - begun < 5
    message = str(caught.value)
    assert f"its weights (timm/vit_base_patch16_224.dino) are not in {cache}" in message
    assert "does not answer within 3 s" in message
    assert "--weights dino=FILE" in message
    assert "github.com/facebookresearch/dino" in message
    assert "copy that cache folder here" in message


def test_offline_mode_is_honoured_without_a_connection(cache, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "_reachable", lambda url: pytest.fail("asked the network"))
    with pytest.raises(TeacherError, match=r"teacher deit3: .*HF_HUB_OFFLINE is set"):
        load_teacher(resolve("deit3"))


def test_a_name_server_that_never_answers_is_not_waited_for(cache, monkeypatch):
    release = threading.Event()

    def never(*args, **kwargs):
        release.wait()
        raise OSError

    monkeypatch.setattr(hub, "ANSWER_WITHIN", 0.05)
    monkeypatch.setattr("socket.create_connection", never)
    begun = time.monotonic()
    assert not hub._reachable("http://127.0.0.1:1")
    assert time.monotonic() - begun < 5
    release.set()


def test_behind_a_proxy_the_client_itself_is_asked(cache, monkeypatch):
    monkeypatch.setattr("urllib.request.getproxies", lambda: {"https": "http://127.0.0.1:1"})
    assert hub._reachable(constants.ENDPOINT)


def test_a_listening_hub_is_reachable_and_a_closed_port_is_not(cache):
    assert not hub._reachable(constants.ENDPOINT)
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert hub._reachable(f"http://127.0.0.1:{server.getsockname()[1]}")


def test_a_failed_download_becomes_one_error(cache, monkeypatch):
    asked = []

    def fail(repo, file, revision):
        asked.append(file)
        raise LocalEntryNotFoundError("cannot find the requested files in the cache")

    monkeypatch.setattr(hub, "_reachable", lambda url: True)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    with pytest.raises(
        TeacherError, match=r"timm:test_vit.*LocalEntryNotFoundError: cannot find .*--weights timm:test_vit"
    ):
        load_teacher(resolve("timm:test_vit"))
    assert asked == ["model.safetensors"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:legacy_xception@304", r"the hub has no weights named legacy_xception\.tf_in1k; timm knows them at http"),
        (
            "timm:gmlp_ti16_224",
            r"the hub has no weights named gmlp_ti16_224\S*; pass a file with --weights timm:gmlp_ti16",
        ),
    ],
)
def test_models_that_the_hub_lacks_ask_for_a_file(cache, name, message):
    with pytest.raises(TeacherError, match=message):
        load_teacher(resolve(name))
