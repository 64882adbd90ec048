// Where there is no CUDA driver, or what is found is none: a reason that says what to do.
#include "../fabric/cuda_driver.hpp"
#include "expect.hpp"
#include "software_stream.hpp"
#include "token/common/errors.hpp"

#include <string>

namespace {

using namespace token;
using namespace token::fabric;
using namespace token::testing;

void drivers_that_are_none_have_a_reason() {
    const FoundDriver missing = find_cuda_driver("libno_such_driver.so.1");
    EXPECT(!missing.calls);
    EXPECT(missing.why_not.find("libno_such_driver.so.1") != std::string::npos);
    const FoundDriver other = find_cuda_driver("libm.so.6");
    EXPECT(!other.calls);
    EXPECT(other.why_not.find("is no CUDA driver: it has no cuDriverGetVersion") !=
           std::string::npos);
    EXPECT_THROWS(check_driver(software_calls(), 1, "cuMemcpyAsync"), SystemFailure);
}

}  // namespace

int main() {
    drivers_that_are_none_have_a_reason();
    return finish("cuda_driver");
}
