#include "token/comm/host_group.hpp"

#include <algorithm>
#include <exception>
#include <utility>

namespace token::comm {

namespace {

std::vector<SignalLine*> lines_of(const std::vector<std::byte*>& workspaces,
                                  const WorkspaceLayout& layout) {
    std::vector<SignalLine*> lines;
    for (std::byte* workspace : workspaces) {
        lines.push_back(reinterpret_cast<SignalLine*>(workspace + layout.lines_offset()));
    }
    return lines;
}

std::chrono::nanoseconds to_nanoseconds(double seconds) {
    return std::chrono::nanoseconds(static_cast<int64_t>(seconds * 1e9));
}

}  // namespace

HostGroup::HostGroup(Options options,
                     const WorkspaceLayout& layout,
                     std::vector<std::byte*> workspaces)
    : options_(std::move(options)),
      layout_(layout),
      workspaces_(std::move(workspaces)),
      peer_lines_(lines_of(workspaces_, layout_)),
      barrier_(options_.rank,
               options_.size,
               peer_lines_.at(options_.rank),
               peer_lines_.data(),
               options_.base_epoch),
      waiter_(options_.rank, options_.spin_count, to_nanoseconds(options_.timeout_s), this),
      threads_(options_.num_threads) {
    TOKEN_CHECK(options_.size >= 1 && options_.size <= kMaxRanks,
                "a group has 1 to ",
                kMaxRanks,
                " ranks, got ",
                options_.size);
    TOKEN_CHECK(options_.rank >= 0 && options_.rank < options_.size,
                "rank ",
                options_.rank,
                " is not in a group of ",
                options_.size);
    if (options_.world_size == 0) {
        options_.world_size = options_.size;
    }
    TOKEN_CHECK(options_.first_rank >= 0 && options_.world_size <= kMaxRanks &&
                    options_.first_rank + options_.size <= options_.world_size,
                "ranks ",
                options_.first_rank,
                " to ",
                options_.first_rank + options_.size - 1,
                " are not in a world of ",
                options_.world_size,
                " (at most ",
                kMaxRanks,
                ")");
    TOKEN_CHECK(static_cast<int>(workspaces_.size()) == options_.size,
                "a group of ",
                options_.size,
                " needs as many workspaces, got ",
                workspaces_.size());
    TOKEN_CHECK(options_.timeout_s > 0, "timeout_s must be positive, got ", options_.timeout_s);
}

void HostGroup::barrier() {
    CallRecord call;
    call.operation = static_cast<uint32_t>(Operation::kBarrier);
    agree(call);
}

void HostGroup::agree(const CallRecord& call) {
    Turn turn(*this, call);
    turn.begin();
}

void HostGroup::sync() {
    barrier_.arrive(call_);
    barrier_.wait(waiter_);
    // A rank that comes back after the others gave up on it (it was stopped, swapped out) finds all
    // signals there. It must fail as they did, not return data.
    if (const auto found = verdict()) {
        throw_verdict(*found);
    }
}

int64_t HostGroup::register_region(SymmetricRegion region) {
    TOKEN_CHECK(static_cast<int>(region.bases.size()) == size(),
                "a symmetric region of ",
                size(),
                " ranks needs as many bases, got ",
                region.bases.size());
    const std::lock_guard<std::mutex> lock(mutex_);
    regions_.emplace_back(next_region_id_, std::move(region));
    return next_region_id_++;
}

void HostGroup::unregister_region(int64_t id) {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::erase_if(regions_, [id](const auto& entry) { return entry.first == id; });
}

const SymmetricRegion* HostGroup::find_region(const void* ptr, int64_t num_bytes) const {
    const auto* begin = static_cast<const std::byte*>(ptr);
    for (const auto& [id, region] : regions_) {
        const std::byte* base = region.bases[rank()];
        if (begin >= base && begin + num_bytes <= base + region.num_bytes) {
            return &region;
        }
    }
    return nullptr;
}

std::optional<Verdict> HostGroup::verdict() const {
    const uint64_t word =
        std::atomic_ref<uint64_t>(header(rank()).verdict).load(std::memory_order_acquire);
    if (word == 0) {
        return std::nullopt;
    }
    return Verdict::unpack(word);
}

void HostGroup::abort(VerdictKind kind, int blamed) {
    abort(Verdict{kind,
                  static_cast<uint8_t>(call_.operation),
                  static_cast<uint8_t>(world_rank(rank())),
                  static_cast<uint8_t>(world_rank(blamed)),
                  barrier_.epoch()});
}

void HostGroup::abort(const Verdict& verdict) {
    uint64_t word = verdict.pack();
    const auto set_if_none = [&](int target) {
        uint64_t found = 0;
        const bool is_first = std::atomic_ref<uint64_t>(header(target).verdict)
                                  .compare_exchange_strong(found, word, std::memory_order_acq_rel);
        return is_first ? word : found;
    };
    // A verdict that has reached this rank is the one to pass on: whoever reached it may still be
    // on the way to the others, who must not be told a consequence (this rank leaving) instead of
    // the cause.
    word = set_if_none(rank());
    for (int target = 0; target < size(); ++target) {
        set_if_none(target);
        for (int source = 0; source < size(); ++source) {
            futex_wake_all(&peer_lines_[target][source].value);
        }
    }
}

CommContext HostGroup::context(int peer) const {
    return {world_rank(rank()),
            world_rank(peer),
            operation_name(static_cast<Operation>(call_.operation)),
            barrier_.epoch()};
}

void HostGroup::throw_verdict(const Verdict& verdict) const {
    const CommContext where{world_rank(rank()),
                            verdict.blamed,
                            operation_name(static_cast<Operation>(verdict.operation)),
                            verdict.epoch};
    const std::string place = concat(" in ",
                                     where.operation,
                                     " (epoch ",
                                     where.epoch,
                                     "), as rank ",
                                     int{verdict.reporter},
                                     " of ",
                                     options_.world_size,
                                     " found; this is rank ",
                                     where.rank,
                                     ". The world is broken: close it and build a new one.");
    switch (verdict.kind) {
        case VerdictKind::kTimeout:
            throw CommTimeout(concat("rank ",
                                     int{verdict.blamed},
                                     " did not signal within ",
                                     options_.timeout_s,
                                     " s",
                                     place),
                              where);
        case VerdictKind::kAborted:
            throw PeerLost(
                concat("rank ", int{verdict.blamed}, " left before the collective was done", place),
                where);
        case VerdictKind::kPeerLost:
        case VerdictKind::kNone:
            break;
    }
    throw PeerLost(
        concat(
            "rank ", int{verdict.blamed}, " is gone: its process died or closed its world", place),
        where);
}

void HostGroup::check() {
    if (const auto found = verdict()) {
        throw_verdict(*found);
    }
    if (options_.dead_peers) {
        for (const int dead : options_.dead_peers()) {
            // A rank that signalled this epoch and then went (its work done, its process over)
            // takes nothing from this collective; the next one will miss it.
            SignalLine& line = peer_lines_[rank()][dead];
            if (!has_reached(HostMemory::load_acquire(line.value), barrier_.epoch())) {
                abort(VerdictKind::kPeerLost, dead);
                throw_verdict(*verdict());
            }
        }
    }
    check_verdict_and_interrupt();
}

bool HostGroup::is_dead(int peer) const {
    if (!options_.dead_peers) {
        return false;
    }
    const std::vector<int> dead = options_.dead_peers();
    return std::find(dead.begin(), dead.end(), peer) != dead.end();
}

void HostGroup::check_verdict_and_interrupt() {
    if (const auto found = verdict()) {
        throw_verdict(*found);
    }
    if (options_.check_interrupt) {
        options_.check_interrupt();
    }
}

void HostGroup::timed_out(int peer) {
    abort(VerdictKind::kTimeout, peer);
    throw_verdict(*verdict());
}

HostGroup::Turn::Turn(HostGroup& group, const CallRecord& call)
    : group_(group),
      lock_(group.mutex_),
      exceptions_at_start_(std::uncaught_exceptions()),
      staging_slot_at_start_(group.staging_slot_) {
    group_.call_ = call;
    if (const auto found = group_.verdict()) {
        group_.throw_verdict(*found);
    }
}

HostGroup::Turn::~Turn() {
    if (began_ && std::uncaught_exceptions() > exceptions_at_start_) {
        group_.abort(VerdictKind::kAborted, group_.rank());
    }
}

void HostGroup::Turn::begin() {
    began_ = true;
    group_.sync();
    for (int peer = 0; peer < group_.size(); ++peer) {
        if (peer == group_.rank()) {
            continue;
        }
        const CallRecord& theirs = group_.barrier_.call_of(peer);
        if (!(theirs == group_.call_)) {
            // Every rank compares with every other and has advanced by the same one epoch: all
            // throw here and all may go on with their next collective. The slots are put back: the
            // two calls may have taken different numbers of them.
            began_ = false;
            group_.staging_slot_ = staging_slot_at_start_;
            throw CallMismatch(concat("rank ",
                                      group_.world_rank(group_.rank()),
                                      " called ",
                                      describe_call(group_.call_),
                                      " but rank ",
                                      group_.world_rank(peer),
                                      " called ",
                                      describe_call(theirs),
                                      " (epoch ",
                                      group_.epoch(),
                                      "). Nothing was read or written; all ranks raise this and "
                                      "the world stays usable. ",
                                      "Every rank must make the same calls in the same order with "
                                      "the same shapes, dtype, ",
                                      "eps, algorithm and residual layout."),
                               group_.context(peer));
        }
    }
}

void HostGroup::Turn::sync() {
    group_.sync();
}

}  // namespace token::comm
