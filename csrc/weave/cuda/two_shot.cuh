// Two-shot: each rank reduces and finishes the rows it owns and stores the results on all ranks;
// as the first half alone (reduce-scatter) it keeps them.
//
// Grid: (blocks, virtual ranks or 1). Block: num_groups row groups of warps_per_row warps. Shared
// memory: 192 bytes. Barriers between ranks: two, between block b of each.
//
//   entry  After it block b of every peer runs, so the kernel before it on the peer's stream is
//          over: the peer's partial sums are complete, and nobody reads the results of an earlier
//          launch any more. Any block of the peer would say so; its counterpart is the one that
//          this block can wait for without waiting for its own rank's other blocks.
//   exit   Its release comes after this block's loads of the peers' partial sums (they may be
//          overwritten) and its stores of results (they may be read). The next kernel on a rank
//          runs after all its blocks were here, and block b here means block b of every owner:
//          together, all rows.
//
// In place (out is x) a row is read on all ranks by one row group, which then writes it.
#pragma once

#include "finish_row.cuh"
#include "invalidate.cuh"
#include "rank_barrier.cuh"
#include "row_total.cuh"
#include "source_rows.cuh"
#include "token/common/host_device.hpp"

namespace token::weave::cuda {

struct ReductionShared {
    BarrierShared barrier;
    TotalShared total;
};

// A row group's rows, one after the other. The next row's partial sums are on their way while this
// row is reduced, normed and stored; its own values stay in registers from the first load to the
// last store. The residual comes as early where it must hide the time of a whole load, and with
// the sum where the loads of several ranks follow each other.
template <class Source, class Finisher, class SourceRow>
TOKEN_DEVICE void reduce_rows(Source& source,
                              Finisher& finisher,
                              LaneUnits& units,
                              const RowGroup& group,
                              const RowSpan& span,
                              const SourceRow& source_row) {
    int64_t row = group.first_row(span);
    if (row < span.stop) {
        source.ask(source_row(row));
        if constexpr (!Source::kAddsRanks) {
            finisher.ask(row);
        }
    }
    while (row < span.stop) {
        units.begin_part();
        if constexpr (Source::kAddsRanks) {
            finisher.ask(row);
        }
        Floats values[kUnitsPerLane];
        source.sum(values);
        finisher.add_bias_and_residual(row, values);
        units.begin_part();
        const int64_t next_row = row + group.row_step();
        if (next_row < span.stop) {
            source.ask(source_row(next_row));
            if constexpr (!Source::kAddsRanks) {
                finisher.ask(next_row);
            }
        }
        units.begin_part();
        finisher.finish(row, values);
        row = next_row;
    }
}

template <class Element, bool kIsAligned>
TOKEN_DEVICE auto source_of(Peer, const ReductionParams& params, const LaneUnits& units) {
    const RowsOfRanks rows{params.x, params.hidden * Element::kBytes};
    return AddedRows<Element, kIsAligned, RowsOfRanks>(rows, params.group.size, units);
}
template <class Element, bool kIsAligned>
TOKEN_DEVICE auto source_of(Multicast, const ReductionParams& params, const LaneUnits& units) {
    static_assert(kIsAligned);
    return ReducedRows<Element>(params.x, params.hidden * Element::kBytes, units);
}

template <class Reach, class Element, bool kIsAligned>
__global__ void __launch_bounds__(kMaxThreads, 1)
    two_shot(const __grid_constant__ ReductionParams params) {
    __shared__ ReductionShared shared;
    const RowGroup group(params.warps_per_row);
    RankBarrier<Reach> barrier(params.group, shared.barrier);
    const int rank = barrier.rank(), size = params.group.size;
    const RowSpan own = split_span(params.rows, size, rank);

    bool is_valid = barrier.arrive_and_wait(Phase::kEntry);
    if (is_valid) {
        LaneUnits units(params, group);
        auto source = source_of<Element, kIsAligned>(Reach(), params, units);
        RowFinisher<Reach, Element, kIsAligned> finisher(
            params, rank, own.start, units, group, shared.total);
        reduce_rows(source, finisher, units, group, own, [](int64_t row) { return row; });
        is_valid = barrier.arrive_and_wait(Phase::kExit);
    }
    if (!is_valid) {
        for (int owner = 0; owner < size; ++owner) {
            const bool is_own = owner == rank;
            if (is_own || !params.is_out_own_rows) {
                invalidate_rows(params,
                                rank,
                                split_span(params.rows, size, owner),
                                own.start,
                                is_own || params.stores_residual_to_all,
                                group,
                                Element::kBytes);
            }
        }
    }
    barrier.store_state();
}

}  // namespace token::weave::cuda
