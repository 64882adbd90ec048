// A piece of shared memory without a name: a memfd, allocated in full when it is made, gone when
// the last process that maps it is.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace token::fabric {

// Owns a file descriptor.
class UniqueFd {
  public:
    UniqueFd() = default;
    explicit UniqueFd(int fd) : fd_(fd) {}
    UniqueFd(UniqueFd&& other) noexcept : fd_(other.release()) {}
    UniqueFd& operator=(UniqueFd&& other) noexcept;
    ~UniqueFd() { reset(); }

    int get() const { return fd_; }
    explicit operator bool() const { return fd_ >= 0; }
    int release() {
        const int fd = fd_;
        fd_ = -1;
        return fd;
    }
    void reset();

  private:
    int fd_ = -1;
};

enum class Access { kReadWrite, kReadOnly };

class Segment {
  public:
    // Allocates every page now: a shortage is an exception here with the figures, not a SIGBUS
    // later. Pages land on the NUMA node of the calling thread. num_ranks: how many ranks of this
    // host ask for as much at once, for the check against free memory.
    static UniqueFd create(int64_t num_bytes, int num_ranks);

    // Maps a peer's (or the own) memfd; checks that it is as large as announced and cannot shrink.
    static std::shared_ptr<Segment> map(int fd, int64_t num_bytes, Access access);

    ~Segment();
    Segment(const Segment&) = delete;
    Segment& operator=(const Segment&) = delete;

    std::byte* data() const { return data_; }
    int64_t num_bytes() const { return num_bytes_; }

  private:
    Segment(std::byte* data, int64_t num_bytes) : data_(data), num_bytes_(num_bytes) {}

    std::byte* data_;
    int64_t num_bytes_;
};

// Memory this process may still take: the least of MemAvailable and the room under each cgroup
// limit.
int64_t available_memory_bytes();

}  // namespace token::fabric
