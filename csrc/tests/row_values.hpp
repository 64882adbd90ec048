// Rows for tests: random values in any element type, a kernel run on them between canaries.
#pragma once

#include "../weave/row_kernels.hpp"
#include "expect.hpp"

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

namespace token::testing {

using Bytes = std::vector<unsigned char>;

inline constexpr int kCanary = 16;
inline constexpr DType kF32 = DType::kFloat32, kBf16 = DType::kBFloat16, kF16 = DType::kFloat16;

// Values over many magnitudes, with NaN, infinities, denormals and signed zeros where `special`.
inline std::vector<float> values(std::mt19937& random, int64_t count, bool special) {
    std::normal_distribution<float> normal;
    std::vector<float> result(count);
    for (float& value : result) {
        value = normal(random);
        if (special && random() % 5 == 0) {
            const float specials[] = {std::numeric_limits<float>::quiet_NaN(),
                                      std::numeric_limits<float>::infinity(),
                                      -std::numeric_limits<float>::infinity(),
                                      std::numeric_limits<float>::denorm_min() * 1e7f,
                                      -0.0f,
                                      0.0f,
                                      std::numeric_limits<float>::max(),
                                      1e-39f,
                                      65504.0f,
                                      3e-6f};
            value = specials[random() % 10];
        }
    }
    return result;
}

inline float decode_one(const unsigned char* from, DType dtype) {
    float value;
    if (dtype == kF32) {
        std::memcpy(&value, from, 4);
        return value;
    }
    uint16_t half;
    std::memcpy(&half, from, 2);
    if (dtype == kBf16) {
        const uint32_t bits = uint32_t{half} << 16;
        std::memcpy(&value, &bits, 4);
        return value;
    }
    const int exponent = half >> 10 & 31, mantissa = half & 1023;
    if (exponent == 31) {
        value = mantissa == 0 ? std::numeric_limits<float>::infinity()
                              : std::numeric_limits<float>::quiet_NaN();
    } else {
        value = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -24)
                              : std::ldexp(static_cast<float>(1024 + mantissa), exponent - 25);
    }
    return (half & 0x8000) != 0 ? -value : value;
}

inline std::vector<float> decode(const Bytes& from, DType dtype) {
    const int64_t size = element_bytes(dtype);
    std::vector<float> to(from.size() / size);
    for (size_t i = 0; i < to.size(); ++i) {
        to[i] = decode_one(&from[i * size], dtype);
    }
    return to;
}

// Cut, not rounded, to 16 bits: what the values are does not matter, only that they are many.
inline Bytes encode(const std::vector<float>& from, DType dtype) {
    const int64_t size = element_bytes(dtype);
    Bytes to(from.size() * size);
    for (size_t i = 0; i < from.size(); ++i) {
        uint32_t bits;
        std::memcpy(&bits, &from[i], 4);
        if (dtype == kBf16) {
            bits >>= 16;
        } else if (dtype == kF16) {
            const int exponent = static_cast<int>(bits >> 23 & 255) - 112;
            const uint32_t magnitude = exponent >= 31  ? (std::isnan(from[i]) ? 0x7e00u : 0x7c00u)
                                       : exponent <= 0 ? bits >> 13 & 1023
                                                       : (exponent << 10 | (bits >> 13 & 1023));
            bits = magnitude | (bits >> 16 & 0x8000u);
        }
        std::memcpy(&to[i * size], &bits, size);
    }
    return to;
}

inline Bytes draw(std::mt19937& random, int64_t count, bool special, DType dtype) {
    return encode(values(random, count, special), dtype);
}

// One row and everything that is done with it.
struct RowProblem {
    norm::RowTypes types{kF32, kF32, kF32, kF32};
    norm::NormKind norm = norm::NormKind::kRms;
    norm::Numerics numerics = norm::Numerics::kFused;
    int64_t hidden = 0;
    std::vector<Bytes> inputs;
    Bytes residual, bias, weight, norm_bias;  // empty: none
    float weight_offset = 1.0f;
    float eps = 1e-6f;

    static RowProblem random(std::mt19937& random,
                             const norm::RowTypes& types,
                             int64_t hidden,
                             int num_inputs,
                             bool special) {
        RowProblem problem;
        problem.types = types;
        problem.hidden = hidden;
        for (int rank = 0; rank < num_inputs; ++rank) {
            problem.inputs.push_back(draw(random, hidden, special, types.input));
        }
        problem.residual = draw(random, hidden, special, types.residual);
        problem.weight = draw(random, hidden, false, types.weight);
        return problem;
    }
};

struct Row {
    Bytes out, residual;
};

inline Row reduce_with(weave::RowKernel kernel, const RowProblem& problem) {
    const size_t out_bytes = problem.hidden * element_bytes(problem.types.activation);
    const size_t residual_bytes = problem.hidden * element_bytes(problem.types.residual);
    Row row{Bytes(out_bytes + kCanary, 0xab), Bytes(residual_bytes + kCanary, 0xab)};
    std::vector<const void*> pointers;
    for (const Bytes& input : problem.inputs) {
        pointers.push_back(input.data());
    }
    const auto optional = [](const Bytes& bytes) { return bytes.empty() ? nullptr : bytes.data(); };
    std::vector<float> scratch(norm::scratch_elements(problem.hidden),
                               std::numeric_limits<float>::quiet_NaN());
    norm::RowArgs args{};
    args.inputs = pointers.data();
    args.num_inputs = static_cast<int>(pointers.size());
    args.hidden = problem.hidden;
    args.residual = optional(problem.residual);
    args.bias = optional(problem.bias);
    args.weight = optional(problem.weight);
    args.norm_bias = optional(problem.norm_bias);
    args.weight_offset = problem.weight_offset;
    args.eps = problem.eps;
    args.scratch = scratch.data();
    args.out = row.out.data();
    args.residual_out = row.residual.data();
    args.types = problem.types;
    args.norm = problem.norm;
    args.numerics = problem.numerics;
    kernel(args);
    for (int i = 0; i < kCanary; ++i) {
        EXPECT_EQ(int{row.out[out_bytes + i]}, 0xab);
        EXPECT_EQ(int{row.residual[residual_bytes + i]}, 0xab);
    }
    row.out.resize(out_bytes);
    row.residual.resize(residual_bytes);
    return row;
}

inline Row reduce(const weave::RowKernels& kernels, const RowProblem& problem) {
    return reduce_with(kernels.pick(problem.types, problem.norm, problem.numerics), problem);
}

// Equal bits; in fp32 any two NaNs are equal, since which operand's payload survives an addition is
// up to the compiler. (16-bit NaNs are stored as one pattern.)
inline bool same_bits(const Bytes& a, const Bytes& b, DType dtype) {
    if (dtype != kF32) {
        return a == b;
    }
    for (size_t at = 0; at + 4 <= a.size(); at += 4) {
        float x, y;
        std::memcpy(&x, &a[at], 4);
        std::memcpy(&y, &b[at], 4);
        if (std::memcmp(&x, &y, 4) != 0 && !(std::isnan(x) && std::isnan(y))) {
            return false;
        }
    }
    return a.size() == b.size();
}

}  // namespace token::testing
