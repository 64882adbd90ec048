// Elements of emulated tensors: made, rounded, and moved to and from emulated memory.
#pragma once

#include "token/common/dtype.hpp"

#include <cstddef>
#include <cstdint>
#include <vector>

namespace token::testing {

int64_t bytes_of(DType dtype);
float load_element(DType dtype, const void* from, int64_t index);
void store_element(DType dtype, void* to, int64_t index, float value);
float round_to(DType dtype, float value);

// Uniform in [-scale, scale), rounded to the type. Sums of them need rounding.
std::vector<float> numbers(DType dtype, int64_t count, uint64_t seed, float scale);
std::vector<std::byte> packed(DType dtype, const std::vector<float>& values);

// Of host code in a stream: accesses that the emulator orders and checks.
void copy_to_device(void* to, const void* from, size_t num_bytes);
void copy_from_device(void* to, const void* from, size_t num_bytes);
std::vector<float> fetched(DType dtype, const void* from, int64_t count);

}  // namespace token::testing
