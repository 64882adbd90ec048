// Seeded bug: signals without release. Must be reported by ThreadSanitizer (see CMakeLists.txt).
#include "ring_of_words.hpp"

namespace {

struct RelaxedMemory {
    static void signal(token::comm::SignalLine& line, uint32_t value) {
        std::atomic_ref<uint32_t>(line.value).store(value, std::memory_order_relaxed);
        token::comm::futex_wake_all(&line.value);
    }
};

}  // namespace

int main() {
    token::testing::exchange_slices<RelaxedMemory>(3, 0, 200);
    return token::testing::finish("protocol_relaxed");
}
