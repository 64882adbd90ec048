// Shadow of token/ptx/multimem.hpp.
#pragma once

#include "device.hpp"
#include "token/ptx/vector_types.hpp"

namespace token::ptx {

inline Vec16B multimem_ld_reduce_add_acc_f32_bf16x2_relaxed_sys(const void* from) {
    Vec16B sum;
    emulator::device::multicast_add(&sum, from, sizeof(sum), emulator::device::Half::kBFloat16);
    return sum;
}
inline Vec16B multimem_ld_reduce_add_acc_f32_f16x2_relaxed_sys(const void* from) {
    Vec16B sum;
    emulator::device::multicast_add(&sum, from, sizeof(sum), emulator::device::Half::kFloat16);
    return sum;
}
inline void multimem_st_relaxed_sys(void* to, const Vec16B& value) {
    emulator::device::multicast_store(to, &value, sizeof(value));
}
inline void multimem_st_relaxed_sys(void* to, const Vec8B& value) {
    emulator::device::multicast_store(to, &value, sizeof(value));
}
inline void multimem_st_relaxed_sys(uint32_t* to, uint32_t value) {
    emulator::device::multicast_store(to, &value, sizeof(value));
}
inline void multimem_st_release_sys(uint32_t* to, uint32_t value) {
    emulator::device::multicast_store_word(to, value, emulator::device::Order::kRelease);
}

}  // namespace token::ptx
