"""Which network interface has an address."""

import fcntl
import ipaddress
import socket
import struct

_SIOCGIFADDR = 0x8915
_LOOPBACK = "lo"


def interface_of(address: str) -> str | None:
    """Return the name of the interface with an address of this host, None if none has it.

    Args:
        address: numeric. Of several IPv4 addresses of an interface the kernel tells the first, of
            IPv6 none.
    """
    number = ipaddress.ip_address(address)
    if number.is_loopback:
        return _LOOPBACK
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
            except OSError:
                continue  # it has no IPv4 address
            if answer[20:24] == number.packed:
                return name
    return None
