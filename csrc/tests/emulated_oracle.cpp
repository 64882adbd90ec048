// The reductions in fp64, and how far from it each rounding may lead.
#include "emulated_reduction.hpp"
#include "token/common/math.hpp"

#include <algorithm>
#include <cmath>
#include <sstream>

namespace token::testing {
namespace {

using weave::cuda::Form;
using weave::cuda::Reach;

constexpr double kFloat32Rounding = 0x1p-24;

// Largest relative error of one rounding to nearest.
double rounding_of(DType dtype) {
    return dtype == DType::kBFloat16 ? 0x1p-8 : dtype == DType::kFloat16 ? 0x1p-11 : 0x1p-24;
}
// Half the step between denormals.
double denormal_rounding_of(DType dtype) {
    return dtype == DType::kFloat16 ? 0x1p-25 : 0x1p-134;
}

struct Value {
    double exact = 0.0;
    double error = 0.0;  // that a result before its last rounding may have
};

struct Row {
    std::vector<Value> total, normed;  // [hidden]
};

// A row's values, by the roundings of the numbers contract: the sum over ranks once to the element
// type; everything after in fp32, where each of the few sums of the norm adds at most
// kSumRoundings * 2^-24 of the magnitudes (a lane adds 32 values one by one, then 5 + 16 more).
Row exact_row(const EmulatedCase& chosen, const EmulatedInputs& inputs, int64_t row) {
    constexpr double kSumRoundings = 64;
    const int64_t hidden = chosen.hidden;
    Row result;
    result.total.resize(hidden);
    result.normed.resize(hidden);
    for (int64_t column = 0; column < hidden; ++column) {
        double sum = 0.0, magnitudes = 0.0;
        for (const auto& x : inputs.x) {
            sum += x[row * hidden + column];
            magnitudes += std::abs(x[row * hidden + column]);
        }
        const double bias = inputs.bias.empty() ? 0.0 : inputs.bias[column];
        const double residual =
            inputs.residual.empty() ? 0.0 : inputs.residual[row * hidden + column];
        Value& total = result.total[column];
        total.exact = sum + bias + residual;
        total.error = chosen.size * kFloat32Rounding * magnitudes +
                      rounding_of(chosen.dtype) * std::abs(sum) +
                      denormal_rounding_of(chosen.dtype) +
                      2 * kFloat32Rounding * (std::abs(sum) + std::abs(bias) + std::abs(residual));
    }
    if (!chosen.has_norm) {
        result.normed = result.total;
        return result;
    }
    double mean = 0.0, mean_error = 0.0, square = 0.0, square_error = 0.0;
    if (chosen.is_layer_norm) {
        for (const Value& value : result.total) {
            mean += value.exact / hidden;
            mean_error +=
                (value.error + kSumRoundings * kFloat32Rounding * std::abs(value.exact)) / hidden;
        }
    }
    for (const Value& value : result.total) {
        const double centred = value.exact - mean;
        const double error = value.error + mean_error + kFloat32Rounding * std::abs(centred);
        square += centred * centred / hidden;
        square_error += (2 * std::abs(centred) * error + error * error +
                         kSumRoundings * kFloat32Rounding * centred * centred) /
                        hidden;
    }
    const double inverse = 1.0 / std::sqrt(square + 1e-5);
    const double inverse_error =
        inverse * (0.5 * square_error / (square + 1e-5) + 4 * kFloat32Rounding);
    for (int64_t column = 0; column < hidden; ++column) {
        const double weight = inputs.weight[column] + double{chosen.weight_offset};
        const double centred = result.total[column].exact - mean;
        const double error = result.total[column].error + mean_error;
        Value& normed = result.normed[column];
        normed.exact = centred * inverse * weight;
        // To first order, twice: the products of errors are smaller by far.
        normed.error =
            1.01 * std::abs(weight) * (inverse * error + std::abs(centred) * inverse_error) +
            4 * kFloat32Rounding * std::abs(normed.exact);
    }
    return result;
}

double decode_e4m3(uint8_t code) {
    const int exponent = code >> 3 & 15, mantissa = code & 7;
    const double magnitude = (code & 0x7f) == 0x7f ? std::nan("")
                             : exponent == 0       ? std::ldexp(mantissa, -9)
                                                   : std::ldexp(8 + mantissa, exponent - 10);
    return (code & 0x80) != 0 ? -magnitude : magnitude;
}

class Comparison {
  public:
    // NaN is never near enough.
    void near(const char* what,
              int rank,
              int64_t row,
              int64_t column,
              double got,
              double exact,
              double allowed) {
        if (std::abs(got - exact) <= allowed) {
            return;
        }
        if (num_wrong_++ < 4) {
            text_ << what << " of rank " << rank << " at (" << row << ", " << column << "): got "
                  << got << ", expected " << exact << " +- " << allowed << "\n";
        }
    }
    void require(bool is_right, const char* what, int rank) {
        if (!is_right) {
            ++num_wrong_;
            text_ << what << " of rank " << rank << "\n";
        }
    }
    std::string text() const {
        return num_wrong_ == 0 ? "" : text_.str() + std::to_string(num_wrong_) + " wrong values\n";
    }

  private:
    std::ostringstream text_;
    int64_t num_wrong_ = 0;
};

}  // namespace

std::string EmulatedCase::name() const {
    std::ostringstream text;
    constexpr const char* kForms[] = {"two_shot", "one_shot", "reduce_scatter"};
    text << kForms[static_cast<int>(form)] << (reach == Reach::kPeer ? " peer" : " multicast")
         << (is_virtual ? " virtual" : "") << " size " << size << " rows " << rows << " hidden "
         << hidden << " " << dtype_name(dtype) << " blocks " << num_blocks
         << (has_residual ? residual_is_sharded ? " sharded" : " replicated" : " no residual")
         << (is_residual_fp32 ? " fp32 residual" : "") << (has_bias ? " bias" : "")
         << (has_norm ? is_layer_norm ? " layer norm" : " rms norm" : " no norm")
         << (is_weight_fp32 ? " fp32 weight" : "") << " format " << static_cast<int>(format)
         << " group " << group_elements << (has_out ? "" : " no out")
         << (is_in_place ? " in place" : "") << " epoch " << first_epoch;
    return text.str();
}

std::string compare_with_fp64(const EmulatedCase& chosen,
                              const EmulatedInputs& inputs,
                              const EmulatedResults& results) {
    const bool is_out_sharded = chosen.form == Form::kReduceScatter;
    const bool is_fp8 = chosen.format == norm::QuantizedFormat::kFloat8E4M3;
    const int64_t hidden = chosen.hidden;
    const DType residual_dtype = chosen.is_residual_fp32 ? DType::kFloat32 : chosen.dtype;
    const int64_t group = chosen.group_elements == 0 ? hidden : chosen.group_elements;
    Comparison comparison;
    const auto rounded = [](DType dtype, const Value& value) {
        return value.error + rounding_of(dtype) * (std::abs(value.exact) + value.error) +
               denormal_rounding_of(dtype);
    };
    const auto compare_rank = [&](int rank, int64_t row, const Row& exact) {
        const RowRange own = split_rows(chosen.rows, chosen.size, rank);
        const bool is_own = row >= own.start && row < own.stop;
        for (int64_t column = 0; column < hidden; ++column) {
            const Value &total = exact.total[column], &normed = exact.normed[column];
            if (chosen.has_residual && (is_own || !chosen.residual_is_sharded)) {
                const int64_t at = row - (chosen.residual_is_sharded ? own.start : 0);
                comparison.near("residual_out",
                                rank,
                                row,
                                column,
                                results.residual_out[rank].at(at * hidden + column),
                                total.exact,
                                rounded(residual_dtype, total));
            }
            if (!is_own && is_out_sharded) {
                continue;
            }
            const int64_t at = (row - (is_out_sharded ? own.start : 0)) * hidden + column;
            if (chosen.has_out) {
                comparison.near("out",
                                rank,
                                row,
                                column,
                                results.out[rank].at(at),
                                normed.exact,
                                rounded(chosen.dtype, normed));
            }
            if (chosen.format == norm::QuantizedFormat::kNone) {
                continue;
            }
            double scale = 0.0625;
            if (chosen.group_elements != 0) {
                const int64_t first = column / group * group;
                const int64_t groups = ceil_div(hidden, group);
                scale = results.scales[rank].at(at / hidden * groups + column / group);
                double largest = 0.0, error = 0.0;
                for (int64_t i = first; i < std::min(hidden, first + group); ++i) {
                    largest = std::max(largest, std::abs(exact.normed[i].exact));
                    error = std::max(error, rounded(chosen.dtype, exact.normed[i]));
                }
                const double most = is_fp8 ? 448.0 : 127.0;
                comparison.near("scale",
                                rank,
                                row,
                                column,
                                scale,
                                largest / most,
                                error / most + 0x1p-22 * largest / most);
            }
            const uint8_t code = results.codes[rank].at(at);
            const double decoded =
                is_fp8 ? decode_e4m3(code) : static_cast<double>(static_cast<int8_t>(code));
            // Half the distance of neighbouring codes, and the rounding of value * (1 / scale).
            const double step =
                is_fp8 ? 0x1p-4 * std::abs(normed.exact) + 0x1p-10 * scale : 0.5 * scale;
            comparison.near("code",
                            rank,
                            row,
                            column,
                            decoded * scale,
                            normed.exact,
                            1.1 * rounded(chosen.dtype, normed) + step * (1 + 0x1p-8) +
                                0x1p-20 * std::abs(normed.exact));
        }
    };
    for (int64_t row = 0; row < chosen.rows; ++row) {
        const Row exact = exact_row(chosen, inputs, row);
        for (int rank = 0; rank < chosen.size; ++rank) {
            compare_rank(rank, row, exact);
        }
    }
    for (int rank = 1; rank < chosen.size && !is_out_sharded; ++rank) {
        comparison.require(results.out[rank] == results.out[0] &&
                               results.codes[rank] == results.codes[0] &&
                               results.scales[rank] == results.scales[0],
                           "other bits than rank 0's: those",
                           rank);
    }
    return comparison.text();
}

}  // namespace token::testing
