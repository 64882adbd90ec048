// TOKEN_CHECK: argument checks with the values in the message.
#pragma once

#include "token/common/errors.hpp"

#include <cerrno>
#include <cstring>
#include <sstream>
#include <string>

namespace token {

template <class... Parts>
std::string concat(const Parts&... parts) {
    std::ostringstream text;
    (text << ... << parts);
    return text.str();
}

// errno must still be that of the failed call.
template <class... Parts>
[[noreturn]] void throw_system_failure(const Parts&... parts) {
    const int code = errno;
    throw SystemFailure(concat(parts..., ": ", std::strerror(code), " (errno ", code, ")"));
}

}  // namespace token

#define TOKEN_CHECK(condition, ...)                                       \
    do {                                                                  \
        if (!(condition)) {                                               \
            throw ::token::InvalidArgument(::token::concat(__VA_ARGS__)); \
        }                                                                 \
    } while (false)
