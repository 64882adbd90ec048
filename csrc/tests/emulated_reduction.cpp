#include "emulated_reduction.hpp"

#include "emulated_elements.hpp"
#include "token/common/math.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <sstream>

namespace token::testing {

using emulator::Machine;
using weave::cuda::Form;
using weave::cuda::Reach;

EmulatedReduction::EmulatedReduction(const EmulatedCase& chosen, const emulator::Schedule& schedule)
    : case_(chosen), machine_(chosen.is_virtual ? 1 : chosen.size, schedule) {
    const int64_t row_bytes = case_.hidden * bytes_of(case_.dtype);
    const DType residual_dtype = case_.is_residual_fp32 ? DType::kFloat32 : case_.dtype;
    const DType weight_dtype = case_.is_weight_fp32 ? DType::kFloat32 : case_.dtype;
    x_ = make("x", case_.rows * row_bytes);
    if (case_.has_out) {
        out_ = case_.is_in_place ? x_ : make_rows("out", is_out_sharded(), row_bytes);
    }
    channel_ = make("channel", weave::cuda::channel_bytes());
    failure_ = make("failure record", sizeof(weave::cuda::FailureRecord));
    if (case_.has_residual) {
        const int64_t bytes = case_.hidden * bytes_of(residual_dtype);
        residual_ = make_rows("residual", case_.residual_is_sharded, bytes);
        residual_out_ = make_rows("residual_out", case_.residual_is_sharded, bytes);
    }
    if (case_.format != norm::QuantizedFormat::kNone) {
        codes_ = make_rows("codes", is_out_sharded(), case_.hidden);
        if (case_.group_elements != 0) {
            scales_ = make_rows("scales", is_out_sharded(), 4 * scales_per_row());
        }
    }
    if (case_.form == Form::kOneShot) {
        staging_block_bytes_ = weave::cuda::one_shot_block_bytes(
            case_.rows, case_.hidden, case_.dtype, case_.num_blocks);
        staging_ =
            make("staging",
                 weave::cuda::staging_bytes(case_.size, case_.num_blocks, staging_block_bytes_));
    }
    const auto constant =
        [&](const char* name, DType dtype, uint64_t seed, std::vector<float>& to) {
            to = numbers(dtype, case_.hidden, seed, 1.0f);
            const auto bytes = packed(dtype, to);
            emulator::Buffer& buffer = machine_.allocate(name, 0, bytes.size());
            std::memcpy(buffer.data(), bytes.data(), bytes.size());
            return &buffer;
        };
    inputs_.resize(case_.num_launches);
    results_.resize(case_.num_launches);
    for (int launch = 0; launch < case_.num_launches; ++launch) {
        EmulatedInputs& inputs = inputs_[launch];
        results_[launch] = {std::vector<std::vector<float>>(case_.size),
                            std::vector<std::vector<float>>(case_.size),
                            std::vector<std::vector<float>>(case_.size),
                            std::vector<std::vector<uint8_t>>(case_.size)};
        for (int rank = 0; rank < case_.size; ++rank) {
            inputs.x.push_back(numbers(
                case_.dtype, case_.rows * case_.hidden, 1000 * launch + rank + 1, 2.0f + rank));
        }
        if (case_.has_residual) {
            inputs.residual =
                numbers(residual_dtype, case_.rows * case_.hidden, 1000 * launch + 900, 1.5f);
        }
    }
    if (case_.has_bias) {
        bias_ = constant("bias", case_.dtype, 7, inputs_[0].bias);
    }
    if (case_.has_norm) {
        weight_ = constant("weight", weight_dtype, 8, inputs_[0].weight);
    }
    for (int rank = 0; rank < case_.size; ++rank) {
        auto& memory = channel(rank);
        std::memset(static_cast<void*>(&memory), 0, sizeof(memory));
        std::memset(failure_.of_rank[rank]->data(), 0, failure_.of_rank[rank]->num_bytes());
        for (int block = 0; block < weave::cuda::kMaxBlocks; ++block) {
            memory.blocks[block].epoch = case_.first_epoch;
            for (auto& line : memory.arrivals[block]) {
                line.epoch = case_.first_epoch;
            }
        }
    }
}

int64_t EmulatedReduction::num_rows(int rank, bool is_sharded) const {
    return is_sharded ? split_rows(case_.rows, case_.size, rank).count() : case_.rows;
}
int64_t EmulatedReduction::scales_per_row() const {
    return case_.group_elements == 0 ? 0 : ceil_div(case_.hidden, case_.group_elements);
}

EmulatedReduction::Tensor EmulatedReduction::make(const std::string& name, int64_t num_bytes) {
    auto& made = machine_.memory().allocate_symmetric(name, case_.size, num_bytes);
    return {made.of_rank, made.multicast};
}

EmulatedReduction::Tensor EmulatedReduction::make_rows(const std::string& name,
                                                       bool is_sharded,
                                                       int64_t row_bytes) {
    if (!is_sharded) {
        return make(name, case_.rows * row_bytes);
    }
    Tensor tensor;
    for (int rank = 0; rank < case_.size; ++rank) {
        tensor.of_rank.push_back(&machine_.allocate(name, rank, num_rows(rank, true) * row_bytes));
    }
    return tensor;
}

weave::cuda::Tensor EmulatedReduction::shared(const Tensor& tensor) const {
    weave::cuda::Tensor addresses;
    for (const emulator::Buffer* buffer : tensor.of_rank) {
        addresses.by_rank.push_back(reinterpret_cast<uintptr_t>(buffer->data()));
    }
    if (case_.reach == Reach::kMulticast) {
        addresses.multicast = reinterpret_cast<uintptr_t>(tensor.multicast);
    }
    return addresses;
}

weave::cuda::Tensor EmulatedReduction::own(const Tensor& tensor, int rank) const {
    if (case_.is_virtual || tensor.of_rank.empty()) {
        weave::cuda::Tensor addresses = shared(tensor);
        addresses.multicast = 0;
        return addresses;
    }
    return {{reinterpret_cast<uintptr_t>(tensor.of_rank[rank]->data())}, 0};
}

weave::cuda::Reduction EmulatedReduction::reduction_of(int rank) const {
    weave::cuda::Reduction call;
    const bool has_shared_results = case_.form == Form::kTwoShot;
    const auto result = [&](const Tensor& tensor) {
        return has_shared_results && !tensor.of_rank.empty() ? shared(tensor) : own(tensor, rank);
    };
    call.group = {.rank = rank,
                  .size = case_.size,
                  .reach = case_.reach,
                  .is_virtual = case_.is_virtual,
                  .channel = shared(channel_),
                  .failure_record = own(failure_, rank),
                  .timeout_ns = case_.timeout_ns,
                  .checks_calls = case_.checks_calls};
    call.form = case_.form;
    call.x = case_.form == Form::kOneShot ? own(x_, rank) : shared(x_);
    if (case_.form == Form::kOneShot) {
        call.staging = shared(staging_);
        call.staging_block_bytes = staging_block_bytes_;
    }
    call.out = result(out_);
    call.residual = own(residual_, rank);
    call.residual_out =
        case_.residual_is_sharded ? own(residual_out_, rank) : result(residual_out_);
    call.residual_is_sharded = case_.has_residual && case_.residual_is_sharded;
    const auto address = [](const emulator::Buffer* buffer) {
        return buffer == nullptr ? 0 : reinterpret_cast<uintptr_t>(buffer->data());
    };
    call.bias = address(bias_);
    call.weight = address(weight_);
    call.rows = case_.rows;
    call.hidden = case_.hidden;
    call.dtype = case_.dtype;
    call.weight_dtype = case_.is_weight_fp32 ? DType::kFloat32 : case_.dtype;
    call.residual_dtype = case_.is_residual_fp32 ? DType::kFloat32 : case_.dtype;
    call.norm = case_.is_layer_norm ? norm::NormKind::kLayer : norm::NormKind::kRms;
    call.eps = rank == case_.mismatched_rank ? 1e-3f : 1e-5f;
    call.weight_offset = case_.weight_offset;
    call.quantized.format = case_.format;
    call.quantized.group_elements = case_.group_elements;
    call.quantized.scale = case_.group_elements == 0 ? 0.0625f : 0.0f;
    call.quantized.codes = result(codes_);
    call.quantized.scales = result(scales_);
    call.num_blocks = case_.num_blocks;
    call.pace = case_.pace;
    call.stream = const_cast<Machine&>(machine_).stream(case_.is_virtual ? 0 : rank);
    return call;
}

void EmulatedReduction::write_inputs(int launch, int rank) {
    const EmulatedInputs& inputs = inputs_[launch];
    const auto x = packed(case_.dtype, inputs.x[rank]);
    copy_to_device(x_.of_rank[rank]->data(), x.data(), x.size());
    if (case_.has_residual) {
        const DType dtype = case_.is_residual_fp32 ? DType::kFloat32 : case_.dtype;
        const auto residual = packed(dtype, inputs.residual);
        const int64_t row_bytes = case_.hidden * bytes_of(dtype);
        const int64_t start =
            case_.residual_is_sharded ? split_rows(case_.rows, case_.size, rank).start : 0;
        copy_to_device(residual_.of_rank[rank]->data(),
                       residual.data() + start * row_bytes,
                       num_rows(rank, case_.residual_is_sharded) * row_bytes);
    }
}

void EmulatedReduction::read_results(int launch, int rank) {
    EmulatedResults& results = results_[launch];
    const DType residual_dtype = case_.is_residual_fp32 ? DType::kFloat32 : case_.dtype;
    const int64_t out_rows = num_rows(rank, is_out_sharded());
    if (case_.has_out) {
        results.out[rank] =
            fetched(case_.dtype, out_.of_rank[rank]->data(), out_rows * case_.hidden);
    }
    if (case_.has_residual) {
        results.residual_out[rank] =
            fetched(residual_dtype,
                    residual_out_.of_rank[rank]->data(),
                    num_rows(rank, case_.residual_is_sharded) * case_.hidden);
    }
    if (case_.format != norm::QuantizedFormat::kNone) {
        results.codes[rank].resize(out_rows * case_.hidden);
        copy_from_device(
            results.codes[rank].data(), codes_.of_rank[rank]->data(), results.codes[rank].size());
        if (case_.group_elements != 0) {
            results.scales[rank] = fetched(
                DType::kFloat32, scales_.of_rank[rank]->data(), out_rows * scales_per_row());
        }
    }
}

void EmulatedReduction::queue() {
    for (int launch = 0; launch < case_.num_launches; ++launch) {
        for (int stream = 0; stream < machine_.num_ranks(); ++stream) {
            if (stream == case_.missing_rank) {
                continue;
            }
            const auto for_ranks = [this, launch, stream](auto body) {
                machine_.host(stream, [this, launch, stream, body] {
                    if (!case_.is_virtual) {
                        return (this->*body)(launch, stream);
                    }
                    for (int rank = 0; rank < case_.size; ++rank) {
                        (this->*body)(launch, rank);
                    }
                });
            };
            if (stream == case_.delayed_rank) {
                machine_.delay(stream, case_.timeout_ns / 2);
            }
            for_ranks(&EmulatedReduction::write_inputs);
            weave::cuda::allreduce_rmsnorm(reduction_of(stream));
            for_ranks(&EmulatedReduction::read_results);
        }
    }
}

std::string EmulatedReduction::check() const {
    std::string wrong;
    for (int launch = 0; launch < case_.num_launches; ++launch) {
        EmulatedInputs inputs = inputs_[launch];
        inputs.bias = inputs_[0].bias;
        inputs.weight = inputs_[0].weight;
        const std::string text = compare_with_fp64(case_, inputs, results_[launch]);
        if (!text.empty()) {
            wrong += "launch " + std::to_string(launch) + ": " + text;
        }
    }
    for (int rank = 0; rank < case_.size; ++rank) {
        if (const auto failed = failure(rank)) {
            wrong += "rank " + std::to_string(rank) + " failed: " + failed->message + "\n";
        }
    }
    return wrong;
}

bool EmulatedReduction::is_invalid(int rank) const {
    const EmulatedResults& last = results_.back();
    const auto is_nan = [](float value) { return std::isnan(value); };
    const auto are_nan = [&](const std::vector<float>& values) {
        return std::all_of(values.begin(), values.end(), is_nan);
    };
    const auto& codes = last.codes[rank];
    return are_nan(last.out[rank]) && are_nan(last.residual_out[rank]) &&
           are_nan(last.scales[rank]) &&
           std::all_of(codes.begin(), codes.end(), [](uint8_t code) { return code == 0xff; });
}

std::optional<weave::cuda::Failure> EmulatedReduction::failure(int rank) const {
    return weave::cuda::read_failure(reinterpret_cast<uintptr_t>(failure_.of_rank[rank]->data()));
}

std::string run_emulated(const EmulatedCase& chosen, uint64_t seed) {
    try {
        EmulatedReduction reduction(chosen, emulator::Schedule::of_seed(seed));
        reduction.queue();
        reduction.machine().run();
        return reduction.check();
    } catch (const std::exception& error) {
        return error.what();
    }
}

}  // namespace token::testing
