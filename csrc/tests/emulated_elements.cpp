#include "emulated_elements.hpp"

#include "device.hpp"
#include "schedule.hpp"
#include "token/norm/half_bits.hpp"

namespace token::testing {
namespace {

// Host code of a stream copies in pieces, each an access that the emulator orders and checks.
template <class Copy>
void in_pieces(const void* at, size_t num_bytes, const Copy& copy) {
    const auto start = reinterpret_cast<uintptr_t>(at);
    for (size_t done = 0; done < num_bytes;) {
        size_t piece = 16;
        while ((start + done) % piece != 0 || piece > num_bytes - done) {
            piece /= 2;
        }
        copy(done, piece);
        done += piece;
    }
}
}  // namespace

void copy_to_device(void* to, const void* from, size_t num_bytes) {
    in_pieces(to, num_bytes, [&](size_t at, size_t piece) {
        emulator::device::store(
            static_cast<std::byte*>(to) + at, static_cast<const std::byte*>(from) + at, piece);
    });
}
void copy_from_device(void* to, const void* from, size_t num_bytes) {
    in_pieces(from, num_bytes, [&](size_t at, size_t piece) {
        emulator::device::load(
            static_cast<std::byte*>(to) + at, static_cast<const std::byte*>(from) + at, piece);
    });
}

std::vector<std::byte> packed(DType dtype, const std::vector<float>& values) {
    std::vector<std::byte> bytes(values.size() * bytes_of(dtype));
    for (size_t i = 0; i < values.size(); ++i) {
        store_element(dtype, bytes.data(), static_cast<int64_t>(i), values[i]);
    }
    return bytes;
}

std::vector<float> fetched(DType dtype, const void* from, int64_t count) {
    std::vector<std::byte> bytes(count * bytes_of(dtype));
    copy_from_device(bytes.data(), from, bytes.size());
    std::vector<float> values(count);
    for (int64_t i = 0; i < count; ++i) {
        values[i] = load_element(dtype, bytes.data(), i);
    }
    return values;
}

// Different for every rank, launch, row and column; sums of them need the rounding.
std::vector<float> numbers(DType dtype, int64_t count, uint64_t seed, float scale) {
    emulator::Random random(seed);
    std::vector<float> values(count);
    for (float& value : values) {
        const auto uniform = static_cast<float>(random.below(1 << 24)) * 0x1p-23f - 1.0f;
        value = round_to(dtype, scale * uniform);
    }
    return values;
}

int64_t bytes_of(DType dtype) {
    return element_bytes(dtype);
}
float load_element(DType dtype, const void* from, int64_t index) {
    if (dtype == DType::kFloat32) {
        return static_cast<const float*>(from)[index];
    }
    const uint16_t bits = static_cast<const uint16_t*>(from)[index];
    return dtype == DType::kBFloat16 ? norm::widen_bf16(bits) : norm::widen_f16(bits);
}
void store_element(DType dtype, void* to, int64_t index, float value) {
    if (dtype == DType::kFloat32) {
        static_cast<float*>(to)[index] = value;
    } else {
        static_cast<uint16_t*>(to)[index] =
            dtype == DType::kBFloat16 ? norm::round_to_bf16(value) : norm::round_to_f16(value);
    }
}
float round_to(DType dtype, float value) {
    alignas(4) std::byte bytes[4];
    store_element(dtype, bytes, 0, value);
    return load_element(dtype, bytes, 0);
}

}  // namespace token::testing
