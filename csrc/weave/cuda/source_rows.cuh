// Where the sum over ranks of a row comes from. ask() starts the loads of a row and returns at
// once, sum() waits for them: between the two, a kernel finishes the row before.
//
// Sums are added in fp32 in rank order and rounded once to the element type, as multicast loads
// return them.
#pragma once

#include "elements.cuh"
#include "rows.cuh"
#include "token/common/host_device.hpp"
#include "token/ptx/multimem.hpp"

namespace token::weave::cuda {

// The partial sums of all ranks in their own memories.
struct RowsOfRanks {
    const Region& region;
    int64_t row_bytes;

    TOKEN_DEVICE const void* at(int rank, int64_t row) const {
        return static_cast<const char*>(region.by_rank[rank]) + row * row_bytes;
    }
};

// The copies that all ranks pushed into this rank's memory.
struct StagedRows {
    const char* first;
    int64_t rank_bytes;
    int64_t row_bytes;

    // `place`: the number of the row among those of this block.
    TOKEN_DEVICE const void* at(int rank, int64_t place) const {
        return first + rank * rank_bytes + place * row_bytes;
    }
};

// Adds the ranks' rows itself. Of a row, kRanksAhead ranks are asked for before anything is added,
// and each rank's units are replaced by those of a later rank as they are added.
template <class Element, bool kIsAligned, class Rows>
class AddedRows {
  public:
    static constexpr bool kAddsRanks = true;

    TOKEN_DEVICE AddedRows(const Rows& rows, int size, const LaneUnits& units)
        : rows_(rows), size_(size), units_(units) {}

    TOKEN_DEVICE void ask(int64_t row) {
        row_ = row;
#pragma unroll
        for (int ahead = 0; ahead < kRanksAhead; ++ahead) {
            if (ahead < size_) {
                load(ahead, ahead);
            }
        }
    }

    TOKEN_DEVICE void sum(Floats (&sums)[kUnitsPerLane]) {
#pragma unroll
        for (int i = 0; i < kUnitsPerLane; ++i) {
#pragma unroll
            for (int j = 0; j < kUnitElements; ++j) {
                sums[i].value[j] = -0.0f;  // the zero that changes no number it is added to
            }
        }
#pragma unroll 1
        for (int rank = 0; rank < size_; rank += kRanksAhead) {
#pragma unroll
            for (int ahead = 0; ahead < kRanksAhead; ++ahead) {
                if (rank + ahead < size_) {
                    add(ahead, sums);
                    if (rank + ahead + kRanksAhead < size_) {
                        load(ahead, rank + ahead + kRanksAhead);
                    }
                }
            }
        }
#pragma unroll
        for (int i = 0; i < kUnitsPerLane; ++i) {
            sums[i] = unpack<Element>(pack<Element>(sums[i]));
        }
    }

  private:
    static constexpr int kRanksAhead = kIsAligned ? Element::kRanksAhead : 1;

    TOKEN_DEVICE void load(int slot, int rank) {
        const void* from = rows_.at(rank, row_);
#pragma unroll
        for (int i = 0; i < kUnitsPerLane; ++i) {
            asked_[slot][i] = load_unit<SharedLoads, Element, kIsAligned>(
                from, units_.unit(i), units_.template count<kIsAligned>(i));
        }
    }
    TOKEN_DEVICE void add(int slot, Floats (&sums)[kUnitsPerLane]) const {
#pragma unroll
        for (int i = 0; i < kUnitsPerLane; ++i) {
            const Floats term = unpack<Element>(asked_[slot][i]);
#pragma unroll
            for (int j = 0; j < kUnitElements; ++j) {
                sums[i].value[j] += term.value[j];
            }
        }
    }

    const Rows rows_;
    const int size_;
    const LaneUnits& units_;
    int64_t row_ = 0;
    typename Element::Packed asked_[kRanksAhead][kUnitsPerLane];
};

// The switch adds them.
TOKEN_DEVICE ptx::Vec16B load_reduced(BFloat16, const void* from) {
    return ptx::multimem_ld_reduce_add_acc_f32_bf16x2_relaxed_sys(from);
}
TOKEN_DEVICE ptx::Vec16B load_reduced(Float16, const void* from) {
    return ptx::multimem_ld_reduce_add_acc_f32_f16x2_relaxed_sys(from);
}

template <class Element>
class ReducedRows {
  public:
    static constexpr bool kAddsRanks = false;

    TOKEN_DEVICE ReducedRows(const Region& region, int64_t row_bytes, const LaneUnits& units)
        : first_(static_cast<const char*>(region.multicast)),
          row_bytes_(row_bytes),
          units_(units) {}

    TOKEN_DEVICE void ask(int64_t row) {
        const char* from = first_ + row * row_bytes_;
#pragma unroll
        for (int i = 0; i < kUnitsPerLane; ++i) {
            asked_[i] = {};
            if (units_.template count<true>(i) > 0) {
                asked_[i].part[0] = load_reduced(Element(), from + int64_t{16} * units_.unit(i));
            }
        }
    }
    TOKEN_DEVICE void sum(Floats (&sums)[kUnitsPerLane]) const {
#pragma unroll
        for (int i = 0; i < kUnitsPerLane; ++i) {
            sums[i] = unpack<Element>(asked_[i]);
        }
    }

  private:
    const char* const first_;
    const int64_t row_bytes_;
    const LaneUnits& units_;
    typename Element::Packed asked_[kUnitsPerLane];
};

}  // namespace token::weave::cuda
