"""What lies between replicas: the broker seam and its implementations."""

from __future__ import annotations

from broadcaster import BroadcastBackend

from bongsu.brokers.adapter import BackendAdapter
from bongsu.brokers.base import Broker
from bongsu.brokers.memory import MemoryBroker

__all__ = ["Broker", "adapt", "broker_from_url"]


def broker_from_url(url: str, *, prefix: str) -> Broker:
    """`memory://`, or what redis-py reads: redis://, rediss://, unix://. Raises ValueError."""
    if url.startswith("memory://"):
        return MemoryBroker(url)
    # Imported late: a start on one replica's memory alone needs nothing of redis-py.
    from bongsu.brokers.redis import RedisBroker

    return RedisBroker(url, prefix=prefix)


def adapt(broker: Broker | BroadcastBackend) -> Broker:
    """One of our brokers as it is; any other `BroadcastBackend` through the adapter."""
    return broker if isinstance(broker, Broker) else BackendAdapter(broker)
