// What a reduction refuses before it takes part.
#pragma once

#include "collectives.hpp"

namespace token::weave {

// InvalidArgument says which parameters cannot be had together, or what does not fit.
void check_reduction(const comm::HostGroup& group, const AllReduceRmsNormParams& params);

}  // namespace token::weave
