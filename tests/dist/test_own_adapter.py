"""The page on adding a model is true: its adapter, as it is printed there, makes a family work."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import tokenweave
from tests.dist.exact_models import in_fp64
from tests.dist.llama_models import ModelCase, is_attended
from tokenfabric.errors import ConfigError
from tokenfabric.testing.spawn import run_ranks
from tokenfabric.testing.tolerance import assert_close, assert_same_bits
from tokenfabric.world import World

PAGE = Path(__file__).resolve().parents[2] / "docs" / "add_a_model.md"
ARCEE = ModelCase(name="arcee", family="arcee", config={"mlp_bias": True})


def write_adapter(file: Path) -> Path:
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    file.write_text(code)
    return file


def adapter_in(file: Path) -> Any:
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ArceeAdapter()


@torch.no_grad()
def _rank_arcee(world: World, directory: Path, file: Path) -> None:
    adapter = adapter_in(file)
    model = ARCEE.model()
    inputs = ARCEE.inputs()
    with pytest.raises(ConfigError, match="ArceeForCausalLM is not a supported architecture"):
        tokenweave.parallelize(model, world)
    with pytest.raises(ConfigError, match="ArceeForCausalLM is not a supported architecture"):
        tokenweave.from_pretrained(directory, world)
    exact, expected = in_fp64(model)(**inputs).logits, model(**inputs).logits
    tokens = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    weights = {name: value.clone() for name, value in model.state_dict().items()}

    tokenweave.parallelize(model, world, adapter=adapter)
    attended = is_attended(inputs)
    logits = model(**inputs).logits
    assert_close(logits[attended], exact[attended], expected[attended], factor=2.5)
    assert torch.equal(model.generate(**inputs, max_new_tokens=4, do_sample=False), tokens)
    loaded = tokenweave.from_pretrained(directory, world, adapter=adapter)
    assert loaded.tokenweave.load_report.share < 0.6
    assert_same_bits(loaded(**inputs).logits, logits, what="logits")
    llama = ModelCase(name="llama").model()
    with pytest.raises(
        ConfigError, match=r"ArceeAdapter is for ArceeForCausalLM, .*LlamaForCausalLM"
    ):
        tokenweave.parallelize(llama, world, adapter=adapter)
    tokenweave.restore(model)
    for name, value in model.state_dict().items():
        assert_same_bits(value, weights[name], what=name)

    model.model.layers[1].mlp.up_proj.__class__ = type("Lora", (torch.nn.Linear,), {})
    with pytest.raises(ConfigError, match=r"layers\.1\.mlp\.up_proj is a .*Lora"):
        tokenweave.parallelize(model, world, adapter=adapter)


def test_the_printed_adapter_makes_its_family_work(tmp_path: Path) -> None:
    """Logits, tokens, loading, restoring and a refusal, without a change in the package."""
    ARCEE.model().save_pretrained(tmp_path / "arcee")
    run_ranks(_rank_arcee, 2, tmp_path / "arcee", write_adapter(tmp_path / "arcee_adapter.py"))
