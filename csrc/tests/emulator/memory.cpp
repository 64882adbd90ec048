#include "memory.hpp"

#include <algorithm>
#include <cstring>
#include <new>
#include <sstream>
#include <sys/mman.h>

namespace token::emulator {
namespace {

constexpr size_t kReservedBytes = size_t{1} << 38;
constexpr size_t kPageBytes = 4096;
constexpr int kNaNByte = 0xff;
constexpr std::byte kCanary{0xa5};

size_t whole_pages(size_t num_bytes) {
    return (num_bytes + kPageBytes - 1) / kPageBytes * kPageBytes;
}

std::byte* reserve_addresses(int protection) {
    void* region = mmap(
        nullptr, kReservedBytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (region == MAP_FAILED) {
        throw std::bad_alloc();
    }
    return static_cast<std::byte*>(region);
}

}  // namespace

Buffer::Buffer(std::string name, int rank, std::byte* data, size_t num_bytes)
    : name_(std::move(name)), rank_(rank), data_(data), num_bytes_(num_bytes), shadow_(num_bytes) {}

Memory::Memory()
    : device_(reserve_addresses(PROT_READ | PROT_WRITE)),
      multicast_(reserve_addresses(PROT_NONE)),
      device_used_(kPageBytes),
      multicast_used_(kPageBytes) {}

Memory::~Memory() {
    munmap(device_, kReservedBytes);
    munmap(multicast_, kReservedBytes);
}

// The last byte of a buffer is the last of its page but for alignment, and a page of canaries
// follows; what precedes is the page of the buffer before.
Buffer& Memory::allocate(std::string name, int rank, size_t num_bytes, bool is_filled) {
    const size_t room = whole_pages(num_bytes);
    if (device_used_ + room + kPageBytes > kReservedBytes) {
        throw std::bad_alloc();
    }
    std::byte* data = device_ + device_used_;
    device_used_ += room + kPageBytes;
    if (is_filled) {
        std::memset(data, kNaNByte, num_bytes);
    }
    std::memset(data + num_bytes, static_cast<int>(kCanary), room + kPageBytes - num_bytes);
    buffers_.push_back(std::make_unique<Buffer>(std::move(name), rank, data, num_bytes));
    return *buffers_.back();
}

SymmetricBuffer& Memory::allocate_symmetric(const std::string& name,
                                            int num_ranks,
                                            size_t num_bytes,
                                            bool is_filled) {
    auto symmetric = std::make_unique<SymmetricBuffer>();
    for (int rank = 0; rank < num_ranks; ++rank) {
        symmetric->of_rank.push_back(&allocate(name, rank, num_bytes, is_filled));
    }
    symmetric->multicast = multicast_ + multicast_used_;
    multicast_used_ += whole_pages(num_bytes) + kPageBytes;
    symmetric_.push_back(std::move(symmetric));
    return *symmetric_.back();
}

bool Memory::is_device_address(const void* address) const {
    return address >= device_ && address < device_ + device_used_;
}

bool Memory::is_multicast_address(const void* address) const {
    return address >= multicast_ && address < multicast_ + kReservedBytes;
}

Buffer* Memory::find(const void* address, size_t num_bytes) const {
    const auto* at = static_cast<const std::byte*>(address);
    const auto holds = [&](const Buffer& buffer) {
        return at >= buffer.data() && at + num_bytes <= buffer.data() + buffer.num_bytes();
    };
    if (last_found_ != nullptr && holds(*last_found_)) {
        return last_found_;
    }
    const auto next = std::upper_bound(
        buffers_.begin(), buffers_.end(), at, [](const auto* value, const auto& b) {
            return value < b->data();
        });
    if (next == buffers_.begin() || !holds(**(next - 1))) {
        return nullptr;
    }
    last_found_ = (next - 1)->get();
    return last_found_;
}

SymmetricBuffer* Memory::find_multicast(const void* address, size_t num_bytes) const {
    const auto* at = static_cast<const std::byte*>(address);
    for (const auto& symmetric : symmetric_) {
        if (at >= symmetric->multicast &&
            at + num_bytes <= symmetric->multicast + symmetric->num_bytes()) {
            return symmetric.get();
        }
    }
    return nullptr;
}

std::string Memory::describe(const void* address) const {
    std::ostringstream text;
    const auto* at = static_cast<const std::byte*>(address);
    if (is_multicast_address(address)) {
        for (const auto& symmetric : symmetric_) {
            if (at >= symmetric->multicast &&
                at < symmetric->multicast + symmetric->num_bytes() + kPageBytes) {
                text << "multicast " << symmetric->of_rank.front()->name() << " + 0x" << std::hex
                     << at - symmetric->multicast;
                return text.str();
            }
        }
    }
    for (const auto& buffer : buffers_) {
        if (at >= buffer->data() &&
            at < buffer->data() + whole_pages(buffer->num_bytes()) + kPageBytes) {
            text << buffer->name() << " of rank " << buffer->rank() << " + 0x" << std::hex
                 << at - buffer->data() << std::dec << " (of " << buffer->num_bytes() << " bytes)";
            return text.str();
        }
    }
    text << "address " << address << " outside all buffers";
    return text.str();
}

std::string Memory::damaged_canary() const {
    for (const auto& buffer : buffers_) {
        const std::byte* end = buffer->data() + whole_pages(buffer->num_bytes()) + kPageBytes;
        const std::byte* first = buffer->data() + buffer->num_bytes();
        const std::byte* bad =
            std::find_if(first, end, [](std::byte value) { return value != kCanary; });
        if (bad != end) {
            return describe(bad);
        }
    }
    return "";
}

void Memory::forget_accesses() {
    for (const auto& buffer : buffers_) {
        buffer->shadow().clear();
    }
}

}  // namespace token::emulator
