#include "static_shared.hpp"

#include <link.h>

namespace token::emulator {
namespace {

// The program itself comes first.
int find(dl_phdr_info* info, size_t, void* result) {
    for (int i = 0; i < info->dlpi_phnum; ++i) {
        if (info->dlpi_phdr[i].p_type == PT_TLS && info->dlpi_tls_data != nullptr) {
            *static_cast<std::span<std::byte>*>(result) = {
                static_cast<std::byte*>(info->dlpi_tls_data), info->dlpi_phdr[i].p_memsz};
        }
    }
    return 1;
}

}  // namespace

std::span<std::byte> static_shared() {
    std::span<std::byte> range;
    dl_iterate_phdr(find, &range);
    return range;
}

}  // namespace token::emulator
