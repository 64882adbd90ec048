// One-shot, for small messages: every rank sends its partial sums to all, then every rank reduces
// and finishes all rows. One barrier, nothing is read over a link, and all ranks add in rank order:
// the same bits everywhere, in the same order as Peer's two-shot.
//
// Grid, block and shared memory: as two_shot.cuh. Barriers between ranks: one, between block b of
// each, after block b of every rank pushed the rows it stands for (the same on all ranks).
//
// Staging of a rank: [block][epoch & 1][source rank][staging_block_bytes]. A block uses its own
// part only, whatever the size of the grid, and each half of it at every second of its barriers:
// when block b of a peer pushes at epoch e + 2, it has passed barrier e + 1, at which this rank's
// block b arrived only after it had read what was pushed at e. Its reads come before its release,
// the peer's stores after the acquire.
#pragma once

#include "two_shot.cuh"

namespace token::weave::cuda {

// Rows are staged one behind the other, each from a multiple of 16 bytes.
TOKEN_HOST_DEVICE constexpr int64_t staged_row_bytes(int64_t hidden, int64_t element_bytes) {
    return (hidden * element_bytes + 15) / 16 * 16;
}

// The number of a row among the rows of its block.
TOKEN_DEVICE int64_t place_of(int64_t row, const RowGroup& group) {
    return row / group.row_step() * group.num_groups + group.index;
}

template <class Reach, class Element, bool kIsAligned>
TOKEN_DEVICE void push_rows(const ReductionParams& params,
                            int rank,
                            int64_t staging_offset,
                            int64_t row_bytes,
                            const RowGroup& group,
                            const LaneUnits& units) {
    const RowSpan all{0, params.rows};
    for (int64_t row = group.first_row(all); row < all.stop; row += group.row_step()) {
        const char* from = static_cast<const char*>(params.x.by_rank[rank]) +
                           row * params.hidden * Element::kBytes;
        const int64_t offset =
            staging_offset + rank * params.staging_block_bytes + place_of(row, group) * row_bytes;
        typename Element::Packed packed[kUnitsPerLane];
#pragma unroll
        for (int i = 0; i < kUnitsPerLane; ++i) {
            packed[i] = load_unit<OwnLoads, Element, kIsAligned>(
                from, units.unit(i), units.template count<kIsAligned>(i));
        }
        Reach::for_each_copy(params.staging, rank, params.group.size, [&](char* base) {
#pragma unroll
            for (int i = 0; i < kUnitsPerLane; ++i) {
                store_unit<Element, kIsAligned>(units.unit(i),
                                                units.template count<kIsAligned>(i),
                                                packed[i],
                                                [&](int64_t offset_bytes, const auto& value) {
                                                    Reach::store(base + offset + offset_bytes,
                                                                 value);
                                                });
            }
        });
    }
}

template <class Reach, class Element, bool kIsAligned>
__global__ void __launch_bounds__(kMaxThreads, 1)
    one_shot(const __grid_constant__ ReductionParams params) {
    __shared__ ReductionShared shared;
    const RowGroup group(params.warps_per_row);
    RankBarrier<Reach> barrier(params.group, shared.barrier);
    const int rank = barrier.rank(), size = params.group.size;
    const RowSpan all{0, params.rows};
    LaneUnits units(params, group);
    const int64_t row_bytes = staged_row_bytes(params.hidden, Element::kBytes);
    const int64_t staging_offset =
        (static_cast<int64_t>(blockIdx.x) * 2 + barrier.next_epoch() % 2) * size *
        params.staging_block_bytes;

    if (!barrier.is_broken()) {
        push_rows<Reach, Element, kIsAligned>(
            params, rank, staging_offset, row_bytes, group, units);
    }
    if (barrier.arrive_and_wait(Phase::kPush)) {
        const StagedRows rows{
            static_cast<const char*>(params.staging.by_rank[rank]) + staging_offset,
            params.staging_block_bytes,
            row_bytes};
        AddedRows<Element, kIsAligned, StagedRows> source(rows, size, units);
        RowFinisher<Reach, Element, kIsAligned> finisher(
            params, rank, 0, units, group, shared.total);
        reduce_rows(
            source, finisher, units, group, all, [&](int64_t row) { return place_of(row, group); });
    } else {
        invalidate_rows(params, rank, all, 0, true, group, Element::kBytes);
    }
    barrier.store_state();
}

}  // namespace token::weave::cuda
