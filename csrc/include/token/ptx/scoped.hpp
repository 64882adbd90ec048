// Signal words: scoped loads, stores and fences of one word. The memory order and the scope are in
// the name; sys is every GPU and the host.
#pragma once

#include "token/common/host_device.hpp"
#include "token/common/int_types.hpp"

namespace token::ptx {

TOKEN_DEVICE uint32_t ld_acquire_sys(const uint32_t* from) {
    uint32_t value;
    asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
    return value;
}
TOKEN_DEVICE uint32_t ld_relaxed_sys(const uint32_t* from) {
    uint32_t value;
    asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
    return value;
}
TOKEN_DEVICE uint64_t ld_acquire_sys(const uint64_t* from) {
    uint64_t value;
    asm volatile("ld.acquire.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(from) : "memory");
    return value;
}
TOKEN_DEVICE void st_release_sys(uint32_t* to, uint32_t value) {
    asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}
TOKEN_DEVICE void st_relaxed_sys(uint32_t* to, uint32_t value) {
    asm volatile("st.relaxed.sys.global.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}
TOKEN_DEVICE void st_release_sys(uint64_t* to, uint64_t value) {
    asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(to), "l"(value) : "memory");
}
// Returns the word that was there before: of all threads of this GPU, one gets the old value.
TOKEN_DEVICE uint32_t atom_exch_relaxed_gpu(uint32_t* at, uint32_t value) {
    uint32_t before;
    asm volatile("atom.relaxed.gpu.global.exch.b32 %0, [%1], %2;"
                 : "=r"(before)
                 : "l"(at), "r"(value)
                 : "memory");
    return before;
}
TOKEN_DEVICE void fence_acq_rel_sys() {
    asm volatile("fence.acq_rel.sys;" ::: "memory");
}
// Between accesses to the same memory through different addresses: the multicast address of a
// buffer and a rank's own one are aliases that the memory model treats apart.
TOKEN_DEVICE void fence_proxy_alias() {
    asm volatile("fence.proxy.alias;" ::: "memory");
}

}  // namespace token::ptx
