// The baseline of the benchmarks: the shape most public kernels have. A block takes one row at a
// time; nothing of the next row is asked for before this one is stored; the sum is kept in memory
// (as the new residual) and read again for the result. Same protocol, same rows, same numbers but
// for the second rounding of the sum.
//
// Grid: (blocks, virtual ranks or 1). Block: kMaxThreads. RMSNorm of bf16, sharded residual, Peer.
#pragma once

#include "two_shot.cuh"

namespace token::weave::cuda {

TOKEN_DEVICE void baseline_row(
    const ReductionParams& params, int rank, int64_t row, int64_t own_row, RowTotal& total) {
    const int64_t row_bytes = params.hidden * BFloat16::kBytes;
    const int thread = static_cast<int>(threadIdx.x);
    const char* residual =
        static_cast<const char*>(params.residual.by_rank[rank]) + own_row * row_bytes;
    char* sums = static_cast<char*>(params.residual_out.by_rank[rank]) + own_row * row_bytes;
    float squares = 0.0f;
    for (int unit = thread; unit < params.vectors; unit += kMaxThreads) {
        Floats value =
            unpack<BFloat16>(load_unit<OwnLoads, BFloat16, true>(residual, unit, kUnitElements));
        Floats sum{};
        for (int peer = 0; peer < params.group.size; ++peer) {
            const Floats term = unpack<BFloat16>(load_unit<SharedLoads, BFloat16, true>(
                static_cast<const char*>(params.x.by_rank[peer]) + row * row_bytes,
                unit,
                kUnitElements));
#pragma unroll
            for (int j = 0; j < kUnitElements; ++j) {
                sum.value[j] += term.value[j];
            }
        }
        sum = unpack<BFloat16>(pack<BFloat16>(sum));
#pragma unroll
        for (int j = 0; j < kUnitElements; ++j) {
            value.value[j] += sum.value[j];
            squares += value.value[j] * value.value[j];
        }
        ptx::st_global_16B(sums + int64_t{16} * unit, pack<BFloat16>(value).part[0]);
    }
    const float mean_square = total.sum(squares) / static_cast<float>(params.hidden);
    const float inverse = 1.0f / sqrtf(mean_square + params.eps);
    for (int unit = thread; unit < params.vectors; unit += kMaxThreads) {
        Floats value =
            unpack<BFloat16>(load_unit<OwnLoads, BFloat16, true>(sums, unit, kUnitElements));
        const Floats weight = unpack<BFloat16>(
            load_unit<ConstantLoads, BFloat16, true>(params.weight, unit, kUnitElements));
#pragma unroll
        for (int j = 0; j < kUnitElements; ++j) {
            value.value[j] *= inverse * (weight.value[j] + params.weight_offset);
        }
        store_to_all<Peer>(params.out,
                           rank,
                           params.group.size,
                           row * row_bytes + int64_t{16} * unit,
                           pack<BFloat16>(value).part[0]);
    }
}

__global__ void __launch_bounds__(kMaxThreads, 1)
    row_per_block(const __grid_constant__ ReductionParams params) {
    __shared__ ReductionShared shared;
    const RowGroup group(kMaxWarps);
    RankBarrier<Peer> barrier(params.group, shared.barrier);
    RowTotal total(group, shared.total);
    const int rank = barrier.rank(), size = params.group.size;
    const RowSpan own = split_span(params.rows, size, rank);

    bool is_valid = barrier.arrive_and_wait(Phase::kEntry);
    if (is_valid) {
        for (int64_t row = group.first_row(own); row < own.stop; row += group.row_step()) {
            baseline_row(params, rank, row, row - own.start, total);
        }
        is_valid = barrier.arrive_and_wait(Phase::kExit);
    }
    if (!is_valid) {
        for (int owner = 0; owner < size; ++owner) {
            invalidate_rows(params,
                            rank,
                            split_span(params.rows, size, owner),
                            own.start,
                            owner == rank,
                            group,
                            BFloat16::kBytes);
        }
    }
    barrier.store_state();
}

}  // namespace token::weave::cuda
