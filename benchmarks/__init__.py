"""Benchmarks: run one with `python -m benchmarks.<name>`; results are kept in results/."""
