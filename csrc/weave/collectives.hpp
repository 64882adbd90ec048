// The CPU collectives. All of them: collective over the group, blocking, the same arguments on
// every rank (checked before data moves), private memory in and out unless said otherwise.
#pragma once

#include "row_kernels.hpp"
#include "token/comm/host_group.hpp"
#include "token/common/math.hpp"

#include <cstdint>
#include <vector>

namespace token::weave {

enum class Algorithm : int32_t {
    kOneShot = 0,  // every rank reduces every row
    kTwoShot = 1,  // rank r reduces the rows split_rows gives it, then the results are exchanged
};

// Where the result of a two-shot reduction goes.
enum class Output : int32_t {
    kPrivate = 0,  // all rows, in this rank's private memory
    kOwnRows = 1,  // only the rows this rank reduces (reduce-scatter)
    kShared = 2,   // one physical tensor mapped by all ranks; each writes its rows
};

// How the work is cut up: decided by tokenweave.plan, equal on all ranks.
struct ReductionPlan {
    Algorithm algorithm = Algorithm::kOneShot;
    Output output = Output::kPrivate;
    // Rows per block through the staging slots: of the whole tensor (one-shot) or of each rank's
    // share (two-shot).
    int64_t block_rows = 1;
    // Write the private result around the cache: for results that no cache could keep for their
    // reader.
    bool is_streaming = false;
};

// The normed result as 8-bit codes, of the values that `out` would hold.
struct QuantizedParams {
    norm::QuantizedFormat format = norm::QuantizedFormat::kNone;  // none: not asked for
    int64_t group_elements = 0;  // that share a scale, a multiple of 32; 0: `scale` for all
    float scale = 0.0f;
    void* out = nullptr;     // [rows, hidden] bytes
    void* scales = nullptr;  // [rows, ceil(hidden / group_elements)] fp32; null with `scale`

    bool is_asked_for() const { return format != norm::QuantizedFormat::kNone; }
    int64_t scales_per_row(int64_t hidden) const {
        return group_elements == 0 ? 0 : ceil_div(hidden, group_elements);
    }
};

struct AllReduceRmsNormParams {
    // pointers
    const void* x = nullptr;  // [rows, hidden] this rank's partial sum; may lie in symmetric memory
    const void* residual =
        nullptr;  // [rows, hidden], or this rank's rows if residual_is_sharded; may be null
    const void* bias = nullptr;       // [hidden]; may be null
    const void* weight = nullptr;     // [hidden]; null: no norm
    const void* norm_bias = nullptr;  // [hidden] weight_dtype, of a LayerNorm; may be null
    // [rows, hidden] (own rows only with Output::kOwnRows); may be null where quantized
    void* out = nullptr;
    void* residual_out = nullptr;  // like residual; may be null, may be `residual`
    // shape
    int64_t rows = 0;
    int64_t hidden = 0;
    DType dtype = DType::kFloat32;
    DType weight_dtype = DType::kFloat32;
    DType out_dtype = DType::kFloat32;       // dtype; or float32 for an unrounded reduce-scatter
    DType residual_dtype = DType::kFloat32;  // of residual and residual_out: dtype, or float32
    // numbers
    norm::NormKind norm = norm::NormKind::kRms;
    norm::Numerics numerics = norm::Numerics::kFused;
    QuantizedParams quantized;
    float eps = 0.0f;
    float weight_offset = 0.0f;
    // protocol
    bool residual_is_sharded = false;
    comm::Operation operation = comm::Operation::kAllReduceRmsNorm;
    ReductionPlan plan;
};

// residual_out = sum_r(x_r) + bias + residual; out is its norm, of the unrounded residual_out
// (Numerics::kFused) or of the rounded one. Without weight: out is the sum. Formulas: NormKind.
void allreduce_rmsnorm(comm::HostGroup& group,
                       const RowKernels& kernels,
                       const AllReduceRmsNormParams& params);

struct FinishRowsParams {
    // [rows, hidden] input_dtype each: partial sums in rank order, or one sum for each host.
    std::vector<const void*> inputs;
    const void* residual = nullptr;  // [rows, hidden]; may be null
    const void* bias = nullptr;      // [hidden]; may be null
    const void* weight = nullptr;    // [hidden]; null: no norm
    void* out = nullptr;             // [rows, hidden]
    void* out_copy = nullptr;        // [rows, hidden], for other ranks to read; may be null
    void* residual_out = nullptr;    // [rows, hidden]; may be null, may be `residual`
    int64_t rows = 0;
    int64_t hidden = 0;
    DType input_dtype = DType::kFloat32;  // dtype; or float32 for unrounded sums
    DType dtype = DType::kFloat32;
    DType weight_dtype = DType::kFloat32;
    float eps = 0.0f;
    float weight_offset = 0.0f;
    bool is_streaming = false;  // see ReductionPlan
};

// The second half of a reduction over several hosts, on this rank alone: adds the inputs in the
// given order, rounds once, and goes on as allreduce_rmsnorm does.
void finish_rows(ThreadPool& threads, const RowKernels& kernels, const FinishRowsParams& params);

// Rank r's input is [rows, column_bytes[r]]; out is [rows, sum(column_bytes)] with the ranks'
// columns side by side in rank order. One row gathers flat tensors.
void all_gather(comm::HostGroup& group,
                const void* in,
                void* out,
                int64_t rows,
                const std::vector<int64_t>& column_bytes);

// data of rank `source` to all ranks, in place.
void broadcast(comm::HostGroup& group, void* data, int64_t num_bytes, int source);

}  // namespace token::weave
