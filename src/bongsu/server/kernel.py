"""What only the kernel knows of a connection."""

from __future__ import annotations

import asyncio
import fcntl
import struct
import sys
import termios


def unacknowledged(transport: asyncio.Transport) -> int:
    """Bytes written that the peer has not acknowledged; off Linux, that the kernel has not taken.

    The kernel takes more only when a third of its buffer is free. Until then somebody who reads slowly looks
    like somebody who reads nothing, but for what is acknowledged.
    """
    waiting = transport.get_write_buffer_size()
    peer = transport.get_extra_info("socket")
    if sys.platform != "linux" or peer is None:
        return waiting
    try:
        # SIOCOUTQ by its other name.
        (queued,) = struct.unpack("i", fcntl.ioctl(peer.fileno(), termios.TIOCOUTQ, bytes(4)))
    except OSError:  # it is gone
        return waiting
    return waiting + int(queued)
