// A rank's seat in a world of processes on one host: its mesh of sockets, the mapped workspaces,
// and the HostGroup the kernels run on.
#pragma once

#include "mesh.hpp"
#include "token/comm/host_group.hpp"

#include <functional>
#include <memory>
#include <vector>

namespace token::fabric {

// The same number of bytes on every rank, mapped by all of them.
class SymmetricMemory {
  public:
    SymmetricMemory(comm::HostGroup& group, std::vector<std::shared_ptr<Segment>> segments);
    ~SymmetricMemory();
    SymmetricMemory(const SymmetricMemory&) = delete;
    SymmetricMemory& operator=(const SymmetricMemory&) = delete;

    std::shared_ptr<Segment> segment(int rank) const { return segments_.at(rank); }

  private:
    comm::HostGroup& group_;
    std::vector<std::shared_ptr<Segment>> segments_;
    int64_t region_id_;
};

struct CommunicatorOptions {
    int num_threads = 1;
    int spin_count = 0;
    double timeout_s = 30.0;
    int64_t partial_bytes = 0;
    int64_t staging_bytes = 0;
    uint32_t base_epoch = 0;
    // Where this host's ranks stand in a world on several hosts; a size of 0: they are the world.
    int first_rank = 0;
    int world_size = 0;
    std::function<void()> check_interrupt;
};

class Communicator {
  public:
    // mesh may be null for a world of one rank. Collective.
    Communicator(std::shared_ptr<Mesh> mesh, const CommunicatorOptions& options);

    comm::HostGroup& group() { return *group_; }
    int rank() const { return group_->rank(); }
    int size() const { return group_->size(); }
    std::shared_ptr<Segment> workspace(int rank) const { return workspaces_.at(rank); }

    // Collective.
    std::unique_ptr<SymmetricMemory> allocate(int64_t num_bytes);
    Mesh::SharedSegment allocate_shared(int64_t num_bytes);

  private:
    std::shared_ptr<Mesh> mesh_;
    double timeout_s_;
    std::vector<std::shared_ptr<Segment>> workspaces_;
    std::unique_ptr<comm::HostGroup> group_;
};

}  // namespace token::fabric
