// Shadow of token/ptx/clock.hpp: emulated time, so that deadlines are tested without waiting.
#pragma once

#include "device.hpp"

namespace token::ptx {

inline uint64_t globaltimer_ns() {
    return emulator::device::now_ns();
}

}  // namespace token::ptx
