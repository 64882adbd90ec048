// The dynamic shared memory of a block. A function, so that a kernel's source holds no declaration
// that only nvcc understands.
#pragma once

#include "token/common/host_device.hpp"

namespace token::ptx {

// Aligned to 16 bytes, as many as the launch asked for. Not initialised.
TOKEN_DEVICE void* dynamic_shared() {
    extern __shared__ __align__(16) unsigned char token_dynamic_shared[];
    return token_dynamic_shared;
}

}  // namespace token::ptx
