"""Fine-tune a causal language model at long context on the documentation that Python carries.

    python examples/train_on_python_docs.py --model smollm2 --output run

The text is `help()`'s: 400 kB on the language, in the standard library as pydoc_data.topics. An
eighth of its topics is kept back to evaluate on. A run that is ended goes on when it is started
again. --ring ranks share each row's tokens: what that does, and more settings, are in
docs/training.md.
"""

import argparse
import json
from pathlib import Path
from pydoc_data.topics import topics

import launch
from launch.training.config import TrainConfig


def main() -> None:
    """Write the text as training reads it, and train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="smollm2", help="a checkpoint's directory")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--ring", type=int, default=2)
    parser.add_argument("--dtype", choices=["bf16", "fp32"], default="bf16")
    options = parser.parse_args()

    names = list(topics)
    kept_back = names[::8]
    data = write_documents(options.output / "learned.jsonl", set(names) - set(kept_back))
    eval_data = write_documents(options.output / "kept-back.jsonl", set(kept_back))
    folder = launch.train(
        model=options.model,
        data=[str(data)],
        eval_data=[str(eval_data)],
        output=options.output / "run",
        config=TrainConfig(
            context=options.context,
            steps=options.steps,
            ring=options.ring,
            dtype=options.dtype,
            learning_rate=1e-4,
            min_learning_rate=1e-5,
            warmup_steps=options.steps // 5,
            eval_every=max(1, options.steps // 4),
            eval_rows=1,
            checkpoint_every=max(1, options.steps // 4),
        ),
    )
    print(f"plain transformers loads {folder}")


def write_documents(path: Path, names: set[str]) -> Path:
    """Write topics as JSON lines, one document each, in order of name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": topics[name]}) + "\n" for name in sorted(names)))
    return path


if __name__ == "__main__":
    main()
