// One row: sum over ranks, bias, residual, RMSNorm, all in fp32 with one final rounding, for one
// activation type known to the compiler. Knows nothing of where the rows come from. Everything else
// a row can be is in row_general.hpp, with the same arithmetic. Written once over a 16-lane vector
// type (two of them at a time); the instruction sets differ only there.
//
// Same bits from every body: the sum of squares is kept in two pairs of 16 lanes (element i goes to
// pair i / 32 mod 2 and, within it, where LaneOrder says) and folded in one fixed order, products
// and sums are rounded apart (the files that include this are compiled with -ffp-contract=off), and
// square root and division are exact in IEEE arithmetic.
//
// A row's bits depend on that row alone: no other row, count of rows, block or thread enters.
#pragma once

#include "token/common/host_device.hpp"
#include "token/norm/elements.hpp"
#include "token/norm/row_args.hpp"

#include <cmath>
#include <cstdint>

namespace token::norm {

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
        for_each_pair(args_.hidden, [&](int64_t index, int n, int) {
            const Packed sum = Act::template pack<Vec>(reduced(index, n));
            store_out(index, n, sum);
            store_both(args_.residual_out, args_.residual_copy, index, n, sum);
        });
    }

    TOKEN_INLINE void sum_and_normalize() const {
        Lanes squares[kAccumulators] = {Lanes::broadcast(0.0f), Lanes::broadcast(0.0f)};
        for_each_pair(args_.hidden, [&](int64_t index, int n, int part) {
            const Lanes sum = reduced(index, n);
            sum.first.store(args_.scratch + index, Vec::kLanes);
            sum.second.store(args_.scratch + index + Vec::kLanes, Vec::kLanes);
            if (args_.residual_out != nullptr) {
                const Packed packed = Act::template pack<Vec>(sum);
                store_both(args_.residual_out, args_.residual_copy, index, n, packed);
            }
            squares[part] = squares[part] + sum * sum;
        });
        // In double: an error here is in every element of the row, and once a row it costs nothing.
        const double mean = fold(squares) / static_cast<double>(args_.hidden);
        const Lanes scale = Lanes::broadcast(static_cast<float>(1.0 / std::sqrt(mean + args_.eps)));
        const Lanes offset = Lanes::broadcast(args_.weight_offset);
        for_each_pair(args_.hidden, [&](int64_t index, int n, int) {
            const Lanes weight = load_as<Weight, Vec, kOrder>(args_.weight, index, n) + offset;
            const Lanes sum{Vec::load(args_.scratch + index, Vec::kLanes),
                            Vec::load(args_.scratch + index + Vec::kLanes, Vec::kLanes)};
            store_out(index, n, Act::template pack<Vec>((sum * scale) * weight));
        });
    }

  private:
    using Lanes = Pair<Vec>;
    using Packed = typename Act::template Packed<Vec>;
    static constexpr LaneOrder kOrder = Act::kOrder;

    // The sum over ranks, rounded once to the activation dtype as NVLink multicast returns it, then
    // bias and residual in fp32. Elements past the end of the row are zeros.
    TOKEN_INLINE Lanes reduced(int64_t index, int n) const {
        const void* const* inputs = kInputs > 0 ? inputs_ : args_.inputs;
        const int num_inputs = kInputs > 0 ? kInputs : args_.num_inputs;
        Lanes sum = Act::template load<Vec>(inputs[0], index, n);
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
        if (is_streaming_ && n == kPairLanes) {
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

    // A copy: the compiler need not fear that a store through one of its pointers changes another.
    const RowArgs args_;
    const bool is_streaming_;
    const void* inputs_[kInputs > 0 ? kInputs : 1];
};

template <class Vec, class Act, class Weight, int kInputs>
void reduce_row_of(const RowArgs& args) {
    const RowReducer<Vec, Act, Weight, kInputs> reducer(args);
    if (args.weight == nullptr) {
        reducer.sum_only();
    } else {
        reducer.sum_and_normalize();
    }
}

template <class Vec, class Act, class Weight>
void reduce_row(const RowArgs& args) {
    switch (args.num_inputs) {
        case 1:
            return reduce_row_of<Vec, Act, Weight, 1>(args);
        case 2:
            return reduce_row_of<Vec, Act, Weight, 2>(args);
        case 4:
            return reduce_row_of<Vec, Act, Weight, 4>(args);
        default:
            return reduce_row_of<Vec, Act, Weight, 0>(args);
    }
}

}  // namespace token::norm
