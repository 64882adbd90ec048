// The calls that the compiler puts before every memory access of kernel code (-fsanitize=thread,
// whose runtime library is not linked: this file stands in its place). Thus plain C++ loads and
// stores, to shared memory above all, are scheduling points and are checked like those through
// token::ptx.
#include "machine.hpp"

#include <atomic>
#include <cstdint>

namespace {

using token::emulator::Access;
using token::emulator::Machine;

inline void access(const void* at, size_t num_bytes, Access kind, const void* from) {
    Machine* machine = Machine::running();
    if (machine != nullptr) {
        machine->plain_access(at, num_bytes, kind, from);
    }
}

}  // namespace

#define TOKEN_CALLER __builtin_return_address(0)
#define TOKEN_HOOKS_OF_SIZE(size)                       \
    void __tsan_read##size(void* at) {                  \
        access(at, size, Access::kRead, TOKEN_CALLER);  \
    }                                                   \
    void __tsan_write##size(void* at) {                 \
        access(at, size, Access::kWrite, TOKEN_CALLER); \
    }                                                   \
    void __tsan_unaligned_read##size(void* at) {        \
        access(at, size, Access::kRead, TOKEN_CALLER);  \
    }                                                   \
    void __tsan_unaligned_write##size(void* at) {       \
        access(at, size, Access::kWrite, TOKEN_CALLER); \
    }

// Host code of a test may use atomics; kernels have token::ptx.
#define TOKEN_ATOMIC_HOOKS(bits)                                                               \
    uint##bits##_t __tsan_atomic##bits##_load(const volatile uint##bits##_t* at, int) {        \
        return __atomic_load_n(at, __ATOMIC_SEQ_CST);                                          \
    }                                                                                          \
    void __tsan_atomic##bits##_store(volatile uint##bits##_t* at, uint##bits##_t value, int) { \
        __atomic_store_n(at, value, __ATOMIC_SEQ_CST);                                         \
    }                                                                                          \
    uint##bits##_t __tsan_atomic##bits##_fetch_add(                                            \
        volatile uint##bits##_t* at, uint##bits##_t value, int) {                              \
        return __atomic_fetch_add(at, value, __ATOMIC_SEQ_CST);                                \
    }                                                                                          \
    uint##bits##_t __tsan_atomic##bits##_fetch_sub(                                            \
        volatile uint##bits##_t* at, uint##bits##_t value, int) {                              \
        return __atomic_fetch_sub(at, value, __ATOMIC_SEQ_CST);                                \
    }

extern "C" {

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_read_range(void* at, unsigned long num_bytes) {
    access(at, num_bytes, Access::kRead, TOKEN_CALLER);
}
void __tsan_write_range(void* at, unsigned long num_bytes) {
    access(at, num_bytes, Access::kWrite, TOKEN_CALLER);
}
TOKEN_HOOKS_OF_SIZE(1)
TOKEN_HOOKS_OF_SIZE(2)
TOKEN_HOOKS_OF_SIZE(4)
TOKEN_HOOKS_OF_SIZE(8)
TOKEN_HOOKS_OF_SIZE(16)
TOKEN_ATOMIC_HOOKS(8)
TOKEN_ATOMIC_HOOKS(32)
TOKEN_ATOMIC_HOOKS(64)

}  // extern "C"
