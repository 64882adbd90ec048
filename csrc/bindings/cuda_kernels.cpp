// Kernels that Python brings: which there are, and a launch of one as data.
#include "../fabric/kernel_launch.hpp"
#include "../ring/cuda/launch.hpp"
#include "../weave/cuda/start.hpp"
#include "bindings.hpp"

#include <vector>

namespace token::bindings {

using fabric::KernelLaunch;
using fabric::KernelSource;

namespace {

std::vector<KernelSource> kernel_sources() {
    std::vector<KernelSource> sources = weave::cuda::kernel_sources();
    for (KernelSource& source : ring::cuda::kernel_sources()) {
        sources.push_back(std::move(source));
    }
    return sources;
}

}  // namespace

void bind_cuda_kernels(py::module_& module) {
    py::class_<KernelSource>(module, "KernelSource")
        .def_readonly("file", &KernelSource::file)
        .def_readonly("kernel", &KernelSource::kernel)
        .def_readonly("params_type", &KernelSource::params_type)
        .def_readonly("params_bytes", &KernelSource::params_bytes)
        .def_property_readonly("options", [](const KernelSource& source) {
            return py::tuple(py::cast(source.options));
        });
    py::class_<KernelLaunch>(module, "KernelLaunch")
        .def_readonly("source", &KernelLaunch::source)
        .def_property_readonly("params",
                               [](const KernelLaunch& launch) { return py::bytes(launch.params); })
        .def_property_readonly(
            "grid",
            [](const KernelLaunch& launch) { return py::make_tuple(launch.grid_x, launch.grid_y); })
        .def_readonly("num_threads", &KernelLaunch::num_threads)
        .def_readonly("shared_bytes", &KernelLaunch::shared_bytes)
        .def_readonly("is_cooperative", &KernelLaunch::is_cooperative)
        .def_property_readonly("stream", [](const KernelLaunch& launch) {
            return reinterpret_cast<uintptr_t>(launch.stream);
        });
    module.def("kernel_sources", &kernel_sources);
}

}  // namespace token::bindings
