// All-gather of rows: the second half of a split reduction. Each rank stores the rows it owns on
// all ranks; bytes are moved, never looked at.
//
// Grid: (blocks, virtual ranks or 1). Block: kMaxThreads. Barriers between ranks: two, as in
// two_shot.cuh: after the first nobody reads the earlier content of `out`, after the second block b
// of every owner has stored the bytes that block b stands for.
#pragma once

#include "invalidate.cuh"
#include "rank_barrier.cuh"
#include "token/common/host_device.hpp"

namespace token::weave::cuda {

inline constexpr int kGatherLoads = 4;  // of 16 bytes that a thread has on their way

// The bytes of `span` that this block stands for, in chunks of a multiple of 16 bytes.
// body(offset_bytes, num_bytes) is called for each, offsets from the start of the span's rows.
template <class Body>
TOKEN_DEVICE void for_each_chunk(const RowSpan& span, int64_t row_bytes, const Body& body) {
    const int64_t chunk = int64_t{16} * kGatherLoads * kMaxThreads;
    const int64_t total = (span.stop - span.start) * row_bytes;
    for (int64_t at = blockIdx.x * chunk; at < total; at += gridDim.x * chunk) {
        body(at, total - at < chunk ? total - at : chunk);
    }
}

template <class Reach, bool kIsAligned>
TOKEN_DEVICE void push_chunk(
    const GatherParams& params, int rank, const char* from, int64_t to, int64_t num_bytes) {
    const int thread = static_cast<int>(threadIdx.x);
    if constexpr (kIsAligned) {
        ptx::Vec16B loaded[kGatherLoads];
#pragma unroll
        for (int i = 0; i < kGatherLoads; ++i) {
            const int64_t at = int64_t{16} * (i * kMaxThreads + thread);
            if (at < num_bytes) {
                loaded[i] = ptx::ld_global_16B(from + at);
            }
        }
        Reach::for_each_copy(params.out, rank, params.group.size, [&](char* base) {
#pragma unroll
            for (int i = 0; i < kGatherLoads; ++i) {
                const int64_t at = int64_t{16} * (i * kMaxThreads + thread);
                if (at < num_bytes) {
                    Reach::store(base + to + at, loaded[i]);
                }
            }
        });
    } else {
        for (int64_t at = thread; at < num_bytes; at += kMaxThreads) {
            store_to_all<Reach>(
                params.out, rank, params.group.size, to + at, ptx::ld_relaxed_sys_1B(from + at));
        }
    }
}

template <class Reach, bool kIsAligned>
__global__ void __launch_bounds__(kMaxThreads, 1)
    all_gather_rows(const __grid_constant__ GatherParams params) {
    __shared__ BarrierShared shared;
    RankBarrier<Reach> barrier(params.group, shared);
    const int rank = barrier.rank(), size = params.group.size;
    const RowSpan own = split_span(params.rows, size, rank);

    bool is_valid = barrier.arrive_and_wait(Phase::kEntry);
    if (is_valid) {
        const char* source = static_cast<const char*>(params.source.by_rank[rank]);
        for_each_chunk(own, params.row_bytes, [&](int64_t at, int64_t num_bytes) {
            push_chunk<Reach, kIsAligned>(
                params, rank, source + at, own.start * params.row_bytes + at, num_bytes);
        });
        is_valid = barrier.arrive_and_wait(Phase::kExit);
    }
    if (!is_valid) {
        char* out = static_cast<char*>(params.out.by_rank[rank]);
        for (int owner = 0; owner < size; ++owner) {
            const RowSpan span = split_span(params.rows, size, owner);
            for_each_chunk(span, params.row_bytes, [&](int64_t at, int64_t num_bytes) {
                invalidate_bytes(out + span.start * params.row_bytes + at,
                                 num_bytes,
                                 static_cast<int>(threadIdx.x),
                                 kMaxThreads);
            });
        }
    }
    barrier.store_state();
}

}  // namespace token::weave::cuda
