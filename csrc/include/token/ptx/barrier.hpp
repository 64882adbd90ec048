// Named barriers: some warps of a block wait for each other while the others go on.
#pragma once

#include "token/common/host_device.hpp"

namespace token::ptx {

// id: 1 to 15 (0 is that of __syncthreads). num_threads: a multiple of 32, the same for all that
// take part. Orders the memory accesses of its threads as __syncthreads does.
TOKEN_DEVICE void bar_sync(int id, int num_threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(num_threads) : "memory");
}

}  // namespace token::ptx
