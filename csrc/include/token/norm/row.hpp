// One row: sum over ranks, bias, residual, RMSNorm, all in fp32 with one final rounding. Knows
// nothing of where the rows come from. Written once over a 16-lane vector type (two of them at a
// time); the instruction sets differ only there.
//
// Same bits from every body: the sum of squares is kept in two pairs of 16 lanes (element i goes to
// pair i / 32 mod 2 and, within it, where LaneOrder says) and folded in one fixed order, products
// and sums are rounded apart (the files that include this are compiled with -ffp-contract=off), and
// square root and division are exact in IEEE arithmetic.
#pragma once

#include "token/common/host_device.hpp"
#include "token/norm/lanes.hpp"

#include <cmath>
#include <cstdint>
#include <type_traits>

namespace token::norm {

struct RowArgs {
    const void* const* inputs;  // [num_inputs] this row of every rank's partial sum, in rank order
    int num_inputs;
    int64_t hidden;
    const void* residual;  // [hidden] activation dtype; may be null
    const void* bias;      // [hidden] activation dtype; may be null
    const void* weight;    // [hidden] activation dtype or fp32; null means: no norm, out is the sum
    float weight_offset;   // added to weight: 1 for Gemma
    float eps;
    float* scratch;       // [scratch_elements(hidden)]; unused without a norm
    void* out;            // [hidden]
    void* residual_out;   // [hidden] the sum before the norm; may be null, may be `residual`
    void* out_copy;       // second destination of out; may be null
    void* residual_copy;  // second destination of residual_out; may be null
    bool is_streaming;    // out goes around the cache; the caller ends with end_streaming
};

// fp32 values a row needs between its two passes: whole pairs.
TOKEN_INLINE int64_t scratch_elements(int64_t hidden) {
    return (hidden + kPairLanes - 1) / kPairLanes * kPairLanes;
}

// Element types, 32 elements at a time. Packed is what is stored: rounded to the type.
struct Float32 {
    static constexpr LaneOrder kOrder = LaneOrder::kLinear;
    template <class Vec>
    using Packed = Pair<Vec>;

    template <class Vec, LaneOrder order>
    static TOKEN_INLINE Pair<Vec> load(const void* base, int64_t index, int n) {
        const float* from = static_cast<const float*>(base) + index;
        const Pair<Vec> linear{Vec::load(from, first_lanes<Vec>(n)),
                               Vec::load(from + Vec::kLanes, n - first_lanes<Vec>(n))};
        if constexpr (order == LaneOrder::kEvenOdd) {
            return Vec::to_even_odd(linear);
        }
        return linear;
    }
    template <class Vec>
    static TOKEN_INLINE Pair<Vec> pack(const Pair<Vec>& value) {
        return value;
    }
    template <class Vec>
    static TOKEN_INLINE Pair<Vec> unpack(const Pair<Vec>& packed) {
        return packed;
    }
    template <class Vec, LaneOrder order>
    static TOKEN_INLINE void store(void* base, int64_t index, int n, const Pair<Vec>& packed) {
        float* to = static_cast<float*>(base) + index;
        const Pair<Vec> linear = to_linear<Vec, order>(packed);
        linear.first.store(to, first_lanes<Vec>(n));
        linear.second.store(to + Vec::kLanes, n - first_lanes<Vec>(n));
    }
    template <class Vec, LaneOrder order>
    static TOKEN_INLINE void store_streaming(void* base, int64_t index, const Pair<Vec>& packed) {
        float* to = static_cast<float*>(base) + index;
        const Pair<Vec> linear = to_linear<Vec, order>(packed);
        linear.first.store_streaming(to);
        linear.second.store_streaming(to + Vec::kLanes);
    }

  private:
    template <class Vec>
    static TOKEN_INLINE int first_lanes(int n) {
        return n < Vec::kLanes ? n : Vec::kLanes;
    }
    template <class Vec, LaneOrder order>
    static TOKEN_INLINE Pair<Vec> to_linear(const Pair<Vec>& pair) {
        if constexpr (order == LaneOrder::kEvenOdd) {
            return Vec::to_linear(pair);
        }
        return pair;
    }
};

struct BFloat16 {
    static constexpr LaneOrder kOrder = LaneOrder::kEvenOdd;
    template <class Vec>
    using Packed = typename Vec::Bf16x32;

    template <class Vec, LaneOrder order>
    static TOKEN_INLINE Pair<Vec> load(const void* base, int64_t index, int n) {
        static_assert(order == kOrder);
        return Vec::widen(Vec::load_bf16(static_cast<const uint16_t*>(base) + index, n));
    }
    template <class Vec>
    static TOKEN_INLINE typename Vec::Bf16x32 pack(const Pair<Vec>& value) {
        return Vec::narrow(value);
    }
    template <class Vec>
    static TOKEN_INLINE Pair<Vec> unpack(const typename Vec::Bf16x32& packed) {
        return Vec::widen(packed);
    }
    template <class Vec, LaneOrder order>
    static TOKEN_INLINE void store(void* base,
                                   int64_t index,
                                   int n,
                                   const typename Vec::Bf16x32& packed) {
        Vec::store_bf16(static_cast<uint16_t*>(base) + index, n, packed);
    }
    template <class Vec, LaneOrder order>
    static TOKEN_INLINE void store_streaming(void* base,
                                             int64_t index,
                                             const typename Vec::Bf16x32& packed) {
        Vec::store_bf16_streaming(static_cast<uint16_t*>(base) + index, packed);
    }
};

// In: partial sums. Act: residual, bias and results. kInputs: number of ranks where it is known to
// the compiler (a quarter of the time of a row is spent on the loop otherwise), 0 for any.
template <class Vec, class In, class Act, class Weight, int kInputs>
class RowReducer {
  public:
    explicit TOKEN_INLINE RowReducer(const RowArgs& args)
        : args_(args),
          is_streaming_(args.is_streaming &&
                        reinterpret_cast<uintptr_t>(args.out) % Vec::kStreamAlignment == 0) {
        for (int rank = 0; rank < kInputs; ++rank) {
            inputs_[rank] = args.inputs[rank];
        }
    }

    TOKEN_INLINE void sum_only() const {
        for_each_pair([&](int64_t index, int n, int) {
            const Packed sum = Act::template pack<Vec>(reduced(index, n));
            store_out(index, n, sum);
            store_both(args_.residual_out, args_.residual_copy, index, n, sum);
        });
    }

    TOKEN_INLINE void sum_and_normalize() const {
        Lanes squares[kAccumulators];
        for (Lanes& accumulator : squares) {
            accumulator = broadcast(0.0f);
        }
        for_each_pair([&](int64_t index, int n, int part) {
            const Lanes sum = reduced(index, n);
            sum.first.store(args_.scratch + index, Vec::kLanes);
            sum.second.store(args_.scratch + index + Vec::kLanes, Vec::kLanes);
            if (args_.residual_out != nullptr) {
                const Packed packed = Act::template pack<Vec>(sum);
                store_both(args_.residual_out, args_.residual_copy, index, n, packed);
            }
            squares[part] = squares[part] + sum * sum;
        });
        const Lanes folded = squares[0] + squares[1];
        // In double: an error here is in every element of the row, and once a row it costs nothing.
        const double mean = fold(folded.first + folded.second) / static_cast<double>(args_.hidden);
        const Lanes scale = broadcast(static_cast<float>(1.0 / std::sqrt(mean + args_.eps)));
        const Lanes offset = broadcast(args_.weight_offset);
        for_each_pair([&](int64_t index, int n, int) {
            const Lanes weight =
                Weight::template load<Vec, kOrder>(args_.weight, index, n) + offset;
            const Lanes sum{Vec::load(args_.scratch + index, Vec::kLanes),
                            Vec::load(args_.scratch + index + Vec::kLanes, Vec::kLanes)};
            store_out(index, n, Act::template pack<Vec>((sum * scale) * weight));
        });
    }

  private:
    using Lanes = Pair<Vec>;
    using Packed = typename Act::template Packed<Vec>;
    static constexpr bool kHasBf16 = std::is_same_v<In, BFloat16> || std::is_same_v<Act, BFloat16>;
    static constexpr LaneOrder kOrder = kHasBf16 ? LaneOrder::kEvenOdd : LaneOrder::kLinear;
    static constexpr int kAccumulators = 2;

    static TOKEN_INLINE Lanes broadcast(float value) {
        return {Vec::broadcast(value), Vec::broadcast(value)};
    }

    // body(index, elements, index / 32 mod 2) over the row; elements is 32 but at the end.
    template <class Body>
    TOKEN_INLINE void for_each_pair(const Body& body) const {
        int64_t index = 0;
        for (; index + 2 * kPairLanes <= args_.hidden; index += 2 * kPairLanes) {
            body(index, kPairLanes, 0);
            body(index + kPairLanes, kPairLanes, 1);
        }
        for (int part = 0; index < args_.hidden; index += kPairLanes, ++part) {
            const int64_t left = args_.hidden - index;
            body(index, left < kPairLanes ? static_cast<int>(left) : kPairLanes, part);
        }
    }

    // The sum over ranks, rounded once to the activation dtype as NVLink multicast returns it, then
    // bias and residual in fp32. Elements past the end of the row are zeros.
    TOKEN_INLINE Lanes reduced(int64_t index, int n) const {
        const void* const* inputs = kInputs > 0 ? inputs_ : args_.inputs;
        const int num_inputs = kInputs > 0 ? kInputs : args_.num_inputs;
        Lanes sum = In::template load<Vec, kOrder>(inputs[0], index, n);
        for (int rank = 1; rank < num_inputs; ++rank) {
            sum = sum + In::template load<Vec, kOrder>(inputs[rank], index, n);
        }
        if (kInputs != 1 || !std::is_same_v<In, Act>) {
            sum = Act::template unpack<Vec>(Act::template pack<Vec>(sum));
        }
        if (args_.bias != nullptr) {
            sum = sum + Act::template load<Vec, kOrder>(args_.bias, index, n);
        }
        if (args_.residual != nullptr) {
            sum = sum + Act::template load<Vec, kOrder>(args_.residual, index, n);
        }
        return sum;
    }

    TOKEN_INLINE void store_out(int64_t index, int n, const Packed& packed) const {
        if (is_streaming_ && n == kPairLanes) {
            Act::template store_streaming<Vec, kOrder>(args_.out, index, packed);
            store_both(nullptr, args_.out_copy, index, n, packed);
        } else {
            store_both(args_.out, args_.out_copy, index, n, packed);
        }
    }

    static TOKEN_INLINE void store_both(
        void* first, void* second, int64_t index, int n, const Packed& packed) {
        if (first != nullptr) {
            Act::template store<Vec, kOrder>(first, index, n, packed);
        }
        if (second != nullptr) {
            Act::template store<Vec, kOrder>(second, index, n, packed);
        }
    }

    // Lanes folded in halves: 8, 4, 2, 1.
    static TOKEN_INLINE double fold(const Vec& value) {
        float lane[Vec::kLanes];
        value.store(lane, Vec::kLanes);
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

    // A copy: the compiler need not fear that a store through one of its pointers changes another.
    const RowArgs args_;
    const bool is_streaming_;
    const void* inputs_[kInputs > 0 ? kInputs : 1];
};

template <class Vec, class In, class Act, class Weight, int kInputs>
void reduce_row_of(const RowArgs& args) {
    const RowReducer<Vec, In, Act, Weight, kInputs> reducer(args);
    if (args.weight == nullptr) {
        reducer.sum_only();
    } else {
        reducer.sum_and_normalize();
    }
}

// Partial sums in the activation's dtype: the case that every layer of a model is.
template <class Vec, class Act, class Weight>
void reduce_row(const RowArgs& args) {
    switch (args.num_inputs) {
        case 1:
            return reduce_row_of<Vec, Act, Act, Weight, 1>(args);
        case 2:
            return reduce_row_of<Vec, Act, Act, Weight, 2>(args);
        case 4:
            return reduce_row_of<Vec, Act, Act, Weight, 4>(args);
        default:
            return reduce_row_of<Vec, Act, Act, Weight, 0>(args);
    }
}

}  // namespace token::norm
