// Shadow of token/ptx/barrier.hpp.
#pragma once

#include "device.hpp"

namespace token::ptx {

inline void bar_sync(int id, int num_threads) {
    emulator::device::block_barrier(id, num_threads);
}

}  // namespace token::ptx
