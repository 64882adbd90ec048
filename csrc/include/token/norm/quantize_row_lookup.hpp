// Rows of bf16 to e4m3 by the tables of e4m3_lookup.hpp: how a row is cut up, for the bodies that
// look bytes up. The same bits as quantize_row.hpp, which does what is not here: other types,
// scales near the ends of fp32, and what a body declines.
//
// A body has
//     Vec                          its vector type
//     Words                        kLookupBlock elements of a row, loaded
//     Lookup                       a table, and the magnitudes for which it is right
//     load(from) -> Words
//     largest(words) -> uint32_t   the largest magnitude
//     lookup_of_largest(magnitude) -> Lookup, where the largest magnitude is to have code 448
//     lookup_of_scale(scale) -> Lookup
//     encode(words, lookup, scale, out) -> bool: false, and nothing written, where it declines
#pragma once

#include "token/norm/e4m3_lookup.hpp"
#include "token/norm/quantize_row.hpp"

#include <bit>
#include <cstdint>

namespace token::norm {

// Elements that are looked at together, and a group of the usual size.
inline constexpr int kLookupBlock = 128;
// Magnitudes are upper halves of fp32, 128 of them between a value and its double.
inline constexpr uint32_t kOctave = 128;
// The largest magnitude is 448 scales, the smallest normal code stands for 2^-6 of them, which is
// 14.8 octaves below.
inline constexpr uint32_t kOctavesOfNormalCodes = 14;

// Of the magnitudes for which a static scale gives normal codes. Up to rounding: the neighbours of
// a product of 2^-6 and of 448 still have these codes.
TOKEN_INLINE uint32_t smallest_magnitude(float scale) {
    return (std::bit_cast<uint32_t>(scale * 0x1p-6f) >> 16) + 1;
}
TOKEN_INLINE uint32_t largest_magnitude(float scale) {
    return std::bit_cast<uint32_t>(scale * Float8E4M3::kMax) >> 16;
}

template <class Body>
class LookupQuantizer {
  public:
    explicit LookupQuantizer(const QuantizeArgs& args)
        : args_(args), row_(static_cast<const uint16_t*>(args.row)) {}

    void run() const {
        if (args_.group_elements == 0) {
            run_static();
        } else if (args_.group_elements == kLookupBlock) {
            run_groups();
        } else {
            Generic(args_).for_each_group([&](int64_t start, int64_t count, float* scale) {
                const uint32_t largest = Generic(args_).largest_magnitude(start, count) >> 16;
                *scale = Generic::scale_of(largest << 16);
                if (is_usual(largest)) {
                    encode(start, count, Body::lookup_of_largest(largest), *scale);
                } else {
                    Generic(args_).encode_any(start, count, *scale);
                }
            });
        }
    }

  private:
    using Generic = RowQuantizer<typename Body::Vec, BFloat16, Float8E4M3>;

    static constexpr uint32_t kUsualFrom = (127 - 63) * kOctave, kUsualTo = (127 + 63) * kOctave;
    static TOKEN_INLINE bool is_usual(uint32_t magnitude) {
        return magnitude - kUsualFrom < kUsualTo - kUsualFrom;
    }

    void run_static() const {
        const float scale = args_.scale;
        if (scale >= 0x1p-63f && scale <= 0x1p63f) {
            encode(0, args_.hidden, Body::lookup_of_scale(scale), scale);
        } else {
            Generic(args_).encode_any(0, args_.hidden, scale);
        }
    }

    void run_groups() const {
        int64_t start = 0;
        float* scale = args_.scales;
        for (; start + kLookupBlock <= args_.hidden; start += kLookupBlock, ++scale) {
            const typename Body::Words words = Body::load(row_ + start);
            const uint32_t largest = Body::largest(words);
            *scale = Generic::scale_of(largest << 16);
            if (__builtin_expect(is_usual(largest), 1)) {
                encode_block(start, words, Body::lookup_of_largest(largest), *scale);
            } else {
                Generic(args_).encode_any(start, kLookupBlock, *scale);
            }
        }
        if (start < args_.hidden) {
            const int64_t count = args_.hidden - start;
            *scale = Generic::scale_of(Generic(args_).largest_magnitude(start, count));
            Generic(args_).encode_any(start, count, *scale);
        }
    }

    void encode(int64_t start,
                int64_t count,
                const typename Body::Lookup& lookup,
                float scale) const {
        const int64_t stop = start + count;
        for (; start + kLookupBlock <= stop; start += kLookupBlock) {
            encode_block(start, Body::load(row_ + start), lookup, scale);
        }
        if (start < stop) {
            Generic(args_).encode_any(start, stop - start, scale);
        }
    }

    TOKEN_INLINE void encode_block(int64_t start,
                                   const typename Body::Words& words,
                                   const typename Body::Lookup& lookup,
                                   float scale) const {
        if (__builtin_expect(!Body::encode(words, lookup, scale, args_.out + start), 0)) {
            Generic(args_).encode_any(start, kLookupBlock, scale);
        }
    }

    const QuantizeArgs args_;
    const uint16_t* row_;
};

// The kernel of a body.
template <class Body>
void quantize_row_by_lookup(const QuantizeArgs& args) {
    if (args.type == DType::kBFloat16 && args.format == QuantizedFormat::kFloat8E4M3) {
        LookupQuantizer<Body>(args).run();
    } else {
        quantize_row<typename Body::Vec>(args);
    }
}

}  // namespace token::norm
