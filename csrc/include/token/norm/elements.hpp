// The element types of a row, 32 elements at a time, each in the lane order that suits it. Packed
// is what is stored: rounded to the type, to nearest even, denormals kept, every NaN as one
// pattern.
#pragma once

#include "token/common/host_device.hpp"
#include "token/norm/lanes.hpp"

#include <cstdint>

namespace token::norm {

struct Float32 {
    static constexpr bool kIsHalf = false;
    static constexpr LaneOrder kOrder = LaneOrder::kLinear;
    template <class Vec>
    using Packed = Pair<Vec>;

    template <class Vec>
    static TOKEN_INLINE Pair<Vec> load(const void* base, int64_t index, int n) {
        const float* from = static_cast<const float*>(base) + index;
        if (n == kPairLanes) {
            return {Vec::load(from, Vec::kLanes), Vec::load(from + Vec::kLanes, Vec::kLanes)};
        }
        return {Vec::load(from, first_lanes<Vec>(n)),
                Vec::load(from + first_lanes<Vec>(n), n - first_lanes<Vec>(n))};
    }
    template <class Vec>
    static TOKEN_INLINE Pair<Vec> pack(const Pair<Vec>& value) {
        return value;
    }
    template <class Vec>
    static TOKEN_INLINE Pair<Vec> unpack(const Pair<Vec>& packed) {
        return packed;
    }
    template <class Vec>
    static TOKEN_INLINE void store(void* base, int64_t index, int n, const Pair<Vec>& packed) {
        float* to = static_cast<float*>(base) + index;
        packed.first.store(to, first_lanes<Vec>(n));
        packed.second.store(to + first_lanes<Vec>(n), n - first_lanes<Vec>(n));
    }
    template <class Vec>
    static TOKEN_INLINE void store_streaming(void* base, int64_t index, const Pair<Vec>& packed) {
        float* to = static_cast<float*>(base) + index;
        packed.first.store_streaming(to);
        packed.second.store_streaming(to + Vec::kLanes);
    }

  private:
    template <class Vec>
    static TOKEN_INLINE int first_lanes(int n) {
        return n < Vec::kLanes ? n : Vec::kLanes;
    }
};

struct BFloat16 {
    static constexpr bool kIsHalf = true;
    static constexpr LaneOrder kOrder = LaneOrder::kEvenOdd;
    template <class Vec>
    using Packed = typename Vec::Bf16x32;

    template <class Vec>
    static TOKEN_INLINE Pair<Vec> load(const void* base, int64_t index, int n) {
        return Vec::widen(Vec::load_bf16(static_cast<const uint16_t*>(base) + index, n));
    }
    template <class Vec>
    static TOKEN_INLINE Packed<Vec> pack(const Pair<Vec>& value) {
        return Vec::narrow_to_bf16(value);
    }
    template <class Vec>
    static TOKEN_INLINE Pair<Vec> unpack(const typename Vec::Bf16x32& packed) {
        return Vec::widen(packed);
    }
    template <class Vec>
    static TOKEN_INLINE void store(void* base,
                                   int64_t index,
                                   int n,
                                   const typename Vec::Bf16x32& packed) {
        Vec::store_half(static_cast<uint16_t*>(base) + index, n, packed);
    }
    template <class Vec>
    static TOKEN_INLINE void store_streaming(void* base,
                                             int64_t index,
                                             const typename Vec::Bf16x32& packed) {
        Vec::store_half_streaming(static_cast<uint16_t*>(base) + index, packed);
    }
};

struct Float16 {
    static constexpr bool kIsHalf = true;
    static constexpr LaneOrder kOrder = LaneOrder::kLinear;
    template <class Vec>
    using Packed = typename Vec::F16x32;

    template <class Vec>
    static TOKEN_INLINE Pair<Vec> load(const void* base, int64_t index, int n) {
        return Vec::widen(Vec::load_f16(static_cast<const uint16_t*>(base) + index, n));
    }
    template <class Vec>
    static TOKEN_INLINE Packed<Vec> pack(const Pair<Vec>& value) {
        return Vec::narrow_to_f16(value);
    }
    template <class Vec>
    static TOKEN_INLINE Pair<Vec> unpack(const typename Vec::F16x32& packed) {
        return Vec::widen(packed);
    }
    template <class Vec>
    static TOKEN_INLINE void store(void* base,
                                   int64_t index,
                                   int n,
                                   const typename Vec::F16x32& packed) {
        Vec::store_half(static_cast<uint16_t*>(base) + index, n, packed);
    }
    template <class Vec>
    static TOKEN_INLINE void store_streaming(void* base,
                                             int64_t index,
                                             const typename Vec::F16x32& packed) {
        Vec::store_half_streaming(static_cast<uint16_t*>(base) + index, packed);
    }
};

// Elements of type T in the lane order of the kernel.
template <class T, class Vec, LaneOrder order>
TOKEN_INLINE Pair<Vec> load_as(const void* base, int64_t index, int n) {
    return reorder<Vec, T::kOrder, order>(T::template load<Vec>(base, index, n));
}

}  // namespace token::norm
