// Shared segments: size, sealing, views, shortage.
#include "../fabric/segment.hpp"
#include "expect.hpp"
#include "token/common/errors.hpp"

#include <cstring>
#include <sys/mman.h>
#include <unistd.h>

using token::fabric::Access;
using token::fabric::available_memory_bytes;
using token::fabric::Segment;

int main() {
    constexpr int64_t kBytes = 3 * 4096 + 5;
    auto fd = Segment::create(kBytes, 1);
    const auto first = Segment::map(fd.get(), kBytes, Access::kReadWrite);
    const auto second = Segment::map(fd.get(), kBytes, Access::kReadOnly);
    EXPECT_EQ(static_cast<int>(first->data()[kBytes - 1]), 0);
    std::memset(first->data(), 7, kBytes);
    EXPECT_EQ(static_cast<int>(second->data()[kBytes - 1]), 7);
    EXPECT(::ftruncate(fd.get(), 0) != 0);  // sealed: nobody can pull pages from under a peer
    EXPECT_THROWS(Segment::map(fd.get(), kBytes + 1, Access::kReadWrite), token::SystemFailure);
    fd.reset();
    EXPECT_EQ(static_cast<int>(second->data()[0]), 7);  // the mapping outlives the descriptor

    const int unsealed = ::memfd_create("unsealed", 0);
    EXPECT_EQ(::ftruncate(unsealed, kBytes), 0);
    EXPECT_THROWS(Segment::map(unsealed, kBytes, Access::kReadWrite), token::SystemFailure);
    ::close(unsealed);

    EXPECT(available_memory_bytes() > 0);
    EXPECT_THROWS(Segment::create(0, 1), token::InvalidArgument);
    EXPECT_THROWS(Segment::create(int64_t{1} << 50, 1), token::InvalidArgument);
    // Two ranks that each ask for more than half.
    EXPECT_THROWS(Segment::create(available_memory_bytes() / 2 + (int64_t{1} << 30), 2),
                  token::InvalidArgument);
    return token::testing::finish("segments");
}
