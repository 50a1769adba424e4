"""Which channels there are and who may do what on them. Pure rules; nothing here awaits.

Source: the Centrifuge client protocol, "Channels, namespaces, permissions".
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class ChannelOptions(BaseModel):
    """Options of one namespace. Everything is off unless set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    allow_subscribe_for_client: bool = Field(False, description="Clients with a user id may subscribe")
    allow_subscribe_for_anonymous: bool = Field(
        False, description="Extends allow_subscribe_for_client to anonymous clients"
    )
    allow_publish_for_client: bool = Field(False, description="Clients with a user id may publish")
    allow_publish_for_subscriber: bool = Field(False, description="Subscribers with a user id may publish")
    allow_publish_for_anonymous: bool = Field(
        False, description="Extends the two options above to anonymous clients"
    )
