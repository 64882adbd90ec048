// Instructions on a multicast address, which stands for the same offset in the memory of every GPU
// of the group. sm_90 and later; before, they trap (the launcher refuses such a GPU by name).
#pragma once

#include "token/common/host_device.hpp"
#include "token/common/int_types.hpp"
#include "token/ptx/vector_types.hpp"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define TOKEN_PTX_MULTIMEM(...) asm volatile("trap;" ::: "memory")
#else
#define TOKEN_PTX_MULTIMEM(...) asm volatile(__VA_ARGS__)
#endif

namespace token::ptx {

// The sum over the GPUs of eight bf16 each, added in fp32 and rounded once (to nearest even).
TOKEN_DEVICE Vec16B multimem_ld_reduce_add_acc_f32_bf16x2_relaxed_sys(const void* from) {
    Vec16B sum{};
    TOKEN_PTX_MULTIMEM(
        "multimem.ld_reduce.relaxed.sys.global.add.acc::f32.v4.bf16x2 {%0, %1, %2, %3}, [%4];"
        : "=r"(sum.word[0]), "=r"(sum.word[1]), "=r"(sum.word[2]), "=r"(sum.word[3])
        : "l"(from)
        : "memory");
    return sum;
}
// Of eight fp16 each.
TOKEN_DEVICE Vec16B multimem_ld_reduce_add_acc_f32_f16x2_relaxed_sys(const void* from) {
    Vec16B sum{};
    TOKEN_PTX_MULTIMEM(
        "multimem.ld_reduce.relaxed.sys.global.add.acc::f32.v4.f16x2 {%0, %1, %2, %3}, [%4];" : "="
                                                                                                "r"(sum.word
                                                                                                        [0]),
        "=r"(sum.word[1]),
        "=r"(sum.word[2]),
        "=r"(sum.word[3]) : "l"(from) : "memory");
    return sum;
}
// The same bytes to every GPU. The f32 of the instruction is only a size: bits are moved.
TOKEN_DEVICE void multimem_st_relaxed_sys(void* to, const Vec16B& value) {
    TOKEN_PTX_MULTIMEM("multimem.st.relaxed.sys.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to),
                       "r"(value.word[0]),
                       "r"(value.word[1]),
                       "r"(value.word[2]),
                       "r"(value.word[3]) : "memory");
}
TOKEN_DEVICE void multimem_st_relaxed_sys(void* to, const Vec8B& value) {
    TOKEN_PTX_MULTIMEM("multimem.st.relaxed.sys.global.v2.f32 [%0], {%1, %2};" ::"l"(to),
                       "r"(value.word[0]),
                       "r"(value.word[1]) : "memory");
}
TOKEN_DEVICE void multimem_st_relaxed_sys(uint32_t* to, uint32_t value) {
    TOKEN_PTX_MULTIMEM("multimem.st.relaxed.sys.global.u32 [%0], %1;" ::"l"(to),
                       "r"(value) : "memory");
}
// What this thread (and, after a barrier of the block, the block) wrote before is visible on a GPU
// that acquires the word.
TOKEN_DEVICE void multimem_st_release_sys(uint32_t* to, uint32_t value) {
    TOKEN_PTX_MULTIMEM("multimem.st.release.sys.global.u32 [%0], %1;" ::"l"(to),
                       "r"(value) : "memory");
}

}  // namespace token::ptx

#undef TOKEN_PTX_MULTIMEM
