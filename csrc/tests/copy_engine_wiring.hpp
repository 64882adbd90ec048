// Ranks of one process that exchange messages by copy engines in software.
#pragma once

#include "../fabric/copy_engine.hpp"
#include "software_stream.hpp"

#include <memory>
#include <vector>

namespace token::testing {

using fabric::CopyEngineOptions;
using fabric::SignalWord;

inline constexpr int kSlots = 2;
inline constexpr int64_t kSlotBytes = 4096;

// What `size` ranks share: for each ordered pair the words, and the receiver's slots.
struct Wiring {
    explicit Wiring(int num_ranks) : size(num_ranks), lines(num_ranks * num_ranks * 2) {
        slots.assign(num_ranks * num_ranks, std::vector<unsigned char>(kSlots * kSlotBytes, 0xff));
    }
    comm::SignalLine& line(int from, int to, int which) {
        return lines[(from * size + to) * 2 + which];
    }
    static SignalWord word(comm::SignalLine& line) {
        return {&line.value, device_address(&line.value)};
    }
    unsigned char* slot(int from, int to, uint32_t number) {
        return &slots[from * size + to][number % kSlots * kSlotBytes];
    }
    CopyEngineOptions options(int rank, double timeout_s) {
        CopyEngineOptions made;
        made.calls = software_calls();
        made.rank = rank;
        made.timeout_s = timeout_s;
        made.peers.resize(size);
        for (int peer = 0; peer < size; ++peer) {
            if (peer != rank) {
                made.peers[peer] = {.arrived_here = word(line(peer, rank, 0)),
                                    .arrived_there = word(line(rank, peer, 0)),
                                    .granted_here = word(line(peer, rank, 1)),
                                    .granted_there = word(line(rank, peer, 1))};
            }
        }
        reached.emplace_back(new std::vector<uint32_t>(64));
        for (uint32_t& number : *reached.back()) {
            made.reached.push_back({&number, device_address(&number)});
        }
        return made;
    }

    int size;
    std::vector<comm::SignalLine> lines;
    std::vector<std::vector<unsigned char>> slots;
    std::vector<std::unique_ptr<std::vector<uint32_t>>> reached;
};

}  // namespace token::testing
