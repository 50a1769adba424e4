"""What a replica counts. Collectors live on a registry that is passed in: one per replica, none global."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge


class Metrics:
    """No channel, user or client id in any label: they would grow without bound."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry = registry or CollectorRegistry()
        self.clients = Gauge("bongsu_clients", "Clients connected to this replica", registry=registry)
        self.accepted = Counter(
            "bongsu_connections_accepted", "Handshakes accepted", ["transport"], registry=registry
        )
        self.refused = Counter(
            "bongsu_connections_refused", "Handshakes refused, by problem code", ["code"], registry=registry
        )
        self.disconnects = Counter(
            "bongsu_disconnects", "Clients closed by this replica, by close code", ["code"], registry=registry
        )
        self.slow = Counter(
            "bongsu_slow_clients",
            "Clients closed because they read too slowly (3008), by what showed it",
            ["reason"],
            registry=registry,
        )
        self.dropped = Counter(
            "bongsu_dropped_publications",
            "Publications given up for clients that read too slowly, by their namespace's policy",
            ["policy"],
            registry=registry,
        )
        self.received = Counter(
            "bongsu_messages_received", "Messages from clients", ["transport"], registry=registry
        )
        self.deliveries = Counter(
            "bongsu_deliveries", "Publications put into clients' outboxes", registry=registry
        )
        self.published = Counter(
            "bongsu_publications",
            "Publications given to the broker, by outcome",
            ["outcome"],
            registry=registry,
        )
        self.recoveries = Counter(
            "bongsu_recoveries",
            "Subscriptions that asked for what they missed",
            ["recovered"],
            registry=registry,
        )
        self.unknown_envelopes = Counter(
            "bongsu_unknown_envelopes",
            "Messages from replicas of another version, skipped",
            registry=registry,
        )
        self.api_errors = Counter(
            "bongsu_api_errors", "Server API errors", ["method", "code"], registry=registry
        )
        self.broker_connected = Gauge(
            "bongsu_broker_connected",
            "1 while the broker is connected and every channel heard",
            registry=registry,
        )
        self.broker_reconnects = Gauge(
            "bongsu_broker_reconnects", "Broker connections lost since the start", registry=registry
        )
        self.ready = Gauge("bongsu_ready", "1 while this replica is ready for clients", registry=registry)
        self.replicas = Gauge("bongsu_replicas", "Replicas alive, this one included", registry=registry)
        self.beacon_age = Gauge(
            "bongsu_beacon_age_seconds", "Age of the last own beacon that came back", registry=registry
        )
        self.outbox_published = Counter(
            "bongsu_outbox_publications",
            "Publications taken from the outbox by this replica: ok, held (no such channel), superseded "
            "(another relay was faster; counted per turn)",
            ["outcome"],
            registry=registry,
        )
        self.outbox_trouble = Gauge(
            "bongsu_outbox_trouble",
            "1 while the outbox cannot be relayed: the broker or the database is away",
            registry=registry,
        )
        self.jobs = Gauge(
            "bongsu_jobs", "Jobs in the database by state, as last counted", ["state"], registry=registry
        )
        self.oldest_job = Gauge(
            "bongsu_oldest_job_seconds",
            "Age of the oldest job in that state, from when it was enqueued",
            ["state"],
            registry=registry,
        )
