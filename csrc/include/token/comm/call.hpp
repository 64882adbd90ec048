// What a collective is called in records and in error messages.
#pragma once

#include "token/comm/protocol.hpp"
#include "token/common/check.hpp"
#include "token/common/dtype.hpp"

#include <cstdint>
#include <string>

namespace token::comm {

// Values are compared between ranks: never renumber.
enum class Operation : uint32_t {
    kBarrier = 0,
    kAllReduceRmsNorm = 1,
    kAllReduce = 2,
    kReduceScatter = 3,
    kAllGather = 4,
    kBroadcast = 5,
    kMessages = 6,  // point-to-point, between the ranks of a plan
};

inline const char* operation_name(Operation operation) {
    switch (operation) {
        case Operation::kBarrier:
            return "barrier";
        case Operation::kAllReduceRmsNorm:
            return "allreduce_rmsnorm";
        case Operation::kAllReduce:
            return "all_reduce";
        case Operation::kReduceScatter:
            return "reduce_scatter";
        case Operation::kAllGather:
            return "all_gather";
        case Operation::kBroadcast:
            return "broadcast";
        case Operation::kMessages:
            return "messages";
    }
    return "unknown operation";
}

inline std::string describe_call(const CallRecord& call) {
    const auto operation = static_cast<Operation>(call.operation);
    if (operation == Operation::kBarrier) {
        return "barrier()";
    }
    return concat(operation_name(operation),
                  "(",
                  call.rows,
                  " x ",
                  call.row_elems,
                  " ",
                  dtype_name(static_cast<DType>(call.dtype)),
                  ", options ",
                  std::hex,
                  call.options,
                  ")");
}

// FNV-1a over the arguments that must agree between ranks and have no field of their own in
// CallRecord.
class OptionsHash {
  public:
    template <class Value>
    OptionsHash& add(Value value) {
        static_assert(std::is_arithmetic_v<Value> || std::is_enum_v<Value>);
        unsigned char bytes[sizeof(Value)];
        __builtin_memcpy(bytes, &value, sizeof(Value));
        for (unsigned char byte : bytes) {
            hash_ = (hash_ ^ byte) * 16777619u;
        }
        return *this;
    }
    uint32_t value() const { return hash_; }

  private:
    uint32_t hash_ = 2166136261u;
};

}  // namespace token::comm
