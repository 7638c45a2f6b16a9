-- The tables as a Hubline of schema 2 made them in SQLite.
CREATE TABLE meta (
    name TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (name)
);
CREATE TABLE hubs (
    hub_no INTEGER NOT NULL,
    site TEXT NOT NULL,
    hub TEXT NOT NULL,
    online SMALLINT,
    epoch TEXT,
    session BIGINT,
    via TEXT,
    mode TEXT,
    version TEXT,
    reason TEXT,
    state_ts BIGINT,
    last_seen_ms BIGINT,
    PRIMARY KEY (hub_no),
    UNIQUE (site, hub)
);
CREATE TABLE connectors (
    site TEXT NOT NULL,
    connector TEXT NOT NULL,
    online SMALLINT NOT NULL,
    session BIGINT NOT NULL,
    upstream TEXT,
    since_ts BIGINT,
    reason TEXT,
    state_ts BIGINT,
    last_seen_ms BIGINT NOT NULL,
    PRIMARY KEY (site, connector)
);
CREATE TABLE streams (
    stream_no INTEGER NOT NULL,
    hub_no INTEGER NOT NULL,
    epoch TEXT NOT NULL,
    messages BIGINT DEFAULT 0 NOT NULL,
    points BIGINT DEFAULT 0 NOT NULL,
    pruned_messages BIGINT DEFAULT 0 NOT NULL,
    pruned_points BIGINT DEFAULT 0 NOT NULL,
    duplicates BIGINT DEFAULT 0 NOT NULL,
    refused BIGINT DEFAULT 0 NOT NULL,
    last_received_ms BIGINT DEFAULT 0 NOT NULL,
    PRIMARY KEY (stream_no),
    UNIQUE (hub_no, epoch)
);
CREATE TABLE coverage (
    stream_no INTEGER NOT NULL,
    first_seq BIGINT NOT NULL,
    last_seq BIGINT NOT NULL,
    PRIMARY KEY (stream_no, first_seq)
)
 WITHOUT ROWID;
CREATE TABLE messages (
    message_no INTEGER NOT NULL,
    stream_no INTEGER NOT NULL,
    seq BIGINT NOT NULL,
    kind TEXT NOT NULL,
    sent_ms BIGINT NOT NULL,
    received_ms BIGINT NOT NULL,
    points INTEGER NOT NULL,
    first_ts BIGINT,
    last_ts BIGINT,
    codec SMALLINT NOT NULL,
    payload BLOB NOT NULL,
    skew_ms BIGINT,
    PRIMARY KEY (message_no),
    UNIQUE (stream_no, seq)
);
CREATE INDEX readings_by_time ON messages (stream_no, last_ts) WHERE kind = 'readings';
CREATE INDEX messages_by_age ON messages (kind, received_ms);
CREATE TABLE sensors (
    sensor_no INTEGER NOT NULL,
    hub_no INTEGER NOT NULL,
    sensor TEXT NOT NULL,
    ts BIGINT NOT NULL,
    seq BIGINT NOT NULL,
    value TEXT NOT NULL,
    readings BIGINT NOT NULL,
    PRIMARY KEY (sensor_no),
    UNIQUE (hub_no, sensor)
);
CREATE TABLE rollup_5min (
    bucket BIGINT NOT NULL,
    sensor_no INTEGER NOT NULL,
    count BIGINT NOT NULL,
    min DOUBLE NOT NULL,
    max DOUBLE NOT NULL,
    sum DOUBLE NOT NULL,
    PRIMARY KEY (bucket, sensor_no)
)
 WITHOUT ROWID;
CREATE TABLE rollup_1h (
    bucket BIGINT NOT NULL,
    sensor_no INTEGER NOT NULL,
    count BIGINT NOT NULL,
    min DOUBLE NOT NULL,
    max DOUBLE NOT NULL,
    sum DOUBLE NOT NULL,
    PRIMARY KEY (bucket, sensor_no)
)
 WITHOUT ROWID;
CREATE TABLE gaps (
    stream_no INTEGER NOT NULL,
    seq BIGINT NOT NULL,
    position INTEGER NOT NULL,
    from_seq BIGINT,
    to_seq BIGINT,
    points BIGINT,
    first_ts BIGINT,
    last_ts BIGINT,
    reason TEXT,
    PRIMARY KEY (stream_no, seq, position)
)
 WITHOUT ROWID;
CREATE TABLE quarantine (
    refused_no INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    received_ms BIGINT NOT NULL,
    topic TEXT NOT NULL,
    reason TEXT NOT NULL,
    size_bytes BIGINT NOT NULL,
    payload BLOB NOT NULL
);
CREATE TABLE presence (
    hub_no INTEGER NOT NULL,
    connection TEXT NOT NULL,
    since_ms BIGINT NOT NULL,
    reason TEXT NOT NULL,
    via TEXT,
    last_seen_ms BIGINT,
    skew_ms BIGINT,
    hidden_ms BIGINT,
    record TEXT NOT NULL,
    PRIMARY KEY (hub_no)
);
CREATE TABLE connection_log (
    entry_no INTEGER NOT NULL,
    hub_no INTEGER NOT NULL,
    at_ms BIGINT NOT NULL,
    connection TEXT NOT NULL,
    reason TEXT NOT NULL,
    via TEXT,
    evidence TEXT NOT NULL,
    PRIMARY KEY (entry_no)
);
CREATE INDEX connection_log_by_hub ON connection_log (hub_no, entry_no);
CREATE INDEX connection_log_by_age ON connection_log (at_ms);
CREATE TABLE reported (
    hub_no INTEGER NOT NULL,
    epoch TEXT NOT NULL,
    seq BIGINT NOT NULL,
    received_ms BIGINT NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (hub_no)
);
CREATE TABLE tasks (
    task TEXT NOT NULL,
    action TEXT NOT NULL,
    arguments TEXT NOT NULL,
    created_ms BIGINT NOT NULL,
    created_by TEXT NOT NULL,
    expires_ms BIGINT NOT NULL,
    skip_if_offline SMALLINT NOT NULL,
    PRIMARY KEY (task)
);
CREATE INDEX tasks_by_age ON tasks (created_ms, task);
CREATE TABLE task_targets (
    task TEXT NOT NULL,
    hub_no INTEGER NOT NULL,
    state TEXT NOT NULL,
    changed_ms BIGINT NOT NULL,
    progress SMALLINT,
    message TEXT,
    output TEXT,
    presumed SMALLINT DEFAULT 0 NOT NULL,
    cancel_ms BIGINT,
    PRIMARY KEY (task, hub_no)
);
CREATE INDEX task_targets_by_hub ON task_targets (hub_no, state);
CREATE TABLE settings_documents (
    document_no INTEGER NOT NULL,
    scope TEXT NOT NULL,
    name TEXT NOT NULL,
    version BIGINT NOT NULL,
    created_ms BIGINT NOT NULL,
    created_by TEXT NOT NULL,
    content TEXT NOT NULL,
    PRIMARY KEY (document_no),
    UNIQUE (scope, name, version)
);
CREATE TABLE settings_of_hubs (
    hub_no INTEGER NOT NULL,
    desired_version BIGINT NOT NULL,
    desired_hash TEXT NOT NULL,
    desired_ms BIGINT NOT NULL,
    desired_content TEXT NOT NULL,
    applied_content TEXT,
    reported_version BIGINT,
    reported_hash TEXT,
    reported_state TEXT,
    reported_reason TEXT,
    reported_ms BIGINT,
    PRIMARY KEY (hub_no)
);
CREATE TABLE group_members (
    group_name TEXT NOT NULL,
    hub_no INTEGER NOT NULL,
    PRIMARY KEY (group_name, hub_no)
);
CREATE INDEX groups_of_hub ON group_members (hub_no);
CREATE TABLE logs (
    log_no INTEGER NOT NULL,
    hub_no INTEGER NOT NULL,
    boot TEXT NOT NULL,
    n BIGINT NOT NULL,
    ts BIGINT NOT NULL,
    received_ms BIGINT NOT NULL,
    level TEXT NOT NULL,
    event TEXT NOT NULL,
    fields TEXT NOT NULL,
    PRIMARY KEY (log_no),
    UNIQUE (hub_no, boot, n)
);
CREATE INDEX logs_by_age ON logs (received_ms);
CREATE INDEX logs_by_time ON logs (hub_no, ts);
CREATE TABLE tokens (
    token_no INTEGER NOT NULL,
    name TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    scope TEXT NOT NULL,
    site TEXT,
    created_ms BIGINT NOT NULL,
    expires_ms BIGINT,
    revoked_ms BIGINT,
    used_ms BIGINT,
    PRIMARY KEY (token_no),
    UNIQUE (name),
    UNIQUE (sha256)
);
CREATE TABLE audit_log (
    entry_no INTEGER NOT NULL,
    at_ms BIGINT NOT NULL,
    who TEXT NOT NULL,
    address TEXT,
    action TEXT NOT NULL,
    target TEXT NOT NULL,
    outcome TEXT NOT NULL,
    detail TEXT NOT NULL,
    PRIMARY KEY (entry_no)
);
CREATE INDEX audit_log_by_age ON audit_log (at_ms);
