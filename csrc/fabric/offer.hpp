// What ranks send each other in a collective allocation.
#pragma once

#include "segment.hpp"

#include <cstdint>

namespace token::fabric {

// What a rank brings: a segment (its descriptor rides along), nothing, or its failure.
struct Offer {
    uint64_t sequence = 0;
    int64_t num_bytes = 0;
    int32_t owner = -1;  // -1: every rank brings a segment
    int32_t failed = 0;
    char reason[240] = {};

    void set_failure(const char* why);
};

// Sends an offer and, unless fd is -1, a descriptor. A peer that is gone is not an error here: the
// receive that follows finds it and can name it.
void send_offer(int socket, const Offer& offer, int fd);

// Receives an offer and the descriptor that came with it, if any. False at end of file.
bool receive_offer(int socket, Offer& offer, UniqueFd& fd);

}  // namespace token::fabric
