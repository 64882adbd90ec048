// Who runs next. Seeded: the same seed gives the same interleaving.
#pragma once

#include <cstdint>
#include <vector>

namespace token::emulator {

struct Thread;

// splitmix64.
class Random {
  public:
    explicit Random(uint64_t seed) : state_(seed) {}
    uint64_t next() {
        uint64_t z = state_ += 0x9e3779b97f4a7c15u;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        return z ^ (z >> 31);
    }
    uint32_t below(uint32_t bound) { return static_cast<uint32_t>((next() >> 32) * bound >> 32); }
    // True once in `one_in` times.
    bool chance(uint32_t one_in) { return below(one_in) == 0; }

  private:
    uint64_t state_;
};

// Whom the schedule leaves behind, as long as anybody else can run.
enum class Starve {
    kNobody,   // uniform: every thread that can run is as likely
    kThreads,  // a random half of all threads
    kWarps,    // a random half of all warps
    kBlocks,   // a random half of all blocks
    kRank,     // one rank
};

struct Schedule {
    uint64_t seed = 1;
    Starve starve = Starve::kNobody;
    // A scheduling point lets another thread run once in so many times. 1: every memory access may
    // be the last before others run; larger: long runs, and a faster test.
    uint32_t switch_one_in = 1;
    // Scheduling points after which others are starved.
    uint32_t steps_until_others_starve = 20'000;

    // Cycles through the kinds above and several switch rates: what a sweep over seeds uses.
    static Schedule of_seed(uint64_t seed);
};

// The threads that can run.
class RunQueue {
  public:
    RunQueue(const Schedule& schedule, uint32_t num_ranks);

    void add(Thread& thread);
    bool is_empty() const { return favoured_.empty() && starved_.empty(); }
    // Takes the next one out.
    Thread* take();
    // Whether the running thread gives way at this scheduling point.
    bool is_switch_due();
    Random& random() { return random_; }

  private:
    bool is_starved(const Thread& thread) const;
    void choose_victims();

    Schedule schedule_;
    uint32_t num_ranks_;
    Random random_;
    std::vector<Thread*> favoured_, starved_;
    uint64_t victims_ = 0;
    uint32_t steps_ = 0;
};

}  // namespace token::emulator
