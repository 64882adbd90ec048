#include "../fabric/communicator.hpp"
#include "../weave/collectives.hpp"
#include "bindings.hpp"

#include <string>
#include <vector>

namespace token::bindings {

namespace {

using fabric::Communicator;
using weave::AllReduceRmsNormParams;
using weave::RowKernels;

using NoGil = py::call_guard<py::gil_scoped_release>;

// All of a reduction but the addresses. A call converts 10 arguments instead of 28, which a token
// with sixty reductions notices.
class PreparedReduction {
  public:
    PreparedReduction(const RowKernels& kernels,
                      int operation,
                      int64_t rows,
                      int64_t hidden,
                      int dtype,
                      int weight_dtype,
                      int out_dtype,
                      bool residual_is_sharded,
                      int algorithm,
                      int output,
                      int64_t block_rows,
                      bool is_streaming,
                      int residual_dtype,
                      int norm,
                      int numerics,
                      int quantized_format,
                      int64_t group_elements,
                      float scale)
        : kernels_(kernels) {
        params_.rows = rows;
        params_.hidden = hidden;
        params_.dtype = static_cast<DType>(dtype);
        params_.weight_dtype = static_cast<DType>(weight_dtype);
        params_.out_dtype = static_cast<DType>(out_dtype);
        params_.residual_is_sharded = residual_is_sharded;
        params_.operation = static_cast<comm::Operation>(operation);
        params_.plan.algorithm = static_cast<weave::Algorithm>(algorithm);
        params_.plan.output = static_cast<weave::Output>(output);
        params_.plan.block_rows = block_rows;
        params_.plan.is_streaming = is_streaming;
        params_.residual_dtype = static_cast<DType>(residual_dtype);
        params_.norm = static_cast<norm::NormKind>(norm);
        params_.numerics = static_cast<norm::Numerics>(numerics);
        params_.quantized.format = static_cast<norm::QuantizedFormat>(quantized_format);
        params_.quantized.group_elements = group_elements;
        params_.quantized.scale = scale;
    }

    void run(Communicator& comm,
             uintptr_t x,
             uintptr_t residual,
             uintptr_t bias,
             uintptr_t weight,
             uintptr_t norm_bias,
             uintptr_t out,
             uintptr_t residual_out,
             float eps,
             float weight_offset) const {
        run_quantized(comm,
                      x,
                      residual,
                      bias,
                      weight,
                      norm_bias,
                      out,
                      residual_out,
                      0,
                      0,
                      eps,
                      weight_offset);
    }

    void run_quantized(Communicator& comm,
                       uintptr_t x,
                       uintptr_t residual,
                       uintptr_t bias,
                       uintptr_t weight,
                       uintptr_t norm_bias,
                       uintptr_t out,
                       uintptr_t residual_out,
                       uintptr_t quantized,
                       uintptr_t scales,
                       float eps,
                       float weight_offset) const {
        AllReduceRmsNormParams params = params_;
        params.x = as_pointer(x);
        params.residual = as_pointer(residual);
        params.bias = as_pointer(bias);
        params.weight = as_pointer(weight);
        params.norm_bias = as_pointer(norm_bias);
        params.out = as_pointer(out);
        params.residual_out = as_pointer(residual_out);
        params.quantized.out = as_pointer(quantized);
        params.quantized.scales = as_pointer(scales);
        params.eps = eps;
        params.weight_offset = weight_offset;
        weave::allreduce_rmsnorm(comm.group(), kernels_, params);
    }

  private:
    const RowKernels& kernels_;  // one of the static tables
    AllReduceRmsNormParams params_;
};

}  // namespace

void bind_weave(py::module_& module) {
    module.attr("FLOAT32") = static_cast<int>(DType::kFloat32);
    module.attr("BFLOAT16") = static_cast<int>(DType::kBFloat16);
    module.attr("FLOAT16") = static_cast<int>(DType::kFloat16);
    module.attr("RMS_NORM") = static_cast<int>(norm::NormKind::kRms);
    module.attr("LAYER_NORM") = static_cast<int>(norm::NormKind::kLayer);
    module.attr("FUSED") = static_cast<int>(norm::Numerics::kFused);
    module.attr("DROP_IN") = static_cast<int>(norm::Numerics::kDropIn);
    module.attr("NOT_QUANTIZED") = static_cast<int>(norm::QuantizedFormat::kNone);
    module.attr("FP8_E4M3") = static_cast<int>(norm::QuantizedFormat::kFloat8E4M3);
    module.attr("INT8") = static_cast<int>(norm::QuantizedFormat::kInt8);
    module.attr("ONE_SHOT") = static_cast<int>(weave::Algorithm::kOneShot);
    module.attr("TWO_SHOT") = static_cast<int>(weave::Algorithm::kTwoShot);
    module.attr("OUTPUT_PRIVATE") = static_cast<int>(weave::Output::kPrivate);
    module.attr("OUTPUT_OWN_ROWS") = static_cast<int>(weave::Output::kOwnRows);
    module.attr("OUTPUT_SHARED") = static_cast<int>(weave::Output::kShared);
    module.attr("OP_ALLREDUCE_RMSNORM") = static_cast<int>(comm::Operation::kAllReduceRmsNorm);
    module.attr("OP_ALL_REDUCE") = static_cast<int>(comm::Operation::kAllReduce);
    module.attr("OP_REDUCE_SCATTER") = static_cast<int>(comm::Operation::kReduceScatter);

    py::class_<RowKernels>(module, "RowKernels")
        .def_property_readonly("name", [](const RowKernels& kernels) { return kernels.name; });
    module.def("usable_row_kernels", [] {
        std::vector<std::string> names;
        for (const RowKernels* kernels : weave::usable_row_kernels()) {
            names.emplace_back(kernels->name);
        }
        return names;
    });
    module.def("choose_row_kernels",
               &weave::choose_row_kernels,
               py::arg("name"),
               py::return_value_policy::reference);

    py::class_<PreparedReduction>(module, "PreparedReduction")
        .def(py::init<const RowKernels&,
                      int,
                      int64_t,
                      int64_t,
                      int,
                      int,
                      int,
                      bool,
                      int,
                      int,
                      int64_t,
                      bool,
                      int,
                      int,
                      int,
                      int,
                      int64_t,
                      float>(),
             py::arg("kernels"),
             py::arg("operation"),
             py::arg("rows"),
             py::arg("hidden"),
             py::arg("dtype"),
             py::arg("weight_dtype"),
             py::arg("out_dtype"),
             py::arg("residual_is_sharded"),
             py::arg("algorithm"),
             py::arg("output"),
             py::arg("block_rows"),
             py::arg("is_streaming"),
             py::arg("residual_dtype"),
             py::arg("norm"),
             py::arg("numerics"),
             py::arg("quantized_format"),
             py::arg("group_elements"),
             py::arg("scale"))
        .def("run",
             &PreparedReduction::run,
             py::arg("comm"),
             py::arg("x"),
             py::arg("residual"),
             py::arg("bias"),
             py::arg("weight"),
             py::arg("norm_bias"),
             py::arg("out"),
             py::arg("residual_out"),
             py::arg("eps"),
             py::arg("weight_offset"),
             NoGil())
        .def("run_quantized",
             &PreparedReduction::run_quantized,
             py::arg("comm"),
             py::arg("x"),
             py::arg("residual"),
             py::arg("bias"),
             py::arg("weight"),
             py::arg("norm_bias"),
             py::arg("out"),
             py::arg("residual_out"),
             py::arg("quantized"),
             py::arg("scales"),
             py::arg("eps"),
             py::arg("weight_offset"),
             NoGil());

    module.def(
        "all_gather",
        [](Communicator& comm,
           uintptr_t in,
           uintptr_t out,
           int64_t rows,
           const std::vector<int64_t>& column_bytes) {
            weave::all_gather(comm.group(), as_pointer(in), as_pointer(out), rows, column_bytes);
        },
        py::arg("comm"),
        py::arg("x"),
        py::arg("out"),
        py::arg("rows"),
        py::arg("column_bytes"),
        NoGil());

    module.def(
        "broadcast",
        [](Communicator& comm, uintptr_t data, int64_t num_bytes, int source) {
            weave::broadcast(comm.group(), as_pointer(data), num_bytes, source);
        },
        py::arg("comm"),
        py::arg("data"),
        py::arg("num_bytes"),
        py::arg("source"),
        NoGil());
}

}  // namespace token::bindings
