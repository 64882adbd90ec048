// The protocol's Memory and Waiter for ranks that are processes (or threads, in tests) of one host:
// C++ atomics on shared pages, a short spin, then a shared futex.
#pragma once

#include "token/comm/protocol.hpp"
#include "token/common/check.hpp"

#include <atomic>
#include <chrono>
#include <climits>
#include <cstdint>
#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

namespace token::comm {

static_assert(std::atomic_ref<uint32_t>::is_always_lock_free,
              "signals must not hide a process-local lock");

inline void cpu_relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

// Not FUTEX_PRIVATE: the word is shared between address spaces.
inline void futex_wake_all(uint32_t* word) {
    ::syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

// Returns early when woken, when *word != seen, on a signal, or spuriously: callers loop.
inline void futex_wait(uint32_t* word, uint32_t seen, std::chrono::nanoseconds at_most) {
    timespec timeout;
    timeout.tv_sec = static_cast<time_t>(at_most.count() / 1000000000);
    timeout.tv_nsec = static_cast<long>(at_most.count() % 1000000000);
    ::syscall(SYS_futex, word, FUTEX_WAIT, seen, &timeout, nullptr, 0);
}

// The core this thread runs on, counted from 1.
inline uint32_t this_core() {
    return static_cast<uint32_t>(::sched_getcpu() + 1);
}

// Moves this thread to another core it may run on, if there is one. It stays free to move again.
inline void leave_this_core() {
    cpu_set_t allowed;
    if (::sched_getaffinity(0, sizeof(allowed), &allowed) != 0) {
        return;
    }
    cpu_set_t others = allowed;
    CPU_CLR(this_core() - 1, &others);
    if (CPU_COUNT(&others) > 0 && ::sched_setaffinity(0, sizeof(others), &others) == 0) {
        ::sched_setaffinity(0, sizeof(allowed), &allowed);
    }
}

struct HostMemory {
    static uint32_t load_acquire(uint32_t& word) {
        return std::atomic_ref<uint32_t>(word).load(std::memory_order_acquire);
    }

    // Sequentially consistent, not only release: the store of `value` must be ordered before the
    // load of `sleeping`, as the waiter orders its store of `sleeping` before its re-read of
    // `value`. With release alone both may read the old word, and the waiter sleeps through its
    // signal.
    static void signal(SignalLine& line, uint32_t value) {
        std::atomic_ref<uint32_t>(line.core).store(this_core(), std::memory_order_relaxed);
        std::atomic_ref<uint32_t>(line.value).store(value, std::memory_order_seq_cst);
        if (std::atomic_ref<uint32_t>(line.sleeping).load(std::memory_order_seq_cst) != 0) {
            futex_wake_all(&line.value);
        }
    }
};

// Looks at the world while a wait sleeps. check() throws when the wait can no longer succeed: a
// peer died, another rank gave up, the user pressed Ctrl-C.
class WaitMonitor {
  public:
    virtual ~WaitMonitor() = default;
    virtual void check() = 0;
    [[noreturn]] virtual void timed_out(int peer) = 0;
};

// Waits for a line: spins `spin_count` polls, then sleeps in slices so that the monitor sees a dead
// peer within one slice plus its own detection time.
//
// Two ranks that wake each other end up on one core (the kernel wakes near the waker, and whoever
// spins there keeps its peer from running), and stay while no other core looks idle: 110 us for a
// barrier between 2 ranks on 2 cores where 0.15 us are due. So a wait that is not over at once
// looks where its peer last ran. On its own core it stops spinning, and the higher rank of the two
// moves.
class HostWaiter {
  public:
    static constexpr std::chrono::milliseconds kSlice{20};

    // Polls before a wait looks where its peer ran; longer than ranks in step are apart (1 us).
    static constexpr int kPollsInStep = 60;

    HostWaiter(int rank, int spin_count, std::chrono::nanoseconds timeout, WaitMonitor* monitor)
        : rank_(rank), spin_count_(spin_count), timeout_(timeout), monitor_(monitor) {}

    HostWaiter with(WaitMonitor* monitor) const {
        return HostWaiter(rank_, spin_count_, timeout_, monitor);
    }

    bool operator()(SignalLine& line, uint32_t expected, int peer) {
        for (int spin = 0; spin < spin_count_; ++spin) {
            if (has_reached(HostMemory::load_acquire(line.value), expected)) {
                return true;
            }
            if (spin == kPollsInStep && has_peer_on_this_core(line)) {
                if (peer < rank_) {
                    leave_this_core();
                }
                break;
            }
            cpu_relax();
        }
        sleep_until(line, expected, peer);
        return true;
    }

  private:
    static bool has_peer_on_this_core(SignalLine& line) {
        return std::atomic_ref<uint32_t>(line.core).load(std::memory_order_relaxed) == this_core();
    }

    void sleep_until(SignalLine& line, uint32_t expected, int peer) {
        const auto deadline = std::chrono::steady_clock::now() + timeout_;
        std::atomic_ref<uint32_t> value(line.value);
        std::atomic_ref<uint32_t> sleeping(line.sleeping);
        struct AwakeAtExit {
            std::atomic_ref<uint32_t>& flag;
            ~AwakeAtExit() { flag.store(0, std::memory_order_relaxed); }
        } awake_at_exit{sleeping};
        sleeping.store(1, std::memory_order_seq_cst);
        bool expired = false;
        while (true) {
            const uint32_t seen = value.load(std::memory_order_seq_cst);
            if (has_reached(seen, expected)) {
                return;
            }
            if (expired) {
                monitor_->timed_out(peer);
            }
            const auto before = std::chrono::steady_clock::now();
            const auto left = deadline - before;
            const auto slice = std::min<std::chrono::nanoseconds>(left, kSlice);
            if (slice > std::chrono::nanoseconds::zero()) {
                futex_wait(&line.value, seen, slice);
            }
            // A peer that signalled and then died has still signalled: the value is read again
            // before the deadline or the monitor has a say.
            if (has_reached(value.load(std::memory_order_seq_cst), expected)) {
                return;
            }
            const auto now = std::chrono::steady_clock::now();
            expired = now >= deadline;
            if (!expired && now - before >= kSlice / 2) {
                monitor_->check();
            }
        }
    }

    int rank_;
    int spin_count_;
    std::chrono::nanoseconds timeout_;
    WaitMonitor* monitor_;
};

}  // namespace token::comm
