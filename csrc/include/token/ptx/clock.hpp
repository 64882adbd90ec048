// The clock of deadlines: nanoseconds, the same for all multiprocessors; unlike clock64 it does not
// slow down with the core clock. Its resolution may be as coarse as a microsecond.
#pragma once

#include "token/common/host_device.hpp"
#include "token/common/int_types.hpp"

namespace token::ptx {

TOKEN_DEVICE uint64_t globaltimer_ns() {
    uint64_t now_ns;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now_ns)::"memory");
    return now_ns;
}

}  // namespace token::ptx
