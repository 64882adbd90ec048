"""`tokenfabric verify` on families that differ most from Llama, and on a model that is wrong."""

from pathlib import Path

from launch.recipes import verify
from launch.report import SilentReporter, Table
from tests.dist.llama_models import ModelCase
from tests.dist.tiny_checkpoint import write_checkpoint
from tokenfabric.testing.spawn import run_ranks
from tokenfabric.world import World
from tokenweave.integrations.decoder import DecoderAdapter
from tokenweave.integrations.gemma import GemmaAdapter

TWO_LAYERS = {"num_hidden_layers": 2}
GEMMA = ModelCase(
    name="gemma2",
    family="gemma2",
    config=TWO_LAYERS | {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 4},
)
MIXTRAL = ModelCase(
    name="mixtral",
    family="mixtral",
    # All experts are chosen: in bf16, rounding alone could choose others.
    config=TWO_LAYERS | {"num_local_experts": 3, "num_experts_per_tok": 3, "intermediate_size": 40},
)


class Tables(SilentReporter):
    """Keeps the tables."""

    def __init__(self) -> None:
        self.tables: list[Table] = []

    def table(self, table: Table) -> None:
        self.tables.append(table)


def _rank_verify(world: World, folder: Path) -> None:
    padded = "3 prompts, left-padded"
    verify._BATCHES = {padded: verify._BATCHES[padded]}
    for case in (GEMMA, MIXTRAL):
        reporter = Tables()
        passed = verify.run(world, reporter, model=str(folder / str(case)), max_new_tokens=1)
        logits, loading = reporter.tables
        assert passed, f"{case}: {logits.rows}"
        if world.rank == 0:
            assert [row[-1] for row in logits.rows] == ["pass", "pass"]
            # Rank 0, rank 1, both, one process; all of the experts count, however they are stored.
            assert loading.rows[2][3] in ("100%", "101%"), loading.rows
    GemmaAdapter.embedding = DecoderAdapter.embedding  # type: ignore[method-assign]
    assert not verify.run(world, Tables(), model=str(folder / str(GEMMA)), max_new_tokens=1)


def test_verify_judges_other_families_too(tmp_path: Path) -> None:
    """It passes, and fails for a model whose embedding is not scaled."""
    for case in (GEMMA, MIXTRAL):
        write_checkpoint(tmp_path / str(case), case=case)
    run_ranks(_rank_verify, 2, tmp_path, timeout_s=110)
