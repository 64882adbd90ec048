// Shadow of token/ptx/scoped.hpp.
#pragma once

#include "device.hpp"

namespace token::ptx {

using emulator::device::Order;

inline uint32_t ld_acquire_sys(const uint32_t* from) {
    return static_cast<uint32_t>(emulator::device::load_word(from, 4, Order::kAcquire));
}
inline uint32_t ld_relaxed_sys(const uint32_t* from) {
    return static_cast<uint32_t>(emulator::device::load_word(from, 4, Order::kRelaxed));
}
inline uint64_t ld_acquire_sys(const uint64_t* from) {
    return emulator::device::load_word(from, 8, Order::kAcquire);
}
inline void st_release_sys(uint32_t* to, uint32_t value) {
    emulator::device::store_word(to, value, 4, Order::kRelease);
}
inline void st_relaxed_sys(uint32_t* to, uint32_t value) {
    emulator::device::store_word(to, value, 4, Order::kRelaxed);
}
inline void st_release_sys(uint64_t* to, uint64_t value) {
    emulator::device::store_word(to, value, 8, Order::kRelease);
}
inline uint32_t atom_exch_relaxed_gpu(uint32_t* at, uint32_t value) {
    return emulator::device::exchange_word(at, value);
}
inline void fence_acq_rel_sys() {
    emulator::device::fence_acq_rel();
}
inline void fence_proxy_alias() {
    emulator::device::fence_aliases();
}

}  // namespace token::ptx
