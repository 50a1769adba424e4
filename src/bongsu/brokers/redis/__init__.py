"""Redis between the replicas."""

from bongsu.brokers.redis.broker import RedisBroker

__all__ = ["RedisBroker"]
