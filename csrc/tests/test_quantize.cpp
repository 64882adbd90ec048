// Rows to 8-bit codes: every body the same, against the definition of the formats.
#include "row_values.hpp"

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

namespace {

using namespace token;
using namespace token::testing;
using norm::QuantizedFormat;
using weave::RowKernels;

constexpr QuantizedFormat kFp8 = QuantizedFormat::kFloat8E4M3, kInt8 = QuantizedFormat::kInt8;

struct Codes {
    Bytes codes;
    std::vector<float> scales;
};

Codes quantize(const RowKernels& body,
               const Bytes& row,
               DType type,
               QuantizedFormat format,
               int64_t group,
               float scale = 0.0f) {
    const int64_t hidden = static_cast<int64_t>(row.size()) / element_bytes(type);
    Codes result{Bytes(hidden + kCanary, 0xab), {}};
    result.scales.resize(group == 0 ? 0 : (hidden + group - 1) / group);
    norm::QuantizeArgs args{};
    args.row = row.data();
    args.type = type;
    args.format = format;
    args.hidden = hidden;
    args.group_elements = group;
    args.scale = scale;
    args.out = result.codes.data();
    args.scales = result.scales.data();
    body.quantize(args);
    for (int i = 0; i < kCanary; ++i) {
        EXPECT_EQ(int{result.codes[hidden + i]}, 0xab);
    }
    result.codes.resize(hidden);
    return result;
}

// A NaN is equal to nothing, its bits are.
bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
    return encode(a, kF32) == encode(b, kF32);
}

// The value of a code 0..0x7e: 1.mmm * 2^(e - 7), or 0.mmm * 2^-6.
double e4m3_value(int code) {
    const int exponent = code >> 3, mantissa = code & 7;
    return exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
}

// Every code, both neighbours of every midpoint and the midpoints, beyond the largest, and NaN.
void every_rounding_to_e4m3_is_exact() {
    std::vector<float> from;
    std::vector<int> expected;
    for (int code = 0; code < 0x7e; ++code) {
        const float value = static_cast<float>(e4m3_value(code));
        const float next = static_cast<float>(e4m3_value(code + 1));
        const float middle = (value + next) / 2;
        from.insert(from.end(),
                    {value, std::nextafter(middle, value), middle, std::nextafter(middle, next)});
        expected.insert(expected.end(), {code, code, code + (code & 1), code + 1});
    }
    from.insert(from.end(), {448.0f, 449.0f, 1e30f, INFINITY, 1e-40f});
    expected.insert(expected.end(), {0x7e, 0x7e, 0x7e, 0x7e, 0});
    const size_t count = from.size();
    for (size_t i = 0; i < count; ++i) {
        from.push_back(-from[i]);
        expected.push_back(expected[i] | 0x80);
    }
    from.insert(from.end(), {NAN, -NAN});
    expected.insert(expected.end(), {0x7f, 0x7f});
    for (const RowKernels* body : weave::usable_row_kernels()) {
        const Codes found = quantize(*body, encode(from, kF32), kF32, kFp8, 0, 1.0f);
        for (size_t i = 0; i < from.size(); ++i) {
            EXPECT_EQ(int{found.codes[i]}, expected[i]);
        }
    }
}

void every_rounding_to_int8_is_exact() {
    std::vector<float> from = {127.4f, 128.0f, 1e30f, INFINITY, -127.6f, -1e30f, -INFINITY, NAN};
    std::vector<int> expected = {127, 127, 127, 127, -127, -127, -127, 0};
    for (int code = -127; code < 127; ++code) {
        const float middle = static_cast<float>(code) + 0.5f;
        from.insert(from.end(),
                    {static_cast<float>(code),
                     std::nextafter(middle, -1e9f),
                     middle,
                     std::nextafter(middle, 1e9f)});
        expected.insert(expected.end(), {code, code, code + (code & 1), code + 1});
    }
    for (const RowKernels* body : weave::usable_row_kernels()) {
        const Codes found = quantize(*body, encode(from, kF32), kF32, kInt8, 0, 1.0f);
        for (size_t i = 0; i < from.size(); ++i) {
            EXPECT_EQ(int{static_cast<signed char>(found.codes[i])}, expected[i]);
        }
    }
}

// Every body gives the scalar body's codes and scales, of every type, length and kind of scale.
void bodies_agree() {
    std::mt19937 random(3);
    for (int64_t hidden : {1, 15, 16, 31, 32, 33, 63, 64, 127, 128, 129, 257, 576, 1000, 4099}) {
        for (DType type : {kF32, kBf16, kF16}) {
            for (bool special : {false, true}) {
                const Bytes row = draw(random, hidden, special, type);
                for (QuantizedFormat format : {kFp8, kInt8}) {
                    for (int64_t group : {int64_t{0}, int64_t{128}, (hidden + 31) / 32 * 32}) {
                        const Codes scalar =
                            quantize(weave::row_kernels_scalar(), row, type, format, group, 0.013f);
                        for (const RowKernels* body : weave::usable_row_kernels()) {
                            const Codes found = quantize(*body, row, type, format, group, 0.013f);
                            EXPECT(found.codes == scalar.codes);
                            EXPECT(same_bits(found.scales, scalar.scales));
                        }
                    }
                }
            }
        }
    }
}

Bytes bf16_row(const std::vector<uint16_t>& bits) {
    Bytes row(2 * bits.size());
    std::memcpy(row.data(), bits.data(), row.size());
    return row;
}

void expect_the_scalar_codes(const Bytes& row, int64_t group, float scale) {
    const Codes scalar = quantize(weave::row_kernels_scalar(), row, kBf16, kFp8, group, scale);
    for (const RowKernels* body : weave::usable_row_kernels()) {
        const Codes found = quantize(*body, row, kBf16, kFp8, group, scale);
        EXPECT(found.codes == scalar.codes);
        EXPECT(same_bits(found.scales, scalar.scales));
    }
}

// Every bf16, under static scales of every mantissa and next to the ends of what is looked up, and
// under the scale of every largest mantissa: ties, denormal codes and saturation are among them.
void every_bf16_is_rounded_as_the_scalar_body_does() {
    std::vector<uint16_t> all(1 << 16);
    for (size_t i = 0; i < all.size(); ++i) {
        all[i] = static_cast<uint16_t>(i);
    }
    const Bytes every = bf16_row(all);
    std::vector<float> scales = {
        0x1p-126f, 0x1.8p-64f, 0x1p-63f, 0x1p63f, 0x1.fffffep63f, 0x1p126f};
    for (int mantissa = 0; mantissa < 128; ++mantissa) {
        scales.push_back(std::ldexp(static_cast<float>(128 + mantissa), mantissa % 40 - 30));
        scales.push_back(scales.back() / 448.0f);
    }
    for (const float scale : scales) {
        expect_the_scalar_codes(every, 0, scale);
    }
    for (uint16_t mantissa = 0; mantissa < 128; ++mantissa) {
        for (const int exponent : {60, 64, 120, 189, 190}) {
            const auto largest = static_cast<uint16_t>(exponent << 7 | mantissa);
            std::vector<uint16_t> row;
            for (int i = 0; i < 18 * 128 && i <= largest; ++i) {
                const uint16_t sign = i % 3 == 0 ? 0x8000 : 0;
                row.push_back(static_cast<uint16_t>((largest - i) | sign));
            }
            expect_the_scalar_codes(bf16_row(row), 32 * 128, 0.0f);
        }
    }
}

// Groups with a largest of their own, whose other elements are anywhere below it.
void groups_of_any_largest_agree() {
    std::mt19937 random(5);
    for (int round = 0; round < 40; ++round) {
        std::vector<uint16_t> row(128 * 128 + round);
        for (size_t start = 0; start < row.size(); start += 128) {
            const uint32_t largest = random() % 0x7f81;
            for (size_t i = start; i < std::min(start + 128, row.size()); ++i) {
                const uint32_t octaves = random() % 2 == 0 ? 2 : 20;
                const uint32_t below = random() % (octaves * 128);
                const uint32_t magnitude = below > largest ? 0 : largest - below;
                row[i] = static_cast<uint16_t>(magnitude | (random() & 0x8000));
            }
        }
        expect_the_scalar_codes(bf16_row(row), 128, 0.0f);
    }
}

void dynamic_scales_are_what_they_say() {
    std::vector<float> row(5 * 128, 0.0f);
    row[7] = -896.0f;             // group 0: 448 is 896 / 2
    row[128] = 1e-42f;            // group 1: below what a scale can be
    row[3 * 128 - 1] = NAN;       // group 2; group 3 is zeros
    row[4 * 128 + 5] = INFINITY;  // group 4
    const float expected[] = {2.0f, 1.0f, NAN, 1.0f, INFINITY};
    for (const RowKernels* body : weave::usable_row_kernels()) {
        const Codes found = quantize(*body, encode(row, kF32), kF32, kFp8, 128);
        for (int group = 0; group < 5; ++group) {
            EXPECT(std::isnan(expected[group]) ? std::isnan(found.scales[group])
                                               : found.scales[group] == expected[group]);
        }
        EXPECT_EQ(int{found.codes[7]}, 0xfe);
        EXPECT_EQ(int{found.codes[128]}, 0);
        EXPECT_EQ(int{found.codes[2 * 128]}, 0x7f);  // 0 / NaN
        EXPECT_EQ(int{found.codes[3 * 128]}, 0);
        EXPECT_EQ(int{found.codes[4 * 128]}, 0);
        EXPECT_EQ(int{found.codes[4 * 128 + 5]}, 0x7f);  // inf / inf
        const Codes whole = quantize(*body, encode({254.0f, -1.0f, 3.0f}, kF32), kF32, kInt8, 32);
        EXPECT_EQ(whole.scales[0], 2.0f);
        EXPECT(whole.codes == Bytes({127, 0, 2}));  // -0.5 and 1.5 go to even
    }
}

}  // namespace

int main() {
    every_rounding_to_e4m3_is_exact();
    every_rounding_to_int8_is_exact();
    bodies_agree();
    every_bf16_is_rounded_as_the_scalar_body_does();
    groups_of_any_largest_agree();
    dynamic_scales_are_what_they_say();
    return token::testing::finish("quantize");
}
