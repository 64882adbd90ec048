// A normed row, in registers, to 8-bit codes with scales. The rules are those of
// token/norm/quantize_row.hpp: code = round(value * (1 / scale)) of the value as the element type
// stores it; a dynamic scale is the largest magnitude / the largest code, or 1 where that is below
// the smallest normal number. Rows of whole units only.
#pragma once

#include "elements.cuh"
#include "row_total.cuh"
#include "token/common/host_device.hpp"
#include "token/ptx/convert.hpp"

namespace token::weave::cuda {

inline constexpr int kUnitsPerSmallGroup = 16;  // 128 elements: a half warp

TOKEN_DEVICE float scale_of(uint32_t largest_bits, Quantized format) {
    // NaN is above infinity, and every NaN gives one.
    const float largest = __uint_as_float(largest_bits > 0x7f800000u ? 0x7fc00000u : largest_bits);
    const float scale = largest / (format == Quantized::kInt8 ? 127.0f : 448.0f);
    return scale < 0x1p-126f ? 1.0f : scale;
}

TOKEN_DEVICE ptx::Vec8B encode(const Floats& values, float inverse_scale, Quantized format) {
    ptx::Vec8B codes{};
#pragma unroll
    for (int i = 0; i < kUnitElements / 2; ++i) {
        const float low = values.value[2 * i] * inverse_scale;
        const float high = values.value[2 * i + 1] * inverse_scale;
        const uint32_t pair =
            format == Quantized::kInt8
                ? (static_cast<uint32_t>(ptx::s8_from_f32_rni_sat(low)) & 0xffu) |
                      (static_cast<uint32_t>(ptx::s8_from_f32_rni_sat(high)) & 0xffu) << 8
                : ptx::e4m3x2_from_f32x2_rn_satfinite(low, high);
        codes.word[i / 2] |= pair << (i % 2 * 16);
    }
    return codes;
}

// store(region, offset_bytes, bytes) puts them where the results of the row belong.
template <class Element, class Store>
TOKEN_DEVICE void quantize_row(const ReductionParams& params,
                               int64_t row,
                               const LaneUnits& units,
                               const RowGroup& group,
                               RowTotal& total,
                               Floats (&values)[kUnitsPerLane],
                               const Store& store) {
    uint32_t largest[kUnitsPerLane];
#pragma unroll
    for (int i = 0; i < kUnitsPerLane; ++i) {
        values[i] = unpack<Element>(pack<Element>(values[i]));
        largest[i] = 0;
#pragma unroll
        for (int j = 0; j < kUnitElements; ++j) {
            largest[i] =
                RowTotal::larger(largest[i], __float_as_uint(values[i].value[j]) & 0x7fffffffu);
        }
    }
    const bool is_per_row = params.group_units >= params.vectors;
    float scale_of_row = 0.0f;
    if (is_per_row) {
        uint32_t of_lane = 0;
#pragma unroll
        for (int i = 0; i < kUnitsPerLane; ++i) {
            of_lane = RowTotal::larger(of_lane, largest[i]);
        }
        scale_of_row = scale_of(total.largest(of_lane), params.quantized);
        if (units.first == 0) {
            store(params.scales, row * 4, __float_as_uint(scale_of_row));
        }
    }
#pragma unroll
    for (int i = 0; i < kUnitsPerLane; ++i) {
        float inverse = params.inverse_scale;
        if (is_per_row) {
            inverse = 1.0f / scale_of_row;
        } else if (params.group_units == kUnitsPerSmallGroup) {
            uint32_t of_group = largest[i];
#pragma unroll
            for (int distance = kUnitsPerSmallGroup / 2; distance > 0; distance /= 2) {
                of_group =
                    RowTotal::larger(of_group, __shfl_xor_sync(kAllLanes, of_group, distance));
            }
            const float scale = scale_of(of_group, params.quantized);
            inverse = 1.0f / scale;
            if (group.lane % kUnitsPerSmallGroup == 0 && units.unit(i) < params.vectors) {
                const int64_t column = units.unit(i) / kUnitsPerSmallGroup;
                store(params.scales,
                      (row * params.scales_per_row + column) * 4,
                      __float_as_uint(scale));
            }
        }
        const ptx::Vec8B codes = encode(values[i], inverse, params.quantized);
        if (units.unit(i) < params.vectors) {
            store(
                params.codes, row * params.hidden + int64_t{kUnitElements} * units.unit(i), codes);
        }
    }
}

}  // namespace token::weave::cuda
