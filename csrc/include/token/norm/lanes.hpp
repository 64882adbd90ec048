// How 32 consecutive elements of a row lie in two vectors of 16 lanes, how a row is walked in such
// pairs, and the one order in which lanes are added up.
#pragma once

#include "token/common/host_device.hpp"

#include <cstdint>

namespace token::norm {

// kLinear: elements 0..15 and 16..31. kEvenOdd: elements 0, 2, .. 30 and 1, 3, .. 31, which is how
// one 512-bit register of bf16 falls apart with a shift and a mask, without a permutation. A kernel
// keeps one order throughout, since which elements are summed into which lane decides the bits.
enum class LaneOrder { kLinear, kEvenOdd };

inline constexpr int kPairLanes = 32;
// Sums over a row are kept in two pairs, element i in pair i / 32 mod 2.
inline constexpr int kAccumulators = 2;

template <class Vec>
struct Pair {
    Vec first, second;

    static TOKEN_INLINE Pair broadcast(float value) {
        return {Vec::broadcast(value), Vec::broadcast(value)};
    }
    friend TOKEN_INLINE Pair operator+(const Pair& a, const Pair& b) {
        return {a.first + b.first, a.second + b.second};
    }
    friend TOKEN_INLINE Pair operator-(const Pair& a, const Pair& b) {
        return {a.first - b.first, a.second - b.second};
    }
    friend TOKEN_INLINE Pair operator*(const Pair& a, const Pair& b) {
        return {a.first * b.first, a.second * b.second};
    }
};

template <class Vec, LaneOrder from, LaneOrder to>
TOKEN_INLINE Pair<Vec> reorder(const Pair<Vec>& pair) {
    if constexpr (from == to) {
        return pair;
    } else if constexpr (to == LaneOrder::kEvenOdd) {
        return Vec::to_even_odd(pair);
    } else {
        return Vec::to_linear(pair);
    }
}

// body(index, elements, index / 32 mod 2) over the row; elements is 32 but at the end.
template <class Body>
TOKEN_INLINE void for_each_pair(int64_t hidden, const Body& body) {
    int64_t index = 0;
    for (; index + 2 * kPairLanes <= hidden; index += 2 * kPairLanes) {
        body(index, kPairLanes, 0);
        body(index + kPairLanes, kPairLanes, 1);
    }
    for (int part = 0; index < hidden; index += kPairLanes, ++part) {
        const int64_t left = hidden - index;
        body(index, left < kPairLanes ? static_cast<int>(left) : kPairLanes, part);
    }
}

// Lanes folded in halves: 16 in fp32, then 8, 4, 2, 1 in double.
template <class Vec>
TOKEN_INLINE double fold(const Pair<Vec> (&accumulators)[kAccumulators]) {
    const Pair<Vec> both = accumulators[0] + accumulators[1];
    float lane[Vec::kLanes];
    (both.first + both.second).store(lane, Vec::kLanes);
    double sum[Vec::kLanes / 2];
    for (int i = 0; i < Vec::kLanes / 2; ++i) {
        sum[i] = static_cast<double>(lane[i]) + lane[i + Vec::kLanes / 2];
    }
    for (int width = Vec::kLanes / 4; width > 0; width /= 2) {
        for (int i = 0; i < width; ++i) {
            sum[i] = sum[i] + sum[i + width];
        }
    }
    return sum[0];
}

}  // namespace token::norm
