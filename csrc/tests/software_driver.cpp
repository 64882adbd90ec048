// A CUDA driver in software, as a shared library: the calls that fabric/cuda_driver.cpp looks up,
// over the streams of software_stream.hpp. tests/dist loads it in the place of libcuda, so that
// ranks that are processes exchange messages through the native code without a GPU. Memory is the
// host's, and so are addresses.
#include "software_stream.hpp"

#include <mutex>
#include <set>

namespace {

using token::testing::SoftwareStream;

const token::fabric::DriverCalls& calls() {
    static const token::fabric::DriverCalls table = token::testing::software_calls();
    return table;
}

std::mutex streams_mutex;
std::set<void*> streams;

}  // namespace

extern "C" {

int cuDriverGetVersion(int* version) {
    *version = 13000;
    return 0;
}
int cuInit(unsigned) {
    return 0;
}
int cuMemcpyAsync(uint64_t to, uint64_t from, size_t num_bytes, void* stream) {
    return calls().memcpy_async(to, from, num_bytes, stream);
}
int cuMemsetD8Async(uint64_t to, unsigned char value, size_t num_bytes, void* stream) {
    return calls().memset_async(to, value, num_bytes, stream);
}
int cuStreamWriteValue32_v2(void* stream, uint64_t to, uint32_t value, unsigned flags) {
    return calls().write_value(stream, to, value, flags);
}
int cuStreamWaitValue32_v2(void* stream, uint64_t at, uint32_t value, unsigned flags) {
    return calls().wait_value(stream, at, value, flags);
}
int cuStreamCreateWithPriority(void** stream, unsigned flags, int priority) {
    const int code = calls().create_stream(stream, flags, priority);
    const std::lock_guard<std::mutex> lock(streams_mutex);
    streams.insert(*stream);
    return code;
}
int cuStreamDestroy_v2(void* stream) {
    const std::lock_guard<std::mutex> lock(streams_mutex);
    streams.erase(stream);
    return calls().destroy_stream(stream);
}
int cuStreamQuery(void* stream) {
    return calls().query_stream(stream);
}
int cuStreamSynchronize(void* stream) {
    token::testing::stream_of(stream).drain();
    return 0;
}
int cuStreamIsCapturing(void* stream, int* status) {
    return calls().is_capturing(stream, status);
}
int cuStreamBeginCapture_v2(void* stream, int) {
    token::testing::stream_of(stream).is_capturing = true;
    return 0;
}
int cuStreamEndCapture(void* stream, void**) {
    token::testing::stream_of(stream).is_capturing = false;
    return 0;
}
int cuEventCreate(void** event, unsigned flags) {
    return calls().create_event(event, flags);
}
int cuEventDestroy_v2(void* event) {
    return calls().destroy_event(event);
}
int cuEventRecord(void* event, void* stream) {
    return calls().record_event(event, stream);
}
int cuStreamWaitEvent(void* stream, void* event, unsigned flags) {
    return calls().wait_event(stream, event, flags);
}
int cuCtxSynchronize() {
    const std::lock_guard<std::mutex> lock(streams_mutex);
    for (void* stream : streams) {
        token::testing::stream_of(stream).drain();
    }
    return 0;
}
int cuDevicePrimaryCtxRetain(void** context, int) {
    static int only;
    *context = &only;
    return 0;
}
int cuDevicePrimaryCtxRelease_v2(int) {
    return 0;
}
int cuCtxPushCurrent_v2(void* context) {
    return calls().push_context(context);
}
int cuCtxPopCurrent_v2(void** context) {
    return calls().pop_context(context);
}
int cuMemHostRegister_v2(void*, size_t, unsigned) {
    return 0;
}
int cuMemHostUnregister(void*) {
    return 0;
}
int cuMemHostGetDevicePointer_v2(uint64_t* address, void* memory, unsigned) {
    *address = token::testing::device_address(memory);
    return 0;
}
int cuGetErrorName(int code, const char** name) {
    return calls().error_name(code, name);
}

}  // extern "C"
