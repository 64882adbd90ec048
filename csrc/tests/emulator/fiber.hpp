// Fibers: a stack and a place to go on. A switch is a hand-written exchange of registers on x86-64
// (tens of nanoseconds) and ucontext elsewhere (a system call each).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace token::emulator {

class Fiber {
  public:
    static constexpr size_t kStackBytes = 64 << 10;

    // Without a stack: the context of whoever calls switch_to first (the host).
    Fiber() = default;
    Fiber(const Fiber&) = delete;
    Fiber& operator=(const Fiber&) = delete;

    // Prepares entry(argument) to run on `stack` at the next switch. entry never returns.
    void prepare(std::byte* stack, void (*entry)(void*), void* argument);
    // Saves this fiber, the one that runs, and goes on with `next`.
    void switch_to(Fiber& next);
    // False once the stack has grown over its last word.
    bool is_intact() const;

  private:
    std::byte* stack_ = nullptr;
#if defined(__x86_64__)
    void* stack_pointer_ = nullptr;
#else
    ucontext_t context_{};
#endif
};

// Stacks are reused: touching fresh pages for thousands of fibers would cost more than running
// them.
class StackPool {
  public:
    ~StackPool();
    std::byte* take();
    void give_back(std::byte* stack) { free_.push_back(stack); }

  private:
    static constexpr int kStacksPerSlab = 64;
    std::vector<void*> slabs_;
    std::vector<std::byte*> free_;
};

}  // namespace token::emulator
