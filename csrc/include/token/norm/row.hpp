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
};

struct Float32 {
    using Storage = float;
    template <class Vec>
    static TOKEN_INLINE Vec load(const void* base, int64_t index, int n) {
        return Vec::load(static_cast<const float*>(base) + index, n);
    }
    template <class Vec>
    static TOKEN_INLINE void store(void* base, int64_t index, int n, const Vec& value) {
        value.store(static_cast<float*>(base) + index, n);
    }
    template <class Vec>
    static TOKEN_INLINE Vec rounded(const Vec& value) {
        return value;
    }
};

struct BFloat16 {
    using Storage = uint16_t;
    template <class Vec>
    static TOKEN_INLINE Vec load(const void* base, int64_t index, int n) {
        return Vec::load_bf16(static_cast<const uint16_t*>(base) + index, n);
    }
    template <class Vec>
    static TOKEN_INLINE void store(void* base, int64_t index, int n, const Vec& value) {
        value.store_bf16(static_cast<uint16_t*>(base) + index, n);
    }
    template <class Vec>
    static TOKEN_INLINE Vec rounded(const Vec& value) {
        return value.rounded_to_bf16();
    }
};

template <class Vec, class Act, class Weight>
class RowReducer {
  public:
    static void run(const RowArgs& args) {
        if (args.weight == nullptr) {
            sum_only(args);
        } else {
            sum_and_normalize(args);
        }
    }

  private:
    static constexpr int kLanes = Vec::kLanes;
    static constexpr int kAccumulators = 4;
    static constexpr int kStep = kAccumulators * kLanes;

    // The rounded sum over ranks plus bias and residual, unrounded: the reduced value exists in the
    // activation dtype on every path (NVLink multicast returns it so), what follows is fp32.
    static TOKEN_INLINE Vec reduced(const RowArgs& args, int64_t index, int n) {
        Vec sum = Act::template load<Vec>(args.inputs[0], index, n);
        for (int rank = 1; rank < args.num_inputs; ++rank) {
            sum = sum + Act::template load<Vec>(args.inputs[rank], index, n);
        }
        sum = Act::rounded(sum);
        if (args.bias != nullptr) {
            sum = sum + Act::template load<Vec>(args.bias, index, n);
        }
        if (args.residual != nullptr) {
            sum = sum + Act::template load<Vec>(args.residual, index, n);
        }
        return sum;
    }

    static TOKEN_INLINE void store_both(
        void* first, void* second, int64_t index, int n, const Vec& value) {
        if (first != nullptr) {
            Act::store(first, index, n, value);
        }
        if (second != nullptr) {
            Act::store(second, index, n, value);
        }
    }

    static TOKEN_INLINE int lanes_left(const RowArgs& args, int64_t index) {
        const int64_t left = args.hidden - index;
        return left >= kLanes ? kLanes : (left > 0 ? static_cast<int>(left) : 0);
    }

    static void sum_only(const RowArgs& args) {
        for (int64_t index = 0; index < args.hidden; index += kLanes) {
            const int n = lanes_left(args, index);
            const Vec sum = reduced(args, index, n);
            store_both(args.out, args.out_copy, index, n, sum);
            store_both(args.residual_out, args.residual_copy, index, n, sum);
        }
    }

    static void sum_and_normalize(const RowArgs& args) {
        Vec squares[kAccumulators];
        for (Vec& accumulator : squares) {
            accumulator = Vec::broadcast(0.0f);
        }
        int64_t index = 0;
        for (; index + kStep <= args.hidden; index += kStep) {
            for (int part = 0; part < kAccumulators; ++part) {
                accumulate(args, index + part * kLanes, kLanes, squares[part]);
            }
        }
        for (int part = 0; part < kAccumulators; ++part) {
            const int n = lanes_left(args, index + part * kLanes);
            if (n > 0) {
                accumulate(args, index + part * kLanes, n, squares[part]);
            }
        }
        const float mean = fold((squares[0] + squares[1]) + (squares[2] + squares[3])) /
                           static_cast<float>(args.hidden);
        const Vec scale = Vec::broadcast(1.0f / std::sqrt(mean + args.eps));
        const Vec offset = Vec::broadcast(args.weight_offset);
        for (index = 0; index < args.hidden; index += kLanes) {
            const int n = lanes_left(args, index);
            const Vec weight = Weight::template load<Vec>(args.weight, index, n) + offset;
            const Vec normed = (Vec::load(args.scratch + index, n) * scale) * weight;
            store_both(args.out, args.out_copy, index, n, normed);
        }
    }

    static TOKEN_INLINE void accumulate(const RowArgs& args, int64_t index, int n, Vec& squares) {
        const Vec sum = reduced(args, index, n);
        sum.store(args.scratch + index, n);
        store_both(args.residual_out, args.residual_copy, index, n, sum);
        squares = squares + sum * sum;
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
};

}  // namespace token::norm
