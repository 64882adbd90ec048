// The emulator itself: a small all-reduce that is right, and the same with one mistake each, which
// must be found.
#include "emulator.hpp"
#include "expect.hpp"
#include "token/ptx/barrier.hpp"
#include "token/ptx/clock.hpp"
#include "token/ptx/multimem.hpp"
#include "token/ptx/scoped.hpp"
#include "token/ptx/shared.hpp"
#include "token/ptx/sleep.hpp"
#include "token/ptx/vectors.hpp"

#include <string>

namespace {

using namespace token;
using emulator::EmulationError;
using emulator::Machine;
using emulator::Schedule;

constexpr int kThreads = 64;
constexpr int kValues = kThreads;
using Kind = EmulationError::Kind;

struct Shared {
    float partial[2];
};
constexpr int kWarps = kThreads / 32;

// Every rank adds the values of all ranks, then scales by their sum over the block.
struct Parameters {
    const float* values[8];  // [kValues] of each rank
    uint32_t* signals[8];    // [num_ranks] words of each rank
    float* out;              // [kValues]
    int rank, num_ranks;
    uint32_t epoch;
    uint64_t timeout_ns;
    uint32_t* failed;
    int omitted;  // mistake
};

enum Mistake { kNone, kNoEntryBarrier, kNoSyncThreads, kNoSyncBeforeReuse, kBarrierInBranch };

__global__ void add_and_scale(Parameters p) {
    // One kind of shared memory each: dynamic and static.
    Shared& shared = ptx::dynamic_shared<Shared>();
    __shared__ float lowest_of_warp[kWarps];
    const int thread = static_cast<int>(threadIdx.x);
    if (p.omitted != kNoEntryBarrier) {
        if (thread < p.num_ranks) {
            ptx::st_release_sys(p.signals[thread] + p.rank, p.epoch);
            const uint64_t start_ns = ptx::globaltimer_ns();
            while (ptx::ld_acquire_sys(p.signals[p.rank] + thread) != p.epoch) {
                ptx::nanosleep(64);
                if (p.timeout_ns != 0 && ptx::globaltimer_ns() - start_ns > p.timeout_ns) {
                    ptx::st_relaxed_sys(p.failed, static_cast<uint32_t>(thread) + 1);
                    break;
                }
            }
        }
        __syncthreads();
    }
    for (int round = 0; round < 2; ++round) {
        float value = 0.0f;
        for (int rank = 0; rank < p.num_ranks; ++rank) {
            value += __uint_as_float(ptx::ld_relaxed_sys_4B(p.values[rank] + thread));
        }
        float sum = value;
        for (int step = 16; step > 0; step /= 2) {
            sum += __shfl_xor_sync(0xffffffffu, sum, step);
        }
        if (round != 0 && p.omitted != kNoSyncBeforeReuse) {
            __syncthreads();
        }
        if (thread % 32 == 0) {
            shared.partial[thread / 32] = sum;
            lowest_of_warp[thread / 32] = value;
        }
        if (p.omitted == kBarrierInBranch && thread < 32) {
            ptx::bar_sync(1, kThreads);
        }
        if (p.omitted != kNoSyncThreads) {
            __syncthreads();
        }
        const float scaled = value / (shared.partial[0] + shared.partial[1]);
        // Lane 0 has the lowest value, and warp 0 lower ones than warp 1.
        const bool is_sorted = lowest_of_warp[0] <= value && lowest_of_warp[0] < lowest_of_warp[1];
        ptx::st_global_4B(p.out + thread, __float_as_uint(is_sorted ? scaled : -1.0f));
    }
}

struct Result {
    bool is_right = true;
    uint32_t failed = 0;
    std::string error;
    Kind kind = Kind::kTrap;
};

struct Settings {
    int num_ranks = 3;
    int omitted = kNone;
    int missing_rank = -1;
    uint64_t timeout_ns = 0;
    emulator::SeededFaults faults = {};
};

Result run(const Settings& settings, uint64_t seed) {
    Machine machine(settings.num_ranks, Schedule::of_seed(seed));
    machine.faults() = settings.faults;
    machine.set_names_lines(seed == 0);
    auto& values = machine.allocate_symmetric("values", kValues * sizeof(float));
    auto& signals = machine.allocate_symmetric("signals", 8 * sizeof(uint32_t));
    auto& out = machine.allocate_symmetric("out", kValues * sizeof(float));
    auto& failed = machine.allocate("failed", 0, sizeof(uint32_t));
    *failed.as<uint32_t>() = 0;
    double sum = 0;
    for (int rank = 0; rank < settings.num_ranks; ++rank) {
        Parameters p{};
        for (int peer = 0; peer < settings.num_ranks; ++peer) {
            p.values[peer] = values.of_rank[peer]->as<float>();
            p.signals[peer] = signals.of_rank[peer]->as<uint32_t>();
            signals.of_rank[rank]->as<uint32_t>()[peer] = 0;
        }
        p.out = out.of_rank[rank]->as<float>();
        p.rank = rank;
        p.num_ranks = settings.num_ranks;
        p.epoch = 1;
        p.timeout_ns = settings.timeout_ns;
        p.failed = failed.as<uint32_t>();
        p.omitted = settings.omitted;
        float* own = values.of_rank[rank]->as<float>();
        for (int i = 0; i < kValues; ++i) {
            sum += rank + i;
        }
        if (rank == settings.missing_rank) {
            continue;
        }
        machine.host(rank, [own, rank] {
            for (int i = 0; i < kValues; ++i) {
                own[i] = static_cast<float>(rank + i);
            }
        });
        machine.launch(rank, {{1}, {kThreads}, sizeof(Shared)}, add_and_scale, p);
    }
    Result result;
    try {
        machine.run();
    } catch (const EmulationError& error) {
        result.error = error.what();
        result.kind = error.kind;
        return result;
    }
    for (int rank = 0; rank < settings.num_ranks; ++rank) {
        for (int i = 0; i < kValues; ++i) {
            double expected = 0;
            for (int peer = 0; peer < settings.num_ranks; ++peer) {
                expected += peer + i;
            }
            const float got = out.of_rank[rank]->as<float>()[i];
            result.is_right &= std::fabs(got - expected / sum) < 1e-6;
        }
    }
    result.failed = *failed.as<uint32_t>();
    return result;
}

void the_right_kernel_is_right() {
    for (uint64_t seed = 0; seed < 60; ++seed) {
        const Result result = run({.num_ranks = static_cast<int>(seed % 8) + 1}, seed);
        EXPECT_EQ(result.error, "");
        EXPECT(result.is_right);
    }
}

void expect_found(const Settings& settings, Kind kind, const char* words) {
    for (uint64_t seed = 0; seed < 30; ++seed) {
        const Result result = run(settings, seed);
        EXPECT(!result.error.empty());
        EXPECT(result.kind == kind);
        if (result.error.find(words) == std::string::npos) {
            EXPECT_EQ(result.error, words);
        }
    }
}

}  // namespace

int main() {
    the_right_kernel_is_right();
    expect_found({.omitted = kNoEntryBarrier}, Kind::kRace, "nothing orders");
    expect_found({.omitted = kNoSyncThreads}, Kind::kRace, "shared memory");
    expect_found({.omitted = kNoSyncBeforeReuse}, Kind::kRace, "shared memory");
    expect_found({.omitted = kBarrierInBranch}, Kind::kDeadlock, "at barrier 1");
    expect_found({.faults = {.release_is_relaxed = true}}, Kind::kRace, "values of rank");
    expect_found({.faults = {.acquire_is_relaxed = true}}, Kind::kRace, "values of rank");
    expect_found({.missing_rank = 1}, Kind::kDeadlock, "signals of rank 0 + 0x4");
    return testing::finish("emulator");
}
