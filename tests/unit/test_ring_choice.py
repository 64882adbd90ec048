"""Which implementation of local attention is taken, and why."""

import importlib.metadata

import pytest
import torch

from tokenfabric.errors import ConfigError
from tokenring import installed
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
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: False)
    assert choose_local(needs(device="cuda", **changes))[1].explain() == expected


@pytest.mark.parametrize(
    ("distribution", "version", "capability", "expected"),
    [
        ("flash-attn", "2.8.3", (8, 0), "flash_attn_2"),
        ("flash-attn", "2.6.3", (8, 0), "flash_cuda"),
        ("flash-attn-3", "3.0.0b1", (9, 0), "flash_attn_3"),
        ("flash-attn-3", "3.0.0b1", (8, 0), "flash_cuda"),
        ("flash-attn-4", "4.0.0b2", (10, 0), "flash_attn_4"),
    ],
)
def test_installed_packages_are_preferred(
    monkeypatch: pytest.MonkeyPatch,
    distribution: str,
    version: str,
    capability: tuple[int, int],
    expected: str,
) -> None:
    """Where their version and the GPU fit; asked for by name they say why not."""

    def find(name: str) -> str:
        if name == distribution:
            return version
        raise importlib.metadata.PackageNotFoundError(name)

    installed.why_not_installed.cache_clear()
    monkeypatch.setattr(importlib.metadata, "version", find)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    assert choose_local(needs(device="cuda"))[1].explain() == expected
    with pytest.raises(ConfigError, match=r"it needs the package flash-attn|it needs compute"):
        choose_local(
            needs(device="cuda"), "flash_attn_4" if capability < (10, 0) else "flash_attn_2"
        )
    installed.why_not_installed.cache_clear()


def test_refusals_of_a_choice() -> None:
    """What none can do, or not the named one, is refused by name."""
    with pytest.raises(ConfigError, match="'flash_cpu' cannot do this: it has no softcap"):
        choose_local(needs(has_softcap=True), "flash_cpu")
    with pytest.raises(
        ConfigError, match=r"'flash_9' does not exist; pass one of cudnn, flash_attn_2, .* tiled"
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
