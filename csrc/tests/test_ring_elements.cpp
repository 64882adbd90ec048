// exp and fp16 of the merge of partial attention outputs.
#include "../ring/elements.hpp"
#include "expect.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace {

using namespace token;
using namespace token::ring;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

void test_exp() {
    double worst = 0;
    for (float x = 0.0f; x > -87.0f; x -= 0.000731f) {
        const double expected = std::exp(static_cast<double>(x));
        const double ulp = std::ldexp(1.0, std::ilogb(expected) - 23);
        worst = std::max(worst, std::abs(exp_nonpositive(x) - expected) / ulp);
    }
    EXPECT(worst <= 1.5);
    for (float x = -87.0f; x > -110.0f; x -= 0.00731f) {
        const double expected = std::exp(static_cast<double>(x));
        EXPECT(std::abs(exp_nonpositive(x) - expected) <=
               2 * std::ldexp(1.0, -149) + expected * 1e-7);
    }
    EXPECT_EQ(exp_nonpositive(0.0f), 1.0f);
    EXPECT_EQ(exp_nonpositive(-kInf), 0.0f);
    EXPECT(std::isnan(exp_nonpositive(kNan)));
}

void test_float16() {
    // Every fp16 number goes there and back; between two neighbours the even one of a tie is taken.
    for (uint32_t bits = 0; bits < 0x7c00u; ++bits) {
        const float value = Float16::widen(static_cast<uint16_t>(bits));
        const int exponent = bits < 0x400u ? -14 : static_cast<int>(bits >> 10) - 15;
        const double mantissa = (bits & 0x3ffu) / 1024.0 + (bits < 0x400u ? 0.0 : 1.0);
        EXPECT_EQ(static_cast<double>(value), std::ldexp(mantissa, exponent));
        EXPECT_EQ(Float16::narrow(value), bits);
        EXPECT_EQ(Float16::narrow(-value), bits | 0x8000u);
        const float next =
            bits == 0x7bffu ? 65536.0f : Float16::widen(static_cast<uint16_t>(bits + 1));
        const float middle = 0.5f * (value + next);
        EXPECT_EQ(Float16::narrow(middle), bits + (bits & 1u));
        EXPECT_EQ(Float16::narrow(std::nextafterf(middle, 0.0f)), bits);
        EXPECT_EQ(Float16::narrow(std::nextafterf(middle, kInf)), bits + 1);
    }
    EXPECT_EQ(Float16::narrow(kInf), 0x7c00u);
    EXPECT_EQ(Float16::narrow(1e30f), 0x7c00u);
    EXPECT_EQ(Float16::narrow(kNan), 0x7e00u);
    EXPECT(std::isnan(Float16::widen(0x7e00u)) && std::isinf(Float16::widen(0xfc00u)));
}

}  // namespace

int main() {
    test_exp();
    test_float16();
    return testing::finish("ring_elements");
}
