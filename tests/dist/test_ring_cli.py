"""`generate --ring`, `verify --attention` and `verify --ring`: answers, verdicts, exit codes."""

from pathlib import Path
from typing import Any

import pytest
import torch

from launch.recipes import verify_attention, verify_ring
from launch.recipes.text import encode_prompt
from launch.report import Table
from tests.dist.command import run
from tests.dist.tiny_checkpoint import write_checkpoint
from tokenfabric.errors import ConfigError
from tokenfabric.testing.spawn import run_ranks
from tokenfabric.world import World
from tokenring.integrations import attention as layers
from tokenweave.integrations.unsharded import load_tokenizer, load_unsharded

PROMPT = "Hello, ring"


class Tables:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.tables: list[Table] = []

    def note(self, text: str) -> None:
        assert text

    def text(self, piece: str) -> None:
        raise AssertionError(piece)

    def table(self, table: Table) -> None:
        self.tables.append(table)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint's directory."""
    return str(write_checkpoint(tmp_path_factory.mktemp("model") / "tiny"))


def test_a_ring_answers_as_one_process(model: str) -> None:
    """The text of the whole model on stdout, and what was done on stderr."""
    tokenizer = load_tokenizer(Path(model))
    ids = encode_prompt(tokenizer, PROMPT)
    alone = load_unsharded(Path(model), torch.float32)
    tokens = alone.generate(ids, max_new_tokens=12, do_sample=False)
    expected = tokenizer.decode(tokens[0, ids.shape[1] :], skip_special_tokens=True)
    how = ("--prompt", PROMPT, "--max-new-tokens", "12", "--dtype", "fp32")
    done = run("generate", "--model", model, "--ring", "3", *how)
    assert done.returncode == 0, done.stderr
    # The pipe is read with universal newlines.
    assert done.stdout == f"{expected}\n".replace("\r", "\n")
    assert "ring of 3" in done.stderr
    assert "cached tokens of each rank" in done.stderr


def test_verify_attention_says_what_passed() -> None:
    """A row for each tensor; exit code 0."""
    how = ("--tokens", "61", "--heads", "6", "--kv-heads", "3", "--head-dim", "16")
    done = run("verify", "--attention", "--ranks", "2", "--window", "9", *how)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("pass") == 5
    assert "window 9" in done.stdout


MISTAKES = {
    "both": (
        ("generate", "--prompt", "x", "--model", "m", "--ring", "2", "--ranks", "2"),
        "give one of them",
    ),
    "two checks": (("verify", "--attention", "--ring"), "give one of them"),
    "tokens": (("verify", "--tokens", "8"), "--tokens goes with"),
    "unused": (("verify", "--ring", "--head-dim", "8"), "--head-dim goes with --attention"),
    "model": (("verify", "--attention", "--model", "m"), "does not go with --attention"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_contradiction_is_a_readable_line(name: str) -> None:
    """Exit code 2, no traceback."""
    args, message = MISTAKES[name]
    done = run(*args)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


ASKED: dict[str, Any] = {
    "tokens": 45,
    "heads": 4,
    "kv_heads": 2,
    "head_dim": 8,
    "dtype": "fp32",
    "partition": "zigzag",
    "strategy": "auto",
    "causal": True,
    "window": None,
    "softcap": None,
}


def _rank_attention(world: World) -> None:
    for changes in ({}, {"dtype": "bf16"}, {"causal": False}, {"softcap": 4.0, "tokens": 2}):
        reporter = Tables()
        assert verify_attention.run(world, reporter, **(ASKED | changes))
        assert [row[0] for row in reporter.tables[0].rows] == (
            ["out", "lse", "dq", "dk", "dv"] if world.rank == 0 else []
        )
    with pytest.raises(ConfigError, match="multiple of --kv-heads"):
        verify_attention.run(world, Tables(), **(ASKED | {"heads": 3}))
    with pytest.raises(ConfigError, match="--window counts"):
        verify_attention.run(world, Tables(), **(ASKED | {"causal": False, "window": 3}))
    with pytest.raises(ConfigError, match="take fewer --tokens"):
        verify_attention.run(world, Tables(), **(ASKED | {"tokens": 10**7}))
    # A window that the reference does not have is a key too few for some queries.
    real = verify_attention.ring_attention

    def mistaken(*args: Any, **kwargs: Any) -> Any:
        return real(*args, **(kwargs | {"window": 40}))

    verify_attention.ring_attention = mistaken  # type: ignore[assignment]
    reporter = Tables()
    assert not verify_attention.run(world, reporter, **ASKED)
    if world.rank == 0:
        assert {row[-1] for row in reporter.tables[0].rows} == {"FAIL"}


def test_verify_attention_passes_what_is_right_alone() -> None:
    """Dtypes, masks, fewer tokens than ranks; a seeded mistake fails on every rank."""
    run_ranks(_rank_attention, 3, timeout_s=110)


def _rank_ring(world: World, model: str) -> None:
    reporter = Tables()
    assert verify_ring.run(world, reporter, model=model, tokens=None)
    if world.rank == 0:
        (table,) = reporter.tables
        assert [row[0] for row in table.rows] == ["1", "2", "3"]
        assert "512 tokens" in table.title
    with pytest.raises(ConfigError, match="the model's context, 512"):
        verify_ring.run(world, Tables(), model=model, tokens=513)
    # The last five of 90 queries see a few keys too few.
    real = layers.ring_attention

    def mistaken(*args: Any, **kwargs: Any) -> Any:
        few = 85 if kwargs["world"].size > 1 else None
        return real(*args, **(kwargs | {"window": few}))

    layers.ring_attention = mistaken  # type: ignore[assignment]
    assert not verify_ring.run(world, Tables(), model=model, tokens=90)


def test_verify_ring_passes_what_is_right_alone(model: str) -> None:
    """The loss on 1, 2 and 3 ranks; a seeded mistake fails on every rank."""
    run_ranks(_rank_ring, 3, model, timeout_s=110)
