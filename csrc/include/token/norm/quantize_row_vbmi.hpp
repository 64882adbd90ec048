// Rows of bf16 to e4m3 with the byte permutations of AVX512_VBMI: 32 codes in seven instructions,
// by the tables of e4m3_lookup.hpp. The same bits as quantize_row.hpp, which does what is not here:
// other types, codes that are no normal numbers, scales near the ends of fp32.
#pragma once

#include "token/norm/e4m3_lookup.hpp"
#include "token/norm/quantize_row.hpp"
#include "token/norm/vec16_avx512.hpp"

#include <array>
#include <bit>
#include <cstdint>
#include <immintrin.h>

namespace token::norm {

class RowQuantizerVbmi {
  public:
    explicit RowQuantizerVbmi(const QuantizeArgs& args)
        : args_(args), row_(static_cast<const uint16_t*>(args.row)) {}

    void run() const {
        if (args_.group_elements == 0) {
            run_static();
        } else if (args_.group_elements == kBlock) {
            run_groups();
        } else {
            Generic(args_).for_each_group([&](int64_t start, int64_t count, float* scale) {
                const uint32_t largest = Generic(args_).largest_magnitude(start, count) >> 16;
                *scale = Generic::scale_of(largest << 16);
                if (is_usual(largest)) {
                    const Lookup lookup = lookup_of_largest(largest);
                    encode(start, count, lookup, *scale);
                } else {
                    Generic(args_).encode_any(start, count, *scale);
                }
            });
        }
    }

  private:
    using Vec = Vec16Avx512<NarrowByInstruction>;
    using Generic = RowQuantizer<Vec, BFloat16, Float8E4M3>;
    // Elements that are looked at together, and a group of the usual size.
    static constexpr int kBlock = 128, kVectors = kBlock / kPairLanes;
    // Magnitudes are upper halves of fp32, 128 of them between a value and its double.
    static constexpr uint32_t kOctave = 128;

    struct Lookup {
        __m512i low, high;  // of mantissas 0..63 and 64..127
        // Magnitudes, as words: normal codes from `smallest` on, no lookup above `largest`.
        __m512i smallest, largest;
    };

    // The largest magnitude is 448 scales, the smallest normal code stands for 2^-6 of them, which
    // is 14.8 octaves below.
    static constexpr uint32_t kOctavesOfNormalCodes = 14;
    static constexpr uint32_t kUsualFrom = (127 - 63) * kOctave, kUsualTo = (127 + 63) * kOctave;
    static TOKEN_INLINE bool is_usual(uint32_t magnitude) {
        return magnitude - kUsualFrom < kUsualTo - kUsualFrom;
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

    void run_static() const {
        const float scale = args_.scale;
        if (!(scale >= 0x1p-63f && scale <= 0x1p63f)) {
            Generic(args_).encode_any(0, args_.hidden, scale);
            return;
        }
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
        // Up to rounding: the neighbours of a product of 2^-6 and of 448 still have these codes.
        const uint32_t smallest = (std::bit_cast<uint32_t>(scale * 0x1p-6f) >> 16) + 1;
        const uint32_t largest = std::bit_cast<uint32_t>(scale * Float8E4M3::kMax) >> 16;
        const Lookup lookup{_mm512_load_si512(table),
                            _mm512_load_si512(table + 64),
                            _mm512_set1_epi16(static_cast<int16_t>(smallest)),
                            _mm512_set1_epi16(static_cast<int16_t>(largest))};
        encode(0, args_.hidden, lookup, scale);
    }

    void run_groups() const {
        int64_t start = 0;
        float* scale = args_.scales;
        for (; start + kBlock <= args_.hidden; start += kBlock, ++scale) {
            __m512i bits[kVectors], magnitude[kVectors];
            load(start, bits, magnitude);
            const __m512i most = _mm512_max_epi16(_mm512_max_epi16(magnitude[0], magnitude[1]),
                                                  _mm512_max_epi16(magnitude[2], magnitude[3]));
            const uint32_t largest = Vec::max_lane(Vec::Bf16x32{most});
            *scale = Generic::scale_of(largest << 16);
            if (__builtin_expect(is_usual(largest), 1)) {
                const Lookup lookup = lookup_of_largest(largest);
                encode_block(start, bits, magnitude, lookup, *scale);
            } else {
                Generic(args_).encode_any(start, kBlock, *scale);
            }
        }
        if (start < args_.hidden) {
            const int64_t count = args_.hidden - start;
            *scale = Generic::scale_of(Generic(args_).largest_magnitude(start, count));
            Generic(args_).encode_any(start, count, *scale);
        }
    }

    void encode(int64_t start, int64_t count, const Lookup& lookup, float scale) const {
        const int64_t stop = start + count;
        for (; start + kBlock <= stop; start += kBlock) {
            __m512i bits[kVectors], magnitude[kVectors];
            load(start, bits, magnitude);
            encode_block(start, bits, magnitude, lookup, scale);
        }
        if (start < stop) {
            Generic(args_).encode_any(start, stop - start, scale);
        }
    }

    TOKEN_INLINE void load(int64_t start,
                           __m512i (&bits)[kVectors],
                           __m512i (&magnitude)[kVectors]) const {
        for (int i = 0; i < kVectors; ++i) {
            bits[i] = _mm512_loadu_si512(row_ + start + i * kPairLanes);
            magnitude[i] = _mm512_and_si512(bits[i], _mm512_set1_epi16(0x7fff));
        }
    }

    TOKEN_INLINE void encode_block(int64_t start,
                                   const __m512i (&bits)[kVectors],
                                   const __m512i (&magnitude)[kVectors],
                                   const Lookup& lookup,
                                   float scale) const {
        const __m512i most = _mm512_max_epi16(_mm512_max_epi16(magnitude[0], magnitude[1]),
                                              _mm512_max_epi16(magnitude[2], magnitude[3]));
        if (__builtin_expect(_mm512_cmpgt_epi16_mask(most, lookup.largest) != 0, 0)) {
            Generic(args_).encode_any(start, kBlock, scale);
            return;
        }
        for (int i = 0; i < kVectors; i += 2) {
            _mm512_storeu_si512(args_.out + start + i * kPairLanes,
                                normal_codes(bits[i], bits[i + 1], lookup));
        }
        const __m512i least = _mm512_min_epi16(_mm512_min_epi16(magnitude[0], magnitude[1]),
                                               _mm512_min_epi16(magnitude[2], magnitude[3]));
        if (_mm512_cmplt_epi16_mask(least, lookup.smallest) != 0) {
            const __m512 inverse = _mm512_set1_ps(1.0f / scale);
            for (int i = 0; i < kVectors; ++i) {
                _mm256_mask_storeu_epi8(
                    args_.out + start + i * kPairLanes,
                    _mm512_cmplt_epi16_mask(magnitude[i], lookup.smallest),
                    _mm512_cvtepi16_epi8(small_codes(bits[i], magnitude[i], inverse)));
            }
        }
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

    const QuantizeArgs args_;
    const uint16_t* row_;
};

inline void quantize_row_vbmi(const QuantizeArgs& args) {
    if (args.type == DType::kBFloat16 && args.format == QuantizedFormat::kFloat8E4M3) {
        RowQuantizerVbmi(args).run();
    } else {
        quantize_row<Vec16Avx512<NarrowByInstruction>>(args);
    }
}

}  // namespace token::norm
