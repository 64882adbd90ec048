#include "../fabric/communicator.hpp"
#include "../weave/collectives.hpp"
#include "bindings.hpp"

#include <vector>

namespace token::bindings {

using fabric::Communicator;
using weave::RowKernels;

void bind_finish_rows(py::module_& module) {
    module.def(
        "finish_rows",
        [](Communicator& comm,
           const RowKernels& kernels,
           const std::vector<uintptr_t>& inputs,
           uintptr_t residual,
           uintptr_t bias,
           uintptr_t weight,
           uintptr_t out,
           uintptr_t out_copy,
           uintptr_t residual_out,
           int64_t rows,
           int64_t hidden,
           int input_dtype,
           int dtype,
           int weight_dtype,
           float eps,
           float weight_offset,
           bool is_streaming) {
            weave::FinishRowsParams params;
            for (const uintptr_t input : inputs) {
                params.inputs.push_back(as_pointer(input));
            }
            params.residual = as_pointer(residual);
            params.bias = as_pointer(bias);
            params.weight = as_pointer(weight);
            params.out = as_pointer(out);
            params.out_copy = as_pointer(out_copy);
            params.residual_out = as_pointer(residual_out);
            params.rows = rows;
            params.hidden = hidden;
            params.input_dtype = static_cast<DType>(input_dtype);
            params.dtype = static_cast<DType>(dtype);
            params.weight_dtype = static_cast<DType>(weight_dtype);
            params.eps = eps;
            params.weight_offset = weight_offset;
            params.is_streaming = is_streaming;
            weave::finish_rows(comm.group().threads(), kernels, params);
        },
        py::arg("comm"),
        py::arg("kernels"),
        py::arg("inputs"),
        py::arg("residual"),
        py::arg("bias"),
        py::arg("weight"),
        py::arg("out"),
        py::arg("out_copy"),
        py::arg("residual_out"),
        py::arg("rows"),
        py::arg("hidden"),
        py::arg("input_dtype"),
        py::arg("dtype"),
        py::arg("weight_dtype"),
        py::arg("eps"),
        py::arg("weight_offset"),
        py::arg("is_streaming"),
        py::call_guard<py::gil_scoped_release>());
}

}  // namespace token::bindings
