// Why a group is broken, in one 64-bit word that any rank may set on any other, once.
#pragma once

#include <cstdint>

namespace token::comm {

enum class VerdictKind : uint8_t {
    kNone = 0,
    kPeerLost = 1,  // `blamed` died
    kTimeout = 2,   // `blamed` did not signal before the deadline
    kAborted = 3,   // `reporter` left a collective early (an exception, Ctrl-C)
};

struct Verdict {
    VerdictKind kind = VerdictKind::kNone;
    uint8_t operation = 0;
    uint8_t reporter = 0;
    uint8_t blamed = 0;
    uint32_t epoch = 0;

    uint64_t pack() const {
        return static_cast<uint64_t>(kind) | static_cast<uint64_t>(operation) << 8 |
               static_cast<uint64_t>(reporter) << 16 | static_cast<uint64_t>(blamed) << 24 |
               static_cast<uint64_t>(epoch) << 32;
    }
    static Verdict unpack(uint64_t word) {
        return {static_cast<VerdictKind>(word & 0xff),
                static_cast<uint8_t>(word >> 8),
                static_cast<uint8_t>(word >> 16),
                static_cast<uint8_t>(word >> 24),
                static_cast<uint32_t>(word >> 32)};
    }
};

// Ranks are stored in a byte.
inline constexpr int kMaxRanks = 255;

}  // namespace token::comm
