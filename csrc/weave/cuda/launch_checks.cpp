#include "launch_checks.hpp"

#include "enqueue.hpp"
#include "token/common/check.hpp"

#include <cmath>

namespace token::weave::cuda {

namespace {

constexpr int64_t kMaxHidden = 16384;
constexpr uintptr_t kVectorBytes = 16;
constexpr int64_t kMostPaceNs = 1'000'000'000;  // paced.cuh counts in 32 bits

bool is_aligned(const Tensor& tensor) {
    for (const uintptr_t address : tensor.by_rank) {
        if (address % kVectorBytes != 0) {
            return false;
        }
    }
    return tensor.multicast % kVectorBytes == 0;
}

void check_group(const Group& group, int num_blocks) {
    TOKEN_CHECK(group.size >= 1 && group.size <= kMaxRanks,
                "a group has 1 to ",
                kMaxRanks,
                " ranks, got ",
                group.size);
    TOKEN_CHECK(group.rank >= 0 && group.rank < group.size,
                "rank ",
                group.rank,
                " is not in a group of ",
                group.size);
    TOKEN_CHECK(!group.is_virtual || group.rank == 0,
                "a launch that plays all ranks begins with rank 0, got ",
                group.rank);
    TOKEN_CHECK(num_blocks >= 1 && num_blocks <= kMaxBlocks,
                "num_blocks must be 1 to ",
                kMaxBlocks,
                ", got ",
                num_blocks);
    TOKEN_CHECK(group.timeout_ns > 0, "every wait needs a deadline, got 0 ns");
}

void check_shared(const Group& group, const char* name, const Tensor& tensor, bool is_optional) {
    if (is_optional && !tensor.is_given()) {
        return;
    }
    TOKEN_CHECK(tensor.by_rank.size() == static_cast<size_t>(group.size),
                name,
                " needs an address for each of ",
                group.size,
                " ranks, got ",
                tensor.by_rank.size());
    TOKEN_CHECK(group.reach != Reach::kMulticast || tensor.multicast != 0,
                name,
                " has no multicast address, which this launch reaches the ranks through");
}

void check_private(const Group& group, const char* name, const Tensor& tensor, bool is_optional) {
    if (is_optional && !tensor.is_given()) {
        return;
    }
    const size_t wanted = group.is_virtual ? static_cast<size_t>(group.size) : 1;
    TOKEN_CHECK(tensor.by_rank.size() == wanted,
                name,
                " is private and needs ",
                wanted,
                " address(es), got ",
                tensor.by_rank.size());
}

void check_protocol(const Group& group, int num_blocks) {
    check_group(group, num_blocks);
    check_shared(group, "the channel", group.channel, false);
    check_private(group, "the failure record", group.failure_record, false);
    for (const uintptr_t address : group.channel.by_rank) {
        TOKEN_CHECK(address % alignof(ChannelMemory) == 0,
                    "the channel must begin at a multiple of ",
                    alignof(ChannelMemory),
                    " bytes");
    }
}

void check_types(const Reduction& call) {
    TOKEN_CHECK(is_reducible(call.dtype),
                "partial sums must be float32, bfloat16 or float16, got ",
                dtype_name(call.dtype));
    TOKEN_CHECK(call.dtype != DType::kFloat32 || call.group.reach == Reach::kPeer,
                "the NVLink switch does not add float32: reach the ranks through their addresses");
    TOKEN_CHECK(call.weight_dtype == call.dtype || call.weight_dtype == DType::kFloat32,
                "a weight beside ",
                dtype_name(call.dtype),
                " must be the same or float32, got ",
                dtype_name(call.weight_dtype));
    TOKEN_CHECK(call.residual_dtype == call.dtype || call.residual_dtype == DType::kFloat32,
                "a residual beside ",
                dtype_name(call.dtype),
                " must be the same or float32, got ",
                dtype_name(call.residual_dtype));
    TOKEN_CHECK(call.norm == norm::NormKind::kRms || call.norm == norm::NormKind::kLayer,
                "the norm must be RMSNorm or LayerNorm, got ",
                static_cast<int>(call.norm));
    TOKEN_CHECK(call.norm_bias == 0 || (call.norm == norm::NormKind::kLayer && call.weight != 0),
                "only a LayerNorm has a bias of its own");
}

void check_quantized(const Reduction& call) {
    const QuantizedResult& quantized = call.quantized;
    const bool is_asked_for = quantized.format != norm::QuantizedFormat::kNone;
    TOKEN_CHECK(is_asked_for || (!quantized.codes.is_given() && !quantized.scales.is_given()),
                "codes and scales need a format");
    TOKEN_CHECK(is_asked_for || call.out.is_given() || call.residual_out.is_given(),
                "a reduction without any result");
    if (!is_asked_for) {
        return;
    }
    TOKEN_CHECK(quantized.format == norm::QuantizedFormat::kFloat8E4M3 ||
                    quantized.format == norm::QuantizedFormat::kInt8,
                "quantised results are fp8 e4m3 or int8, got ",
                static_cast<int>(quantized.format));
    TOKEN_CHECK(call.hidden % kRowUnitElements == 0,
                "quantised rows on a GPU need a hidden size that is a multiple of ",
                kRowUnitElements,
                ", got ",
                call.hidden);
    TOKEN_CHECK(quantized.codes.is_given(), "a quantised result needs a place for its codes");
    const int64_t group = quantized.group_elements;
    TOKEN_CHECK(group == 0 || group == 128 || group == call.hidden,
                "a scale is for 128 elements or for a row of ",
                call.hidden,
                ", got ",
                group);
    TOKEN_CHECK(group == 0 ? std::isnormal(quantized.scale) : quantized.scales.is_given(),
                "a static scale must be a normal number and others need a place, got ",
                quantized.scale,
                " for groups of ",
                group);
}

void check_form(const Reduction& call) {
    const bool is_one_shot = call.form == Form::kOneShot;
    const bool has_residual = call.residual.is_given() || call.residual_out.is_given();
    TOKEN_CHECK(!is_one_shot || !call.residual_is_sharded || !has_residual,
                "one-shot needs every row of the residual: it cannot be sharded");
    TOKEN_CHECK(call.form != Form::kReduceScatter || call.residual_is_sharded || !has_residual,
                "a reduce-scatter keeps the residual of its own rows: it must be sharded");
    const bool has_units = call.hidden % kRowUnitElements == 0;
    TOKEN_CHECK(has_units || !is_one_shot,
                "one-shot on a GPU needs a hidden size that is a multiple of ",
                kRowUnitElements,
                ", got ",
                call.hidden,
                ": use two-shot");
    if (!is_one_shot) {
        return;
    }
    check_shared(call.group, "staging", call.staging, false);
    const int64_t needed =
        one_shot_block_bytes(call.rows, call.hidden, call.dtype, call.num_blocks);
    TOKEN_CHECK(needed <= call.staging_block_bytes && call.staging_block_bytes % 16 == 0,
                call.rows,
                " rows need ",
                needed,
                " bytes of staging for each of ",
                call.num_blocks,
                " blocks, there are ",
                call.staging_block_bytes);
}

}  // namespace

void check_reduction(const Reduction& call) {
    check_protocol(call.group, call.num_blocks);
    TOKEN_CHECK(call.rows >= 0, "the number of rows must not be negative, got ", call.rows);
    TOKEN_CHECK(call.hidden >= 1 && call.hidden <= kMaxHidden,
                "the hidden size on a GPU must be 1 to ",
                kMaxHidden,
                ", got ",
                call.hidden);
    check_types(call);
    check_form(call);
    check_quantized(call);
    const Group& group = call.group;
    if (call.form == Form::kTwoShot) {
        check_shared(group, "x", call.x, false);
        check_shared(group, "out", call.out, true);
        check_shared(group, "codes", call.quantized.codes, true);
        check_shared(group, "scales", call.quantized.scales, true);
    } else {
        (call.form == Form::kOneShot ? check_private : check_shared)(group, "x", call.x, false);
        check_private(group, "out", call.out, true);
        check_private(group, "codes", call.quantized.codes, true);
        check_private(group, "scales", call.quantized.scales, true);
    }
    check_private(group, "residual", call.residual, true);
    const bool is_kept_by_all = call.form == Form::kTwoShot && !call.residual_is_sharded;
    (is_kept_by_all ? check_shared : check_private)(group, "residual_out", call.residual_out, true);
    if (call.hidden % kRowUnitElements != 0) {
        return;
    }
    for (const auto& [name, tensor] : {std::pair{"x", &call.x},
                                       {"out", &call.out},
                                       {"codes", &call.quantized.codes},
                                       {"staging", &call.staging},
                                       {"residual", &call.residual},
                                       {"residual_out", &call.residual_out}}) {
        TOKEN_CHECK(is_aligned(*tensor),
                    name,
                    " must begin at a multiple of ",
                    kVectorBytes,
                    " bytes: pass a tensor of its own, not a part of one");
    }
    for (const uintptr_t address : {call.bias, call.weight, call.norm_bias}) {
        TOKEN_CHECK(address % kVectorBytes == 0,
                    "bias, weight and norm_bias must begin at a multiple of ",
                    kVectorBytes,
                    " bytes");
    }
}

void check_baseline(const Reduction& call) {
    TOKEN_CHECK(call.form == Form::kTwoShot && call.residual_is_sharded &&
                    call.residual.is_given() && call.residual_out.is_given() && call.weight != 0 &&
                    call.out.is_given() && call.bias == 0 && call.dtype == DType::kBFloat16 &&
                    call.weight_dtype == DType::kBFloat16 &&
                    call.residual_dtype == DType::kBFloat16 && call.norm == norm::NormKind::kRms &&
                    call.hidden % kRowUnitElements == 0 && call.group.reach == Reach::kPeer &&
                    call.quantized.format == norm::QuantizedFormat::kNone,
                "the baseline is RMSNorm of bf16 with a sharded residual, through addresses");
}

double pace_row_ns(const Reduction& call) {
    const int64_t row_bytes = call.hidden * element_bytes(call.dtype) * call.group.size;
    const int64_t num_groups = int64_t{call.num_blocks} * rows_per_block(call.hidden, call.dtype);
    return static_cast<double>(row_bytes * num_groups) / call.pace.bytes_per_ns;
}

void check_pace(const Reduction& call) {
    TOKEN_CHECK(call.form == Form::kTwoShot && call.group.reach == Reach::kPeer &&
                    call.dtype == DType::kBFloat16 && call.hidden % kRowUnitElements == 0,
                "only two-shot of bf16 through addresses, in whole units, can be paced");
    TOKEN_CHECK(call.pace.bytes_per_ns > 0.0 && pace_row_ns(call) <= kMostPaceNs &&
                    call.pace.latency_ns >= 0 && call.pace.latency_ns <= kMostPaceNs,
                "a pace of ",
                call.pace.bytes_per_ns,
                " bytes/ns with a latency of ",
                call.pace.latency_ns,
                " ns: a row must come within ",
                kMostPaceNs,
                " ns");
}

bool are_vectors(const Gather& call) {
    return call.row_bytes % static_cast<int64_t>(kVectorBytes) == 0 && is_aligned(call.out) &&
           is_aligned(call.source);
}

void check_gather(const Gather& call) {
    check_protocol(call.group, call.num_blocks);
    TOKEN_CHECK(call.rows >= 0 && call.row_bytes >= 1,
                "a gather of ",
                call.rows,
                " rows of ",
                call.row_bytes,
                " bytes");
    check_private(call.group, "source", call.source, false);
    check_shared(call.group, "out", call.out, false);
}

}  // namespace token::weave::cuda
