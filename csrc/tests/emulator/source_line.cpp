#include "source_line.hpp"

#include <cstdint>
#include <cstdio>
#include <dlfcn.h>
#include <memory>
#include <sstream>

namespace token::emulator {
namespace {

// Lines of the emulator's own headers say nothing: the first one outside is meant.
bool is_of_emulator(const std::string& line) {
    return line.find("emulator/include/") != std::string::npos ||
           line.find("emulator/builtins.hpp") != std::string::npos ||
           line.find("/bits/") != std::string::npos;
}

}  // namespace

std::string source_line(const void* instruction) {
    Dl_info info{};
    if (instruction == nullptr || dladdr(instruction, &info) == 0) {
        return "?";
    }
    const auto offset =
        reinterpret_cast<uintptr_t>(instruction) - reinterpret_cast<uintptr_t>(info.dli_fbase);
    std::ostringstream fallback, command;
    fallback << info.dli_fname << "+0x" << std::hex << offset;
    // The address is where the call returns to: the call is one byte before.
    command << "addr2line -i -e '" << info.dli_fname << "' 0x" << std::hex << offset - 1
            << " 2>/dev/null";
    const std::unique_ptr<FILE, int (*)(FILE*)> output(popen(command.str().c_str(), "r"), &pclose);
    char line[1024];
    while (output != nullptr && std::fgets(line, sizeof(line), output.get()) != nullptr) {
        std::string text(line);
        text.resize(text.find_last_not_of("\n") + 1);
        if (text.find("??") == std::string::npos && !is_of_emulator(text)) {
            return text.substr(text.rfind('/') + 1);
        }
    }
    return fallback.str();
}

}  // namespace token::emulator
