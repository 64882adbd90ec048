// Rows of bf16 to e4m3 with the byte shuffles of AVX2: 32 codes in some twenty instructions.
#pragma once

#include "token/norm/quantize_row_lookup.hpp"
#include "token/norm/vec16_avx2.hpp"

#include <array>
#include <cstdint>
#include <immintrin.h>

namespace token::norm {

// The body of LookupQuantizer. Declines blocks with values whose codes are no normal numbers, about
// one in fifty of normally distributed ones.
class Avx2Lookup {
  public:
    using Vec = Vec16Avx2;
    static constexpr int kVectors = kLookupBlock / Vec::kLanes;

    struct Words {
        __m256i bits[kVectors];
        __m256i least, most;  // magnitudes, lane by lane
    };
    struct Lookup {
        __m256i first, last_of_first;  // see E4M3Steps; twice the same 16 bytes
        __m256i smallest, largest;     // magnitudes, as words
    };

    static TOKEN_INLINE Words load(const uint16_t* from) {
        Words words;
        for (int i = 0; i < kVectors; ++i) {
            words.bits[i] =
                _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i * Vec::kLanes));
            const __m256i magnitude = _mm256_and_si256(words.bits[i], _mm256_set1_epi16(0x7fff));
            words.least = i == 0 ? magnitude : _mm256_min_epi16(words.least, magnitude);
            words.most = i == 0 ? magnitude : _mm256_max_epi16(words.most, magnitude);
        }
        return words;
    }

    static TOKEN_INLINE uint32_t largest(const Words& words) {
        return Vec::max_lane(Vec::Bf16x32{words.most, words.most});
    }

    static TOKEN_INLINE Lookup lookup_of_largest(uint32_t magnitude) {
        const E4M3Steps& steps = kAllSteps[magnitude % kOctave];
        const auto exponent = static_cast<char>(8 * (127 - (magnitude / kOctave)));
        return {
            _mm256_add_epi8(twice(steps.first), _mm256_set1_epi8(exponent)),
            twice(steps.last_of_first),
            _mm256_set1_epi16(static_cast<int16_t>(magnitude - kOctavesOfNormalCodes * kOctave)),
            _mm256_set1_epi16(static_cast<int16_t>(magnitude))};
    }

    static TOKEN_INLINE Lookup lookup_of_scale(float scale) {
        const E4M3Steps steps = e4m3_steps(e4m3_lookup(1.0f / scale));
        return {twice(steps.first),
                twice(steps.last_of_first),
                _mm256_set1_epi16(static_cast<int16_t>(smallest_magnitude(scale))),
                _mm256_set1_epi16(static_cast<int16_t>(largest_magnitude(scale)))};
    }

    static TOKEN_INLINE bool encode(const Words& words, const Lookup& lookup, float, uint8_t* out) {
        const __m256i is_outside = _mm256_or_si256(_mm256_cmpgt_epi16(lookup.smallest, words.least),
                                                   _mm256_cmpgt_epi16(words.most, lookup.largest));
        if (!_mm256_testz_si256(is_outside, is_outside)) {
            return false;
        }
        for (int i = 0; i < kVectors; i += 2) {
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i * Vec::kLanes),
                                normal_codes(words.bits[i], words.bits[i + 1], lookup));
        }
        return true;
    }

  private:
    // Of 32 elements. A word holds sign, 8 bits of exponent, 7 of mantissa. Bytes are in the order
    // that packing leaves them in until the end.
    static TOKEN_INLINE __m256i normal_codes(__m256i first, __m256i second, const Lookup& lookup) {
        const __m256i mantissa = packed(first, second, _mm256_set1_epi16(kMantissas - 1));
        const __m256i step =
            _mm256_and_si256(_mm256_srli_epi16(mantissa, 3), _mm256_set1_epi8(kSteps - 1));
        const __m256i is_one_more = _mm256_cmpgt_epi8(
            mantissa, _mm256_shuffle_epi8(lookup.last_of_first, step));  // 0 or -1
        const __m256i looked_up =
            _mm256_sub_epi8(_mm256_shuffle_epi8(lookup.first, step), is_one_more);
        const __m256i middle = packed(
            _mm256_srli_epi16(first, 4), _mm256_srli_epi16(second, 4), _mm256_set1_epi16(0xff));
        const __m256i sign = _mm256_set1_epi8(static_cast<char>(0x80));
        // Saturating, packing keeps the sign of a word.
        const __m256i codes =
            _mm256_or_si256(_mm256_andnot_si256(sign, _mm256_add_epi8(middle, looked_up)),
                            _mm256_and_si256(sign, _mm256_packs_epi16(first, second)));
        constexpr int kHalvesApart = 0xd8;  // as packing in halves of a register leaves them
        return _mm256_permute4x64_epi64(codes, kHalvesApart);
    }

    // The masked words of both, as bytes.
    static TOKEN_INLINE __m256i packed(__m256i first, __m256i second, __m256i mask) {
        return _mm256_packus_epi16(_mm256_and_si256(first, mask), _mm256_and_si256(second, mask));
    }

    static TOKEN_INLINE __m256i twice(const std::array<uint8_t, kSteps>& bytes) {
        return _mm256_broadcastsi128_si256(
            _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes.data())));
    }

    static constexpr std::array<E4M3Steps, kMantissas> kAllSteps = e4m3_all_steps(Float8E4M3::kMax);
};

}  // namespace token::norm
