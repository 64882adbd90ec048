// The memory through which the blocks of several ranks meet: one channel for each stream that may
// run collectives at the same time. Plain data, the same bytes on host and device.
#pragma once

#include "token/common/int_types.hpp"

namespace token::weave::cuda {

inline constexpr int kMaxRanks = 16;
inline constexpr int kMaxBlocks = 128;  // of one rank in one launch

// One word that one rank's block writes into another rank's memory. A line of its own: ranks that
// poll neighbouring words would fight over it.
struct alignas(128) ArrivalLine {
    uint32_t epoch;
    // Of the call that the rank arrived with, at epoch & 1: a peer may be one barrier ahead.
    uint32_t fingerprint[2];
};
static_assert(sizeof(ArrivalLine) == 128);

// Private to one rank's block. Blocks count for themselves: the epoch of a block grows by the
// barriers that *it* took part in, so a launch may have more or fewer blocks than the one before
// and no block waits for another of its own rank.
struct alignas(16) BlockState {
    uint32_t epoch;      // of the last barrier this block arrived at
    uint32_t is_broken;  // a wait of this block failed: its epoch means nothing any more
};

// At the same offset of every rank's symmetric memory. All zero on every rank before the first
// launch of any; never touched by the host afterwards, except to start again after a failure (all
// ranks, with nothing in flight).
struct ChannelMemory {
    ArrivalLine arrivals[kMaxBlocks][kMaxRanks];  // [block][p]: written by block `block` of rank p
    BlockState blocks[kMaxBlocks];
    alignas(128) uint32_t failure_claimed;  // 1: a block of this rank wrote the failure record
};

// Values are shown to users: never renumber.
enum class FailureKind : uint32_t {
    kNone = 0,
    kTimeout = 1,     // the peer did not arrive before the deadline
    kPeerBroken = 2,  // the peer arrived to say that one of its own waits failed
    kMismatch = 3,    // the peer arrived with another call; expected and seen are fingerprints
};

enum class Phase : uint32_t {
    kEntry = 0,  // waiting until peers may be read and written
    kExit = 1,   // waiting until peers' results are here
    kPush = 2,   // of one-shot: waiting for the peers' rows
    kNone = 3,
};

// In pinned host memory, one per rank. The first failing block of a rank writes it, `kind` last
// (release): a host that sees a kind sees the rest.
struct FailureRecord {
    uint32_t kind;  // FailureKind
    uint32_t rank;
    uint32_t peer;
    uint32_t block;
    uint32_t phase;  // Phase
    uint32_t epoch;  // of the block before this launch
    uint32_t expected;
    uint32_t seen;
};

// A block whose wait failed adds this to the epoch it would have arrived with: has_reached() is
// true at once for the peers that still wait, and no peer in step is ever that far ahead.
inline constexpr uint32_t kBrokenJump = 1u << 30;

}  // namespace token::weave::cuda
