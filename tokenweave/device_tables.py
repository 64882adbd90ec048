"""The devices that tables/*.json describe, and published models. The file boundary of the planner.

Every number of a table is an object {"value", "source"}: a number without a source is refused.
"""

import json
from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from tokenfabric.errors import ConfigError
from tokenweave.device import Device, LinkKind, Tile
from tokenweave.model_shape import ModelShape

_MODELS = "models.json"
_PLAIN: dict[str, Any] = {
    "tiles": tuple[Tile, ...],
    "expert_tile": Tile,
    "link": LinkKind,
    "reduction_sms": tuple[int, ...],
    "has_streams": bool,
    "num_sms": int,
    "attention_rows": int,
    "unfused_sms": int,
}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _number(kind: Any) -> Any:
    """Return the type of {"value": kind, "source": str}."""
    return create_model("Sourced", __base__=_Strict, value=(kind, ...), source=(str, ...))


@lru_cache(maxsize=1)
def _numbers() -> type[BaseModel]:
    fields: dict[str, Any] = {
        name: (_number(_PLAIN.get(name, float)), ...)
        for name in Device.__dataclass_fields__
        if name != "name"
    }
    return create_model("Numbers", __base__=_Strict, **fields)


def device_names() -> tuple[str, ...]:
    """Return the names of the devices that have a table."""
    names = (Path(entry.name) for entry in files("tokenweave.tables").iterdir())
    return tuple(sorted(it.stem for it in names if it.suffix == ".json" and it.name != _MODELS))


@lru_cache(maxsize=32)
def load_device(name: str) -> Device:
    """Return a device by the name of its table, such as "h100"; upper case will do.

    Raises:
        ConfigError: there is no such table.
    """
    known = device_names()
    if name.lower() not in known:
        raise ConfigError(f"no table for device {name!r}; there are {', '.join(known)}")
    return parse_device(_text(name))


def parse_device(text: str) -> Device:
    """Return the device that the text of a table describes.

    Raises:
        ConfigError: it is no JSON, or a number or its source is missing, unknown or of the wrong
            type.
    """
    try:
        table = _read(text)
        checked = _numbers().model_validate(table["numbers"])
    except (ValidationError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"not a device table: {_first_line(error)}") from None
    numbers = {name: getattr(checked, name).value for name in type(checked).model_fields}
    return Device(name=str(table["name"]), **numbers)


def table_of(name: str) -> dict[str, Any]:
    """Return the numbers of a device's table by name: each {"value", "source"}."""
    load_device(name)
    numbers: dict[str, Any] = _read(_text(name))["numbers"]
    return numbers


def sources(name: str) -> dict[str, str]:
    """Return the source of every number of a device's table."""
    return {key: number["source"] for key, number in table_of(name).items()}


@lru_cache(maxsize=1)
def published_models() -> Mapping[str, ModelShape]:
    """Return the shapes of the models that tables/models.json lists, by name."""
    table = _read((files("tokenweave.tables") / _MODELS).read_text())
    return {
        name: ModelShape.from_config(entry["config"], name)
        for name, entry in table["models"].items()
    }


def load_model_shape(model: str) -> ModelShape:
    """Return the shape of a published model by name, or of a directory or config.json on disk.

    Raises:
        ConfigError: it is neither, or the config is not that of a decoder known here.
    """
    known = published_models()
    by_lower_case = {name.lower(): shape for name, shape in known.items()}
    if model.lower() in by_lower_case:
        return by_lower_case[model.lower()]
    path = Path(model).expanduser()
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise ConfigError(
            f"--model {model} is neither a directory with config.json nor one of "
            f"{', '.join(sorted(known))}"
        )
    try:
        config = _read(path.read_text())
    except (ValueError, OSError) as error:
        raise ConfigError(f"{path} cannot be read as JSON: {_first_line(error)}") from None
    return ModelShape.from_config(config, path.resolve().parent.name)


def _text(name: str) -> str:
    return (files("tokenweave.tables") / f"{name.lower()}.json").read_text()


def _read(text: str) -> dict[str, Any]:
    table = json.loads(text)
    if not isinstance(table, dict):
        raise ValueError("a JSON object is needed")
    return table


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(error).partition("\n")[0]
