"""An NVIDIA driver of two made-up GPUs, as shared libraries for tests without one."""

import subprocess
from pathlib import Path

CUDA = """
#include <cstdio>
#include <cstddef>
extern "C" {
int cuInit(unsigned flags) { return RESULT; }
int cuGetErrorName(int code, const char** text) { *text = "CUDA_ERROR_NO_DEVICE"; return 0; }
int cuDriverGetVersion(int* version) { *version = 13010; return 0; }
int cuDeviceGetCount(int* count) { *count = 2; return 0; }
int cuDeviceGet(int* device, int index) { *device = index + 40; return 0; }
int cuDeviceGetName(char* name, int length, int device) {
    std::snprintf(name, length, "Fake %d", device); return 0;
}
int cuDeviceTotalMem_v2(size_t* bytes, int device) { *bytes = size_t{141} << 30; return 0; }
int cuDeviceGetPCIBusId(char* text, int length, int device) {
    std::snprintf(text, length, "0000:%02d:00.0", device); return 0;
}
int cuDeviceGetAttribute(int* value, int attribute, int device) {
    *value = attribute == 75 ? 9 : attribute == 76 ? 0 : attribute == 132 && device == 40; return 0;
}
int cuDeviceCanAccessPeer(int* can, int device, int peer) { *can = device < peer; return 0; }
}
"""

# Copies between addresses of this process, for where kernels were not compiled in. The structure is
# CUDA_MEMCPY2D of cuda.h.
COPIES = """
#include <cstring>
struct Copy2D {
    size_t source_x, source_y;
    int source_kind;
    const void* source_host;
    unsigned long long source;
    void* source_array;
    size_t source_pitch, target_x, target_y;
    int target_kind;
    void* target_host;
    unsigned long long target;
    void* target_array;
    size_t target_pitch, width, height;
};
extern "C" {
int cuMemcpyAsync(unsigned long long to, unsigned long long from, size_t bytes, void* stream) {
    if (stream != (void*)7) return 400;
    std::memcpy((void*)to, (void*)from, bytes); return 0;
}
int cuMemcpy2DAsync_v2(const Copy2D* copy, void* stream) {
    if (copy->source_kind != 2 || copy->target_kind != 2) return 1;
    for (size_t row = 0; row < copy->height; ++row) {
        int failed = cuMemcpyAsync(copy->target + row * copy->target_pitch,
                                   copy->source + row * copy->source_pitch, copy->width, stream);
        if (failed) return failed;
    }
    return 0;
}
}
"""

# Device 40 has 4 links, of which the third is down; device 41 has none.
NVML = """
#include <cstring>
extern "C" {
static int open_count = 0;
int nvmlInit_v2() { ++open_count; return 0; }
int nvmlShutdown() { return open_count-- == 1 ? 0 : 1; }
int nvmlDeviceGetHandleByPciBusId_v2(const char* id, void** handle) {
    *handle = const_cast<char*>(id); return std::strncmp(id, "0000:4", 6) == 0 ? 0 : 6;
}
int nvmlDeviceGetNvLinkState(void* handle, unsigned link, unsigned* state) {
    if (static_cast<const char*>(handle)[6] == '1') return 3;
    if (link >= 4) return 2;
    *state = link != 2; return 0;
}
}
"""


def compile_library(source: str, path: Path, result: int = 0) -> str:
    """Compile a library whose cuInit returns `result`; return its path."""
    command = ["c++", "-std=c++20", "-shared", "-fPIC", f"-DRESULT={result}", "-x", "c++", "-"]
    subprocess.run([*command, "-o", str(path)], input=source, text=True, check=True)
    return str(path)
