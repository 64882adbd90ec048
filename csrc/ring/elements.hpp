// Element types of partial outputs, and exp, as straight-line code without calls, so that a loop
// over it becomes vector code in each instruction set with the same bits in all, and in the CUDA
// kernel, which is why there is no standard library here.
#pragma once

#include "token/common/host_device.hpp"
#include "token/common/int_types.hpp"

namespace token::ring {

template <class To, class From>
TOKEN_HOST_DEVICE TOKEN_INLINE To bit_cast(From from) {
    return __builtin_bit_cast(To, from);
}

struct Float32 {
    using Storage = float;
    TOKEN_HOST_DEVICE static TOKEN_INLINE float widen(float value) { return value; }
    TOKEN_HOST_DEVICE static TOKEN_INLINE float narrow(float value) { return value; }
};

// Both 16-bit types round to nearest even and keep denormals; every NaN becomes the quiet one.
struct BFloat16 {
    using Storage = uint16_t;
    TOKEN_HOST_DEVICE static TOKEN_INLINE float widen(uint16_t value) {
        return bit_cast<float>(uint32_t{value} << 16);
    }
    TOKEN_HOST_DEVICE static TOKEN_INLINE uint16_t narrow(float value) {
        const uint32_t bits = bit_cast<uint32_t>(value);
        const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
        return static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
    }
};

struct Float16 {
    using Storage = uint16_t;
    TOKEN_HOST_DEVICE static TOKEN_INLINE float widen(uint16_t value) {
        const uint32_t magnitude = value & 0x7fffu;
        const uint32_t sign = uint32_t{value & 0x8000u} << 16;
        const uint32_t exponent = magnitude >= 0x7c00u ? 0x7f800000u : 0u;
        const uint32_t normal = ((magnitude << 13) + (112u << 23)) | exponent;
        // A product of integers: a denormal float would be lost where the CPU flushes those.
        const float denormal = static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f;
        const uint32_t bits = magnitude < 0x0400u ? bit_cast<uint32_t>(denormal) : normal;
        return bit_cast<float>(bits | sign);
    }
    TOKEN_HOST_DEVICE static TOKEN_INLINE uint16_t narrow(float value) {
        const uint32_t bits = bit_cast<uint32_t>(value);
        const uint32_t magnitude = bits & 0x7fffffffu;
        // Past the largest finite number the carry makes the exponent of infinity.
        const uint32_t normal =
            (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - (112u << 23)) >> 13;
        // Beside 0.5 one unit in the last place is 2**-24, the smallest fp16 number.
        const float beside_half = bit_cast<float>(magnitude) + 0.5f;
        const uint32_t denormal = bit_cast<uint32_t>(beside_half) - 0x3f000000u;
        uint32_t result = magnitude < 0x38800000u ? denormal : normal;
        result = magnitude >= 0x47800000u ? 0x7c00u : result;
        result = magnitude > 0x7f800000u ? 0x7e00u : result;
        return static_cast<uint16_t>(result | ((bits >> 16) & 0x8000u));
    }
};

// exp(x) for x <= 0, and NaN for NaN: x = n ln 2 + r, |r| <= ln 2 / 2, a polynomial of degree 7 for
// exp(r) whose remainder is below 2**-27. At most 1.5 ulp off where the result is normal; 0 from
// -104 on.
TOKEN_HOST_DEVICE TOKEN_INLINE float exp_nonpositive(float x) {
    constexpr float kShift = 0x1.8p23f;  // a float this large has no bits for a fraction
    const float clamped = x < -104.0f ? -104.0f : x;
    const float shifted = clamped * 0x1.715476p0f + kShift;
    const float n = shifted - kShift;
    const float r = (clamped - n * 0x1.62e4p-1f) - n * 0x1.7f7d1cp-20f;
    float p = 1.0f / 5040;
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    // 2**n in two factors, since n reaches below the exponents of normal numbers. Of NaN it is
    // anything, and NaN times anything is NaN.
    const uint32_t steps = bit_cast<uint32_t>(shifted) - bit_cast<uint32_t>(kShift);
    const uint32_t half = static_cast<uint32_t>(static_cast<int32_t>(steps) >> 1);
    const float first = bit_cast<float>((half + 127u) << 23);
    const float second = bit_cast<float>((steps - half + 127u) << 23);
    const float result = p * first * second;
    return x < -104.0f ? 0.0f : result;
}

}  // namespace token::ring
