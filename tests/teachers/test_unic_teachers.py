"""The four UNIC teachers: checkpoints in their authors' layouts, against a plain transformer written out here.

The networks have the true ViT-B/16 shapes; weights are random. The oracle reads the authors' keys itself, so that the
renaming, the options given to timm and the token rules are all tested at once.
"""

import argparse
import re

import pytest
import torch
from torch.nn.functional import conv2d, gelu, interpolate, layer_norm, linear

from unic_cache.errors import TeacherError
from unic_cache.teachers.catalog import resolve
from unic_cache.teachers.model import load_teacher
from unic_cache.token_kinds import TokenKind

WIDTH, DEPTH, HEADS, PATCH = 768, 12, 12, 16


def authors_state(positions: int, *, scale: bool = False, norm: str = "norm", head: bool = False):
    """Random weights under the authors' names."""
    noise = torch.randn(4 * WIDTH * WIDTH * 2, generator=torch.Generator().manual_seed(0))
    state = {}

    def put(name: str, *shape: int, around: float = 0.0, spread: float = 0.03) -> None:
        count = torch.Size(shape).numel()
        start = 7919 * len(state) % (len(noise) - count)
        state[name] = (around + spread * noise[start : start + count]).reshape(shape)

    put("cls_token", 1, 1, WIDTH)
    put("pos_embed", 1, positions, WIDTH, spread=0.5)
    put("patch_embed.proj.weight", WIDTH, 3, PATCH, PATCH)
    put("patch_embed.proj.bias", WIDTH)
    for block in range(DEPTH):
        for part, (out, into) in {
            "attn.qkv": (3 * WIDTH, WIDTH),
            "attn.proj": (WIDTH, WIDTH),
            "mlp.fc1": (4 * WIDTH, WIDTH),
            "mlp.fc2": (WIDTH, 4 * WIDTH),
        }.items():
            put(f"blocks.{block}.{part}.weight", out, into)
            put(f"blocks.{block}.{part}.bias", out)
        for part in ("norm1", "norm2"):
            put(f"blocks.{block}.{part}.weight", WIDTH, around=1.0)
            put(f"blocks.{block}.{part}.bias", WIDTH)
        if scale:
            put(f"blocks.{block}.gamma_1", WIDTH, around=0.5)
            put(f"blocks.{block}.gamma_2", WIDTH, around=0.7)
    put(f"{norm}.weight", WIDTH, around=1.0, spread=0.2)
    put(f"{norm}.bias", WIDTH)
    if head:
        put("head.weight", 1000, WIDTH)
        put("head.bias", 1000)
    return state


def naive_blocks(state, images, position):
    """The last block's raw output (B, 1 + T, D), one plain operation after another."""

    def dense(x, name):
        return linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    patches = conv2d(images, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=PATCH)
    x = patches.flatten(2).transpose(1, 2)
    cls = state["cls_token"].expand(len(x), -1, -1)
    if position.shape[1] == x.shape[1]:
        x = torch.cat([cls, x + position], dim=1)
    else:
        x = torch.cat([cls, x], dim=1) + position
    for block in range(DEPTH):
        name = f"blocks.{block}"
        qkv = dense(naive_norm(state, x, f"{name}.norm1"), f"{name}.attn.qkv")
        q, k, v = (part.unflatten(2, (HEADS, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=2))
        mixed = (q @ k.transpose(2, 3) / (WIDTH // HEADS) ** 0.5).softmax(dim=-1) @ v
        step = dense(mixed.transpose(1, 2).flatten(2), f"{name}.attn.proj")
        x = x + step * state.get(f"{name}.gamma_1", 1)
        step = dense(gelu(dense(naive_norm(state, x, f"{name}.norm2"), f"{name}.mlp.fc1")), f"{name}.mlp.fc2")
        x = x + step * state.get(f"{name}.gamma_2", 1)
    return x


def naive_norm(state, x, name):
    return layer_norm(x, (WIDTH,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)


def views(size: int, count: int = 1) -> torch.Tensor:
    draws = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=draws)


def normalised(views_BHWC, spec):
    images = views_BHWC.permute(0, 3, 1, 2) / 255
    return (images - torch.tensor(spec.mean).view(3, 1, 1)) / torch.tensor(spec.std).view(3, 1, 1)


CASES = {
    "dino": (197, {}, lambda state: state),
    "ibot": (197, {}, lambda state: {"state_dict": state}),
    "deit3": (196, {"scale": True, "head": True}, lambda state: {"model": state}),
    "dbot-ft": (
        197,
        {"norm": "fc_norm", "head": True},
        lambda state: {"model": state, "args": argparse.Namespace(lr=1e-3, model="vit"), "epoch": 99},
    ),
}
KEYS = {"dino": 150, "ibot": 150, "deit3": 176, "dbot-ft": 152}


@pytest.fixture(autouse=True)
def plain_attention(monkeypatch):
    """Fused attention rounds otherwise: 9e-6 at most, where tokens have a standard deviation of 3.4."""
    monkeypatch.setattr("timm.layers.config._USE_FUSED_ATTN", 0)


@pytest.fixture(scope="module", params=["dino", pytest.param("ibot", marks=pytest.mark.slow), "deit3", "dbot-ft"])
def case(request, tmp_path_factory):
    """A teacher's name, its authors' weights, and a checkpoint file of them."""
    positions, options, wrap = CASES[request.param]
    state = authors_state(positions, **options)
    file = tmp_path_factory.mktemp("authors") / "checkpoint.pth"
    torch.save(wrap(state), file)
    yield request.param, state, file
    file.unlink()


def expected(name, state, images, position):
    x = naive_blocks(state, images, position)
    if name == "dbot-ft":
        return {"cls": naive_norm(state, x[:, 1:].mean(dim=1), "fc_norm"), "patch": x[:, 1:]}
    x = naive_norm(state, x, "norm")
    return {"cls": x[:, 0], "patch": x[:, 1:]}


def test_authors_checkpoint_gives_the_tokens_of_a_plain_transformer(case):
    name, state, file = case
    assert len(state) == KEYS[name]
    teacher = load_teacher(resolve(name), str(file))
    with torch.inference_mode():
        oracle = expected(name, state, normalised(views(224), teacher.spec), state["pos_embed"])
    found = teacher(views(224))
    for kind in ("cls", "patch"):
        assert found[kind].dtype == torch.float32
        torch.testing.assert_close(found[kind], oracle[kind], atol=1e-6, rtol=1e-6)
    assert teacher.spec.kinds == {"cls": TokenKind(768), "patch": TokenKind(768, (14, 14))}
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    assert not teacher.model.training


def test_another_size_moves_the_positions_as_the_authors_do(case):
    name, state, file = case
    teacher = load_teacher(resolve(f"{name}@64"), str(file))
    prefix = state["pos_embed"].shape[1] - 196
    plane = state["pos_embed"][:, prefix:].transpose(1, 2).reshape(1, WIDTH, 14, 14)
    if name in ("dino", "ibot"):
        moved = interpolate(plane, scale_factor=(4.1 / 14, 4.1 / 14), mode="bicubic")
    else:
        moved = interpolate(plane, size=(4, 4), mode="bicubic")
    position = torch.cat([state["pos_embed"][:, :prefix], moved.flatten(2).transpose(1, 2)], dim=1)
    with torch.inference_mode():
        oracle = expected(name, state, normalised(views(64), teacher.spec), position)
    found = teacher(views(64))
    for kind in ("cls", "patch"):
        torch.testing.assert_close(found[kind], oracle[kind], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "where"), [("ibot", "github.com/bytedance/ibot"), ("dbot-ft", "github.com/liuxingbin/dbot")]
)
def test_teachers_that_timm_lacks_say_where_their_authors_publish_them(name, where):
    with pytest.raises(TeacherError, match=rf"{re.escape(where)}.* pass --weights {name}=FILE"):
        load_teacher(resolve(name))
