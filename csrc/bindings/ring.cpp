#include "../fabric/communicator.hpp"
#include "../ring/merge_lse.hpp"
#include "bindings.hpp"
#include "merge_params.hpp"

#include <string>
#include <vector>

namespace token::bindings {

namespace {

using fabric::Communicator;
using ring::MergeKernels;
using ring::MergePiece;

}  // namespace

void bind_ring(py::module_& module) {
    module.attr("FLOAT32") = static_cast<int>(DType::kFloat32);
    module.attr("BFLOAT16") = static_cast<int>(DType::kBFloat16);
    module.attr("FLOAT16") = static_cast<int>(DType::kFloat16);

    // Used by one thread at a time.
    py::class_<ThreadPool>(module, "ThreadPool")
        .def(py::init<int>(), py::arg("num_threads"))
        .def_property_readonly("num_threads", &ThreadPool::num_threads);
    module.def(
        "threads_of",
        [](Communicator& comm) -> ThreadPool& { return comm.group().threads(); },
        py::arg("comm"),
        py::return_value_policy::reference,
        py::keep_alive<0, 1>());

    py::class_<MergeKernels>(module, "MergeKernels")
        .def_property_readonly("name", [](const MergeKernels& kernels) { return kernels.name; });
    module.def("usable_merge_kernels", [] {
        std::vector<std::string> names;
        for (const MergeKernels* kernels : ring::usable_merge_kernels()) {
            names.emplace_back(kernels->name);
        }
        return names;
    });
    module.def("choose_merge_kernels",
               &ring::choose_merge_kernels,
               py::arg("name"),
               py::return_value_policy::reference);

    py::class_<MergePiece>(module, "MergePiece")
        .def(py::init([](uintptr_t out,
                         const Three& out_strides,
                         int dtype,
                         uintptr_t lse,
                         const Three& lse_strides,
                         int64_t row_start,
                         int64_t num_rows,
                         int64_t head_start,
                         int64_t num_heads) {
                 return MergePiece{as_pointer(out),
                                   static_cast<const float*>(as_pointer(lse)),
                                   static_cast<DType>(dtype),
                                   as_strides(out_strides),
                                   as_strides(lse_strides),
                                   row_start,
                                   num_rows,
                                   head_start,
                                   num_heads};
             }),
             py::arg("out"),
             py::arg("out_strides"),
             py::arg("dtype"),
             py::arg("lse"),
             py::arg("lse_strides"),
             py::arg("row_start"),
             py::arg("num_rows"),
             py::arg("head_start"),
             py::arg("num_heads"));

    module.def(
        "merge_lse",
        [](ThreadPool& threads,
           const MergeKernels& kernels,
           const std::vector<MergePiece>& pieces,
           uintptr_t sinks,
           uintptr_t out,
           const Three& out_strides,
           int out_dtype,
           uintptr_t lse,
           const Three& lse_strides,
           int64_t batch,
           int64_t rows,
           int64_t heads,
           int64_t head_dim) {
            const ring::MergeParams params = merge_params(pieces,
                                                          sinks,
                                                          out,
                                                          out_strides,
                                                          out_dtype,
                                                          lse,
                                                          lse_strides,
                                                          batch,
                                                          rows,
                                                          heads,
                                                          head_dim);
            ring::merge_lse(threads, kernels, params);
        },
        py::arg("threads"),
        py::arg("kernels"),
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
        py::call_guard<py::gil_scoped_release>());
}

}  // namespace token::bindings
