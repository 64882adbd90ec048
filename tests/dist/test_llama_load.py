"""from_pretrained: each rank reads its share of a checkpoint, and the same model comes out."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

import tokenweave
from tests.dist.llama_models import ALL_CASES, CASES, SMOLLM2_LIKE, ModelCase
from tokenfabric.errors import ConfigError, MismatchError
from tokenfabric.testing.spawn import RanksFailedError, run_ranks
from tokenfabric.testing.tolerance import assert_same_bits
from tokenfabric.world import World

WIDE = ModelCase(
    name="wide",
    config={"hidden_size": 144, "intermediate_size": 512, "vocab_size": 700, "mlp_bias": True},
)


def save(case: ModelCase, directory: Path, **options: Any) -> Path:
    model: Any = case.model()
    model.generation_config.max_new_tokens = 3
    model.save_pretrained(directory, **options)
    return directory


def load_complete(directory: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory)


def _rank_load(world: World, directory: Path, case: ModelCase) -> tuple[int, int, int]:
    inputs = case.inputs()
    complete = load_complete(directory)
    weights = {name: value.clone() for name, value in complete.state_dict().items()}
    with torch.no_grad():
        alone = complete(**inputs).logits
    expected = tokenweave.parallelize(complete, world)
    expected_parameters = dict(expected.named_parameters())

    model: Any = tokenweave.from_pretrained(directory, world)
    assert not model.training
    for name, parameter in model.named_parameters():
        assert_same_bits(parameter.data, expected_parameters[name].data, what=name)
        assert parameter.data_ptr() % 64 == 0, f"{name} is a view into the file"
        assert parameter.untyped_storage().nbytes() == parameter.nbytes, name
    assert_same_bits(model(**inputs).logits, expected(**inputs).logits, what="logits")
    assert model.generate(**inputs).shape[1] == case.tokens + 3, "generation_config.json is read"
    report = model.tokenweave.load_report
    num_kept = sum(p.nbytes for p in model.parameters())

    tokenweave.restore(model)
    for name, value in model.state_dict().items():
        assert_same_bits(value, weights[name], what=name)
    assert all(p.requires_grad for p in model.parameters())
    with torch.no_grad():
        assert_same_bits(model(**inputs).logits, alone, what="logits of the restored model")
    return report.bytes_read, report.total_bytes, num_kept


# Which implementation of experts a model uses is not in its checkpoint.
LOADED = [
    *(*CASES[:5], CASES[9], CASES[11], WIDE),
    *(case for case in ALL_CASES[len(CASES) :] if "experts_implementation" not in case.config),
]


def _rank_load_all(world: World, directory: Path) -> list[tuple[int, int, int]]:
    results = []
    for case in LOADED:
        try:
            results.append(_rank_load(world, directory / str(case), case))
        except AssertionError as error:
            raise AssertionError(f"{case}: {error}") from error
    return results


def test_a_loaded_model_is_the_parallelized_one(tmp_path: Path) -> None:
    """The same bits as loading all of it and sharding, from a third of the bytes on each rank."""
    for case in LOADED:
        save(case, tmp_path / str(case))
    results = run_ranks(_rank_load_all, 3, tmp_path, timeout_s=110)
    for case, of_ranks in zip(LOADED, zip(*results, strict=True), strict=True):
        for bytes_read, total_bytes, num_kept in of_ranks:
            assert bytes_read == num_kept, str(case)
            assert total_bytes == of_ranks[0][1], str(case)
            assert bytes_read < 0.5 * total_bytes, str(case)


def test_each_rank_reads_one_of_n_parts(tmp_path: Path) -> None:
    """All ranks together read the file once, but for norms and biases."""
    save(WIDE, tmp_path)
    for world_size in (1, 3):  # of 3 KV groups: uneven shares of attention would blur it
        results = run_ranks(_rank_load, world_size, tmp_path, WIDE, timeout_s=110)
        total_bytes = results[0][1]
        assert total_bytes == sum(
            p.nbytes for p in load_file(tmp_path / "model.safetensors").values()
        )
        read = [bytes_read for bytes_read, _, _ in results]
        assert total_bytes <= sum(read) <= 1.02 * total_bytes
        assert max(read) <= 1.03 * total_bytes / world_size


def test_a_checkpoint_of_several_files_is_read_through_its_index(tmp_path: Path) -> None:
    """save_pretrained splits large models; the parts are found."""
    save(WIDE, tmp_path, max_shard_size="200KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    run_ranks(_rank_load, 2, tmp_path, WIDE)


def _rank_dtype(world: World, directory: Path) -> None:
    model = tokenweave.from_pretrained(directory, world, dtype=torch.bfloat16)
    expected = tokenweave.parallelize(SMOLLM2_LIKE.model().bfloat16(), world)
    # transformers keeps the rotary table in fp32 when it loads in bf16, though not when it casts.
    reference: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16)
    rotary: Any = model.base_model.rotary_emb
    assert_same_bits(rotary.inv_freq, reference.base_model.rotary_emb.inv_freq)
    for (name, a), b in zip(model.named_parameters(), expected.parameters(), strict=True):
        assert_same_bits(a.data, b.data, what=name)
    tokenweave.parallelize(reference, world)
    inputs = SMOLLM2_LIKE.inputs()
    assert_same_bits(model(**inputs).logits, reference(**inputs).logits, what="logits")


def test_a_checkpoint_can_be_loaded_in_another_dtype(tmp_path: Path) -> None:
    """An fp32 checkpoint in bf16: each share is rounded once."""
    run_ranks(_rank_dtype, 2, save(SMOLLM2_LIKE, tmp_path))


def write_gguf(case: ModelCase, file: Path) -> None:
    """Write the weights of a Llama without biases as transformers expects them of llama.cpp."""
    model: Any = case.model()
    config = model.config
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, value in model.named_parameters():
        stem, _, suffix = name.rpartition(".")
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        if (num_heads := heads.get(stem.rpartition(".")[2])) is not None:
            # llama.cpp keeps the two halves of a rotated pair side by side.
            halves = value.data.view(num_heads, 2, -1, config.hidden_size)
            value = halves.transpose(1, 2).reshape(value.shape)
        writer.add_tensor(f"{names.get_name(stem)}.{suffix}", value.detach().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _rank_gguf(world: World, file: Path, case: ModelCase) -> None:
    model: Any = tokenweave.from_pretrained(file, world)
    report = model.tokenweave.load_report
    assert report.bytes_read == report.total_bytes == file.stat().st_size
    expected = tokenweave.parallelize(case.model(), world)
    for (name, a), b in zip(model.named_parameters(), expected.parameters(), strict=True):
        assert_same_bits(a.data, b.data, what=name)
    inputs = case.inputs()
    assert torch.allclose(model(**inputs).logits, expected(**inputs).logits, atol=1e-4)


@pytest.mark.skipif(find_spec("accelerate") is None, reason="accelerate is not installed")
def test_a_gguf_file_is_sharded_after_loading(tmp_path: Path) -> None:
    """transformers reads all of it on every rank; the result is the same model."""
    write_gguf(SMOLLM2_LIKE, tmp_path / "tiny.gguf")
    run_ranks(_rank_gguf, 2, tmp_path / "tiny.gguf", SMOLLM2_LIKE)


def _rank_load_only(world: World, path: Any) -> None:
    tokenweave.from_pretrained(path, world)


def refused(path: Any) -> str:
    """Return the ConfigError of loading `path` on two ranks."""
    with pytest.raises(RanksFailedError) as caught:
        run_ranks(_rank_load_only, 2, path)
    assert caught.value.raised is not None
    assert caught.value.raised.exception_type == "ConfigError"
    return caught.value.raised.message


def test_wrong_paths_are_refused_by_name(tmp_path: Path) -> None:
    """Missing directories, models and files; formats that are not read."""
    assert "'no/such-model' is not a directory" in refused("no/such-model")
    assert "is not a directory" in refused(tmp_path / "nowhere")
    assert "holds no config.json" in refused(tmp_path)
    assert "there is no file" in refused(tmp_path / "nothing.gguf")
    (tmp_path / "bad.gguf").write_bytes(b"GGUFnonsense")
    assert "transformers cannot load" in refused(tmp_path / "bad.gguf")
    save(SMOLLM2_LIKE, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nonsense")
    assert "cannot read" in refused(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert "holds neither model.safetensors" in refused(tmp_path)


def test_wrong_contents_are_refused_by_name(tmp_path: Path) -> None:
    """Other architectures, quantized models, missing tensors, other shapes, tied but different."""
    gpt2 = tmp_path / "gpt2"
    GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=16)).save_pretrained(gpt2)
    assert "GPT2LMHeadModel is not a supported architecture" in refused(gpt2)

    directory = save(SMOLLM2_LIKE, tmp_path / "llama")
    config, weights = directory / "config.json", directory / "model.safetensors"
    original_config, original = config.read_text(), load_file(weights)

    def with_config(**changes: Any) -> Path:
        config.write_text(json.dumps({**json.loads(original_config), **changes}))
        return directory

    def with_weights(**changes: torch.Tensor | None) -> Path:
        config.write_text(original_config)
        tensors = {**original, **changes}
        save_file({k: v for k, v in tensors.items() if v is not None}, weights)
        return directory

    quantized = {"quant_method": "gptq", "bits": 4}
    assert "quantized" in refused(with_config(quantization_config=quantized))
    assert "by config.json" in refused(with_config(intermediate_size=64))
    assert "must be torch.float32 or all torch.bfloat16" in refused(with_config(dtype="float16"))
    name = "model.layers.1.mlp.up_proj.weight"
    assert f"lacks {name}" in refused(with_weights(**{name: None}))
    integers = original[name].to(torch.int8)
    assert "is I8; supported are" in refused(with_weights(**{name: integers}))
    head = torch.zeros_like(original["model.embed_tokens.weight"])
    assert "different values" in refused(with_weights(**{"lm_head.weight": head}))
    only_head = {"lm_head.weight": original["model.embed_tokens.weight"]}
    with_weights(**only_head, **{"model.embed_tokens.weight": None})
    run_ranks(_rank_load, 2, directory, SMOLLM2_LIKE)


def _rank_other_checkpoint(world: World, directories: list[Path]) -> None:
    with pytest.raises(MismatchError, match="different checkpoint or config on rank 1"):
        tokenweave.from_pretrained(directories[world.rank], world)
    with pytest.raises(ConfigError, match="nowhere" if world.rank == 1 else "rank 1 refused"):
        tokenweave.from_pretrained([directories[0], directories[0] / "nowhere"][world.rank], world)


def test_ranks_load_the_same_checkpoint_or_none(tmp_path: Path) -> None:
    """Another model on one rank, or an error there, stops all of them."""
    first = save(SMOLLM2_LIKE, tmp_path / "first")
    second = tmp_path / "second"
    SMOLLM2_LIKE.model(seed=1).save_pretrained(second)
    run_ranks(_rank_other_checkpoint, 2, [first, second])
