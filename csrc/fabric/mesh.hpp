// A Unix socket between every two ranks of a host: how memfds travel (SCM_RIGHTS), how ranks learn
// each other's process (SO_PEERCRED) and notice its end.
#pragma once

#include "segment.hpp"

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace token::fabric {

struct Offer;

// A listening socket in a private directory. The path exists only from here until the mesh stands
// (or this object dies): a file-system name, unlike an abstract one, has permissions.
class Listener {
  public:
    // directory: an existing private (0700) directory made by the caller.
    explicit Listener(const std::string& directory);
    ~Listener();
    Listener(const Listener&) = delete;
    Listener& operator=(const Listener&) = delete;

    const std::string& path() const { return path_; }
    int fd() const { return fd_.get(); }

  private:
    UniqueFd fd_;
    std::string path_;
};

class Mesh {
  public:
    // Collective. paths[p]: rank p's listener; nonce: agreed random number, refuses strangers.
    Mesh(int rank,
         int size,
         const Listener& listener,
         const std::vector<std::string>& paths,
         uint64_t nonce,
         double timeout_s);

    int rank() const { return rank_; }
    int size() const { return size_; }
    int peer_pid(int peer) const { return peers_[peer].pid; }

    // Ranks whose process ended or which closed their mesh. Does not block.
    std::vector<int> dead_peers() const;

    // Collective: makes a segment of num_bytes on every rank and maps all of them. Fails on every
    // rank, with the reason, if it fails on one; sizes that differ between ranks are a
    // CallMismatch. kReadOnly maps the peers' segments read-only.
    std::vector<std::shared_ptr<Segment>> allocate(int64_t num_bytes, double timeout_s);

    // Collective: rank `owner` makes one segment, all ranks map it; for the read-only views of a
    // shared output the same segment is mapped a second time.
    struct SharedSegment {
        std::shared_ptr<Segment> writable;
        std::shared_ptr<Segment> readable;
    };
    SharedSegment allocate_shared(int64_t num_bytes, int owner, double timeout_s);

  private:
    struct Peer {
        UniqueFd socket;
        UniqueFd process;  // pidfd; absent where the kernel or another pid namespace has none
        int pid = 0;
    };

    std::vector<UniqueFd> exchange(const Offer& mine, int fd, double timeout_s);

    int rank_;
    int size_;
    uint64_t sequence_ = 0;
    std::vector<Peer> peers_;
};

}  // namespace token::fabric
