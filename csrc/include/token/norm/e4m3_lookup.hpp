// bf16 to e4m3 by lookup: as long as codes are normal numbers, a factor of two in a value is 8 in
// its code, so that a scale settles what becomes of the 128 mantissas there are.
//
//     code(w) = lookup[w & 0x7f] + (w >> 4)   modulo 128, w the bits of a bf16; bit 7 is the sign
//
// A lookup holds what the definition of quantize_row.hpp gives, product, rounding and all: no bit
// differs.
#pragma once

#include <array>
#include <bit>
#include <cstdint>

namespace token::norm {

inline constexpr int kMantissas = 128;

using E4M3Lookup = std::array<uint8_t, kMantissas>;

// For values of 1.mantissa that are multiplied by `inverse`, a normal number.
constexpr E4M3Lookup e4m3_lookup(float inverse) {
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

}  // namespace token::norm
