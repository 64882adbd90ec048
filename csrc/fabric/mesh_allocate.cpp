// Collective allocation over the mesh: every rank learns of every rank's segment, or of its
// failure.
#include "mesh.hpp"
#include "offer.hpp"
#include "socket_wait.hpp"
#include "token/common/check.hpp"

#include <utility>

namespace token::fabric {

std::vector<UniqueFd> Mesh::exchange(const Offer& mine, int fd, double timeout_s) {
    for (int peer = 0; peer < size_; ++peer) {
        if (peer != rank_) {
            send_offer(peers_[peer].socket.get(), mine, fd);
        }
    }
    const auto deadline = deadline_after(timeout_s);
    const CommContext here{rank_, rank_, "allocate", static_cast<uint32_t>(mine.sequence)};
    std::vector<Offer> offers(size_, mine);
    std::vector<UniqueFd> fds(size_);
    // All offers are read before any is judged, so that every rank's sockets are in step
    // afterwards.
    for (int peer = 0; peer < size_; ++peer) {
        if (peer == rank_) {
            continue;
        }
        CommContext there = here;
        there.peer_rank = peer;
        if (!wait_readable(peers_[peer].socket.get(), deadline)) {
            throw CommTimeout(concat("rank ",
                                     peer,
                                     " did not take part in a collective allocation of ",
                                     mine.num_bytes,
                                     " bytes within ",
                                     timeout_s,
                                     " s; this is rank ",
                                     rank_),
                              there);
        }
        if (!receive_offer(peers_[peer].socket.get(), offers[peer], fds[peer])) {
            throw PeerLost(concat("rank ",
                                  peer,
                                  " went away during a collective allocation; this is rank ",
                                  rank_),
                           there);
        }
    }
    for (int peer = 0; peer < size_; ++peer) {
        const Offer& offer = offers[peer];
        if (offer.sequence != mine.sequence || offer.num_bytes != mine.num_bytes ||
            offer.owner != mine.owner) {
            CommContext there = here;
            there.peer_rank = peer;
            throw CallMismatch(concat("rank ",
                                      rank_,
                                      " allocates ",
                                      mine.num_bytes,
                                      " bytes (call ",
                                      mine.sequence,
                                      ") but rank ",
                                      peer,
                                      " allocates ",
                                      offer.num_bytes,
                                      " bytes (call ",
                                      offer.sequence,
                                      "). Every rank must allocate the same, in the same order."),
                               there);
        }
    }
    for (int peer = 0; peer < size_; ++peer) {
        if (offers[peer].failed != 0) {
            throw InvalidArgument(concat("rank ", peer, ": ", offers[peer].reason));
        }
    }
    return fds;
}

std::vector<std::shared_ptr<Segment>> Mesh::allocate(int64_t num_bytes, double timeout_s) {
    Offer offer;
    offer.sequence = ++sequence_;
    offer.num_bytes = num_bytes;
    UniqueFd own;
    try {
        own = Segment::create(num_bytes, size_);
    } catch (const std::exception& error) {
        offer.set_failure(error.what());
    }
    std::vector<UniqueFd> fds = exchange(offer, own.get(), timeout_s);
    fds[rank_] = std::move(own);
    std::vector<std::shared_ptr<Segment>> segments;
    try {
        for (const UniqueFd& fd : fds) {
            segments.push_back(Segment::map(fd.get(), num_bytes, Access::kReadWrite));
        }
    } catch (const std::exception& error) {
        offer.set_failure(error.what());
    }
    exchange(offer, -1, timeout_s);  // a mapping that failed on one rank fails on all
    return segments;
}

Mesh::SharedSegment Mesh::allocate_shared(int64_t num_bytes, int owner, double timeout_s) {
    Offer offer;
    offer.sequence = ++sequence_;
    offer.num_bytes = num_bytes;
    offer.owner = owner;
    UniqueFd own;
    if (rank_ == owner) {
        try {
            own = Segment::create(num_bytes, 1);
        } catch (const std::exception& error) {
            offer.set_failure(error.what());
        }
    }
    std::vector<UniqueFd> fds = exchange(offer, own.get(), timeout_s);
    if (rank_ == owner) {
        fds[rank_] = std::move(own);
    }
    SharedSegment shared;
    try {
        shared.writable = Segment::map(fds[owner].get(), num_bytes, Access::kReadWrite);
        shared.readable = Segment::map(fds[owner].get(), num_bytes, Access::kReadOnly);
    } catch (const std::exception& error) {
        offer.set_failure(error.what());
    }
    exchange(offer, -1, timeout_s);
    return shared;
}

}  // namespace token::fabric
