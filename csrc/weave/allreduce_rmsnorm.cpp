// All-reduce + bias + residual + RMSNorm over shared memory. One file because both algorithms share
// where inputs are found, how rows are reduced and which slots may be written when.
//
// One-shot: rows pass through a staging slot of every rank; each rank reduces all of them. One
// barrier per block, and none at the end: the slots alternate, so a slow peer may still read this
// block while the next collective fills the other one.
//
// Two-shot: rank r reduces its rows from everybody's slots, puts the result into its own
// staging_out, and after the next barrier every rank copies the others' rows out. Blocks are small
// enough to be copied out of cache. The rows a rank reduces itself never pass through a slot.
#include "collectives.hpp"

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

namespace token::weave {

namespace {

using comm::HostGroup;

constexpr int64_t kMinBytesPerThread =
    32 * 1024;  // below, waking a thread costs more than it saves

void copy_parallel(ThreadPool& threads, void* to, const void* from, int64_t num_bytes) {
    threads.parallel_for(num_bytes, kMinBytesPerThread, [&](int, RowRange range) {
        std::memcpy(static_cast<std::byte*>(to) + range.start,
                    static_cast<const std::byte*>(from) + range.start,
                    range.count());
    });
}

class Reduction {
  public:
    Reduction(HostGroup& group, const RowKernels& kernels, const AllReduceRmsNormParams& params)
        : group_(group),
          params_(params),
          kernels_(kernels),
          kernel_(kernels.pick(params.dtype, params.out_dtype, params.weight_dtype)),
          row_bytes_(params.hidden * element_bytes(params.dtype)),
          out_row_bytes_(params.hidden * element_bytes(params.out_dtype)),
          own_(split_rows(params.rows, group.size(), group.rank())),
          is_alone_(group.size() == 1) {
        find_inputs();
        if (params.weight != nullptr) {
            scratch_ = std::make_unique_for_overwrite<float[]>(
                group.threads().num_threads() * norm::scratch_elements(params.hidden));
        }
    }

    void run() {
        HostGroup::Turn turn(group_, record());
        if (params_.plan.algorithm == Algorithm::kOneShot) {
            one_shot(turn);
        } else {
            two_shot(turn);
        }
        if (in_partial_slot_) {
            group_.flip_partial_slot();
        }
    }

  private:
    comm::CallRecord record() const {
        comm::OptionsHash options;
        options.add(params_.eps).add(params_.weight_offset).add(params_.residual_is_sharded);
        options.add(params_.plan.algorithm).add(params_.plan.output).add(params_.plan.block_rows);
        options.add(params_.residual != nullptr).add(params_.residual_out != nullptr);
        options.add(params_.bias != nullptr)
            .add(params_.weight != nullptr)
            .add(params_.weight_dtype)
            .add(params_.out_dtype);
        options.add(is_symmetric()).add(in_partial_slot_).add(region_offset_);
        comm::CallRecord call;
        call.operation = static_cast<uint32_t>(params_.operation);
        call.dtype = static_cast<uint32_t>(params_.dtype);
        call.rows = static_cast<uint64_t>(params_.rows);
        call.row_elems = static_cast<uint32_t>(params_.hidden);
        call.options = options.value();
        return call;
    }

    // Where every rank's partial sum can be read without a copy, if x lies in memory all ranks have
    // mapped.
    void find_inputs() {
        const int64_t num_bytes = params_.rows * row_bytes_;
        const auto* x = static_cast<const std::byte*>(params_.x);
        if (is_alone_) {
            symmetric_ = {x};
            return;
        }
        // In one-shot every rank reads all of x until the end, so results must not be written over
        // it.
        if (params_.plan.algorithm == Algorithm::kOneShot &&
            (overlaps(params_.out, num_bytes) || overlaps(params_.residual_out, num_bytes))) {
            return;
        }
        const int slot = group_.partial_slot();
        if (x == group_.partial(group_.rank(), slot) &&
            num_bytes <= group_.layout().partial_bytes) {
            in_partial_slot_ = true;
            for (int rank = 0; rank < group_.size(); ++rank) {
                symmetric_.push_back(group_.partial(rank, slot));
            }
        } else if (const comm::SymmetricRegion* region = group_.find_region(x, num_bytes)) {
            region_offset_ = x - region->bases[group_.rank()];
            for (const std::byte* base : region->bases) {
                symmetric_.push_back(base + region_offset_);
            }
        }
    }
    bool is_symmetric() const { return !symmetric_.empty(); }
    bool overlaps(const void* result, int64_t num_bytes) const {
        const auto* first = static_cast<const std::byte*>(result);
        const auto* x = static_cast<const std::byte*>(params_.x);
        return first != nullptr && first < x + num_bytes && x < first + num_bytes;
    }

    void one_shot(HostGroup::Turn& turn) {
        const int64_t block =
            is_symmetric() ? std::max<int64_t>(params_.rows, 1) : params_.plan.block_rows;
        const int64_t num_blocks = ceil_div(params_.rows, block);
        int slot = 0;
        if (!is_symmetric()) {
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
            reduce(
                rows,
                [&](int rank, int64_t row) {
                    return is_symmetric() ? symmetric_[rank] + row * row_bytes_
                                          : group_.staging_in(rank, read_slot) +
                                                (row - rows.start) * row_bytes_;
                },
                nullptr,
                rows.start,
                false);
            // The caller may overwrite its own symmetric tensor when this returns, so peers must be
            // done with it; the alternating slots need no such wait.
            if (!is_last || (is_symmetric() && !in_partial_slot_ && !is_alone_)) {
                turn.sync();
            }
        }
    }

    void two_shot(HostGroup::Turn& turn) {
        const bool is_private = params_.plan.output == Output::kPrivate && !is_alone_;
        const bool is_staged = !is_symmetric();
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
            const int read_slot = slot;
            std::byte* staging_out =
                is_private ? group_.staging_out(group_.rank(), static_cast<int>(index & 1))
                           : nullptr;
            reduce(
                rows,
                [&](int rank, int64_t row) {
                    if (rank == group_.rank()) {
                        return static_cast<const std::byte*>(params_.x) + row * row_bytes_;
                    }
                    return is_staged
                               ? staged_row(rank, read_slot, group_.rank(), block, row - rows.start)
                               : symmetric_[rank] + row * row_bytes_;
                },
                staging_out,
                rows.start,
                true);
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
        copy_parallel(group_.threads(),
                      group_.staging_in(group_.rank(), slot) + at_row * row_bytes_,
                      static_cast<const std::byte*>(params_.x) + rows.start * row_bytes_,
                      rows.count() * row_bytes_);
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

    const std::byte* staged_row(int rank, int slot, int reader, int64_t block, int64_t row) const {
        return group_.staging_in(rank, slot) + (piece(rank, reader) * block + row) * row_bytes_;
    }

    bool is_elementwise() const { return params_.weight == nullptr && params_.bias == nullptr; }
    bool residual_travels() const {
        return params_.residual_out != nullptr && !params_.residual_is_sharded;
    }

    // input_of(rank, row): the row of that rank's partial sum. staging: null, or where copies for
    // the peers go, the out rows first and the residual rows, if they travel, behind them.
    template <class InputOf>
    void reduce(RowRange rows,
                const InputOf& input_of,
                std::byte* staging,
                int64_t first_row,
                bool is_two_shot) {
        const int64_t grain =
            std::max<int64_t>(1, kMinBytesPerThread / std::max<int64_t>(row_bytes_, 1));
        group_.threads().parallel_for(rows.count(), grain, [&](int thread, RowRange part) {
            std::vector<const void*> inputs(group_.size());
            norm::RowArgs args{};
            args.inputs = inputs.data();
            args.num_inputs = group_.size();
            args.bias = params_.bias;
            args.weight = params_.weight;
            args.weight_offset = params_.weight_offset;
            args.eps = params_.eps;
            args.is_streaming = params_.plan.is_streaming;
            args.scratch = scratch_
                               ? scratch_.get() + thread * norm::scratch_elements(params_.hidden)
                               : nullptr;
            const bool own_rows_only = is_two_shot && params_.plan.output == Output::kOwnRows;
            // Without a norm or a bias the elements do not know of rows: one call for all.
            const int64_t step = is_elementwise() ? std::max<int64_t>(part.count(), 1) : 1;
            args.hidden = params_.hidden * step;
            for (int64_t row = rows.start + part.start; row < rows.start + part.stop; row += step) {
                for (int rank = 0; rank < group_.size(); ++rank) {
                    inputs[rank] = input_of(rank, row);
                }
                const int64_t residual_row = params_.residual_is_sharded ? row - own_.start : row;
                args.residual = offset(params_.residual, residual_row, row_bytes_);
                args.residual_out = offset(params_.residual_out, residual_row, row_bytes_);
                args.out =
                    offset(params_.out, own_rows_only ? row - own_.start : row, out_row_bytes_);
                if (staging != nullptr) {
                    args.out_copy = staging + (row - first_row) * row_bytes_;
                    args.residual_copy =
                        residual_travels() ? staging + (rows.count() + row - first_row) * row_bytes_
                                           : nullptr;
                }
                kernel_(args);
            }
            if (params_.plan.is_streaming) {
                kernels_.end_streaming();
            }
        });
    }

    static const void* offset(const void* base, int64_t row, int64_t row_bytes) {
        return base == nullptr ? nullptr : static_cast<const std::byte*>(base) + row * row_bytes;
    }
    static void* offset(void* base, int64_t row, int64_t row_bytes) {
        return base == nullptr ? nullptr : static_cast<std::byte*>(base) + row * row_bytes;
    }

    void copy_out(int64_t index, int64_t block) {
        for (int step = 1; step < group_.size(); ++step) {
            const int rank = (group_.rank() + step) % group_.size();
            const RowRange rows =
                share_block(split_rows(params_.rows, group_.size(), rank), index, block);
            const std::byte* staging = group_.staging_out(rank, static_cast<int>(index & 1));
            const int64_t num_bytes = rows.count() * row_bytes_;
            deliver(offset(params_.out, rows.start, row_bytes_), staging, num_bytes);
            if (residual_travels()) {
                deliver(offset(params_.residual_out, rows.start, row_bytes_),
                        staging + num_bytes,
                        num_bytes);
            }
        }
    }

    void deliver(void* to, const void* from, int64_t num_bytes) {
        if (!params_.plan.is_streaming) {
            copy_parallel(group_.threads(), to, from, num_bytes);
            return;
        }
        group_.threads().parallel_for(num_bytes, kMinBytesPerThread, [&](int, RowRange range) {
            kernels_.copy_streaming(static_cast<std::byte*>(to) + range.start,
                                    static_cast<const std::byte*>(from) + range.start,
                                    range.count());
            kernels_.end_streaming();
        });
    }

    HostGroup& group_;
    const AllReduceRmsNormParams& params_;
    const RowKernels& kernels_;
    const RowKernel kernel_;
    const int64_t row_bytes_;
    const int64_t out_row_bytes_;
    const RowRange own_;
    const bool is_alone_;
    bool in_partial_slot_ = false;
    int64_t region_offset_ = 0;
    std::vector<const std::byte*> symmetric_;
    std::unique_ptr<float[]> scratch_;
};

void check(const HostGroup& group, const AllReduceRmsNormParams& params) {
    TOKEN_CHECK(params.dtype == DType::kFloat32 || params.dtype == DType::kBFloat16,
                "only float32 and bfloat16 are reduced, got ",
                dtype_name(params.dtype));
    TOKEN_CHECK(
        params.out_dtype == params.dtype ||
            (params.out_dtype == DType::kFloat32 && params.plan.output == Output::kOwnRows &&
             params.weight == nullptr && params.bias == nullptr && params.residual == nullptr),
        "sums of ",
        dtype_name(params.dtype),
        " come out as ",
        dtype_name(params.out_dtype),
        " only from a plain reduce-scatter to float32");
    TOKEN_CHECK(params.rows >= 0 && params.hidden > 0,
                "rows must be >= 0 and hidden > 0, got ",
                params.rows,
                " x ",
                params.hidden);
    TOKEN_CHECK(params.hidden <= INT32_MAX, "hidden must be below 2^31, got ", params.hidden);
    const ReductionPlan& plan = params.plan;
    TOKEN_CHECK(plan.block_rows >= 1, "block_rows must be at least 1, got ", plan.block_rows);
    const bool is_one_shot = plan.algorithm == Algorithm::kOneShot;
    TOKEN_CHECK(
        !(is_one_shot && plan.output != Output::kPrivate),
        "one-shot gives every rank a private result; shared and scattered outputs are two-shot");
    TOKEN_CHECK(plan.output == Output::kPrivate || params.residual_out == nullptr ||
                    group.size() == 1 || params.residual_is_sharded,
                "shared and scattered outputs keep the residual row-sharded: nothing brings other "
                "rows here");
    TOKEN_CHECK(!(is_one_shot && params.residual_is_sharded && group.size() > 1),
                "a row-sharded residual needs the two-shot algorithm");
    if (group.size() == 1) {
        return;
    }
    const int64_t row_bytes = params.hidden * element_bytes(params.dtype);
    const int64_t in_rows = plan.block_rows * (is_one_shot ? 1 : group.size() - 1);
    const int64_t out_rows = is_one_shot ? 0 : 2 * plan.block_rows;
    const int64_t staged = std::max(in_rows, out_rows) * row_bytes;
    TOKEN_CHECK(staged <= group.layout().staging_bytes,
                "a block of ",
                plan.block_rows,
                " rows of ",
                params.hidden,
                " ",
                dtype_name(params.dtype),
                " needs ",
                staged,
                " bytes of staging, the world has ",
                group.layout().staging_bytes);
}

}  // namespace

void allreduce_rmsnorm(HostGroup& group,
                       const RowKernels& kernels,
                       const AllReduceRmsNormParams& params) {
    check(group, params);
    Reduction(group, kernels, params).run();
}

}  // namespace token::weave
