// One row in every form that row.hpp is not compiled for: partial sums of another type than the
// result, fp32 residuals, LayerNorm, roundings of separate operations. Types are looked up for
// every 32 elements, which costs a few predicted branches and saves hundreds of kernels. Where both
// could do a row, both give the same bits.
#pragma once

#include "token/norm/elements.hpp"
#include "token/norm/row_args.hpp"

#include <cmath>
#include <cstdint>

namespace token::norm {

template <class Vec, LaneOrder order>
class GeneralRowReducer {
  public:
    explicit GeneralRowReducer(const RowArgs& args)
        : args_(args),
          is_drop_in_(args.numerics == Numerics::kDropIn),
          is_streaming_(args.is_streaming &&
                        reinterpret_cast<uintptr_t>(args.out) % Vec::kStreamAlignment == 0) {}

    void sum_only() const {
        for_each_pair(args_.hidden, [&](int64_t index, int n, int) {
            const Lanes sum = reduced(index, n);
            store_out(index, n, sum);
            store_residual(index, n, sum);
        });
    }

    void sum_and_normalize() const {
        const bool is_layer_norm = args_.norm == NormKind::kLayer;
        Lanes totals[kAccumulators] = {Lanes::broadcast(0.0f), Lanes::broadcast(0.0f)};
        for_each_pair(args_.hidden, [&](int64_t index, int n, int part) {
            const Lanes sum = reduced(index, n);
            sum.first.store(args_.scratch + index, Vec::kLanes);
            sum.second.store(args_.scratch + index + Vec::kLanes, Vec::kLanes);
            store_residual(index, n, sum);
            totals[part] = totals[part] + (is_layer_norm ? sum : sum * sum);
        });
        const double mean = fold(totals) / static_cast<double>(args_.hidden);
        if (is_layer_norm) {
            const float center = static_cast<float>(mean);
            normalize(Lanes::broadcast(center), inverse_root(variance(center)));
        } else {
            normalize(Lanes::broadcast(0.0f), inverse_root(mean));
        }
    }

  private:
    using Lanes = Pair<Vec>;

    TOKEN_INLINE Lanes reduced(int64_t index, int n) const {
        const RowTypes& types = args_.types;
        Lanes sum = load(types.input, args_.inputs[0], index, n);
        for (int rank = 1; rank < args_.num_inputs; ++rank) {
            sum = sum + load(types.input, args_.inputs[rank], index, n);
        }
        sum = rounded(types.activation, sum);
        if (args_.bias != nullptr) {
            sum = after_step(sum + load(types.activation, args_.bias, index, n));
        }
        if (args_.residual != nullptr) {
            sum = after_step(sum + load(types.residual, args_.residual, index, n));
        }
        return sum;
    }

    // The mean square of the distances from `center`, from the values in scratch.
    double variance(float center) const {
        fill_scratch_after_row(center);
        const Lanes mean = Lanes::broadcast(center);
        Lanes squares[kAccumulators] = {Lanes::broadcast(0.0f), Lanes::broadcast(0.0f)};
        for_each_pair(args_.hidden, [&](int64_t index, int, int part) {
            const Lanes distance = in_scratch(index) - mean;
            squares[part] = squares[part] + distance * distance;
        });
        return fold(squares) / static_cast<double>(args_.hidden);
    }

    // Lanes past the end of the row are then at no distance from the mean.
    void fill_scratch_after_row(float value) const {
        const int64_t last_pair = args_.hidden / kPairLanes * kPairLanes;
        for (int i = static_cast<int>(args_.hidden - last_pair); i % kPairLanes != 0; ++i) {
            const int lane = order == LaneOrder::kLinear ? i : i / 2 + i % 2 * Vec::kLanes;
            args_.scratch[last_pair + lane] = value;
        }
    }

    // Frameworks take the root in fp32; see row.hpp for why it is double otherwise.
    float inverse_root(double mean_square) const {
        if (is_drop_in_) {
            return 1.0f / std::sqrt(static_cast<float>(mean_square) + args_.eps);
        }
        return static_cast<float>(1.0 / std::sqrt(mean_square + args_.eps));
    }

    void normalize(const Lanes& center, float inverse) const {
        const Lanes scale = Lanes::broadcast(inverse);
        const Lanes offset = Lanes::broadcast(args_.weight_offset);
        const bool is_centered = args_.norm == NormKind::kLayer;
        // Llama's norm rounds before it multiplies by the weight; Gemma's (weight_offset 1) and
        // LayerNorm do not.
        const bool rounds_before_weight =
            is_drop_in_ && !is_centered && args_.weight_offset == 0.0f;
        for_each_pair(args_.hidden, [&](int64_t index, int n, int) {
            Lanes value = in_scratch(index);
            value = (is_centered ? value - center : value) * scale;
            if (rounds_before_weight) {
                value = rounded(args_.types.activation, value);
            }
            value = value * (load(args_.types.weight, args_.weight, index, n) + offset);
            if (args_.norm_bias != nullptr) {
                value = value + load(args_.types.weight, args_.norm_bias, index, n);
            }
            store_out(index, n, value);
        });
    }

    TOKEN_INLINE Lanes in_scratch(int64_t index) const {
        return {Vec::load(args_.scratch + index, Vec::kLanes),
                Vec::load(args_.scratch + index + Vec::kLanes, Vec::kLanes)};
    }
    TOKEN_INLINE Lanes after_step(const Lanes& sum) const {
        return is_drop_in_ ? rounded(args_.types.activation, sum) : sum;
    }

    TOKEN_INLINE void store_out(int64_t index, int n, const Lanes& value) const {
        with_packed(args_.types.activation, value, [&](auto element, const auto& packed) {
            using Element = decltype(element);
            if (is_streaming_ && n == kPairLanes) {
                Element::template store_streaming<Vec>(args_.out, index, packed);
            } else {
                Element::template store<Vec>(args_.out, index, n, packed);
            }
            if (args_.out_copy != nullptr) {
                Element::template store<Vec>(args_.out_copy, index, n, packed);
            }
        });
    }
    TOKEN_INLINE void store_residual(int64_t index, int n, const Lanes& value) const {
        if (args_.residual_out == nullptr) {
            return;
        }
        with_packed(args_.types.residual, value, [&](auto element, const auto& packed) {
            using Element = decltype(element);
            Element::template store<Vec>(args_.residual_out, index, n, packed);
            if (args_.residual_copy != nullptr) {
                Element::template store<Vec>(args_.residual_copy, index, n, packed);
            }
        });
    }

    static TOKEN_INLINE Lanes load(DType type, const void* base, int64_t index, int n) {
        switch (type) {
            case DType::kBFloat16:
                return load_as<BFloat16, Vec, order>(base, index, n);
            case DType::kFloat16:
                return load_as<Float16, Vec, order>(base, index, n);
            default:
                return load_as<Float32, Vec, order>(base, index, n);
        }
    }
    // Rounding is lane by lane: the order does not matter.
    static TOKEN_INLINE Lanes rounded(DType type, const Lanes& value) {
        switch (type) {
            case DType::kBFloat16:
                return Vec::widen(Vec::narrow_to_bf16(value));
            case DType::kFloat16:
                return Vec::widen(Vec::narrow_to_f16(value));
            default:
                return value;
        }
    }
    template <class Body>
    static TOKEN_INLINE void with_packed(DType type, const Lanes& value, const Body& body) {
        switch (type) {
            case DType::kBFloat16:
                return body(BFloat16(), pack_as<BFloat16>(value));
            case DType::kFloat16:
                return body(Float16(), pack_as<Float16>(value));
            default:
                return body(Float32(), pack_as<Float32>(value));
        }
    }
    template <class T>
    static TOKEN_INLINE auto pack_as(const Lanes& value) {
        return T::template pack<Vec>(reorder<Vec, order, T::kOrder>(value));
    }

    const RowArgs args_;
    const bool is_drop_in_;
    const bool is_streaming_;
};

template <class Vec, LaneOrder order>
void reduce_row_in_order(const RowArgs& args) {
    const GeneralRowReducer<Vec, order> reducer(args);
    if (args.weight == nullptr) {
        reducer.sum_only();
    } else {
        reducer.sum_and_normalize();
    }
}

// With bf16 in it a row is in even and odd lanes, whatever else there is: sums that came from other
// hosts in fp32 then give the bits that the bf16 kernel gives.
template <class Vec>
void reduce_row_general(const RowArgs& args) {
    if (args.types.input == DType::kBFloat16 || args.types.activation == DType::kBFloat16) {
        reduce_row_in_order<Vec, LaneOrder::kEvenOdd>(args);
    } else {
        reduce_row_in_order<Vec, LaneOrder::kLinear>(args);
    }
}

}  // namespace token::norm
