// Data: loads and stores of 1, 2, 4, 8 and 16 bytes, aligned to their size.
//
// relaxed_sys: memory that other GPUs or other blocks write or read in the same launch.
// global: memory that only this thread touches in the launch. nc: memory that nobody writes.
#pragma once

#include "token/common/host_device.hpp"
#include "token/common/int_types.hpp"
#include "token/ptx/vector_types.hpp"

namespace token::ptx {

TOKEN_DEVICE Vec16B ld_relaxed_sys_16B(const void* from) {
    Vec16B value;
    asm volatile(
        "ld.relaxed.sys.global.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(value.word[0]), "=r"(value.word[1]), "=r"(value.word[2]), "=r"(value.word[3])
        : "l"(from)
        : "memory");
    return value;
}
TOKEN_DEVICE uint32_t ld_relaxed_sys_4B(const void* from) {
    uint32_t value;
    asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
    return value;
}
TOKEN_DEVICE uint16_t ld_relaxed_sys_2B(const void* from) {
    uint16_t value;
    asm volatile("ld.relaxed.sys.global.u16 %0, [%1];" : "=h"(value) : "l"(from) : "memory");
    return value;
}
TOKEN_DEVICE uint8_t ld_relaxed_sys_1B(const void* from) {
    uint32_t value;
    asm volatile("ld.relaxed.sys.global.u8 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
    return static_cast<uint8_t>(value);
}
TOKEN_DEVICE void st_relaxed_sys_16B(void* to, const Vec16B& value) {
    asm volatile("st.relaxed.sys.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to),
                 "r"(value.word[0]),
                 "r"(value.word[1]),
                 "r"(value.word[2]),
                 "r"(value.word[3])
                 : "memory");
}
TOKEN_DEVICE void st_relaxed_sys_8B(void* to, const Vec8B& value) {
    asm volatile("st.relaxed.sys.global.v2.u32 [%0], {%1, %2};" ::"l"(to),
                 "r"(value.word[0]),
                 "r"(value.word[1])
                 : "memory");
}
TOKEN_DEVICE void st_relaxed_sys_4B(void* to, uint32_t value) {
    asm volatile("st.relaxed.sys.global.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}
TOKEN_DEVICE void st_relaxed_sys_2B(void* to, uint16_t value) {
    asm volatile("st.relaxed.sys.global.u16 [%0], %1;" ::"l"(to), "h"(value) : "memory");
}
TOKEN_DEVICE void st_relaxed_sys_1B(void* to, uint8_t value) {
    asm volatile("st.relaxed.sys.global.u8 [%0], %1;" ::"l"(to), "r"(uint32_t{value}) : "memory");
}

TOKEN_DEVICE Vec16B ld_global_16B(const void* from) {
    Vec16B value;
    asm volatile(
        "ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(value.word[0]), "=r"(value.word[1]), "=r"(value.word[2]), "=r"(value.word[3])
        : "l"(from)
        : "memory");
    return value;
}
TOKEN_DEVICE uint32_t ld_global_4B(const void* from) {
    uint32_t value;
    asm volatile("ld.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
    return value;
}
TOKEN_DEVICE uint16_t ld_global_2B(const void* from) {
    uint16_t value;
    asm volatile("ld.global.u16 %0, [%1];" : "=h"(value) : "l"(from) : "memory");
    return value;
}
TOKEN_DEVICE void st_global_16B(void* to, const Vec16B& value) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to),
                 "r"(value.word[0]),
                 "r"(value.word[1]),
                 "r"(value.word[2]),
                 "r"(value.word[3])
                 : "memory");
}
TOKEN_DEVICE void st_global_8B(void* to, const Vec8B& value) {
    asm volatile(
        "st.global.v2.u32 [%0], {%1, %2};" ::"l"(to), "r"(value.word[0]), "r"(value.word[1])
        : "memory");
}
TOKEN_DEVICE void st_global_4B(void* to, uint32_t value) {
    asm volatile("st.global.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}
TOKEN_DEVICE void st_global_2B(void* to, uint16_t value) {
    asm volatile("st.global.u16 [%0], %1;" ::"l"(to), "h"(value) : "memory");
}
TOKEN_DEVICE void st_global_1B(void* to, uint8_t value) {
    asm volatile("st.global.u8 [%0], %1;" ::"l"(to), "r"(uint32_t{value}) : "memory");
}

// Volatile, though nobody writes: a compiler that moves the loads of a loop in front of it keeps a
// row of values in registers that the loop needs for other things.
TOKEN_DEVICE Vec16B ld_global_nc_16B(const void* from) {
    Vec16B value;
    asm volatile(
        "ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(value.word[0]), "=r"(value.word[1]), "=r"(value.word[2]), "=r"(value.word[3])
        : "l"(from));
    return value;
}
TOKEN_DEVICE uint32_t ld_global_nc_4B(const void* from) {
    uint32_t value;
    asm volatile("ld.global.nc.u32 %0, [%1];" : "=r"(value) : "l"(from));
    return value;
}
TOKEN_DEVICE uint16_t ld_global_nc_2B(const void* from) {
    uint16_t value;
    asm volatile("ld.global.nc.u16 %0, [%1];" : "=h"(value) : "l"(from));
    return value;
}

}  // namespace token::ptx
