// How 32 consecutive elements of a row lie in two vectors of 16 lanes.
#pragma once

#include "token/common/host_device.hpp"

namespace token::norm {

// kLinear: elements 0..15 and 16..31. kEvenOdd: elements 0, 2, .. 30 and 1, 3, .. 31, which is how
// one 512-bit register of bf16 falls apart with a shift and a mask, without a permutation. A kernel
// keeps one order throughout, since which elements are summed into which lane decides the bits.
enum class LaneOrder { kLinear, kEvenOdd };

inline constexpr int kPairLanes = 32;

template <class Vec>
struct Pair {
    Vec first, second;

    friend TOKEN_INLINE Pair operator+(const Pair& a, const Pair& b) {
        return {a.first + b.first, a.second + b.second};
    }
    friend TOKEN_INLINE Pair operator*(const Pair& a, const Pair& b) {
        return {a.first * b.first, a.second * b.second};
    }
};

}  // namespace token::norm
