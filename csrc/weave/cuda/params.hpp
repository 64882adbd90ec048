// What a kernel is given, by value: plain data, no standard library. The host fills it from
// launch.hpp, which says what each part means to a caller; the memory of the protocol is in
// channel.hpp.
#pragma once

#include "channel.hpp"
#include "token/common/int_types.hpp"

namespace token::weave::cuda {

// Memory that each rank has at the same offset of its symmetric buffer, as this GPU addresses it.
// A private tensor uses the entry of its own rank alone.
struct Region {
    void* by_rank[kMaxRanks];
    void* multicast;  // stands for all of them; null without multicast
};

// Values equal DType's: params must not include host headers.
enum class Element : int32_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 3 };

enum class Quantized : int32_t { kNone = 0, kFloat8E4M3 = 1, kInt8 = 2 };

// What every launch has.
struct GroupParams {
    Region channel;  // of ChannelMemory
    FailureRecord* failure[kMaxRanks];
    uint64_t timeout_ns;
    int32_t size;
    int32_t first_rank;    // rank of blockIdx.y == 0
    uint32_t fingerprint;  // of the call; 0: calls are not compared
};

struct ReductionParams {
    GroupParams group;
    // tensors
    Region x;               // [rows, hidden] partial sums
    Region staging;         // of one-shot, see one_shot.cuh
    Region out;             // [rows or own rows, hidden]; null where only codes are wanted
    Region codes;           // [rows or own rows, hidden] 8-bit codes; may be null
    Region scales;          // [same rows, scales_per_row] fp32; null with a static scale
    Region residual;        // [rows or own rows, hidden], read by its rank alone; may be null
    Region residual_out;    // like residual; may be null, may be `residual`
    const void* bias;       // [hidden]; may be null
    const void* weight;     // [hidden]; null: no norm
    const void* norm_bias;  // [hidden] of a LayerNorm; may be null
    // shape
    int64_t rows;
    int64_t hidden;
    int64_t staging_block_bytes;  // of one rank's part of one block's staging
    int32_t vectors;              // units of 8 elements a row has, the last one may be partial
    int32_t warps_per_row;
    int32_t group_units;     // units of 8 elements that share a scale: 0 a static scale, 16 or all
    int32_t scales_per_row;  // 0 with a static scale
    // numbers
    float eps;
    float weight_offset;
    float inverse_scale;  // 1 / the static scale
    Quantized quantized;
    bool is_layer_norm;
    bool is_weight_fp32;    // of weight and norm_bias
    bool is_residual_fp32;  // of residual and residual_out
    // layout
    bool is_out_own_rows;         // out, codes and scales: this rank's rows, in its own memory
    bool is_residual_own_rows;    // residual and residual_out: this rank's rows, in its own memory
    bool stores_residual_to_all;  // residual_out is computed by one rank for all
    // benchmarks, see paced.cuh
    uint32_t pace_row_ns;
    uint32_t pace_latency_ns;
};

struct GatherParams {
    GroupParams group;
    Region source;  // [own rows, row_bytes], read by its rank alone
    Region out;     // [rows, row_bytes]
    int64_t rows;
    int64_t row_bytes;
};

}  // namespace token::weave::cuda
