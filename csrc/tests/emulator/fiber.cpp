#include "fiber.hpp"

#include <cstring>
#include <new>
#include <sys/mman.h>

namespace token::emulator {
namespace {

constexpr uint64_t kStackEnd = 0x5ac5ac5ac5ac5ac5;

}  // namespace

bool Fiber::is_intact() const {
    uint64_t end = kStackEnd;
    if (stack_ != nullptr) {
        std::memcpy(&end, stack_, sizeof(end));
    }
    return end == kStackEnd;
}

#if defined(__x86_64__)

extern "C" void token_emulator_switch(void** save_stack, void* load_stack);

namespace {

// What the first switch into a fiber returns to: entry and argument lie in callee-saved registers.
struct FirstFrame {
    void* r15;
    void* r14;
    void* argument;        // r13
    void (*entry)(void*);  // r12
    void* rbx;
    void* rbp;
    void (*start)();
};

}  // namespace

extern "C" void token_emulator_start();

void Fiber::prepare(std::byte* stack, void (*entry)(void*), void* argument) {
    stack_ = stack;
    std::memcpy(stack_, &kStackEnd, sizeof(kStackEnd));
    // Once all of the frame is taken off, the stack pointer is a multiple of 16, as before a call.
    std::byte* top = stack + kStackBytes - 16 - sizeof(FirstFrame);
    new (top) FirstFrame{nullptr, nullptr, argument, entry, nullptr, nullptr, token_emulator_start};
    stack_pointer_ = top;
}

void Fiber::switch_to(Fiber& next) {
    token_emulator_switch(&stack_pointer_, next.stack_pointer_);
}

#else

namespace {

// makecontext passes ints: a pointer travels in two.
void start(unsigned entry_high, unsigned entry_low, unsigned high, unsigned low) {
    const auto join = [](unsigned upper, unsigned lower) {
        return static_cast<uintptr_t>(uint64_t{upper} << 32 | lower);
    };
    reinterpret_cast<void (*)(void*)>(join(entry_high, entry_low))(
        reinterpret_cast<void*>(join(high, low)));
}

}  // namespace

void Fiber::prepare(std::byte* stack, void (*entry)(void*), void* argument) {
    stack_ = stack;
    std::memcpy(stack_, &kStackEnd, sizeof(kStackEnd));
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack + sizeof(kStackEnd);
    context_.uc_stack.ss_size = kStackBytes - sizeof(kStackEnd);
    context_.uc_link = nullptr;
    const uint64_t code = reinterpret_cast<uintptr_t>(entry);
    const uint64_t data = reinterpret_cast<uintptr_t>(argument);
    makecontext(&context_,
                reinterpret_cast<void (*)()>(start),
                4,
                static_cast<unsigned>(code >> 32),
                static_cast<unsigned>(code),
                static_cast<unsigned>(data >> 32),
                static_cast<unsigned>(data));
}

void Fiber::switch_to(Fiber& next) {
    swapcontext(&context_, &next.context_);
}

#endif

StackPool::~StackPool() {
    for (void* slab : slabs_) {
        munmap(slab, kStacksPerSlab * Fiber::kStackBytes);
    }
}

std::byte* StackPool::take() {
    if (free_.empty()) {
        void* slab = mmap(nullptr,
                          kStacksPerSlab * Fiber::kStackBytes,
                          PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                          -1,
                          0);
        if (slab == MAP_FAILED) {
            throw std::bad_alloc();
        }
        slabs_.push_back(slab);
        for (int i = 0; i < kStacksPerSlab; ++i) {
            free_.push_back(static_cast<std::byte*>(slab) + i * Fiber::kStackBytes);
        }
    }
    std::byte* stack = free_.back();
    free_.pop_back();
    return stack;
}

}  // namespace token::emulator
