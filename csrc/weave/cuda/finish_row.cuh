// From the sum over ranks of a row, in registers, to everything that is stored of it: bias,
// residual, norm, result and codes. fp32 throughout, each result rounded once. What is rare is a
// branch that all lanes of a row take the same way.
#pragma once

#include "quantize_units.cuh"
#include "reach.cuh"
#include "row_total.cuh"
#include "token/common/host_device.hpp"

namespace token::weave::cuda {

template <class Reach, class Element, bool kIsAligned>
class RowFinisher {
  public:
    TOKEN_DEVICE RowFinisher(const ReductionParams& params,
                             int rank,
                             int64_t own_start,
                             LaneUnits& units,
                             const RowGroup& group,
                             TotalShared& shared)
        : params_(params),
          rank_(rank),
          own_start_(own_start),
          units_(units),
          group_(group),
          total_(group, shared) {}

    // Starts the loads that the row will need first.
    TOKEN_DEVICE void ask(int64_t row) {
        if constexpr (Element::kLoadsResidualAhead) {
            if (params_.residual.by_rank[rank_] != nullptr && !params_.is_residual_fp32) {
                const void* from = residual_row(row);
#pragma unroll
                for (int i = 0; i < kUnitsPerLane; ++i) {
                    residual_[i] = load<OwnLoads, Element>(from, i);
                }
            }
        }
    }

    TOKEN_DEVICE void add_bias_and_residual(int64_t row, Floats (&sums)[kUnitsPerLane]) const {
        if (params_.bias != nullptr) {
#pragma unroll
            for (int i = 0; i < kUnitsPerLane; ++i) {
                add(sums[i], unpack<Element>(load<ConstantLoads, Element>(params_.bias, i)));
            }
        }
        if (params_.residual.by_rank[rank_] == nullptr) {
            return;
        }
        if (params_.is_residual_fp32) {
#pragma unroll
            for (int i = 0; i < kUnitsPerLane; ++i) {
                add(sums[i], unpack<Float32>(load<OwnLoads, Float32>(residual_row(row), i)));
            }
        } else {
#pragma unroll
            for (int i = 0; i < kUnitsPerLane; ++i) {
                if constexpr (Element::kLoadsResidualAhead) {
                    add(sums[i], unpack<Element>(residual_[i]));
                } else {
                    add(sums[i], unpack<Element>(load<OwnLoads, Element>(residual_row(row), i)));
                }
            }
        }
    }

    // Stores what there is of the row; `sums` is used up.
    TOKEN_DEVICE void finish(int64_t row, Floats (&sums)[kUnitsPerLane]) {
        if (params_.residual_out.by_rank[rank_] != nullptr) {
            store_residual(row, sums);
        }
        units_.begin_part();
        if (params_.weight != nullptr) {
            normalize(sums);
        }
        units_.begin_part();
        if (params_.out.by_rank[rank_] != nullptr) {
            store_out(row, sums);
        }
        if constexpr (kIsAligned) {
            if (params_.quantized != Quantized::kNone) {
                units_.begin_part();
                quantize(row, sums);
            }
        }
    }

  private:
    static constexpr int kUnitsAtOnce = Reach::kUnitsAtOnce;

    TOKEN_DEVICE static void add(Floats& sum, const Floats& term) {
#pragma unroll
        for (int j = 0; j < kUnitElements; ++j) {
            sum.value[j] += term.value[j];
        }
    }
    template <class Loads, class Type>
    TOKEN_DEVICE typename Type::Packed load(const void* row, int index) const {
        return load_unit<Loads, Type, kIsAligned>(
            row, units_.unit(index), units_.template count<kIsAligned>(index));
    }

    // Tensors of own rows begin with the first of them.
    TOKEN_DEVICE int64_t out_row(int64_t row) const {
        return params_.is_out_own_rows ? row - own_start_ : row;
    }
    TOKEN_DEVICE int64_t residual_offset(int64_t row) const {
        return (params_.is_residual_own_rows ? row - own_start_ : row) * params_.hidden *
               (params_.is_residual_fp32 ? 4 : Element::kBytes);
    }
    TOKEN_DEVICE const void* residual_row(int64_t row) const {
        return static_cast<const char*>(params_.residual.by_rank[rank_]) + residual_offset(row);
    }

    TOKEN_DEVICE void quantize(int64_t row, Floats (&values)[kUnitsPerLane]) {
        const auto store = [&](const Region& region, int64_t offset_bytes, const auto& value) {
            store_result(region, params_.is_out_own_rows, offset_bytes, value);
        };
        quantize_row<Element>(params_, out_row(row), units_, group_, total_, values, store);
    }

    template <class Bytes>
    TOKEN_DEVICE void store_result(const Region& region,
                                   bool is_own,
                                   int64_t offset_bytes,
                                   const Bytes& value) const {
        if (is_own) {
            store_own(static_cast<char*>(region.by_rank[rank_]) + offset_bytes, value);
        } else {
            store_to_all<Reach>(region, rank_, params_.group.size, offset_bytes, value);
        }
    }

    template <class Type>
    TOKEN_DEVICE void store_row(const Region& region,
                                bool is_own,
                                int64_t row_offset,
                                const Floats (&values)[kUnitsPerLane]) const {
#pragma unroll
        for (int first = 0; first < kUnitsPerLane; first += kUnitsAtOnce) {
            typename Type::Packed packed[kUnitsAtOnce];
#pragma unroll
            for (int i = 0; i < kUnitsAtOnce; ++i) {
                packed[i] = pack<Type>(values[first + i]);
            }
            if (is_own) {
                store_packed<Type>(first, packed, [&](int64_t offset_bytes, const auto& value) {
                    store_own(static_cast<char*>(region.by_rank[rank_]) + row_offset + offset_bytes,
                              value);
                });
            } else {
                // A rank's address is read once for several units.
                Reach::for_each_copy(region, rank_, params_.group.size, [&](char* base) {
                    store_packed<Type>(first, packed, [&](int64_t offset_bytes, const auto& value) {
                        Reach::store(base + row_offset + offset_bytes, value);
                    });
                });
            }
        }
    }
    template <class Type, class Store>
    TOKEN_DEVICE void store_packed(int first,
                                   const typename Type::Packed (&packed)[kUnitsAtOnce],
                                   const Store& store) const {
#pragma unroll
        for (int i = 0; i < kUnitsAtOnce; ++i) {
            store_unit<Type, kIsAligned>(units_.unit(first + i),
                                         units_.template count<kIsAligned>(first + i),
                                         packed[i],
                                         store);
        }
    }
    TOKEN_DEVICE void store_residual(int64_t row, const Floats (&sums)[kUnitsPerLane]) const {
        const bool is_own = !params_.stores_residual_to_all;
        if (params_.is_residual_fp32) {
            store_row<Float32>(params_.residual_out, is_own, residual_offset(row), sums);
        } else {
            store_row<Element>(params_.residual_out, is_own, residual_offset(row), sums);
        }
    }
    TOKEN_DEVICE void store_out(int64_t row, const Floats (&values)[kUnitsPerLane]) const {
        store_row<Element>(params_.out,
                           params_.is_out_own_rows,
                           out_row(row) * params_.hidden * Element::kBytes,
                           values);
    }

    TOKEN_DEVICE void normalize(Floats (&values)[kUnitsPerLane]) {
        const float inverse_hidden = 1.0f / static_cast<float>(params_.hidden);
        if (params_.is_layer_norm) {
            subtract(total_.sum(own_sum(values)) * inverse_hidden, values);
        }
        const float mean_square = total_.sum(own_squares(values)) * inverse_hidden;
        scale(values, 1.0f / sqrtf(mean_square + params_.eps));
    }
    TOKEN_DEVICE static float own_sum(const Floats (&values)[kUnitsPerLane]) {
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < kUnitsPerLane; ++i) {
#pragma unroll
            for (int j = 0; j < kUnitElements; ++j) {
                sum += values[i].value[j];
            }
        }
        return sum;
    }
    // Elements past the end of the row stay zero: they are in no sum.
    TOKEN_DEVICE void subtract(float mean, Floats (&values)[kUnitsPerLane]) const {
#pragma unroll
        for (int i = 0; i < kUnitsPerLane; ++i) {
            const int count = units_.template count<kIsAligned>(i);
#pragma unroll
            for (int j = 0; j < kUnitElements; ++j) {
                values[i].value[j] -= j < count ? mean : 0.0f;
            }
        }
    }
    TOKEN_DEVICE static float own_squares(const Floats (&values)[kUnitsPerLane]) {
        float squares = 0.0f;
#pragma unroll
        for (int i = 0; i < kUnitsPerLane; ++i) {
#pragma unroll
            for (int j = 0; j < kUnitElements; ++j) {
                squares += values[i].value[j] * values[i].value[j];
            }
        }
        return squares;
    }
    TOKEN_DEVICE void scale(Floats (&values)[kUnitsPerLane], float inverse) const {
#pragma unroll
        for (int i = 0; i < kUnitsPerLane; ++i) {
            const Floats weight = load_weight(params_.weight, i);
#pragma unroll
            for (int j = 0; j < kUnitElements; ++j) {
                values[i].value[j] =
                    values[i].value[j] * inverse * (weight.value[j] + params_.weight_offset);
            }
            if (params_.norm_bias != nullptr) {
                add(values[i], load_weight(params_.norm_bias, i));
            }
        }
    }
    TOKEN_DEVICE Floats load_weight(const void* weight, int index) const {
        if (params_.is_weight_fp32) {
            return unpack<Float32>(load<ConstantLoads, Float32>(weight, index));
        }
        return unpack<Element>(load<ConstantLoads, Element>(weight, index));
    }

    const ReductionParams& params_;
    const int rank_;
    const int64_t own_start_;
    LaneUnits& units_;
    const RowGroup& group_;
    RowTotal total_;
    typename Element::Packed residual_[kUnitsPerLane];
};

}  // namespace token::weave::cuda
