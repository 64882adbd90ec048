// Where every rank's partial sum can be read without a copy, if it lies in memory all ranks have
// mapped.
#pragma once

#include "collectives.hpp"

#include <vector>

namespace token::weave {

class ReductionInputs {
  public:
    ReductionInputs(const comm::HostGroup& group, const AllReduceRmsNormParams& params);

    bool is_symmetric() const { return !bases_.empty(); }
    // In the slot for partial sums, which the next reduction leaves for the other one.
    bool is_in_partial_slot() const { return is_in_partial_slot_; }
    // In a SymmetricBuffer: where. The same on all ranks.
    int64_t region_offset() const { return region_offset_; }
    // The first row of that rank's partial sum; only if symmetric.
    const std::byte* base(int rank) const { return bases_[rank]; }

  private:
    bool is_in_partial_slot_ = false;
    int64_t region_offset_ = 0;
    std::vector<const std::byte*> bases_;
};

}  // namespace token::weave
