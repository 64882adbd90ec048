#include "mesh.hpp"

#include "token/common/check.hpp"

#include <cerrno>
#include <chrono>
#include <cstring>
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>
#include <utility>

namespace token::fabric {

namespace {

using Clock = std::chrono::steady_clock;

// First message on every connection.
struct Hello {
    uint64_t magic;
    uint64_t nonce;
    int32_t rank;
    int32_t size;
};
constexpr uint64_t kHelloMagic = 0x6e656b6f74206968;

Clock::time_point deadline_after(double timeout_s) {
    return Clock::now() + std::chrono::nanoseconds(static_cast<int64_t>(timeout_s * 1e9));
}

// True when fd is readable; false at the deadline.
bool wait_readable(int fd, Clock::time_point deadline) {
    while (true) {
        const auto left =
            std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now()).count();
        pollfd entry{fd, POLLIN, 0};
        const int ready = ::poll(&entry, 1, static_cast<int>(std::max<int64_t>(left, 0)));
        if (ready > 0) {
            return true;
        }
        if (ready == 0) {
            return false;
        }
        if (errno != EINTR) {
            throw_system_failure("poll on a peer's socket failed");
        }
    }
}

sockaddr_un address_of(const std::string& path) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    TOKEN_CHECK(path.size() < sizeof(address.sun_path),
                "the socket path ",
                path,
                " is longer than ",
                sizeof(address.sun_path) - 1,
                " bytes; set TMPDIR to a shorter folder");
    std::memcpy(address.sun_path, path.data(), path.size());
    return address;
}

UniqueFd open_socket() {
    UniqueFd fd(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    if (!fd) {
        throw_system_failure("creating a Unix socket failed");
    }
    return fd;
}

ucred credentials_of(int socket) {
    ucred credentials{};
    socklen_t length = sizeof(credentials);
    if (::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &credentials, &length) != 0) {
        throw_system_failure("reading a peer's credentials failed");
    }
    return credentials;
}

void send_hello(int socket, const Hello& hello) {
    if (::send(socket, &hello, sizeof(hello), MSG_NOSIGNAL) != sizeof(hello)) {
        throw_system_failure("greeting a peer failed");
    }
}

CommContext joining(int rank, int peer) {
    return {rank, peer, "init", 0};
}

}  // namespace

Listener::Listener(const std::string& directory)
    : fd_(open_socket()), path_(directory + "/" + std::to_string(::getpid())) {
    const sockaddr_un address = address_of(path_);
    if (::bind(fd_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
        throw_system_failure("binding the rank's socket at ", path_, " failed");
    }
    if (::listen(fd_.get(), SOMAXCONN) != 0) {
        throw_system_failure("listening at ", path_, " failed");
    }
}

Listener::~Listener() {
    ::unlink(path_.c_str());
}

Mesh::Mesh(int rank,
           int size,
           const Listener& listener,
           const std::vector<std::string>& paths,
           uint64_t nonce,
           double timeout_s)
    : rank_(rank), size_(size), peers_(size) {
    const Hello mine{kHelloMagic, nonce, rank, size};
    // A connection completes into the listener's backlog without its owner's help, so lower ranks
    // can be called before anyone accepts: no order of ranks can deadlock.
    for (int peer = 0; peer < rank; ++peer) {
        UniqueFd socket = open_socket();
        const sockaddr_un address = address_of(paths.at(peer));
        if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) !=
            0) {
            throw PeerLost(concat("rank ",
                                  rank,
                                  " cannot reach rank ",
                                  peer,
                                  " at ",
                                  paths[peer],
                                  ": ",
                                  std::strerror(errno),
                                  ". Shared memory needs all ranks on one host with one /tmp."),
                           joining(rank, peer));
        }
        send_hello(socket.get(), mine);
        peers_[peer].socket = std::move(socket);
    }
    const auto deadline = deadline_after(timeout_s);
    for (int missing = size - 1 - rank; missing > 0;) {
        if (!wait_readable(listener.fd(), deadline)) {
            throw CommTimeout(concat("rank ",
                                     rank,
                                     ": ",
                                     missing,
                                     " of ",
                                     size - 1 - rank,
                                     " higher ranks did not connect within ",
                                     timeout_s,
                                     " s"),
                              joining(rank, -1));
        }
        UniqueFd socket(::accept4(listener.fd(), nullptr, nullptr, SOCK_CLOEXEC));
        Hello theirs{};
        // A stranger (another user, another job, a port scan of /tmp) is dropped, not an error.
        if (!socket || credentials_of(socket.get()).uid != ::geteuid() ||
            !wait_readable(socket.get(), deadline) ||
            ::recv(socket.get(), &theirs, sizeof(theirs), 0) != sizeof(theirs) ||
            theirs.magic != kHelloMagic || theirs.nonce != nonce || theirs.size != size ||
            theirs.rank <= rank || theirs.rank >= size || peers_[theirs.rank].socket) {
            continue;
        }
        peers_[theirs.rank].socket = std::move(socket);
        --missing;
    }
    for (int peer = 0; peer < size; ++peer) {
        if (peer == rank) {
            continue;
        }
        peers_[peer].pid = credentials_of(peers_[peer].socket.get()).pid;
        if (peers_[peer].pid > 0) {
            // Missing (old kernel, other pid namespace) leaves the socket's end of file, which a
            // child forked by the peer can keep open.
            peers_[peer].process =
                UniqueFd(static_cast<int>(::syscall(SYS_pidfd_open, peers_[peer].pid, 0)));
        }
    }
}

std::vector<int> Mesh::dead_peers() const {
    std::vector<pollfd> entries;
    std::vector<int> owners;
    for (int peer = 0; peer < size_; ++peer) {
        if (peer == rank_) {
            continue;
        }
        // A pidfd becomes readable when the process has ended, reaped or not: kill(pid, 0) would
        // take a zombie for alive.
        if (peers_[peer].process) {
            entries.push_back({peers_[peer].process.get(), POLLIN, 0});
            owners.push_back(peer);
        }
        entries.push_back({peers_[peer].socket.get(), POLLRDHUP, 0});
        owners.push_back(peer);
    }
    std::vector<int> dead;
    if (::poll(entries.data(), entries.size(), 0) <= 0) {
        return dead;
    }
    for (size_t index = 0; index < entries.size(); ++index) {
        const bool gone = entries[index].revents & (POLLIN | POLLHUP | POLLRDHUP | POLLERR);
        if (gone && (dead.empty() || dead.back() != owners[index])) {
            dead.push_back(owners[index]);
        }
    }
    return dead;
}

// What a rank offers to a collective allocation: a segment (its fd rides along), nothing, or its
// failure.
struct Mesh::Offer {
    uint64_t sequence = 0;
    int64_t num_bytes = 0;
    int32_t owner = -1;  // -1: every rank brings a segment
    int32_t failed = 0;
    char reason[240] = {};
};

namespace {

template <class Offer>
void send_offer(int socket, const Offer& offer, int fd) {
    iovec data{const_cast<Offer*>(&offer), sizeof(offer)};
    msghdr message{};
    message.msg_iov = &data;
    message.msg_iovlen = 1;
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
    if (fd >= 0) {
        message.msg_control = control;
        message.msg_controllen = sizeof(control);
        cmsghdr* header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof(int));
        std::memcpy(CMSG_DATA(header), &fd, sizeof(int));
    }
    // A peer that is gone is found by the receive that follows, which can name it.
    (void)::sendmsg(socket, &message, MSG_NOSIGNAL);
}

// False at end of file.
template <class Offer>
bool receive_offer(int socket, Offer& offer, UniqueFd& fd) {
    iovec data{&offer, sizeof(offer)};
    msghdr message{};
    message.msg_iov = &data;
    message.msg_iovlen = 1;
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    const ssize_t received = ::recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
    for (cmsghdr* header = CMSG_FIRSTHDR(&message); received > 0 && header != nullptr;
         header = CMSG_NXTHDR(&message, header)) {
        if (header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS) {
            int passed = -1;
            std::memcpy(&passed, CMSG_DATA(header), sizeof(int));
            fd = UniqueFd(passed);
        }
    }
    return received == static_cast<ssize_t>(sizeof(offer));
}

}  // namespace

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

namespace {

template <class Offer>
void set_failure(Offer& offer, const char* reason) {
    offer.failed = 1;
    std::strncpy(offer.reason, reason, sizeof(offer.reason) - 1);
}

}  // namespace

std::vector<std::shared_ptr<Segment>> Mesh::allocate(int64_t num_bytes, double timeout_s) {
    Offer offer;
    offer.sequence = ++sequence_;
    offer.num_bytes = num_bytes;
    UniqueFd own;
    try {
        own = Segment::create(num_bytes, size_);
    } catch (const std::exception& error) {
        set_failure(offer, error.what());
    }
    std::vector<UniqueFd> fds = exchange(offer, own.get(), timeout_s);
    fds[rank_] = std::move(own);
    std::vector<std::shared_ptr<Segment>> segments;
    try {
        for (const UniqueFd& fd : fds) {
            segments.push_back(Segment::map(fd.get(), num_bytes, Access::kReadWrite));
        }
    } catch (const std::exception& error) {
        set_failure(offer, error.what());
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
            set_failure(offer, error.what());
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
        set_failure(offer, error.what());
    }
    exchange(offer, -1, timeout_s);
    return shared;
}

}  // namespace token::fabric
