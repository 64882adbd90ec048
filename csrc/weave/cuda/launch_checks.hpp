// What a launch refuses, by name: InvalidArgument. Pure host code.
#pragma once

#include "launch.hpp"

namespace token::weave::cuda {

void check_reduction(const Reduction& call);
void check_baseline(const Reduction& call);  // after check_reduction
void check_gather(const Gather& call);
void check_pace(const Reduction& call);  // after check_reduction, of a call with a pace

// Between two rows of one row group, where all groups of a rank load at the pace of the call.
double pace_row_ns(const Reduction& call);

// Whether a gather moves whole vectors of 16 bytes.
bool are_vectors(const Gather& call);

}  // namespace token::weave::cuda
