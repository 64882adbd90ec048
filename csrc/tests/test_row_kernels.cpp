// The bodies against each other, bit for bit, and against fp64.
#include "../weave/row_kernels.hpp"
#include "expect.hpp"
#include "token/common/errors.hpp"

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

namespace {

using namespace token;
using weave::RowKernels;

constexpr int kCanary = 16;

float from_bf16(uint16_t value) {
    const uint32_t bits = uint32_t{value} << 16;
    float result;
    std::memcpy(&result, &bits, sizeof(result));
    return result;
}

struct Row {
    std::vector<unsigned char> out, residual;
};

// Values over many magnitudes, with NaN, infinities, denormals and signed zeros where `special`.
std::vector<float> values(std::mt19937& random, int64_t count, bool special) {
    std::normal_distribution<float> normal;
    std::vector<float> result(count);
    for (float& value : result) {
        value = normal(random);
        if (special && random() % 5 == 0) {
            const float specials[] = {std::numeric_limits<float>::quiet_NaN(),
                                      std::numeric_limits<float>::infinity(),
                                      -std::numeric_limits<float>::infinity(),
                                      std::numeric_limits<float>::denorm_min() * 1e7f,
                                      -0.0f,
                                      0.0f,
                                      std::numeric_limits<float>::max(),
                                      1e-39f};
            value = specials[random() % 8];
        }
    }
    return result;
}

std::vector<unsigned char> encode(const std::vector<float>& from, bool is_bf16) {
    std::vector<unsigned char> to(from.size() * (is_bf16 ? 2 : 4));
    for (size_t i = 0; i < from.size(); ++i) {
        if (is_bf16) {
            uint32_t bits;
            std::memcpy(&bits, &from[i], 4);
            const uint16_t high = static_cast<uint16_t>(bits >> 16);
            std::memcpy(&to[2 * i], &high, 2);
        } else {
            std::memcpy(&to[4 * i], &from[i], 4);
        }
    }
    return to;
}

struct Types {
    DType input, activation, weight;
};
constexpr DType kF32 = DType::kFloat32, kBf16 = DType::kBFloat16;
constexpr Types kAllTypes[] = {{kF32, kF32, kF32},
                               {kBf16, kBf16, kBf16},
                               {kBf16, kBf16, kF32},
                               {kBf16, kF32, kF32},
                               {kF32, kBf16, kBf16},
                               {kF32, kBf16, kF32}};

Row reduce(const RowKernels& kernels,
           const Types& types,
           bool has_norm,
           const std::vector<std::vector<unsigned char>>& inputs,
           const std::vector<unsigned char>& residual,
           const std::vector<unsigned char>& weight,
           const std::vector<unsigned char>& bias,
           int64_t hidden) {
    const size_t bytes = hidden * element_bytes(types.activation);
    Row row{std::vector<unsigned char>(bytes + kCanary, 0xab),
            std::vector<unsigned char>(bytes + kCanary, 0xab)};
    std::vector<const void*> pointers;
    for (const auto& input : inputs) {
        pointers.push_back(input.data());
    }
    std::vector<float> scratch(norm::scratch_elements(hidden),
                               std::numeric_limits<float>::quiet_NaN());
    norm::RowArgs args{};
    args.inputs = pointers.data();
    args.num_inputs = static_cast<int>(inputs.size());
    args.hidden = hidden;
    args.residual = residual.empty() ? nullptr : residual.data();
    args.bias = bias.empty() ? nullptr : bias.data();
    args.weight = has_norm ? weight.data() : nullptr;
    args.weight_offset = 1.0f;
    args.eps = 1e-6f;
    args.scratch = scratch.data();
    args.out = row.out.data();
    args.residual_out = row.residual.data();
    kernels.pick(types.input, types.activation, types.weight)(args);
    for (int i = 0; i < kCanary; ++i) {
        EXPECT_EQ(int{row.out[bytes + i]}, 0xab);
        EXPECT_EQ(int{row.residual[bytes + i]}, 0xab);
    }
    return row;
}

// Equal bits; in fp32 any two NaNs are equal, since which operand's payload survives an addition is
// up to the compiler. (bf16 NaNs are stored as one pattern.)
bool same_bits(const std::vector<unsigned char>& a,
               const std::vector<unsigned char>& b,
               bool is_bf16) {
    if (is_bf16) {
        return a == b;
    }
    for (size_t at = 0; at + 4 <= a.size(); at += 4) {
        float x, y;
        std::memcpy(&x, &a[at], 4);
        std::memcpy(&y, &b[at], 4);
        if (std::memcmp(&x, &y, 4) != 0 && !(std::isnan(x) && std::isnan(y))) {
            return false;
        }
    }
    return true;
}

void bodies_agree() {
    std::mt19937 random(7);
    const auto bodies = weave::usable_row_kernels();
    const auto draw = [&](int64_t hidden, bool special, DType dtype) {
        return encode(values(random, hidden, special), dtype == kBf16);
    };
    for (int64_t hidden : {1, 7, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 576, 1000, 4099}) {
        for (int num_ranks : {1, 2, 3, 4, 8}) {
            for (const Types& types : kAllTypes) {
                for (bool special : {false, true}) {
                    std::vector<std::vector<unsigned char>> inputs;
                    for (int rank = 0; rank < num_ranks; ++rank) {
                        inputs.push_back(draw(hidden, special, types.input));
                    }
                    const auto residual = draw(hidden, special, types.activation);
                    const auto weight = draw(hidden, false, types.weight);
                    const auto bias = num_ranks == 3 ? draw(hidden, false, types.activation)
                                                     : std::vector<unsigned char>();
                    for (bool has_norm : {true, false}) {
                        const auto run = [&](const RowKernels& body) {
                            return reduce(
                                body, types, has_norm, inputs, residual, weight, bias, hidden);
                        };
                        const Row scalar = run(weave::row_kernels_scalar());
                        for (const RowKernels* body : bodies) {
                            const Row other = run(*body);
                            const bool is_bf16 = types.activation == kBf16;
                            EXPECT(same_bits(other.out, scalar.out, is_bf16));
                            EXPECT(same_bits(other.residual, scalar.residual, is_bf16));
                        }
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
    for (int64_t hidden : {1, 33, 1000}) {
        std::vector<std::vector<unsigned char>> inputs;
        for (int rank = 0; rank < 3; ++rank) {
            inputs.push_back(encode(values(random, hidden, true), true));
        }
        const auto residual = encode(values(random, hidden, true), true);
        const auto weight = encode(values(random, hidden, false), true);
        for (const RowKernels* body : weave::usable_row_kernels()) {
            const Row whole =
                reduce(*body, {kBf16, kBf16, kBf16}, true, inputs, residual, weight, {}, hidden);
            Row sum = reduce(*body, {kBf16, kF32, kF32}, false, inputs, {}, {}, {}, hidden);
            sum.out.resize(hidden * sizeof(float));
            const Row finished =
                reduce(*body, {kF32, kBf16, kBf16}, true, {sum.out}, residual, weight, {}, hidden);
            EXPECT(finished.out == whole.out);
            EXPECT(finished.residual == whole.residual);
        }
    }
}

// Every bf16 value as input, alone and doubled: rounding is exact and denormals survive.
void every_bf16_passes_unchanged() {
    std::vector<uint16_t> all(65536);
    for (size_t i = 0; i < all.size(); ++i) {
        all[i] = static_cast<uint16_t>(i);
    }
    std::vector<uint16_t> out(all.size());
    const void* inputs[] = {all.data()};
    norm::RowArgs args{};
    args.inputs = inputs;
    args.num_inputs = 1;
    args.hidden = static_cast<int64_t>(all.size());
    args.out = out.data();
    for (const RowKernels* body : weave::usable_row_kernels()) {
        body->bfloat16(args);
        for (size_t i = 0; i < all.size(); ++i) {
            const bool is_nan = std::isnan(from_bf16(all[i]));
            EXPECT_EQ(out[i], is_nan ? uint16_t{0x7fc0} : all[i]);
        }
    }
}

void close_to_fp64() {
    std::mt19937 random(11);
    constexpr int64_t kHidden = 1000;
    std::vector<std::vector<unsigned char>> inputs;
    std::vector<std::vector<float>> raw;
    for (int rank = 0; rank < 4; ++rank) {
        raw.push_back(values(random, kHidden, false));
        inputs.push_back(encode(raw.back(), false));
    }
    const auto residual = values(random, kHidden, false);
    const auto weight = values(random, kHidden, false);
    std::vector<double> sum(kHidden);
    double squares = 0;
    for (int64_t i = 0; i < kHidden; ++i) {
        sum[i] = residual[i];
        for (const auto& input : raw) {
            sum[i] += input[i];
        }
        squares += sum[i] * sum[i];
    }
    const double scale = 1 / std::sqrt(squares / kHidden + 1e-6);
    for (const RowKernels* body : weave::usable_row_kernels()) {
        const Row row = reduce(*body,
                               {kF32, kF32, kF32},
                               true,
                               inputs,
                               encode(residual, false),
                               encode(weight, false),
                               {},
                               kHidden);
        for (int64_t i = 0; i < kHidden; ++i) {
            float actual;
            std::memcpy(&actual, &row.out[4 * i], 4);
            const double expected = sum[i] * scale * (1.0 + weight[i]);
            // Five rounded additions of values of size ~2, then three rounded products.
            EXPECT(std::abs(actual - expected) <= 16 * 6e-8 * (1 + std::abs(expected)));
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
    every_bf16_passes_unchanged();
    close_to_fp64();
    an_unknown_body_is_refused();
    return token::testing::finish("row_kernels");
}
