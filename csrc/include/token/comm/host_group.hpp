// What a CPU collective stands on: the barrier, every rank's workspace, the rank's threads. How the
// memory came to be shared (memfds between processes in fabric/, one mapping between threads in
// tests) is not known here.
#pragma once

#include "token/comm/call.hpp"
#include "token/comm/host_memory.hpp"
#include "token/comm/layout.hpp"
#include "token/comm/verdict.hpp"
#include "token/common/thread_pool.hpp"

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

namespace token::comm {

// A tensor that lies in memory all ranks have mapped: where each rank's counterpart is.
struct SymmetricRegion {
    std::vector<std::byte*> bases;  // [size], bases[rank] is this rank's own mapping
    int64_t num_bytes = 0;
};

class HostGroup final : public WaitMonitor {
  public:
    struct Options {
        int rank = 0;
        int size = 1;
        int num_threads = 1;
        int spin_count = 0;
        double timeout_s = 30.0;
        uint32_t base_epoch = 0;
        // For names only: ranks in verdicts and errors are those of a world of `world_size`, in
        // which the ranks of this group are first_rank and up. 0: the group is the world.
        int first_rank = 0;
        int world_size = 0;
        // The peers whose process is gone; empty where ranks cannot die apart (threads).
        std::function<std::vector<int>()> dead_peers;
        // Throws to leave a wait (Ctrl-C); may be empty.
        std::function<void()> check_interrupt;
    };

    // workspaces[p]: rank p's workspace as mapped here, zero-filled at creation.
    HostGroup(Options options, const WorkspaceLayout& layout, std::vector<std::byte*> workspaces);

    int rank() const { return options_.rank; }
    int size() const { return options_.size; }
    uint32_t epoch() const { return barrier_.epoch(); }
    const WorkspaceLayout& layout() const { return layout_; }
    ThreadPool& threads() { return threads_; }

    // A collective is begin() ... [sync() ...], made under one Turn. begin() waits until all ranks
    // have called it with an equal record: it throws CallMismatch on every rank otherwise, with
    // nothing moved and the group still usable. Any other exception breaks the group for good, on
    // all ranks.
    class Turn;
    void barrier();
    // A barrier of ranks that are about to make `call` by other means than this group's memory.
    void agree(const CallRecord& call);

    std::byte* partial(int rank, int slot) const { return at(rank, layout_.partial_offset(slot)); }
    std::byte* staging_in(int rank, int slot) const {
        return at(rank, layout_.staging_in_offset(slot));
    }
    std::byte* staging_out(int rank, int slot) const {
        return at(rank, layout_.staging_out_offset(slot));
    }

    // The slot the next partial sum goes to; consumed (and flipped) by the collective that reads
    // it.
    int partial_slot() const { return partial_slot_; }
    void flip_partial_slot() { partial_slot_ ^= 1; }
    // Alternates with every block staged by any collective.
    int next_staging_slot() { return staging_slot_ ^= 1; }

    int64_t register_region(SymmetricRegion region);
    void unregister_region(int64_t id);
    // The region that holds all of [ptr, ptr + num_bytes), or nullptr.
    const SymmetricRegion* find_region(const void* ptr, int64_t num_bytes) const;

    // Why every call now throws, or empty.
    std::optional<Verdict> verdict() const;
    // Breaks the group on all ranks that can be reached. `blamed` is a rank of the group.
    void abort(VerdictKind kind, int blamed);
    // The same with a verdict found elsewhere. Allowed while another thread is in a collective.
    void abort(const Verdict& verdict);
    // Throws the verdict as the error a user sees.
    [[noreturn]] void throw_verdict(const Verdict& verdict) const;

    void check() override;
    [[noreturn]] void timed_out(int peer) override;

    // For waits beside the barrier's (mailboxes): this rank's way of waiting, and what to look at.
    HostWaiter waiter_with(WaitMonitor* monitor) const { return waiter_.with(monitor); }
    bool is_dead(int peer) const;
    void check_verdict_and_interrupt();

  private:
    friend class Turn;
    std::byte* at(int rank, int64_t offset) const { return workspaces_[rank] + offset; }
    WorkspaceHeader& header(int rank) const {
        return *reinterpret_cast<WorkspaceHeader*>(workspaces_[rank]);
    }
    void sync();
    CommContext context(int peer) const;
    int world_rank(int rank) const { return options_.first_rank + rank; }

    Options options_;
    WorkspaceLayout layout_;
    std::vector<std::byte*> workspaces_;
    std::vector<SignalLine*> peer_lines_;
    EpochBarrier<HostMemory> barrier_;
    HostWaiter waiter_;
    ThreadPool threads_;
    CallRecord call_;
    int partial_slot_ = 0;
    int staging_slot_ = 0;
    int64_t next_region_id_ = 0;
    std::vector<std::pair<int64_t, SymmetricRegion>> regions_;
    std::mutex mutex_;
};

// One collective in progress on this rank. Serialises the rank's own threads of control: their
// order against other ranks is then checked by the records.
class HostGroup::Turn {
  public:
    Turn(HostGroup& group, const CallRecord& call);
    ~Turn();
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;

    void begin();
    void sync();

  private:
    HostGroup& group_;
    std::unique_lock<std::mutex> lock_;
    int exceptions_at_start_;
    int staging_slot_at_start_;
    bool began_ = false;
};

}  // namespace token::comm
