"""Layers that other libraries put into models: taken where they are plain again, else refused by
name before any weight is touched.

Not installed with the other tests' needs: transformers imports them wherever they are, which takes
time and, with torchao, prints. `pip install --no-deps --target DIRECTORY peft torchao bitsandbytes`
and DIRECTORY on PYTHONPATH run them.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from tests.dist.llama_models import SMOLLM2_LIKE
from tokenfabric.errors import ConfigError
from tokenfabric.testing.tolerance import assert_same_bits
from tokenfabric.world import World
from tokenweave import parallelize, restore


@pytest.fixture
def world() -> Iterator[World]:
    with World(None, num_threads=1) as world:
        yield world


def with_lora() -> Any:
    """Return a model with adapters of peft that change what it computes."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    return peft.get_peft_model(SMOLLM2_LIKE.model(), config).eval()


def with_lora_inside() -> Any:
    """Return the model of transformers in which the adapters are."""
    return with_lora().get_base_model().eval()


def with_int8_weights() -> Any:
    """Return a model whose linear layers are plain and whose weights are torchao's."""
    quantization = pytest.importorskip("torchao.quantization")
    model = SMOLLM2_LIKE.model()
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    return model


def with_8_bit_layer() -> Any:
    """Return a model with a layer of bitsandbytes."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    model: Any = SMOLLM2_LIKE.model()
    mlp = model.model.layers[1].mlp
    size = mlp.down_proj.in_features, mlp.down_proj.out_features
    mlp.down_proj = bitsandbytes.nn.Linear8bitLt(*size, bias=False, has_fp16_weights=False)
    return model.eval()


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (with_lora, r"peft\.peft_model\.PeftModel.* is not a supported architecture"),
    (with_lora_inside, r"layers\.0\.self_attn\.q_proj is a peft\..*merge_and_unload"),
    (with_int8_weights, r"model\.layers\.0\.self_attn\.q_proj\.weight is a torchao\..*quantized"),
    (with_8_bit_layer, r"layers\.1\.mlp\.down_proj.* is a bitsandbytes\."),
]


@pytest.mark.parametrize(("make", "message"), REFUSED, ids=[it[0].__name__ for it in REFUSED])
def test_layers_that_compute_otherwise_are_refused_by_name(
    world: World, make: Callable[[], Any], message: str
) -> None:
    """Which layer it is, whose, and what to do; the model is as it was."""
    model = make()
    ids = torch.arange(3, 9)[None]
    with torch.no_grad():
        before = model(ids).logits
        with pytest.raises(ConfigError, match=message):
            parallelize(model, world)
        assert_same_bits(model(ids).logits, before, what="logits")


def test_merged_adapters_are_weights(world: World) -> None:
    """What peft leaves after merging is a model like any other."""
    model = with_lora().merge_and_unload().eval()
    ids = torch.arange(3, 9)[None]
    with torch.no_grad():
        expected = model(ids).logits
        assert not torch.equal(expected, SMOLLM2_LIKE.model()(ids).logits)
        found = parallelize(model, world)(ids).logits
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
        restore(model)
        assert_same_bits(model(ids).logits, expected, what="restored")
