// The bodies against each other, bit for bit, and against fp64.
#include "row_values.hpp"
#include "token/common/errors.hpp"

#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

namespace {

using namespace token;
using namespace token::testing;
using norm::NormKind;
using norm::Numerics;
using norm::RowTypes;
using weave::RowKernels;

constexpr RowTypes kAllTypes[] = {{kF32, kF32, kF32, kF32},
                                  {kBf16, kBf16, kBf16, kBf16},
                                  {kBf16, kBf16, kF32, kBf16},
                                  {kF16, kF16, kF16, kF16},
                                  {kF16, kF16, kF32, kF16},
                                  {kBf16, kBf16, kBf16, kF32},
                                  {kF16, kF16, kF16, kF32},
                                  {kBf16, kF32, kF32, kF32},
                                  {kF32, kBf16, kBf16, kBf16},
                                  {kF32, kF16, kF32, kF16}};

struct Form {
    NormKind norm;
    Numerics numerics;
    bool has_norm_bias;
};
constexpr Form kForms[] = {{NormKind::kRms, Numerics::kFused, false},
                           {NormKind::kRms, Numerics::kDropIn, false},
                           {NormKind::kLayer, Numerics::kFused, true},
                           {NormKind::kLayer, Numerics::kDropIn, false}};

void expect_same(const Row& actual, const Row& expected, const RowTypes& types) {
    EXPECT(same_bits(actual.out, expected.out, types.activation));
    EXPECT(same_bits(actual.residual, expected.residual, types.residual));
}

// Every body gives the scalar body's bits, and the general kernel those of the special ones.
void bodies_agree() {
    std::mt19937 random(7);
    const auto bodies = weave::usable_row_kernels();
    for (int64_t hidden : {1, 7, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 576, 1000, 4099}) {
        for (int num_ranks : {1, 2, 3, 4, 8}) {
            for (const RowTypes& types : kAllTypes) {
                for (bool special : {false, true}) {
                    RowProblem problem =
                        RowProblem::random(random, types, hidden, num_ranks, special);
                    if (num_ranks == 3) {
                        problem.bias = draw(random, hidden, false, types.activation);
                    }
                    problem.weight_offset = num_ranks == 2 ? 0.0f : 1.0f;
                    const Bytes weight = problem.weight;
                    for (const Form& form : kForms) {
                        problem.norm = form.norm;
                        problem.numerics = form.numerics;
                        problem.norm_bias = form.has_norm_bias ? weight : Bytes();
                        const Row scalar = reduce(weave::row_kernels_scalar(), problem);
                        for (const RowKernels* body : bodies) {
                            expect_same(reduce(*body, problem), scalar, types);
                            expect_same(reduce_with(body->general, problem), scalar, types);
                        }
                    }
                    problem.weight.clear();
                    problem.norm_bias.clear();
                    problem.norm = NormKind::kRms;
                    problem.numerics = Numerics::kFused;
                    const Row scalar = reduce(weave::row_kernels_scalar(), problem);
                    for (const RowKernels* body : bodies) {
                        expect_same(reduce(*body, problem), scalar, types);
                        expect_same(reduce_with(body->general, problem), scalar, types);
                    }
                }
            }
        }
    }
}

// Sums taken in fp32 on the way and rounded at the end are the sums rounded at once: what hosts
// exchange loses nothing. The first host's ranks come first, so one host of all ranks keeps the
// order.
void two_halves_are_the_whole() {
    std::mt19937 random(5);
    for (const DType type : {kBf16, kF16}) {
        for (int64_t hidden : {1, 33, 1000}) {
            const RowProblem whole =
                RowProblem::random(random, {type, type, type, type}, hidden, 3, true);
            RowProblem first = whole;
            first.types = {type, kF32, kF32, kF32};
            first.residual.clear();
            first.weight.clear();
            RowProblem second = whole;
            second.types = {kF32, type, type, type};
            for (const RowKernels* body : weave::usable_row_kernels()) {
                second.inputs = {reduce(*body, first).out};
                expect_same(reduce(*body, second), reduce(*body, whole), whole.types);
            }
        }
    }
}

// Every 16-bit value as input: widening and rounding are exact and denormals survive.
void every_half_passes_unchanged() {
    Bytes all(2 * 65536);
    for (int i = 0; i < 65536; ++i) {
        all[2 * i] = static_cast<unsigned char>(i);
        all[2 * i + 1] = static_cast<unsigned char>(i >> 8);
    }
    for (const DType type : {kBf16, kF16}) {
        RowProblem problem;
        problem.hidden = 65536;
        problem.inputs = {all};
        for (const RowKernels* body : weave::usable_row_kernels()) {
            problem.types = {type, type, type, type};
            const Row row = reduce(*body, problem);
            problem.types = {type, kF32, kF32, kF32};
            const Row wide = reduce(*body, problem);
            for (int i = 0; i < 65536; ++i) {
                const float value = decode_one(&all[2 * i], type);
                const bool is_nan = std::isnan(value);
                const int quiet = type == kBf16 ? 0x7fc0 : 0x7e00;
                EXPECT_EQ(row.out[2 * i] | row.out[2 * i + 1] << 8, is_nan ? quiet : i);
                const float widened = decode_one(&wide.out[4 * i], kF32);
                EXPECT(std::memcmp(&widened, &value, 4) == 0 || (is_nan && std::isnan(widened)));
            }
        }
    }
}

// fp32 values around every fp16 value and between neighbours go to the nearest, ties to even.
void rounding_to_fp16_is_exact() {
    std::vector<float> between;
    for (int i = 0; i < 0x7c00; ++i) {
        unsigned char low[2] = {static_cast<unsigned char>(i), static_cast<unsigned char>(i >> 8)};
        const int next = i + 1;
        unsigned char high[2] = {static_cast<unsigned char>(next),
                                 static_cast<unsigned char>(next >> 8)};
        const float a = decode_one(low, kF16);
        const float b = next == 0x7c00 ? 65536.0f : decode_one(high, kF16);
        const float middle = a / 2 + b / 2;
        between.push_back(std::nextafter(middle, a));
        between.push_back(middle);
        between.push_back(std::nextafter(middle, b));
    }
    RowProblem problem;
    problem.types = {kF32, kF16, kF16, kF16};
    problem.hidden = static_cast<int64_t>(between.size());
    problem.inputs = {encode(between, kF32)};
    for (const RowKernels* body : weave::usable_row_kernels()) {
        const Row row = reduce(*body, problem);
        for (int i = 0; i < 0x7c00; ++i) {
            const int expected[] = {i, i + (i & 1), i + 1};
            for (int side = 0; side < 3; ++side) {
                const size_t at = 2 * (3 * i + side);
                EXPECT_EQ(row.out[at] | row.out[at + 1] << 8, expected[side]);
            }
        }
    }
}

void close_to_fp64(NormKind norm) {
    std::mt19937 random(11);
    constexpr int64_t kHidden = 1000;
    RowProblem problem = RowProblem::random(random, kAllTypes[0], kHidden, 4, false);
    problem.bias = draw(random, kHidden, false, kF32);
    problem.norm = norm;
    const bool is_layer_norm = norm == NormKind::kLayer;
    if (is_layer_norm) {
        problem.norm_bias = draw(random, kHidden, false, kF32);
    }
    std::vector<double> sum(kHidden);
    double total = 0, squares = 0;
    for (int64_t i = 0; i < kHidden; ++i) {
        for (const Bytes* term : {&problem.residual, &problem.bias}) {
            sum[i] += decode_one(&(*term)[4 * i], kF32);
        }
        for (const Bytes& input : problem.inputs) {
            sum[i] += decode_one(&input[4 * i], kF32);
        }
        total += sum[i];
    }
    const double mean = is_layer_norm ? total / kHidden : 0;
    for (double value : sum) {
        squares += (value - mean) * (value - mean);
    }
    const double scale = 1 / std::sqrt(squares / kHidden + 1e-6);
    for (const RowKernels* body : weave::usable_row_kernels()) {
        const Row row = reduce(*body, problem);
        for (int64_t i = 0; i < kHidden; ++i) {
            const float weight = decode_one(&problem.weight[4 * i], kF32);
            const float norm_bias = is_layer_norm ? decode_one(&problem.norm_bias[4 * i], kF32) : 0;
            const double expected = (sum[i] - mean) * scale * (1.0 + weight) + norm_bias;
            // Seven rounded additions of values of size ~3, then three rounded products.
            EXPECT(std::abs(decode_one(&row.out[4 * i], kF32) - expected) <=
                   24 * 6e-8 * (1 + std::abs(expected)));
        }
    }
}

// A row far from zero: variance in one pass, mean(s^2) - mean(s)^2, would lose every digit.
void layer_norm_keeps_the_variance_of_distant_rows() {
    RowProblem problem;
    problem.norm = NormKind::kLayer;
    problem.hidden = 33;
    problem.weight_offset = 0.0f;
    std::vector<float> row(33), ones(33, 1.0f);
    for (int i = 0; i < 33; ++i) {
        row[i] = 16384.0f + static_cast<float>(i % 3 - 1);
    }
    problem.inputs = {encode(row, kF32)};
    problem.weight = encode(ones, kF32);
    for (const RowKernels* body : weave::usable_row_kernels()) {
        const Bytes out = reduce(*body, problem).out;
        for (int i = 0; i < 33; ++i) {
            const double expected = (i % 3 - 1) * std::sqrt(1.5);
            EXPECT(std::abs(decode_one(&out[4 * i], kF32) - expected) < 1e-5);
        }
    }
}

void an_unknown_body_is_refused() {
    EXPECT_THROWS(weave::choose_row_kernels("avx9000"), InvalidArgument);
    EXPECT_EQ(std::string(weave::choose_row_kernels("scalar").name), "scalar");
    EXPECT_EQ(weave::choose_row_kernels("auto").name, weave::usable_row_kernels().front()->name);
}

}  // namespace

int main() {
    bodies_agree();
    two_halves_are_the_whole();
    every_half_passes_unchanged();
    rounding_to_fp16_is_exact();
    close_to_fp64(NormKind::kRms);
    close_to_fp64(NormKind::kLayer);
    layer_norm_keeps_the_variance_of_distant_rows();
    an_unknown_body_is_refused();
    return token::testing::finish("row_kernels");
}
