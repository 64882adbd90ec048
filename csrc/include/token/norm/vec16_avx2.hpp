// Sixteen float lanes in two AVX registers; the same bits as Vec16Scalar. Included only by files
// compiled for AVX2 and F16C. FMA is not used: it rounds once where the other bodies round twice.
#pragma once

#include "token/common/host_device.hpp"
#include "token/norm/lanes.hpp"

#include <cstddef>
#include <cstdint>
#include <immintrin.h>

namespace token::norm {

struct Vec16Avx2 {
    static constexpr int kLanes = 16;
    __m256 low, high;

    struct Bf16x32 {
        __m256i low, high;
    };
    struct F16x32 {
        __m256i low, high;
    };
    using Pair = norm::Pair<Vec16Avx2>;

    static TOKEN_INLINE Vec16Avx2 broadcast(float value) {
        return {_mm256_set1_ps(value), _mm256_set1_ps(value)};
    }
    static TOKEN_INLINE Vec16Avx2 load(const float* from, int n) {
        if (n == kLanes) {
            return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)};
        }
        // Masked-out lanes are not read.
        return {_mm256_maskload_ps(from, mask(n)),
                _mm256_maskload_ps(from + (n > 8 ? 8 : 0), mask(n - 8))};
    }
    static TOKEN_INLINE Bf16x32 load_bf16(const uint16_t* from, int n) {
        return load_half<Bf16x32>(from, n);
    }
    static TOKEN_INLINE F16x32 load_f16(const uint16_t* from, int n) {
        return load_half<F16x32>(from, n);
    }
    // To even and odd elements.
    static TOKEN_INLINE Pair widen(const Bf16x32& from) {
        return {{even(from.low), even(from.high)}, {odd(from.low), odd(from.high)}};
    }
    // From even and odd elements.
    static TOKEN_INLINE Bf16x32 narrow_to_bf16(const Pair& from) {
        const Vec16Avx2 &even = from.first, &odd = from.second;
        __m256i even_low = rounded(even.low), even_high = rounded(even.high);
        __m256i odd_low = rounded(odd.low), odd_high = rounded(odd.high);
        if (__builtin_expect(has_nan(from), 0)) {
            even_low = nan_to_quiet(even.low, even_low);
            even_high = nan_to_quiet(even.high, even_high);
            odd_low = nan_to_quiet(odd.low, odd_low);
            odd_high = nan_to_quiet(odd.high, odd_high);
        }
        constexpr int kHighHalves = 0xaa;
        return {_mm256_blend_epi16(_mm256_srli_epi32(even_low, 16), odd_low, kHighHalves),
                _mm256_blend_epi16(_mm256_srli_epi32(even_high, 16), odd_high, kHighHalves)};
    }
    // To and from elements 0..15 and 16..31.
    static TOKEN_INLINE Pair widen(const F16x32& from) {
        return {{_mm256_cvtph_ps(_mm256_castsi256_si128(from.low)),
                 _mm256_cvtph_ps(_mm256_extracti128_si256(from.low, 1))},
                {_mm256_cvtph_ps(_mm256_castsi256_si128(from.high)),
                 _mm256_cvtph_ps(_mm256_extracti128_si256(from.high, 1))}};
    }
    static TOKEN_INLINE F16x32 narrow_to_f16(const Pair& from) {
        Pair value = from;
        if (__builtin_expect(has_nan(from), 0)) {
            for (__m256* part :
                 {&value.first.low, &value.first.high, &value.second.low, &value.second.high}) {
                *part = _mm256_castsi256_ps(nan_to_quiet(*part, _mm256_castps_si256(*part)));
            }
        }
        return {to_f16(value.first), to_f16(value.second)};
    }
    static TOKEN_INLINE Pair to_even_odd(const Pair& linear) {
        return {{every_second<0x88>(linear.first), every_second<0x88>(linear.second)},
                {every_second<0xdd>(linear.first), every_second<0xdd>(linear.second)}};
    }
    static TOKEN_INLINE Pair to_linear(const Pair& even_odd) {
        return {interleaved(even_odd.first.low, even_odd.second.low),
                interleaved(even_odd.first.high, even_odd.second.high)};
    }

    // Streaming stores: see Vec16Avx512.
    static constexpr int kStreamAlignment = 32;
    TOKEN_INLINE void store_streaming(float* to) const {
        _mm256_stream_ps(to, low);
        _mm256_stream_ps(to + 8, high);
    }
    template <class Half>
    static TOKEN_INLINE void store_half_streaming(uint16_t* to, const Half& from) {
        _mm256_stream_si256(reinterpret_cast<__m256i*>(to), from.low);
        _mm256_stream_si256(reinterpret_cast<__m256i*>(to + 16), from.high);
    }
    static TOKEN_INLINE void copy_streaming(void* to, const void* from, size_t num_bytes) {
        auto* target = static_cast<unsigned char*>(to);
        const auto* source = static_cast<const unsigned char*>(from);
        const size_t head = -reinterpret_cast<uintptr_t>(to) % kStreamAlignment;
        size_t done = head < num_bytes ? head : num_bytes;
        __builtin_memcpy(target, source, done);
        for (; done + 32 <= num_bytes; done += 32) {
            _mm256_stream_si256(reinterpret_cast<__m256i*>(target + done),
                                load_bytes(source + done));
        }
        __builtin_memcpy(target + done, source + done, num_bytes - done);
    }
    static TOKEN_INLINE void end_streaming() { _mm_sfence(); }

    TOKEN_INLINE void store(float* to, int n) const {
        if (n == kLanes) {
            _mm256_storeu_ps(to, low);
            _mm256_storeu_ps(to + 8, high);
        } else {
            _mm256_maskstore_ps(to, mask(n), low);
            if (n > 8) {
                _mm256_maskstore_ps(to + 8, mask(n - 8), high);
            }
        }
    }
    template <class Half>
    static TOKEN_INLINE void store_half(uint16_t* to, int n, const Half& from) {
        if (n == kPairLanes) {
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), from.low);
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 16), from.high);
        } else {
            __builtin_memcpy(to, &from, n * sizeof(uint16_t));
        }
    }

    friend TOKEN_INLINE Vec16Avx2 operator+(const Vec16Avx2& a, const Vec16Avx2& b) {
        return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
    }
    friend TOKEN_INLINE Vec16Avx2 operator-(const Vec16Avx2& a, const Vec16Avx2& b) {
        return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)};
    }
    friend TOKEN_INLINE Vec16Avx2 operator*(const Vec16Avx2& a, const Vec16Avx2& b) {
        return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
    }

    static TOKEN_INLINE Bf16x32 max_magnitude(const Bf16x32& largest, const Bf16x32& value) {
        const __m256i absolute = _mm256_set1_epi16(0x7fff);
        return {_mm256_max_epi16(largest.low, _mm256_and_si256(value.low, absolute)),
                _mm256_max_epi16(largest.high, _mm256_and_si256(value.high, absolute))};
    }
    static TOKEN_INLINE uint16_t max_lane(const Bf16x32& value) {
        const __m256i sixteen = _mm256_max_epi16(value.low, value.high);
        const __m128i eight =
            _mm_max_epi16(_mm256_castsi256_si128(sixteen), _mm256_extracti128_si256(sixteen, 1));
        // There is a minimum of eight in one instruction, and no maximum.
        const __m128i all = _mm_set1_epi16(-1);
        return static_cast<uint16_t>(
            ~_mm_extract_epi16(_mm_minpos_epu16(_mm_xor_si128(eight, all)), 0));
    }

    struct Int {
        __m256i low, high;

        static TOKEN_INLINE Int broadcast(uint32_t value) {
            const __m256i all = _mm256_set1_epi32(static_cast<int>(value));
            return {all, all};
        }
        friend TOKEN_INLINE Int operator+(const Int& a, const Int& b) {
            return {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)};
        }
        friend TOKEN_INLINE Int operator-(const Int& a, const Int& b) {
            return {_mm256_sub_epi32(a.low, b.low), _mm256_sub_epi32(a.high, b.high)};
        }
        friend TOKEN_INLINE Int operator&(const Int& a, const Int& b) {
            return {_mm256_and_si256(a.low, b.low), _mm256_and_si256(a.high, b.high)};
        }
        friend TOKEN_INLINE Int operator|(const Int& a, const Int& b) {
            return {_mm256_or_si256(a.low, b.low), _mm256_or_si256(a.high, b.high)};
        }
        template <int count>
        TOKEN_INLINE Int shifted_right() const {
            return {_mm256_srli_epi32(low, count), _mm256_srli_epi32(high, count)};
        }
        static TOKEN_INLINE Int min(const Int& a, const Int& b) {
            return {_mm256_min_epi32(a.low, b.low), _mm256_min_epi32(a.high, b.high)};
        }
        static TOKEN_INLINE Int max(const Int& a, const Int& b) {
            return {_mm256_max_epi32(a.low, b.low), _mm256_max_epi32(a.high, b.high)};
        }
        static TOKEN_INLINE Int where_greater(const Int& a,
                                              const Int& b,
                                              const Int& yes,
                                              const Int& no) {
            return {_mm256_blendv_epi8(no.low, yes.low, _mm256_cmpgt_epi32(a.low, b.low)),
                    _mm256_blendv_epi8(no.high, yes.high, _mm256_cmpgt_epi32(a.high, b.high))};
        }
        static TOKEN_INLINE bool is_any_less(const Int& a, const Int& b) {
            return _mm256_movemask_epi8(_mm256_or_si256(_mm256_cmpgt_epi32(b.low, a.low),
                                                        _mm256_cmpgt_epi32(b.high, a.high))) != 0;
        }
        TOKEN_INLINE uint32_t max_lane() const {
            const __m256i eight = _mm256_max_epi32(low, high);
            __m128i four =
                _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
            four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
            four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0xb1));
            return static_cast<uint32_t>(_mm_cvtsi128_si32(four));
        }
    };
    TOKEN_INLINE Int bits() const { return {_mm256_castps_si256(low), _mm256_castps_si256(high)}; }
    static TOKEN_INLINE Vec16Avx2 from_bits(const Int& bits) {
        return {_mm256_castsi256_ps(bits.low), _mm256_castsi256_ps(bits.high)};
    }
    template <LaneOrder order>
    static TOKEN_INLINE void store_bytes(uint8_t* to, int n, const Int& first, const Int& second) {
        __m256i bytes;
        if constexpr (order == LaneOrder::kEvenOdd) {
            bytes = packed_to_16(_mm256_or_si256(first.low, _mm256_slli_epi32(second.low, 8)),
                                 _mm256_or_si256(first.high, _mm256_slli_epi32(second.high, 8)));
        } else {
            bytes =
                _mm256_permute4x64_epi64(_mm256_packus_epi16(packed_to_16(first.low, first.high),
                                                             packed_to_16(second.low, second.high)),
                                         kHalvesApart);
        }
        if (n == kPairLanes) {
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), bytes);
        } else {
            __builtin_memcpy(to, &bytes, n);
        }
    }

  private:
    // Packing works in 128-bit halves and leaves 0, 2, 1, 3.
    static constexpr int kHalvesApart = 0xd8;

    // The first n lanes of 8; none for n <= 0, all for n >= 8.
    static TOKEN_INLINE __m256i mask(int n) {
        return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    }
    static TOKEN_INLINE __m256i load_bytes(const void* from) {
        return _mm256_loadu_si256(static_cast<const __m256i*>(from));
    }
    // AVX2 has no masked load of 16-bit elements.
    template <class Half>
    static TOKEN_INLINE Half load_half(const uint16_t* from, int n) {
        if (n == kPairLanes) {
            return {load_bytes(from), load_bytes(from + 16)};
        }
        uint16_t padded[kPairLanes] = {};
        __builtin_memcpy(padded, from, n * sizeof(uint16_t));
        return {load_bytes(padded), load_bytes(padded + 16)};
    }
    static TOKEN_INLINE __m256 even(__m256i pairs) {
        return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16));
    }
    static TOKEN_INLINE __m256 odd(__m256i pairs) {
        return _mm256_castsi256_ps(
            _mm256_and_si256(pairs, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
    }
    // The upper half of each lane is the value rounded to bf16.
    static TOKEN_INLINE __m256i rounded(__m256 value) {
        const __m256i bits = _mm256_castps_si256(value);
        const __m256i lowest_kept =
            _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
        return _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), lowest_kept);
    }
    static TOKEN_INLINE bool has_nan(const Pair& value) {
        const __m256 low = _mm256_cmp_ps(value.first.low, value.second.low, _CMP_UNORD_Q);
        const __m256 high = _mm256_cmp_ps(value.first.high, value.second.high, _CMP_UNORD_Q);
        return _mm256_movemask_ps(_mm256_or_ps(low, high)) != 0;
    }
    static TOKEN_INLINE __m256i nan_to_quiet(__m256 value, __m256i bits) {
        return _mm256_blendv_epi8(bits,
                                  _mm256_set1_epi32(0x7fc00000),
                                  _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q)));
    }
    static TOKEN_INLINE __m256i to_f16(const Vec16Avx2& value) {
        constexpr int kRounding = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        return _mm256_set_m128i(_mm256_cvtps_ph(value.high, kRounding),
                                _mm256_cvtps_ph(value.low, kRounding));
    }
    // 0x88: lanes 0, 2, .. 14; 0xdd: lanes 1, 3, .. 15.
    template <int lanes>
    static TOKEN_INLINE __m256 every_second(const Vec16Avx2& value) {
        return _mm256_castpd_ps(_mm256_permute4x64_pd(
            _mm256_castps_pd(_mm256_shuffle_ps(value.low, value.high, lanes)), kHalvesApart));
    }
    static TOKEN_INLINE Vec16Avx2 interleaved(__m256 even, __m256 odd) {
        const __m256 low = _mm256_unpacklo_ps(even, odd), high = _mm256_unpackhi_ps(even, odd);
        return {_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31)};
    }
    static TOKEN_INLINE __m256i packed_to_16(__m256i low, __m256i high) {
        return _mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), kHalvesApart);
    }
};

}  // namespace token::norm
