// Rows that came from several hosts: finished alone, they have the bits that a reduction gives.
#include "../weave/collectives.hpp"
#include "row_values.hpp"
#include "thread_ranks.hpp"
#include "token/common/errors.hpp"

#include <random>
#include <vector>

namespace {

using namespace token;
using namespace token::testing;
using weave::AllReduceRmsNormParams;
using weave::FinishRowsParams;

constexpr int kCanaryBytes = 64;

Bytes poisoned(int64_t num_bytes) {
    return Bytes(num_bytes + kCanaryBytes, 0xee);
}

struct Results {
    Bytes normed, copy, residual;
};

struct Problem {
    DType type, weight_type;
    int64_t rows, hidden;
    std::vector<Bytes> partials;
    Bytes residual, weight, bias;
    bool has_norm, has_bias, has_residual;

    int64_t num_bytes() const { return rows * hidden * element_bytes(type); }
};

Problem make_problem(DType type, DType weight_type, int64_t rows, int num_inputs, uint32_t seed) {
    std::mt19937 random(seed);
    const int64_t hidden = seed % 2 == 0 ? 200 : 77;
    Problem problem{type, weight_type, rows, hidden, {}, {}, {}, {}, true, false, true};
    // Which NaN an addition of two gives is not fixed; 16-bit results have one.
    const bool has_special = seed % 3 == 0 && type != kF32;
    for (int input = 0; input < num_inputs; ++input) {
        problem.partials.push_back(draw(random, rows * hidden, has_special, type));
    }
    problem.residual = draw(random, rows * hidden, false, type);
    problem.weight = draw(random, hidden, false, weight_type);
    problem.bias = draw(random, hidden, false, type);
    problem.has_norm = seed % 4 != 3;
    problem.has_bias = seed % 5 < 2;
    problem.has_residual = seed % 7 != 0;
    return problem;
}

template <class Params>
void fill(Params& params, const Problem& problem, Results& results) {
    params.residual = problem.has_residual ? problem.residual.data() : nullptr;
    params.bias = problem.has_bias ? problem.bias.data() : nullptr;
    params.weight = problem.has_norm ? problem.weight.data() : nullptr;
    params.out = results.normed.data();
    params.residual_out = problem.has_residual ? results.residual.data() : nullptr;
    params.rows = problem.rows;
    params.hidden = problem.hidden;
    params.dtype = problem.type;
    params.weight_dtype = problem.weight_type;
    params.eps = 1e-6f;
}

Results make_results(const Problem& problem) {
    const int64_t num_bytes = problem.num_bytes();
    return {poisoned(num_bytes), poisoned(num_bytes), poisoned(num_bytes)};
}

// One rank for each input, on one host.
Results reduced(const weave::RowKernels& kernels, const Problem& problem) {
    Results results = make_results(problem);
    ThreadRanks ranks({.size = static_cast<int>(problem.partials.size())});
    ranks.run([&](comm::HostGroup& group) {
        Results mine = make_results(problem);
        AllReduceRmsNormParams params;
        fill(params, problem, mine);
        params.out_dtype = params.residual_dtype = problem.type;
        params.x = problem.partials[group.rank()].data();
        params.plan.block_rows = 2;
        weave::allreduce_rmsnorm(group, kernels, params);
        if (group.rank() == 0) {
            results = mine;
        }
    });
    return results;
}

Results finished(ThreadPool& threads,
                 const weave::RowKernels& kernels,
                 const Problem& problem,
                 const std::vector<Bytes>& inputs,
                 DType input_type,
                 bool is_streaming) {
    Results results = make_results(problem);
    FinishRowsParams params;
    fill(params, problem, results);
    for (const Bytes& input : inputs) {
        params.inputs.push_back(input.data());
    }
    params.input_dtype = input_type;
    params.out_copy = results.copy.data();
    params.is_streaming = is_streaming;
    weave::finish_rows(threads, kernels, params);
    return results;
}

void expect_same(const Results& results, const Results& expected) {
    EXPECT(results.normed == expected.normed);
    EXPECT(results.copy == expected.normed);
    EXPECT(results.residual == expected.residual);
}

// The fp32 sum of some ranks in order, as another host would send it.
Bytes unrounded_sum(const std::vector<Bytes>& partials, DType type) {
    std::vector<float> sum = decode(partials[0], type);
    for (size_t rank = 1; rank < partials.size(); ++rank) {
        const std::vector<float> next = decode(partials[rank], type);
        for (size_t i = 0; i < sum.size(); ++i) {
            sum[i] += next[i];
        }
    }
    return encode(sum, kF32);
}

void rows_have_the_bits_of_a_reduction(int num_threads) {
    ThreadPool threads(num_threads);
    uint32_t seed = 0;
    for (const weave::RowKernels* kernels : weave::usable_row_kernels()) {
        for (const DType type : {kBf16, kF16, kF32}) {
            for (const int num_inputs : {1, 2, 3, 4, 6}) {
                for (const int64_t rows : {int64_t{0}, int64_t{1}, int64_t{5}, int64_t{301}}) {
                    ++seed;
                    const DType weight_type = seed % 3 == 1 ? kF32 : type;
                    const Problem problem = make_problem(type, weight_type, rows, num_inputs, seed);
                    const Results expected = reduced(*kernels, problem);
                    for (const bool is_streaming : {false, true}) {
                        expect_same(
                            finished(
                                threads, *kernels, problem, problem.partials, type, is_streaming),
                            expected);
                    }
                    if (rows > 0) {
                        const Bytes sum = unrounded_sum(problem.partials, type);
                        expect_same(finished(threads, *kernels, problem, {sum}, kF32, false),
                                    expected);
                    }
                }
            }
        }
    }
}

void what_cannot_be_finished_is_refused() {
    ThreadPool threads(1);
    const weave::RowKernels& kernels = weave::row_kernels_scalar();
    const Problem problem = make_problem(kBf16, kBf16, 2, 2, 1);
    EXPECT_THROWS(finished(threads, kernels, problem, {}, kBf16, false), InvalidArgument);
    EXPECT_THROWS(finished(threads, kernels, problem, problem.partials, kF16, false),
                  InvalidArgument);
}

}  // namespace

int main() {
    rows_have_the_bits_of_a_reduction(1);
    rows_have_the_bits_of_a_reduction(3);
    what_cannot_be_finished_is_refused();
    return token::testing::finish("finish_rows");
}
