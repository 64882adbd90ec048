// From launch.hpp to kernels: fills their parameters, chooses the kernel. Host code without CUDA
// headers, in every build; what is refused is said in launch_checks.cpp.
#include "launch.hpp"

#include "launch_checks.hpp"
#include "start.hpp"
#include "token/common/check.hpp"
#include "token/common/math.hpp"

#include <cmath>
#include <cstring>
#include <type_traits>

namespace token::weave::cuda {

namespace {

static_assert(static_cast<int>(Element::kFloat32) == static_cast<int>(DType::kFloat32) &&
              static_cast<int>(Element::kBFloat16) == static_cast<int>(DType::kBFloat16) &&
              static_cast<int>(Element::kFloat16) == static_cast<int>(DType::kFloat16));
static_assert(static_cast<int>(Quantized::kFloat8E4M3) ==
                  static_cast<int>(norm::QuantizedFormat::kFloat8E4M3) &&
              static_cast<int>(Quantized::kInt8) == static_cast<int>(norm::QuantizedFormat::kInt8));

void* pointer(uintptr_t address) {
    return reinterpret_cast<void*>(address);
}

// Memory of this rank alone, or of each rank that the launch plays.
Region private_region(const Group& group, const Tensor& tensor) {
    Region region{};
    for (size_t index = 0; index < tensor.by_rank.size(); ++index) {
        region.by_rank[group.is_virtual ? index : group.rank] = pointer(tensor.by_rank[index]);
    }
    return region;
}

Region shared_region(const Tensor& tensor) {
    Region region{};
    for (size_t rank = 0; rank < tensor.by_rank.size(); ++rank) {
        region.by_rank[rank] = pointer(tensor.by_rank[rank]);
    }
    region.multicast = pointer(tensor.multicast);
    return region;
}

GroupParams group_params(const Group& group, uint32_t fingerprint) {
    GroupParams params{};
    params.channel = shared_region(group.channel);
    const Region records = private_region(group, group.failure_record);
    for (int rank = 0; rank < kMaxRanks; ++rank) {
        params.failure[rank] = static_cast<FailureRecord*>(records.by_rank[rank]);
    }
    params.timeout_ns = group.timeout_ns;
    params.size = group.size;
    params.first_rank = group.rank;
    params.fingerprint = group.checks_calls ? fingerprint : 0;
    return params;
}

// FNV-1a over what must be equal on all ranks.
class Fingerprint {
  public:
    template <class Value>
    Fingerprint& add(Value value) {
        static_assert(std::is_trivially_copyable_v<Value>);
        unsigned char bytes[sizeof(Value)];
        std::memcpy(bytes, &value, sizeof(Value));
        for (const unsigned char byte : bytes) {
            hash_ = (hash_ ^ byte) * 16777619u;
        }
        return *this;
    }
    // 0 means that calls are not compared.
    uint32_t value() const { return hash_ == 0 ? 1 : hash_; }

  private:
    uint32_t hash_ = 2166136261u;
};

uint32_t fingerprint_of(const Reduction& call) {
    const auto is_given = [](bool condition) { return static_cast<uint8_t>(condition); };
    return Fingerprint()
        .add(call.form)
        .add(call.group.reach)
        .add(call.rows)
        .add(call.hidden)
        .add(call.dtype)
        .add(call.weight_dtype)
        .add(call.residual_dtype)
        .add(call.norm)
        .add(call.eps)
        .add(call.weight_offset)
        .add(call.quantized.format)
        .add(call.quantized.group_elements)
        .add(call.quantized.scale)
        .add(call.staging_block_bytes)
        .add(call.num_blocks)
        .add(is_given(call.residual_is_sharded))
        .add(is_given(call.residual.is_given()))
        .add(is_given(call.residual_out.is_given()))
        .add(is_given(call.out.is_given()))
        .add(is_given(call.bias != 0))
        .add(is_given(call.weight != 0))
        .add(is_given(call.norm_bias != 0))
        .value();
}

int64_t units_of(int64_t hidden) {
    return ceil_div(hidden, kRowUnitElements);
}

// As few warps as hold the row in registers: then the block has the most rows in flight.
int warps_per_row(int64_t hidden) {
    return static_cast<int>(ceil_div(units_of(hidden), kWarpThreads * kRowUnitsPerLane));
}

bool is_paced(const Reduction& call) {
    return call.pace.bytes_per_ns != 0.0;
}

ReductionParams reduction_params(const Reduction& call) {
    const bool is_two_shot = call.form == Form::kTwoShot;
    const auto result = [&](const Tensor& tensor) {
        return is_two_shot ? shared_region(tensor) : private_region(call.group, tensor);
    };
    ReductionParams params{};
    params.group = group_params(call.group, fingerprint_of(call));
    params.x =
        call.form == Form::kOneShot ? private_region(call.group, call.x) : shared_region(call.x);
    params.staging = shared_region(call.staging);
    params.out = result(call.out);
    params.codes = result(call.quantized.codes);
    params.scales = result(call.quantized.scales);
    params.residual = private_region(call.group, call.residual);
    params.residual_out = call.residual_is_sharded ? private_region(call.group, call.residual_out)
                                                   : result(call.residual_out);
    params.bias = pointer(call.bias);
    params.weight = pointer(call.weight);
    params.norm_bias = pointer(call.norm_bias);
    params.rows = call.rows;
    params.hidden = call.hidden;
    params.staging_block_bytes = call.staging_block_bytes;
    params.vectors = static_cast<int32_t>(units_of(call.hidden));
    params.warps_per_row = warps_per_row(call.hidden);
    const QuantizedResult& quantized = call.quantized;
    if (quantized.format != norm::QuantizedFormat::kNone) {
        params.quantized = static_cast<Quantized>(quantized.format);
        if (quantized.group_elements == 0) {
            params.inverse_scale = 1.0f / quantized.scale;
        } else {
            params.group_units = static_cast<int32_t>(units_of(quantized.group_elements));
            params.scales_per_row =
                static_cast<int32_t>(ceil_div(call.hidden, quantized.group_elements));
        }
    }
    params.eps = call.eps;
    params.weight_offset = call.weight_offset;
    params.is_layer_norm = call.norm == norm::NormKind::kLayer;
    params.is_weight_fp32 = call.weight_dtype == DType::kFloat32;
    params.is_residual_fp32 = call.residual_dtype == DType::kFloat32;
    // One-shot: all rows, and yet memory of this rank.
    params.is_out_own_rows = !is_two_shot;
    params.is_residual_own_rows = call.residual_is_sharded;
    params.stores_residual_to_all = is_two_shot && !call.residual_is_sharded;
    if (is_paced(call)) {
        params.pace_row_ns = static_cast<uint32_t>(std::lround(pace_row_ns(call)));
        params.pace_latency_ns = static_cast<uint32_t>(call.pace.latency_ns);
    }
    return params;
}

ReductionKernel kernel_of(const Reduction& call) {
    if (is_paced(call)) {
        return ReductionKernel::kTwoShotPaced;
    }
    const bool is_multicast = call.group.reach == Reach::kMulticast;
    if (call.form == Form::kOneShot) {
        return is_multicast ? ReductionKernel::kOneShotMulticast : ReductionKernel::kOneShotPeer;
    }
    if (call.hidden % kRowUnitElements != 0) {
        return ReductionKernel::kTwoShotUnaligned;
    }
    return is_multicast ? ReductionKernel::kTwoShotMulticast : ReductionKernel::kTwoShotPeer;
}

LaunchShape shape_of(const Group& group, int num_blocks, int num_threads, void* stream) {
    return {num_blocks, group.is_virtual ? group.size : 1, num_threads, stream};
}

}  // namespace

void allreduce_rmsnorm(const Reduction& call) {
    check_reduction(call);
    if (is_paced(call)) {
        check_pace(call);
    }
    if (call.rows == 0) {
        return;
    }
    const ReductionParams params = reduction_params(call);
    // Whole row groups: a warp outside them would be one more group, of too few warps.
    const int num_threads =
        rows_per_block(call.hidden, call.dtype) * params.warps_per_row * kWarpThreads;
    start(kernel_of(call),
          static_cast<Element>(call.dtype),
          params,
          shape_of(call.group, call.num_blocks, num_threads, call.stream),
          call.group.launcher);
}

void row_per_block_baseline(const Reduction& call) {
    check_reduction(call);
    check_baseline(call);
    if (call.rows == 0) {
        return;
    }
    ReductionParams params = reduction_params(call);
    params.warps_per_row = kBlockThreads / kWarpThreads;
    start(ReductionKernel::kRowPerBlock,
          Element::kBFloat16,
          params,
          shape_of(call.group, call.num_blocks, kBlockThreads, call.stream),
          call.group.launcher);
}

void all_gather(const Gather& call) {
    check_gather(call);
    if (call.rows == 0) {
        return;
    }
    GatherParams params{};
    params.group = group_params(
        call.group, Fingerprint().add(call.rows).add(call.row_bytes).add(call.num_blocks).value());
    params.source = private_region(call.group, call.source);
    params.out = shared_region(call.out);
    params.rows = call.rows;
    params.row_bytes = call.row_bytes;
    const bool is_aligned = are_vectors(call);
    GatherKernel kernel = is_aligned ? GatherKernel::kPeer : GatherKernel::kPeerUnaligned;
    if (is_aligned && call.group.reach == Reach::kMulticast) {
        kernel = GatherKernel::kMulticast;
    }
    start(kernel,
          params,
          shape_of(call.group, call.num_blocks, kBlockThreads, call.stream),
          call.group.launcher);
}

int64_t channel_bytes() {
    return align_up(sizeof(ChannelMemory), alignof(ChannelMemory));
}

int rows_per_block(int64_t hidden, DType) {
    return kBlockThreads / kWarpThreads / warps_per_row(hidden);
}

int64_t one_shot_block_bytes(int64_t rows, int64_t hidden, DType dtype, int num_blocks) {
    // one_shot.cuh deals rows to the row groups of all blocks in turn, each row from a multiple of
    // 16 bytes.
    const int64_t at_once = rows_per_block(hidden, dtype);
    return ceil_div(rows, at_once * num_blocks) * at_once *
           align_up(hidden * element_bytes(dtype), 16);
}

int64_t staging_bytes(int size, int num_blocks, int64_t staging_block_bytes) {
    return int64_t{2} * num_blocks * size * staging_block_bytes;
}

}  // namespace token::weave::cuda
