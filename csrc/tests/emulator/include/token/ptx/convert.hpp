// Shadow of token/ptx/convert.hpp.
#pragma once

#include "device.hpp"
#include "token/norm/half_bits.hpp"
#include "token/ptx/vector_types.hpp"

#include <cmath>

namespace token::ptx {

inline uint32_t bf16x2_from_f32x2_rn(float low, float high) {
    return norm::round_to_bf16(low) | uint32_t{norm::round_to_bf16(high)} << 16;
}
inline FloatPair f32x2_from_bf16x2(uint32_t packed) {
    return {norm::as_float(packed << 16), norm::as_float(packed & 0xffff0000u)};
}
inline uint32_t f16x2_from_f32x2_rn(float low, float high) {
    return norm::round_to_f16(low) | uint32_t{norm::round_to_f16(high)} << 16;
}
inline FloatPair f32x2_from_f16x2(uint32_t packed) {
    return {norm::widen_f16(static_cast<uint16_t>(packed)),
            norm::widen_f16(static_cast<uint16_t>(packed >> 16))};
}
inline uint32_t e4m3_from_f32_rn_satfinite(float value) {
    const uint32_t sign = norm::as_bits(value) >> 24 & 0x80u;
    if (std::isnan(value)) {
        return 0x7fu;
    }
    // Steps of 2^-9 below 2^-6; above, eight of them between two powers of two.
    const float magnitude = std::min(std::fabs(value), 448.0f);
    int exponent = 0;
    std::frexp(magnitude, &exponent);
    // Zero has no exponent of its own.
    exponent = magnitude == 0.0f ? -5 : std::max(exponent, -5);
    const auto steps = static_cast<uint32_t>(std::nearbyint(std::ldexp(magnitude, 4 - exponent)));
    return sign | (static_cast<uint32_t>(exponent + 5) * 8u + steps);
}
inline uint32_t e4m3x2_from_f32x2_rn_satfinite(float low, float high) {
    return e4m3_from_f32_rn_satfinite(low) | e4m3_from_f32_rn_satfinite(high) << 8;
}
inline int32_t s8_from_f32_rni_sat(float value) {
    if (std::isnan(value)) {
        return 0;
    }
    return static_cast<int32_t>(std::nearbyint(std::fmin(std::fmax(value, -127.0f), 127.0f)));
}

}  // namespace token::ptx
