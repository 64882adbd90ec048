"""For tests and benchmarks only: start ranks, judge numbers, poison memory, measure."""
