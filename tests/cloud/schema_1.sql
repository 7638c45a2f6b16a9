-- The tables as a Hubline of schema 1 made them in SQLite.
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
    PRIMARY KEY (message_no),
    UNIQUE (stream_no, seq)
);
CREATE INDEX messages_by_age ON messages (kind, received_ms);
CREATE INDEX readings_by_time ON messages (stream_no, last_ts) WHERE kind = 'readings';
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
