// A value that the compiler must take as it comes. No instruction; compiled by every compiler.
#pragma once

#include "token/common/host_device.hpp"

namespace token::ptx {

// What is computed from it inside a loop stays there: hoisted addresses would fill the registers.
TOKEN_DEVICE int opaque(int value) {
    asm volatile("" : "+r"(value));
    return value;
}

}  // namespace token::ptx
