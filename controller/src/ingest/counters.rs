//! What the ingest counts.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// One label from a closed set.
type Label = [(&'static str, &'static str); 1];

/// See the file's header.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counters {
    streams: Gauge,
    frames: Family<Label, Counter>,
    skipped: Counter,
    faults: Family<Label, Counter>,
    delayed: Counter,
    sent: Counter,
    unsendable: Counter,
}

impl Counters {
    /// Registers every family.
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register("streams", "Agent streams that have said Hello", self.streams.clone());
        registry.register("frames", "Frames taken from agents", self.frames.clone());
        registry.register(
            "frames_skipped",
            "Frames from agents of a kind that this build does not know",
            self.skipped.clone(),
        );
        registry.register("frames_delayed", "Frames of agents that sent more than 250 a second", self.delayed.clone());
        registry.register("frames_sent", "Frames sent to agents", self.sent.clone());
        registry.register(
            "frames_unsendable",
            "Frames for agents over their receiver's limit",
            self.unsendable.clone(),
        );
        registry.register("ingest_faults", "Connections, streams and frames of agents not taken", self.faults.clone());
    }

    pub(super) fn stream_began(&self) {
        self.streams.inc();
    }

    pub(super) fn stream_ended(&self) {
        self.streams.dec();
    }

    pub(super) fn frame(&self, kind: &'static str) {
        self.frames.get_or_create(&[("kind", kind)]).inc();
    }

    pub(super) fn skipped(&self) {
        self.skipped.inc();
    }

    pub(super) fn delayed(&self) {
        self.delayed.inc();
    }

    pub(super) fn sent(&self) {
        self.sent.inc();
    }

    pub(super) fn unsendable(&self) {
        self.unsendable.inc();
    }

    pub(super) fn fault(&self, kind: &'static str) {
        self.faults.get_or_create(&[("kind", kind)]).inc();
    }

    /// How often a fault was counted.
    #[cfg(test)]
    pub(super) fn faults_of(&self, kind: &'static str) -> u64 {
        self.faults.get_or_create(&[("kind", kind)]).get()
    }

    /// How many frames of an unknown kind came.
    #[cfg(test)]
    pub(super) fn skipped_frames(&self) -> u64 {
        self.skipped.get()
    }

    /// How many frames came too fast.
    #[cfg(test)]
    pub(super) fn delayed_frames(&self) -> u64 {
        self.delayed.get()
    }
}
