"""Which implementation of local attention is taken, and why."""

import pytest
import torch

from tokenfabric.errors import ConfigError
from tokenring.capability import Capability, LocalNeeds, choose_capability
from tokenring.local import choose_local


def needs(**changes: object) -> LocalNeeds:
    values: dict[str, object] = {
        "device": "cpu", "dtype": "bfloat16", "head_dim": 64, "head_dim_v": 64,
        "needs_backward": True,
    }  # fmt: skip
    return LocalNeeds(**{**values, **changes})  # type: ignore[arg-type]


def test_choice_and_its_reasons() -> None:
    """The first that can; who cannot is listed with the reason."""
    local, choice = choose_local(needs(bands=frozenset({"full", "causal", "offset", "window"})))
    assert local.capability.name == choice.name == "flash_cpu"
    assert choice.explain() == "flash_cpu"
    _, choice = choose_local(needs(has_softcap=True))
    assert choice.explain() == "tiled (flash_cpu: has no softcap)"
    assert choose_local(needs(), "tiled")[1].name == "tiled"


@pytest.mark.parametrize(
    ("is_built", "changes", "expected"),
    [
        (True, {}, "flash_cuda"),
        (True, {"bands": frozenset({"window"})}, "flash_cuda"),
        (True, {"dtype": "float32"}, "tiled (flash_cuda: computes bfloat16, float16, not float32)"),
        (True, {"has_softcap": True}, "tiled (flash_cuda: has no softcap)"),
        (True, {"head_dim": 512}, "tiled (flash_cuda: takes head dimensions up to 256, not 512)"),
        (True, {"is_deterministic": True}, "tiled (flash_cuda: is not deterministic)"),
        (False, {}, "tiled (flash_cuda: needs a torch built with flash attention)"),
    ],
)
def test_choice_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, is_built: bool, changes: dict[str, object], expected: str
) -> None:
    """By what the kernels can do; asking starts no GPU."""
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: is_built)
    assert choose_local(needs(device="cuda", **changes))[1].explain() == expected


def test_refusals_of_a_choice() -> None:
    """What none can do, or not the named one, is refused by name."""
    with pytest.raises(ConfigError, match="'flash_cpu' cannot do this: it has no softcap"):
        choose_local(needs(has_softcap=True), "flash_cpu")
    with pytest.raises(
        ConfigError, match="'flash_9' does not exist; pass one of flash_cpu, flash_cuda, tiled"
    ):
        choose_local(needs(), "flash_9")
    with pytest.raises(ConfigError, match=r"flash_cpu: computes .*, not int8; tiled: computes"):
        choose_local(needs(dtype="int8"))
    with pytest.raises(ConfigError, match="head_dim is 0"):
        needs(head_dim=0)
    little = Capability(
        name="little", devices=frozenset({"cpu"}), dtypes=frozenset({"bfloat16"}),
        bands=frozenset({"full"}), max_head_dim=64, has_softcap=False, has_backward=False,
        is_deterministic=False,
    )  # fmt: skip
    for changes, reason in (
        ({"head_dim_v": 128}, "takes head dimensions up to 64, not 128"),
        ({"bands": frozenset({"window", "causal"})}, "has no causal mask"),
        ({}, "has no backward"),
        ({"needs_backward": False, "is_deterministic": True}, "is not deterministic"),
    ):
        with pytest.raises(ConfigError, match=reason):
            choose_capability(needs(**changes), [little])
