#include "offer.hpp"

#include <cstring>
#include <sys/socket.h>
#include <sys/uio.h>

namespace token::fabric {

void Offer::set_failure(const char* why) {
    failed = 1;
    std::strncpy(reason, why, sizeof(reason) - 1);
}

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

}  // namespace token::fabric
