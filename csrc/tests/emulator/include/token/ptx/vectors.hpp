// Shadow of token/ptx/vectors.hpp.
#pragma once

#include "device.hpp"
#include "token/ptx/vector_types.hpp"

namespace token::ptx {

#define TOKEN_SHADOW_LOAD(name, type)                                 \
    inline type name(const void* from) {                              \
        type value;                                                   \
        ::token::emulator::device::load(&value, from, sizeof(value)); \
        return value;                                                 \
    }
#define TOKEN_SHADOW_STORE(name, type, by)                         \
    inline void name(void* to, by value) {                         \
        const type copy = value;                                   \
        ::token::emulator::device::store(to, &copy, sizeof(copy)); \
    }

TOKEN_SHADOW_LOAD(ld_relaxed_sys_16B, Vec16B)
TOKEN_SHADOW_LOAD(ld_relaxed_sys_4B, uint32_t)
TOKEN_SHADOW_LOAD(ld_relaxed_sys_2B, uint16_t)
TOKEN_SHADOW_LOAD(ld_relaxed_sys_1B, uint8_t)
TOKEN_SHADOW_STORE(st_relaxed_sys_16B, Vec16B, const Vec16B&)
TOKEN_SHADOW_STORE(st_relaxed_sys_8B, Vec8B, const Vec8B&)
TOKEN_SHADOW_STORE(st_relaxed_sys_4B, uint32_t, uint32_t)
TOKEN_SHADOW_STORE(st_relaxed_sys_2B, uint16_t, uint16_t)
TOKEN_SHADOW_STORE(st_relaxed_sys_1B, uint8_t, uint8_t)

TOKEN_SHADOW_LOAD(ld_global_16B, Vec16B)
TOKEN_SHADOW_LOAD(ld_global_4B, uint32_t)
TOKEN_SHADOW_LOAD(ld_global_2B, uint16_t)
TOKEN_SHADOW_STORE(st_global_16B, Vec16B, const Vec16B&)
TOKEN_SHADOW_STORE(st_global_8B, Vec8B, const Vec8B&)
TOKEN_SHADOW_STORE(st_global_4B, uint32_t, uint32_t)
TOKEN_SHADOW_STORE(st_global_2B, uint16_t, uint16_t)
TOKEN_SHADOW_STORE(st_global_1B, uint8_t, uint8_t)

TOKEN_SHADOW_LOAD(ld_global_nc_16B, Vec16B)
TOKEN_SHADOW_LOAD(ld_global_nc_4B, uint32_t)
TOKEN_SHADOW_LOAD(ld_global_nc_2B, uint16_t)

#undef TOKEN_SHADOW_LOAD
#undef TOKEN_SHADOW_STORE

}  // namespace token::ptx
