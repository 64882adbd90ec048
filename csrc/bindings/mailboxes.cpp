#include "../fabric/mailboxes.hpp"

#include "bindings.hpp"
#include "segment_view.hpp"

#include <memory>
#include <utility>

namespace token::bindings {

namespace {

using fabric::Communicator;
using fabric::Mailboxes;

using NoGil = py::call_guard<py::gil_scoped_release>;

}  // namespace

void bind_mailboxes(py::module_& module) {
    py::class_<Mailboxes>(module, "Mailboxes")
        .def(py::init([](Communicator& comm, int64_t data_bytes, bool is_elsewhere) {
                 return std::make_unique<Mailboxes>(
                     comm,
                     data_bytes,
                     is_elsewhere ? Mailboxes::Data::kElsewhere : Mailboxes::Data::kInSegment);
             }),
             py::arg("comm"),
             py::arg("data_bytes"),
             py::arg("is_elsewhere") = false,
             py::keep_alive<1, 2>(),
             NoGil())
        .def(
            "segment",
            [](const Mailboxes& mailboxes, int rank) {
                return SegmentView(mailboxes.segment(rank), false);
            },
            py::arg("rank"))
        .def_property_readonly("data_offset", &Mailboxes::data_offset)
        .def("post",
             &Mailboxes::post,
             py::arg("peer"),
             py::arg("offset_bytes"),
             py::arg("num_bytes"),
             NoGil())
        .def(
            "receive",
            [](Mailboxes& mailboxes, int peer) {
                const Mailboxes::Message message = mailboxes.receive(peer);
                return std::pair(message.num_bytes, message.tag);
            },
            py::arg("peer"),
            NoGil(),
            "(bytes, tag) of the message to the oldest posting that has none yet.")
        .def(
            "begin_send",
            [](Mailboxes& mailboxes, int peer) {
                const Mailboxes::Posting posting = mailboxes.begin_send(peer);
                return std::pair(posting.offset_bytes, posting.num_bytes);
            },
            py::arg("peer"),
            NoGil(),
            "(offset in the peer's segment, bytes) of the peer's next posting.")
        .def(
            "publish",
            [](Mailboxes& mailboxes, int peer, int64_t num_bytes, uint64_t tag) {
                mailboxes.publish(peer, {num_bytes, tag});
            },
            py::arg("peer"),
            py::arg("num_bytes"),
            py::arg("tag"),
            NoGil());
}

}  // namespace token::bindings
