"""Device tables and model shapes at the file boundary."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from tokenfabric.errors import ConfigError
from tokenweave.device_tables import (
    device_names,
    load_device,
    load_model_shape,
    parse_device,
    published_models,
    sources,
)
from tokenweave.model_shape import ModelShape


def table() -> dict[str, Any]:
    return json.loads((files("tokenweave.tables") / "h100.json").read_text())


def test_every_device_has_a_source_for_every_number() -> None:
    """All tables load, under any case, and no source is empty."""
    assert set(device_names()) == {"a10", "a100", "b200", "cpu", "h100", "h200", "l40s"}
    for name in device_names():
        assert load_device(name.upper()).name == name
        assert all(len(source) > 3 for source in sources(name).values())


def test_every_model_has_a_source() -> None:
    """All sizes of a model come from a config.json that is named, and were compared once more."""
    models = json.loads((files("tokenweave.tables") / "models.json").read_text())["models"]
    for name, entry in models.items():
        assert "config.json" in entry["source"], name
        assert len(entry["checked"]) > 3, name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_sms": {"value": 132}}, "source"),
        ({"num_sms": {"value": "many", "source": "x"}}, "num_sms"),
        ({"other": {"value": 1, "source": "x"}}, "other"),
        ({"num_sms": {"value": 0, "source": "x"}}, "above 0"),
    ],
)
def test_wrong_tables_are_refused(change: dict[str, Any], message: str) -> None:
    """The message names the number."""
    wrong = table()
    wrong["numbers"] |= change
    with pytest.raises(ConfigError, match=message):
        parse_device(json.dumps(wrong))


@pytest.mark.parametrize("text", ["", "[]", "{}", "{"])
def test_other_files_are_refused(text: str) -> None:
    """What is no table is an error of the user's."""
    with pytest.raises(ConfigError, match="device table"):
        parse_device(text)


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    """A typing mistake is answered with the list."""
    with pytest.raises(ConfigError, match="h100"):
        load_device("h101")
    with pytest.raises(ConfigError, match="Qwen3-32B"):
        load_model_shape("Qwen4")


def test_shapes_come_from_configs(tmp_path: Path) -> None:
    """Published models, and any config.json of a family that is known."""
    assert published_models()["Qwen3-235B-A22B"].experts_per_token == 8
    assert load_model_shape("mixtral-8x22b-instruct-v0.1").num_experts == 8
    config = {"model_type": "gemma2", "hidden_size": 2304, "intermediate_size": 9216,
              "num_attention_heads": 8, "num_key_value_heads": 4, "num_hidden_layers": 26,
              "head_dim": 256, "vocab_size": 256000, "sliding_window": 4096}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    shape = load_model_shape(str(tmp_path))
    assert shape.windows == ((4096, 13), (None, 13))
    assert shape.largest_share(2).query_columns == 4 * 256


@pytest.mark.parametrize("key", ["model_type", "hidden_size", "num_hidden_layers"])
def test_incomplete_configs_are_refused(key: str) -> None:
    """The message names the field."""
    config = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 64, "vocab_size": 10,
              "num_attention_heads": 4, "num_hidden_layers": 2}  # fmt: skip
    assert ModelShape.from_config(config).num_kv_heads == 4
    with pytest.raises(ConfigError, match=key):
        ModelShape.from_config({name: it for name, it in config.items() if name != key})
