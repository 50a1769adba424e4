"""Environment and `bongsu.toml` -> one frozen `Settings`. Only app, server and cli read it.

Every setting is described in docs/settings.md.
"""

from __future__ import annotations

from bongsu.settings.model import Channels, Log, Plain, Settings, Shutdown
from bongsu.settings.names import Setting, as_key, as_variable, known_settings
from bongsu.settings.reader import (
    ACCESS_TOKEN_VARIABLE,
    CONFIG_VARIABLE,
    URL_VARIABLE,
    SettingsError,
    load,
    load_explained,
)
from bongsu.settings.values import parse_duration, without_password

__all__ = [
    "ACCESS_TOKEN_VARIABLE",
    "CONFIG_VARIABLE",
    "URL_VARIABLE",
    "Channels",
    "Log",
    "Plain",
    "Setting",
    "Settings",
    "SettingsError",
    "Shutdown",
    "as_key",
    "as_variable",
    "known_settings",
    "load",
    "load_explained",
    "parse_duration",
    "without_password",
]
