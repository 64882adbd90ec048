#include "bindings.hpp"

PYBIND11_MODULE(_C, module) {
    module.doc() = "Native part of tokenfabric. Loaded by tokenfabric.native only.";
    token::bindings::register_errors();
    auto cuda = module.def_submodule("cuda", "GPUs: facts, memory, launches.");
    token::bindings::bind_cuda_kernels(cuda);
    token::bindings::bind_cuda(cuda);
    token::bindings::bind_cuda_launch(cuda);
    auto fabric = module.def_submodule("fabric", "Shared memory and signals between ranks.");
    token::bindings::bind_fabric(fabric);
    token::bindings::bind_mailboxes(fabric);
    token::bindings::bind_gpu_messages(cuda);
    auto ring = module.def_submodule("ring", "Attention over a sharded sequence.");
    token::bindings::bind_ring(ring);
    token::bindings::bind_ring_cuda(ring);
    auto weave = module.def_submodule("weave", "Reductions fused with what follows them.");
    token::bindings::bind_weave(weave);
    token::bindings::bind_finish_rows(weave);
}
