"""What weights look like that nobody trained, and what can be no weights."""

import pytest
import timm
import torch

from unic_cache.errors import WeightsError
from unic_cache.weights.untrained import check_values, tell_untrained


def trained(name: str) -> torch.nn.Module:
    """A model whose norms have moved, as training moves them."""
    model = timm.create_model(name, num_classes=0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.01 * torch.randn(parameter.shape))
    return model


@pytest.mark.parametrize("name", ["test_vit", "test_efficientnet", "test_convnext"])
def test_a_fresh_initialisation_is_told_and_a_trained_network_is_not(name, caplog):
    tell_untrained(timm.create_model(name), "teacher x")
    assert "teacher x: these look like random weights, which nobody trained" in caplog.text
    caplog.clear()
    tell_untrained(trained(name), "teacher x")
    assert not caplog.text


def test_one_norm_that_stands_as_it_began_is_no_sign(caplog):
    """A student of this project has such a final norm."""
    model = trained("test_vit")
    torch.nn.init.ones_(model.norm.weight)
    torch.nn.init.zeros_(model.norm.bias)
    tell_untrained(model, "x")
    assert not caplog.text


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_matrices_of_a_single_value_are_named(value, caplog):
    model = trained("test_vit")
    torch.nn.init.constant_(model.blocks[1].mlp.fc2.weight, value)
    tell_untrained(model, "x")
    assert "x: a single value throughout blocks.1.mlp.fc2.weight" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.index_fill(0, torch.tensor([1]), torch.nan), r"NaN or infinite values in norm\.weight"),
        (lambda t: t * torch.inf, r"NaN or infinite values in norm\.weight"),
        (lambda t: t.to(torch.int8), r"norm\.weight is int8, a quantized copy"),
        (lambda t: t.to(torch.float8_e4m3fn), r"norm\.weight is float8_e4m3fn, a quantized copy"),
    ],
)
def test_what_can_be_no_weights_is_refused(change, message):
    model = timm.create_model("test_vit", num_classes=0)
    state = dict(model.state_dict())
    for kind in (torch.float32, torch.float16, torch.bfloat16):
        check_values({name: tensor.to(kind) for name, tensor in state.items()}, model, "x")
    with pytest.raises(WeightsError, match=message):
        check_values({**state, "norm.weight": change(state["norm.weight"])}, model, "x")
