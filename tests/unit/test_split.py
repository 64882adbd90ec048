"""Split plans: where a pass is cut and what is promised of every plan. Pure."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.bench_split_plans import COSTS, gain
from tokenfabric.errors import ConfigError
from tokenfabric.kernel import num_waves
from tokenfabric.simulate import simulate
from tokenweave.batch import Batch
from tokenweave.block_cost import BlockCosts
from tokenweave.device import Device
from tokenweave.device_tables import device_names, load_device, published_models
from tokenweave.split import plan_split
from tokenweave.split_cost import NOMINAL, PESSIMISTIC, PassCosts, SplitCost
from tokenweave.split_plan import EMBEDDING, ReductionChoice, SplitPlan
from tokenweave.stage_work import FusedWork, machine_of
from tokenweave.waves import Gemm, Range, TiledGemm, Tiling, equal_wave_ranges

H100 = load_device("h100")
MODELS = published_models()
LLAMA = MODELS["Llama-3.3-70B-Instruct"]
GPUS = [name for name in device_names() if load_device(name).has_streams]
model_names = st.sampled_from(sorted(MODELS))


def plan_of(tokens: int, model: str = "Llama-3.3-70B-Instruct", **options: object) -> SplitPlan:
    arguments = {"shape": MODELS[model], "world_size": 8, "device": H100} | options
    return plan_split(tokens, **arguments)  # type: ignore[arg-type]


def is_within(boundary: int, ranges: list[Range]) -> bool:
    return any(low <= boundary <= high for low, high in ranges)


def needs_no_wave_more(tiling: Tiling, tokens: int, boundary: int, num_sms: int) -> bool:
    parts = (tokens, boundary, tokens - boundary)
    whole, head, tail = (num_waves(tiling.tiles(part), num_sms) for part in parts)
    return whole >= head + tail


def test_whole_waves_of_the_paper() -> None:
    """300 tiles on 132 SMs are cut at 132 or 168."""
    tiling = Tiling(rows=1, columns=1)
    assert equal_wave_ranges([tiling], 300, 132) == [(36, 132), (168, 264)]


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(0, 500),
    num_sms=st.integers(1, 40),
    tilings=st.lists(
        st.builds(
            Tiling,
            rows=st.integers(1, 32),
            columns=st.integers(1, 50),
            rows_per_token=st.integers(1, 4),
            experts=st.integers(0, 9),
        ),
        min_size=1,
        max_size=3,
    ),
    between=st.none() | st.tuples(st.integers(-9, 500), st.integers(-9, 600)),
)
def test_equal_wave_ranges_hold_all_such_boundaries(
    tokens: int, num_sms: int, tilings: list[Tiling], between: Range | None
) -> None:
    """Exhaustively: a boundary is in a range exactly if no GEMM needs a wave more."""
    ranges = equal_wave_ranges(tilings, tokens, num_sms, between)
    for boundary in range(1, tokens):
        expected = all(needs_no_wave_more(it, tokens, boundary, num_sms) for it in tilings)
        expected = expected and (between is None or between[0] <= boundary <= between[1])
        assert is_within(boundary, ranges) == expected, boundary


@pytest.mark.parametrize("m", [1, 127, 128, 4096])
def test_gemm_takes_its_best_tile(m: int) -> None:
    """No other shape is faster on the whole device, and memory is a floor."""
    gemm = Gemm(name="g", n=7168, k=8192)
    kernel = TiledGemm(gemm, H100).kernel(m)
    for tile in H100.tiles:
        only = TiledGemm(gemm, replace(H100, tiles=(tile,))).kernel(m)
        assert kernel.work_s(132) <= only.work_s(132)
    assert kernel.work_s(132) >= 2 * 7168 * 8192 / H100.memory_bandwidth


@pytest.mark.parametrize("model", sorted(MODELS))
def test_costs_are_those_of_the_kernels(model: str) -> None:
    """What the planner adds up is what the simulator is given to run."""
    blocks = BlockCosts(MODELS[model], 8, H100, Batch([100, 3000], 50))
    for part, (start, stop) in itertools.product((0, 1), ((0, 3), (3, 100), (0, 3100))):
        kernels = blocks.kernels(part, start, stop)
        expected = [sum(it.duration_s(num_sms) for it in kernels) for num_sms in (132, 116)]
        assert blocks.block_s(part, start, stop, (132, 116)) == pytest.approx(expected)


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


def brute_force(
    costs: PassCosts, tokens: int, device: Device
) -> tuple[float, list[Range], dict[int, float]]:
    """Return the least time of all boundaries that can matter, and the ranges without a wave more.

    Between two ends of strips only what is proportional to tokens changes: some are from there.
    """
    ranges = equal_wave_ranges(tuple(costs.blocks.tilings().values()), tokens, device.num_sms)
    strips = range(128, tokens, 128)
    some = range(max(1, tokens // 200), tokens, max(1, tokens // 200))
    boundaries = {*strips, *(tokens - it for it in strips), *some}
    boundaries |= {end for it in ranges for end in it}
    times_s = {it: costs.best_split(it).time_s for it in boundaries}
    return min(times_s.values()), ranges, times_s


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    tokens=st.one_of(
        st.integers(256, 6000), st.integers(256, 65536), st.integers(2, 128).map(128 .__mul__)
    ),
    model=model_names, device=st.sampled_from(GPUS), ranks=st.sampled_from([2, 4, 8]),
)  # fmt: skip
def test_boundary_is_the_best_of_all(tokens: int, model: str, device: str, ranks: int) -> None:
    """Within 1 % of brute force, and without a wave more wherever such a boundary is."""
    rates = load_device(device)
    plan = plan_of(tokens, model, device=rates, world_size=ranks)
    if plan.is_split:
        costs = PassCosts(MODELS[model], ranks, rates, Batch([tokens]))
        best_s, ranges, times_s = brute_force(costs, tokens, rates)
        limit_s = best_s * 1.01
        assert costs.split_s(plan) <= limit_s
        if any(time_s <= limit_s and is_within(it, ranges) for it, time_s in times_s.items()):
            assert is_within(plan.boundary, ranges)


@pytest.mark.parametrize("tokens", [2048, 11000, 65536, 65537])
@pytest.mark.parametrize("sequences", [1, 64])
def test_few_boundaries_are_worked_out(
    tokens: int, sequences: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time of planning does not grow with the batch."""
    tried: list[int] = []
    original = PassCosts.best_split

    def counted(self: PassCosts, boundary: int) -> SplitCost:
        tried.append(boundary)
        return original(self, boundary)

    monkeypatch.setattr(PassCosts, "best_split", counted)
    width, rest = divmod(tokens - 3, sequences)
    plan = plan_of(tokens, batch=Batch([width] * (sequences - 1) + [width + rest + 3], 3))
    assert plan.is_split
    assert len(tried) == len(set(tried)) <= 80


def test_budgets_of_a_plan_are_its_best() -> None:
    """No other SMs for any of the four reductions of a layer make the pass shorter."""
    costs = PassCosts(LLAMA, 8, H100, Batch([8192]))
    plan = plan_of(8192)
    choices = [ReductionChoice(algorithm="two_shot", num_sms=it) for it in H100.reduction_sms]
    for combination in itertools.product(choices, repeat=4):
        parts = tuple(
            replace(part, reductions=combination[2 * index : 2 * index + 2])
            for index, part in enumerate(plan.parts)
        )
        assert costs.split_s(replace(plan, parts=parts)) >= costs.split_s(plan) * (1 - 1e-12)


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


@pytest.mark.parametrize("alignment", [16, 100, 512, 6000])
def test_boundary_inside_a_sequence_keeps_its_alignment(alignment: int) -> None:
    """Positions count from the start of the sequence, cached tokens included."""
    for lengths, past in (([8192], 1000), ([3000, 5192], 700)):
        plan = plan_of(8192, batch=Batch(lengths, past), alignment=alignment)
        inside = plan.boundary - (3000 if len(lengths) == 2 and plan.boundary >= 3000 else 0)
        assert plan.is_split
        assert inside == 0 or (inside + past) % alignment == 0


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
