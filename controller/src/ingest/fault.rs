//! What can be wrong with a connection or a stream of an agent. Pure.
//!
//! In: nothing. Out: one sentence for the log and one of a closed set of kinds for the metric. It deliberately carries no
//! more of what a stranger sent than the name or field that is wrong, cut short and escaped.

use std::io;
use std::time::Duration;

use probe_common::wire::DecodeError;

/// Who repairs it stands with each; the agent reconnects in any case.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    /// The operator: more descriptors. Nothing to do when it passes.
    #[error("a connection could not be accepted: {0}")]
    Accept(#[source] io::Error),
    /// The operator, if it is an agent's address.
    #[error("its address is neither loopback nor in --insecure-ingest-from")]
    Address,
    /// Nobody, unless it lasts.
    #[error("too many connections, or too many without a Hello")]
    Connections,
    /// Whoever speaks something else than HTTP/2 to this port.
    #[error("it does not speak HTTP/2 as it should: {0}")]
    Transport(String),
    /// The network, or a stalled node.
    #[error("it did not answer a PING in time")]
    KeepAlive,
    /// The agent's author.
    #[error("no stream of it said Hello within {0:?}")]
    NoHello(Duration),
    /// The agent's author.
    #[error("it asked for something else than POST /v1/stream")]
    Request,
    /// The agent's author.
    #[error("its first frame is not a Hello")]
    FirstFrame,
    /// The agent's author.
    #[error("it speaks for node {bound:?} and said Hello a second time, for node {named:?}")]
    SecondHello { bound: String, named: String },
    /// The agent's author.
    #[error("its Hello names {0:?}, which is no name of a Kubernetes node")]
    NodeName(String),
    /// Whoever runs versions that do not go together.
    #[error("{0}")]
    Decode(#[source] DecodeError),
    /// The agent's author: the frame is passed over, the stream goes on.
    #[error("{0}")]
    Payload(#[source] DecodeError),
    /// The agent's author: the frame is passed over, the stream goes on.
    #[error("{kind} frame: {field}")]
    Nonsense { kind: &'static str, field: String },
}

impl Fault {
    /// Its name in metrics and logs.
    pub(super) const fn kind(&self) -> &'static str {
        match self {
            Self::Accept(_) => "accept",
            Self::Address => "address",
            Self::Connections => "connections",
            Self::Transport(_) => "transport",
            Self::KeepAlive => "keep-alive",
            Self::NoHello(_) => "no-hello",
            Self::Request => "request",
            Self::FirstFrame => "first-frame",
            Self::SecondHello { .. } => "second-hello",
            Self::NodeName(_) => "node-name",
            Self::Decode(DecodeError::Version(_)) => "version",
            Self::Decode(DecodeError::TooLarge { .. }) => "too-large",
            Self::Decode(DecodeError::Truncated { .. }) => "truncated",
            Self::Decode(DecodeError::Payload { .. }) | Self::Payload(_) => "payload",
            Self::Nonsense { .. } => "nonsense",
        }
    }
}
