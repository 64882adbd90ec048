// Sixteen float lanes in one AVX-512 register; the same bits as Vec16Scalar. Included only by files
// compiled for AVX-512 (F, BW, DQ, VL).
#pragma once

#include "token/common/host_device.hpp"
#include "token/norm/lanes.hpp"

#include <cstddef>
#include <cstdint>
#include <immintrin.h>

namespace token::norm {

// Rounds even and odd elements to bf16 with integer arithmetic: runs on every AVX-512 CPU.
struct NarrowByIntegers {
    static TOKEN_INLINE __m512i narrow(__m512 even, __m512 odd) {
        __m512i even_bits = rounded(even);
        __m512i odd_bits = rounded(odd);
        if (__builtin_expect(_mm512_cmp_ps_mask(even, odd, _CMP_UNORD_Q) != 0, 0)) {
            even_bits = nan_to_quiet(even, even_bits);
            odd_bits = nan_to_quiet(odd, odd_bits);
        }
        constexpr __mmask32 kHighHalves = 0xaaaaaaaa;
        return _mm512_mask_blend_epi16(kHighHalves, _mm512_srli_epi32(even_bits, 16), odd_bits);
    }

  private:
    // The upper half of each lane is the rounded value.
    static TOKEN_INLINE __m512i rounded(__m512 value) {
        const __m512i bits = _mm512_castps_si512(value);
        const __m512i lowest_kept =
            _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
        return _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), lowest_kept);
    }
    static TOKEN_INLINE __m512i nan_to_quiet(__m512 value, __m512i bits) {
        return _mm512_mask_mov_epi32(
            bits, _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc00000));
    }
};

#if defined(__AVX512BF16__)
// Rounds with vcvtne2ps2bf16 (AVX512_BF16), which flushes denormals to zero and keeps NaN payloads:
// the numbers contract wants neither, so vectors that hold such lanes, hardly ever, take the other
// way.
struct NarrowByInstruction {
    static TOKEN_INLINE __m512i narrow(__m512 even, __m512 odd) {
        constexpr int kQuietNan = 0x01, kDenormal = 0x20, kSignallingNan = 0x80;
        constexpr int kSpecial = kQuietNan | kDenormal | kSignallingNan;
        const __mmask16 special =
            _mm512_fpclass_ps_mask(even, kSpecial) | _mm512_fpclass_ps_mask(odd, kSpecial);
        if (__builtin_expect(special != 0, 0)) {
            return NarrowByIntegers::narrow(even, odd);
        }
        return _mm512_permutexvar_epi16(interleave(), (__m512i)_mm512_cvtne2ps_pbh(odd, even));
    }

  private:
    // 0, 16, 1, 17, ..: the even elements come out of the instruction before the odd ones.
    static TOKEN_INLINE __m512i interleave() {
        const __m512i lane = _mm512_cvtepi16_epi32(
            _mm256_setr_epi16(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
        return _mm512_or_si512(
            lane, _mm512_slli_epi32(_mm512_add_epi32(lane, _mm512_set1_epi32(16)), 16));
    }
};
#endif

template <class Narrowing>
struct Vec16Avx512 {
    static constexpr int kLanes = 16;
    __m512 reg;

    struct Bf16x32 {
        __m512i reg;
    };
    struct F16x32 {
        __m256i first, second;
    };
    using Pair = norm::Pair<Vec16Avx512>;

    static TOKEN_INLINE Vec16Avx512 broadcast(float value) { return {_mm512_set1_ps(value)}; }

    static TOKEN_INLINE Vec16Avx512 load(const float* from, int n) {
        return {n == kLanes ? _mm512_loadu_ps(from) : _mm512_maskz_loadu_ps(mask(n), from)};
    }
    static TOKEN_INLINE Bf16x32 load_bf16(const uint16_t* from, int n) {
        return {n == kPairLanes ? _mm512_loadu_si512(from)
                                : _mm512_maskz_loadu_epi16(pair_mask(n), from)};
    }
    static TOKEN_INLINE F16x32 load_f16(const uint16_t* from, int n) {
        const Bf16x32 both = load_bf16(from, n);
        return {_mm512_castsi512_si256(both.reg), _mm512_extracti64x4_epi64(both.reg, 1)};
    }
    // To even and odd elements.
    static TOKEN_INLINE Pair widen(const Bf16x32& from) {
        return {{_mm512_castsi512_ps(_mm512_slli_epi32(from.reg, 16))},
                {_mm512_castsi512_ps(
                    _mm512_and_si512(from.reg, _mm512_set1_epi32(static_cast<int>(0xffff0000u))))}};
    }
    // From even and odd elements.
    static TOKEN_INLINE Bf16x32 narrow_to_bf16(const Pair& from) {
        return {Narrowing::narrow(from.first.reg, from.second.reg)};
    }
    // To and from elements 0..15 and 16..31.
    static TOKEN_INLINE Pair widen(const F16x32& from) {
        return {{_mm512_cvtph_ps(from.first)}, {_mm512_cvtph_ps(from.second)}};
    }
    static TOKEN_INLINE F16x32 narrow_to_f16(const Pair& from) {
        constexpr int kRounding = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        __m512 first = from.first.reg, second = from.second.reg;
        if (__builtin_expect(_mm512_cmp_ps_mask(first, second, _CMP_UNORD_Q) != 0, 0)) {
            first = nan_to_quiet(first);
            second = nan_to_quiet(second);
        }
        return {_mm512_cvtps_ph(first, kRounding), _mm512_cvtps_ph(second, kRounding)};
    }
    static TOKEN_INLINE Pair to_even_odd(const Pair& linear) {
        const __m512i even =
            _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
        const __m512i odd = _mm512_or_si512(even, _mm512_set1_epi32(1));
        return {{_mm512_permutex2var_ps(linear.first.reg, even, linear.second.reg)},
                {_mm512_permutex2var_ps(linear.first.reg, odd, linear.second.reg)}};
    }
    static TOKEN_INLINE Pair to_linear(const Pair& even_odd) {
        const __m512i low =
            _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
        const __m512i high = _mm512_or_si512(low, _mm512_set1_epi32(8));
        return {{_mm512_permutex2var_ps(even_odd.first.reg, low, even_odd.second.reg)},
                {_mm512_permutex2var_ps(even_odd.first.reg, high, even_odd.second.reg)}};
    }

    // Streaming stores write whole lines to memory without reading them first and leave the cache
    // to others. `to` is a multiple of kStreamAlignment.
    static constexpr int kStreamAlignment = 64;
    TOKEN_INLINE void store_streaming(float* to) const { _mm512_stream_ps(to, reg); }
    template <class Half>
    static TOKEN_INLINE void store_half_streaming(uint16_t* to, const Half& from) {
        _mm512_stream_si512(reinterpret_cast<__m512i*>(to), joined(from));
    }
    static TOKEN_INLINE void copy_streaming(void* to, const void* from, size_t num_bytes) {
        auto* target = static_cast<unsigned char*>(to);
        const auto* source = static_cast<const unsigned char*>(from);
        const size_t head = -reinterpret_cast<uintptr_t>(to) % kStreamAlignment;
        size_t done = head < num_bytes ? head : num_bytes;
        __builtin_memcpy(target, source, done);
        for (; done + 64 <= num_bytes; done += 64) {
            _mm512_stream_si512(reinterpret_cast<__m512i*>(target + done),
                                _mm512_loadu_si512(source + done));
        }
        __builtin_memcpy(target + done, source + done, num_bytes - done);
    }
    // Streaming stores are ordered by nothing but this fence: before it no signal may say that the
    // result is there.
    static TOKEN_INLINE void end_streaming() { _mm_sfence(); }

    TOKEN_INLINE void store(float* to, int n) const {
        if (n == kLanes) {
            _mm512_storeu_ps(to, reg);
        } else {
            _mm512_mask_storeu_ps(to, mask(n), reg);
        }
    }
    template <class Half>
    static TOKEN_INLINE void store_half(uint16_t* to, int n, const Half& from) {
        if (n == kPairLanes) {
            _mm512_storeu_si512(to, joined(from));
        } else {
            _mm512_mask_storeu_epi16(to, pair_mask(n), joined(from));
        }
    }

    friend TOKEN_INLINE Vec16Avx512 operator+(const Vec16Avx512& a, const Vec16Avx512& b) {
        return {_mm512_add_ps(a.reg, b.reg)};
    }
    friend TOKEN_INLINE Vec16Avx512 operator-(const Vec16Avx512& a, const Vec16Avx512& b) {
        return {_mm512_sub_ps(a.reg, b.reg)};
    }
    friend TOKEN_INLINE Vec16Avx512 operator*(const Vec16Avx512& a, const Vec16Avx512& b) {
        return {_mm512_mul_ps(a.reg, b.reg)};
    }

    static TOKEN_INLINE Bf16x32 max_magnitude(const Bf16x32& largest, const Bf16x32& value) {
        const __m512i absolute = _mm512_set1_epi16(0x7fff);
        return {_mm512_max_epi16(largest.reg, _mm512_and_si512(value.reg, absolute))};
    }
    static TOKEN_INLINE uint16_t max_lane(const Bf16x32& value) {
        const __m256i sixteen = _mm256_max_epi16(_mm512_castsi512_si256(value.reg),
                                                 _mm512_extracti64x4_epi64(value.reg, 1));
        const __m128i eight =
            _mm_max_epi16(_mm256_castsi256_si128(sixteen), _mm256_extracti128_si256(sixteen, 1));
        // There is a minimum of eight in one instruction, and no maximum.
        const __m128i all = _mm_set1_epi16(-1);
        return static_cast<uint16_t>(
            ~_mm_extract_epi16(_mm_minpos_epu16(_mm_xor_si128(eight, all)), 0));
    }

    struct Int {
        __m512i reg;

        static TOKEN_INLINE Int broadcast(uint32_t value) {
            return {_mm512_set1_epi32(static_cast<int>(value))};
        }
        friend TOKEN_INLINE Int operator+(const Int& a, const Int& b) {
            return {_mm512_add_epi32(a.reg, b.reg)};
        }
        friend TOKEN_INLINE Int operator-(const Int& a, const Int& b) {
            return {_mm512_sub_epi32(a.reg, b.reg)};
        }
        friend TOKEN_INLINE Int operator&(const Int& a, const Int& b) {
            return {_mm512_and_si512(a.reg, b.reg)};
        }
        friend TOKEN_INLINE Int operator|(const Int& a, const Int& b) {
            return {_mm512_or_si512(a.reg, b.reg)};
        }
        template <int count>
        TOKEN_INLINE Int shifted_right() const {
            return {_mm512_srli_epi32(reg, count)};
        }
        static TOKEN_INLINE Int min(const Int& a, const Int& b) {
            return {_mm512_min_epi32(a.reg, b.reg)};
        }
        static TOKEN_INLINE Int max(const Int& a, const Int& b) {
            return {_mm512_max_epi32(a.reg, b.reg)};
        }
        static TOKEN_INLINE Int where_greater(const Int& a,
                                              const Int& b,
                                              const Int& yes,
                                              const Int& no) {
            return {_mm512_mask_mov_epi32(no.reg, _mm512_cmpgt_epi32_mask(a.reg, b.reg), yes.reg)};
        }
        static TOKEN_INLINE bool is_any_less(const Int& a, const Int& b) {
            return _mm512_cmplt_epi32_mask(a.reg, b.reg) != 0;
        }
        TOKEN_INLINE uint32_t max_lane() const {
            return static_cast<uint32_t>(_mm512_reduce_max_epi32(reg));
        }
    };
    TOKEN_INLINE Int bits() const { return {_mm512_castps_si512(reg)}; }
    static TOKEN_INLINE Vec16Avx512 from_bits(const Int& bits) {
        return {_mm512_castsi512_ps(bits.reg)};
    }
    template <LaneOrder order>
    static TOKEN_INLINE void store_bytes(uint8_t* to, int n, const Int& first, const Int& second) {
        __m256i bytes;
        if constexpr (order == LaneOrder::kEvenOdd) {
            bytes =
                _mm512_cvtepi32_epi16(_mm512_or_si512(first.reg, _mm512_slli_epi32(second.reg, 8)));
        } else {
            bytes =
                _mm256_set_m128i(_mm512_cvtepi32_epi8(second.reg), _mm512_cvtepi32_epi8(first.reg));
        }
        if (n == kPairLanes) {
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), bytes);
        } else {
            _mm256_mask_storeu_epi8(to, pair_mask(n), bytes);
        }
    }

  private:
    static TOKEN_INLINE __m512i joined(const Bf16x32& half) { return half.reg; }
    static TOKEN_INLINE __m512i joined(const F16x32& half) {
        return _mm512_inserti64x4(_mm512_castsi256_si512(half.first), half.second, 1);
    }
    static TOKEN_INLINE __m512 nan_to_quiet(__m512 value) {
        return _mm512_mask_mov_ps(value,
                                  _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q),
                                  _mm512_castsi512_ps(_mm512_set1_epi32(0x7fc00000)));
    }
    static TOKEN_INLINE __mmask16 mask(int n) { return static_cast<__mmask16>((1u << n) - 1); }
    static TOKEN_INLINE __mmask32 pair_mask(int n) {
        return static_cast<__mmask32>((uint64_t{1} << n) - 1);
    }
};

}  // namespace token::norm
