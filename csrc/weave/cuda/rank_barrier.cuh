// The barrier between block b of every rank: epochs in device memory, a deadline on every wait, and
// what happens when one is missed. No block waits for another block of its own rank: only the
// counterparts of a block on the other ranks must be running.
//
// Who reads what after which fence. arrive_and_wait() is
//     every thread: its loads and stores of before ... [fence.proxy.alias] __syncthreads
//     thread p < size: st.release.sys of the epoch into this rank's word of rank p
//                      ld.acquire.sys of rank p's word, until it is there
//     __syncthreads [fence.proxy.alias]: every thread goes on.
// The first __syncthreads puts the accesses of the whole block before each release, the second puts
// each acquire before what the whole block does next; release and acquire of one word order the two
// blocks (causality order is transitive). So after it, this block may
//   - read what block b of a peer wrote before, and what earlier kernels of the peer's stream
//     wrote: the peer's block runs, so those kernels are over and their writes precede its release;
//   - overwrite, on a peer, what block b of that peer (or an earlier kernel of its stream) read.
// Nothing is known of the peer's other blocks. fence.proxy.alias is there where bytes written
// through one address are read through another, the multicast and the ordinary one (Multicast).
//
// The next kernel on this rank's stream starts when all blocks of this one are done. Each has then
// waited for its counterparts, and together they cover all rows.
#pragma once

#include "reach.cuh"
#include "token/common/host_device.hpp"
#include "token/ptx/clock.hpp"
#include "token/ptx/scoped.hpp"

namespace token::weave::cuda {

struct BarrierShared {
    uint32_t has_failed[kMaxRanks];  // the wait for that peer
};

template <class Reach>
class RankBarrier {
  public:
    TOKEN_DEVICE RankBarrier(const GroupParams& group, BarrierShared& shared)
        : group_(group),
          shared_(shared),
          rank_(group.first_rank + static_cast<int>(blockIdx.y)),
          block_(static_cast<int>(blockIdx.x)),
          channel_(static_cast<ChannelMemory*>(group.channel.by_rank[rank_])),
          first_epoch_(channel_->blocks[block_].epoch),
          epoch_(first_epoch_),
          is_broken_(channel_->blocks[block_].is_broken != 0) {
        if (threadIdx.x < kMaxRanks) {
            shared_.has_failed[threadIdx.x] = 0;
        }
    }

    TOKEN_DEVICE int rank() const { return rank_; }
    // The epoch that the next arrive_and_wait() will announce.
    TOKEN_DEVICE uint32_t next_epoch() const { return epoch_ + 1; }

    // An earlier launch failed on this channel: peers wait no more, and nobody must touch them.
    TOKEN_DEVICE bool is_broken() const { return is_broken_; }

    // By all threads of the block. False, for all of them, when a peer did not come, came broken or
    // came with another call; the block must then make its results invalid.
    TOKEN_DEVICE bool arrive_and_wait(Phase phase) {
        if (is_broken_) {
            // All have read the state of the block before store_state() writes it.
            __syncthreads();
            return false;
        }
        ++epoch_;
        order_aliases();
        __syncthreads();
        const int peer = static_cast<int>(threadIdx.x);
        if (peer < group_.size) {
            if (group_.fingerprint != 0) {
                Reach::announce_call(group_.channel,
                                     block_,
                                     rank_,
                                     peer,
                                     static_cast<int>(epoch_ & 1),
                                     group_.fingerprint);
            }
            Reach::arrive_release(group_.channel, block_, rank_, peer, epoch_);
            if (peer != rank_) {
                wait_for(peer, phase);
            }
        }
        __syncthreads();
        order_aliases();
        for (int other = 0; other < group_.size; ++other) {
            is_broken_ = is_broken_ || shared_.has_failed[other] != 0;
        }
        if (is_broken_ && peer < group_.size) {
            Reach::arrive_release(group_.channel, block_, rank_, peer, epoch_ + kBrokenJump);
        }
        return !is_broken_;
    }

    // Last of all: what the next launch of this block starts from.
    TOKEN_DEVICE void store_state() const {
        if (threadIdx.x == 0) {
            channel_->blocks[block_].epoch = epoch_;
            channel_->blocks[block_].is_broken = is_broken_ ? 1u : 0u;
        }
    }

  private:
    TOKEN_DEVICE static void order_aliases() {
        if constexpr (Reach::kHasAliases) {
            ptx::fence_proxy_alias();
        }
    }

    TOKEN_DEVICE void wait_for(int peer, Phase phase) {
        const ArrivalLine& line = channel_->arrivals[block_][peer];
        uint64_t deadline_ns = 0;
        for (uint32_t spins = 1;; ++spins) {
            const uint32_t seen = ptx::ld_acquire_sys(&line.epoch);
            // Modular: epochs wrap at 2^32.
            if (static_cast<int32_t>(seen - epoch_) >= 0) {
                check_arrival(line, peer, phase, seen);
                return;
            }
            // Reading the clock takes longer than reading the word.
            if (spins % 64 == 0) {
                const uint64_t now_ns = ptx::globaltimer_ns();
                if (deadline_ns == 0) {
                    deadline_ns = now_ns + group_.timeout_ns;
                } else if (now_ns > deadline_ns) {
                    fail(FailureKind::kTimeout, peer, phase, epoch_, seen);
                    return;
                }
            }
        }
    }

    TOKEN_DEVICE void check_arrival(const ArrivalLine& line, int peer, Phase phase, uint32_t seen) {
        // A peer in step is here or one barrier ahead.
        if (seen - epoch_ > 1) {
            fail(FailureKind::kPeerBroken, peer, phase, epoch_, seen);
            return;
        }
        if (group_.fingerprint != 0) {
            // Written through the multicast address, read through the ordinary one.
            order_aliases();
            const uint32_t call = ptx::ld_relaxed_sys(&line.fingerprint[epoch_ & 1]);
            if (call != group_.fingerprint) {
                fail(FailureKind::kMismatch, peer, phase, group_.fingerprint, call);
            }
        }
    }

    TOKEN_DEVICE void fail(
        FailureKind kind, int peer, Phase phase, uint32_t expected, uint32_t seen) {
        shared_.has_failed[peer] = 1;
        // The first failure of a rank is told; those it brings about are not.
        if (ptx::atom_exch_relaxed_gpu(&channel_->failure_claimed, 1) != 0) {
            return;
        }
        FailureRecord* record = group_.failure[rank_];
        ptx::st_relaxed_sys(&record->rank, static_cast<uint32_t>(rank_));
        ptx::st_relaxed_sys(&record->peer, static_cast<uint32_t>(peer));
        ptx::st_relaxed_sys(&record->block, static_cast<uint32_t>(block_));
        ptx::st_relaxed_sys(&record->phase, static_cast<uint32_t>(phase));
        ptx::st_relaxed_sys(&record->epoch, first_epoch_);
        ptx::st_relaxed_sys(&record->expected, expected);
        ptx::st_relaxed_sys(&record->seen, seen);
        ptx::st_release_sys(&record->kind, static_cast<uint32_t>(kind));
    }

    const GroupParams& group_;
    BarrierShared& shared_;
    const int rank_;
    const int block_;
    ChannelMemory* const channel_;
    const uint32_t first_epoch_;
    uint32_t epoch_;
    bool is_broken_;
};

}  // namespace token::weave::cuda
