// What a run of the emulator consists of: streams of launches, blocks, threads, and what a thread
// that does not run waits for.
#pragma once

#include "clocks.hpp"
#include "fiber.hpp"

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace token::emulator {

inline constexpr int kWarpSize = 32;

struct Dim {
    uint32_t x = 1, y = 1, z = 1;
    uint32_t count() const { return x * y * z; }
};

struct Block;
struct Launch;
struct Stream;

enum class Wait : uint8_t { kNothing, kBarrier, kWarp, kWord, kSleep };

// A thread that finds in a signal word what it found there before is polling: it is run again when
// one of the words it looked at changes, or when nobody else can run.
struct Look {
    const std::byte* word;
    const void* from;
    uint64_t value;
};

struct Thread {
    Fiber fiber;
    std::byte* stack = nullptr;
    Block* block = nullptr;
    int index = 0;  // in the block
    Dim position;
    ThreadClock clock;
    Wait wait = Wait::kNothing;
    const void* waits_at = nullptr;  // the instruction
    int barrier = 0;                 // Wait::kBarrier: which
    uint32_t meeting_mask = 0;       // Wait::kWarp
    uint64_t until_ns = 0;           // Wait::kSleep
    bool is_short_sleep = true;
    std::vector<Look> looks;  // at signal words, since the last that brought news
    // Relaxed accesses meet fences: what the last fence covers, and what relaxed loads saw.
    Stamp fenced;
    std::vector<Stamp> seen_relaxed;
};

struct BlockBarrier {
    std::vector<Thread*> arrived;
    int asked_for = 0;  // threads, by all that arrived; 0: all that have not ended
};

// Lanes of a warp that meet in one instruction, keyed by its mask.
struct WarpMeeting {
    uint32_t mask = 0;
    uint32_t arrived = 0;
    uint64_t values[kWarpSize] = {};
    uint64_t result[kWarpSize] = {};
};

// Shared memory starts with whatever was there: here NaN.
struct alignas(16) SharedBytes {
    uint32_t word[4] = {~0u, ~0u, ~0u, ~0u};
};

struct Block {
    static constexpr int kNumBarriers = 16;

    Launch* launch = nullptr;
    Dim index;
    std::vector<std::unique_ptr<Thread>> threads;
    int num_alive = 0;
    BlockBarrier barriers[kNumBarriers];
    std::vector<std::deque<WarpMeeting>> meetings;  // of each warp
    std::vector<SharedBytes> shared;
    Shadow shared_shadow;
    std::vector<std::byte> static_shared;  // while another block runs
    Shadow static_shadow;
};

// A kernel in a stream; or host code in stream order, as a launch of one thread.
struct Launch {
    Stream* stream = nullptr;
    uint32_t id = 0;
    Dim grid, block;
    size_t shared_bytes = 0;
    std::function<void()> body;
    std::vector<std::unique_ptr<Block>> blocks;
    int num_alive = 0;
};

// What messages say of a launch, also when it is over.
struct LaunchName {
    std::string name;
    int rank = 0;
    int number = 0;  // in its stream
    uint32_t first_slot = 0;
    Dim grid, block;
};

// Work of one rank that runs in order.
struct Stream {
    int rank = 0;
    uint32_t first_slot = 0;
    uint32_t num_slots = 1;
    int num_queued = 0;
    SharedVector known;
    std::deque<std::unique_ptr<Launch>> launches;
    std::unique_ptr<Launch> running;
};

}  // namespace token::emulator
