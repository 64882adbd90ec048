"""A model over several hosts: parallelize and generate as on one."""

import zlib

import pytest
import torch

import tokenweave
from tests.dist.host_worlds import Hosts
from tests.dist.llama_models import FAMILY_CASES, SMOLLM2_LIKE, ModelCase, is_attended
from tokenfabric.testing.spawn import run_ranks
from tokenfabric.testing.tolerance import assert_close, assert_same_bits
from tokenfabric.world import World
from tokenweave.prepare import cheapest_residual_layout

CASES = [SMOLLM2_LIKE, *(case for case in FAMILY_CASES if case.name in ("gemma3", "mixtral"))]


def _rank_model(rank: int, world_size: int, hosts: Hosts) -> list[list[int]]:
    with hosts.world(rank) as world, torch.inference_mode():
        return [tokens for case in CASES for tokens in tokens_of(case, world)]


def tokens_of(case: ModelCase, world: World) -> tuple[list[int], list[int]]:
    """Compare a model with the whole one; return greedy and sampled tokens."""
    model, plain = case.model(), case.model()
    inputs = case.inputs()
    greedy = {"max_new_tokens": 6, "do_sample": False}
    expected = plain.generate(**inputs, **greedy)
    sharded = tokenweave.parallelize(model, world)
    got = sharded.generate(**inputs, **greedy)
    assert torch.equal(got, expected), str(case)
    attended = is_attended(inputs)
    output = sharded(**inputs, output_hidden_states=True)
    reference = plain(**inputs, output_hidden_states=True)
    for mine, theirs in zip(output.hidden_states, reference.hidden_states, strict=True):
        # fp32, sums of 101 terms
        assert torch.allclose(mine[attended], theirs[attended], rtol=1e-5, atol=2e-4), str(case)
    sampled = sharded.generate(**inputs, max_new_tokens=6, do_sample=True)
    tokenweave.restore(sharded)
    for name, value in plain.state_dict().items():
        assert_same_bits(sharded.state_dict()[name], value, what=f"{case}: {name}")
    return got.flatten().tolist(), sampled.flatten().tolist()


@pytest.mark.parametrize("hosts", [Hosts(2, 1), Hosts(2, 2)], ids=str)
def test_a_model_generates_the_same_tokens_on_all_hosts(hosts: Hosts) -> None:
    """Greedy tokens are the plain model's, sampled ones the same on every rank."""
    results = run_ranks(_rank_model, hosts.size, hosts, with_world=False)
    assert all(result == results[0] for result in results)


def _rank_long_pass(rank: int, world_size: int, hosts: Hosts) -> int:
    case = SMOLLM2_LIKE
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 131, (16, 260), generator=generator)
    exact, plain, model = case.model().double(), case.model().bfloat16(), case.model().bfloat16()
    with hosts.world(rank) as world, torch.inference_mode():
        layouts = [
            cheapest_residual_layout(
                world, num_tokens=tokens, hidden=model.config.hidden_size, dtype=torch.bfloat16
            )
            for tokens in (3, ids.numel())
        ]
        assert layouts == ["replicated", "row_sharded"]
        logits = tokenweave.parallelize(model, world)(input_ids=ids).logits
        if rank == 0:
            reference, baseline = exact(input_ids=ids).logits, plain(input_ids=ids).logits
            assert_close(logits, reference, baseline, what="logits")
        return zlib.crc32(logits.view(torch.int16).numpy().tobytes())


def test_a_long_pass_shards_the_residual_over_hosts() -> None:
    """In bf16, with two messages between hosts a reduction: as exact as one process, same bits."""
    digests = run_ranks(_rank_long_pass, 3, Hosts(3, 1), with_world=False)
    assert len(set(digests)) == 1
