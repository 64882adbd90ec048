"""A dry run walks the real plan with the real executor."""

import pytest

from tests.unit.test_stage_runner import plan_of
from tokenfabric.world import World
from tokenweave.device_tables import load_device, load_model_shape
from tokenweave.dry_run import DryRun
from tokenweave.pass_record import PassRecord
from tokenweave.passes import Passes
from tokenweave.split import plan_split
from tokenweave.split_plan import PlanStage


def dry_run(num_layers: int, *, is_split: bool = True, seconds: float | None = None) -> PassRecord:
    """Walk the plan, with stages of equal length if it is given."""
    with World(None, num_threads=1) as world:
        run = DryRun(2 * num_layers, Passes(world))
        plan = plan_of(num_layers, is_split=is_split)
        if seconds is None:
            return run.run(plan)
        duration_s = seconds
        return run.run(plan, lambda stage: 0.0 if stage.op == "embed" else duration_s)


def test_every_stage_of_the_plan_is_performed_in_its_order() -> None:
    """The names are the plan's, one after the other in time."""
    plan, record = plan_of(2), dry_run(2)
    spans = record.timeline.spans
    assert [span.stage.op for span in spans] == [plan.label(stage) for stage in plan.stages()]
    starts = [span.start_s for span in spans]
    assert starts == sorted(starts)
    assert len(record.host_s) == len(spans)
    assert min(record.host_s) > 0


def test_durations_give_the_plans_overlap() -> None:
    """With stages of one second, all but the first and the last reduction run beside blocks."""
    timeline = dry_run(4, seconds=1.0).timeline
    num_blocks = 2 * 4 * 2
    assert timeline.makespan_s == num_blocks + 2
    num_reductions = num_blocks + 2
    assert timeline.overlap_ratio == pytest.approx((num_reductions - 2) / num_reductions)
    unsplit = dry_run(4, is_split=False, seconds=1.0).timeline
    assert unsplit.makespan_s == 2 * 4 * 2 + 1


def test_a_stage_starts_when_its_stream_and_its_waits_are_done() -> None:
    """The reductions of the embeddings take turns; the first block waits for one of them."""
    with World(None, num_threads=1) as world:

        def duration_s(stage: PlanStage) -> float:
            return {"embed": 1.0, "block": 2.0, "reduce": 4.0}[stage.op]

        timeline = DryRun(2, Passes(world)).run(plan_of(1), duration_s).timeline
    at = {span.stage.op: (span.start_s, span.end_s) for span in timeline.spans}
    assert at["embeddings"] == (0.0, 1.0)
    assert at["reduce embeddings head"] == (1.0, 5.0)
    assert at["reduce embeddings tail"] == (5.0, 9.0)
    assert at["layer 0 attention head"] == (5.0, 7.0)
    assert at["layer 0 attention tail"] == (9.0, 11.0)
    assert at["reduce layer 0 attention head"] == (9.0, 13.0)


def test_a_plan_for_another_model_is_refused() -> None:
    """Blocks and plan belong together."""
    with World(None, num_threads=1) as world, pytest.raises(AssertionError, match="another model"):
        DryRun(6, Passes(world)).run(plan_of(2))


def test_a_planners_plan_is_walked_as_it_is() -> None:
    """Of a published model on a GPU: every stage once, in order."""
    plan = plan_split(
        8192,
        shape=load_model_shape("Llama-3.3-70B-Instruct"),
        world_size=8,
        device=load_device("h100"),
    )
    assert plan.is_split
    with World(None, num_threads=1) as world:
        record = DryRun(plan.num_blocks, Passes(world)).run(plan)
    assert [span.stage.op for span in record.timeline.spans] == [
        plan.label(stage) for stage in plan.stages()
    ]
