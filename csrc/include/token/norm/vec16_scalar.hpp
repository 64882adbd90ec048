// Sixteen float lanes in plain C++: the body every CPU can run, and the definition of what the wide
// bodies must compute, bit for bit.
#pragma once

#include "token/common/host_device.hpp"

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace token::norm {

struct Vec16Scalar {
    static constexpr int kLanes = 16;
    float lane[kLanes];

    struct Half {  // bf16
        uint16_t lane[kLanes];
    };

    static TOKEN_INLINE Vec16Scalar broadcast(float value) {
        Vec16Scalar v;
        for (int i = 0; i < kLanes; ++i) {
            v.lane[i] = value;
        }
        return v;
    }

    // The first n lanes from memory, the rest zero. n is 16 except at the end of a row.
    static TOKEN_INLINE Vec16Scalar load(const float* from, int n) {
        Vec16Scalar v = broadcast(0.0f);
        for (int i = 0; i < n; ++i) {
            v.lane[i] = from[i];
        }
        return v;
    }
    static TOKEN_INLINE Half load_half(const uint16_t* from, int n) {
        Half half{};
        for (int i = 0; i < n; ++i) {
            half.lane[i] = from[i];
        }
        return half;
    }
    static TOKEN_INLINE Vec16Scalar widen(const Half& half) {
        Vec16Scalar v;
        for (int i = 0; i < kLanes; ++i) {
            const uint32_t bits = uint32_t{half.lane[i]} << 16;
            std::memcpy(&v.lane[i], &bits, sizeof(bits));
        }
        return v;
    }

    // Streaming stores go around the cache where the CPU can. This body has only the plain ones.
    static constexpr int kStreamAlignment = 1;
    TOKEN_INLINE void store_streaming(float* to) const { store(to, kLanes); }
    static TOKEN_INLINE void store_half_streaming(uint16_t* to, const Half& half) {
        store_half(to, kLanes, half);
    }
    static TOKEN_INLINE void copy_streaming(void* to, const void* from, size_t num_bytes) {
        std::memcpy(to, from, num_bytes);
    }
    static TOKEN_INLINE void end_streaming() {}

    TOKEN_INLINE void store(float* to, int n) const {
        for (int i = 0; i < n; ++i) {
            to[i] = lane[i];
        }
    }
    static TOKEN_INLINE void store_half(uint16_t* to, int n, const Half& half) {
        for (int i = 0; i < n; ++i) {
            to[i] = half.lane[i];
        }
    }
    // Round to nearest even, denormals kept, every NaN as 0x7fc0 (as torch does).
    TOKEN_INLINE Half narrow() const {
        Half half;
        for (int i = 0; i < kLanes; ++i) {
            half.lane[i] = round_lane(lane[i]);
        }
        return half;
    }

    friend TOKEN_INLINE Vec16Scalar operator+(const Vec16Scalar& a, const Vec16Scalar& b) {
        Vec16Scalar v;
        for (int i = 0; i < kLanes; ++i) {
            v.lane[i] = a.lane[i] + b.lane[i];
        }
        return v;
    }
    friend TOKEN_INLINE Vec16Scalar operator*(const Vec16Scalar& a, const Vec16Scalar& b) {
        Vec16Scalar v;
        for (int i = 0; i < kLanes; ++i) {
            v.lane[i] = a.lane[i] * b.lane[i];
        }
        return v;
    }

  private:
    static TOKEN_INLINE uint16_t round_lane(float value) {
        uint32_t bits;
        std::memcpy(&bits, &value, sizeof(bits));
        if ((bits & 0x7fffffffu) > 0x7f800000u) {
            return 0x7fc0;
        }
        return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
    }
};

}  // namespace token::norm
