// All-reduce + bias + residual + norm over shared memory: how rows travel. Where inputs are found
// is in reduction_inputs.cpp, what becomes of a row in row_results.cpp.
//
// One-shot: rows pass through a staging slot of every rank; each rank reduces all of them. One
// barrier per block, and none at the end: the slots alternate, so a slow peer may still read this
// block while the next collective fills the other one.
//
// Two-shot: rank r reduces its rows from everybody's slots, puts the result into its own
// staging_out, and after the next barrier every rank copies the others' rows out. Blocks are small
// enough to be copied out of cache. The rows a rank reduces itself never pass through a slot.
#include "check_reduction.hpp"
#include "collectives.hpp"
#include "reduction_inputs.hpp"
#include "row_results.hpp"

#include <algorithm>
#include <cstring>
#include <vector>

namespace token::weave {

namespace {

using comm::HostGroup;

class Reduction {
  public:
    Reduction(HostGroup& group, const RowKernels& kernels, const AllReduceRmsNormParams& params)
        : group_(group),
          params_(params),
          row_bytes_(params.hidden * element_bytes(params.dtype)),
          own_(split_rows(params.rows, group.size(), group.rank())),
          is_alone_(group.size() == 1),
          inputs_(group, params),
          results_(group.threads(), kernels, params, group.size(), own_),
          first_(group.size()) {}

    void run() {
        HostGroup::Turn turn(group_, record());
        if (params_.plan.algorithm == Algorithm::kOneShot) {
            one_shot(turn);
        } else {
            two_shot(turn);
        }
        if (inputs_.is_in_partial_slot()) {
            group_.flip_partial_slot();
        }
    }

  private:
    comm::CallRecord record() const {
        const QuantizedParams& quantized = params_.quantized;
        comm::OptionsHash options;
        options.add(params_.eps).add(params_.weight_offset).add(params_.residual_is_sharded);
        options.add(params_.plan.algorithm).add(params_.plan.output).add(params_.plan.block_rows);
        options.add(params_.residual != nullptr).add(params_.residual_out != nullptr);
        options.add(params_.bias != nullptr)
            .add(params_.weight != nullptr)
            .add(params_.weight_dtype)
            .add(params_.out_dtype);
        options.add(params_.norm)
            .add(params_.numerics)
            .add(params_.norm_bias != nullptr)
            .add(params_.residual_dtype);
        options.add(quantized.format)
            .add(quantized.group_elements)
            .add(quantized.scale)
            .add(params_.out != nullptr);
        options.add(inputs_.is_symmetric())
            .add(inputs_.is_in_partial_slot())
            .add(inputs_.region_offset());
        comm::CallRecord call;
        call.operation = static_cast<uint32_t>(params_.operation);
        call.dtype = static_cast<uint32_t>(params_.dtype);
        call.rows = static_cast<uint64_t>(params_.rows);
        call.row_elems = static_cast<uint32_t>(params_.hidden);
        call.options = options.value();
        return call;
    }

    void one_shot(HostGroup::Turn& turn) {
        const bool is_symmetric = inputs_.is_symmetric();
        const int64_t block =
            is_symmetric ? std::max<int64_t>(params_.rows, 1) : params_.plan.block_rows;
        const int64_t num_blocks = ceil_div(params_.rows, block);
        int slot = 0;
        if (!is_symmetric) {
            slot = group_.next_staging_slot();
            stage({0, std::min(block, params_.rows)}, slot, 0);
        }
        turn.begin();
        for (int64_t index = 0; index < num_blocks; ++index) {
            const RowRange rows{index * block, std::min((index + 1) * block, params_.rows)};
            const int read_slot = slot;
            const bool is_last = index + 1 == num_blocks;
            if (!is_last) {
                // Peers finished with that slot before the last barrier.
                slot = group_.next_staging_slot();
                stage({rows.stop, std::min(rows.stop + block, params_.rows)}, slot, 0);
            }
            for (int rank = 0; rank < group_.size(); ++rank) {
                first_[rank] = is_symmetric ? inputs_.base(rank) + rows.start * row_bytes_
                                            : group_.staging_in(rank, read_slot);
            }
            results_.reduce(rows, first_, nullptr);
            // The caller may overwrite its own symmetric tensor when this returns, so peers must be
            // done with it; the alternating slots need no such wait.
            if (!is_last || (is_symmetric && !inputs_.is_in_partial_slot() && !is_alone_)) {
                turn.sync();
            }
        }
    }

    void two_shot(HostGroup::Turn& turn) {
        const bool is_private = params_.plan.output == Output::kPrivate && !is_alone_;
        const bool is_staged = !inputs_.is_symmetric();
        const int64_t most_rows = split_rows(params_.rows, group_.size(), 0).count();
        const int64_t block =
            is_private || is_staged ? params_.plan.block_rows : std::max<int64_t>(most_rows, 1);
        const int64_t num_blocks = ceil_div(most_rows, block);
        int slot = 0;
        if (is_staged) {
            slot = group_.next_staging_slot();
            stage_shares(0, block, slot);
        }
        turn.begin();
        for (int64_t index = 0; index < num_blocks; ++index) {
            const RowRange rows = share_block(own_, index, block);
            for (int rank = 0; rank < group_.size(); ++rank) {
                first_[rank] = is_staged ? staged_rows(rank, slot, group_.rank(), block)
                                         : inputs_.base(rank) + rows.start * row_bytes_;
            }
            first_[group_.rank()] =
                static_cast<const std::byte*>(params_.x) + rows.start * row_bytes_;
            const int out_slot = static_cast<int>(index & 1);
            results_.reduce(
                rows, first_, is_private ? group_.staging_out(group_.rank(), out_slot) : nullptr);
            if (is_staged && index + 1 < num_blocks) {
                slot = group_.next_staging_slot();
                stage_shares(index + 1, block, slot);
            }
            if (!is_alone_) {
                turn.sync();
            }
            if (is_private) {
                copy_out(index, block);
            }
        }
    }

    static RowRange share_block(RowRange share, int64_t index, int64_t block) {
        const int64_t start = std::min(share.start + index * block, share.stop);
        return {start, std::min(start + block, share.stop)};
    }

    void stage(RowRange rows, int slot, int64_t at_row) {
        std::byte* to = group_.staging_in(group_.rank(), slot) + at_row * row_bytes_;
        const auto* from = static_cast<const std::byte*>(params_.x) + rows.start * row_bytes_;
        group_.threads().parallel_for(
            rows.count() * row_bytes_, kMinBytesPerThread, [&](int, RowRange range) {
                std::memcpy(to + range.start, from + range.start, range.count());
            });
    }

    // Two-shot staging holds one piece of `block` rows for every other rank: those it will reduce.
    void stage_shares(int64_t index, int64_t block, int slot) {
        for (int rank = 0; rank < group_.size(); ++rank) {
            if (rank != group_.rank()) {
                stage(share_block(split_rows(params_.rows, group_.size(), rank), index, block),
                      slot,
                      piece(group_.rank(), rank) * block);
            }
        }
    }
    // Position of the piece for `reader` in the slot of `writer`, which has none for itself.
    static int64_t piece(int writer, int reader) { return reader < writer ? reader : reader - 1; }

    const std::byte* staged_rows(int rank, int slot, int reader, int64_t block) const {
        if (rank == reader) {
            return nullptr;  // its own rows pass through no slot
        }
        return group_.staging_in(rank, slot) + piece(rank, reader) * block * row_bytes_;
    }

    void copy_out(int64_t index, int64_t block) {
        for (int step = 1; step < group_.size(); ++step) {
            const int rank = (group_.rank() + step) % group_.size();
            const RowRange share = split_rows(params_.rows, group_.size(), rank);
            results_.copy_out(share_block(share, index, block),
                              group_.staging_out(rank, static_cast<int>(index & 1)));
        }
    }

    HostGroup& group_;
    const AllReduceRmsNormParams& params_;
    const int64_t row_bytes_;
    const RowRange own_;
    const bool is_alone_;
    const ReductionInputs inputs_;
    RowResults results_;
    std::vector<const std::byte*> first_;  // of every rank, for the block at hand
};

}  // namespace

void allreduce_rmsnorm(HostGroup& group,
                       const RowKernels& kernels,
                       const AllReduceRmsNormParams& params) {
    check_reduction(group, params);
    Reduction(group, kernels, params).run();
}

}  // namespace token::weave
