// Where in the source an instruction of this program comes from.
#pragma once

#include <string>

namespace token::emulator {

// "two_shot.cuh:42", of the innermost inlined function that is not of the emulator; without
// addr2line (binutils) or debug information the offset in the program.
std::string source_line(const void* instruction);

}  // namespace token::emulator
