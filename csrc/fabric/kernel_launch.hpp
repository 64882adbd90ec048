// A launch as data, for whoever brings the kernel: one that was not compiled into this module, but
// from the same sources when it is first needed (tokenfabric/cuda/kernels).
#pragma once

#include <cstring>
#include <functional>
#include <string>
#include <type_traits>
#include <vector>

namespace token::fabric {

// What is compiled: an expression that names one kernel, in one file.
struct KernelSource {
    std::string file;                  // below csrc/
    std::string kernel;                // with its namespace and template arguments
    std::string params_type;           // of its only argument, likewise
    size_t params_bytes = 0;           // what the host takes sizeof(params_type) to be
    std::vector<std::string> options;  // of the compiler, beyond those of every kernel
};

struct KernelLaunch {
    KernelSource source;
    std::string params;  // the bytes of the argument, which the kernel takes by value
    int grid_x = 1;
    int grid_y = 1;
    int num_threads = 1;          // of a block
    int shared_bytes = 0;         // of a block, dynamic
    bool is_cooperative = false;  // all blocks at once, or the launch is refused
    void* stream = nullptr;       // cudaStream_t
};

// Puts the launch on its stream and returns, or throws. An empty one stands for the kernels that
// were compiled into this module.
using KernelLauncher = std::function<void(const KernelLaunch&)>;

template <class Params>
std::string bytes_of(const Params& params) {
    static_assert(std::is_trivially_copyable_v<Params>);
    std::string bytes(sizeof(Params), '\0');
    std::memcpy(bytes.data(), &params, sizeof(Params));
    return bytes;
}

}  // namespace token::fabric
