"""Every timeout, size and bound of the system, with its unit and its why; nothing else in Hubline holds such a number."""

from __future__ import annotations

from typing import Final

# --- The wire contract ----------------------------------------------------------------------------------------------

MESSAGE_MAX_BYTES: Final = 256 * 1024
"""A payload's size. Part of the contract: every engine and every reader can rely on it."""

POINTS_MAX: Final = 1000
"""Points in one message. Part of the contract: bounds the work that one message can cause."""

EVENTS_MAX: Final = 1000
"""Events in one message, for the same reason."""

ADDRESSES_MAX: Final = 64
"""Addresses of its own that a hub tells; a machine with more has virtual ones that say nothing."""

VALUES_MAX: Final = 1000
"""Values in one point: with POINTS_MAX it keeps a message's decoding cost proportional to its size."""

VALUE_NAME_MAX: Final = 128
"""Characters in the name of a value; it becomes a topic level of `last/`."""

VALUE_TEXT_MAX: Final = 4096
"""Characters in a value that is a string: the output of a script sensor fits, a log file does not."""

ACK_RANGES_MAX: Final = 1000
"""Ranges in one acknowledgement; a longer one is sent as several."""

TOPIC_MAX_BYTES: Final = 512
"""A topic with six labels of 63 characters and a sensor's name fits; nothing of ours is longer."""

# --- MQTT -----------------------------------------------------------------------------------------------------------

KEEP_ALIVE_S: Final = 20
"""Seconds between life signs: the broker sees a silent loss in 30 s and the client in 40, well within the outage that counts."""

KEEP_ALIVE_MIN_S: Final = 2
"""A shorter one would make every pause of a busy machine a loss."""

KEEP_ALIVE_MAX_S: Final = 120
"""A longer one would see an outage after it should have been over."""

KEEP_ALIVE_GRACE: Final = 1.5
"""MQTT 3.1.1, 3.1.2.10: the server waits one and a half times the keep alive."""

CONNECT_TIMEOUT_S: Final = 10.0
"""TCP, TLS and CONNACK together; a broker that needs longer is overloaded, and backing off helps it."""

SUBSCRIBE_AGAIN_S: Final = (1.0, 150.0)
"""Waits before a subscription of states is made again, from the answer on: until NATS has put away what was published while it
took the first one, and until it has forgotten what it may have read too early (two minutes)."""

STATES_REMEMBERED: Final = 200_000
"""Words of members that a session remembers, so that it tells none twice; beyond it copies are told: they do no harm."""

CLOSE_TIMEOUT_S: Final = 2.0
"""For the last bytes of a clean DISCONNECT; a role has five seconds to stop."""

PACKET_MAX_BYTES: Final = MESSAGE_MAX_BYTES + TOPIC_MAX_BYTES + 16
"""The largest MQTT packet that the contract can cause; the gate refuses a longer one from its fixed header."""

CONNECT_PACKET_MAX_BYTES: Final = 8 * 1024
"""A CONNECT carries a client id and a small will; anything larger is not one of ours."""

SUBSCRIBER_QUEUE_MAX: Final = 50_000
"""Messages waiting for one subscriber of the embedded broker: seconds of a busy one; who is further behind is disconnected."""

SUBSCRIBER_QUEUE_MAX_BYTES: Final = 32 * 1024 * 1024
"""The same bound in bytes, for large messages."""

SUBSCRIPTIONS_MAX: Final = 64
"""Topic filters of one session: no role needs ten, and each costs memory in the index."""

HANDSHAKES_PER_S: Final = 200
"""New TLS handshakes a second that the embedded broker begins: about half of what one core can do, so that traffic goes on."""

HANDSHAKES_WAITING_MAX: Final = 2000
"""Connections that wait for their handshake; the listen queue of the system holds the rest."""

INBOX_MAX: Final = 20_000
"""Received messages that wait for the event loop; beyond it the newest are dropped and come again by retransmission."""

CLIENT_READ_BYTES: Final = 64 * 1024
"""What a session reads at once: more than one TLS record never comes."""

CLIENT_WRITE_BYTES: Final = 16 * 1024
"""What it writes at once: as much as fits into a TLS record."""

SESSION_IN_FLIGHT_MAX: Final = 2_000
"""Publishes of one session that wait for the network or for their PUBACK before further ones are dropped; above what a bridge
lets wait, so that births and wills always find room."""

REFUSALS_KEPT: Final = 1_000
"""Refused actions that the broker remembers by client for its counters; older clients are counted together."""

HANDSHAKE_WAIT_S: Final = 5.0
"""How long a connection waits for its handshake; then it is closed, before its client gives up and the work is wasted."""

CONNECTIONS_MAX: Final = 10_000
"""Connections of the embedded broker, each some 50 kB; a larger site or cloud puts another engine in its place."""

SESSIONS_PER_CERTIFICATE_MAX: Final = 16
"""Sessions that one certificate may have open (`<id>_<suffix>`): a stolen one can't take all connections."""

CLIENT_ID_SUFFIX_MAX: Final = 32
"""Characters after the dot of a client id."""

CLIENT_ID_SECRET_BYTES: Final = 8
"""Bytes that nobody can know, in hexadecimal, in the client ids of our own clients: of a digest of their key, or random. Nobody
guesses 64 bits over the network, and it fits."""

WILL_MAX_BYTES: Final = 4096
"""A last will is a state of some hundred bytes, and is kept in memory for every session."""

LISTEN_BACKLOG: Final = 1024
"""Connections that the system accepts for us while we are busy: a whole site that comes back at once."""

READ_BUFFER_BYTES: Final = 64 * 1024
"""Read at a time from one connection, so that a busy one lets the others have their turn; one buffer serves all."""

SUBSCRIBES_PER_S: Final = 1.0
"""Topic filters that a session may subscribe to after its first SUBSCRIPTIONS_MAX: each searches what is retained."""

WRITE_BUFFER_BYTES: Final = 64 * 1024
"""Encrypted and given to the system at a time; beyond it, messages wait in the subscriber's queue, shared with others."""

RETAINED_MAX: Final = 100_000
"""Topics with a retained message: some thousand hubs with all their sensors. Further ones are delivered, not kept."""

RETAINED_MAX_BYTES: Final = 64 * 1024 * 1024
"""The same bound in bytes of payload."""

TOPICS_REMEMBERED_MAX: Final = 4096
"""Topics whose rights or subscribers are remembered instead of worked out again; beyond it, it starts afresh."""

REFUSALS_QUIET_S: Final = 120.0
"""A streak of refusals is over when nothing was refused for this long: twice the longest backoff."""

TCP_PROBE_S: Final = 60
"""How often the system asks a silent peer whether it is there, for clients that turn MQTT's keep alive off."""

CONNECTIONS_CHECK_S: Final = 0.5
"""How often the embedded broker looks for connections that are over their time."""

CERTIFICATES_CHECK_S: Final = 2.0
"""How often it looks whether its certificate files have changed."""

PROXY_REPLY_MAX_BYTES: Final = 16 * 1024
"""What a proxy may say before the tunnel is open; its pages of errors are longer, and nobody reads them."""

# --- Engines that exist ----------------------------------------------------------------------------------------------

ENGINE_STOP_S: Final = 3.0
"""How long an engine may take to end when it is told to; then it is killed, and we still stop within STOP_TIMEOUT_S."""

ENGINE_VERSION_S: Final = 3.0
"""How long an engine's program may take to say its version at a start; one that says none is taken as it is."""

ENGINE_READY_S: Final = 30.0
"""An engine that does not serve by then is worth a warning; it may be reading a large store."""

ENGINE_BACKOFF_MAX_S: Final = 10.0
"""The longest wait before an engine that has died is started again: everybody waits for it."""

ENGINE_RENEWAL_S: Final = 10.0
"""Between two restarts of an engine for the sake of its files: each puts everybody out, and revocations come in series."""

ENGINE_LINES_PER_S: Final = 100.0
"""Lines of an engine's log that are passed on; strangers who knock make it say a few each time."""

CANCEL_AGAIN_S: Final = 0.5
"""How long a task may take to end when it is told to, before it is told again: well within a stop."""

ENGINE_LINES_END_S: Final = 1.0
"""How long to wait for the last lines of an engine that has ended: a process that it left behind may hold the pipe open."""

ENGINE_CONNECTIONS_MAX: Final = 60_000
"""Connections of an engine at one address, where it would know no bound; below its open files, so that it can say no."""

ENGINE_OPEN_FILES: Final = 65_536
"""Files and connections that an engine may open, if the system lets it: more than a thousand-hub cloud needs."""

ENGINE_PROBE_INTERVAL_S: Final = 10.0
"""How often a running engine is asked for a sign of life: one that hangs serves nobody, and it costs a packet or two."""

ENGINE_PROBE_TIMEOUT_S: Final = 15.0
"""How long it may take to answer: with a hundred connections in its queue and ten handshakes a second, so the slowest machine;
and the system repeats a greeting that found the queue full after 1, 3 and 7 s."""

ENGINE_PROBES_UNANSWERED_MAX: Final = 5
"""Unanswered in a row, it hangs: after 75 to 85 s, long after the worst of a reconnect storm, and before hubs, after 5 minutes,
go to the cloud for it."""

ENGINE_PROBE_LATE_S: Final = 5.0
"""If we ourselves are woken later than this, the machine was suspended or had no time for us: so perhaps not for the engine."""

ENGINE_PROBES_KNOWN_MAX: Final = 32
"""Of so many questions the source is known, so that the engine's lines about them are not passed on; it says them soon."""

NATS_CALLOUT_TIMEOUT_S: Final = 3.0
"""How long nats-server waits for word about a client: a thousand that come at once are answered within a second or two."""

NATS_RETRY_S: Final = 0.05
"""How often a supervisor tries to reach its own server, on the same machine, while that is starting: nobody gets in before."""

NATS_RETRY_LATER_S: Final = 1.0
"""The same once it has said that it can't: each attempt may cost both of them a handshake."""

NATS_UNREACHED_S: Final = 10.0
"""A supervisor that can't reach its own server for so long says so, as nobody gets in; a server starts in a second or two."""

NATS_REQUEST_S: Final = 5.0
"""For an answer of a nats-server about itself or about a stream; a cluster that has no leader yet gives none."""

NATS_LEAF_RETRY_S: Final = 2
"""Between a leaf node's attempts to reach the cloud; whole seconds. For a thousand sites these are 500 handshakes a second."""

NATS_LEAF_LOOK_S: Final = 1.0
"""How often a site's node is asked whether its leaf connection is there, and the connector told."""

NATS_CONTROL_LINE_MAX_BYTES: Final = 4096
"""A line of NATS' own protocol: subjects are about as long as topics."""

NATS_ACK_WAIT_S: Final = 30.0
"""After this a session's message of QoS 1 that is not acknowledged is sent again; within it most sessions end on their own."""

NATS_STREAM_API_S: Final = 2.0
"""How long a CONNECT waits for nats-server's own streams: when their leader has died, none of them answers until there is another
one, and who is refused soon comes back soon. nats-server's own 5 s leave hubs waiting for twice as long as the election takes."""

NATS_ACK_PENDING_MAX: Final = 1024
"""Messages of QoS 1 under way to one session: above the window of a whole site's acknowledgements."""

NATS_STORE_MAX_BYTES: Final = 8 * 1024**3
"""Disk that JetStream may use at a node: the stream of what hubs send, and what is retained."""

NATS_DELIVERIES_MAX_BYTES: Final = 1024**3
"""Of it, what may wait for subscribers with QoS 1: beyond it the oldest goes, so that one who is slow or gone stops nobody."""

NATS_DELIVERIES_MAX_AGE_S: Final = 3600.0
"""How long it waits at most: nobody relies on what a broker keeps."""

NATS_RETAINED_MAX_BYTES: Final = 1024**3
"""Of it, what may be retained: several times what 20,000 hubs need. Beyond it no new topic is, and who has one renews it."""

NATS_SUBSCRIBER_GONE_S: Final = 3600.0
"""After this a session that was not clean and has not come back is forgotten, as with Mosquitto."""

NATS_MEMORY_MAX_BYTES: Final = 256 * 1024 * 1024
"""Memory that JetStream may use: the positions of sessions in their messages."""

NATS_STREAM_MAX_BYTES: Final = 4 * 1024**3
"""What may wait for the ingest workers; beyond it nothing is taken in, and the hubs keep it, since nobody acknowledges it."""

NATS_STREAM_MAX_AGE_S: Final = 86_400.0
"""How long it waits at most: by then its hub has sent it again many times over."""

NATS_STREAM_ACK_WAIT_S: Final = 60.0
"""After this what a worker has not acknowledged goes to another: a commit that takes longer has failed."""

NATS_STREAM_PENDING_MAX: Final = 20_000
"""Messages in the hands of all workers together."""

# --- Reconnecting ---------------------------------------------------------------------------------------------------

BACKOFF_FIRST_S: Final = 1.0
"""The first wait is uniform in 0 to 1 s: a single restart is ridden through in a moment."""

BACKOFF_MAX_S: Final = 60.0
"""No client waits longer: an administrator who mends something sees it within a minute."""

BACKOFF_STABLE_S: Final = 60.0
"""A session must live this long before its backoff is forgotten, so that flapping does not become a storm."""

# --- Choosing a path ------------------------------------------------------------------------------------------------

STATE_WAIT_S: Final = 5.0
"""How long a hub waits at a site broker for word of a good connector before it tries another broker as well."""

OUTAGE_SAVE_S: Final = 5.0
"""How often a running outage is saved: a restart in between forgets no more than this."""

SWITCH_JITTER_S: Final = 4.0
"""A hub goes to the cloud up to this long after the configured outage, at random: hubs that lose their connector together do
not arrive together, and the switch stays within 5 s."""

CANDIDATES_MAX: Final = 32
"""Site brokers that a hub remembers; the longest unheard go first."""

# --- The hub --------------------------------------------------------------------------------------------------------

OUTBOX_MAX_BYTES: Final = 1024**3
"""1 GiB: weeks of default sensors at some hundred bytes a point."""

OUTBOX_MAX_AGE_S: Final = 30 * 86_400
"""30 days: older readings tell nobody anything."""

OUTBOX_TRIM_SHARE: Final = 0.02
"""How much is freed when the outbox is full: in one go, so that one gap record tells of many points."""

OUTBOX_MEMORY_POINTS: Final = 10_000
"""Points that wait in memory while the disk refuses to take them; beyond it the oldest become a gap."""

OUTBOX_RETRY_S: Final = 1.0
"""How long to wait before a disk that has refused is asked again."""

OUTBOX_RESERVE_BYTES: Final = 1024 * 1024
"""Room on the disk for SQLite's log of a deletion, given up when the disk is full (a window of messages needs less)."""

OUTBOX_LOSSES_MAX: Final = 100
"""Separate losses in memory while the disk refuses; further ones are counted together."""

OUTBOX_CACHE_BYTES: Final = 1024 * 1024
"""SQLite's page cache of the outbox: small, since a hub has 40 MB in all."""

OUTBOX_WAL_BYTES: Final = 1024 * 1024
"""The write-ahead log is moved into the outbox file at this size, and kept no longer than this."""

OUTBOX_SLACK_BYTES: Final = 4 * 1024 * 1024
"""Free pages that the outbox file keeps for the next backlog; beyond it, and half of the file, they go back to the disk."""

OUTBOX_SHRINK_PAGES: Final = 256
"""Pages given back in one transaction, so that no acknowledgement waits long for it."""

OUTBOX_AGE_STEP_MAX_S: Final = 86_400.0
"""How much one step of the wall clock may age what is kept: a clock that jumps a year ahead must not empty the outbox."""

OUTBOX_DAMAGED_KEPT: Final = 3
"""Damaged outbox files that are set aside; the oldest goes when a further one comes, so that they never fill the disk."""

WINDOW_MESSAGES: Final = 64
"""Unacknowledged messages of one hub: the flow control of the whole path."""

WINDOW_BYTES: Final = 512 * 1024
"""The same window in bytes: a site of fifty hubs with a backlog of large messages fits into SUBSCRIBER_QUEUE_MAX_BYTES, so that
nothing is dropped and sent again. At a round trip of 100 ms a hub still sends 5 MB/s."""

SEND_BATCH_MESSAGES: Final = 16
"""Messages asked of the outbox at once: their sizes are unknown until they are loaded."""

WINDOW_MIN_MESSAGES: Final = 4
"""What the window shrinks to when acknowledgements time out."""

LIVE_MAX_MESSAGES: Final = 64
"""Fresh messages that go before the backlog; when more wait, they have become backlog themselves."""

LIVE_PER_BACKLOG: Final = 3
"""Live messages sent for each one of the backlog while both wait: neither starves."""

RETRANSMIT_MIN_S: Final = 2.0
"""The floor of the adaptive time-out (RFC 6298, 2.4 says one second; the cloud commits in batches)."""

RETRANSMIT_FIRST_S: Final = 5.0
"""The time-out before the first round trip was measured."""

RETRANSMIT_PROBE_S: Final = 4.0
"""What the time-out grows to while nothing is acknowledged, unless the round trip is longer: how long a hub may stay silent after
the cloud has come back. After two rounds of time-outs one message asks for all: a thousand hubs that wait for a cloud send 250
messages a second meanwhile."""

RETRANSMIT_MAX_S: Final = 15.0
"""The ceiling of the time-out, whatever round trip was measured."""

SENSOR_INTERVAL_MIN_S: Final = 0.1
"""The shortest sampling interval."""

SENSOR_INTERVAL_MAX_S: Final = 86_400.0
"""The longest sampling interval: a day."""

SENSOR_TIMEOUT_S: Final = 10.0
"""A sensor that has not answered by then is reported as failed; its thread is not given a second task."""

SENSOR_THREADS: Final = 2
"""Threads that sample: while one waits for a slow sensor, the other does the rest. One that hangs is replaced."""

SENSOR_MERGE_S: Final = 1.0
"""How long the values of one moment wait for the slowest sensor to share a point; a later answer gets its own."""

SENSOR_TOGETHER_S: Final = 0.01
"""Sensors due within this are sampled in one go: one wake-up, one point."""

SENSOR_STATE_MAX: Final = 64 * 1024
"""Characters of what a sensor keeps across restarts; it is written with each of its samples."""

SENSOR_DISKS_MAX: Final = 16
"""File systems that the disk sensor watches: a server's own fit, a container host's thousand mounts do not."""

SENSOR_INTERFACES_MAX: Final = 8
"""Network interfaces with values of their own; all count in the sums."""

SENSOR_TEMPERATURES_MAX: Final = 32
"""Thermal sensors read; large servers have one per core."""

COUNTER_RATE_MAX_HZ: Final = 20_000.0
"""The fastest the counter sensor counts: more than one hub can send."""

STATUS_INTERVAL_S: Final = 1.0
"""How often a role renews its status file while something changes."""

STATUS_STALE_S: Final = 10.0
"""A status file older than this tells of a process that is gone or hangs."""

STOP_DRAIN_S: Final = 2.0
"""How long a stopping hub waits for acknowledgements of what it has already sent."""

STOP_TIMEOUT_S: Final = 5.0
"""A role has stopped by then, or leaves the rest to the next start; service managers rely on it."""

STOP_LEAVE_S: Final = 4.0
"""All that a stopping hub waits for together: acknowledgements, tasks, goodbyes. What is left of STOP_TIMEOUT_S is the disk's."""

STOP_CLOSE_S: Final = 1.0
"""Of it, what a hub that polls keeps for closing the session that it has opened only for its goodbye."""

# --- The hub's modes and logs ----------------------------------------------------------------------------------------

CONTACT_JITTER_SHARE: Final = 0.1
"""Of its interval: how much later than its time a contact may come, so that a network's hubs do not come together."""

CONTACT_JITTER_MAX_S: Final = 30.0
"""And never later than this: the cloud counts the minutes without a heartbeat."""

CONTACT_RETRY_FIRST_S: Final = 20.0
"""The first wait before a contact that found no path is tried again, uniform from 0."""

CONTACT_RETRY_MAX_S: Final = 600.0
"""The longest such wait, unless the interval is shorter."""

CONTACT_PATH_S: Final = 45.0
"""How long a contact looks for a path beyond the grace after which the cloud is tried: some attempts fit."""

CONTACT_ANSWER_S: Final = 5.0
"""How long a poll waits for the first task or setting, and for the next one after each: the cloud answers within a second."""

CONTACT_MAX_S: Final = 600.0
"""The longest contact: what was not delivered by then, and tasks that still run, go on at the next one."""

ROAMING_CHECK_S: Final = 1.0
"""How often a hub looks whether somebody has set it roaming, and whether it has something new to report."""

ADDRESSES_CHECK_S: Final = 30.0
"""How often a hub looks whether its own addresses have changed."""

ADDRESSES_AGAIN_S: Final = 3.0
"""And how often while it has none: a cable or a lease comes back any moment, and its mode may hang on it."""

MODE_MINUTES_MAX: Final = 129_600
"""The longest interval of a hub's contacts: 90 days."""

LOGS_INTERVAL_S: Final = 5.0
"""Log lines are put into the outbox at most this often, so that some of them share a message."""

LOGS_PER_S: Final = 2.0
"""Log lines that a hub sends in the long run: a hub in trouble says the same again and again."""

LOGS_BURST: Final = 200
"""Log lines that it may send at once after a quiet time: a start, or a path that changes."""

LOGS_WAITING_MAX: Final = 500
"""Log lines in memory that wait for the outbox, and the newest ones kept there to be collected."""

LOGS_BATCH_BYTES: Final = 64 * 1024
"""Log lines in one message; a message of this size holds up no reading."""

LOG_FIELDS_MAX_BYTES: Final = 2048
"""What the fields of one log line that is sent may take; longer texts are cut, then fields left out."""

LOGS_FILE_MAX_BYTES: Final = 1024 * 1024
"""Log lines that wait on the disk while a hub roams: some thousand; then the older half goes."""

# --- The doctor -----------------------------------------------------------------------------------------------------

DOCTOR_STEP_S: Final = 4.0
"""For each of name resolution, TCP, TLS and MQTT: all in a row, with the rest, stay within what a person waits for, 20 s."""

DOCTOR_STATE_WAIT_S: Final = 2.0
"""How long the doctor listens at a broker for word of a connector; it is retained there, so it comes at once or not at all."""

DOCTOR_STATE_SETTLE_S: Final = 0.3
"""After the first word, how long it waits for that of a site's other connectors."""

DOCTOR_TARGETS_MAX: Final = 8
"""Site brokers, and cloud brokers, that one examination tries, all at once: below SESSIONS_PER_CERTIFICATE_MAX."""

DOCTOR_DISK_LOW_BYTES: Final = 100 * 1024 * 1024
"""Free disk below this gets a warning: an outage of some days must fit."""

# --- SSDP -----------------------------------------------------------------------------------------------------------

SSDP_MX_S: Final = 1
"""The MX of our searches: answers are spread over a second, enough for the few connectors of a site (UPnP 1.1, 1.3.2)."""

SSDP_MX_MAX_S: Final = 5
"""A larger MX in a search is taken as this (UPnP 1.1, 1.3.3)."""

SSDP_SEARCH_GRACE_S: Final = 0.5
"""Added to MX before a search ends."""

SSDP_ANSWERS_MAX: Final = 32
"""Answers kept of one search; a flood ends here."""

SSDP_DATAGRAM_MAX_BYTES: Final = 2048
"""A longer datagram is not SSDP of ours."""

SSDP_MAX_AGE_S: Final = 1800
"""How long an announcement holds (UPnP 1.1, 1.2.2 asks for at least this)."""

SSDP_PER_SOURCE_PER_S: Final = 10
"""Searches answered per source and second; more is a flood or a loop."""

SSDP_SOURCES_MAX: Final = 1024
"""Sources whose rate is remembered."""

SSDP_ANSWERS_PENDING_MAX: Final = 256
"""Answers waiting for their random delay; beyond it searches are ignored, and the searcher asks again."""

SSDP_INTERFACES_POLL_S: Final = 5.0
"""How often the connector looks whether its addresses have changed."""

SSDP_TTL: Final = 2
"""Multicast hops (UPnP 1.1, 1.1.2)."""

SSDP_SEARCH_REPEAT_S: Final = 0.3
"""After this a search is sent a second time, in case the first was lost; below the grace, so that its late answers count."""

SSDP_ANSWERS_PER_SOURCE: Final = 4
"""Endpoints taken from one address in one search: one host cannot fill the list."""

SSDP_INTERFACES_MAX: Final = 64
"""Addresses on which SSDP is spoken, a socket or two each; a container host may have hundreds of virtual links."""

SSDP_ANNOUNCE_REPEATS: Final = 3
"""How often `ssdp:alive` is sent at the start, and `ssdp:byebye` at the end: datagrams get lost (UPnP 1.1, 1.2.2)."""

SSDP_ANNOUNCE_FIRST_S: Final = 0.1
"""The first announcement comes within this time at random, so that a whole site that starts is spread (UPnP 1.1, 1.2.2)."""

SSDP_ANNOUNCE_SPACING_S: Final = 1.0
"""The longest wait between the first announcements."""

# --- The connector --------------------------------------------------------------------------------------------------

BRIDGE_IN_FLIGHT_MAX: Final = 1_500
"""Messages forwarded upstream without PUBACK; further ones are dropped, and their hubs send them again."""

BRIDGE_DOWN_IN_FLIGHT_MAX: Final = 1_500
"""The same for what goes down to the site."""

MOSQUITTO_KEEP_ALIVE_MIN_S: Final = 5
"""Mosquitto's bridge takes no shorter keep alive."""

BRIDGE_RESTART_FIRST_S: Final = 1
"""The first wait of the site broker's own bridge before it connects again; later ones grow at random. Whole seconds."""

BRIDGE_RESTART_MAX_S: Final = 20
"""Its longest: there is one bridge a site, and a whole site waits for it."""

BRIDGE_QUEUE_MAX: Final = 5_000
"""Messages that wait for one session of a site broker that bridges by itself. The bridge repeats nothing that hubs would not
repeat; the connector's own session gets a state of each hub, of which no site has so many."""

BRIDGE_DOUBT_S: Final = 25.0
"""How long the bridge may take to come back after the connector's own session: its longest wait, and a handshake."""

BRIDGE_NOTICE_S: Final = 10.0
"""How long the site broker may take to say how its bridge is: what is retained comes at once, or never."""

BRIDGE_SAMPLE_S: Final = 15.0
"""Between two messages whose way through the site broker's bridge and back is followed: it costs some packets."""

BRIDGE_PROOF_S: Final = 30.0
"""How long such a message may stay without acknowledgement: twice the longest wait after which its hub sends it again."""

BRIDGE_CARRY_S: Final = 10.0
"""How long the cloud may take to acknowledge it when the connector itself has brought it there."""

BRIDGE_STRIKES_MAX: Final = 2
"""Messages in a row that only came through by the connector's own hand: one may have met a restart of the cloud service."""

BRIDGE_UNANSWERED_MAX: Final = 4
"""Messages in a row that nobody acknowledges, three to four minutes: longer than a database may be away, below a hub's outage."""

BRIDGE_PAROLE_S: Final = 900.0
"""A bridge that carried nothing gets its hubs back after this, if none is left there to prove that it carries again."""

# --- The cloud ------------------------------------------------------------------------------------------------------

INGEST_BATCH_MESSAGES: Final = 2000
"""Messages in one transaction: those of one hub share their look-ups and sums. A larger one delays acknowledgements more."""

INGEST_BATCH_BYTES: Final = 8 * 1024 * 1024
"""The same bound in bytes."""

INGEST_WAITING_MAX: Final = 20_000
"""Messages that wait for the database; beyond it the newest are dropped and come again."""

INGEST_WAITING_MAX_BYTES: Final = 64 * 1024 * 1024
"""The same bound in bytes."""

COLLECTOR_ALLOCATIONS: Final = 50_000
"""Containers that the cloud service makes between two looks for garbage in cycles: waiting messages are many and hold none. With
Python's 700 that look took an eighth of the time of a busy service."""

ACK_MESSAGES: Final = 4
"""So many committed messages of a busy hub are acknowledged at once: no more than its smallest window, lest it waits."""

ACK_INTERVAL_S: Final = 0.5
"""How long fewer may wait for others: a quarter of RETRANSMIT_MIN_S."""

STORE_BUSY_TIMEOUT_S: Final = 5.0
"""How long a transaction waits for a lock that another process holds."""

STORE_RETRY_MAX_S: Final = 10.0
"""The longest wait between attempts while the database refuses to commit."""

QUARANTINE_MAX: Final = 10_000
"""Refused messages kept aside for the operator; the oldest go first, and the counters stay."""

QUARANTINE_PAYLOAD_MAX_BYTES: Final = 4096
"""How much of a refused payload is kept."""

QUARANTINE_WAITING_MAX: Final = 100
"""Unreadable messages that wait for the database; further ones are only counted, or a flood would push honest ones out."""

RETENTION_BATCH: Final = 5_000
"""Rows deleted in one transaction of the retention, so that ingest never waits long."""

RETENTION_COUNT_PAGES: Final = 8_192
"""Pages of PostgreSQL (8 kB) whose readings one statement counts before their week goes: well within its time on any disk."""

RETENTION_WEEKS_S: Final = 0.5
"""How long the retention works on old weeks before others may write; a step that is under way is finished."""

RETENTION_INTERVAL_S: Final = 600.0
"""How often the retention looks."""

CLOCK_SKEW_MAX_S: Final = 300.0
"""Beyond this difference a sender's clock is called wrong."""

INGEST_INTERVAL_S: Final = 0.02
"""Between the starts of two transactions, unless a full batch waits: many messages share one sync, and no hub notices."""

LAST_INTERVAL_S: Final = 1.0
"""`last/` is renewed at most this often: who wants every value reads `up/readings`."""

LAST_BURST: Final = 50
"""Values of `last/` published in one go, every INGEST_INTERVAL_S: a large fleet must not hold up the acknowledgements."""

LAST_WAITING_MAX: Final = 200_000
"""Newest values that wait to be published; beyond it a further sensor's value waits for its next change."""

TOPICS_REMEMBERED: Final = 50_000
"""Topics whose meaning is remembered: some of each hub, as long as the fleet is not enormous."""

VALUE_NAMES_REMEMBERED: Final = 10_000
"""Names of values that were found to be allowed; a fleet has some hundreds."""

SENSORS_PER_HUB_MAX: Final = 5_000
"""Sensors of one hub that get newest values and rollups; the messages with further ones are stored all the same."""

ROLLUP_VALUE_MAX: Final = 1e300
"""What a value adds to a sum at most: so no sum of a bucket can become infinite, which no later value could mend."""

PARTITION_WEEKS_AHEAD: Final = 2
"""Parts of `messages` that PostgreSQL has before their week begins: nobody makes one while messages pour in."""

COPY_CHUNK_ROWS: Final = 500
"""Rows that a copy of a database reads at once: at most 128 MiB, and some hundred kilobytes of common messages."""

COPY_REPORT_ROWS: Final = 1_000
"""Rows between two steps of the progress that a copy shows."""

STORE_BUSY_SLICE_S: Final = 0.1
"""The wait for a lock is cut into these slices, so that a stopping service does not have to sit it out."""

STORE_CLOSE_TIMEOUT_S: Final = 1.0
"""For the last transaction of a stopping service; what it does not finish was not acknowledged."""

STORE_CACHE_BYTES: Final = 64 * 1024 * 1024
"""SQLite's page cache of the cloud: the rows of every sensor's current buckets fit."""

STORE_CHECKPOINT_PAGES: Final = 4_000
"""Pages in the write-ahead log (16 MB) before they move to the database: a page written often moves once."""

POSTGRES_VERSION_MIN: Final = 14
"""The first PostgreSQL with idle_session_timeout, and with scans of a part of a table's pages."""

POSTGRES_CONNECT_TIMEOUT_S: Final = 10.0
"""For a connection to PostgreSQL, its TLS and its password."""

POSTGRES_STATEMENT_TIMEOUT_S: Final = 30.0
"""For one statement: a server that is gone without a word is noticed, and the hubs are kept waiting no longer."""

POSTGRES_LOCK_TIMEOUT_S: Final = 10.0
"""How long a statement waits for the rows of another worker's batch."""

POSTGRES_TABLE_LOCK_TIMEOUT_S: Final = 2.0
"""How long the retention waits to take a whole partition away: all who want to write wait behind it."""

POSTGRES_IDLE_TIMEOUT_S: Final = 60.0
"""After which the server ends a transaction in which nothing happens: a worker that was cut off holds no rows for ever."""

POSTGRES_GOODBYE_TIMEOUT_S: Final = 1.0
"""For the end of a connection; and how much later than the server we give a statement up."""

POSTGRES_STATEMENTS_MAX: Final = 200
"""Statements that a connection keeps prepared; the cloud has about 150."""

POSTGRES_READERS: Final = 3
"""Reading connections of a process, each with a thread: a slow question of the API does not hold up the others."""

RETENTION_BY_WEEK_DAYS: Final = 28.0
"""From this retention on, readings leave PostgreSQL by the week, up to one late: a dropped table leaves no holes behind."""

POSTGRES_ATTEMPTS: Final = 3
"""Tries for a batch of which PostgreSQL says that it met another's locks the wrong way round."""

READ_PAGE_MESSAGES: Final = 500
"""Messages read in one go by queries: each in a short transaction, so that no slow reader keeps the log from being reused."""

LANE_BATCH: Final = 500
"""Changes of presence, tasks and settings that share a transaction: a burst of a thousand hubs takes two."""

LANE_MAX: Final = 100_000
"""Changes and announcements that wait while the database refuses: hours of a large fleet, and some tens of MB."""

LANE_WAIT_S: Final = 10.0
"""How long a command of the API waits until it is durable; then it says that the database can't take it now."""

NOTICE_MAX_BYTES: Final = 7_900
"""The text of one notice: PostgreSQL takes less than 8,000 bytes."""

NOTICES_PER_COMMIT: Final = 256
"""Notices of one transaction: above what the largest batch of the longest names needs."""

NOTICE_ANSWERS_WAITING_MAX: Final = 20_000
"""Answers of hubs that wait to be read; beyond it, what was committed lately is looked through instead."""

NOTICE_SLACK_S: Final = 600.0
"""How far back it is looked, before the moment until which every notice was heard: longer than a commit is under way."""

NOTICE_BACK_MAX_S: Final = 86_400.0
"""And how far back at most: an older word says nothing about who is there now."""

NOTICE_CHECK_S: Final = 5.0
"""How often it is asked whether the connection that brings the notices still works."""

NOTICE_INTERVAL_S: Final = 0.05
"""How long answers of hubs are gathered before one query reads them."""

NEWEST_HUBS: Final = 200
"""Hubs whose newest values one query reads, some 50 values each."""

NEWEST_HUBS_WAITING_MAX: Final = 20_000
"""Hubs whose newest values wait to be read; beyond it, those of all are read instead, page by page."""

NEWEST_REMEMBERED: Final = 200_000
"""Sensors for which is known what was told last, so that only what has changed is told."""

STANDBY_POLL_S: Final = 1.0
"""How often a process that stands by asks for the lock."""

LEAD_CHECK_S: Final = 2.0
"""How often the active process asks whether its connection that holds the lock still works."""

LEAD_ANSWER_S: Final = 4.0
"""How long the answer may take. With LEAD_CHECK_S less than the server waits for a machine that is gone (LEAD_PROBES_S)."""

LEAD_PROBES_S: Final = (8, 2, 3)
"""Idle seconds, seconds between probes, and probes, before the server gives up the connection of a machine that is gone: 14 s."""

WORKER_SLOTS: Final = 64
"""Processes of the divided service that share a folder for their status files."""

INTAKE_RETRY_MAX_S: Final = 2.0
"""The longest wait of the cloud service before it tries the broker, or the next node of a cluster: they are few, and all hubs
wait for them."""

JETSTREAM_FETCH_MESSAGES: Final = 500
"""Messages asked of the stream at once: a full batch."""

JETSTREAM_WAITING_MAX: Final = 2_000
"""Messages of the stream that one worker has at the same time: some batches; the rest is for the others."""

JETSTREAM_WAITING_MAX_BYTES: Final = 48 * 1024 * 1024
"""The same bound in bytes: below INGEST_WAITING_MAX_BYTES, so that nothing is fetched in vain."""

JETSTREAM_FETCH_WAIT_S: Final = 2.0
"""How long one request waits at the stream for messages to come; as long nothing comes when it is lost with a node."""

JETSTREAM_PROGRESS_S: Final = 20.0
"""How often the stream is told that a message is still being worked on: well below the time after which it sends it again."""

JETSTREAM_REPLICAS: Final = 3
"""Nodes that keep each message where there are as many: any one of them may go."""

JETSTREAM_GIVE_BACK_S: Final = 2.0
"""How long a message that was given back waits before it comes again."""

JETSTREAM_PONG_S: Final = 2.0
"""How long a node may take to answer a ping after a request has stayed without any word: one that hangs is left after that."""

JETSTREAM_RETRY_S: Final = 0.2
"""Between two requests while the workers' consumer has no leader: an election takes some seconds."""

JETSTREAM_LOST_S: Final = 10.0
"""After this long without an answer it is seen whether stream and consumer are there at all: longer than an election takes."""

JETSTREAM_LOOK_S: Final = 30.0
"""How often a worker looks how full the stream is."""

JETSTREAM_BEHIND_S: Final = 600.0
"""When the oldest message of the stream waits for longer than this, workers do not keep up: some seconds are usual."""

JETSTREAM_BEHIND_SHARE: Final = 0.5
"""The same of a stream that is filled to more than this."""

VERIFY_FIRST_S: Final = 600.0
"""The first verification after a start: by then everybody is back."""

VERIFY_EXPIRES_S: Final = 600.0
"""How long a hub may take to answer it."""

ROSTER_LOOK_S: Final = 5.0
"""Seconds between two looks at the roster's file: a revocation shows soon after it was copied here."""

SKEW_WINDOW_S: Final = 300.0
"""Half of the time over which a hub's clock is measured: a clock that was set right counts as right soon after."""

SKEW_AHEAD_MIN_MS: Final = 2_000
"""A clock that is ahead by less is left alone: two machines that are set by NTP differ by less than a second."""

SKEW_BEHIND_MIN_MS: Final = 30_000
"""The same for one that is behind, plus what a message may take over a path that is just being mended."""

SKEW_STREAMS_MAX: Final = 200_000
"""Clocks that are remembered, about 150 bytes each."""

# --- Presence -------------------------------------------------------------------------------------------------------

DIRECT_GRACE_S: Final = 60.0
"""How long after the expected switch a hub behind a dead path counts as under way: the longest wait between two attempts."""

REVOKED_SILENT_S: Final = 120.0
"""How long a revoked hub is silent before it counts as gone, where its broker leaves its session open and keeps its last will."""

BIRTH_WAIT_S: Final = 2.0
"""How long nothing is concluded of a hub whose messages come before its birth: that is on its way, and says how it works."""

WORD_SLACK_S: Final = 10.0
"""What a hub sends this long after its end, or after its path's, shows that it lives; anything sooner may have been under way."""

CLOCKS_SLACK_S: Final = 60.0
"""The same if the clocks don't tell the order of two words: nothing is that long under way, since brokers keep nothing."""

DUPLICATE_QUIET_S: Final = 600.0
"""Two machines use one identity until one of them was silent for this long: ten times the longest backoff."""

LIVES_MAX: Final = 4
"""Outboxes of one hub that presence remembers; the longest silent goes first."""

PRESENCE_GRACE_MIN_S: Final = 5.0
"""The shortest grace after an outage of ours: what is retained must have time to arrive."""

PRESENCE_BURST: Final = 50
"""Statuses published in one go: after a restart of the broker the whole fleet's must not hold up the acknowledgements."""

PRESENCE_INTERVAL_S: Final = 0.05
"""Between two such bursts; what changes twice meanwhile is published once."""

ASSESSMENTS_REMEMBERED: Final = 4_096
"""Sentences and actions that are kept to be shown again, about 1 kB each: a list of a thousand hubs needs a handful of them."""

PRESENCE_SAVE_S: Final = 60.0
"""How often it is saved when hubs were last seen: a restart forgets no more than this of it."""

CLOCK_MENDED: Final = 0.9
"""A clock that was wrong counts as right again below this share of the limit, so that no reason flickers at its edge."""

# --- The API and `hubline fleet` ------------------------------------------------------------------------------------

API_BODY_MAX_BYTES: Final = 1024 * 1024
"""The body of a request; the largest, a document of settings, has some kilobytes."""

API_PAGE: Final = 100
"""Entries of a page, unless the request says otherwise."""

API_PAGE_MAX: Final = 1000
"""Entries of a page at most: some hundred kilobytes, and some ten milliseconds of the event loop."""

API_SCAN_MESSAGES: Final = 500
"""Stored messages that one page of readings decodes at most; a page may be short, and then has a cursor to go on."""

API_SCAN_BUCKETS: Final = 20_000
"""Stored buckets that one page of sums looks up at most, for the same reason."""

API_INTERVAL_MAX_DAYS: Final = 31
"""The longest interval over which the API sums up: what is longer is put together from days."""

API_TARGETS_MAX: Final = 1000
"""Hubs, sites or groups that a task names; whole sites and groups stand for any number of hubs."""

API_CONNECTIONS_MAX: Final = 500
"""Open connections of the API; further ones get 503 at once."""

API_STREAMS_MAX: Final = 100
"""Listeners to server-sent events, each with a queue of its own: consoles and `hubline fleet watch`."""

API_CHANGES_WAITING_MAX: Final = 1000
"""Changes that wait for one listener; a slower one loses them and is told to read everything again."""

API_HEARTBEAT_S: Final = 15.0
"""A silent stream of events shows that it lives, and its token is looked at again: proxies close after 30 to 60 s."""

API_FAILURES_BURST: Final = 10
"""Wrong tokens in a row that one address may present before it has to wait."""

API_FAILURE_REFILL_S: Final = 6.0
"""After this an address may fail once more: ten times a minute."""

API_ADDRESSES_REMEMBERED: Final = 10_000
"""Addresses whose failures are counted; the longest unseen goes first."""

API_TOKENS_MAX: Final = 1000
"""Tokens that are not revoked: each presented one is compared with all of them."""

API_TOKENS_RELOAD_S: Final = 5.0
"""How soon a token that another process has made or revoked is known here."""

API_TOKEN_USED_STEP_S: Final = 60.0
"""How exactly it is kept when a token was last used: a row written a minute is enough."""

API_STOP_S: Final = 1
"""How long answers that have begun may take when the service stops; whole seconds."""

AUDIT_TEXT_MAX: Final = 500
"""Characters of a target or an outcome in the audit log."""

API_SUGGESTIONS: Final = 3
"""Names that an error offers for one that is unknown."""

FLEET_TIMEOUT_S: Final = 30.0
"""How long `hubline fleet` waits for a sign of the API; streams send one at least every API_HEARTBEAT_S."""

FLEET_POLL_S: Final = 1.0
"""How often `hubline fleet` asks while it follows a task or a log."""

FLEET_RECONNECT_MAX_S: Final = 10.0
"""The longest wait of `hubline fleet watch` before it calls again."""

# --- Setting up -----------------------------------------------------------------------------------------------------

SETTINGS_FILE_MAX_BYTES: Final = 1024 * 1024
"""A settings or certificate file; a longer one is something else, named by mistake."""

SHOWN_VALUE_MAX: Final = 80
"""Characters of a wrong value in an error, so that the error stays one readable line."""

RSA_MIN_BITS: Final = 2048
"""Smaller RSA keys are refused everywhere (the contract, "Identities and TLS")."""

CERTIFICATE_BACKDATE_S: Final = 86_400
"""Certificates hold from a day before their issue: a machine whose clock runs behind still trusts them."""

CA_VALID_DAYS: Final = 20 * 365
"""An authority outlives the machines that it vouches for; a second one can overlap it before it ends."""

LEAF_VALID_DAYS: Final = 5 * 365
"""A leaf lasts as long as its machine usually does: revocation, not expiry, takes a machine out of its fleet."""

LEAF_EXPIRES_SOON_DAYS: Final = 30
"""From here on `config check` and `provision list` warn: time enough to renew at every site."""

PASSPHRASE_MAX_BYTES: Final = 1023
"""OpenSSL takes no longer passphrase for a key."""

FLEET_LOCK_TIMEOUT_S: Final = 10.0
"""How long one provisioning waits for another in the same directory; each takes well below a second."""

FLEET_LOCK_POLL_S: Final = 0.05
"""How often it looks whether the other has ended."""

CLOUD_ENDPOINTS_MAX: Final = 16
"""Addresses of a cloud broker: each is a name in its certificate and an attempt of a client."""

# --- Tasks ----------------------------------------------------------------------------------------------------------

TASK_CLOSE_GRACE_S: Final = 0.5
"""At a restart of the hub, for a task that was just taken to come to its end: most are short, and not worth a failure."""

TASK_PROGRESS_S: Final = 20.0
"""A running task is reported at least this often: below the 25 s after which progress is due."""

TASK_PROGRESS_MIN_S: Final = 2.0
"""Progress in between is reported no oftener: each report is a durable message."""

TASK_PROGRESS_MAX_S: Final = 60.0
"""A running task that is silent for this long, while its hub can be reached, counts as lost: two reports that failed to come."""

TASK_ASK_S: Final = 30.0
"""A hub that has accepted a task and is silent for this long is asked how it stands, before the task counts as lost."""

TASK_MARGIN_S: Final = 60.0
"""How long after its deadline the answer about a task may still come: it was begun in time, or refused, on a slow path."""

TASK_SILENCE_MAX_S: Final = 86_400.0
"""A task whose hub says nothing of it counts as lost a day after its deadline, even if the hub can't be reached at all."""

TASK_REPEAT_MIN_S: Final = 3.0
"""Between two deliveries of a task to one hub: the first answer needs a commit at the hub and one in the cloud."""

TASK_REPEAT_FIRST_S: Final = 2.0
"""What is added to that at random the first time."""

TASK_REPEAT_MAX_S: Final = 60.0
"""What is added to it at most."""

TASK_BURST: Final = 50
"""Deliveries in one TASK_BURST_S: 200 a second, so that a task for a whole fleet does not fill the cloud's session."""

TASK_BURST_S: Final = 0.25
"""See TASK_BURST."""

TASK_START_GRACE_S: Final = 60.0
"""After a start of the cloud, how long a task that skips absent hubs waits for word of which ones are there."""

TASK_EXPIRES_S: Final = 86_400.0
"""How long a task may still be begun, if nobody says."""

TASK_EXPIRES_MAX_S: Final = 90 * 86_400.0
"""The longest that anybody may say: the longest poll interval."""

TASKS_OPEN_MAX: Final = 100_000
"""Open tasks of the fleet, counted per hub; each costs the cloud about a kilobyte of memory."""

TASKS_PER_HUB_MAX: Final = 64
"""Open tasks of one hub; it takes no more either."""

TASK_TARGETS_MAX: Final = 20_000
"""Hubs of one task: above any fleet that one cloud service serves."""

TASKS_PRUNED: Final = 500
"""Old tasks deleted in one transaction, with all their targets."""

TASKS_RUNNING_MAX: Final = 4
"""Actions that a hub runs at the same time: a check that hangs holds up no other, and a small machine is not overrun."""

TASKS_WAITING_MAX: Final = 64
"""Tasks that wait at a hub for their turn, or for the end of roaming."""

TASKS_REMEMBERED_MAX: Final = 1_000
"""Tasks that a hub knows: some hundred bytes each on its disk and in its memory."""

TASK_REMEMBERED_S: Final = 86_400.0
"""How long after its deadline a hub knows a task: no late delivery runs it twice."""

TASK_OUTPUTS_KEPT: Final = 8
"""Ended tasks whose output a hub keeps, should it be asked again; of older ones it tells only how they ended."""

TASK_OUTPUT_MAX_BYTES: Final = 128 * 1024
"""What an action may hand back, as JSON: with the envelope it fits into a message."""

TASK_SAVES_MAX: Final = 64
"""Changes that wait for the hub's disk; while there are as many, new tasks are left to their next delivery."""

TASK_JOURNAL_RETRY_S: Final = 5.0
"""How long to wait before a disk that has refused the list of tasks is asked again."""

TASK_ACTION_TIMEOUT_S: Final = 60.0
"""For an action that has no time of its own."""

TASK_LOGS: Final = 200
"""Log lines that "collect-logs" brings if nobody says."""

TASK_LOGS_MAX: Final = 1_000
"""Log lines that it brings at most."""

CHECK_OUTPUT_MAX_BYTES: Final = 64 * 1024
"""What is read of a check's output; the rest is thrown away."""

CHECK_DRAIN_S: Final = 1.0
"""How long to wait for the rest of a check's output after its end: a process that it left behind may hold the pipe open."""

# --- Settings from the cloud ------------------------------------------------------------------------------------------

SETTINGS_DOCUMENT_MAX_BYTES: Final = 16 * 1024
"""One document, as JSON; all that hold for a hub, SETTINGS_GROUPS_MAX of them among them, fit into a message."""

SETTINGS_GROUPS_MAX: Final = 8
"""Groups of one hub: who needs more can't say any more which of them counts."""

SETTINGS_HISTORY_MAX: Final = 1_000
"""Versions of one document that are kept; the oldest go first."""

SETTINGS_BURST: Final = 25
"""Hubs that are sent settings in one SETTINGS_BURST_S: 100 a second, since each of them connects anew with what it got."""

SETTINGS_BURST_S: Final = 0.25
"""See SETTINGS_BURST."""

SETTINGS_REPEAT_MIN_S: Final = 10.0
"""Between two deliveries of settings to one hub: it begins anew with them before it reports."""

SETTINGS_REPEAT_FIRST_S: Final = 10.0
"""What is added to that at random the first time."""

SETTINGS_REPEAT_MAX_S: Final = 300.0
"""What is added to it at most."""

SETTINGS_TRIAL_SAVE_S: Final = 5.0
"""How often a running trial is saved, always this much ahead: a hub that dies at once with new settings ends the trial too."""

SETTINGS_STABLE_S: Final = 10.0
"""A hub must live this long with new settings before they stay: what brings it down does so with its first samples."""

SETTINGS_TRIAL_SHARE: Final = 0.1
"""Neither is more than this share of a trial that is short."""

SETTINGS_PROBE_S: Final = 2.0
"""Between two attempts to reach the cloud directly with settings on trial: one hub, for the time of a trial."""

# --- Logging --------------------------------------------------------------------------------------------------------

LOG_TEXT_MAX: Final = 4096
"""Characters of one text in a log line; a peer's bytes can't fill the disk."""
