#include "communicator.hpp"

#include "token/common/check.hpp"

#include <utility>

namespace token::fabric {

namespace {

// A world of one has no one to share with, but the same code runs on it.
std::vector<std::shared_ptr<Segment>> allocate_on(Mesh* mesh, int64_t num_bytes, double timeout_s) {
    if (mesh != nullptr) {
        return mesh->allocate(num_bytes, timeout_s);
    }
    const UniqueFd fd = Segment::create(num_bytes, 1);
    return {Segment::map(fd.get(), num_bytes, Access::kReadWrite)};
}

std::vector<std::byte*> data_of(const std::vector<std::shared_ptr<Segment>>& segments) {
    std::vector<std::byte*> bases;
    for (const auto& segment : segments) {
        bases.push_back(segment->data());
    }
    return bases;
}

// A rank that is lost to an allocation is lost to the collectives too: the group breaks on all
// ranks.
template <class Allocate>
auto breaking_on_loss(comm::HostGroup& group, const Allocate& allocate) {
    if (const auto verdict = group.verdict()) {
        group.throw_verdict(*verdict);
    }
    try {
        return allocate();
    } catch (const PeerLost& error) {
        group.abort(comm::VerdictKind::kPeerLost, error.context.peer_rank);
        throw;
    } catch (const CommTimeout& error) {
        group.abort(comm::VerdictKind::kTimeout, error.context.peer_rank);
        throw;
    }
}

}  // namespace

SymmetricMemory::SymmetricMemory(comm::HostGroup& group,
                                 std::vector<std::shared_ptr<Segment>> segments)
    : group_(group),
      segments_(std::move(segments)),
      region_id_(group.register_region({data_of(segments_), segments_.front()->num_bytes()})) {}

SymmetricMemory::~SymmetricMemory() {
    group_.unregister_region(region_id_);
}

Communicator::Communicator(std::shared_ptr<Mesh> mesh, const CommunicatorOptions& options)
    : mesh_(std::move(mesh)), timeout_s_(options.timeout_s) {
    const int size = mesh_ ? mesh_->size() : 1;
    const comm::WorkspaceLayout layout(size, options.partial_bytes, options.staging_bytes);
    workspaces_ = allocate_on(mesh_.get(), layout.total_bytes(), timeout_s_);
    comm::HostGroup::Options group;
    group.rank = mesh_ ? mesh_->rank() : 0;
    group.size = size;
    group.num_threads = options.num_threads;
    group.spin_count = options.spin_count;
    group.timeout_s = options.timeout_s;
    group.base_epoch = options.base_epoch;
    group.first_rank = options.first_rank;
    group.world_size = options.world_size > 0 ? options.world_size : size;
    group.check_interrupt = options.check_interrupt;
    if (mesh_) {
        group.dead_peers = [mesh = mesh_] { return mesh->dead_peers(); };
    }
    group_ = std::make_unique<comm::HostGroup>(std::move(group), layout, data_of(workspaces_));
}

std::unique_ptr<SymmetricMemory> Communicator::allocate(int64_t num_bytes) {
    return std::make_unique<SymmetricMemory>(*group_, breaking_on_loss(*group_, [&] {
        return allocate_on(mesh_.get(), num_bytes, timeout_s_);
    }));
}

Mesh::SharedSegment Communicator::allocate_shared(int64_t num_bytes) {
    return breaking_on_loss(*group_, [&]() -> Mesh::SharedSegment {
        if (mesh_) {
            return mesh_->allocate_shared(num_bytes, 0, timeout_s_);
        }
        const UniqueFd fd = Segment::create(num_bytes, 1);
        return {Segment::map(fd.get(), num_bytes, Access::kReadWrite),
                Segment::map(fd.get(), num_bytes, Access::kReadOnly)};
    });
}

}  // namespace token::fabric
