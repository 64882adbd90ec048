// One emulated machine: ranks with memory and a stream each, on which kernels run as fibers.
// How to use it: emulator.hpp.
#pragma once

#include "execution.hpp"
#include "memory.hpp"
#include "schedule.hpp"

#include <exception>
#include <functional>
#include <span>
#include <stdexcept>
#include <string>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

namespace token::emulator {

// What a kernel did wrong.
struct EmulationError : std::runtime_error {
    enum class Kind { kRace, kAlias, kDeadlock, kAddress, kBarrier, kCanary, kStack, kTrap };
    EmulationError(Kind what, const std::string& message)
        : std::runtime_error(message), kind(what) {}
    Kind kind;
};

// Mistakes made on purpose, to see that they are found.
struct SeededFaults {
    bool release_is_relaxed = false;
    bool acquire_is_relaxed = false;
    bool alias_fence_is_skipped = false;
    int skipped_barrier = -1;  // __syncthreads (0) or the named barrier of this id does nothing
    bool warp_sync_is_skipped = false;
};

struct LaunchShape {
    Dim grid, block;
    size_t shared_bytes = 0;
};

class Machine;

// What the shadow of the CUDA runtime takes as a stream.
struct StreamHandle {
    Machine* machine;
    int rank;
};

class Machine {
  public:
    explicit Machine(int num_ranks, const Schedule& schedule = {});
    Machine(const Machine&) = delete;
    ~Machine();

    int num_ranks() const { return static_cast<int>(streams_.size()); }
    Memory& memory() { return memory_; }
    Buffer& allocate(const std::string& name, int rank, size_t num_bytes) {
        return memory_.allocate(name, rank, num_bytes);
    }
    SymmetricBuffer& allocate_symmetric(const std::string& name, size_t num_bytes) {
        return memory_.allocate_symmetric(name, num_ranks(), num_bytes);
    }
    SeededFaults& faults() { return faults_; }
    // Whether messages name lines: a sweep over many expected errors saves the time of looking up.
    void set_names_lines(bool names_lines) { names_lines_ = names_lines; }
    uint64_t now_ns() const { return now_ns_; }
    uint64_t num_steps() const { return num_steps_; }

    // Queues kernel(arguments...) on the stream of a rank. Arguments are copied now.
    template <class... Parameters, class... Arguments>
    void launch(int rank,
                const LaunchShape& shape,
                void (*kernel)(Parameters...),
                const Arguments&... arguments) {
        queue(rank, shape, "kernel", [kernel, copies = std::tuple<Parameters...>(arguments...)] {
            std::apply(kernel, copies);
        });
    }
    // Queues host code on the stream of a rank: new inputs between two launches, say. What it
    // writes to buffers is ordered like a kernel's.
    void host(int rank, std::function<void()> body) {
        queue(rank, {}, "host code", std::move(body));
    }
    // What was queued for this rank afterwards starts so much later, in emulated time.
    void delay(int rank, uint64_t duration_ns) {
        host(rank, [this, duration_ns] { sleep(duration_ns); });
    }
    // The stream of a rank for code that launches through the CUDA runtime (cudaStream_t).
    void* stream(int rank) { return &handles_.at(rank); }
    // Runs all that was queued, interleaved by the schedule, to its end. Afterwards everything is
    // ordered before what is queued next. Throws EmulationError; the machine is of no use then.
    void run();

    // ---- what device code asks for, on behalf of the thread that runs: see device.hpp ----

    // The machine whose kernels run now, or null.
    static Machine* running();
    Thread& thread() { return *current_; }
    void scheduling_point();
    void sleep(uint64_t duration_ns);
    void block_barrier(int id, int num_threads, const void* from);
    // Lanes of `mask` meet; returns what `source_lane` brought.
    uint64_t warp_meeting(
        uint32_t mask, uint64_t value, int source_lane, bool is_ordering, const void* from);
    // An access to num_bytes of a buffer, before it is made.
    void data_access(const void* at, size_t num_bytes, Access access, const void* from);
    // Likewise through a multicast address: visit(place) for one rank after the other, in random
    // order, with others running in between.
    void multicast_access(const void* at,
                          size_t num_bytes,
                          Access access,
                          const void* from,
                          const std::function<void(std::byte*)>& visit);
    // Of kernel code outside token::ptx: memory that is no buffer is nobody's business.
    void plain_access(const void* at, size_t num_bytes, Access access, const void* from);
    uint64_t load_word(const void* at, size_t num_bytes, bool is_acquire, const void* from);
    void store_word(void* at, uint64_t value, size_t num_bytes, bool is_release, const void* from);
    void multicast_store_word(void* at, uint32_t value, bool is_release, const void* from);
    uint32_t exchange_word(void* at, uint32_t value, const void* from);
    void fence_acq_rel();
    void fence_aliases();
    [[noreturn]] void fail(EmulationError::Kind kind, const std::string& message);
    std::string describe(const Thread& thread) const;

  private:
    void queue(int rank, const LaunchShape& shape, const char* name, std::function<void()> body);
    void start_next(Stream& stream);
    static void thread_main(void* thread);
    [[noreturn]] void end_thread();
    void park(Wait wait, const void* from);
    void wake(Thread& thread);
    void go_on();
    void switch_to(Thread& next);
    void let_time_pass();
    void complete(BlockBarrier& barrier);
    void record(Shadow& shadow, size_t offset, size_t num_bytes, Record access, const void* at);
    void record_word(Buffer& buffer,
                     const void* at,
                     size_t num_bytes,
                     Access access,
                     bool is_multicast,
                     const void* from);
    void write_word(std::byte* at,
                    uint64_t value,
                    size_t num_bytes,
                    const std::vector<Stamp>& released);
    std::vector<Stamp> released_by_current(bool is_release);
    Buffer& buffer_at(const void* at, size_t num_bytes);
    std::string describe(uint32_t launch, uint32_t slot) const;
    std::string place_of(const void* from) const;
    std::string race_message(const Record& now,
                             const Record& other,
                             Conflict conflict,
                             const std::string& place) const;
    std::string deadlock_message() const;

    Memory memory_;
    Schedule schedule_;
    SeededFaults faults_;
    StackPool stacks_;
    std::vector<std::unique_ptr<Stream>> streams_;
    std::vector<StreamHandle> handles_;
    std::unique_ptr<RunQueue> ready_;
    std::vector<uint32_t> slot_counts_;
    // What whoever acquires a signal word comes after.
    std::unordered_map<const void*, std::vector<Stamp>> released_;
    std::vector<Thread*> pollers_, sleepers_;
    std::vector<std::unique_ptr<Launch>> ended_;
    std::vector<LaunchName> names_;
    Fiber host_;
    std::span<std::byte> static_shared_;
    Thread* current_ = nullptr;
    uint64_t now_ns_ = 1'000'000'000;
    uint64_t num_steps_ = 0;
    uint32_t num_idle_rounds_ = 0;
    bool names_lines_ = true;
    bool has_failed_ = false;
    EmulationError::Kind failure_kind_ = EmulationError::Kind::kTrap;
    std::string failure_;
    std::exception_ptr exception_;
};

}  // namespace token::emulator
