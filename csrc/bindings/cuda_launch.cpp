// The launches of weave/cuda/launch.hpp. A call with everything but the tensors settled converts
// few arguments and makes no CUDA call but the launch.
#include "../weave/cuda/launch.hpp"
#include "bindings.hpp"
#include "cuda_memory.hpp"

#include <memory>
#include <utility>

namespace token::bindings {

namespace {

using weave::cuda::Form;
using weave::cuda::Gather;

using NoGil = py::call_guard<py::gil_scoped_release>;

// All of a reduction but the tensors.
class CudaReduction {
  public:
    CudaReduction(std::shared_ptr<const CudaGroup> group,
                  int form,
                  bool is_multicast,
                  int64_t rows,
                  int64_t hidden,
                  int dtype,
                  int weight_dtype,
                  int residual_dtype,
                  bool residual_is_sharded,
                  int norm,
                  int quantized_format,
                  int64_t group_elements,
                  float scale,
                  const CudaMemory* staging,
                  int64_t staging_offset,
                  int64_t staging_block_bytes,
                  int num_blocks,
                  bool is_baseline)
        : group_(std::move(group)), is_baseline_(is_baseline) {
        launch_.group = group_->with(is_multicast);
        launch_.form = static_cast<Form>(form);
        launch_.rows = rows;
        launch_.hidden = hidden;
        launch_.dtype = static_cast<DType>(dtype);
        launch_.weight_dtype = static_cast<DType>(weight_dtype);
        launch_.residual_dtype = static_cast<DType>(residual_dtype);
        launch_.residual_is_sharded = residual_is_sharded;
        launch_.norm = static_cast<norm::NormKind>(norm);
        launch_.quantized.format = static_cast<norm::QuantizedFormat>(quantized_format);
        launch_.quantized.group_elements = group_elements;
        launch_.quantized.scale = scale;
        if (staging != nullptr) {
            launch_.staging = staging->at(staging_offset);
        }
        launch_.staging_block_bytes = staging_block_bytes;
        launch_.num_blocks = num_blocks;
    }

    // For benchmarks.
    void pace(double bytes_per_ns, int64_t latency_ns) {
        launch_.pace = {bytes_per_ns, latency_ns};
    }

    void run(const CudaMemory* x_memory,
             int64_t x,
             const CudaMemory* out_memory,
             int64_t out,
             const CudaMemory* residual_memory,
             int64_t residual,
             const CudaMemory* residual_out_memory,
             int64_t residual_out,
             const CudaMemory* codes_memory,
             int64_t codes,
             const CudaMemory* scales_memory,
             int64_t scales,
             uintptr_t bias,
             uintptr_t weight,
             uintptr_t norm_bias,
             float eps,
             float weight_offset,
             uintptr_t stream) const {
        group_->check("allreduce_rmsnorm");
        weave::cuda::Reduction launch = launch_;
        launch.x = cuda_tensor(x_memory, x);
        launch.out = cuda_tensor(out_memory, out);
        launch.residual = cuda_tensor(residual_memory, residual);
        launch.residual_out = cuda_tensor(residual_out_memory, residual_out);
        launch.quantized.codes = cuda_tensor(codes_memory, codes);
        launch.quantized.scales = cuda_tensor(scales_memory, scales);
        launch.bias = bias;
        launch.weight = weight;
        launch.norm_bias = norm_bias;
        launch.eps = eps;
        launch.weight_offset = weight_offset;
        launch.stream = as_pointer(stream);
        if (is_baseline_) {
            weave::cuda::row_per_block_baseline(launch);
        } else {
            weave::cuda::allreduce_rmsnorm(launch);
        }
    }

  private:
    std::shared_ptr<const CudaGroup> group_;
    weave::cuda::Reduction launch_;
    bool is_baseline_;
};

void gather(const CudaGroup& group,
            bool is_multicast,
            const CudaMemory* source_memory,
            int64_t source,
            const CudaMemory& out_memory,
            int64_t out,
            int64_t rows,
            int64_t row_bytes,
            int num_blocks,
            uintptr_t stream) {
    group.check("all_gather");
    Gather launch;
    launch.group = group.with(is_multicast);
    launch.source = cuda_tensor(source_memory, source);
    launch.out = out_memory.at(out);
    launch.rows = rows;
    launch.row_bytes = row_bytes;
    launch.num_blocks = num_blocks;
    launch.stream = as_pointer(stream);
    weave::cuda::all_gather(launch);
}

}  // namespace

void bind_cuda_launch(py::module_& module) {
    py::class_<CudaReduction>(module, "Reduction")
        .def(py::init<std::shared_ptr<CudaGroup>,
                      int,
                      bool,
                      int64_t,
                      int64_t,
                      int,
                      int,
                      int,
                      bool,
                      int,
                      int,
                      int64_t,
                      float,
                      const CudaMemory*,
                      int64_t,
                      int64_t,
                      int,
                      bool>(),
             py::arg("group"),
             py::arg("form"),
             py::arg("is_multicast"),
             py::arg("rows"),
             py::arg("hidden"),
             py::arg("dtype"),
             py::arg("weight_dtype"),
             py::arg("residual_dtype"),
             py::arg("residual_is_sharded"),
             py::arg("norm"),
             py::arg("quantized_format"),
             py::arg("group_elements"),
             py::arg("scale"),
             py::arg("staging"),
             py::arg("staging_offset"),
             py::arg("staging_block_bytes"),
             py::arg("num_blocks"),
             py::arg("is_baseline"))
        .def("pace", &CudaReduction::pace, py::arg("bytes_per_ns"), py::arg("latency_ns"))
        .def("run",
             &CudaReduction::run,
             py::arg("x_memory"),
             py::arg("x"),
             py::arg("out_memory"),
             py::arg("out"),
             py::arg("residual_memory"),
             py::arg("residual"),
             py::arg("residual_out_memory"),
             py::arg("residual_out"),
             py::arg("codes_memory"),
             py::arg("codes"),
             py::arg("scales_memory"),
             py::arg("scales"),
             py::arg("bias"),
             py::arg("weight"),
             py::arg("norm_bias"),
             py::arg("eps"),
             py::arg("weight_offset"),
             py::arg("stream"),
             NoGil());

    module.def("gather",
               &gather,
               py::arg("group"),
               py::arg("is_multicast"),
               py::arg("source_memory"),
               py::arg("source"),
               py::arg("out_memory"),
               py::arg("out"),
               py::arg("rows"),
               py::arg("row_bytes"),
               py::arg("num_blocks"),
               py::arg("stream"),
               NoGil());
}

}  // namespace token::bindings
