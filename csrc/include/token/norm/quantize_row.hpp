// One row to 8-bit codes with scales: code = round(value * (1 / scale)), to nearest even,
// saturating. What the codes stand for is code * scale.
//
// A dynamic scale is the largest magnitude / the largest code, or 1 where that is below the
// smallest normal number (zeros above all), whose inverse fp32 could not hold. NaN makes its scale
// NaN and infinity makes it infinite, as they would in separate operations.
//
// Same bits from every body: integers, exact comparisons, one product and one division.
#pragma once

#include "token/norm/elements.hpp"
#include "token/norm/row_args.hpp"

#include <cstdint>
#include <cstring>

namespace token::norm {

// Values cross the binding.
enum class QuantizedFormat : int32_t {
    kNone = 0,
    kFloat8E4M3 = 1,  // e4m3fn: to 448, no infinities, NaN 0x7f
    kInt8 = 2,        // -127 to 127, NaN 0
};

struct QuantizeArgs {
    const void* row;  // [hidden] of `type`
    DType type;
    QuantizedFormat format;
    int64_t hidden;
    int64_t group_elements;  // elements that share a scale, a multiple of 32; 0: `scale` for all
    float scale;
    uint8_t* out;   // [hidden]
    float* scales;  // [ceil(hidden / group_elements)]; not used with `scale`
};

struct Float8E4M3 {
    static constexpr float kMax = 448.0f;

    // Any value.
    template <class Vec>
    static TOKEN_INLINE typename Vec::Int encode(const Vec& value) {
        using Int = typename Vec::Int;
        const Int bits = value.bits();
        const Int magnitude = bits & Int::broadcast(0x7fffffff);
        const Int bounded = Int::min(magnitude, Vec::broadcast(kMax).bits());
        // The neighbours of 2^14 are as far apart as the denormals of e4m3: 2^-9.
        const Vec anchor = Vec::broadcast(0x1p14f);
        const Int denormal = (Vec::from_bits(bounded) + anchor).bits() - anchor.bits();
        const Int smallest_normal = Vec::broadcast(0x1p-6f).bits();
        const Int code =
            Int::where_greater(smallest_normal, bounded, denormal, encode_normal<Vec>(bounded)) |
            (bits.template shifted_right<24>() & Int::broadcast(0x80));
        return Int::where_greater(
            magnitude, Int::broadcast(0x7f800000), Int::broadcast(0x7f), code);
    }
    // Where is_easy.
    template <class Vec>
    static TOKEN_INLINE typename Vec::Int encode_easy(const Vec& value) {
        return encode_normal<Vec>(value.bits());
    }
    // Whether all values are normal numbers of e4m3 once rounded. Of values that were divided by
    // their largest, few are not: a branch that is hardly ever taken halves the work.
    template <bool is_bounded, class Vec>
    static TOKEN_INLINE bool is_easy(const Pair<Vec>& value) {
        using Int = typename Vec::Int;
        const Int first = value.first.bits() & Int::broadcast(0x7fffffff);
        const Int second = value.second.bits() & Int::broadcast(0x7fffffff);
        const Int smallest_normal = Vec::broadcast(0x1p-6f).bits();
        return !Int::is_any_less(Int::min(first, second), smallest_normal) &&
               (is_bounded ||
                !Int::is_any_less(Vec::broadcast(kMax).bits(), Int::max(first, second)));
    }

  private:
    // Exponents move from a bias of 127 to one of 7, of 23 bits of mantissa 3 stay. The sign is far
    // above and goes to bit 7.
    template <class Vec>
    static TOKEN_INLINE typename Vec::Int encode_normal(const typename Vec::Int& bits) {
        using Int = typename Vec::Int;
        const Int lowest_kept = bits.template shifted_right<20>() & Int::broadcast(1);
        const Int rounded = bits + lowest_kept + Int::broadcast(0x7ffffu - (120u << 23));
        return (rounded.template shifted_right<20>() & Int::broadcast(0x7f)) |
               (rounded.template shifted_right<24>() & Int::broadcast(0x80));
    }
};

struct Integer8 {
    static constexpr float kMax = 127.0f;

    template <class Vec>
    static TOKEN_INLINE typename Vec::Int encode(const Vec& value) {
        using Int = typename Vec::Int;
        const Int bits = value.bits();
        const Int magnitude = bits & Int::broadcast(0x7fffffff);
        const Int bounded =
            Int::min(magnitude, Vec::broadcast(kMax).bits()) | (bits & Int::broadcast(0x80000000));
        const Int code = encode_easy(Vec::from_bits(bounded));
        return Int::where_greater(magnitude, Int::broadcast(0x7f800000), Int::broadcast(0), code);
    }
    template <class Vec>
    static TOKEN_INLINE typename Vec::Int encode_easy(const Vec& value) {
        // The neighbours of 1.5 * 2^23 are whole numbers.
        const Vec anchor = Vec::broadcast(0x1.8p23f);
        return (value + anchor).bits() & Vec::Int::broadcast(0xff);
    }
    template <bool is_bounded, class Vec>
    static TOKEN_INLINE bool is_easy(const Pair<Vec>& value) {
        if constexpr (is_bounded) {
            return true;
        }
        using Int = typename Vec::Int;
        const Int largest = Int::max(value.first.bits() & Int::broadcast(0x7fffffff),
                                     value.second.bits() & Int::broadcast(0x7fffffff));
        return !Int::is_any_less(Vec::broadcast(kMax).bits(), largest);
    }
};

template <class Vec, class Type, class Format>
class RowQuantizer {
  public:
    explicit RowQuantizer(const QuantizeArgs& args) : args_(args) {}

    void run() const {
        if (args_.group_elements == 0) {
            encode<false>(0, args_.hidden, args_.scale);
            return;
        }
        for_each_group([&](int64_t start, int64_t count, float* scale) {
            *scale = scale_of(largest_magnitude(start, count));
            encode_any(start, count, *scale);
        });
    }

    // body(start, count, scale) for the elements that share a scale of their own.
    template <class Body>
    TOKEN_INLINE void for_each_group(const Body& body) const {
        float* scale = args_.scales;
        for (int64_t start = 0; start < args_.hidden; start += args_.group_elements, ++scale) {
            const int64_t left = args_.hidden - start;
            body(start, left < args_.group_elements ? left : args_.group_elements, scale);
        }
    }

    // As bits of fp32, which order as the magnitudes do, with infinity and then NaN above all.
    uint32_t largest_magnitude(int64_t start, int64_t count) const {
        if constexpr (Type::kIsHalf) {
            // Without widening: the bits of 16-bit types are ordered the same way.
            const auto* from = static_cast<const uint16_t*>(args_.row) + start;
            typename Vec::Bf16x32 largest[kAccumulators] = {};
            for_each_pair(count, [&](int64_t index, int n, int part) {
                largest[part] = Vec::max_magnitude(largest[part], Vec::load_bf16(from + index, n));
            });
            const uint16_t bits = Vec::max_lane(Vec::max_magnitude(largest[0], largest[1]));
            return Type::template load<Vec>(&bits, 0, 1).first.bits().max_lane();
        } else {
            const Int absolute = Int::broadcast(0x7fffffff);
            Int largest[kAccumulators] = {Int::broadcast(0), Int::broadcast(0)};
            for_each_pair(count, [&](int64_t index, int n, int part) {
                const Pair<Vec> value = Type::template load<Vec>(args_.row, start + index, n);
                const Int first = value.first.bits() & absolute;
                const Int second = value.second.bits() & absolute;
                largest[part] = Int::max(largest[part], Int::max(first, second));
            });
            return Int::max(largest[0], largest[1]).max_lane();
        }
    }

    static TOKEN_INLINE float scale_of(uint32_t largest_bits) {
        if (largest_bits > 0x7f800000u) {
            largest_bits = 0x7fc00000u;
        }
        float largest;
        std::memcpy(&largest, &largest_bits, sizeof(largest));
        const float scale = largest / Format::kMax;
        return scale < 0x1p-126f ? 1.0f : scale;
    }

    // A finite dynamic scale keeps values finite and, but for rounding, in range.
    void encode_any(int64_t start, int64_t count, float scale) const {
        if (args_.group_elements > 0 && scale <= 0x1.fffffep127f) {
            encode<true>(start, count, scale);
        } else {
            encode<false>(start, count, scale);
        }
    }

  private:
    using Int = typename Vec::Int;

    template <bool is_bounded>
    void encode(int64_t start, int64_t count, float scale) const {
        const Pair<Vec> inverse = Pair<Vec>::broadcast(1.0f / scale);
        for_each_pair(count, [&](int64_t index, int n, int) {
            const Pair<Vec> value = Type::template load<Vec>(args_.row, start + index, n) * inverse;
            uint8_t* out = args_.out + start + index;
            if (__builtin_expect(Format::template is_easy<is_bounded>(value), 1)) {
                Vec::template store_bytes<Type::kOrder>(
                    out, n, Format::encode_easy(value.first), Format::encode_easy(value.second));
            } else {
                store_any(out, n, value);
            }
        });
    }

    // Rare, and large: once, not in every loop.
    [[gnu::noinline]] static void store_any(uint8_t* out, int n, const Pair<Vec>& value) {
        Vec::template store_bytes<Type::kOrder>(
            out, n, Format::encode(value.first), Format::encode(value.second));
    }

    const QuantizeArgs args_;
};

template <class Vec, class Type>
void quantize_row_of(const QuantizeArgs& args) {
    if (args.format == QuantizedFormat::kInt8) {
        RowQuantizer<Vec, Type, Integer8>(args).run();
    } else {
        RowQuantizer<Vec, Type, Float8E4M3>(args).run();
    }
}

template <class Vec>
void quantize_row(const QuantizeArgs& args) {
    switch (args.type) {
        case DType::kBFloat16:
            return quantize_row_of<Vec, BFloat16>(args);
        case DType::kFloat16:
            return quantize_row_of<Vec, Float16>(args);
        default:
            return quantize_row_of<Vec, Float32>(args);
    }
}

}  // namespace token::norm
