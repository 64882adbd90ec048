// What nvcc knows without an include, for kernels compiled by g++. Included by force (-include).
#pragma once

#include "device.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace token::emulator::device {

// threadIdx and its like are objects, not macros: other code has members of these names.
template <Index (*kIndex)()>
struct BuiltinIndex {
    template <uint32_t Index::* kMember>
    struct Coordinate {
        operator uint32_t() const { return kIndex().*kMember; }
    };
    Coordinate<&Index::x> x;
    Coordinate<&Index::y> y;
    Coordinate<&Index::z> z;
};

}  // namespace token::emulator::device

inline constexpr token::emulator::device::BuiltinIndex<token::emulator::device::thread_index>
    threadIdx{};
inline constexpr token::emulator::device::BuiltinIndex<token::emulator::device::block_index>
    blockIdx{};
inline constexpr token::emulator::device::BuiltinIndex<token::emulator::device::block_size>
    blockDim{};
inline constexpr token::emulator::device::BuiltinIndex<token::emulator::device::grid_size>
    gridDim{};

#define __global__
#define __device__
#define __host__
#define __shared__ thread_local  // see static_shared.hpp
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(bytes) alignas(bytes)

using std::max;
using std::min;

inline constexpr int warpSize = 32;

inline void __syncthreads() {
    token::emulator::device::block_barrier(0, 0);
}
inline void __syncwarp(uint32_t mask = 0xffffffffu) {
    token::emulator::device::warp_barrier(mask);
}

template <class T>
inline T __shfl_sync(uint32_t mask, T value, int source_lane, int width = 32) {
    static_assert(sizeof(T) <= sizeof(uint64_t));
    const int lane = token::emulator::device::lane();
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof(value));
    bits = token::emulator::device::from_lane(
        mask, bits, (lane & ~(width - 1)) | (source_lane & (width - 1)));
    std::memcpy(&value, &bits, sizeof(value));
    return value;
}
template <class T>
inline T __shfl_xor_sync(uint32_t mask, T value, int lane_mask, int width = 32) {
    const int source = token::emulator::device::lane() ^ lane_mask;
    const int last_of_group = token::emulator::device::lane() | (width - 1);
    return __shfl_sync(mask, value, source > last_of_group ? source ^ lane_mask : source);
}
template <class T>
inline T __shfl_down_sync(uint32_t mask, T value, int delta, int width = 32) {
    const int lane = token::emulator::device::lane();
    const bool is_inside = (lane & (width - 1)) + delta < width;
    return __shfl_sync(mask, value, is_inside ? lane + delta : lane);
}
inline uint32_t __ballot_sync(uint32_t mask, int value) {
    return token::emulator::device::ballot(mask, value != 0);
}
inline int __any_sync(uint32_t mask, int value) {
    return __ballot_sync(mask, value) != 0;
}
inline int __all_sync(uint32_t mask, int value) {
    return __ballot_sync(mask, value) == mask;
}

inline float __uint_as_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
}
inline uint32_t __float_as_uint(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    return bits;
}
inline int __float_as_int(float value) {
    return static_cast<int>(__float_as_uint(value));
}
inline float __int_as_float(int bits) {
    return __uint_as_float(static_cast<uint32_t>(bits));
}
inline float rsqrtf(float value) {
    return 1.0f / std::sqrt(value);
}
// The fast forms have a larger error on a GPU than here.
inline float __expf(float value) {
    return std::exp(value);
}
inline float __logf(float value) {
    return std::log(value);
}
inline float __fdividef(float numerator, float denominator) {
    return numerator / denominator;
}
inline float __fmaf_rn(float a, float b, float c) {
    return std::fma(a, b, c);
}
inline void __trap() {
    token::emulator::device::trap();
}
