// Calls of the CUDA reductions on emulated GPUs, and what they must give, in fp64.
#pragma once

#include "emulator.hpp"
#include "weave/cuda/launch.hpp"

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace token::testing {

struct EmulatedCase {
    weave::cuda::Form form = weave::cuda::Form::kTwoShot;
    weave::cuda::Reach reach = weave::cuda::Reach::kMulticast;
    bool is_virtual = false;  // all ranks in one launch
    int size = 2;
    int64_t rows = 5;
    int64_t hidden = 64;
    DType dtype = DType::kBFloat16;
    int num_blocks = 1;
    // what is asked for
    bool has_residual = true;
    bool residual_is_sharded = true;
    bool is_residual_fp32 = false;
    bool has_bias = false;
    bool has_norm = true;
    bool is_layer_norm = false;
    float weight_offset = 0.0f;
    bool is_weight_fp32 = false;
    norm::QuantizedFormat format = norm::QuantizedFormat::kNone;
    int64_t group_elements = 0;
    bool has_out = true;
    bool is_in_place = false;
    bool checks_calls = false;
    weave::cuda::Pace pace;
    // how it is run
    int num_launches = 2;
    uint32_t first_epoch = 0;  // of every block, as after so many barriers
    int missing_rank = -1;     // launches nothing
    int delayed_rank = -1;     // comes late, before the deadline
    int mismatched_rank = -1;  // calls with another eps
    uint64_t timeout_ns = 1'000'000'000;

    std::string name() const;
};

// Inputs of one launch, as the elements that ranks store: [rank][row * hidden + column].
struct EmulatedInputs {
    std::vector<std::vector<float>> x;
    std::vector<float> residual, bias, weight;
};

// Results of one launch. Sharded ones and those of a rank that has none are empty elsewhere.
struct EmulatedResults {
    std::vector<std::vector<float>> out, residual_out, scales;
    std::vector<std::vector<uint8_t>> codes;
};

// Wrong values, the first of each kind; empty when all are right. Every rank must hold the same
// bits, no NaN, and be as near to fp64 as the roundings of the numbers contract allow.
std::string compare_with_fp64(const EmulatedCase& chosen,
                              const EmulatedInputs& inputs,
                              const EmulatedResults& results);

class EmulatedReduction {
  public:
    EmulatedReduction(const EmulatedCase& chosen, const emulator::Schedule& schedule);

    emulator::Machine& machine() { return machine_; }
    // Queues all launches, with new inputs before each and a look at the results after each.
    void queue();
    // After the run: what is wrong with the results, or an empty string.
    std::string check() const;
    // Whether every result of the last launch of a rank is NaN.
    bool is_invalid(int rank) const;
    std::optional<weave::cuda::Failure> failure(int rank) const;
    weave::cuda::ChannelMemory& channel(int rank) {
        return *channel_.of_rank[rank]->as<weave::cuda::ChannelMemory>();
    }

  private:
    // Of every rank; those of private tensors have no multicast address.
    struct Tensor {
        std::vector<emulator::Buffer*> of_rank;
        std::byte* multicast = nullptr;
    };

    Tensor make(const std::string& name, int64_t num_bytes);
    Tensor make_rows(const std::string& name, bool is_sharded, int64_t row_bytes);
    weave::cuda::Tensor shared(const Tensor& tensor) const;
    weave::cuda::Tensor own(const Tensor& tensor, int rank) const;
    weave::cuda::Reduction reduction_of(int rank) const;
    bool is_out_sharded() const { return case_.form == weave::cuda::Form::kReduceScatter; }
    int64_t num_rows(int rank, bool is_sharded) const;
    int64_t scales_per_row() const;
    void write_inputs(int launch, int rank);
    void read_results(int launch, int rank);

    EmulatedCase case_;
    emulator::Machine machine_;
    Tensor x_, out_, staging_, channel_, failure_, residual_, residual_out_, codes_, scales_;
    emulator::Buffer *bias_ = nullptr, *weight_ = nullptr;
    int64_t staging_block_bytes_ = 0;
    std::vector<EmulatedInputs> inputs_;    // [launch]
    std::vector<EmulatedResults> results_;  // [launch]
};

// Queues, runs and checks; what went wrong, or an empty string.
std::string run_emulated(const EmulatedCase& chosen, uint64_t seed);

}  // namespace token::testing
