// Between fp32 and the types of activations: to nearest even, denormals kept. Two elements in a
// word, the one with the lower address in the lower half.
#pragma once

#include "token/common/host_device.hpp"
#include "token/common/int_types.hpp"
#include "token/ptx/vector_types.hpp"

namespace token::ptx {

TOKEN_DEVICE uint32_t bf16x2_from_f32x2_rn(float low, float high) {
    uint32_t packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}
// bf16 is the upper half of fp32.
TOKEN_DEVICE FloatPair f32x2_from_bf16x2(uint32_t packed) {
    FloatPair pair;
    asm("shl.b32 %0, %1, 16;" : "=f"(pair.low) : "r"(packed));
    asm("and.b32 %0, %1, 0xffff0000;" : "=f"(pair.high) : "r"(packed));
    return pair;
}
TOKEN_DEVICE uint32_t f16x2_from_f32x2_rn(float low, float high) {
    uint32_t packed;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}
TOKEN_DEVICE FloatPair f32x2_from_f16x2(uint32_t packed) {
    FloatPair pair;
    asm("{.reg .b16 low, high;\n"
        "mov.b32 {low, high}, %2;\n"
        "cvt.f32.f16 %0, low;\n"
        "cvt.f32.f16 %1, high;}"
        : "=f"(pair.low), "=f"(pair.high)
        : "r"(packed));
    return pair;
}
// Codes of e4m3fn in the lower 16 bits; beyond 448, infinities too, becomes 448; NaN is 0x7f.
// sm_89 and later have an instruction; before, the same by integer arithmetic.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 890
TOKEN_DEVICE uint32_t e4m3x2_from_f32x2_rn_satfinite(float low, float high) {
    uint16_t packed;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(packed) : "f"(high), "f"(low));
    return packed;
}
#else
TOKEN_DEVICE uint32_t e4m3_from_f32_rn_satfinite(float value) {
    const uint32_t bits = __float_as_uint(value), magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) {
        return 0x7fu;
    }
    const float bounded = fminf(__uint_as_float(magnitude), 448.0f);
    // The neighbours of 2^14 are as far apart as the denormals of e4m3: 2^-9.
    const uint32_t denormal = __float_as_uint(bounded + 0x1p14f) - __float_as_uint(0x1p14f);
    const uint32_t wide = __float_as_uint(bounded);
    const uint32_t normal = (wide + 0x7ffffu + ((wide >> 20) & 1u) - (120u << 23)) >> 20;
    return (bounded < 0x1p-6f ? denormal : normal) | (bits >> 24 & 0x80u);
}
TOKEN_DEVICE uint32_t e4m3x2_from_f32x2_rn_satfinite(float low, float high) {
    return e4m3_from_f32_rn_satfinite(low) | e4m3_from_f32_rn_satfinite(high) << 8;
}
#endif
// To the nearest integer (even in the middle) of -127 to 127; NaN is 0.
TOKEN_DEVICE int32_t s8_from_f32_rni_sat(float value) {
    int32_t integer;
    asm("cvt.rni.s32.f32 %0, %1;" : "=r"(integer) : "f"(value));
    return integer > 127 ? 127 : integer < -127 ? -127 : integer;
}

}  // namespace token::ptx
