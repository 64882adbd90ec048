// Waiting for a socket with a deadline.
#pragma once

#include "token/common/check.hpp"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <poll.h>

namespace token::fabric {

using Clock = std::chrono::steady_clock;

inline Clock::time_point deadline_after(double timeout_s) {
    return Clock::now() + std::chrono::nanoseconds(static_cast<int64_t>(timeout_s * 1e9));
}

// True when fd is readable; false at the deadline.
inline bool wait_readable(int fd, Clock::time_point deadline) {
    while (true) {
        const auto left =
            std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now()).count();
        pollfd entry{fd, POLLIN, 0};
        const int ready = ::poll(&entry, 1, static_cast<int>(std::max<int64_t>(left, 0)));
        if (ready > 0) {
            return true;
        }
        if (ready == 0) {
            return false;
        }
        if (errno != EINTR) {
            throw_system_failure("poll on a peer's socket failed");
        }
    }
}

}  // namespace token::fabric
