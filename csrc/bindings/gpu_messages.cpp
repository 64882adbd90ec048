// Messages between GPUs as Python sees them: addresses and streams are integers.
#include "../fabric/gpu_messages.hpp"

#include "bindings.hpp"
#include "token/common/errors.hpp"

#include <memory>
#include <string>
#include <tuple>
#include <vector>

namespace token::bindings {

namespace {

using fabric::Communicator;
using fabric::CopyPiece;
using fabric::GpuMessages;

using NoGil = py::call_guard<py::gil_scoped_release>;
using Piece = std::tuple<uintptr_t, uintptr_t, int64_t>;

}  // namespace

void bind_gpu_messages(py::module_& module) {
    py::class_<GpuMessages>(module, "GpuMessages")
        .def(py::init([](Communicator& comm,
                         int device,
                         double timeout_s,
                         const std::string& driver_library) {
                 const fabric::FoundDriver driver =
                     fabric::find_cuda_driver(driver_library.c_str());
                 if (!driver.calls) {
                     throw SystemFailure(driver.why_not);
                 }
                 return std::make_unique<GpuMessages>(comm, *driver.calls, device, timeout_s);
             }),
             py::arg("comm"),
             py::arg("device"),
             py::arg("timeout_s"),
             py::arg("driver_library"),
             py::keep_alive<1, 2>(),
             NoGil())
        .def(
            "grant",
            [](GpuMessages& messages, int peer, uintptr_t stream, bool waits_for_sends) {
                return messages.grant(peer, as_pointer(stream), waits_for_sends);
            },
            py::arg("peer"),
            py::arg("stream"),
            py::arg("waits_for_sends"),
            NoGil(),
            "Number of the message that may now come.")
        .def(
            "wait_for",
            [](GpuMessages& messages,
               int peer,
               uint32_t number,
               uintptr_t into,
               int64_t num_bytes,
               uintptr_t stream,
               const std::string& what) {
                messages.await(peer, number, into, num_bytes, as_pointer(stream), what);
            },
            py::arg("peer"),
            py::arg("number"),
            py::arg("into"),
            py::arg("num_bytes"),
            py::arg("stream"),
            py::arg("what"),
            NoGil())
        .def(
            "send",
            [](GpuMessages& messages,
               int peer,
               const std::vector<Piece>& pieces,
               uintptr_t stream,
               const std::string& what) {
                std::vector<CopyPiece> copies;
                for (const auto& [to, from, num_bytes] : pieces) {
                    copies.push_back({to, from, num_bytes});
                }
                return messages.send(peer, copies, as_pointer(stream), what);
            },
            py::arg("peer"),
            py::arg("pieces"),
            py::arg("stream"),
            py::arg("what"),
            NoGil(),
            "Sends pieces (to, from, bytes); the number of the message.")
        .def("has_left", &GpuMessages::has_left, py::arg("peer"), py::arg("number"))
        .def(
            "join",
            [](GpuMessages& messages, uintptr_t stream) { messages.join(as_pointer(stream)); },
            py::arg("stream"),
            NoGil())
        .def(
            "check",
            [](const GpuMessages& messages, uintptr_t stream) {
                messages.check(as_pointer(stream));
            },
            py::arg("stream"),
            "Raises the failure, and ConfigError for a stream that is being captured.")
        .def("check_failure", [](const GpuMessages& messages) { messages.check(); })
        .def("close", &GpuMessages::close, NoGil());
}

}  // namespace token::bindings
