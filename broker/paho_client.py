"""paho-mqtt's client module, without what it loads and we do not use: proxies are our settings' affair, and nobody else's.

With PySocks installed, paho would go through a proxy that a variable of the environment names, whatever our settings say.
"""

from __future__ import annotations

from config.lean import with_empty, without

with without("socks"), with_empty("urllib.request"):
    import paho.mqtt.client as paho

__all__ = ["paho"]
