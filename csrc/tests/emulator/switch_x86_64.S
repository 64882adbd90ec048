// void token_emulator_switch(void** save_stack, void* load_stack): stores this fiber's callee-saved
// registers on its own stack, its stack pointer in *save_stack, and goes on where the other fiber
// stopped. System V ABI; the floating-point control words are never changed by kernels.
    .text
    .globl token_emulator_switch
    .type token_emulator_switch, @function
token_emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size token_emulator_switch, .-token_emulator_switch

// The first switch into a fiber arrives here, with its entry in r12 and the argument in r13.
    .globl token_emulator_start
    .type token_emulator_start, @function
token_emulator_start:
    xorl %ebp, %ebp
    movq %r13, %rdi
    callq *%r12
    ud2
    .size token_emulator_start, .-token_emulator_start
    .section .note.GNU-stack, "", @progbits
