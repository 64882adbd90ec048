# Kernels compiled by the host compiler, see emulator.hpp.
add_library(token_emulator STATIC
    emulator/accesses.cpp
    emulator/clocks.cpp
    emulator/device.cpp
    emulator/fiber.cpp
    emulator/hooks.cpp
    emulator/machine.cpp
    emulator/meetings.cpp
    emulator/memory.cpp
    emulator/messages.cpp
    emulator/schedule.cpp
    emulator/source_line.cpp
    emulator/static_shared.cpp
)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
    enable_language(ASM)
    target_sources(token_emulator PRIVATE emulator/switch_x86_64.S)
endif()
target_include_directories(token_emulator PUBLIC emulator ${PROJECT_SOURCE_DIR}/csrc
    ${PROJECT_SOURCE_DIR}/csrc/include)
target_compile_options(token_emulator PRIVATE -Wall -Wextra -Werror=return-type)
target_link_libraries(token_emulator PUBLIC ${CMAKE_DL_LIBS})

# token_emulate(target): its sources are kernels, or tests with kernels in them. -fsanitize=thread
# makes the compiler call a hook before every memory access; the emulator, not the sanitizer,
# answers.
function(token_emulate target)
    target_include_directories(${target} BEFORE PRIVATE emulator/include)
    target_compile_options(${target} PRIVATE -g1 -Wno-unknown-pragmas -fsanitize=thread
        "SHELL:-include ${PROJECT_SOURCE_DIR}/csrc/tests/emulator/builtins.hpp")
    target_link_libraries(${target} PRIVATE token_emulator)
endfunction()

# token_add_emulated_test(name [sources...]): test_<name>.cpp, with kernels in it.
function(token_add_emulated_test name)
    add_executable(test_${name} test_${name}.cpp ${ARGN})
    token_emulate(test_${name})
    add_test(NAME ${name} COMMAND test_${name})
    set_tests_properties(${name} PROPERTIES TIMEOUT 120)
endfunction()

token_add_emulated_test(emulator)

# ---- the reductions: the shipped units, whole, launched as the binding launches them ----
set(TOKEN_WEAVE_CUDA ${PROJECT_SOURCE_DIR}/csrc/weave/cuda)
add_library(token_emulated_cases STATIC
    emulated_elements.cpp
    emulated_oracle.cpp
    emulated_reduction.cpp
    ${TOKEN_WEAVE_CUDA}/failure.cpp
    ${TOKEN_WEAVE_CUDA}/launch.cpp
    ${TOKEN_WEAVE_CUDA}/launch_checks.cpp
    ${TOKEN_WEAVE_CUDA}/start.cpp
)
target_link_libraries(token_emulated_cases PUBLIC token_emulator)
set(TOKEN_EMULATED_UNITS baseline gather reduce_multicast reduce_peer reduce_unaligned)

# token_add_reduction_kernels(target folder): its .cu units as C++.
function(token_add_reduction_kernels target folder)
    list(TRANSFORM TOKEN_EMULATED_UNITS REPLACE "(.+)" "${folder}/\\1.cu" OUTPUT_VARIABLE units)
    set_source_files_properties(${units} PROPERTIES LANGUAGE CXX)
    add_library(${target} STATIC ${units})
    token_emulate(${target})
endfunction()

token_add_reduction_kernels(token_emulated_kernels ${TOKEN_WEAVE_CUDA})
foreach(name emulated_reduction emulated_faults emulated_gather emulated_pace)
    add_executable(test_${name} test_${name}.cpp)
    target_link_libraries(test_${name} PRIVATE token_emulated_cases token_emulated_kernels)
    add_test(NAME ${name} COMMAND test_${name})
    set_tests_properties(${name} PROPERTIES TIMEOUT 120)
endforeach()

# ---- the reductions with mistakes ----
include(emulator/seeded_mistakes.cmake)
token_add_reduction_kernels(token_seeded_kernels ${TOKEN_SEEDED_DIR})
target_compile_options(token_seeded_kernels PRIVATE
    "SHELL:-include ${PROJECT_SOURCE_DIR}/csrc/tests/seeded_mistakes.hpp")
add_executable(test_emulated_seeded test_emulated_seeded.cpp)
target_include_directories(test_emulated_seeded BEFORE PRIVATE emulator/include)
target_link_libraries(test_emulated_seeded PRIVATE token_emulated_cases token_seeded_kernels)
add_test(NAME emulated_seeded COMMAND test_emulated_seeded)
set_tests_properties(emulated_seeded PROPERTIES TIMEOUT 120)

# ---- the merge of attention outputs: the shipped unit, beside the CPU's ----
set(TOKEN_RING_CUDA ${PROJECT_SOURCE_DIR}/csrc/ring/cuda)
add_library(token_emulated_merge STATIC ${TOKEN_RING_CUDA}/merge_lse.cu)
set_source_files_properties(${TOKEN_RING_CUDA}/merge_lse.cu PROPERTIES LANGUAGE CXX)
token_emulate(token_emulated_merge)
target_compile_options(token_emulated_merge PRIVATE -ffp-contract=off)
token_add_emulated_test(emulated_merge ${TOKEN_RING_CUDA}/launch.cpp ${TOKEN_RING_CUDA}/launch_plan.cpp)
target_link_libraries(test_emulated_merge PRIVATE token_emulated_merge token_native)
