// Gives the issue slots of a spinning thread to others.
#pragma once

#include "token/common/host_device.hpp"
#include "token/common/int_types.hpp"

namespace token::ptx {

// Sleeps for about duration_ns, at most twice as long; up to 1 ms.
TOKEN_DEVICE void nanosleep(uint32_t duration_ns) {
    asm volatile("nanosleep.u32 %0;" ::"r"(duration_ns) : "memory");
}

}  // namespace token::ptx
