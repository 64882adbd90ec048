#include "start.hpp"

#include "token/common/check.hpp"

#include <initializer_list>
#include <iterator>

namespace token::weave::cuda {

namespace {

constexpr const char* kNamespace = "token::weave::cuda::";

// One row a kernel: the function that has it compiled in, and what it is in the sources.
struct ReductionEntry {
    void (*enqueue)(const ReductionParams&, Element, const LaunchShape&);
    const char* file;
    const char* stem;   // of the kernel
    const char* reach;  // null: the kernel is no template, and for bf16
    bool is_aligned;
    std::initializer_list<Element> dtypes;
};

constexpr auto kSwitchTypes = {Element::kBFloat16, Element::kFloat16};
constexpr auto kAllTypes = {Element::kBFloat16, Element::kFloat16, Element::kFloat32};
constexpr auto kOneType = {Element::kBFloat16};

// In the order of ReductionKernel.
constexpr ReductionEntry kReductions[] = {
    {enqueue_two_shot_peer, "two_shot", "two_shot", "Peer", true, kAllTypes},
    {enqueue_two_shot_unaligned, "two_shot", "two_shot", "Peer", false, kAllTypes},
    {enqueue_two_shot_multicast, "two_shot", "two_shot", "Multicast", true, kSwitchTypes},
    {enqueue_one_shot_peer, "one_shot", "one_shot", "Peer", true, kAllTypes},
    {enqueue_one_shot_multicast, "one_shot", "one_shot", "Multicast", true, kSwitchTypes},
    {enqueue_row_per_block, "row_per_block", "row_per_block", nullptr, true, kOneType},
    {enqueue_two_shot_paced, "paced", "two_shot", "Paced", true, kOneType},
};

struct GatherEntry {
    void (*enqueue)(const GatherParams&, bool is_aligned, const LaunchShape&);
    const char* reach;
    bool is_aligned;
};

// In the order of GatherKernel.
constexpr GatherEntry kGathers[] = {
    {enqueue_gather_peer, "Peer", true},
    {enqueue_gather_peer, "Peer", false},
    {enqueue_gather_multicast, "Multicast", true},
};

const char* type_of(Element dtype) {
    switch (dtype) {
        case Element::kFloat32:
            return "Float32";
        case Element::kBFloat16:
            return "BFloat16";
        case Element::kFloat16:
            return "Float16";
    }
    return "";
}

const char* word(bool value) {
    return value ? "true" : "false";
}

std::string qualified(const std::string& name) {
    return kNamespace + name;
}

fabric::KernelSource source_of(const ReductionEntry& entry, Element dtype) {
    std::string kernel = qualified(entry.stem);
    if (entry.reach != nullptr) {
        kernel = concat(kernel,
                        "<",
                        qualified(entry.reach),
                        ", ",
                        qualified(type_of(dtype)),
                        ", ",
                        word(entry.is_aligned),
                        ">");
    }
    return {concat("weave/cuda/", entry.file, ".cuh"),
            kernel,
            qualified("ReductionParams"),
            sizeof(ReductionParams),
            {}};
}

fabric::KernelSource source_of(const GatherEntry& entry) {
    return {"weave/cuda/gather.cuh",
            concat(qualified("all_gather_rows"),
                   "<",
                   qualified(entry.reach),
                   ", ",
                   word(entry.is_aligned),
                   ">"),
            qualified("GatherParams"),
            sizeof(GatherParams),
            {}};
}

template <class Params>
void describe(const fabric::KernelSource& source,
              const Params& params,
              const LaunchShape& shape,
              const fabric::KernelLauncher& launcher) {
    fabric::KernelLaunch launch;
    launch.source = source;
    launch.params = fabric::bytes_of(params);
    launch.grid_x = shape.num_blocks;
    launch.grid_y = shape.num_ranks;
    launch.num_threads = shape.num_threads;
    launch.is_cooperative = is_cooperative(shape);
    launch.stream = shape.stream;
    launcher(launch);
}

}  // namespace

void start(ReductionKernel kernel,
           Element dtype,
           const ReductionParams& params,
           const LaunchShape& shape,
           const fabric::KernelLauncher& launcher) {
    const ReductionEntry& entry = kReductions[static_cast<int>(kernel)];
    if (launcher) {
        return describe(source_of(entry, dtype), params, shape, launcher);
    }
    entry.enqueue(params, dtype, shape);
}

void start(GatherKernel kernel,
           const GatherParams& params,
           const LaunchShape& shape,
           const fabric::KernelLauncher& launcher) {
    const GatherEntry& entry = kGathers[static_cast<int>(kernel)];
    if (launcher) {
        return describe(source_of(entry), params, shape, launcher);
    }
    entry.enqueue(params, entry.is_aligned, shape);
}

std::vector<fabric::KernelSource> kernel_sources() {
    static_assert(std::size(kReductions) == static_cast<int>(ReductionKernel::kTwoShotPaced) + 1);
    static_assert(std::size(kGathers) == static_cast<int>(GatherKernel::kMulticast) + 1);
    std::vector<fabric::KernelSource> sources;
    for (const ReductionEntry& entry : kReductions) {
        for (const Element dtype : entry.dtypes) {
            sources.push_back(source_of(entry, dtype));
        }
    }
    for (const GatherEntry& entry : kGathers) {
        sources.push_back(source_of(entry));
    }
    return sources;
}

}  // namespace token::weave::cuda
