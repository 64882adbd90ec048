// Sixteen float lanes in one AVX-512 register; the same bits as Vec16Scalar. Included only by files
// compiled for AVX-512 (F, BW, DQ, VL).
#pragma once

#include "token/common/host_device.hpp"

#include <cstddef>
#include <cstdint>
#include <immintrin.h>

namespace token::norm {

// Rounds to bf16 with integer arithmetic: runs on every AVX-512 CPU.
struct NarrowByIntegers {
    static TOKEN_INLINE __m256i narrow(__m512 value) {
        const __m512i bits = _mm512_castps_si512(value);
        const __m512i lowest_kept =
            _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
        const __m512i rounded =
            _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), lowest_kept);
        const __mmask16 is_nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
        return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(
            _mm512_srli_epi32(rounded, 16), is_nan, _mm512_set1_epi32(0x7fc0)));
    }
};

#if defined(__AVX512BF16__)
// Rounds with vcvtneps2bf16 (AVX512_BF16), which flushes denormals to zero and keeps NaN payloads:
// the numbers contract wants neither, so vectors that hold such lanes, hardly ever, take the other
// way.
struct NarrowByInstruction {
    static TOKEN_INLINE __m256i narrow(__m512 value) {
        constexpr int kQuietNan = 0x01, kDenormal = 0x20, kSignallingNan = 0x80;
        if (__builtin_expect(
                _mm512_fpclass_ps_mask(value, kQuietNan | kDenormal | kSignallingNan) != 0, 0)) {
            return NarrowByIntegers::narrow(value);
        }
        return (__m256i)_mm512_cvtneps_pbh(value);
    }
};
#endif

template <class Narrowing>
struct Vec16Avx512 {
    static constexpr int kLanes = 16;
    __m512 reg;

    struct Half {  // bf16
        __m256i reg;
    };

    static TOKEN_INLINE Vec16Avx512 broadcast(float value) { return {_mm512_set1_ps(value)}; }

    static TOKEN_INLINE Vec16Avx512 load(const float* from, int n) {
        return {n == kLanes ? _mm512_loadu_ps(from) : _mm512_maskz_loadu_ps(mask(n), from)};
    }
    static TOKEN_INLINE Half load_half(const uint16_t* from, int n) {
        return {n == kLanes ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))
                            : _mm256_maskz_loadu_epi16(mask(n), from)};
    }
    static TOKEN_INLINE Vec16Avx512 widen(const Half& half) {
        return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half.reg), 16))};
    }

    // Streaming stores write whole lines to memory without reading them first and leave the cache
    // to others. `to` is a multiple of kStreamAlignment.
    static constexpr int kStreamAlignment = 64;
    TOKEN_INLINE void store_streaming(float* to) const { _mm512_stream_ps(to, reg); }
    static TOKEN_INLINE void store_half_streaming(uint16_t* to, const Half& half) {
        _mm256_stream_si256(reinterpret_cast<__m256i*>(to), half.reg);
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
    static TOKEN_INLINE void store_half(uint16_t* to, int n, const Half& half) {
        if (n == kLanes) {
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), half.reg);
        } else {
            _mm256_mask_storeu_epi16(to, mask(n), half.reg);
        }
    }
    TOKEN_INLINE Half narrow() const { return {Narrowing::narrow(reg)}; }

    friend TOKEN_INLINE Vec16Avx512 operator+(const Vec16Avx512& a, const Vec16Avx512& b) {
        return {_mm512_add_ps(a.reg, b.reg)};
    }
    friend TOKEN_INLINE Vec16Avx512 operator*(const Vec16Avx512& a, const Vec16Avx512& b) {
        return {_mm512_mul_ps(a.reg, b.reg)};
    }

  private:
    static TOKEN_INLINE __mmask16 mask(int n) { return static_cast<__mmask16>((1u << n) - 1); }
};

}  // namespace token::norm
