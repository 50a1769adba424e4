"""`/livez`, `/readyz`, `/status` and `/metrics`: what operators and load balancers ask."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel

from bongsu.node.beacon import Health
from bongsu.node.node import Node


class Ready(BaseModel):
    """`health` is one of ready, starting, broker down, deaf, draining, failed."""

    ready: bool
    health: str
    broker: str


class ReplicaStatus(BaseModel):
    """One replica as the asked one knows it."""

    replica: str
    clients: int
    uptime: float
    """Seconds."""
    version: str


class ClusterStatus(BaseModel):
    clients: int
    replicas: list[ReplicaStatus]


class BrokerStatus(BaseModel):
    kind: str
    state: str


class Status(BaseModel):
    """This replica, and the cluster as it sees it."""

    replica: str
    version: str
    dev: bool
    ready: bool
    health: str
    uptime: float
    clients: int
    cluster: ClusterStatus
    broker: BrokerStatus


class Loop(Protocol):
    """A task that a replica cannot do without."""

    @property
    def alive(self) -> bool: ...


def health_router(node: Node, loops: Sequence[Loop], *, dev: bool, version: str) -> APIRouter:
    """The four endpoints of one replica. `loops`: its job worker, and its outbox relay."""
    router = APIRouter(tags=["health"])

    def health_now() -> Health:
        # Uploads are answered before their jobs are done: without a worker that answer is a lie. So is a
        # commit without a relay.
        return node.health() if all(loop.alive for loop in loops) else Health.FAILED

    @router.get("/livez", summary="The process works (asks nobody else)", response_class=Response)
    async def livez() -> Response:
        return Response("ok\n", media_type="text/plain")

    @router.get(
        "/readyz",
        summary="Delivery through the broker is proven, and this replica takes clients",
        responses={503: {"model": Ready, "description": "Not ready; `health` says why"}},
    )
    async def readyz(response: Response) -> Ready:
        health = health_now()
        response.status_code = 200 if health is Health.READY else 503
        response.headers["cache-control"] = "no-store"
        return Ready(ready=health is Health.READY, health=health.value, broker=node.broker.state.value)

    @router.get("/status", summary="This replica, the others, and who is connected where")
    async def status(response: Response) -> Status:
        response.headers["cache-control"] = "no-store"
        now = time.time()
        health = health_now()
        replicas = [
            ReplicaStatus(
                replica=beat.replica,
                clients=beat.clients,
                uptime=round(max(0.0, now - beat.started), 1),
                version=beat.version,
            )
            for beat in node.replicas()
        ]
        return Status(
            replica=node.replica,
            version=version,
            dev=dev,
            ready=health is Health.READY,
            health=health.value,
            uptime=round(now - node.started, 1),
            clients=len(node.clients),
            cluster=ClusterStatus(clients=sum(replica.clients for replica in replicas), replicas=replicas),
            broker=BrokerStatus(kind=node.broker.kind, state=node.broker.state.value),
        )

    @router.get("/metrics", summary="Prometheus metrics of this replica", response_class=Response)
    async def metrics() -> Response:
        return Response(generate_latest(node.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return router
