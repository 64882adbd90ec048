// Byte map and row dealing.
#include "expect.hpp"
#include "token/comm/layout.hpp"
#include "token/comm/verdict.hpp"

using token::split_rows;
using token::comm::Verdict;
using token::comm::VerdictKind;
using token::comm::WorkspaceLayout;

int main() {
    for (int size : {1, 2, 3, 31, 32, 255}) {
        const WorkspaceLayout layout(size, 100000, 5000);
        // Regions follow each other without overlap, each on its own page.
        const int64_t offsets[] = {layout.lines_offset() + size * int64_t{token::comm::kLineBytes},
                                   layout.partial_offset(0),
                                   layout.partial_offset(1),
                                   layout.staging_in_offset(0),
                                   layout.staging_in_offset(1),
                                   layout.staging_out_offset(0),
                                   layout.staging_out_offset(1),
                                   layout.total_bytes()};
        const int64_t sizes[] = {0, 100000, 100000, 5000, 5000, 5000, 5000};
        for (int region = 0; region < 7; ++region) {
            EXPECT(offsets[region] + sizes[region] <= offsets[region + 1]);
            EXPECT(region == 0 || offsets[region] % 4096 == 0);
        }
    }
    EXPECT_THROWS(WorkspaceLayout(0, 1, 1), token::InvalidArgument);
    EXPECT_THROWS(WorkspaceLayout(2, -1, 1), token::InvalidArgument);
    EXPECT_THROWS(WorkspaceLayout(2, 1, 0), token::InvalidArgument);

    for (int64_t rows = 0; rows < 40; ++rows) {
        for (int64_t parts = 1; parts < 12; ++parts) {
            int64_t next = 0;
            for (int64_t index = 0; index < parts; ++index) {
                const auto range = split_rows(rows, parts, index);
                EXPECT_EQ(range.start, next);
                EXPECT(range.count() == rows / parts || range.count() == rows / parts + 1);
                EXPECT(range.count() <= split_rows(rows, parts, 0).count());
                next = range.stop;
            }
            EXPECT_EQ(next, rows);
        }
    }
    // Beyond 32 bits of rows x bytes.
    EXPECT_EQ(split_rows(int64_t{1} << 40, 3, 2).stop, int64_t{1} << 40);

    const Verdict verdict{VerdictKind::kTimeout, 5, 254, 7, 0xfffffffeu};
    const Verdict back = Verdict::unpack(verdict.pack());
    EXPECT(back.kind == verdict.kind && back.operation == 5 && back.reporter == 254 &&
           back.blamed == 7);
    EXPECT_EQ(back.epoch, 0xfffffffeu);
    EXPECT(verdict.pack() != 0);
    return token::testing::finish("layout");
}
