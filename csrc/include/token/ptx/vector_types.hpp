// What the vector instructions of token/ptx move: plain bytes, the element type is the caller's.
#pragma once

#include "token/common/int_types.hpp"

namespace token::ptx {

struct alignas(16) Vec16B {
    uint32_t word[4];
};
struct alignas(8) Vec8B {
    uint32_t word[2];
};
// Two neighbouring elements: `low` is the one with the lower address.
struct FloatPair {
    float low;
    float high;
};

}  // namespace token::ptx
