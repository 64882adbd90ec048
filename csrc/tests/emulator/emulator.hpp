// Runs the shipped CUDA kernels, compiled by the host compiler, one fiber per CUDA thread.
//
// How to use it, see test_emulator.cpp for a whole example:
//   1. Name the test in csrc/tests/CMakeLists.txt with token_add_emulated_test(name): it compiles
//      test_<name>.cpp with builtins.hpp included by force and emulator/include before the real
//      headers, so that `#include "weave/cuda/two_shot.cuh"` is the kernel with emulated token/ptx.
//   2. Machine machine(num_ranks, Schedule::of_seed(seed));
//      SymmetricBuffer& x = machine.allocate_symmetric("x", bytes);  // x.of_rank[r]->as<T>(),
//      Buffer& out = machine.allocate("out", rank, bytes);           // x.multicast for all at once
//   3. machine.host(rank, [=] { fill inputs; });        // in stream order, like a memcpy
//      machine.launch(rank, {.grid = {blocks, 1}, .block = {threads}, .shared_bytes = n}, kernel,
//                     params);
//      machine.run();     // all ranks at once; throws EmulationError that names both sides
//   4. Read out.as<T>() afterwards; buffers begin as NaN, so NaN in a result is a wrong result.
// Every pointer that a kernel follows must lie in a Buffer. Time is emulated: globaltimer moves
// when nobody else can run, so a deadline of 30 s passes at once. num_ranks is that of streams: N
// virtual ranks in one launch are one stream, with buffers made by allocate_symmetric or one by
// one.
//
// Found: accesses that nothing orders (a release acquired, a barrier, the end of a launch), views
// of an alias without fence.proxy.alias, addresses outside buffers, misaligned vectors, barriers
// that do not meet, deadlocks. Not found: what only real weak memory would do among accesses that
// are ordered, and anything about speed.
#pragma once

#include "machine.hpp"
