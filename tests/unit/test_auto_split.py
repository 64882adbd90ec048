"""split="auto" on GPUs: by the table of the very GPUs and the model's sizes, or not at all."""

import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.unit.gpu_models import put_fakes
from tests.unit.test_tuned_tables import entry
from tokenfabric.cuda.capability import AgreedCapability
from tokenfabric.prepared import PreparedCalls
from tokenweave import WeaveConfig
from tokenweave.device_at_hand import choose_table
from tokenweave.device_tables import device_names, load_device
from tokenweave.model_shape import ModelShape
from tokenweave.passes import Passes, PassShape
from tokenweave.split import plan_split
from tokenweave.tuned_tables import default_path, gpu_key, write_tuned

MODEL = "Llama-3.3-70B"
CONFIG = {
    "model_type": "llama", "num_hidden_layers": 80, "hidden_size": 8192, "vocab_size": 128256,
    "num_attention_heads": 64, "num_key_value_heads": 8, "intermediate_size": 28672,
}  # fmt: skip
SIZE = 8


def agreed_on(gpu: str = "NVIDIA H200", **changes: Any) -> AgreedCapability:
    """Return what ranks with a GPU each have agreed on."""
    facts: dict[str, Any] = {
        "reach": "multicast", "reason": "", "world_size": SIZE, "num_devices": SIZE,
        "compute_capability": (9, 0), "num_sms": 132, "gpu": gpu,
    }  # fmt: skip
    return AgreedCapability(**facts | changes)


def passes_on(agreed: AgreedCapability, config: dict[str, Any], **asked: Any) -> Passes:
    """Return the passes of a model."""
    world: Any = SimpleNamespace(
        cuda=SimpleNamespace(device=torch.device("cuda", 0), capability=agreed, table=b""),
        rank=3, size=SIZE, num_hosts=1, layout=SimpleNamespace(num_hosts=1),
        prepared=PreparedCalls(), device=torch.device("cuda", 0),
    )  # fmt: skip
    passes = Passes(world, WeaveConfig(**asked))
    passes.know(config, MODEL)
    return passes


def shape_of(tokens: int, **changes: Any) -> PassShape:
    """Return a pass of one sequence."""
    facts: dict[str, Any] = {
        "num_sequences": 1, "num_tokens": tokens, "hidden": 8192, "dtype": torch.bfloat16,
        "num_layers": 80,
    }  # fmt: skip
    return PassShape(**facts | changes)


@pytest.fixture(autouse=True)
def _fakes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    put_fakes(monkeypatch, "one_shot")
    monkeypatch.setenv("TOKENFABRIC_CACHE_DIR", str(tmp_path))


def test_measured_rates_go_before_the_table() -> None:
    """Of so many of the very GPU; an entry of other ranks is not taken."""
    slow = 1e10
    write_tuned(default_path(), entry(gpu_key("NVIDIA H200", SIZE), "h200", link_bandwidth=slow))
    plan = passes_on(agreed_on(), CONFIG).plan(shape_of(8192))
    measured = replace(load_device("h200"), name="h200 (tuned)", link_bandwidth=slow)
    expected = plan_split(
        8192, shape=ModelShape.from_config(CONFIG, MODEL), world_size=SIZE, device=measured
    )
    assert plan.boundary == expected.boundary
    assert "rates measured on NVIDIA H200" in plan.explain()
    four = agreed_on(world_size=4, num_devices=4)
    assert "device table h200" in passes_on(four, CONFIG).plan(shape_of(8192)).explain()


def test_the_plan_is_the_planners() -> None:
    """Boundary and SM budgets are those of plan_split; the plan names the table; made once."""
    passes = passes_on(agreed_on(), CONFIG)
    plan = passes.plan(shape_of(8192))
    expected = plan_split(
        8192,
        shape=ModelShape.from_config(CONFIG, MODEL),
        world_size=SIZE,
        device=load_device("h200"),
    )
    assert plan.is_split
    assert (plan.boundary, plan.parts) == (expected.boundary, expected.parts)
    assert "device table h200 for NVIDIA H200" in plan.explain()
    assert passes.plan(shape_of(8192)) is plan
    choices = {it for part in plan.parts for it in part.reductions} | {*plan.entry, plan.last}
    assert {it.algorithm for it in choices} == {"two_shot"}


def test_small_passes_stay_whole_with_the_worlds_reductions() -> None:
    """Decoding: the planner says why, the kernel's planner how."""
    plan = passes_on(agreed_on(), CONFIG).plan(shape_of(1))
    assert (plan.kind, plan.last.algorithm) == ("fused_only", "one_shot")
    assert "launching its kernels twice" in plan.explain()


def test_sequences_are_not_cut_where_they_must_not_be() -> None:
    """Boundaries between sequences, and reasons for none."""
    passes = passes_on(agreed_on(), CONFIG)
    between = {"cuts": "between sequences", "why": "because of the test"}
    plan = passes.plan(shape_of(2048, num_sequences=4, **between))
    assert plan.is_split
    assert plan.boundary % 2048 == 0
    assert not passes.plan(shape_of(8192, **between)).is_split
    plan = passes.plan(shape_of(8192, cuts="nowhere", why="because of the test"))
    assert "because of the test" in plan.explain()


OBSTACLES = [
    (agreed_on("NVIDIA H200 NVL"), CONFIG, "no device table for 'NVIDIA H200 NVL'"),
    (agreed_on(""), CONFIG, "the ranks have different GPUs"),
    (agreed_on(num_devices=1), CONFIG, "8 ranks share 1 GPU"),
    (agreed_on(num_sms=66), CONFIG, "has 66 SMs here and 132 in device table h200"),
    (agreed_on(), CONFIG | {"model_type": "arcee"}, "'arcee' is not known"),
]


@pytest.mark.parametrize(("agreed", "config", "why"), OBSTACLES, ids=[it[2] for it in OBSTACLES])
def test_what_cannot_be_planned_is_said_once(
    caplog: pytest.LogCaptureFixture, agreed: AgreedCapability, config: dict[str, Any], why: str
) -> None:
    """On the log, and in every plan; nothing is split by another GPU's table."""
    with caplog.at_level(logging.WARNING, logger="tokenfabric"):
        passes = passes_on(agreed, config)
        for tokens in (8192, 16384):
            plan = passes.plan(shape_of(tokens))
            assert not plan.is_split
            assert why in plan.explain()
    assert [why in record.message for record in caplog.records] == [True]


def test_without_multicast_the_planner_reckons_with_peers() -> None:
    """The same GPUs behind other links."""
    agreed = agreed_on(reach="peer", reason="no fabric manager")
    plan = passes_on(agreed, CONFIG).plan(shape_of(8192))
    assert "without multicast (no fabric manager)" in plan.explain()
    assert plan.prediction != passes_on(agreed_on(), CONFIG).plan(shape_of(8192)).prediction


@pytest.mark.parametrize("asked", [{"overlap": "off"}, {"reduction": "gloo"}])
def test_nothing_is_split_that_would_run_in_order(asked: dict[str, str]) -> None:
    """A split pass without a second stream only adds launches."""
    plan = passes_on(agreed_on(), CONFIG, **asked).plan(shape_of(8192))
    assert not plan.is_split
    assert "nothing would run beside" in plan.explain()


def test_every_table_of_a_gpu_can_be_found() -> None:
    """No table is there that no GPU leads to, the CPU's apart."""
    gpus = ["NVIDIA A10", "NVIDIA A100-SXM4-80GB", "NVIDIA B200", "NVIDIA H100 80GB HBM3",
            "NVIDIA H200", "NVIDIA L40S"]  # fmt: skip
    found = {choose_table(gpu, 8, 8).name for gpu in gpus}
    assert found == set(device_names()) - {"cpu"}
