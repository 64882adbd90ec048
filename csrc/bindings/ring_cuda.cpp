// The merge on the GPU as Python sees it: addresses and the stream are integers.
#include "../ring/cuda/launch.hpp"
#include "bindings.hpp"
#include "merge_params.hpp"

#include <vector>

namespace token::bindings {

void bind_ring_cuda(py::module_& module) {
    module.def(
        "merge_lse_cuda",
        [](const std::vector<ring::MergePiece>& pieces,
           uintptr_t sinks,
           uintptr_t out,
           const Three& out_strides,
           int out_dtype,
           uintptr_t lse,
           const Three& lse_strides,
           int64_t batch,
           int64_t rows,
           int64_t heads,
           int64_t head_dim,
           uintptr_t stream,
           int num_blocks,
           const fabric::KernelLauncher& launcher) {
            ring::cuda::merge_lse(merge_params(pieces,
                                               sinks,
                                               out,
                                               out_strides,
                                               out_dtype,
                                               lse,
                                               lse_strides,
                                               batch,
                                               rows,
                                               heads,
                                               head_dim),
                                  as_pointer(stream),
                                  num_blocks,
                                  launcher);
        },
        py::arg("pieces"),
        py::arg("sinks"),
        py::arg("out"),
        py::arg("out_strides"),
        py::arg("out_dtype"),
        py::arg("lse"),
        py::arg("lse_strides"),
        py::arg("batch"),
        py::arg("rows"),
        py::arg("heads"),
        py::arg("head_dim"),
        py::arg("stream"),
        py::arg("num_blocks"),
        py::arg("launcher"),
        py::call_guard<py::gil_scoped_release>());
}

}  // namespace token::bindings
