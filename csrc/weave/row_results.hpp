// What a reduction makes of its rows: runs the kernels on them and knows where every result of a
// row goes, in this rank's memory and on the way to the other ranks.
#pragma once

#include "collectives.hpp"

#include <array>
#include <cstddef>
#include <memory>
#include <vector>

namespace token::weave {

// Below this, waking a thread costs more than it saves.
inline constexpr int64_t kMinBytesPerThread = 32 * 1024;

class RowResults {
  public:
    // own: the rows this rank reduces in two-shot.
    RowResults(ThreadPool& threads,
               const RowKernels& kernels,
               const AllReduceRmsNormParams& params,
               int num_inputs,
               RowRange own);

    // Bytes of one row of everything that one rank computes for the others.
    static int64_t exchanged_row_bytes(const AllReduceRmsNormParams& params);

    // Computes rows. first[rank] is where row rows.start of that rank's partial sum lies, the next
    // ones behind it. staging: null, or where copies for the peers go.
    void reduce(RowRange rows, const std::vector<const std::byte*>& first, std::byte* staging);

    // Takes rows that a peer reduced out of its staging.
    void copy_out(RowRange rows, const std::byte* staging);

  private:
    struct Result {
        std::byte* to;  // null: not wanted
        int64_t row_bytes;
        int64_t first_row;  // which row `to` begins with
        bool is_exchanged;

        std::byte* at(int64_t row) const {
            return to == nullptr ? nullptr : to + (row - first_row) * row_bytes;
        }
    };
    // In staging they lie in this order, all rows of one and then all of the next. Elements never
    // grow from one to the next, so all are aligned to their size.
    enum : int { kScales, kResidual, kNormed, kQuantized, kNumResults };

    static std::array<Result, kNumResults> results_of(const AllReduceRmsNormParams& params,
                                                      RowRange own);
    std::byte* staged(std::byte* staging, int result, RowRange rows, int64_t row) const;
    void reduce_on_thread(int thread,
                          RowRange part,
                          RowRange rows,
                          const std::vector<const std::byte*>& first,
                          std::byte* staging);
    void quantize(std::byte* buffer, RowRange rows, int64_t row, std::byte* staging);
    void deliver_row(int result, const void* from, RowRange rows, int64_t row, std::byte* staging);

    ThreadPool& threads_;
    const RowKernels& kernels_;
    const AllReduceRmsNormParams& params_;
    const int num_inputs_;
    const RowRange own_;
    const norm::RowTypes types_;
    const RowKernel kernel_;
    const int64_t input_row_bytes_;
    const std::array<Result, kNumResults> results_;
    std::unique_ptr<float[]> scratch_;
    // Of every thread, where quantized: a normed row, its scales, its codes.
    std::unique_ptr<std::byte[]> rows_in_cache_;
    int64_t codes_offset_ = 0, scales_offset_ = 0, buffer_bytes_ = 0;
};

}  // namespace token::weave
