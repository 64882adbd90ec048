// The CUDA collectives, for host code that knows no CUDA header. Addresses are integers, the stream
// is an opaque pointer. A launch returns at once; it allocates nothing, waits for nothing and may
// be captured into a CUDA graph (the protocol's state is in device memory).
//
// Collective: every rank of the group launches the same calls in the same order on its channel,
// with the same shapes, options and num_blocks. One channel serves one stream at a time.
//
// A launch throws InvalidArgument for what it refuses, before anything is enqueued, and
// SystemFailure where CUDA refuses. What goes wrong on the device is in the failure record, see
// read_failure().
#pragma once

#include "../../fabric/kernel_launch.hpp"
#include "channel.hpp"
#include "token/common/dtype.hpp"
#include "token/norm/quantize_row.hpp"
#include "token/norm/row_args.hpp"

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace token::weave::cuda {

enum class Reach : int32_t {
    kPeer = 0,       // loads and stores through the peers' addresses; sm_80 and later
    kMulticast = 1,  // the NVLink switch adds and copies; sm_90 and later
};

// Addresses of a tensor as this GPU sees them; empty: not there.
//   shared:  by_rank[size], at the same offset of each rank's symmetric memory, and `multicast`
//            with Reach::kMulticast.
//   private: by_rank[1], memory of this rank; with a virtual group by_rank[size].
// Rows are contiguous and start at a multiple of 16 bytes where hidden % 8 == 0.
struct Tensor {
    std::vector<uintptr_t> by_rank;
    uintptr_t multicast = 0;

    bool is_given() const { return !by_rank.empty(); }
};

struct Group {
    int rank = 0;
    int size = 1;  // 1 to 16
    Reach reach = Reach::kPeer;
    // One launch on one GPU plays all ranks (num_blocks blocks each, all resident at once or the
    // launch is refused): for tests and benchmarks. rank is then 0.
    bool is_virtual = false;
    Tensor channel;  // shared; channel_bytes() bytes, zero on all ranks before the first call
    // Pinned host memory that the GPU can write, sizeof(FailureRecord) zero bytes; private.
    Tensor failure_record;
    uint64_t timeout_ns = 30'000'000'000;  // of each wait of a block
    // Compare a fingerprint of the call with every peer's at the first barrier: a debugging aid,
    // one more store and load for each peer and block.
    bool checks_calls = false;
    fabric::KernelLauncher launcher;  // empty: the kernels that were compiled in
};

enum class Form : int32_t {
    // Rank r reduces the rows split_rows gives it and stores the results on all ranks. x and every
    // result are shared (results in private memory are copied by the caller).
    kTwoShot = 0,
    // Every rank sends x to all and reduces all rows. x and every result are private, the residual
    // is replicated. For small messages: one barrier.
    kOneShot = 1,
    // The first half of two-shot: results are this rank's rows, private. all_gather is the other.
    kReduceScatter = 2,
};

// The normed result as 8-bit codes of the values that `out` holds or would hold: norm/quantize_row.
struct QuantizedResult {
    norm::QuantizedFormat format = norm::QuantizedFormat::kNone;
    int64_t group_elements = 0;  // that share a scale: hidden, or 128; 0: `scale` for all
    float scale = 0.0f;
    Tensor codes;   // like out, one byte an element
    Tensor scales;  // [rows, ceil(hidden / group_elements)] fp32, like out; not with `scale`
};

// For benchmarks on one GPU: loads of partial sums as a link would bring them, see paced.cuh.
struct Pace {
    double bytes_per_ns = 0.0;  // of all loads of partial sums of one rank; 0: not paced
    int64_t latency_ns = 0;     // of each row at least
};

// residual_out = sum_r(x_r) + bias + residual; out is its norm. Without weight out is the sum: the
// plain all-reduce. Rounding: the sum over ranks once to dtype, everything after in fp32, results
// once. x may be out (two-shot): a row is read by its owner before the owner overwrites it.
struct Reduction {
    Group group;
    Form form = Form::kTwoShot;
    // tensors
    Tensor x;              // [rows, hidden]
    Tensor staging;        // one-shot: shared; staging_bytes() bytes, any content
    Tensor out;            // [rows, hidden], kReduceScatter: own rows; may be empty where quantized
    Tensor residual;       // private; may be empty
    Tensor residual_out;   // may be empty, may be `residual`
    uintptr_t bias = 0;    // [hidden] dtype; 0: none
    uintptr_t weight = 0;  // [hidden] weight_dtype; 0: no norm
    uintptr_t norm_bias = 0;  // [hidden] weight_dtype, of a LayerNorm; 0: none
    // residual and residual_out are [own rows, hidden] and private. Otherwise [rows, hidden]:
    // residual private, residual_out shared with kTwoShot, private with kOneShot.
    bool residual_is_sharded = false;
    // shape and types
    int64_t rows = 0;
    int64_t hidden = 0;                       // up to 16384
    DType dtype = DType::kBFloat16;           // bf16, fp16; float32 with Reach::kPeer
    DType weight_dtype = DType::kBFloat16;    // dtype or float32
    DType residual_dtype = DType::kBFloat16;  // dtype or float32
    // numbers
    norm::NormKind norm = norm::NormKind::kRms;
    float eps = 0.0f;
    float weight_offset = 0.0f;  // 1 for Gemma
    QuantizedResult quantized;
    // launch
    int64_t staging_block_bytes = 0;  // of one-shot, see one_shot_block_bytes()
    int num_blocks = 1;               // the SM budget: blocks of up to 512 threads; 1 to kMaxBlocks
    void* stream = nullptr;           // cudaStream_t
    Pace pace;
};

void allreduce_rmsnorm(const Reduction& reduction);

// The baseline of the benchmarks, never used otherwise: two-shot with one block for a row, nothing
// loaded ahead, the residual read again for the result. RMSNorm, bf16, 16-byte vectors, a sharded
// residual, Reach::kPeer.
void row_per_block_baseline(const Reduction& reduction);

// Rank r's rows (split_rows) to all ranks: out[own rows] of every rank = source of rank r.
struct Gather {
    Group group;
    Tensor source;  // private [own rows, row_bytes]; may be this rank's rows of out
    Tensor out;     // shared [rows, row_bytes]
    int64_t rows = 0;
    int64_t row_bytes = 0;  // any; multiples of 16 with 16-byte aligned tensors are fast
    int num_blocks = 1;
    void* stream = nullptr;
};

void all_gather(const Gather& gather);

// Bytes of one channel, a multiple of 128. Align it to 128.
int64_t channel_bytes();
// What one-shot stages: staging_block_bytes for `rows`, and the bytes of the whole staging for it.
// Staging of a channel may be made once for the largest call and its largest num_blocks: a call
// passes the staging_block_bytes it was made with.
int64_t one_shot_block_bytes(int64_t rows, int64_t hidden, DType dtype, int num_blocks);
int64_t staging_bytes(int size, int num_blocks, int64_t staging_block_bytes);
// Rows that one block holds in registers at once.
int rows_per_block(int64_t hidden, DType dtype);

struct Failure {
    FailureKind kind;
    int rank;
    int peer;
    int block;
    Phase phase;
    uint32_t epoch;
    uint32_t expected;
    uint32_t seen;
    std::string message;  // for people
};

// What a rank's kernels have recorded, or nothing. No CUDA call: it reads pinned memory. Once there
// is a failure, every later launch on the channel fills its results with NaN and returns.
std::optional<Failure> read_failure(uintptr_t failure_record);

}  // namespace token::weave::cuda
