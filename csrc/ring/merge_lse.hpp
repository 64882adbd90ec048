// The merge of partial attention outputs of the same rows over different keys, all at once:
//
//     m = max_i lse_i;  w_i = exp(lse_i - m);  out = sum_i w_i out_i / sum_i w_i;
//     lse = m + log(sum_i w_i)
//
// A partial with lse -inf saw no key: it counts for nothing and its out is not read. No partial at
// all, or only such: out 0, lse -inf. NaN in lse, and +inf, which no attention gives, make out and
// lse NaN; NaN in out_i makes out NaN however small its weight. Sums are fp32, in the order of the
// pieces, with the same bits on all instruction sets (but for log, which is the C library's).
#pragma once

#include "token/common/dtype.hpp"
#include "token/common/thread_pool.hpp"

#include <cstdint>
#include <string>
#include <vector>

namespace token::ring {

// In elements, of [batch, rows, heads]; the elements of one head lie side by side.
struct Strides {
    int64_t batch = 0;
    int64_t row = 0;
    int64_t head = 0;
};

// Rows [row_start, row_start + num_rows) and heads [head_start, head_start + num_heads) of all
// batch entries. The pointers are of the first of these.
struct MergePiece {
    const void* out = nullptr;   // [batch, num_rows, num_heads, head_dim]
    const float* lse = nullptr;  // [batch, num_rows, num_heads]
    DType dtype = DType::kFloat32;
    Strides out_strides;
    Strides lse_strides;
    int64_t row_start = 0;
    int64_t num_rows = 0;
    int64_t head_start = 0;
    int64_t num_heads = 0;
};

struct MergeParams {
    int64_t batch = 0;
    int64_t rows = 0;
    int64_t heads = 0;
    int64_t head_dim = 0;
    std::vector<MergePiece> pieces;
    const float* sinks = nullptr;  // [heads], a further term exp(sink - m) of the sum; may be null
    void* out = nullptr;           // [batch, rows, heads, head_dim], written everywhere
    DType out_dtype = DType::kFloat32;
    Strides out_strides;
    float* lse = nullptr;  // [batch, rows, heads], written everywhere
    Strides lse_strides;
};

// One row of one batch entry, all heads, of the pieces that have the row.
struct MergeRow {
    const MergeParams* params;
    const MergePiece* const* pieces;
    int64_t num_pieces;
    int64_t batch;
    int64_t row;
    float* scratch;  // [num_pieces + 2, heads]
};

struct MergeKernels {
    const char* name;
    void (*merge_row)(const MergeRow&);
};

const MergeKernels& merge_kernels_scalar();
#if defined(TOKEN_HAVE_AVX512)
const MergeKernels& merge_kernels_avx2();
const MergeKernels& merge_kernels_avx512();
#endif

// The bodies this CPU can run, widest first.
std::vector<const MergeKernels*> usable_merge_kernels();

// `name` one of the usable bodies, or "auto" for the widest. InvalidArgument names those there are.
const MergeKernels& choose_merge_kernels(const std::string& name);

// Throws InvalidArgument, naming the values, where the pieces are not within the result or a dtype
// is none that can be merged.
void check_merge(const MergeParams& params);

// Local. The outputs may not overlap the pieces. On the GPU: cuda/launch.hpp.
void merge_lse(ThreadPool& threads, const MergeKernels& kernels, const MergeParams& params);

}  // namespace token::ring
