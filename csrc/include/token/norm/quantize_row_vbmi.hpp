// Rows of bf16 to e4m3 with the byte permutations of AVX512_VBMI: 32 codes in seven instructions.
#pragma once

#include "token/norm/quantize_row_lookup.hpp"
#include "token/norm/vec16_avx512.hpp"

#include <array>
#include <cstdint>
#include <immintrin.h>

namespace token::norm {

// The body of LookupQuantizer. Declines values above what the lookup is right for; those below,
// whose codes are no normal numbers, it computes.
class VbmiLookup {
  public:
    using Vec = Vec16Avx512<NarrowByInstruction>;
    static constexpr int kVectors = kLookupBlock / kPairLanes;

    struct Words {
        __m512i bits[kVectors], magnitude[kVectors];
    };
    struct Lookup {
        __m512i low, high;  // of mantissas 0..63 and 64..127
        // Magnitudes, as words: normal codes from `smallest` on, no lookup above `largest`.
        __m512i smallest, largest;
    };

    static TOKEN_INLINE Words load(const uint16_t* from) {
        Words words;
        for (int i = 0; i < kVectors; ++i) {
            words.bits[i] = _mm512_loadu_si512(from + i * kPairLanes);
            words.magnitude[i] = _mm512_and_si512(words.bits[i], _mm512_set1_epi16(0x7fff));
        }
        return words;
    }

    static TOKEN_INLINE uint32_t largest(const Words& words) {
        return Vec::max_lane(Vec::Bf16x32{most(words)});
    }

    static TOKEN_INLINE Lookup lookup_of_largest(uint32_t magnitude) {
        const E4M3Lookup& from = kLookups[magnitude % kOctave];
        const __m512i exponent =
            _mm512_set1_epi8(static_cast<char>(8 * (127 - (magnitude / kOctave))));
        return {
            _mm512_add_epi8(_mm512_load_si512(from.data()), exponent),
            _mm512_add_epi8(_mm512_load_si512(from.data() + 64), exponent),
            _mm512_set1_epi16(static_cast<int16_t>(magnitude - kOctavesOfNormalCodes * kOctave)),
            _mm512_set1_epi16(static_cast<int16_t>(magnitude))};
    }

    static TOKEN_INLINE Lookup lookup_of_scale(float scale) {
        alignas(64) uint8_t table[kMantissas];
        const Vec inverse = Vec::broadcast(1.0f / scale);
        for (int mantissa = 0; mantissa < kMantissas; mantissa += Vec::kLanes) {
            const __m512i one_point = _mm512_slli_epi32(
                _mm512_add_epi32(
                    _mm512_set1_epi32((127 << 7) + mantissa),
                    _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)),
                16);
            const __m512i code =
                Float8E4M3::encode_easy(Vec{_mm512_castsi512_ps(one_point)} * inverse).reg;
            _mm_store_si128(
                reinterpret_cast<__m128i*>(table + mantissa),
                _mm512_cvtepi32_epi8(_mm512_sub_epi32(code, _mm512_srli_epi32(one_point, 20))));
        }
        return {_mm512_load_si512(table),
                _mm512_load_si512(table + 64),
                _mm512_set1_epi16(static_cast<int16_t>(smallest_magnitude(scale))),
                _mm512_set1_epi16(static_cast<int16_t>(largest_magnitude(scale)))};
    }

    static TOKEN_INLINE bool encode(const Words& words,
                                    const Lookup& lookup,
                                    float scale,
                                    uint8_t* out) {
        const auto& [bits, magnitude] = words;
        if (_mm512_cmpgt_epi16_mask(most(words), lookup.largest) != 0) {
            return false;
        }
        for (int i = 0; i < kVectors; i += 2) {
            _mm512_storeu_si512(out + i * kPairLanes, normal_codes(bits[i], bits[i + 1], lookup));
        }
        const __m512i least = _mm512_min_epi16(_mm512_min_epi16(magnitude[0], magnitude[1]),
                                               _mm512_min_epi16(magnitude[2], magnitude[3]));
        if (_mm512_cmplt_epi16_mask(least, lookup.smallest) != 0) {
            const __m512 inverse = _mm512_set1_ps(1.0f / scale);
            for (int i = 0; i < kVectors; ++i) {
                _mm256_mask_storeu_epi8(
                    out + i * kPairLanes,
                    _mm512_cmplt_epi16_mask(magnitude[i], lookup.smallest),
                    _mm512_cvtepi16_epi8(small_codes(bits[i], magnitude[i], inverse)));
            }
        }
        return true;
    }

  private:
    static TOKEN_INLINE __m512i most(const Words& words) {
        return _mm512_max_epi16(_mm512_max_epi16(words.magnitude[0], words.magnitude[1]),
                                _mm512_max_epi16(words.magnitude[2], words.magnitude[3]));
    }

    // Of 64 elements. A word holds sign, 8 bits of exponent, 7 of mantissa.
    static TOKEN_INLINE __m512i normal_codes(__m512i first, __m512i second, const Lookup& lookup) {
        const __m512i low_bytes =
            _mm512_permutex2var_epi8(first, _mm512_load_si512(kEvenBytes.data()), second);
        const __m512i looked_up = _mm512_permutex2var_epi8(lookup.low, low_bytes, lookup.high);
        // Of every four words the four bytes of (word >> 4), then the four of (word >> 8).
        const __m512i shifts = _mm512_set1_epi64(0x3828180834241404);
        first = _mm512_multishift_epi64_epi8(shifts, first);
        second = _mm512_multishift_epi64_epi8(shifts, second);
        const __m512i even =
            _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
        const __m512i odd = _mm512_or_si512(even, _mm512_set1_epi32(1));
        const __m512i middle = _mm512_permutex2var_epi32(first, even, second);
        const __m512i sign = _mm512_permutex2var_epi32(first, odd, second);
        constexpr int kSelect = 0xca;  // by the bits of the first operand, from the other two
        return _mm512_ternarylogic_epi32(_mm512_set1_epi8(static_cast<char>(0x80)),
                                         sign,
                                         _mm512_add_epi8(middle, looked_up),
                                         kSelect);
    }

    // In the lower bytes of words, of products below 2^-5, which are codes of equal distances.
    static TOKEN_INLINE __m512i small_codes(__m512i bits, __m512i magnitude, __m512 inverse) {
        // The neighbours of 2^14 are as far apart as these codes, and its bits end in 16 zeros.
        const __m512 anchor = _mm512_set1_ps(0x1p14f);
        const Pair<Vec> value = Vec::widen(Vec::Bf16x32{magnitude});
        const auto code = [&](const Vec& half) {
            return _mm512_castps_si512(_mm512_add_ps(_mm512_mul_ps(half.reg, inverse), anchor));
        };
        constexpr __mmask32 kOdd = 0xaaaaaaaa;
        const __m512i codes = _mm512_mask_blend_epi16(
            kOdd, code(value.first), _mm512_slli_epi32(code(value.second), 16));
        constexpr int kOrMasked = 0xf8;  // the first, and what the other two share
        return _mm512_ternarylogic_epi32(
            codes, _mm512_srli_epi16(bits, 8), _mm512_set1_epi16(0x80), kOrMasked);
    }

    alignas(64) static constexpr std::array<uint8_t, 64> kEvenBytes = [] {
        std::array<uint8_t, 64> bytes{};
        for (int i = 0; i < 64; ++i) {
            bytes[i] = static_cast<uint8_t>(2 * i);
        }
        return bytes;
    }();
    alignas(64) static constexpr E4M3Lookups kLookups = e4m3_lookups(Float8E4M3::kMax);
};

}  // namespace token::norm
