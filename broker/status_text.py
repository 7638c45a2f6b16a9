"""The words of `broker.status`, in each language the same ones: what a hub is, what is wrong with it, what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

Language: TypeAlias = Literal["en", "de"]


@dataclass(frozen=True, slots=True)
class Words:
    """One language. `names` and `calm` (what is said when nothing is wrong) are by state, the rest by condition or step.

    `{connector}` in them becomes `this_connector` or, if its id is not known, `its_connector`. `last_reported` comes before
    what a hub without contact said last.
    """

    names: Mapping[str, str]
    calm: Mapping[str, str]
    calm_connection: Mapping[str, str]
    clauses: Mapping[str, str]
    actions: Mapping[str, str]
    this_connector: str
    its_connector: str
    but: str
    last_of_list: str
    last_reported: str
    last_seen: str
    expected_direct: str

    def listed(self, clauses: Sequence[str]) -> str:
        """Return clauses as a part of one sentence."""
        *others, last = clauses
        return f"{', '.join(others)}{self.last_of_list}{last}" if others else last


ENGLISH: Final = Words(
    names={
        "online": "Online",
        "roaming": "Roaming",
        "unreachable-online": "Unreachable/Online",
        "offline": "Offline",
        "unreachable-offline": "Unreachable/Offline",
        "path-down": "Path down",
        "stopped": "Stopped",
        "paused": "Paused",
        "never-seen": "Never seen",
        "rejected": "Rejected",
    },
    calm={
        "online": "everything is all right",
        "roaming": "it sends no logs and takes no tasks and settings until it leaves roaming",
        "unreachable-online": "it cannot be called, but it reports by itself",
    },
    calm_connection={"online": "the connection is all right"},
    clauses={
        "clock": "its clock is wrong",
        "certificate": "its certificate is not valid",
        "revoked": "its certificate has been revoked",
        "duplicate-identity": "two machines use the same identity",
        "rejected": "the brokers do not let it in",
        "paused": "nothing is expected of it at present",
        "never-seen": "it has not reported yet",
        "stopped": "its service was shut down properly",
        "lost-contact": "there is no contact with it",
        "heartbeat-missed": "its heartbeat has not come in time",
        "unheard": "neither heartbeat nor poll has come in time",
        "away": "there is no contact with it",
        "path-down": "the way through {connector} is interrupted",
        "realtime-disabled": "real-time scanning is switched off",
        "realtime-stopped": "the scan service is stopped (no real-time, manual or scheduled scan)",
        "smart-unreachable": "no smart-protection server can be reached",
        "web-unreachable": "the web-reputation server cannot be reached",
        "pattern-old": "the virus patterns are old",
    },
    actions={
        "set-clock": "Set the machine's clock and let a time server keep it right.",
        "renew-certificate": "Issue a new certificate for this machine and put it into its place there.",
        "settle-revocation": "Find out why the certificate was revoked; if the machine may come back, provision it anew.",
        "separate-machines": "Leave this identity to one of the two machines; provision the other one with a name of its own.",
        "end-pause": "End the pause when its reason is gone.",
        "install-hub": "Install the hub with its bundle on the machine and start it.",
        "start-hub": "Start the hub's service, if it is meant to run.",
        "check-connection": "If the machine is in the company network, verify its connection to the connector and to the cloud"
        " (on the machine: hubline doctor).",
        "check-way-out": "See whether the machine runs and its network lets it out: it cannot be called, only heard.",
        "check-connector": "Look at {connector} and the way from there to the cloud; the machine itself goes there directly.",
        "leave-roaming": "Leave roaming mode first (on the machine: hubline hub roam off), so that the console reaches it.",
        "enable-realtime": "Enable the real-time scan from the console.",
        "start-realtime-service": "Start the real-time scan service on the machine; manual and scheduled scans need it too.",
        "check-location": "Check where the machine is: inside the company network it must use a local smart-protection server,"
        " outside the global one.",
        "check-proxies": "Check the internal proxy settings, then the external ones.",
        "check-web-reputation": "Check the web-reputation server, then name resolution, then the proxy.",
        "update-now": "Update the protection now.",
        "configure-updates": "Configure component updates for the machine, or grant its user the update privilege.",
    },
    this_connector="connector {id}",
    its_connector="its connector",
    but=", but ",
    last_of_list=" and ",
    last_reported="; last reported: ",
    last_seen=", last seen",
    expected_direct=", expected directly by",
)

GERMAN: Final = Words(
    names={
        "online": "Online",
        "roaming": "Roaming",
        "unreachable-online": "Nicht erreichbar/Online",
        "offline": "Offline",
        "unreachable-offline": "Nicht erreichbar/Offline",
        "path-down": "Weg unterbrochen",
        "stopped": "Beendet",
        "paused": "Angehalten",
        "never-seen": "Noch nie gesehen",
        "rejected": "Abgewiesen",
    },
    calm={
        "online": "alles ist in Ordnung",
        "roaming": "bis zum Ende des Roamings gehen keine Protokolle hinaus und keine Aufgaben und Einstellungen ein",
        "unreachable-online": "der Rechner kann nicht gerufen werden, meldet sich aber selbst",
    },
    calm_connection={"online": "die Verbindung ist in Ordnung"},
    clauses={
        "clock": "die Uhr geht falsch",
        "certificate": "das Zertifikat ist nicht gültig",
        "revoked": "das Zertifikat ist gesperrt",
        "duplicate-identity": "zwei Rechner benutzen dieselbe Identität",
        "rejected": "die Broker lassen den Rechner nicht herein",
        "paused": "zurzeit wird nichts von ihm erwartet",
        "never-seen": "der Rechner hat sich noch nicht gemeldet",
        "stopped": "der Dienst wurde ordnungsgemäß beendet",
        "lost-contact": "es besteht kein Kontakt",
        "heartbeat-missed": "das Lebenszeichen kam nicht rechtzeitig",
        "unheard": "weder Lebenszeichen noch Abfrage kamen rechtzeitig",
        "away": "es besteht kein Kontakt",
        "path-down": "der Weg über {connector} ist unterbrochen",
        "realtime-disabled": "die Echtzeitsuche ist ausgeschaltet",
        "realtime-stopped": "der Suchdienst ist beendet (keine Echtzeitsuche, manuelle oder geplante Suche)",
        "smart-unreachable": "kein Smart-Protection-Server ist erreichbar",
        "web-unreachable": "der Web-Reputation-Server ist nicht erreichbar",
        "pattern-old": "die Virenmuster sind alt",
    },
    actions={
        "set-clock": "Die Uhr des Rechners stellen und einen Zeitserver eintragen, der sie richtig hält.",
        "renew-certificate": "Ein neues Zertifikat für diesen Rechner ausstellen und dort hinterlegen.",
        "settle-revocation": "Klären, warum das Zertifikat gesperrt wurde; darf der Rechner zurück, ihn neu einrichten.",
        "separate-machines": "Diese Identität einem der beiden Rechner lassen, den anderen unter eigenem Namen neu einrichten.",
        "end-pause": "Die Pause beenden, wenn ihr Grund entfallen ist.",
        "install-hub": "Den Hub mit seinem Paket auf dem Rechner installieren und starten.",
        "start-hub": "Den Dienst des Hubs starten, wenn er laufen soll.",
        "check-connection": "Steht der Rechner im Firmennetz, seine Verbindung zum Connector und zur Cloud prüfen"
        " (am Rechner: hubline doctor).",
        "check-way-out": "Nachsehen, ob der Rechner läuft und sein Netz ihn hinauslässt: Er kann nur sich selbst melden.",
        "check-connector": "Prüfen: {connector} und den Weg von dort zur Cloud; der Rechner geht von selbst direkt zur Cloud.",
        "leave-roaming": "Zuerst das Roaming beenden (am Rechner: hubline hub roam off), damit die Konsole ihn erreicht.",
        "enable-realtime": "Die Echtzeitsuche in der Konsole einschalten.",
        "start-realtime-service": "Den Dienst der Echtzeitsuche auf dem Rechner starten; auch manuelle und geplante Suche"
        " brauchen ihn.",
        "check-location": "Prüfen, wo der Rechner ist: Im Firmennetz muss er einen lokalen Smart-Protection-Server verwenden,"
        " außerhalb den globalen.",
        "check-proxies": "Die internen Proxy-Einstellungen prüfen, dann die externen.",
        "check-web-reputation": "Den Web-Reputation-Server prüfen, dann die Namensauflösung, dann den Proxy.",
        "update-now": "Den Schutz jetzt aktualisieren.",
        "configure-updates": "Aktualisierungen für den Rechner einrichten oder seinem Benutzer das Recht dazu geben.",
    },
    this_connector="den Connector {id}",
    its_connector="seinen Connector",
    but=", aber ",
    last_of_list=" und ",
    last_reported="; zuletzt gemeldet: ",
    last_seen=", zuletzt gesehen",
    expected_direct=", direkt erwartet bis",
)

WORDS: Final[Mapping[Language, Words]] = {"en": ENGLISH, "de": GERMAN}
