// The exceptions of the native code. bindings/errors.cpp turns each into the Python class of the
// same meaning (tokenfabric/errors.py); nothing here prints or exits.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

namespace token {

// A value the caller passed is out of range: ConfigError in Python.
struct InvalidArgument : std::invalid_argument {
    using std::invalid_argument::invalid_argument;
};

// A system call failed in a way no argument explains: TokenFabricError in Python.
struct SystemFailure : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Where a collective stood when it failed. peer_rank is -1 when no single peer is to blame.
struct CommContext {
    int rank = -1;
    int peer_rank = -1;
    std::string operation;
    uint32_t epoch = 0;
};

struct CommError : std::runtime_error {
    CommError(const std::string& message, CommContext where)
        : std::runtime_error(message), context(std::move(where)) {}
    CommContext context;
};

struct PeerLost : CommError {
    using CommError::CommError;
};

struct CommTimeout : CommError {
    using CommError::CommError;
};

// The ranks called different collectives. Raised before any data moves; the group stays usable.
struct CallMismatch : CommError {
    using CommError::CommError;
};

}  // namespace token
