// bf16 to e4m3 by lookup: as long as codes are normal numbers, a factor of two in a value is 8 in
// its code, so that a scale settles what becomes of the 128 mantissas there are.
//
//     code(w) = lookup[w & 0x7f] + (w >> 4)   modulo 128, w the bits of a bf16; bit 7 is the sign
//
// A lookup holds what the definition of quantize_row.hpp gives, product, rounding and all: no bit
// differs.
#pragma once

#include "token/common/host_device.hpp"

#include <array>
#include <bit>
#include <cstdint>

namespace token::norm {

inline constexpr int kMantissas = 128;

using E4M3Lookup = std::array<uint8_t, kMantissas>;

// For values of 1.mantissa that are multiplied by `inverse`, a normal number.
// Inlined: run where instructions are those of one body.
TOKEN_INLINE constexpr E4M3Lookup e4m3_lookup(float inverse) {
    E4M3Lookup lookup{};
    for (uint32_t mantissa = 0; mantissa < kMantissas; ++mantissa) {
        const uint32_t one_point = 127u << 23 | mantissa << 16;
        const uint32_t bits = std::bit_cast<uint32_t>(std::bit_cast<float>(one_point) * inverse);
        const uint32_t rounded = bits + (bits >> 20 & 1) + 0x7ffff - (120u << 23);
        lookup[mantissa] = static_cast<uint8_t>((rounded >> 20) - (one_point >> 20));
    }
    return lookup;
}

// For values that share a scale of their own: of the mantissa of the largest magnitude. Its
// exponent is that of 1; each one more takes 8 from a code.
using E4M3Lookups = std::array<E4M3Lookup, kMantissas>;

constexpr E4M3Lookups e4m3_lookups(float largest_code) {
    E4M3Lookups lookups{};
    for (uint32_t mantissa = 0; mantissa < kMantissas; ++mantissa) {
        const float largest = std::bit_cast<float>(127u << 23 | mantissa << 16);
        lookups[mantissa] = e4m3_lookup(1.0f / (largest / largest_code));
    }
    return lookups;
}

// A lookup in two tables of 16 bytes, which is what instructions before AVX512_VBMI look up in.
// Codes step at most every 8 mantissas: of 8 consecutive ones the first `last_of_first` + 1 have
// the code of the first, the others one more.
inline constexpr int kMantissasPerStep = 8, kSteps = kMantissas / kMantissasPerStep;

struct E4M3Steps {
    std::array<uint8_t, kSteps> first;          // lookup of mantissa 8 * i
    std::array<uint8_t, kSteps> last_of_first;  // the mantissa up to which it holds
};

TOKEN_INLINE constexpr E4M3Steps e4m3_steps(const E4M3Lookup& lookup) {
    E4M3Steps steps{};
    for (int step = 0; step < kSteps; ++step) {
        const int start = step * kMantissasPerStep;
        uint8_t num_more = 0;
        for (int mantissa = start; mantissa < start + kMantissasPerStep; ++mantissa) {
            num_more = static_cast<uint8_t>(num_more + lookup[mantissa] - lookup[start]);
        }
        steps.first[step] = lookup[start];
        steps.last_of_first[step] = static_cast<uint8_t>(start + kMantissasPerStep - 1 - num_more);
    }
    return steps;
}

constexpr std::array<E4M3Steps, kMantissas> e4m3_all_steps(float largest_code) {
    const E4M3Lookups lookups = e4m3_lookups(largest_code);
    std::array<E4M3Steps, kMantissas> steps{};
    for (int mantissa = 0; mantissa < kMantissas; ++mantissa) {
        steps[mantissa] = e4m3_steps(lookups[mantissa]);
    }
    return steps;
}

}  // namespace token::norm
