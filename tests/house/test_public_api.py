"""The public surface: these names and no others, each with a docstring that says how to call it."""

import importlib
import inspect
import re

import pytest

PUBLIC = {
    "tokenring": "RingCache RingPlan STRATEGIES Topology disable enable keep_attention "
    "packed_layout partition_tokens plan_attention position_ids ring_attention "
    "ring_attention_varlen ring_decode ring_prefill shard shard_labels token_cross_entropy unshard",
    "tokenfabric": "CommError CommTimeoutError ConfigError MismatchError PeerLostError "
    "SymmetricBuffer TokenFabricError TopologyError World init",
    "tokenweave": "FusedAllReduceRMSNorm FusedNormParallel PartialRowParallelLinear "
    "PartialRowwiseParallel QuantizedOutput SplitPlan WeaveConfig all_gather all_reduce "
    "allreduce_rmsnorm allreduce_rmsnorm_quantized broadcast from_pretrained parallelize "
    "partial_sum_buffer plan_split reduce_scatter restore",
}


def undocumented(name: str, member: object) -> list[str]:
    """Return what a public function leaves unsaid, or a class and its public methods."""
    text = inspect.getdoc(member) or ""
    if not text or inspect.ismodule(member):
        return [f"{name} has no docstring" if not text else f"{name} is a module"]
    if inspect.isclass(member):
        methods = {k: m for k, m in vars(member).items() if not k.startswith("_") and callable(m)}
        return [
            f"{name}.{key} has no docstring" for key, m in methods.items() if not inspect.getdoc(m)
        ]
    parameters = inspect.signature(member).parameters if callable(member) else ()
    return [f"{name} does not explain {p}" for p in parameters if not re.search(rf"\b{p}\b", text)]


@pytest.mark.parametrize("package", sorted(PUBLIC))
def test_public_names_are_the_documented_ones(package: str) -> None:
    """`__all__` is the list above, every name in it is there, and dir() shows it."""
    module = importlib.import_module(package)
    names = PUBLIC[package].split()
    assert sorted(module.__all__) == sorted(names)
    assert set(names) <= set(dir(module))
    assert [line for n in names for line in undocumented(n, getattr(module, n))] == []


class _Quiet:
    """Its method has no docstring."""

    def method(self, count: int) -> None: ...


def _unexplained(count: int, size: int) -> None:
    """Take a count."""


@pytest.mark.parametrize("member", [_Quiet, _unexplained, _Quiet.method, re])
def test_silence_is_noticed(member: object) -> None:
    """The rule can say no."""
    assert undocumented("name", member)
