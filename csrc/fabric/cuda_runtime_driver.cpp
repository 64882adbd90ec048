// A build without the CUDA runtime: the same functions over the driver alone, which is looked up
// when it is first asked for. Copies go into the context that is current on the calling thread
// (torch's).
#include "cuda_runtime.hpp"
#include "token/common/check.hpp"

#include <dlfcn.h>

namespace token::fabric {

namespace {

using DriverAddress = unsigned long long;

// CUDA_MEMCPY2D of cuda.h, since CUDA 3.2.
struct Copy2D {
    size_t from_x, from_y;
    unsigned from_kind;
    const void* from_host;
    DriverAddress from_device;
    void* from_array;
    size_t from_pitch;
    size_t to_x, to_y;
    unsigned to_kind;
    void* to_host;
    DriverAddress to_device;
    void* to_array;
    size_t to_pitch;
    size_t width_bytes;
    size_t height;
};
constexpr unsigned kDeviceMemory = 2;  // CU_MEMORYTYPE_DEVICE

struct Driver {
    int (*initialise)(unsigned) = nullptr;
    int (*get_version)(int*) = nullptr;
    int (*count_devices)(int*) = nullptr;
    int (*error_name)(int, const char**) = nullptr;
    int (*copy)(DriverAddress to, DriverAddress from, size_t num_bytes, void* stream) = nullptr;
    int (*copy_2d)(const Copy2D*, void* stream) = nullptr;
    std::string missing;

    std::string name_of(int code) const {
        const char* name = nullptr;
        error_name(code, &name);
        return name == nullptr ? concat("error ", code) : std::string(name);
    }
};

template <class Function>
void find(void* library, const char* name, Driver& driver, Function*& function) {
    function = reinterpret_cast<Function*>(::dlsym(library, name));
    if (function == nullptr && driver.missing.empty()) {
        driver.missing = name;
    }
}

// Loaded once and never unloaded: its threads outlive every caller.
const Driver& driver() {
    static const Driver found = [] {
        Driver made;
        void* library = ::dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
        if (library == nullptr) {
            made.missing = "libcuda.so.1";
            return made;
        }
        find(library, "cuInit", made, made.initialise);
        find(library, "cuDriverGetVersion", made, made.get_version);
        find(library, "cuDeviceGetCount", made, made.count_devices);
        find(library, "cuGetErrorName", made, made.error_name);
        find(library, "cuMemcpyAsync", made, made.copy);
        find(library, "cuMemcpy2DAsync_v2", made, made.copy_2d);
        return made;
    }();
    return found;
}

DriverAddress address(const void* pointer) {
    return static_cast<DriverAddress>(reinterpret_cast<uintptr_t>(pointer));
}

Copy2D copy_of(void* to,
               int64_t to_stride,
               const void* from,
               int64_t from_stride,
               int64_t row_bytes,
               int64_t rows) {
    Copy2D copy{};
    copy.from_kind = copy.to_kind = kDeviceMemory;
    copy.from_device = address(from);
    copy.from_pitch = static_cast<size_t>(from_stride);
    copy.to_device = address(to);
    copy.to_pitch = static_cast<size_t>(to_stride);
    copy.width_bytes = static_cast<size_t>(row_bytes);
    copy.height = static_cast<size_t>(rows);
    return copy;
}

}  // namespace

CudaRuntime cuda_runtime() {
    CudaRuntime found;
    const Driver& calls = driver();
    if (!calls.missing.empty()) {
        found.problem = calls.missing == "libcuda.so.1"
                            ? "there is no NVIDIA driver"
                            : concat("the NVIDIA driver has no ", calls.missing, ": update it");
        return found;
    }
    calls.get_version(&found.driver_version);
    int code = calls.initialise(0);
    if (code == 0) {
        code = calls.count_devices(&found.num_devices);
    }
    if (code != 0) {
        found.num_devices = 0;
        found.problem = concat("the driver finds no GPU that it can use: ", calls.name_of(code));
    } else if (found.num_devices == 0) {
        found.problem = "the driver sees no device";
    }
    return found;
}

void cuda_copy_async(void* to,
                     int64_t to_stride,
                     const void* from,
                     int64_t from_stride,
                     int64_t row_bytes,
                     int64_t rows,
                     void* stream) {
    if (row_bytes == 0 || rows == 0) {
        return;
    }
    const Driver& calls = driver();
    if (!calls.missing.empty()) {
        throw SystemFailure(concat("a CUDA copy needs the NVIDIA driver: no ", calls.missing));
    }
    int code = 0;
    if (rows == 1) {
        code = calls.copy(address(to), address(from), static_cast<size_t>(row_bytes), stream);
    } else {
        const Copy2D copy = copy_of(to, to_stride, from, from_stride, row_bytes, rows);
        code = calls.copy_2d(&copy, stream);
    }
    if (code != 0) {
        throw SystemFailure(concat("a copy of ",
                                   rows,
                                   " x ",
                                   row_bytes,
                                   " bytes could not be enqueued: ",
                                   calls.name_of(code)));
    }
}

}  // namespace token::fabric
