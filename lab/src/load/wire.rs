//! The lines between the lab and the programs in its pods: what to run, orders, records. One JSON value a line; both
//! ends are the same binary, so there is no versioning.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::outcome::Outcome;

/// Connections that may wait for an accept, where a spec names no other number: Linux's own somaxconn.
pub const DEFAULT_BACKLOG: i32 = 4096;
/// A client's whole wait for a handshake, and again for its byte.
pub const DEFAULT_TIMEOUT_MS: u64 = 1000;
/// Name of the leaf under which a client records its extra loop; it counts in no figure.
pub const EXTRA_LOOP: &str = "(extra loop)";
/// Name of the leaf under which a client records the ends of its conversations; it counts in no figure either.
pub const CONVERSATION: &str = "(conversation)";
/// On an EndpointSlice: the byte that a client sends first, by which a gateway knows the mirrored Service.
pub const FIRST_BYTE_ANNOTATION: &str = "lab.splitsecond.dev/first-byte";

/// What a pod runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PodProgram {
    /// Answers a byte with a byte.
    Server(ServerSpec),
    /// Sends connections and records their ends.
    Client(ClientSpec),
    /// Forwards connections into another cluster.
    Gateway(GatewaySpec),
    /// Stands between a pod's application and everybody else.
    Proxy(ProxySpec),
}

/// A backend's endpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServerSpec {
    /// Listened on at every address of the pod, both families.
    pub port: u16,
    /// Connections that may wait for an accept.
    pub backlog: i32,
    /// The byte that it answers with: names the backend to a client that dials a ClusterIP.
    pub answer: u8,
}

/// An open-loop client: it starts connections by the clock, whatever became of the earlier ones.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClientSpec {
    /// Whom to dial.
    pub target: Target,
    /// Connections per second, with exponential gaps; 0 sends nothing until told.
    pub rate: f64,
    /// Of the gaps and of the choices.
    pub seed: u64,
    /// Bound of the handshake and of the wait for the byte, each.
    pub timeout_ms: u64,
}

/// Whom a client dials.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// As a mesh's proxy: a leaf of the split by weight, then a ready endpoint of its EndpointSlices.
    Mesh {
        /// The API server; the client keeps watches of its own.
        kubeconfig: PathBuf,
        /// Of the splits and their Services.
        namespace: String,
        /// The TrafficSplits' names; each connection follows one of them, drawn at random.
        splits: Vec<String>,
    },
    /// One address, as a client without a mesh dials a ClusterIP; the answering byte names the leaf.
    Address {
        /// Usually a ClusterIP.
        address: SocketAddr,
        /// Answering byte to leaf.
        answers: BTreeMap<u8, String>,
    },
}

/// A multicluster gateway: one address for many Services.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GatewaySpec {
    /// For traffic.
    pub port: u16,
    /// Answers while the gateway lives: a byte for a byte, like a server.
    pub ready_port: u16,
    /// Connections that may wait for an accept.
    pub backlog: i32,
    /// Ready endpoints per mirrored Service; the first byte of a connection is the index.
    pub mirrors: Vec<Vec<SocketAddr>>,
}

/// A mesh's proxy: the packet filter of its pod turns connections to it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProxySpec {
    /// It runs as this user, whose own connections the packet filter lets through.
    pub uid: u32,
    /// Takes what comes to the pod.
    pub inbound_port: u16,
    /// Takes what the application dials.
    pub outbound_port: u16,
    /// Connections that may wait for an accept.
    pub backlog: i32,
}

impl ServerSpec {
    /// A server with the default backlog.
    #[must_use]
    pub fn new(port: u16, answer: u8) -> ServerSpec {
        ServerSpec { port, backlog: DEFAULT_BACKLOG, answer }
    }
}

/// Lab to pod.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// Comes back in the reply.
    pub seq: u64,
    /// What to do.
    pub order: Order,
}

/// What a pod can be told to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// Server, gateway: close the listener; new connections are refused while the program lives on.
    StopListening,
    /// Server, gateway: listen again, and accept.
    Listen,
    /// Server, gateway: keep the listener with this backlog, but accept no more.
    StopAccepting {
        /// As listen(2) takes it.
        backlog: i32,
    },
    /// Server, gateway: accept again, with the spec's backlog.
    Accept,
    /// Gateway: the ready endpoints of one mirrored Service.
    Mirror {
        /// The first byte that selects it.
        index: u8,
        /// Ready endpoints.
        endpoints: Vec<SocketAddr>,
    },
    /// Client: from now on, this many connections a second.
    Rate {
        /// 0 stops.
        per_second: f64,
    },
    /// Client: beside the load, dial this address over and over; its connections are recorded as [`EXTRA_LOOP`].
    Loop {
        /// Usually a dead one.
        address: SocketAddr,
        /// 0 stops the loop.
        per_second: f64,
    },
    /// Client: beside the load, keep so many connections and exchange a byte on each again and again; one that ends is
    /// recorded as [`CONVERSATION`] and made anew.
    Converse {
        /// Dialled in turn.
        addresses: Vec<SocketAddr>,
        /// 0 ends them all.
        connections: u32,
        /// From one byte to the next.
        every_ms: u32,
    },
    /// Server: RST on every connection that has exchanged more than one byte.
    ResetConversations,
    /// Client: write out what is recorded and tell how many connections are still outstanding.
    Flush,
}

/// Pod to lab.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Message {
    /// Listening, or all caches complete and sending.
    Ready {
        /// Raw CLOCK_MONOTONIC.
        at_ns: u64,
    },
    /// An order was carried out.
    Done {
        /// The request's.
        seq: u64,
        /// What it took.
        done: Done,
    },
    /// An order could not be carried out.
    Failed {
        /// The request's.
        seq: u64,
        /// Why.
        error: String,
    },
    /// A client's name for a number in its records; sent before the first record that uses it.
    Leaf {
        /// 0, 1, 2, ...
        index: u16,
        /// A backend's name, or [`EXTRA_LOOP`].
        name: String,
    },
    /// Connections that ended since the last such message.
    Records {
        /// In the order of their ends.
        rows: Vec<Row>,
    },
    /// A client's losses: records that did not fit between two flushes.
    Lost {
        /// Since its start.
        records: u64,
    },
    /// A server's or a proxy's truth since its start.
    Counts(Counts),
    /// A client's conversations as they stand.
    Conversations(Conversations),
    /// After `stop-accepting`: the kernel dropped the first SYN for want of room in the backlog.
    Overflowed {
        /// The last look at the counter that did not show it: at most two milliseconds early, never late.
        after_ns: u64,
    },
}

/// What an order took.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// Raw CLOCK_MONOTONIC just before the first call that carried it out.
    pub first_ns: u64,
    /// Just after the last.
    pub last_ns: u64,
    /// A client's connections that have no end yet.
    pub outstanding: u32,
}

/// What a server or a proxy counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Connections accepted.
    pub accepted: u64,
    /// Of these, the ones that got their byte; at a proxy the ones that were carried on, once they ended.
    pub answered: u64,
}

/// A client's long-lived connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conversations {
    /// Connected and answered at least once.
    pub alive: u32,
    /// Bytes that came back, since the client's start.
    pub exchanged: u64,
}

/// One connection. Serialized as an array: names would triple the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(u64, u32, u16, Outcome)", into = "(u64, u32, u16, Outcome)")]
pub struct Row {
    /// Raw CLOCK_MONOTONIC just before connect().
    pub start_ns: u64,
    /// From start to end, in microseconds.
    pub elapsed_us: u32,
    /// As announced by [`Message::Leaf`].
    pub leaf: u16,
    /// How it ended.
    pub outcome: Outcome,
}

impl From<(u64, u32, u16, Outcome)> for Row {
    fn from((start_ns, elapsed_us, leaf, outcome): (u64, u32, u16, Outcome)) -> Row {
        Row { start_ns, elapsed_us, leaf, outcome }
    }
}

impl From<Row> for (u64, u32, u16, Outcome) {
    fn from(row: Row) -> (u64, u32, u16, Outcome) {
        (row.start_ns, row.elapsed_us, row.leaf, row.outcome)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_a_short_array() {
        let row = Row { start_ns: 12, elapsed_us: 3, leaf: 1, outcome: Outcome::REFUSED };
        let line = serde_json::to_string(&Message::Records { rows: vec![row] }).unwrap();
        assert_eq!(line, r#"{"records":{"rows":[[12,3,1,111]]}}"#);
        let back: Message = serde_json::from_str(&line).unwrap();
        assert_eq!(back, Message::Records { rows: vec![row] });
    }

    #[test]
    fn a_program_survives_its_argument() {
        let program = PodProgram::Client(ClientSpec {
            target: Target::Address {
                address: "203.0.113.1:80".parse().unwrap(),
                answers: BTreeMap::from([(7, "emoji-svc".to_owned())]),
            },
            rate: 0.5,
            seed: u64::MAX,
            timeout_ms: DEFAULT_TIMEOUT_MS,
        });
        let text = serde_json::to_string(&program).unwrap();
        assert_eq!(serde_json::from_str::<PodProgram>(&text).unwrap(), program);
    }
}
