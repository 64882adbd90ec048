"""Any mesh and partition learns what one rank learns, and its gradients are plain transformers'."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from launch.training.config import TrainConfig
from launch.training.documents import check_files
from launch.training.mesh import training_mesh
from launch.training.rows import RowStream
from launch.training.trainer import Row, Trainer
from tests.dist.train_jobs import SETTINGS, metrics, rank_trains, train_on, write_job
from tokenfabric.testing.spawn import run_ranks
from tokenfabric.world import World
from tokenweave.integrations.unsharded import load_unsharded

pytestmark = pytest.mark.timeout(300)
STEPS = 50
# dp, ring, partition, by number of ranks.
MESHES = {
    1: [(1, 1, "zigzag")],
    2: [(1, 2, "contiguous"), (1, 2, "zigzag"), (2, 1, "zigzag")],
    4: [(1, 4, "zigzag"), (2, 2, "contiguous")],
}


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return write_job(tmp_path_factory.mktemp("train"))


@pytest.fixture(scope="module")
def one_rank(job: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    output = tmp_path_factory.mktemp("one")
    return train_on(1, 1, long_run(job, output), timeout_s=240)


def long_run(job: dict[str, Any], output: Path) -> dict[str, Any]:
    # AdamW divides each gradient by its own size, roundings of small ones too: at rates that make
    # the loss jump, as 1e-3 does here, they would grow to 6e-5 of it in fifty steps.
    rates = {"learning_rate": 2e-4, "warmup_steps": 5}
    return {
        **job, **SETTINGS, **rates, "steps": STEPS, "checkpoint_every": 0, "output": str(output)
    }  # fmt: skip


def folder_of(folder: str | Path, mesh: tuple[int, int, str]) -> str:
    return str(Path(folder) / "-".join(map(str, mesh)))


def _rank_trains_on_each(world: World, arguments: dict[str, Any]) -> None:
    for mesh in MESHES[world.size]:
        dp, ring, partition = mesh
        output = folder_of(arguments["output"], mesh)
        rank_trains(
            world,
            {**arguments, "dp": dp, "ring": ring, "partition": partition, "output": output},
        )


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_fifty_steps_lose_what_one_rank_loses(
    job: dict[str, Any], one_rank: list[Any], tmp_path: Path, num_ranks: int
) -> None:
    """Packed rows of short documents and rows of one long document, to 1e-5."""
    run_ranks(_rank_trains_on_each, num_ranks, long_run(job, tmp_path), timeout_s=240)
    assert one_rank[-1]["loss"] < 0.8 * one_rank[0]["loss"]
    for mesh in MESHES[num_ranks]:
        curve = metrics(folder_of(tmp_path, mesh))
        assert [line["step"] for line in curve] == list(range(STEPS))
        for mine, theirs in zip(curve, one_rank, strict=True):
            assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-5), (mesh, mine["step"])
            assert mine["tokens"] == theirs["tokens"]
            assert 0 < mine["communication_share"] < 1


def plain_gradients(model: str, rows: list[Row], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return the gradients of transformers alone, a document at a time."""
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
    learned = sum(row.num_learned for row in rows)
    for row in rows:
        for ids in torch.tensor([row.tokens]).split(row.lengths, dim=1):
            if ids.numel() > 1:
                logits = plain(ids).logits[0, :-1]
                loss = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum")
                torch.autograd.backward(loss / learned)
    return {name: p.grad for name, p in plain.named_parameters() if p.grad is not None}


def worst(got: dict[str, torch.Tensor], exact: dict[str, torch.Tensor]) -> tuple[float, str]:
    """Return the largest error of any gradient, in units of its parameter's largest, and whose."""
    assert got.keys() == exact.keys()
    return max(
        (((got[name] - x).abs().max() / x.abs().max()).item(), name) for name, x in exact.items()
    )


def _rank_compares_gradients(world: World, job: dict[str, Any]) -> None:
    files, tokenizer = check_files(job["data"]), AutoTokenizer.from_pretrained(job["model"])
    epoch = RowStream(files, tokenizer, context=48, seed=0).take(40)
    packed, whole = ([r for r in epoch if (len(r.lengths) > 1) == many] for many in (True, False))
    rows = [packed[0], whole[0], packed[1], whole[1]]
    exact = plain_gradients(job["model"], rows, torch.float64)
    usual, _ = worst(plain_gradients(job["model"], rows, torch.float32), exact)
    for dp, ring, partition in MESHES[world.size]:
        config = TrainConfig(
            context=48, steps=1, rows_per_step=4, dtype="fp32", max_gradient_norm=1e9,
            dp=dp, ring=ring, partition=partition,  # type: ignore[arg-type]
        )  # fmt: skip
        with training_mesh(world, config) as mesh:
            trainer = Trainer(load_unsharded(Path(job["model"]), torch.float32), mesh, config)
            got: dict[str, torch.Tensor] = {}

            def keep(trainer: Trainer = trainer, got: dict[str, torch.Tensor] = got) -> None:
                for name, parameter in trainer.loss.named_parameters():
                    got[name.removeprefix("model.")] = parameter.grad.full_tensor()  # type: ignore[union-attr]

            trainer.optimizer.step = keep  # type: ignore[assignment,method-assign]
            result = trainer.step(0, rows)
            error, name = worst(got, exact)
            assert error <= 2 * usual, (dp, ring, partition, name, error, usual)
            norm = torch.stack([x.norm() for x in exact.values()]).norm().item()
            assert result.gradient_norm == pytest.approx(norm, rel=2 * usual)


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_every_gradient_is_plain_transformers(job: dict[str, Any], num_ranks: int) -> None:
    """Each parameter's, of packed documents, on every mesh, and their norm: within twice what fp32
    alone costs plain transformers, against fp64.
    """
    run_ranks(_rank_compares_gradients, num_ranks, job, timeout_s=240)
