// bf16 and fp16 to fp32 and back, in integers: what the instructions of the wide bodies must give.
// Rounding is to nearest even, denormals are kept, overflow is infinity and every NaN one pattern.
#pragma once

#include "token/common/host_device.hpp"

#include <cstdint>
#include <cstring>

namespace token::norm {

TOKEN_INLINE float as_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
}
TOKEN_INLINE uint32_t as_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    return bits;
}
TOKEN_INLINE float widen_bf16(uint16_t value) {
    return as_float(uint32_t{value} << 16);
}
TOKEN_INLINE uint16_t round_to_bf16(float value) {
    const uint32_t bits = as_bits(value);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1)) >> 16;
    return static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}
TOKEN_INLINE float widen_f16(uint16_t value) {
    const uint32_t magnitude = value & 0x7fffu;
    const uint32_t sign = uint32_t{value & 0x8000u} << 16;
    // Exponents move from a bias of 15 to one of 127; that of infinity and NaN from 31 to 255.
    const uint32_t rebias = magnitude >= 0x7c00u ? 224u << 23 : 112u << 23;
    const uint32_t normal = (magnitude << 13) + rebias;
    const uint32_t denormal = as_bits(static_cast<float>(static_cast<int>(magnitude)) * 0x1p-24f);
    return as_float(sign | (magnitude < 0x0400u ? denormal : normal));
}
TOKEN_INLINE uint16_t round_to_f16(float value) {
    const uint32_t bits = as_bits(value), magnitude = bits & 0x7fffffffu;
    // The neighbours of 0.5 are as far apart as the denormals of fp16.
    const uint32_t denormal = as_bits(as_float(magnitude) + 0.5f) - as_bits(0.5f);
    const uint32_t normal = (magnitude + 0xfffu + ((magnitude >> 13) & 1) - (112u << 23)) >> 13;
    uint32_t rounded = magnitude < as_bits(0x1p-14f) ? denormal : normal;
    rounded = magnitude >= as_bits(65520.0f) ? 0x7c00u : rounded;
    const uint32_t with_sign = rounded | (bits >> 16 & 0x8000u);
    return static_cast<uint16_t>(magnitude > 0x7f800000u ? 0x7e00u : with_sign);
}

}  // namespace token::norm
