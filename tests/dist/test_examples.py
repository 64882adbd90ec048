"""The examples run as their heads say, and the block computes the same before and after."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.distributed as dist

import tokenfabric
from tests.dist.tiny_checkpoint import write_trainable
from tokenfabric.testing.spawn import run_ranks

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _rank_blocks_agree(world: tokenfabric.World) -> None:
    before, after = (_load(f"tensor_parallel_block_{name}") for name in ("before", "after"))
    old = before.Block(dist.get_rank(), dist.get_world_size())
    new = after.Block(world)
    generator = torch.Generator().manual_seed(2)
    weight = torch.rand(before.HIDDEN, generator=generator) + 0.5
    for block in (old, new):
        for norm in (block.mlp_norm, block.next_norm):
            with torch.no_grad():
                norm.weight.copy_(weight)
    with torch.no_grad():
        for num_tokens in (1, 2, world.size + 1, 16):
            x = torch.randn(num_tokens, before.HIDDEN, generator=generator)
            expected = old(x, x.clone())
            actual = new(x, x.clone())
            for name, got, want in zip(("normed", "residual"), actual, expected, strict=True):
                # fp32 sums of 512 and 1536 products of order 1 in another order: a few hundred
                # roundings of 6e-8 each that mostly cancel.
                torch.testing.assert_close(
                    got, want, rtol=1e-5, atol=1e-5, msg=f"{name}: {{}}".format
                )


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_block_computes_the_same_before_and_after(world_size: int) -> None:
    """Fusing the reductions changes the order of fp32 additions at most."""
    run_ranks(_rank_blocks_agree, world_size)


def test_examples_run_under_torchrun() -> None:
    """All commands end well and show the same numbers."""
    shown = {}
    for name in ("before", "after", "styles"):
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        script = str(EXAMPLES / f"tensor_parallel_block_{name}.py")
        run = subprocess.run(
            [sys.executable, *command, script], capture_output=True, text=True, timeout=60
        )
        assert run.returncode == 0, run.stderr
        shown[name] = run.stdout
    assert shown["before"].startswith("last token: ")
    assert shown["after"] == shown["before"]
    assert shown["styles"] == shown["before"]


def test_the_training_example_trains(tmp_path: Path) -> None:
    """A tiny model on Python's documentation, over two ranks, to a model and a curve."""
    output = tmp_path / "out"
    run = subprocess.run(
        [
            sys.executable, str(EXAMPLES / "train_on_python_docs.py"),
            "--model", str(write_trainable(tmp_path / "tiny")), "--output", str(output),
            "--context", "96", "--steps", "4", "--dtype", "fp32",
        ],
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout == f"plain transformers loads {output / 'run' / 'model'}\n"
    assert (output / "run" / "model" / "model.safetensors").exists()
    curve = [json.loads(x) for x in (output / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["tokens"] for line in curve] == [96] * 4
    assert curve[-1]["eval_loss"] < curve[0]["eval_loss"]
    assert "step 4/4: loss" in run.stderr
    assert "% communication" in run.stderr
