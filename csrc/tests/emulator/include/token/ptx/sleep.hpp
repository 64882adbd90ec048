// Shadow of token/ptx/sleep.hpp.
#pragma once

#include "device.hpp"

namespace token::ptx {

inline void nanosleep(uint32_t duration_ns) {
    emulator::device::sleep(duration_ns);
}

}  // namespace token::ptx
