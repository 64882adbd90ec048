// Shadow of token/ptx/shared.hpp.
#pragma once

#include "device.hpp"

namespace token::ptx {

template <class T>
inline T& dynamic_shared() {
    return *static_cast<T*>(emulator::device::dynamic_shared(sizeof(T)));
}

inline void* dynamic_shared() {
    return emulator::device::dynamic_shared(0);
}

}  // namespace token::ptx
