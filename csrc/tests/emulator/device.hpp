// What stands behind the shadow headers of token/ptx and the builtins: calls into the machine that
// runs, made by the thread that runs.
#pragma once

#include "token/common/int_types.hpp"

namespace token::emulator::device {

struct Index {
    uint32_t x, y, z;
};
Index thread_index();
Index block_index();
Index block_size();
Index grid_size();
void* dynamic_shared(unsigned long num_bytes);

// num_threads 0: all threads of the block that have not ended.
void block_barrier(int id, int num_threads);
void warp_barrier(uint32_t mask);
uint64_t from_lane(uint32_t mask, uint64_t value, int lane);
uint32_t ballot(uint32_t mask, bool value);
int lane();

void load(void* to, const void* from, unsigned long num_bytes);
void store(void* to, const void* from, unsigned long num_bytes);

enum class Order { kRelaxed, kAcquire, kRelease };
uint64_t load_word(const void* from, unsigned long num_bytes, Order order);
void store_word(void* to, uint64_t value, unsigned long num_bytes, Order order);
uint32_t exchange_word(uint32_t* at, uint32_t value);
void fence_acq_rel();
void fence_aliases();

// Adds num_bytes / 2 elements of every rank in fp32, in the order that the schedule picks, and
// rounds each sum once.
enum class Half { kBFloat16, kFloat16 };
void multicast_add(void* to, const void* from, unsigned long num_bytes, Half type);
void multicast_store(void* to, const void* from, unsigned long num_bytes);
void multicast_store_word(uint32_t* to, uint32_t value, Order order);

uint64_t now_ns();
void sleep(uint64_t duration_ns);
[[noreturn]] void trap();

}  // namespace token::emulator::device
