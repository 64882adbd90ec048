// How a rank reaches all ranks: through their addresses (Peer) or through one multicast address
// that the NVLink switch fans out (Multicast). What a kernel does with them is written once, so the
// Peer kernels that several virtual ranks run inside one GPU are the Multicast kernels but for the
// functions of this file and the sum of source_rows.cuh.
#pragma once

#include "params.hpp"
#include "token/common/host_device.hpp"
#include "token/ptx/multimem.hpp"
#include "token/ptx/scoped.hpp"
#include "token/ptx/vectors.hpp"

namespace token::weave::cuda {

// One name for the stores of all sizes.
TOKEN_DEVICE void store_shared(void* to, const ptx::Vec16B& value) {
    ptx::st_relaxed_sys_16B(to, value);
}
TOKEN_DEVICE void store_shared(void* to, const ptx::Vec8B& value) {
    ptx::st_relaxed_sys_8B(to, value);
}
TOKEN_DEVICE void store_shared(void* to, uint32_t value) {
    ptx::st_relaxed_sys_4B(to, value);
}
TOKEN_DEVICE void store_shared(void* to, uint16_t value) {
    ptx::st_relaxed_sys_2B(to, value);
}
TOKEN_DEVICE void store_shared(void* to, uint8_t value) {
    ptx::st_relaxed_sys_1B(to, value);
}

TOKEN_DEVICE void store_own(void* to, const ptx::Vec16B& value) {
    ptx::st_global_16B(to, value);
}
TOKEN_DEVICE void store_own(void* to, const ptx::Vec8B& value) {
    ptx::st_global_8B(to, value);
}
TOKEN_DEVICE void store_own(void* to, uint32_t value) {
    ptx::st_global_4B(to, value);
}
TOKEN_DEVICE void store_own(void* to, uint16_t value) {
    ptx::st_global_2B(to, value);
}
TOKEN_DEVICE void store_own(void* to, uint8_t value) {
    ptx::st_global_1B(to, value);
}

TOKEN_DEVICE ArrivalLine* arrival_line(void* channel, int block, int writer) {
    return &static_cast<ChannelMemory*>(channel)->arrivals[block][writer];
}

struct Peer {
    static constexpr bool kHasAliases = false;
    // Stored to one rank before the next: its address is read once for them. More would spill.
    static constexpr int kUnitsAtOnce = 2;

    // body(base) with the region of every rank, own rank included. Each rank begins with another
    // peer, so that not all links to one rank are busy at once.
    template <class Body>
    TOKEN_DEVICE static void for_each_copy(const Region& region,
                                           int rank,
                                           int size,
                                           const Body& body) {
#pragma unroll 1
        for (int step = 0; step < size; ++step) {
            const int peer = rank + step < size ? rank + step : rank + step - size;
            body(static_cast<char*>(region.by_rank[peer]));
        }
    }
    template <class Bytes>
    TOKEN_DEVICE static void store(void* to, const Bytes& value) {
        store_shared(to, value);
    }

    // Called by thread `peer` for each peer; writes the word of `rank` there.
    TOKEN_DEVICE static void announce_call(
        const Region& channel, int block, int rank, int peer, int parity, uint32_t fingerprint) {
        ptx::st_relaxed_sys(&arrival_line(channel.by_rank[peer], block, rank)->fingerprint[parity],
                            fingerprint);
    }
    TOKEN_DEVICE static void arrive_release(
        const Region& channel, int block, int rank, int peer, uint32_t epoch) {
        if (peer != rank) {
            ptx::st_release_sys(&arrival_line(channel.by_rank[peer], block, rank)->epoch, epoch);
        }
    }
};

struct Multicast {
    static constexpr bool kHasAliases = true;
    static constexpr int kUnitsAtOnce = 1;

    // The region of every rank is one, and every store reaches all.
    template <class Body>
    TOKEN_DEVICE static void for_each_copy(const Region& region, int, int, const Body& body) {
        body(static_cast<char*>(region.multicast));
    }
    template <class Bytes>
    TOKEN_DEVICE static void store(void* to, const Bytes& value) {
        if constexpr (sizeof(Bytes) == 4) {
            ptx::multimem_st_relaxed_sys(static_cast<uint32_t*>(to), value);
        } else {
            ptx::multimem_st_relaxed_sys(to, value);
        }
    }

    // One store reaches all: thread 0 makes it.
    TOKEN_DEVICE static void announce_call(
        const Region& channel, int block, int rank, int peer, int parity, uint32_t fingerprint) {
        if (peer == 0) {
            ptx::multimem_st_relaxed_sys(
                &arrival_line(channel.multicast, block, rank)->fingerprint[parity], fingerprint);
        }
    }
    TOKEN_DEVICE static void arrive_release(
        const Region& channel, int block, int rank, int peer, uint32_t epoch) {
        if (peer == 0) {
            ptx::multimem_st_release_sys(&arrival_line(channel.multicast, block, rank)->epoch,
                                         epoch);
        }
    }
};

// Bytes to the same offset of every rank.
template <class Reach, class Bytes>
TOKEN_DEVICE void store_to_all(
    const Region& region, int rank, int size, int64_t offset_bytes, const Bytes& value) {
    Reach::for_each_copy(
        region, rank, size, [&](char* base) { Reach::store(base + offset_bytes, value); });
}

}  // namespace token::weave::cuda
