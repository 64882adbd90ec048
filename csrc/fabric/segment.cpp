#include "segment.hpp"

#include "token/common/check.hpp"

#include <algorithm>
#include <cerrno>
#include <fcntl.h>
#include <fstream>
#include <limits>
#include <string>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <utility>

namespace token::fabric {

UniqueFd& UniqueFd::operator=(UniqueFd&& other) noexcept {
    if (this != &other) {
        reset();
        fd_ = other.release();
    }
    return *this;
}

void UniqueFd::reset() {
    if (fd_ >= 0) {
        ::close(fd_);
        fd_ = -1;
    }
}

namespace {

int64_t read_number(const std::string& path, int64_t otherwise) {
    std::ifstream file(path);
    int64_t number = 0;
    return file >> number ? number : otherwise;  // "max" does not parse: no limit
}

int64_t mem_available() {
    std::ifstream file("/proc/meminfo");
    std::string key, unit;
    int64_t kib = 0;
    while (file >> key >> kib) {
        std::getline(file, unit);
        if (key == "MemAvailable:") {
            return kib * 1024;
        }
    }
    return std::numeric_limits<int64_t>::max();
}

// Shared memory counts against the cgroup of whoever touches it first, and going over kills the
// process instead of failing the call.
int64_t cgroup_room() {
    std::ifstream file("/proc/self/cgroup");
    int64_t room = std::numeric_limits<int64_t>::max();
    for (std::string line; std::getline(file, line);) {
        if (!line.starts_with("0::")) {
            continue;
        }
        for (std::string group = line.substr(3); !group.empty(); group.resize(group.rfind('/'))) {
            const std::string folder = "/sys/fs/cgroup" + group;
            const int64_t limit = read_number(folder + "/memory.max", -1);
            if (limit >= 0) {
                room = std::min(room, limit - read_number(folder + "/memory.current", 0));
            }
            if (group.rfind('/') == std::string::npos) {
                break;
            }
        }
    }
    return room;
}

double gib(int64_t bytes) {
    return static_cast<double>(bytes) / (1 << 30);
}

}  // namespace

int64_t available_memory_bytes() {
    return std::min(mem_available(), cgroup_room());
}

UniqueFd Segment::create(int64_t num_bytes, int num_ranks) {
    TOKEN_CHECK(num_bytes > 0, "a shared segment needs a positive size, got ", num_bytes, " bytes");
    const int64_t available = available_memory_bytes();
    TOKEN_CHECK(num_bytes <= available / num_ranks,
                "not enough memory: ",
                num_ranks,
                " rank(s) of ",
                gib(num_bytes),
                " GiB each need ",
                gib(num_bytes) * num_ranks,
                " GiB of shared memory, and ",
                gib(available),
                " GiB are available on this host. Ask for less or free memory first.");
    UniqueFd fd(::memfd_create("tokenfabric", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    if (!fd) {
        throw_system_failure("memfd_create failed");
    }
    if (::fallocate(fd.get(), 0, 0, num_bytes) != 0) {
        if (errno == ENOSPC || errno == ENOMEM) {
            throw InvalidArgument(concat("not enough memory for a shared segment of ",
                                         gib(num_bytes),
                                         " GiB: ",
                                         gib(available_memory_bytes()),
                                         " GiB are available"));
        }
        throw_system_failure("fallocate of ", num_bytes, " bytes failed");
    }
    // Nobody who holds the descriptor can truncate the file under a peer's mapping.
    if (::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
        throw_system_failure("sealing a memfd failed");
    }
    return fd;
}

std::shared_ptr<Segment> Segment::map(int fd, int64_t num_bytes, Access access) {
    struct stat status{};
    if (::fstat(fd, &status) != 0) {
        throw_system_failure("fstat of a shared segment failed");
    }
    const int seals = ::fcntl(fd, F_GET_SEALS);
    if (status.st_size != num_bytes || seals < 0 || (seals & F_SEAL_SHRINK) == 0) {
        throw SystemFailure(concat("a peer sent a segment of ",
                                   status.st_size,
                                   " bytes with seals ",
                                   seals,
                                   " where ",
                                   num_bytes,
                                   " sealed bytes were announced"));
    }
    const int protection = access == Access::kReadWrite ? PROT_READ | PROT_WRITE : PROT_READ;
    // Populated now: the page-table entries are otherwise made one fault at a time inside the first
    // collectives (about 0.2 us for each 4 KiB).
    void* data = ::mmap(nullptr, num_bytes, protection, MAP_SHARED | MAP_POPULATE, fd, 0);
    if (data == MAP_FAILED) {
        throw_system_failure("mapping ", num_bytes, " bytes of shared memory failed");
    }
    return std::shared_ptr<Segment>(new Segment(static_cast<std::byte*>(data), num_bytes));
}

Segment::~Segment() {
    ::munmap(data_, num_bytes_);
}

}  // namespace token::fabric
