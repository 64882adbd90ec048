"""Split plans: where a pass is cut and what is promised of every plan. Pure."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.bench_split_plans import COSTS, gain
from tokenfabric.errors import ConfigError
from tokenfabric.simulate import simulate
from tokenweave.batch import Batch
from tokenweave.device_tables import device_names, load_device, published_models
from tokenweave.split import plan_split
from tokenweave.split_cost import NOMINAL, PESSIMISTIC, PassCosts
from tokenweave.split_plan import EMBEDDING, SplitPlan
from tokenweave.stage_work import FusedWork, machine_of
from tokenweave.waves import Gemm, choose_tile, count_waves, gemm_kernel, whole_wave_boundary

H100 = load_device("h100")
MODELS = published_models()
LLAMA = MODELS["Llama-3.3-70B-Instruct"]
model_names = st.sampled_from(sorted(MODELS))


def plan_of(tokens: int, model: str = "Llama-3.3-70B-Instruct", **options: object) -> SplitPlan:
    arguments = {"shape": MODELS[model], "world_size": 8, "device": H100} | options
    return plan_split(tokens, **arguments)  # type: ignore[arg-type]


def test_whole_waves_where_there_are_any() -> None:
    """300 tiles are cut at 132 or 168; exhaustively, no wave is added wherever that can be."""
    tile = H100.tiles[3]
    assert tile.rows == tile.columns == 128
    gemm = Gemm(name="g", n=128, k=4096)
    boundary = whole_wave_boundary([gemm], [tile], 300 * 128, H100)
    assert boundary is not None
    assert count_waves([gemm], [tile], 300 * 128, boundary, 132).is_equal
    two = [gemm, Gemm(name="h", n=640, k=1024)]
    for tokens in range(128, 128 * 60, 353):
        found = whole_wave_boundary(two, [tile, tile], tokens, H100)
        exists = any(
            count_waves(two, [tile, tile], tokens, it, 132).is_equal for it in range(1, tokens)
        )
        is_equal = found is not None and count_waves(two, [tile, tile], tokens, found, 132).is_equal
        assert is_equal == exists, tokens


@pytest.mark.parametrize("m", [1, 127, 128, 4096])
def test_gemm_takes_its_best_tile(m: int) -> None:
    """No other shape is faster on the whole device, and memory is a floor."""
    kernel = gemm_kernel(m, 7168, 8192, H100)
    for tile in H100.tiles:
        only = gemm_kernel(m, 7168, 8192, replace(H100, tiles=(tile,)))
        assert kernel.work_s(132) <= only.work_s(132) * (1 + 1e-12)
    assert choose_tile(m, 7168, 8192, H100) in H100.tiles
    assert kernel.work_s(132) >= 2 * 7168 * 8192 / H100.memory_bandwidth


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(0, 20000), model=model_names, device=st.sampled_from(device_names()),
    ranks=st.sampled_from([1, 2, 4, 8]),
)  # fmt: skip
def test_every_plan_can_be_carried_out(tokens: int, model: str, device: str, ranks: int) -> None:
    """Halves cover the batch, the schedule has no circle, no half is used before its reduction."""
    plan = plan_of(tokens, model, device=load_device(device), world_size=ranks)
    ranges = [plan.tokens_of(half) for half in plan.halves]
    assert [it for pair in ranges for it in range(*pair)] == list(range(tokens))
    few = replace(plan, num_layers=2)
    schedule = few.lower()
    assert schedule.issue_order() == tuple(range(len(schedule.stages)))
    done: set[tuple[str, str, int]] = set()
    for stage in few.stages():
        needed = {("reduce", stage.half, stage.block - 1)} if stage.op == "block" else set()
        if stage.op == "reduce" and stage.block != EMBEDDING:
            needed = {("block", stage.half, stage.block)}
        if stage.op == "block" and stage.half == "tail":
            needed.add(("block", "head", stage.block))
        waited = {(s.op, s.half, s.block) for s in (few.stages()[i] for i in stage.waits)}
        assert needed <= waited & done, plan.label(stage)
        done.add((stage.op, stage.half, stage.block))
    assert plan.explain()


@settings(max_examples=60, deadline=None)
@given(batch=st.integers(1, 6), width=st.integers(1, 9), data=st.data())
def test_pieces_cover_a_batch_once(batch: int, width: int, data: st.DataObject) -> None:
    """Every token of [batch, width] is in one rectangle of one half, the earlier in the head."""
    if batch * width < 2:
        return
    boundary = data.draw(st.integers(1, batch * width - 1))
    plan = replace(plan_of(8192), num_tokens=batch * width, boundary=boundary)
    head, tail = plan.pieces(batch)
    order = [
        [
            sequence * width + token
            for piece in pieces
            for sequence in range(*piece.sequences)
            for token in range(*piece.tokens)
        ]
        for pieces in (head, tail)
    ]
    assert order == [list(range(boundary)), list(range(boundary, batch * width))]
    assert sum(piece.num_tokens for piece in head) == boundary


CASES = [
    (tokens, model, device)
    for tokens in (1024, 1500, 2048, 3000, 4096, 8192)
    for model, device in (
        ("Llama-3.3-70B-Instruct", "h100"),
        ("Mixtral-8x22B-Instruct-v0.1", "h100"),
        ("Qwen3-32B", "a100"),
    )
]


@pytest.mark.parametrize(("tokens", "model", "device"), CASES)
def test_boundary_is_near_the_best_of_all(tokens: int, model: str, device: str) -> None:
    """Within 1 % of every boundary, tried with the same budgets of SMs."""
    plan = plan_of(tokens, model, device=load_device(device))
    costs = PassCosts(MODELS[model], 8, load_device(device), Batch([tokens]))
    if not plan.is_split:
        return
    chosen_s = costs.split_s(plan)
    step = max(1, tokens // 400)
    others = {*range(step, tokens, step), *range(64, tokens, 64)}
    best_s = min(costs.split_s(replace(plan, boundary=it)) for it in others)
    assert chosen_s <= best_s * 1.01


@settings(max_examples=40, deadline=None)
@given(tokens=st.integers(1, 65536), model=model_names, device=st.sampled_from(device_names()))
def test_split_only_where_it_pays(tokens: int, model: str, device: str) -> None:
    """A split plan beats the fused one with expected and with pessimistic costs."""
    rates = load_device(device)
    plan = plan_of(tokens, model, device=rates)
    costs = PassCosts(MODELS[model], 8, rates, Batch([tokens]))
    assert plan.prediction is not None
    assert plan.prediction.fused_only_s <= plan.prediction.unfused_s
    if plan.is_split:
        for present in (NOMINAL, PESSIMISTIC):
            assert costs.split_s(plan, present) < costs.whole_s("fused", present)


@pytest.mark.parametrize("tokens", [1, 64, 1024, 3000, 8192, 65536])
@pytest.mark.parametrize("model", sorted(MODELS))
def test_simulated_gain_holds_under_worse_costs(model: str, tokens: int) -> None:
    """Never slower than all-reduce and norm apart, whatever of the costs turns out worse."""
    plan = plan_of(tokens, model)
    for label, costs in COSTS.items():
        assert gain(MODELS[model], tokens, H100, plan, costs) >= 1.0, label


def test_llama_on_eight_h100_gains_what_is_claimed() -> None:
    """At 8k tokens at least 1.30x over all-reduce and norm apart, simulated."""
    assert gain(LLAMA, 8192, H100, plan_of(8192), COSTS["nominal"]) >= 1.30


@pytest.mark.parametrize("tokens", [2048, 8192, 32768])
def test_closed_form_agrees_with_the_simulator(tokens: int) -> None:
    """The planner's own time is the simulated one, within 3 %, and all but the ends is hidden."""
    plan, batch = plan_of(tokens), Batch([tokens])
    timeline = simulate(plan.lower(FusedWork(LLAMA, 8, H100, batch)), machine_of(H100))
    assert plan.prediction is not None
    assert plan.prediction.split_s == pytest.approx(timeline.makespan_s, rel=0.03)
    assert timeline.overlap_ratio > 0.9


def test_boundary_between_sequences_comes_first() -> None:
    """Equal sequences are not cut where a cut between them costs next to nothing."""
    plan = plan_of(16384, batch=Batch([4096] * 4))
    assert plan.is_split
    assert plan.boundary % 4096 == 0


@pytest.mark.parametrize("alignment", [16, 100, 512])
def test_boundary_inside_a_sequence_keeps_its_alignment(alignment: int) -> None:
    """Positions count from the start of the sequence, cached tokens included."""
    plan = plan_of(8192, batch=Batch([8192], 1000), alignment=alignment)
    assert plan.is_split
    assert (plan.boundary + 1000) % alignment == 0


def test_attended_keys_are_counted() -> None:
    """Pairs of any range of any batch, with caches and windows, as counted one by one."""
    batch = Batch([3, 5, 1], [0, 2, 7])
    for window, (start, stop) in itertools.product(
        (None, 1, 3), itertools.combinations(range(10), 2)
    ):
        seen = [
            min(past + offset + 1, window or 99)
            for length, past in zip(batch.lengths, batch.past, strict=True)
            for offset in range(length)
        ][start:stop]
        assert batch.attention(start, stop, window).pairs == sum(seen)
        assert batch.attention(start, stop, window).longest == max(seen)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"world_size": 0}, "at least"),
        ({"alignment": 0}, "at least"),
        ({"batch": Batch([7])}, "7 tokens, not 8"),
        ({"world_size": 200}, "query heads"),
    ],
)
def test_impossible_requests_are_refused(options: dict[str, object], message: str) -> None:
    """The message says what is wrong."""
    with pytest.raises(ConfigError, match=message):
        plan_of(8, **options)
