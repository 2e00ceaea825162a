//! What agent and controller say to each other. Pure: bytes in, typed frames out, and back.
//!
//! One HTTP/2 request per agent and controller replica: `POST /v1/stream`. The request body is a sequence of agent
//! frames, the response body a sequence of controller frames, both for as long as the stream lives. A frame is an
//! 8-byte header and a JSON payload:
//!
//! ```text
//! byte 0      version of the frame header and of the payloads' meaning: 1
//! byte 1      kind: AgentKind or ControllerKind
//! bytes 2-3   zero; a receiver ignores them
//! bytes 4-7   length of the payload, big endian
//! ```
//!
//! # Version skew
//!
//! Agent N works with controller N-1 to N+1. New fields have defaults and unknown fields are ignored; an unknown kind
//! is skipped and counted ([`Decoded::Skipped`]) without being parsed; another *version* ends the stream with
//! [`DecodeError::Version`], so it changes only when meaning changes.
//!
//! # Time
//!
//! Every `*_ns` is the sender's CLOCK_MONOTONIC. A receiver compares such times only with each other and with the
//! `now_ns` of the same frame: an event's age is `now_ns - event_ns`.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::cause::FailureCause;

/// The one version that this build speaks.
pub const VERSION: u8 = 1;

/// Path of the stream.
pub const STREAM_PATH: &str = "/v1/stream";

/// Content type of both bodies.
pub const CONTENT_TYPE: &str = "application/vnd.splitsecond.frames";

/// Bytes of a frame header.
pub const HEADER_BYTES: usize = 8;

/// The largest payload a controller takes from an agent: an agent is trusted with its own node only, and 64 KiB hold
/// the failures of about 400 destinations in one report (an agent with more sends several).
pub const AGENT_PAYLOAD_LIMIT: usize = 64 * 1024;

/// The largest payload an agent takes from its controller: one split with 4,096 destinations fits.
pub const CONTROLLER_PAYLOAD_LIMIT: usize = 1024 * 1024;

/// The most rows that an agent puts in one report; a row is at most about 300 bytes as JSON.
pub const REPORT_ROWS_LIMIT: usize = 200;

/// The most messages a second that an agent may send (detection: reports with failures at most every 5 ms).
pub const MESSAGES_PER_SECOND: u32 = 250;

/// The most endpoints of one node in a [`Meshed`]: a node runs a few hundred pods at most, and each has two families.
pub const MESHED_LIMIT: usize = 1024;

/// How long an endpoint counts as meshed after its proxy was last seen at work: 10 minutes.
pub const MESHED_FOR_NS: u64 = 600_000_000_000;

/// A destination: TCP, address and port.
pub type Destination = SocketAddr;

/// First frame of every stream, agent to controller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The Kubernetes node that the agent speaks for.
    pub node: String,
    /// Changes with every start of the agent: its counters began at zero then.
    pub incarnation: u64,
    /// The agent's version, for people.
    #[serde(default)]
    pub version: String,
    /// The agent's clock when it sent this.
    pub now_ns: u64,
    /// Set when this node cannot count, and why: the agent lives on, its checks work, its counts mean nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blind: Option<String>,
}

/// What happened on a node since the report before. Sent at most every 5 ms with failures, every 100 ms without
/// anything to say: silence of more than 350 ms makes the node stale.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// One more than the report before, from 1, on every stream of its own.
    pub seq: u64,
    /// The agent's clock when it took the counts.
    pub now_ns: u64,
    /// As in [`Hello::blind`]; a report that has it has no rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blind: Option<String>,
    /// How late the agent's own loop woke at worst since the report before, in microseconds: a stalled node.
    #[serde(default)]
    pub lateness_us: u32,
    /// Rows that were counted and could not be sent (queue full) since the report before: evidence has a gap.
    #[serde(default)]
    pub dropped_rows: u64,
    /// Kernel events that are known to be lost since the report before (missed by recursion, no storage, ring full).
    #[serde(default)]
    pub lost_events: u64,
    /// One row per destination and read; in the order of reading.
    #[serde(default)]
    pub rows: Vec<Row>,
}

/// What one destination saw between two reads of this node's counters. Each attempt is in exactly one row, as exactly
/// one of established, failed, late or cancelled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// Whom the attempts went to.
    pub to: Destination,
    /// The attempts were the mesh proxy's of the endpoint's own pod, from its address to itself: what the application
    /// answered. Kept apart from what others on the node saw, and told only of endpoints on the agent's own node.
    #[serde(default, skip_serializing_if = "is_false")]
    pub self_hop: bool,
    /// Begin of the period (the read before).
    pub from_ns: u64,
    /// End of the period (this read).
    pub to_ns: u64,
    /// Attempts begun in the period.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub attempts: u64,
    /// Attempts that were established in time.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub established: u64,
    /// In a row of several periods: the end of the last one in which an attempt was established. Without it, `to_ns`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub established_ns: Option<u64>,
    /// Attempts that failed in time, refused.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub refused: u64,
    /// Attempts that failed in time, unreachable.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unreachable: u64,
    /// Attempts that became late: no answer within the destination's time.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub late: u64,
    /// Of those that became late, in this period or before: how many were established after all. Not samples.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub recovered: u64,
    /// Attempts that their client gave up in time. Not samples.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub cancelled: u64,
    /// Flows that ended with an answer.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub answered: u64,
    /// Flows that were reset before the first byte of an answer.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub reset: u64,
    /// Distinct clients behind the failed and late attempts, at least; the cap on how much they weigh.
    #[serde(default, skip_serializing_if = "is_zero32")]
    pub clients: u32,
    /// The first failure of the period.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first: Option<First>,
}

/// The first failure of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct First {
    /// Start of the oldest attempt that failed (for a late one, the begin of its age slot at the earliest).
    pub started_ns: u64,
    /// When the failure was there to be seen.
    pub failed_ns: u64,
}

/// Which endpoints on the agent's own node stand behind a mesh's proxy: somebody saw that proxy dial its application, or
/// accept a connection, within the last [`MESHED_FOR_NS`]. Replaces what was said before; sent when it changes, and when
/// a stream begins (before [`Totals`]) if there are any.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meshed {
    /// The agent's clock.
    pub now_ns: u64,
    /// Addresses of endpoints, sorted.
    #[serde(default)]
    pub endpoints: Vec<IpAddr>,
}

/// Sent once after the controller's splits are known to the agent, and again when it gains destinations: where each
/// destination stood before this stream began.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// The agent's clock.
    pub now_ns: u64,
    /// True in the last frame of the batch.
    #[serde(default)]
    pub complete: bool,
    /// One per destination of a split.
    #[serde(default)]
    pub rows: Vec<Total>,
}

/// A destination's history on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Total {
    /// Whom the attempts went to.
    pub to: Destination,
    /// Attempts since the agent began to count it.
    pub attempts: u64,
    /// Established since then.
    pub established: u64,
    /// Age of the last established attempt or succeeded check.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_success_age_ns: Option<u64>,
    /// Age of the last check of this node's that succeeded: what it may be believed about, also by a controller that has
    /// only just begun to listen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_check_age_ns: Option<u64>,
}

/// Results of checks, in the order in which they ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckResults {
    /// The agent's clock.
    pub now_ns: u64,
    /// At least one.
    pub results: Vec<CheckResult>,
}

/// How one check ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckResult {
    /// The request's.
    pub id: u64,
    /// Whom it was sent to.
    pub to: Destination,
    /// When its SYN was sent.
    pub started_ns: u64,
    /// When it ended.
    pub ended_ns: u64,
    /// How.
    pub outcome: CheckOutcome,
}

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CheckOutcome {
    /// It was established within its time-out.
    Passed,
    /// It failed, for a cause of the destination's or the way to it.
    Failed(FailureCause),
    /// This node could not ask (no local port, over budget): says nothing of the destination.
    NotMade,
}

/// Checks that an agent is to make now, controller to agent. Their results come back in any order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckRequest {
    /// The controller's number for the volley; results carry it.
    pub id: u64,
    /// One plain TCP connect each.
    pub targets: Vec<CheckTarget>,
}

/// One check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckTarget {
    /// Whom to connect to.
    pub to: Destination,
    /// How long until it counts as no answer, in milliseconds.
    pub timeout_ms: u32,
}

/// A split with its backends' destinations, controller to agent: what an agent counts per CPU and by age. Sent for
/// every split when a stream begins, then whenever one changes; after the first full set comes [`SplitsSent`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Split {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The apex Service.
    pub service: String,
    /// `metadata.generation` under which the weights were observed.
    #[serde(default)]
    pub generation: i64,
    /// In the order of the object.
    pub backends: Vec<Backend>,
}

/// One backend of a split.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backend {
    /// The leaf Service.
    pub service: String,
    /// The weight observed in the API, in thousandths.
    #[serde(default)]
    pub weight_milli: u64,
    /// Its ClusterIPs, endpoints or gateway, per port.
    pub destinations: Vec<WatchedDestination>,
}

/// A destination of a split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct WatchedDestination {
    /// Address and port.
    pub to: Destination,
    /// From which age on an attempt without an answer counts as late, in milliseconds.
    pub late_after_ms: u32,
}

/// A split is gone, controller to agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitGone {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// The agent now has every split, controller to agent: time for [`Totals`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitsSent {}

/// Everything an agent says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AgentFrame {
    /// Who speaks.
    Hello(Hello),
    /// Counts; with no rows, a heartbeat.
    Report(Report),
    /// History, at the beginning of a stream.
    Totals(Totals),
    /// Results of checks.
    CheckResults(CheckResults),
    /// Endpoints behind a mesh's proxy.
    Meshed(Meshed),
}

/// Everything a controller says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControllerFrame {
    /// Make these checks.
    Checks(CheckRequest),
    /// Count this split's destinations.
    Split(Split),
    /// Stop counting for this split.
    SplitGone(SplitGone),
    /// The first full set of splits is complete.
    SplitsSent(SplitsSent),
}

mod kind {
    pub(super) const HELLO: u8 = 1;
    pub(super) const REPORT: u8 = 2;
    pub(super) const TOTALS: u8 = 3;
    pub(super) const CHECK_RESULTS: u8 = 4;
    pub(super) const MESHED: u8 = 5;

    pub(super) const CHECKS: u8 = 129;
    pub(super) const SPLIT: u8 = 130;
    pub(super) const SPLIT_GONE: u8 = 131;
    pub(super) const SPLITS_SENT: u8 = 132;
}

/// A frame that travels in one direction.
pub trait Frame: Sized {
    /// The largest payload that the receiver of this direction takes.
    const PAYLOAD_LIMIT: usize;

    /// Kind byte and JSON.
    fn encode_payload(&self) -> (u8, serde_json::Result<Vec<u8>>);

    /// `None` when this build does not know the kind.
    fn decode_payload(kind: u8, payload: &[u8]) -> Option<serde_json::Result<Self>>;

    /// Header and payload.
    ///
    /// # Errors
    ///
    /// When the payload would be larger than its receiver takes: the sender has to split it.
    fn encode(&self) -> Result<Vec<u8>, EncodeError> {
        let (kind, payload) = self.encode_payload();
        let payload = payload.map_err(EncodeError::Json)?;
        if payload.len() > Self::PAYLOAD_LIMIT {
            return Err(EncodeError::TooLarge { bytes: payload.len(), limit: Self::PAYLOAD_LIMIT });
        }
        let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len());
        bytes.extend_from_slice(&[VERSION, kind, 0, 0]);
        bytes.extend_from_slice(&(payload.len() as u32).to_be_bytes());
        bytes.extend_from_slice(&payload);
        Ok(bytes)
    }
}

impl Frame for AgentFrame {
    const PAYLOAD_LIMIT: usize = AGENT_PAYLOAD_LIMIT;

    fn encode_payload(&self) -> (u8, serde_json::Result<Vec<u8>>) {
        match self {
            Self::Hello(frame) => (kind::HELLO, serde_json::to_vec(frame)),
            Self::Report(frame) => (kind::REPORT, serde_json::to_vec(frame)),
            Self::Totals(frame) => (kind::TOTALS, serde_json::to_vec(frame)),
            Self::CheckResults(frame) => (kind::CHECK_RESULTS, serde_json::to_vec(frame)),
            Self::Meshed(frame) => (kind::MESHED, serde_json::to_vec(frame)),
        }
    }

    fn decode_payload(kind: u8, payload: &[u8]) -> Option<serde_json::Result<Self>> {
        Some(match kind {
            kind::HELLO => json(payload).map(Self::Hello),
            kind::REPORT => json(payload).map(Self::Report),
            kind::TOTALS => json(payload).map(Self::Totals),
            kind::CHECK_RESULTS => json(payload).map(Self::CheckResults),
            kind::MESHED => json(payload).map(Self::Meshed),
            _ => return None,
        })
    }
}

impl Frame for ControllerFrame {
    const PAYLOAD_LIMIT: usize = CONTROLLER_PAYLOAD_LIMIT;

    fn encode_payload(&self) -> (u8, serde_json::Result<Vec<u8>>) {
        match self {
            Self::Checks(frame) => (kind::CHECKS, serde_json::to_vec(frame)),
            Self::Split(frame) => (kind::SPLIT, serde_json::to_vec(frame)),
            Self::SplitGone(frame) => (kind::SPLIT_GONE, serde_json::to_vec(frame)),
            Self::SplitsSent(frame) => (kind::SPLITS_SENT, serde_json::to_vec(frame)),
        }
    }

    fn decode_payload(kind: u8, payload: &[u8]) -> Option<serde_json::Result<Self>> {
        Some(match kind {
            kind::CHECKS => json(payload).map(Self::Checks),
            kind::SPLIT => json(payload).map(Self::Split),
            kind::SPLIT_GONE => json(payload).map(Self::SplitGone),
            kind::SPLITS_SENT => json(payload).map(Self::SplitsSent),
            _ => return None,
        })
    }
}

fn json<T: DeserializeOwned>(payload: &[u8]) -> serde_json::Result<T> {
    serde_json::from_slice(payload)
}

/// Why a frame could not be encoded.
#[derive(Debug)]
pub enum EncodeError {
    /// Larger than its receiver takes.
    TooLarge {
        /// Its size.
        bytes: usize,
        /// [`Frame::PAYLOAD_LIMIT`].
        limit: usize,
    },
    /// Not representable; a bug of this crate's types.
    Json(serde_json::Error),
}

/// Why a stream's bytes could not be read. The first three end the stream: what follows cannot be found.
#[derive(Debug)]
pub enum DecodeError {
    /// The peer speaks another version.
    Version(u8),
    /// The peer announced a payload over the limit.
    TooLarge {
        /// Announced.
        bytes: usize,
        /// [`Frame::PAYLOAD_LIMIT`].
        limit: usize,
    },
    /// The stream ended within a frame.
    Truncated {
        /// Bytes of the unfinished frame that were there.
        bytes: usize,
    },
    /// A payload of a known kind that is not what its kind says. The frame is passed over; the stream goes on.
    Payload {
        /// The header's.
        kind: u8,
        /// What is wrong, with the field.
        error: serde_json::Error,
    },
}

impl DecodeError {
    /// Whether the stream has to end.
    #[must_use]
    pub const fn is_fatal(&self) -> bool {
        match self {
            Self::Version(_) | Self::TooLarge { .. } | Self::Truncated { .. } => true,
            Self::Payload { .. } => false,
        }
    }
}

impl fmt::Display for EncodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge { bytes, limit } => {
                write!(f, "frame of {bytes} bytes is over its receiver's limit of {limit}")
            }
            Self::Json(error) => write!(f, "frame cannot be written as JSON: {error}"),
        }
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(version) => write!(f, "peer speaks frame version {version}, this build speaks {VERSION}"),
            Self::TooLarge { bytes, limit } => {
                write!(f, "peer announced a frame of {bytes} bytes, the limit is {limit}")
            }
            Self::Truncated { bytes } => write!(f, "stream ended {bytes} bytes into a frame"),
            Self::Payload { kind, error } => write!(f, "frame of kind {kind} cannot be read: {error}"),
        }
    }
}

impl core::error::Error for EncodeError {}
impl core::error::Error for DecodeError {}

/// One step of a [`Decoder`].
#[derive(Debug, PartialEq, Eq)]
pub enum Decoded<F> {
    /// A frame.
    Frame(F),
    /// A frame of a kind that this build does not know was passed over.
    Skipped {
        /// The header's.
        kind: u8,
    },
}

/// Cuts a byte stream into frames. Holds at most one frame of [`Frame::PAYLOAD_LIMIT`] plus what one read brought.
#[derive(Debug)]
pub struct Decoder<F> {
    buffer: Vec<u8>,
    consumed: usize,
    direction: core::marker::PhantomData<F>,
}

impl<F> Default for Decoder<F> {
    fn default() -> Self {
        Self { buffer: Vec::new(), consumed: 0, direction: core::marker::PhantomData }
    }
}

impl<F: Frame> Decoder<F> {
    /// Takes what a read brought.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.consumed > 0 {
            self.buffer.drain(..self.consumed);
            self.consumed = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, or `None` when more bytes are needed.
    ///
    /// # Errors
    ///
    /// [`DecodeError`]; after one that [is fatal](DecodeError::is_fatal) the decoder is of no more use.
    pub fn next_frame(&mut self) -> Result<Option<Decoded<F>>, DecodeError> {
        let rest = &self.buffer[self.consumed..];
        let Some((header, rest)) = rest.split_first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let [version, kind, _, _, length @ ..] = *header;
        if version != VERSION {
            return Err(DecodeError::Version(version));
        }
        let length = u32::from_be_bytes(length) as usize;
        if length > F::PAYLOAD_LIMIT {
            return Err(DecodeError::TooLarge { bytes: length, limit: F::PAYLOAD_LIMIT });
        }
        let Some(payload) = rest.get(..length) else { return Ok(None) };
        let decoded = F::decode_payload(kind, payload);
        self.consumed += HEADER_BYTES + length;
        match decoded {
            None => Ok(Some(Decoded::Skipped { kind })),
            Some(Ok(frame)) => Ok(Some(Decoded::Frame(frame))),
            Some(Err(error)) => Err(DecodeError::Payload { kind, error }),
        }
    }

    /// To be called when the stream ended in good order.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Truncated`] when it ended within a frame.
    pub fn finish(&self) -> Result<(), DecodeError> {
        match self.buffer.len() - self.consumed {
            0 => Ok(()),
            bytes => Err(DecodeError::Truncated { bytes }),
        }
    }
}

impl Row {
    /// A row in which nothing happened.
    #[must_use]
    pub const fn empty(to: Destination, from_ns: u64, to_ns: u64) -> Self {
        Self {
            to,
            self_hop: false,
            from_ns,
            to_ns,
            attempts: 0,
            established: 0,
            established_ns: None,
            refused: 0,
            unreachable: 0,
            late: 0,
            recovered: 0,
            cancelled: 0,
            answered: 0,
            reset: 0,
            clients: 0,
            first: None,
        }
    }

    /// Attempts that failed, whatever the cause.
    #[must_use]
    pub const fn failed(&self) -> u64 {
        self.refused.saturating_add(self.unreachable).saturating_add(self.late)
    }

    /// Whether nothing in it needs to be told.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.attempts == 0
            && self.established == 0
            && self.failed() == 0
            && self.recovered == 0
            && self.cancelled == 0
            && self.answered == 0
            && self.reset == 0
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde's skip_serializing_if asks for")]
const fn is_false(value: &bool) -> bool {
    !*value
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde's skip_serializing_if asks for")]
const fn is_zero(value: &u64) -> bool {
    *value == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde's skip_serializing_if asks for")]
const fn is_zero32(value: &u32) -> bool {
    *value == 0
}

#[cfg(test)]
mod tests {
    use alloc::{string::ToString, vec};

    use super::*;

    fn mk_report(rows: usize) -> AgentFrame {
        let to = Destination::from(([0x2001, 0xdb8, 0xffff, 0xffff, 0xffff, 0xffff, 0xffff, 0xffff], 65535));
        let row = Row {
            attempts: u64::MAX,
            first: Some(First { started_ns: u64::MAX, failed_ns: u64::MAX }),
            ..Row::empty(to, 1 << 60, 1 << 60)
        };
        AgentFrame::Report(Report { seq: 7, rows: vec![row; rows], ..Report::default() })
    }

    fn decode_all(bytes: &[u8], step: usize) -> Vec<Decoded<AgentFrame>> {
        let mut decoder = Decoder::default();
        let mut frames = Vec::new();
        for chunk in bytes.chunks(step) {
            decoder.push(chunk);
            while let Some(frame) = decoder.next_frame().expect("decodes") {
                frames.push(frame);
            }
        }
        decoder.finish().expect("ends between frames");
        frames
    }

    #[test]
    fn frames_survive_any_cutting_of_the_stream() {
        let frames = [mk_report(0), mk_report(3), mk_report(1)];
        let bytes: Vec<u8> = frames.iter().flat_map(|frame| frame.encode().expect("encodes")).collect();
        for step in [1, 2, 7, 8, 9, 100, bytes.len()] {
            let decoded: Vec<_> = decode_all(&bytes, step);
            assert_eq!(
                decoded,
                frames.iter().cloned().map(Decoded::Frame).collect::<Vec<_>>(),
                "cut every {step} bytes"
            );
        }
    }

    #[test]
    fn a_full_report_fits_the_limit() {
        let encoded = mk_report(REPORT_ROWS_LIMIT).encode().expect("fits");
        assert!(encoded.len() <= AGENT_PAYLOAD_LIMIT + HEADER_BYTES);
        assert!(matches!(mk_report(2000).encode(), Err(EncodeError::TooLarge { .. })));
    }

    #[test]
    fn an_unknown_kind_is_skipped_and_what_follows_is_read() {
        let mut bytes = vec![VERSION, 77, 0, 0, 0, 0, 0, 3, b'x', b'y', b'z'];
        bytes.extend(mk_report(1).encode().expect("encodes"));
        assert_eq!(decode_all(&bytes, 5), vec![Decoded::Skipped { kind: 77 }, Decoded::Frame(mk_report(1))]);
    }

    #[test]
    fn an_unknown_field_is_ignored_and_a_missing_new_one_has_its_default() {
        let payload = br#"{"seq":3,"now_ns":5,"from_a_newer_release":{"a":[1]}}"#;
        let decoded = AgentFrame::decode_payload(kind::REPORT, payload).expect("known kind").expect("reads");
        assert_eq!(decoded, AgentFrame::Report(Report { seq: 3, now_ns: 5, ..Report::default() }));
    }

    #[test]
    fn a_bad_payload_costs_its_own_frame_only() {
        let mut bytes = vec![VERSION, kind::REPORT, 0, 0, 0, 0, 0, 2, b'n', b'o'];
        bytes.extend(mk_report(1).encode().expect("encodes"));
        let mut decoder = Decoder::<AgentFrame>::default();
        decoder.push(&bytes);
        let error = decoder.next_frame().expect_err("not JSON");
        assert!(!error.is_fatal());
        assert!(error.to_string().starts_with("frame of kind 2 cannot be read"), "{error}");
        assert_eq!(decoder.next_frame().expect("reads on"), Some(Decoded::Frame(mk_report(1))));
    }

    #[test]
    fn what_cannot_be_followed_ends_the_stream() {
        let check = |bytes: &[u8], expected: &str| {
            let mut decoder = Decoder::<AgentFrame>::default();
            decoder.push(bytes);
            let error = match decoder.next_frame() {
                Err(error) => error,
                Ok(frame) => {
                    assert_eq!(frame, None);
                    decoder.finish().expect_err("truncated")
                }
            };
            assert!(error.is_fatal());
            assert_eq!(error.to_string(), expected);
        };
        check(&[2, 1, 0, 0, 0, 0, 0, 0], "peer speaks frame version 2, this build speaks 1");
        check(&[1, 1, 0, 0, 0, 1, 0, 1], "peer announced a frame of 65537 bytes, the limit is 65536");
        check(&[1, 1, 0, 0, 0, 0, 0, 9, b'{'], "stream ended 9 bytes into a frame");
    }
}
