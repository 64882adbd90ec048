// A mapped segment as a Python buffer.
#pragma once

#include "../fabric/segment.hpp"
#include "bindings.hpp"

#include <cstdint>
#include <memory>
#include <utility>

namespace token::bindings {

class SegmentView {
  public:
    SegmentView(std::shared_ptr<fabric::Segment> segment, bool is_readonly)
        : segment_(std::move(segment)), is_readonly_(is_readonly) {}

    // Tensors made from the buffer hold this object, and with it the mapping, for as long as they
    // live.
    py::buffer_info buffer() const {
        return py::buffer_info(
            segment_->data(), 1, "B", 1, {segment_->num_bytes()}, {1}, is_readonly_);
    }
    uintptr_t address() const { return reinterpret_cast<uintptr_t>(segment_->data()); }
    int64_t num_bytes() const { return segment_->num_bytes(); }

  private:
    std::shared_ptr<fabric::Segment> segment_;
    bool is_readonly_;
};

}  // namespace token::bindings
