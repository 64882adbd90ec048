// The few macros the native tests need: a failed expectation is printed and fails the program.
#pragma once

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <sstream>

namespace token::testing {

inline std::atomic<int> num_failures{0};

inline int finish(const char* name) {
    const int failures = num_failures;
    std::printf("%s: %s (%d failures)\n", name, failures == 0 ? "ok" : "FAILED", failures);
    return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

template <class A, class B>
void expect_equal(
    const A& actual, const B& expected, const char* text, const char* file, int line) {
    if (!(actual == expected) && ++num_failures <= 20) {
        std::ostringstream message;
        message << file << ":" << line << ": " << text << ": got " << actual << ", expected "
                << expected;
        std::fprintf(stderr, "%s\n", message.str().c_str());
    }
}

}  // namespace token::testing

#define EXPECT(condition) \
    ::token::testing::expect_equal(bool(condition), true, #condition, __FILE__, __LINE__)
#define EXPECT_EQ(actual, expected) \
    ::token::testing::expect_equal(actual, expected, #actual " == " #expected, __FILE__, __LINE__)
#define EXPECT_THROWS(statement, Error)                                      \
    do {                                                                     \
        bool thrown = false;                                                 \
        try {                                                                \
            statement;                                                       \
        } catch (const Error&) {                                             \
            thrown = true;                                                   \
        }                                                                    \
        ::token::testing::expect_equal(                                      \
            thrown, true, #statement " throws " #Error, __FILE__, __LINE__); \
    } while (false)
