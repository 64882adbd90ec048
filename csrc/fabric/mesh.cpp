#include "mesh.hpp"

#include "socket_wait.hpp"
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

// First message on every connection.
struct Hello {
    uint64_t magic;
    uint64_t nonce;
    int32_t rank;
    int32_t size;
};
constexpr uint64_t kHelloMagic = 0x6e656b6f74206968;

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

}  // namespace token::fabric
