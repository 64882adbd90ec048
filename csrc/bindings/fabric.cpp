#include "../fabric/communicator.hpp"
#include "bindings.hpp"
#include "segment_view.hpp"
#include "token/comm/host_memory.hpp"

#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

namespace token::bindings {

namespace {

using comm::HostMemory;
using fabric::Communicator;
using fabric::CommunicatorOptions;
using fabric::Listener;
using fabric::Mesh;
using fabric::Segment;
using fabric::SymmetricMemory;

using NoGil = py::call_guard<py::gil_scoped_release>;

// Lets Ctrl-C out of a wait: the handler runs here, on the main thread, and its exception leaves
// the wait.
void check_interrupt() {
    const py::gil_scoped_acquire gil;
    if (PyErr_CheckSignals() != 0) {
        throw py::error_already_set();
    }
}

}  // namespace

void bind_fabric(py::module_& module) {
    module.attr("OP_BARRIER") = static_cast<int>(comm::Operation::kBarrier);
    module.attr("OP_ALLREDUCE_RMSNORM") = static_cast<int>(comm::Operation::kAllReduceRmsNorm);
    module.attr("OP_ALL_REDUCE") = static_cast<int>(comm::Operation::kAllReduce);
    module.attr("OP_REDUCE_SCATTER") = static_cast<int>(comm::Operation::kReduceScatter);
    module.attr("OP_ALL_GATHER") = static_cast<int>(comm::Operation::kAllGather);
    module.attr("OP_BROADCAST") = static_cast<int>(comm::Operation::kBroadcast);
    module.attr("OP_MESSAGES") = static_cast<int>(comm::Operation::kMessages);
    module.def(
        "operation_name",
        [](int operation) { return comm::operation_name(static_cast<comm::Operation>(operation)); },
        py::arg("operation"));
    module.def("available_memory_bytes",
               &fabric::available_memory_bytes,
               "Memory this process may still take, the cgroup's limit included.");

    py::class_<SegmentView>(module, "Segment", py::buffer_protocol())
        .def_buffer(&SegmentView::buffer)
        .def_property_readonly("address", &SegmentView::address)
        .def_property_readonly("num_bytes", &SegmentView::num_bytes);

    py::class_<Listener>(module, "Listener")
        .def(py::init<const std::string&>(), py::arg("directory"))
        .def_property_readonly("path", &Listener::path);

    py::class_<Mesh, std::shared_ptr<Mesh>>(module, "Mesh")
        .def(py::init<int,
                      int,
                      const Listener&,
                      const std::vector<std::string>&,
                      uint64_t,
                      double>(),
             py::arg("rank"),
             py::arg("size"),
             py::arg("listener"),
             py::arg("paths"),
             py::arg("nonce"),
             py::arg("timeout_s"),
             NoGil())
        .def("peer_pid", &Mesh::peer_pid, py::arg("peer"))
        .def("dead_peers", &Mesh::dead_peers);

    py::class_<SymmetricMemory>(module, "SymmetricMemory")
        .def(
            "segment",
            [](const SymmetricMemory& memory, int rank) {
                return SegmentView(memory.segment(rank), false);
            },
            py::arg("rank"));

    py::class_<Communicator>(module, "Communicator")
        .def(py::init([](std::shared_ptr<Mesh> mesh,
                         int num_threads,
                         int spin_count,
                         double timeout_s,
                         int64_t partial_bytes,
                         int64_t staging_bytes,
                         uint32_t base_epoch,
                         int first_rank,
                         int world_size) {
                 CommunicatorOptions options;
                 options.num_threads = num_threads;
                 options.spin_count = spin_count;
                 options.timeout_s = timeout_s;
                 options.partial_bytes = partial_bytes;
                 options.staging_bytes = staging_bytes;
                 options.base_epoch = base_epoch;
                 options.first_rank = first_rank;
                 options.world_size = world_size;
                 options.check_interrupt = &check_interrupt;
                 const py::gil_scoped_release release;
                 return std::make_unique<Communicator>(std::move(mesh), options);
             }),
             py::arg("mesh"),
             py::arg("num_threads"),
             py::arg("spin_count"),
             py::arg("timeout_s"),
             py::arg("partial_bytes"),
             py::arg("staging_bytes"),
             py::arg("base_epoch"),
             py::arg("first_rank") = 0,
             py::arg("world_size") = 0)
        .def_property_readonly("rank", &Communicator::rank)
        .def_property_readonly("size", &Communicator::size)
        .def_property_readonly("epoch", [](Communicator& comm) { return comm.group().epoch(); })
        .def_property_readonly(
            "staging_bytes", [](Communicator& comm) { return comm.group().layout().staging_bytes; })
        .def_property_readonly(
            "partial_bytes", [](Communicator& comm) { return comm.group().layout().partial_bytes; })
        .def(
            "barrier", [](Communicator& comm) { comm.group().barrier(); }, NoGil())
        .def(
            "barrier_loop",
            [](Communicator& comm, int count) {
                std::vector<double> seconds;
                for (int index = 0; index < count; ++index) {
                    const auto start = std::chrono::steady_clock::now();
                    comm.group().barrier();
                    seconds.push_back(
                        std::chrono::duration<double>(std::chrono::steady_clock::now() - start)
                            .count());
                }
                return seconds;
            },
            py::arg("count"),
            NoGil(),
            "Seconds of each of `count` barriers in a row, for benchmarks.")
        .def("check",
             [](Communicator& comm) {
                 if (const auto verdict = comm.group().verdict()) {
                     comm.group().throw_verdict(*verdict);
                 }
             })
        .def(
            "abort",
            [](Communicator& comm) {
                comm.group().abort(comm::VerdictKind::kAborted, comm.rank());
            },
            "Breaks the world on every rank that can be reached.")
        .def(
            "agree",
            [](Communicator& comm,
               uint32_t operation,
               uint32_t dtype,
               uint64_t rows,
               uint32_t row_elems,
               uint32_t options) {
                comm::CallRecord call;
                call.operation = operation;
                call.dtype = dtype;
                call.rows = rows;
                call.row_elems = row_elems;
                call.options = options;
                comm.group().agree(call);
            },
            py::arg("operation"),
            py::arg("dtype"),
            py::arg("rows"),
            py::arg("row_elems"),
            py::arg("options"),
            NoGil(),
            "Compares a call that goes on to other hosts among the ranks of this one.")
        .def(
            "break_world",
            [](Communicator& comm,
               int kind,
               int blamed,
               int reporter,
               int operation,
               uint32_t epoch) {
                comm.group().abort(comm::Verdict{static_cast<comm::VerdictKind>(kind),
                                                 static_cast<uint8_t>(operation),
                                                 static_cast<uint8_t>(reporter),
                                                 static_cast<uint8_t>(blamed),
                                                 epoch});
            },
            py::arg("kind"),
            py::arg("blamed"),
            py::arg("reporter"),
            py::arg("operation"),
            py::arg("epoch"),
            "Breaks the world of this host with a verdict from another.")
        .def(
            "verdict",
            [](Communicator& comm) -> std::optional<std::tuple<int, int, int, int, uint32_t>> {
                const auto found = comm.group().verdict();
                if (!found) {
                    return std::nullopt;
                }
                return std::tuple(static_cast<int>(found->kind),
                                  static_cast<int>(found->blamed),
                                  static_cast<int>(found->reporter),
                                  static_cast<int>(found->operation),
                                  found->epoch);
            },
            "(kind, blamed, reporter, operation, epoch) of a broken world, else None.")
        .def("allocate",
             &Communicator::allocate,
             py::arg("num_bytes"),
             py::keep_alive<0, 1>(),
             NoGil())
        .def(
            "allocate_shared",
            [](Communicator& comm, int64_t num_bytes) {
                Mesh::SharedSegment shared;
                {
                    const py::gil_scoped_release release;
                    shared = comm.allocate_shared(num_bytes);
                }
                return py::make_tuple(SegmentView(shared.writable, false),
                                      SegmentView(shared.readable, true));
            },
            py::arg("num_bytes"))
        .def(
            "workspace",
            [](const Communicator& comm, int rank) {
                return SegmentView(comm.workspace(rank), false);
            },
            py::arg("rank"))
        .def("partial_offset", [](Communicator& comm) {
            return comm.group().layout().partial_offset(comm.group().partial_slot());
        });
}

}  // namespace token::bindings
