#include "cuda_driver.hpp"

#include "token/common/check.hpp"

#include <dlfcn.h>

namespace token::fabric {

namespace {

// The names that cuda.h of CUDA 12 and 13 gives these functions. The first ones of CUDA 4 to 11,
// without a suffix or with a smaller one, are other functions.
template <class Function>
void find(void* library, const char* name, Function*& function, std::string& missing) {
    function = reinterpret_cast<Function*>(::dlsym(library, name));
    if (function == nullptr && missing.empty()) {
        missing = name;
    }
}

std::string find_all(void* library, DriverCalls& calls) {
    std::string missing;
    find(library, "cuMemcpyAsync", calls.memcpy_async, missing);
    find(library, "cuMemsetD8Async", calls.memset_async, missing);
    find(library, "cuStreamWriteValue32_v2", calls.write_value, missing);
    find(library, "cuStreamWaitValue32_v2", calls.wait_value, missing);
    find(library, "cuStreamCreateWithPriority", calls.create_stream, missing);
    find(library, "cuStreamDestroy_v2", calls.destroy_stream, missing);
    find(library, "cuStreamQuery", calls.query_stream, missing);
    find(library, "cuStreamIsCapturing", calls.is_capturing, missing);
    find(library, "cuEventCreate", calls.create_event, missing);
    find(library, "cuEventDestroy_v2", calls.destroy_event, missing);
    find(library, "cuEventRecord", calls.record_event, missing);
    find(library, "cuStreamWaitEvent", calls.wait_event, missing);
    find(library, "cuCtxSynchronize", calls.synchronize, missing);
    find(library, "cuDevicePrimaryCtxRetain", calls.retain_context, missing);
    find(library, "cuDevicePrimaryCtxRelease_v2", calls.release_context, missing);
    find(library, "cuCtxPushCurrent_v2", calls.push_context, missing);
    find(library, "cuCtxPopCurrent_v2", calls.pop_context, missing);
    find(library, "cuMemHostRegister_v2", calls.register_memory, missing);
    find(library, "cuMemHostUnregister", calls.unregister_memory, missing);
    find(library, "cuMemHostGetDevicePointer_v2", calls.device_address, missing);
    find(library, "cuGetErrorName", calls.error_name, missing);
    return missing;
}

std::string name_of(const DriverCalls& calls, int code) {
    const char* name = nullptr;
    calls.error_name(code, &name);
    return concat(name == nullptr ? "an unknown error" : name, " (", code, ")");
}

std::string version_text(int version) {
    return concat(version / 1000, ".", version % 1000 / 10);
}

}  // namespace

FoundDriver find_cuda_driver(const char* library) {
    FoundDriver found;
    void* handle = ::dlopen(library, RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {
        found.why_not =
            concat("no CUDA driver here: ",
                   ::dlerror(),
                   "; install the NVIDIA driver, or start the container with access to the GPU");
        return found;
    }
    int (*get_version)(int*) = nullptr;
    int (*initialise)(unsigned) = nullptr;
    std::string missing;
    find(handle, "cuDriverGetVersion", get_version, missing);
    find(handle, "cuInit", initialise, missing);
    if (!missing.empty()) {
        found.why_not = concat(library, " is no CUDA driver: it has no ", missing);
        return found;
    }
    if (get_version(&found.version) != 0 || found.version < kLeastDriverVersion) {
        found.why_not = concat("the driver supports CUDA ",
                               version_text(found.version),
                               "; copies with stream memory operations need ",
                               version_text(kLeastDriverVersion),
                               " or newer: update the NVIDIA driver");
        return found;
    }
    DriverCalls calls{};
    missing = find_all(handle, calls);
    if (!missing.empty()) {
        found.why_not = concat("the driver, which supports CUDA ",
                               version_text(found.version),
                               ", has no ",
                               missing,
                               ": update the NVIDIA driver");
        return found;
    }
    if (const int code = initialise(0); code != 0) {
        found.why_not =
            concat("the driver finds no GPU that it can use: cuInit gave ", name_of(calls, code));
        return found;
    }
    found.calls = calls;
    return found;
}

void check_driver(const DriverCalls& calls, int code, const char* call) {
    if (code != 0) {
        throw SystemFailure(concat(call, " failed: ", name_of(calls, code)));
    }
}

}  // namespace token::fabric
