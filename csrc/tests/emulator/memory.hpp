// The memory that emulated kernels see: named buffers of ranks, and multicast ranges that stand for
// one buffer of every rank. Every buffer is filled with NaN bytes (0xff) and lies between canaries;
// an address outside all buffers is an error, not a neighbour's data.
#pragma once

#include "clocks.hpp"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace token::emulator {

class Buffer {
  public:
    Buffer(std::string name, int rank, std::byte* data, size_t num_bytes);

    const std::string& name() const { return name_; }
    int rank() const { return rank_; }
    std::byte* data() const { return data_; }
    size_t num_bytes() const { return num_bytes_; }
    template <class T>
    T* as(size_t offset_bytes = 0) const {
        return reinterpret_cast<T*>(data_ + offset_bytes);
    }
    Shadow& shadow() { return shadow_; }

  private:
    std::string name_;
    int rank_;
    std::byte* data_;
    size_t num_bytes_;
    Shadow shadow_;
};

// One buffer a rank, at different addresses, and an address that means all of them at once.
struct SymmetricBuffer {
    std::vector<Buffer*> of_rank;
    std::byte* multicast = nullptr;

    size_t num_bytes() const { return of_rank.front()->num_bytes(); }
};

class Memory {
  public:
    Memory();
    Memory(const Memory&) = delete;
    ~Memory();

    // is_filled = false leaves the pages untouched: for buffers larger than the machine.
    Buffer& allocate(std::string name, int rank, size_t num_bytes, bool is_filled = true);
    SymmetricBuffer& allocate_symmetric(const std::string& name,
                                        int num_ranks,
                                        size_t num_bytes,
                                        bool is_filled = true);

    // The buffer that holds [address, address + num_bytes), or null.
    Buffer* find(const void* address, size_t num_bytes) const;
    // Likewise of a multicast address.
    SymmetricBuffer* find_multicast(const void* address, size_t num_bytes) const;
    bool is_device_address(const void* address) const;
    bool is_multicast_address(const void* address) const;

    // What an address is, for messages: "partial of rank 2 + 0x40".
    std::string describe(const void* address) const;
    // The first canary that was overwritten, or an empty string.
    std::string damaged_canary() const;
    void forget_accesses();

  private:
    std::byte* reserve(size_t num_bytes);

    std::byte* device_;     // [kReservedBytes] buffers and the gaps between them
    std::byte* multicast_;  // [kReservedBytes] never touched: only its addresses are used
    size_t device_used_;
    size_t multicast_used_;
    std::vector<std::unique_ptr<Buffer>> buffers_;  // by address
    std::vector<std::unique_ptr<SymmetricBuffer>> symmetric_;
    mutable Buffer* last_found_ = nullptr;
};

}  // namespace token::emulator
