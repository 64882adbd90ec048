// What the binding files share. Pointers cross as integers and are only ever made by the thin
// wrappers beside tokenfabric/native.py, which have checked the tensors.
#pragma once

#include <pybind11/functional.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>

namespace token::bindings {

namespace py = pybind11;

inline void* as_pointer(uintptr_t address) {
    return reinterpret_cast<void*>(address);
}

void register_errors();
void bind_cuda(py::module_& module);  // after bind_cuda_kernels, likewise
void bind_cuda_kernels(py::module_& module);
void bind_cuda_launch(py::module_& module);  // after bind_cuda, whose classes it takes
void bind_fabric(py::module_& module);
void bind_gpu_messages(py::module_& module);  // after bind_fabric, whose classes it takes
void bind_mailboxes(py::module_& module);     // after bind_fabric, whose classes it returns
void bind_ring(py::module_& module);
void bind_ring_cuda(py::module_& module);  // after bind_ring, whose classes it takes
void bind_weave(py::module_& module);
void bind_finish_rows(py::module_& module);  // after bind_weave, whose classes it takes

}  // namespace token::bindings
