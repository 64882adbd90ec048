// One row: sum over ranks, bias, residual, RMSNorm, all in fp32 with one final rounding. Knows
// nothing of where the rows come from. Written once over a 16-lane vector type; the instruction
// sets differ only there.
//
// Same bits from every body: the sum of squares is kept in kAccumulators x 16 lanes (element i goes
// to lane i mod 64) and folded in one fixed order, products and sums are rounded apart (the files
// that include this are compiled with -ffp-contract=off), and square root and division are exact in
// IEEE arithmetic.
#pragma once

#include "token/common/host_device.hpp"

#include <cmath>
#include <cstdint>

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
    float* scratch;       // [hidden]; unused without a norm
    void* out;            // [hidden]
    void* residual_out;   // [hidden] the sum before the norm; may be null, may be `residual`
    void* out_copy;       // second destination of out; may be null
    void* residual_copy;  // second destination of residual_out; may be null
    bool is_streaming;    // out goes around the cache; the caller ends with end_streaming
};

// Element types. Packed is a vector rounded to the type, as it is stored.
struct Float32 {
    template <class Vec>
    using Packed = Vec;

    template <class Vec>
    static TOKEN_INLINE Vec load(const void* base, int64_t index, int n) {
        return Vec::load(static_cast<const float*>(base) + index, n);
    }
    template <class Vec>
    static TOKEN_INLINE Vec pack(const Vec& value) {
        return value;
    }
    template <class Vec>
    static TOKEN_INLINE Vec unpack(const Vec& packed) {
        return packed;
    }
    template <class Vec>
    static TOKEN_INLINE void store(void* base, int64_t index, int n, const Vec& packed) {
        packed.store(static_cast<float*>(base) + index, n);
    }
    template <class Vec>
    static TOKEN_INLINE void store_streaming(void* base, int64_t index, const Vec& packed) {
        packed.store_streaming(static_cast<float*>(base) + index);
    }
};

struct BFloat16 {
    template <class Vec>
    using Packed = typename Vec::Half;

    template <class Vec>
    static TOKEN_INLINE Vec load(const void* base, int64_t index, int n) {
        return Vec::widen(Vec::load_half(static_cast<const uint16_t*>(base) + index, n));
    }
    template <class Vec>
    static TOKEN_INLINE typename Vec::Half pack(const Vec& value) {
        return value.narrow();
    }
    template <class Vec>
    static TOKEN_INLINE Vec unpack(const typename Vec::Half& packed) {
        return Vec::widen(packed);
    }
    template <class Vec>
    static TOKEN_INLINE void store(void* base,
                                   int64_t index,
                                   int n,
                                   const typename Vec::Half& packed) {
        Vec::store_half(static_cast<uint16_t*>(base) + index, n, packed);
    }
    template <class Vec>
    static TOKEN_INLINE void store_streaming(void* base,
                                             int64_t index,
                                             const typename Vec::Half& packed) {
        Vec::store_half_streaming(static_cast<uint16_t*>(base) + index, packed);
    }
};

// kInputs: number of ranks where it is known to the compiler (a quarter of the time of a row is
// spent on the loop otherwise), 0 for any.
template <class Vec, class Act, class Weight, int kInputs>
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
        for_each_vector([&](int64_t index, int n, int) {
            const Packed sum = Act::template pack<Vec>(reduced(index, n));
            store_out(index, n, sum);
            store_both(args_.residual_out, args_.residual_copy, index, n, sum);
        });
    }

    TOKEN_INLINE void sum_and_normalize() const {
        Vec squares[kAccumulators];
        for (Vec& accumulator : squares) {
            accumulator = Vec::broadcast(0.0f);
        }
        for_each_vector([&](int64_t index, int n, int part) {
            const Vec sum = reduced(index, n);
            sum.store(args_.scratch + index, n);
            if (args_.residual_out != nullptr) {
                const Packed packed = Act::template pack<Vec>(sum);
                store_both(args_.residual_out, args_.residual_copy, index, n, packed);
            }
            squares[part] = squares[part] + sum * sum;
        });
        const float mean = fold((squares[0] + squares[1]) + (squares[2] + squares[3])) /
                           static_cast<float>(args_.hidden);
        const Vec scale = Vec::broadcast(1.0f / std::sqrt(mean + args_.eps));
        const Vec offset = Vec::broadcast(args_.weight_offset);
        for_each_vector([&](int64_t index, int n, int) {
            const Vec weight = Weight::template load<Vec>(args_.weight, index, n) + offset;
            const Vec normed = (Vec::load(args_.scratch + index, n) * scale) * weight;
            store_out(index, n, Act::template pack<Vec>(normed));
        });
    }

  private:
    using Packed = typename Act::template Packed<Vec>;
    static constexpr int kLanes = Vec::kLanes;
    static constexpr int kAccumulators = 4;
    static constexpr int kStep = kAccumulators * kLanes;

    // body(index, lanes, index / 16 mod 4) over the row; lanes is 16 but at the end.
    template <class Body>
    TOKEN_INLINE void for_each_vector(const Body& body) const {
        int64_t index = 0;
        for (; index + kStep <= args_.hidden; index += kStep) {
            body(index, kLanes, 0);
            body(index + kLanes, kLanes, 1);
            body(index + 2 * kLanes, kLanes, 2);
            body(index + 3 * kLanes, kLanes, 3);
        }
        for (int part = 0; index < args_.hidden; index += kLanes, ++part) {
            const int64_t left = args_.hidden - index;
            body(index, left < kLanes ? static_cast<int>(left) : kLanes, part);
        }
    }

    // The sum over ranks, rounded once to the activation dtype as NVLink multicast returns it, then
    // bias and residual in fp32.
    TOKEN_INLINE Vec reduced(int64_t index, int n) const {
        const void* const* inputs = kInputs > 0 ? inputs_ : args_.inputs;
        const int num_inputs = kInputs > 0 ? kInputs : args_.num_inputs;
        Vec sum = Act::template load<Vec>(inputs[0], index, n);
        for (int rank = 1; rank < num_inputs; ++rank) {
            sum = sum + Act::template load<Vec>(inputs[rank], index, n);
        }
        if (kInputs != 1) {
            sum = Act::template unpack<Vec>(Act::template pack<Vec>(sum));
        }
        if (args_.bias != nullptr) {
            sum = sum + Act::template load<Vec>(args_.bias, index, n);
        }
        if (args_.residual != nullptr) {
            sum = sum + Act::template load<Vec>(args_.residual, index, n);
        }
        return sum;
    }

    TOKEN_INLINE void store_out(int64_t index, int n, const Packed& packed) const {
        if (is_streaming_ && n == kLanes) {
            Act::template store_streaming<Vec>(args_.out, index, packed);
            store_both(nullptr, args_.out_copy, index, n, packed);
        } else {
            store_both(args_.out, args_.out_copy, index, n, packed);
        }
    }

    static TOKEN_INLINE void store_both(
        void* first, void* second, int64_t index, int n, const Packed& packed) {
        if (first != nullptr) {
            Act::template store<Vec>(first, index, n, packed);
        }
        if (second != nullptr) {
            Act::template store<Vec>(second, index, n, packed);
        }
    }

    // Lanes folded in halves: 8, 4, 2, 1.
    static TOKEN_INLINE float fold(const Vec& value) {
        float lane[kLanes];
        value.store(lane, kLanes);
        for (int width = kLanes / 2; width > 0; width /= 2) {
            for (int i = 0; i < width; ++i) {
                lane[i] = lane[i] + lane[i + width];
            }
        }
        return lane[0];
    }

    // A copy: the compiler need not fear that a store through one of its pointers changes another.
    const RowArgs args_;
    const bool is_streaming_;
    const void* inputs_[kInputs > 0 ? kInputs : 1];
};

template <class Vec, class Act, class Weight>
void reduce_row(const RowArgs& args) {
    const auto run = [&](auto reducer) {
        if (args.weight == nullptr) {
            reducer.sum_only();
        } else {
            reducer.sum_and_normalize();
        }
    };
    switch (args.num_inputs) {
        case 1:
            return run(RowReducer<Vec, Act, Weight, 1>(args));
        case 2:
            return run(RowReducer<Vec, Act, Weight, 2>(args));
        case 4:
            return run(RowReducer<Vec, Act, Weight, 4>(args));
        default:
            return run(RowReducer<Vec, Act, Weight, 0>(args));
    }
}

}  // namespace token::norm
