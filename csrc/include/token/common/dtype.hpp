// Element types that cross the binding. Values are part of the call record
// (token/comm/protocol.hpp): never renumber.
#pragma once

#include <cstdint>

namespace token {

enum class DType : int32_t {
    kFloat32 = 0,
    kBFloat16 = 1,
    kBytes = 2,  // moved, never reduced
    kFloat16 = 3,
};

inline int64_t element_bytes(DType dtype) {
    switch (dtype) {
        case DType::kFloat32:
            return 4;
        case DType::kBFloat16:
        case DType::kFloat16:
            return 2;
        case DType::kBytes:
            return 1;
    }
    return 0;
}

inline bool is_reducible(DType dtype) {
    return dtype == DType::kFloat32 || dtype == DType::kBFloat16 || dtype == DType::kFloat16;
}

inline const char* dtype_name(DType dtype) {
    switch (dtype) {
        case DType::kFloat32:
            return "float32";
        case DType::kBFloat16:
            return "bfloat16";
        case DType::kBytes:
            return "bytes";
        case DType::kFloat16:
            return "float16";
    }
    return "unknown";
}

}  // namespace token
