// GPUs as Python sees them: the runtime's facts, memory, channels. Launches: cuda_launch.cpp.
// Addresses and streams are integers; nothing here waits for a GPU or allocates on one.
#include "../fabric/cuda_runtime.hpp"
#include "../weave/cuda/launch.hpp"
#include "bindings.hpp"
#include "cuda_memory.hpp"

#include <memory>
#include <vector>

namespace token::bindings {

namespace {

using fabric::CudaRuntime;
using weave::cuda::Form;

using NoGil = py::call_guard<py::gil_scoped_release>;

}  // namespace

void bind_cuda(py::module_& module) {
    module.attr("TWO_SHOT") = static_cast<int>(Form::kTwoShot);
    module.attr("ONE_SHOT") = static_cast<int>(Form::kOneShot);
    module.attr("REDUCE_SCATTER") = static_cast<int>(Form::kReduceScatter);
    module.attr("MAX_RANKS") = weave::cuda::kMaxRanks;
    module.attr("MAX_BLOCKS") = weave::cuda::kMaxBlocks;
    module.attr("FAILURE_RECORD_BYTES") = sizeof(weave::cuda::FailureRecord);

    py::class_<CudaRuntime>(module, "Runtime")
        .def_readonly("is_compiled", &CudaRuntime::is_compiled)
        .def_readonly("runtime_version", &CudaRuntime::runtime_version)
        .def_readonly("driver_version", &CudaRuntime::driver_version)
        .def_readonly("num_devices", &CudaRuntime::num_devices)
        .def_readonly("problem", &CudaRuntime::problem);
    module.def("runtime", &fabric::cuda_runtime, NoGil());
    module.def(
        "copy",
        [](uintptr_t to, uintptr_t from, int64_t num_bytes, uintptr_t stream) {
            fabric::cuda_copy_async(
                as_pointer(to), 0, as_pointer(from), 0, num_bytes, 1, as_pointer(stream));
        },
        py::arg("to"),
        py::arg("from_"),
        py::arg("num_bytes"),
        py::arg("stream"),
        NoGil());
    module.def(
        "copy_rows",
        [](uintptr_t to,
           int64_t to_stride,
           uintptr_t from,
           int64_t from_stride,
           int64_t row_bytes,
           int64_t rows,
           uintptr_t stream) {
            fabric::cuda_copy_async(as_pointer(to),
                                    to_stride,
                                    as_pointer(from),
                                    from_stride,
                                    row_bytes,
                                    rows,
                                    as_pointer(stream));
        },
        py::arg("to"),
        py::arg("to_stride"),
        py::arg("from_"),
        py::arg("from_stride"),
        py::arg("row_bytes"),
        py::arg("rows"),
        py::arg("stream"),
        NoGil());

    py::class_<CudaMemory, std::shared_ptr<CudaMemory>>(module, "Memory")
        .def(
            py::init<std::vector<uintptr_t>, uintptr_t>(), py::arg("by_rank"), py::arg("multicast"))
        .def_property_readonly("by_rank", &CudaMemory::by_rank)
        .def_property_readonly("multicast", &CudaMemory::multicast);

    py::class_<CudaGroup, std::shared_ptr<CudaGroup>>(module, "Group")
        .def(py::init<int,
                      int,
                      bool,
                      const CudaMemory&,
                      int64_t,
                      std::vector<uintptr_t>,
                      double,
                      bool,
                      fabric::KernelLauncher>(),
             py::arg("rank"),
             py::arg("size"),
             py::arg("is_virtual"),
             py::arg("channel"),
             py::arg("channel_offset"),
             py::arg("failure_records"),
             py::arg("timeout_s"),
             py::arg("checks_calls"),
             py::arg("launcher"))
        .def("check", &CudaGroup::check, py::arg("operation"));

    module.def("channel_bytes", &weave::cuda::channel_bytes);
    module.def(
        "one_shot_block_bytes",
        [](int64_t rows, int64_t hidden, int dtype, int num_blocks) {
            return weave::cuda::one_shot_block_bytes(
                rows, hidden, static_cast<DType>(dtype), num_blocks);
        },
        py::arg("rows"),
        py::arg("hidden"),
        py::arg("dtype"),
        py::arg("num_blocks"));
    module.def("staging_bytes",
               &weave::cuda::staging_bytes,
               py::arg("size"),
               py::arg("num_blocks"),
               py::arg("staging_block_bytes"));
    module.def(
        "rows_per_block",
        [](int64_t hidden, int dtype) {
            return weave::cuda::rows_per_block(hidden, static_cast<DType>(dtype));
        },
        py::arg("hidden"),
        py::arg("dtype"));
}

}  // namespace token::bindings
