#include "device.hpp"

#include "machine.hpp"
#include "token/norm/half_bits.hpp"

#include <cstring>

// Of the caller, which is kernel code: everything between is inlined.
#define TOKEN_CALLER __builtin_return_address(0)

namespace token::emulator::device {
namespace {

Machine& machine() {
    return *Machine::running();
}

Index as_index(const Dim& dim) {
    return {dim.x, dim.y, dim.z};
}

}  // namespace

Index thread_index() {
    return as_index(machine().thread().position);
}
Index block_index() {
    return as_index(machine().thread().block->index);
}
Index block_size() {
    return as_index(machine().thread().block->launch->block);
}
Index grid_size() {
    return as_index(machine().thread().block->launch->grid);
}
int lane() {
    return machine().thread().index % kWarpSize;
}

void* dynamic_shared(unsigned long num_bytes) {
    Block& block = *machine().thread().block;
    if (num_bytes > block.launch->shared_bytes) {
        machine().fail(EmulationError::Kind::kAddress,
                       machine().describe(machine().thread()) + ": the launch asked for " +
                           std::to_string(block.launch->shared_bytes) +
                           " bytes of shared memory, the kernel uses " + std::to_string(num_bytes));
    }
    return block.shared.data();
}

void block_barrier(int id, int num_threads) {
    machine().block_barrier(id, num_threads, TOKEN_CALLER);
}
void warp_barrier(uint32_t mask) {
    machine().warp_meeting(mask, 0, 0, true, TOKEN_CALLER);
}
uint64_t from_lane(uint32_t mask, uint64_t value, int lane) {
    return machine().warp_meeting(mask, value, lane, false, TOKEN_CALLER);
}
uint32_t ballot(uint32_t mask, bool value) {
    // Every lane brings its bit; reading all of them takes one meeting a lane.
    uint32_t all = 0;
    for (int source = 0; source < kWarpSize; ++source) {
        if ((mask >> source & 1) != 0) {
            all |= static_cast<uint32_t>(
                       machine().warp_meeting(mask, value, source, false, TOKEN_CALLER))
                   << source;
        }
    }
    return all;
}

void load(void* to, const void* from, unsigned long num_bytes) {
    machine().data_access(from, num_bytes, Access::kRead, TOKEN_CALLER);
    std::memcpy(to, from, num_bytes);
}
void store(void* to, const void* from, unsigned long num_bytes) {
    machine().data_access(to, num_bytes, Access::kWrite, TOKEN_CALLER);
    std::memcpy(to, from, num_bytes);
}

uint64_t load_word(const void* from, unsigned long num_bytes, Order order) {
    return machine().load_word(from, num_bytes, order == Order::kAcquire, TOKEN_CALLER);
}
void store_word(void* to, uint64_t value, unsigned long num_bytes, Order order) {
    machine().store_word(to, value, num_bytes, order == Order::kRelease, TOKEN_CALLER);
}
uint32_t exchange_word(uint32_t* at, uint32_t value) {
    return machine().exchange_word(at, value, TOKEN_CALLER);
}
void fence_acq_rel() {
    machine().fence_acq_rel();
}
void fence_aliases() {
    machine().fence_aliases();
}

void multicast_add(void* to, const void* from, unsigned long num_bytes, Half type) {
    constexpr unsigned long kMost = 8;
    float sums[kMost] = {};
    const unsigned long count = num_bytes / sizeof(uint16_t);
    bool is_first = true;
    machine().multicast_access(
        from, num_bytes, Access::kRead, TOKEN_CALLER, [&](const std::byte* place) {
            uint16_t values[kMost];
            std::memcpy(values, place, num_bytes);
            for (unsigned long i = 0; i < count; ++i) {
                const float value = type == Half::kBFloat16 ? norm::widen_bf16(values[i])
                                                            : norm::widen_f16(values[i]);
                sums[i] = is_first ? value : sums[i] + value;
            }
            is_first = false;
        });
    uint16_t rounded[kMost];
    for (unsigned long i = 0; i < count; ++i) {
        rounded[i] =
            type == Half::kBFloat16 ? norm::round_to_bf16(sums[i]) : norm::round_to_f16(sums[i]);
    }
    std::memcpy(to, rounded, num_bytes);
}
void multicast_store(void* to, const void* from, unsigned long num_bytes) {
    machine().multicast_access(to, num_bytes, Access::kWrite, TOKEN_CALLER, [&](std::byte* place) {
        std::memcpy(place, from, num_bytes);
    });
}
void multicast_store_word(uint32_t* to, uint32_t value, Order order) {
    machine().multicast_store_word(to, value, order == Order::kRelease, TOKEN_CALLER);
}

uint64_t now_ns() {
    machine().scheduling_point();
    return machine().now_ns();
}
void sleep(uint64_t duration_ns) {
    machine().sleep(duration_ns);
}
void trap() {
    machine().fail(EmulationError::Kind::kTrap, machine().describe(machine().thread()) + ": trap");
}

}  // namespace token::emulator::device
