// Element types in units of eight: packed as they are stored, and as eight fp32 values. Element is
// the enumeration of params.hpp; the types here are what kernels are compiled for.
#pragma once

#include "rows.cuh"
#include "token/common/host_device.hpp"
#include "token/ptx/convert.hpp"
#include "token/ptx/vector_types.hpp"
#include "token/ptx/vectors.hpp"

namespace token::weave::cuda {

struct Floats {
    float value[kUnitElements];
};

// kRanksAhead: peers' units a lane has asked for and not yet added. kLoadsResidualAhead: whether
// the next row's residual is among what is asked for early. Both are what 128 registers allow.
struct BFloat16 {
    static constexpr int kBytes = 2;
    static constexpr int kRanksAhead = 2;
    static constexpr bool kLoadsResidualAhead = true;
    struct Packed {
        ptx::Vec16B part[1];
    };

    TOKEN_DEVICE static ptx::FloatPair widen(uint32_t word) { return ptx::f32x2_from_bf16x2(word); }
    TOKEN_DEVICE static uint32_t narrow(float low, float high) {
        return ptx::bf16x2_from_f32x2_rn(low, high);
    }
};

struct Float16 {
    static constexpr int kBytes = 2;
    static constexpr int kRanksAhead = 2;
    static constexpr bool kLoadsResidualAhead = true;
    struct Packed {
        ptx::Vec16B part[1];
    };

    TOKEN_DEVICE static ptx::FloatPair widen(uint32_t word) { return ptx::f32x2_from_f16x2(word); }
    TOKEN_DEVICE static uint32_t narrow(float low, float high) {
        return ptx::f16x2_from_f32x2_rn(low, high);
    }
};

struct Float32 {
    static constexpr int kBytes = 4;
    static constexpr int kRanksAhead = 1;
    static constexpr bool kLoadsResidualAhead = false;
    struct Packed {
        ptx::Vec16B part[2];
    };
};

template <class Element>
TOKEN_DEVICE Floats unpack(const typename Element::Packed& packed) {
    Floats floats;
#pragma unroll
    for (int i = 0; i < kUnitElements / 2; ++i) {
        if constexpr (Element::kBytes == 4) {
            floats.value[2 * i] = __uint_as_float(packed.part[i / 2].word[2 * i % 4]);
            floats.value[2 * i + 1] = __uint_as_float(packed.part[i / 2].word[2 * i % 4 + 1]);
        } else {
            const ptx::FloatPair pair = Element::widen(packed.part[0].word[i]);
            floats.value[2 * i] = pair.low;
            floats.value[2 * i + 1] = pair.high;
        }
    }
    return floats;
}

template <class Element>
TOKEN_DEVICE typename Element::Packed pack(const Floats& floats) {
    typename Element::Packed packed;
#pragma unroll
    for (int i = 0; i < kUnitElements / 2; ++i) {
        const float low = floats.value[2 * i], high = floats.value[2 * i + 1];
        if constexpr (Element::kBytes == 4) {
            packed.part[i / 2].word[2 * i % 4] = __float_as_uint(low);
            packed.part[i / 2].word[2 * i % 4 + 1] = __float_as_uint(high);
        } else {
            packed.part[0].word[i] = Element::narrow(low, high);
        }
    }
    return packed;
}

// Where loads go: see token/ptx/vectors.hpp.
struct SharedLoads {
    TOKEN_DEVICE static ptx::Vec16B load_16B(const void* from) {
        return ptx::ld_relaxed_sys_16B(from);
    }
    TOKEN_DEVICE static uint32_t load_4B(const void* from) { return ptx::ld_relaxed_sys_4B(from); }
    TOKEN_DEVICE static uint16_t load_2B(const void* from) { return ptx::ld_relaxed_sys_2B(from); }
};
struct OwnLoads {
    TOKEN_DEVICE static ptx::Vec16B load_16B(const void* from) { return ptx::ld_global_16B(from); }
    TOKEN_DEVICE static uint32_t load_4B(const void* from) { return ptx::ld_global_4B(from); }
    TOKEN_DEVICE static uint16_t load_2B(const void* from) { return ptx::ld_global_2B(from); }
};
struct ConstantLoads {
    TOKEN_DEVICE static ptx::Vec16B load_16B(const void* from) {
        return ptx::ld_global_nc_16B(from);
    }
    TOKEN_DEVICE static uint32_t load_4B(const void* from) { return ptx::ld_global_nc_4B(from); }
    TOKEN_DEVICE static uint16_t load_2B(const void* from) { return ptx::ld_global_nc_2B(from); }
};

// The first `count` elements of a unit, the others zero. Rows of a hidden size that is no multiple
// of a unit start anywhere: then element by element.
template <class Loads, class Element, bool kIsAligned>
TOKEN_DEVICE typename Element::Packed load_unit(const void* row, int unit, int count) {
    const char* from = static_cast<const char*>(row) +
                       static_cast<int64_t>(unit) * kUnitElements * Element::kBytes;
    typename Element::Packed packed{};
    if constexpr (kIsAligned) {
        if (count > 0) {
#pragma unroll
            for (int i = 0; i < kUnitElements * Element::kBytes / 16; ++i) {
                packed.part[i] = Loads::load_16B(from + 16 * i);
            }
        }
    } else {
#pragma unroll
        for (int i = 0; i < kUnitElements; ++i) {
            if (i < count) {
                if constexpr (Element::kBytes == 4) {
                    packed.part[i / 4].word[i % 4] = Loads::load_4B(from + 4 * i);
                } else {
                    packed.part[0].word[i / 2] |= uint32_t{Loads::load_2B(from + 2 * i)}
                                                  << (i % 2 * 16);
                }
            }
        }
    }
    return packed;
}

// store(byte_offset, bytes) is called with what the alignment allows.
template <class Element, bool kIsAligned, class Store>
TOKEN_DEVICE void store_unit(int unit,
                             int count,
                             const typename Element::Packed& packed,
                             const Store& store) {
    const int64_t start = static_cast<int64_t>(unit) * kUnitElements * Element::kBytes;
    if constexpr (kIsAligned) {
        if (count > 0) {
#pragma unroll
            for (int i = 0; i < kUnitElements * Element::kBytes / 16; ++i) {
                store(start + 16 * i, packed.part[i]);
            }
        }
    } else {
#pragma unroll
        for (int i = 0; i < kUnitElements; ++i) {
            if (i < count) {
                if constexpr (Element::kBytes == 4) {
                    store(start + 4 * i, packed.part[i / 4].word[i % 4]);
                } else {
                    store(start + 2 * i,
                          static_cast<uint16_t>(packed.part[0].word[i / 2] >> (i % 2 * 16)));
                }
            }
        }
    }
}

}  // namespace token::weave::cuda
