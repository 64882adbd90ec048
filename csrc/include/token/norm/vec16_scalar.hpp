// Sixteen float lanes in plain C++: the body every CPU can run, and the definition of what the wide
// bodies must compute, bit for bit.
#pragma once

#include "token/common/host_device.hpp"
#include "token/norm/lanes.hpp"

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace token::norm {

struct Vec16Scalar {
    static constexpr int kLanes = 16;
    float lane[kLanes];

    struct Bf16x32 {
        uint16_t lane[kPairLanes];
    };
    using Pair = norm::Pair<Vec16Scalar>;

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
    static TOKEN_INLINE Bf16x32 load_bf16(const uint16_t* from, int n) {
        Bf16x32 packed{};
        for (int i = 0; i < n; ++i) {
            packed.lane[i] = from[i];
        }
        return packed;
    }
    // To even and odd elements.
    static TOKEN_INLINE Pair widen(const Bf16x32& from) {
        Pair pair;
        for (int i = 0; i < kLanes; ++i) {
            pair.first.lane[i] = widen_lane(from.lane[2 * i]);
            pair.second.lane[i] = widen_lane(from.lane[2 * i + 1]);
        }
        return pair;
    }
    // From even and odd elements. Rounds to nearest even, denormals kept, every NaN as 0x7fc0 (as
    // torch does).
    static TOKEN_INLINE Bf16x32 narrow(const Pair& from) {
        Bf16x32 packed;
        for (int i = 0; i < kLanes; ++i) {
            packed.lane[2 * i] = round_lane(from.first.lane[i]);
            packed.lane[2 * i + 1] = round_lane(from.second.lane[i]);
        }
        return packed;
    }
    static TOKEN_INLINE Pair to_even_odd(const Pair& linear) {
        Pair pair;
        for (int i = 0; i < kLanes; ++i) {
            const Vec16Scalar& half = i < kLanes / 2 ? linear.first : linear.second;
            const int at = 2 * (i % (kLanes / 2));
            pair.first.lane[i] = half.lane[at];
            pair.second.lane[i] = half.lane[at + 1];
        }
        return pair;
    }
    static TOKEN_INLINE Pair to_linear(const Pair& even_odd) {
        Pair pair;
        for (int i = 0; i < kLanes; ++i) {
            Vec16Scalar& half = i < kLanes / 2 ? pair.first : pair.second;
            const int at = 2 * (i % (kLanes / 2));
            half.lane[at] = even_odd.first.lane[i];
            half.lane[at + 1] = even_odd.second.lane[i];
        }
        return pair;
    }

    // Streaming stores go around the cache where the CPU can. This body has only the plain ones.
    static constexpr int kStreamAlignment = 1;
    TOKEN_INLINE void store_streaming(float* to) const { store(to, kLanes); }
    static TOKEN_INLINE void store_bf16_streaming(uint16_t* to, const Bf16x32& from) {
        store_bf16(to, kPairLanes, from);
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
    static TOKEN_INLINE void store_bf16(uint16_t* to, int n, const Bf16x32& from) {
        for (int i = 0; i < n; ++i) {
            to[i] = from.lane[i];
        }
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
    static TOKEN_INLINE float widen_lane(uint16_t value) {
        const uint32_t bits = uint32_t{value} << 16;
        float widened;
        std::memcpy(&widened, &bits, sizeof(widened));
        return widened;
    }
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
