// Static shared memory. builtins.hpp makes `__shared__ T x;` a thread-local variable: all of them
// together are one range of addresses of this program, and whenever another block runs, its bytes
// are put there. Tests must keep no thread-local variables of their own.
#pragma once

#include <cstddef>
#include <span>

namespace token::emulator {

// The bytes of the thread-local variables of this program (not of its libraries), for the calling
// thread.
std::span<std::byte> static_shared();

}  // namespace token::emulator
