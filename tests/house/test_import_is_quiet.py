"""Importing a package does no work: what a user has not asked for has not happened."""

import json
import subprocess
import sys

from tests.house.tree import PACKAGES, ROOT

# torch first: what it does is not ours.
PROBE = """
import json, logging, os, sys, threading
import torch, torch.distributed
environment, threads = dict(os.environ), threading.active_count()
{statement}
loggers = [logging.root, *(logging.getLogger(name) for name in logging.root.manager.loggerDict)]
names = ("transformers", "ray", "gguf", "tokenfabric._C", "tokenfabric.testing")
json.dump({{
    "wrote the environment": dict(os.environ) != environment,
    "started a thread": threading.active_count() != threads,
    "made a process group": torch.distributed.is_initialized(),
    "made a CUDA context": torch.cuda.is_initialized(),
    "installed a log handler": [
        logger.name for logger in loggers
        if logger.name.split(".")[0] in {packages} or logger is logging.root if logger.handlers
    ],
    "imported": [name for name in names if name in sys.modules],
}}, sys.stdout)
"""


def noises(statement: str) -> dict[str, object]:
    """Run a statement in a fresh interpreter and return the side effects it had."""
    code = PROBE.format(statement=statement, packages=PACKAGES)
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    return {effect: seen for effect, seen in json.loads(run.stdout).items() if seen}


def test_importing_the_packages_is_quiet() -> None:
    """No CUDA, process group, thread, log handler, environment write or heavy module."""
    assert noises(f"import {', '.join(PACKAGES)}") == {}


def test_noise_is_heard() -> None:
    """The probe can tell."""
    logs = "import logging; logging.getLogger('launch').addHandler(logging.NullHandler())"
    waits = "threading.Thread(target=threading.Event().wait, daemon=True).start()"
    assert noises(f"{logs}; {waits}; os.environ['X'] = 'y'; import tokenfabric.testing") == {
        "wrote the environment": True,
        "started a thread": True,
        "installed a log handler": ["launch"],
        "imported": ["tokenfabric.testing"],
    }
