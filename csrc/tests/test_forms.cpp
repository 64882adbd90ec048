// The forms of a reduction on thread-ranks: what travels between ranks, and that a row depends on
// nothing but itself.
#include "../weave/collectives.hpp"
#include "row_values.hpp"
#include "thread_ranks.hpp"
#include "token/common/errors.hpp"

#include <random>
#include <string>
#include <vector>

namespace {

using namespace token;
using namespace token::testing;
using comm::HostGroup;
using weave::Algorithm;
using weave::AllReduceRmsNormParams;

// The same on every rank; a rank contributes partials[rank].
struct Problem {
    norm::RowTypes types;
    int64_t rows, hidden;
    std::vector<Bytes> partials;
    Bytes residual, weight, bias;

    Problem(const norm::RowTypes& types, int64_t rows, int64_t hidden, int size, uint32_t seed)
        : types(types), rows(rows), hidden(hidden) {
        std::mt19937 random(seed);
        for (int rank = 0; rank < size; ++rank) {
            partials.push_back(draw(random, rows * hidden, false, types.input));
        }
        residual = draw(random, rows * hidden, false, types.residual);
        weight = draw(random, hidden, false, types.weight);
        bias = draw(random, hidden, false, types.activation);
    }
};

struct Results {
    Bytes normed, residual, codes, scales;
    bool operator==(const Results&) const = default;

    // Only some rows, in that order.
    Results of_rows(const std::vector<int64_t>& rows, int64_t total) const {
        const auto pick = [&](const Bytes& from) {
            Bytes to;
            const int64_t row_bytes = static_cast<int64_t>(from.size()) / total;
            for (const int64_t row : rows) {
                const auto start = from.begin() + row * row_bytes;
                to.insert(to.end(), start, start + row_bytes);
            }
            return to;
        };
        return {pick(normed), pick(residual), pick(codes), pick(scales)};
    }
};

struct Form {
    norm::NormKind norm = norm::NormKind::kRms;
    norm::Numerics numerics = norm::Numerics::kFused;
    norm::QuantizedFormat format = norm::QuantizedFormat::kNone;
    int64_t group_elements = 0;
    bool keeps_normed = true;
};

AllReduceRmsNormParams params_of(const Problem& problem, const Form& form, int rank) {
    AllReduceRmsNormParams params;
    params.x = problem.partials[rank].data();
    params.residual = problem.residual.data();
    params.weight = problem.weight.data();
    params.bias = problem.bias.data();
    params.rows = problem.rows;
    params.hidden = problem.hidden;
    params.dtype = problem.types.input;
    params.out_dtype = problem.types.activation;
    params.weight_dtype = problem.types.weight;
    params.residual_dtype = problem.types.residual;
    params.norm = form.norm;
    params.numerics = form.numerics;
    params.eps = 1e-6f;
    return params;
}

Results reduce_on(HostGroup& group,
                  const Problem& problem,
                  const Form& form,
                  Algorithm algorithm,
                  int64_t block_rows,
                  bool is_streaming = false) {
    const auto poisoned = [&](int64_t num_bytes) { return Bytes(num_bytes, 0xee); };
    const int64_t count = problem.rows * problem.hidden;
    AllReduceRmsNormParams params = params_of(problem, form, group.rank());
    const int64_t groups =
        form.group_elements == 0 ? 0 : ceil_div(problem.hidden, form.group_elements);
    const bool is_quantized = form.format != norm::QuantizedFormat::kNone;
    Results results{
        poisoned(form.keeps_normed ? count * element_bytes(problem.types.activation) : 0),
        poisoned(count * element_bytes(problem.types.residual)),
        poisoned(is_quantized ? count : 0),
        poisoned(is_quantized ? problem.rows * groups * 4 : 0)};
    params.out = form.keeps_normed ? results.normed.data() : nullptr;
    params.residual_out = results.residual.data();
    if (is_quantized) {
        params.quantized = {.format = form.format,
                            .group_elements = form.group_elements,
                            .scale = form.group_elements == 0 ? 0.02f : 0.0f,
                            .out = results.codes.data(),
                            .scales = results.scales.data()};
    }
    params.plan.algorithm = algorithm;
    params.plan.block_rows = block_rows;
    params.plan.is_streaming = is_streaming;
    weave::allreduce_rmsnorm(group, *weave::usable_row_kernels().front(), params);
    return results;
}

constexpr norm::RowTypes kTypes[] = {{kBf16, kBf16, kBf16, kBf16},
                                     {kBf16, kBf16, kF32, kF32},
                                     {kF16, kF16, kF16, kF16},
                                     {kF32, kF32, kF32, kF32}};

std::vector<Form> forms_for(const norm::RowTypes& types) {
    using enum norm::QuantizedFormat;
    std::vector<Form> forms = {{},
                               {.norm = norm::NormKind::kLayer},
                               {.format = kFloat8E4M3, .group_elements = 0},
                               {.format = kFloat8E4M3, .group_elements = 128},
                               {.format = kInt8, .group_elements = 320, .keeps_normed = false}};
    if (types.residual == types.activation && types.weight == types.activation) {
        forms.push_back({.numerics = norm::Numerics::kDropIn});
    }
    return forms;
}

// Whatever brings a row here, it has the bits of one rank that reduces all rows alone.
void every_way_gives_the_same_rows(int size, int num_threads) {
    constexpr int64_t kRows = 11, kHidden = 300;
    ThreadRanks ranks({.size = size, .num_threads = num_threads, .staging_bytes = 32 << 10});
    ranks.run([&](HostGroup& group) {
        uint32_t seed = 0;
        for (const norm::RowTypes& types : kTypes) {
            for (const Form& form : forms_for(types)) {
                const Problem problem(types, kRows, kHidden, size, ++seed);
                const Results expected =
                    reduce_on(group, problem, form, Algorithm::kOneShot, kRows);
                const auto expect_same = [&](const Results& results) {
                    EXPECT(results == expected);
                };
                expect_same(reduce_on(group, problem, form, Algorithm::kOneShot, 3));
                expect_same(reduce_on(group, problem, form, Algorithm::kTwoShot, 1));
                expect_same(reduce_on(group, problem, form, Algorithm::kTwoShot, 2));
                expect_same(reduce_on(group, problem, form, Algorithm::kTwoShot, 4, true));
                // The same rows in another order and number.
                const std::vector<int64_t> some = {10, 3, 3, 0, 7};
                Problem fewer = problem;
                fewer.rows = static_cast<int64_t>(some.size());
                for (Bytes& partial : fewer.partials) {
                    partial = Results{partial, {}, {}, {}}.of_rows(some, kRows).normed;
                }
                fewer.residual = Results{problem.residual, {}, {}, {}}.of_rows(some, kRows).normed;
                const Results of_some = expected.of_rows(some, kRows);
                EXPECT(reduce_on(group, fewer, form, Algorithm::kOneShot, 2) == of_some);
                EXPECT(reduce_on(group, fewer, form, Algorithm::kTwoShot, 1) == of_some);
            }
        }
    });
}

void what_cannot_be_had_together_is_refused() {
    ThreadRanks ranks({.size = 1});
    ranks.run([&](HostGroup& group) {
        const auto refused = [&](const norm::RowTypes& types, const Form& form) {
            const Problem problem(types, 2, 40, 1, 1);
            EXPECT_THROWS(reduce_on(group, problem, form, Algorithm::kOneShot, 1), InvalidArgument);
        };
        refused({kBf16, kBf16, kBf16, kF16}, {});
        refused({kBf16, kBf16, kBf16, kF32}, {.numerics = norm::Numerics::kDropIn});
        refused({kBf16, kBf16, kF32, kBf16}, {.numerics = norm::Numerics::kDropIn});
        refused({kBf16, kBf16, kBf16, kBf16},
                {.format = norm::QuantizedFormat::kInt8, .group_elements = 40});
    });
}

}  // namespace

int main() {
    for (int size : {1, 2, 3}) {
        every_way_gives_the_same_rows(size, 1);
    }
    every_way_gives_the_same_rows(2, 2);
    what_cannot_be_had_together_is_refused();
    return token::testing::finish("forms");
}
