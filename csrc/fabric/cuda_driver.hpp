// The calls of the CUDA driver that moving bytes without kernels needs. They are found when they
// are asked for, by dlopen: nothing here links libcuda, and without a driver there is a reason.
//
// Behind the table may also stand streams in software (tests/software_stream.hpp), which is how
// what is built on it is tested on machines without a GPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

namespace token::fabric {

using DeviceAddress = uint64_t;

// Values of cuda.h.
inline constexpr unsigned kWaitUntilReached = 0x0;     // (int32_t)(*address - value) >= 0
inline constexpr unsigned kWriteAfterAll = 0x0;        // what the stream wrote before is visible
inline constexpr unsigned kWriteWithoutBarrier = 0x1;  // nothing is said about what was before
inline constexpr unsigned kNonBlockingStream = 0x1;
inline constexpr unsigned kEventWithoutTime = 0x2;
inline constexpr unsigned kRegisterPortableMapped = 0x3;
inline constexpr int kNotReady = 600;

// Each returns 0 or a CUresult. Streams, events and contexts are the driver's handles.
struct DriverCalls {
    int (*memcpy_async)(DeviceAddress to, DeviceAddress from, size_t num_bytes, void* stream);
    int (*memset_async)(DeviceAddress to, unsigned char value, size_t num_bytes, void* stream);
    int (*write_value)(void* stream, DeviceAddress to, uint32_t value, unsigned flags);
    int (*wait_value)(void* stream, DeviceAddress at, uint32_t value, unsigned flags);
    int (*create_stream)(void** stream, unsigned flags, int priority);
    int (*destroy_stream)(void* stream);
    int (*query_stream)(void* stream);
    int (*is_capturing)(void* stream, int* status);
    int (*create_event)(void** event, unsigned flags);
    int (*destroy_event)(void* event);
    int (*record_event)(void* event, void* stream);
    int (*wait_event)(void* stream, void* event, unsigned flags);
    int (*synchronize)();
    int (*retain_context)(void** context, int device);
    int (*release_context)(int device);
    int (*push_context)(void* context);
    int (*pop_context)(void** context);
    int (*register_memory)(void* memory, size_t num_bytes, unsigned flags);
    int (*unregister_memory)(void* memory);
    int (*device_address)(DeviceAddress* address, void* memory, unsigned flags);
    int (*error_name)(int code, const char** name);
};

struct FoundDriver {
    std::optional<DriverCalls> calls;
    int version = 0;      // of the CUDA the driver supports: 13020 is 13.2
    std::string why_not;  // where `calls` is empty: what is missing and what to do
};

// The first driver whose stream memory operations are those of this table.
inline constexpr int kLeastDriverVersion = 12000;

// Loads and initialises the driver. It is never unloaded: its threads outlive every caller.
FoundDriver find_cuda_driver(const char* library = "libcuda.so.1");

// Throws SystemFailure with the name of the error and of the call; `call` as in cuda.h.
void check_driver(const DriverCalls& calls, int code, const char* call);

// Calls of the driver need a context on the calling thread: this one, while the object lives.
class WithContext {
  public:
    WithContext(const DriverCalls& calls, void* context) : calls_(calls) {
        check_driver(calls_, calls_.push_context(context), "cuCtxPushCurrent");
    }
    ~WithContext() {
        void* popped = nullptr;
        calls_.pop_context(&popped);
    }
    WithContext(const WithContext&) = delete;
    WithContext& operator=(const WithContext&) = delete;

  private:
    const DriverCalls& calls_;
};

}  // namespace token::fabric
