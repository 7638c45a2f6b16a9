"""Writes a configuration for EMQX 5: the contract's TLS, identities, rights and limits. Written only: no test of ours runs it.

A client is who its certificate's common name says: within a fleet no two clients share one. EMQX reads no file of revoked
certificates (only what a certificate itself names), so whoever is revoked loses its rights when this is written again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import orjson

from broker.engines.plan import Engine, Plan
from broker.rights import RETAINED, publish_filters, subscribe_filters
from broker.topics import levels_of
from config import limits
from config.members import Members
from config.principal import CLOUD_SITE, Principal
from config.settings import BrokerSettings

CONF: Final = "emqx.conf"
ACL: Final = "acl.conf"

_HEAD: Final = """# Written by Hubline from broker.toml and members.json, for EMQX 5.1.1 or newer. No test of Hubline runs EMQX:
# try it with a hub of your own before you rely on it.
#
# - Include this in EMQX's own configuration by its whole path, and write both files anew after `hubline provision`.
# - EMQX knows no file of revoked certificates. A revoked member still connects, and may do nothing, once these files
#   are written anew and read (`emqx ctl conf reload`). A certificate that was renewed because its key was stolen stays
#   good: ban it in EMQX, or give the machine another name.
# - Client ids are bound to certificates where EMQX has its client-info authentication, see the end.
"""

_CLIENT_IDS: Final = """
# Client ids as the contract has them, the name alone or with a suffix. Editions that don't know "cinfo" refuse this section:
# leave it out there: Hubline's own client ids end in what nobody can guess.
authentication = [
  {
    mechanism = cinfo
    checks = [
      {is_match = "str_eq(clientid, cert_common_name)", result = allow}
      {is_match = "str_eq(nth(1, tokens(clientid, '_')), cert_common_name)", result = allow}
      {is_match = "str_eq(nth(1, tokens(clientid, '.')), cert_common_name)", result = allow}
      {is_match = "true", result = deny}
    ]
  }
]
"""


class Emqx(Engine):
    """EMQX, which others run: its part is a file of settings and one of rights."""

    def plan(self, settings: BrokerSettings, members: Members, folder: Path) -> Plan:
        """Return what to write into `folder`."""
        contents = {
            CONF: _settings_file(settings, folder),
            ACL: rights_file(members.principals(), settings.identity.site),
        }
        return Plan(
            program="emqx",
            package="EMQX 5, from its makers",
            arguments=("foreground",),
            files={name: text.encode() for name, text in contents.items()},
        )


def rights_file(principals: list[Principal], broker_site: str) -> str:
    """Return EMQX's file of rules: of each member what it may, and at the end that nobody may anything else."""
    lines = ["%% Written by Hubline: who may publish and subscribe where. The first rule that fits counts."]
    for principal in principals:
        writes, reads = publish_filters(principal, broker_site), subscribe_filters(principal, broker_site)
        retained = [each for each in writes if not RETAINED.isdisjoint(levels_of(each))]
        others = [each for each in writes if each not in retained]
        for operation, topic_filters in (
            ("publish", retained),
            ("{publish, [{retain, false}]}", others),
            ("subscribe", reads),
        ):
            if topic_filters:
                listed = ", ".join(_text(each) for each in topic_filters)
                lines.append(f"{{allow, {{user, {_text(principal.name)}}}, {operation}, [{listed}]}}.")
    return "\n".join([*lines, "{deny, all}.", ""])


def _settings_file(settings: BrokerSettings, folder: Path) -> str:
    identity = settings.identity
    listeners = "\n".join(
        f"""listeners.ssl.hubline{number} {{
  bind = {_text(endpoint)}
  max_connections = {limits.ENGINE_CONNECTIONS_MAX}
  ssl_options {{
    cacertfile = {_text(str(identity.ca))}
    certfile = {_text(str(identity.cert))}
    keyfile = {_text(str(identity.key))}
    verify = verify_peer
    fail_if_no_peer_cert = true
    reuse_sessions = false
    client_renegotiation = false
    versions = ["tlsv1.3", "tlsv1.2"]
  }}
}}"""
        for number, endpoint in enumerate(settings.broker.listen, 1)
    )
    place = "the cloud" if identity.site == CLOUD_SITE else f"site {identity.site}"
    return f"""{_HEAD}
# The broker of {place} of fleet {identity.fleet}.
{listeners}
listeners.tcp.default.enable = false
listeners.ssl.default.enable = false
listeners.ws.default.enable = false
listeners.wss.default.enable = false

mqtt {{
  peer_cert_as_username = cn
  max_packet_size = {limits.PACKET_MAX_BYTES}
  server_keepalive = disabled
  keepalive_multiplier = {limits.KEEP_ALIVE_GRACE}
  max_inflight = {limits.SESSION_IN_FLIGHT_MAX}
  max_mqueue_len = {limits.SUBSCRIBER_QUEUE_MAX}
  max_subscriptions = {limits.SUBSCRIPTIONS_MAX}
  mqueue_store_qos0 = false
  retain_available = true
}}
retainer {{
  max_payload_size = {limits.MESSAGE_MAX_BYTES}
  backend.max_retained_messages = {limits.RETAINED_MAX}
}}
authorization {{
  no_match = deny
  deny_action = ignore
  cache.enable = true
  sources = [{{type = file, enable = true, path = {_text(str(folder / ACL))}}}]
}}
{_CLIENT_IDS}"""


def _text(value: str) -> str:
    """Return a string as HOCON and Erlang both read it; JSON's way of writing one is common to them."""
    return orjson.dumps(value).decode()
