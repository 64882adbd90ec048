// Sixteen float lanes in plain C++: the body every CPU can run, and the definition of what the wide
// bodies must compute, bit for bit.
#pragma once

#include "token/common/host_device.hpp"
#include "token/norm/half_bits.hpp"
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
    struct F16x32 {
        uint16_t lane[kPairLanes];
    };
    struct Int;
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
        return load_half<Bf16x32>(from, n);
    }
    static TOKEN_INLINE F16x32 load_f16(const uint16_t* from, int n) {
        return load_half<F16x32>(from, n);
    }
    // To even and odd elements.
    static TOKEN_INLINE Pair widen(const Bf16x32& from) {
        Pair pair;
        for (int i = 0; i < kLanes; ++i) {
            pair.first.lane[i] = widen_bf16(from.lane[2 * i]);
            pair.second.lane[i] = widen_bf16(from.lane[2 * i + 1]);
        }
        return pair;
    }
    // To elements 0..15 and 16..31.
    static TOKEN_INLINE Pair widen(const F16x32& from) {
        Pair pair;
        for (int i = 0; i < kLanes; ++i) {
            pair.first.lane[i] = widen_f16(from.lane[i]);
            pair.second.lane[i] = widen_f16(from.lane[kLanes + i]);
        }
        return pair;
    }
    // From even and odd elements. Rounds to nearest even, denormals kept, every NaN as 0x7fc0 (as
    // torch does).
    static TOKEN_INLINE Bf16x32 narrow_to_bf16(const Pair& from) {
        Bf16x32 packed;
        for (int i = 0; i < kLanes; ++i) {
            packed.lane[2 * i] = round_to_bf16(from.first.lane[i]);
            packed.lane[2 * i + 1] = round_to_bf16(from.second.lane[i]);
        }
        return packed;
    }
    // From elements 0..15 and 16..31; every NaN as 0x7e00.
    static TOKEN_INLINE F16x32 narrow_to_f16(const Pair& from) {
        F16x32 packed;
        for (int i = 0; i < kLanes; ++i) {
            packed.lane[i] = round_to_f16(from.first.lane[i]);
            packed.lane[kLanes + i] = round_to_f16(from.second.lane[i]);
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
    template <class Half>
    static TOKEN_INLINE void store_half_streaming(uint16_t* to, const Half& from) {
        store_half(to, kPairLanes, from);
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
    // Bf16x32 or F16x32.
    template <class Half>
    static TOKEN_INLINE void store_half(uint16_t* to, int n, const Half& from) {
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
    friend TOKEN_INLINE Vec16Scalar operator-(const Vec16Scalar& a, const Vec16Scalar& b) {
        Vec16Scalar v;
        for (int i = 0; i < kLanes; ++i) {
            v.lane[i] = a.lane[i] - b.lane[i];
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

    // Of 16-bit elements of either type: the larger of `largest` and the magnitude of `value`.
    static TOKEN_INLINE Bf16x32 max_magnitude(const Bf16x32& largest, const Bf16x32& value) {
        Bf16x32 v;
        for (int i = 0; i < kPairLanes; ++i) {
            const uint16_t magnitude = value.lane[i] & 0x7fff;
            v.lane[i] = magnitude > largest.lane[i] ? magnitude : largest.lane[i];
        }
        return v;
    }
    static TOKEN_INLINE uint16_t max_lane(const Bf16x32& value) {
        uint16_t largest = 0;
        for (int i = 0; i < kPairLanes; ++i) {
            largest = value.lane[i] > largest ? value.lane[i] : largest;
        }
        return largest;
    }

    TOKEN_INLINE Int bits() const;
    static TOKEN_INLINE Vec16Scalar from_bits(const Int& bits);

    // Codes of 0 to 255, one a lane, to bytes in the order of the elements.
    template <LaneOrder order>
    static TOKEN_INLINE void store_bytes(uint8_t* to, int n, const Int& first, const Int& second);

  private:
    template <class Half>
    static TOKEN_INLINE Half load_half(const uint16_t* from, int n) {
        Half packed{};
        for (int i = 0; i < n; ++i) {
            packed.lane[i] = from[i];
        }
        return packed;
    }
};

// The bits of sixteen lanes, and what quantisation does with them.
struct Vec16Scalar::Int {
    uint32_t lane[kLanes];

    static TOKEN_INLINE Int broadcast(uint32_t value) {
        Int v;
        for (int i = 0; i < kLanes; ++i) {
            v.lane[i] = value;
        }
        return v;
    }
    friend TOKEN_INLINE Int operator+(const Int& a, const Int& b) {
        return each(a, b, [](uint32_t x, uint32_t y) { return x + y; });
    }
    friend TOKEN_INLINE Int operator-(const Int& a, const Int& b) {
        return each(a, b, [](uint32_t x, uint32_t y) { return x - y; });
    }
    friend TOKEN_INLINE Int operator&(const Int& a, const Int& b) {
        return each(a, b, [](uint32_t x, uint32_t y) { return x & y; });
    }
    friend TOKEN_INLINE Int operator|(const Int& a, const Int& b) {
        return each(a, b, [](uint32_t x, uint32_t y) { return x | y; });
    }
    template <int count>
    TOKEN_INLINE Int shifted_right() const {
        return each(*this, *this, [](uint32_t x, uint32_t) { return x >> count; });
    }
    // As signed numbers.
    static TOKEN_INLINE Int min(const Int& a, const Int& b) { return where_greater(a, b, b, a); }
    static TOKEN_INLINE Int max(const Int& a, const Int& b) { return where_greater(a, b, a, b); }
    static TOKEN_INLINE Int where_greater(const Int& a,
                                          const Int& b,
                                          const Int& yes,
                                          const Int& no) {
        Int v;
        for (int i = 0; i < kLanes; ++i) {
            const bool is_greater =
                static_cast<int32_t>(a.lane[i]) > static_cast<int32_t>(b.lane[i]);
            v.lane[i] = is_greater ? yes.lane[i] : no.lane[i];
        }
        return v;
    }
    static TOKEN_INLINE bool is_any_less(const Int& a, const Int& b) {
        uint32_t any = 0;
        for (int i = 0; i < kLanes; ++i) {
            any |= static_cast<int32_t>(a.lane[i]) < static_cast<int32_t>(b.lane[i]) ? 1u : 0u;
        }
        return any != 0;
    }
    TOKEN_INLINE uint32_t max_lane() const {
        uint32_t largest = lane[0];
        for (int i = 1; i < kLanes; ++i) {
            largest =
                static_cast<int32_t>(lane[i]) > static_cast<int32_t>(largest) ? lane[i] : largest;
        }
        return largest;
    }

  private:
    template <class Operation>
    static TOKEN_INLINE Int each(const Int& a, const Int& b, const Operation& operation) {
        Int v;
        for (int i = 0; i < kLanes; ++i) {
            v.lane[i] = operation(a.lane[i], b.lane[i]);
        }
        return v;
    }
};

TOKEN_INLINE Vec16Scalar::Int Vec16Scalar::bits() const {
    Int v;
    std::memcpy(&v, this, sizeof(v));
    return v;
}
TOKEN_INLINE Vec16Scalar Vec16Scalar::from_bits(const Int& bits) {
    Vec16Scalar v;
    std::memcpy(&v, &bits, sizeof(v));
    return v;
}
template <LaneOrder order>
TOKEN_INLINE void Vec16Scalar::store_bytes(uint8_t* to,
                                           int n,
                                           const Int& first,
                                           const Int& second) {
    for (int i = 0; i < n; ++i) {
        const bool is_first = order == LaneOrder::kLinear ? i < kLanes : i % 2 == 0;
        const int lane = order == LaneOrder::kLinear ? i % kLanes : i / 2;
        to[i] = static_cast<uint8_t>((is_first ? first : second).lane[lane]);
    }
}

}  // namespace token::norm
