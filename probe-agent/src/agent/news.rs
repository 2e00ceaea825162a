//! What the loop is told: by the watches, by the controllers, by the checks.
//!
//! In: news. Out: calls of the modules that it concerns, transitions and logs. What is to be counted from now on is written
//! into the probe by the loop's next turn.

use std::net::SocketAddr;

use probe_common::wire::{CheckOutcome, CheckRequest, CheckResult, ControllerFrame};

use super::transitions::Transition;
use super::{Agent, Sight, TRIM_PAUSE_NS};
use crate::cluster::{self, chain};
use crate::uplink;

impl Agent {
    pub(super) fn on_cluster_news(&mut self, news: cluster::News) {
        if let Some(directory) = &mut self.directory
            && directory.on_news(&news)
        {
            let controllers = directory.controllers();
            self.links.keep(&controllers, &mut self.tasks);
            self.resolver.retain_controllers(&controllers);
        }
        match news {
            cluster::News::ListBegin(kind) => self.resolver.on_list_begin(kind),
            cluster::News::Object(kind, name, addresses) => self.resolver.on_object(kind, &name, &addresses),
            cluster::News::Gone(kind, name) => self.resolver.on_gone(kind, name),
            cluster::News::ListComplete(kind) => {
                tracing::info!(kind = kind.as_str(), "List complete");
                self.resolver.on_list_complete(kind);
                self.complete.insert(kind);
                self.trim_ns = Some((self.clock)() + TRIM_PAUSE_NS);
                self.watches.remove(kind.as_str());
                self.watches.remove("configuration");
                self.metrics.watch_complete.get_or_create(&[("kind", kind.as_str())]).set(1);
            }
            cluster::News::Undecodable(kind, name, error) => {
                tracing::warn!(namespace = name.namespace, name = name.name, error, "Object cannot be decoded");
                self.metrics.objects_undecodable.get_or_create(&[("kind", kind.as_str())]).inc();
            }
            cluster::News::Failed(kind, error) => {
                tracing::warn!(kind = kind.as_str(), error, "Watch failed");
                self.metrics.watch_errors.get_or_create(&[("kind", kind.as_str())]).inc();
                self.watches.insert(kind.as_str(), error);
            }
            cluster::News::Unconfigured(error) => {
                tracing::warn!(error, "API server cannot be reached");
                self.watches.insert("configuration", error);
            }
        }
    }

    pub(super) fn on_stream_news(&mut self, controller: SocketAddr, news: uplink::News) {
        let at_ns = (self.clock)();
        match news {
            uplink::News::Up => {
                if self.links.on_up(controller) {
                    tracing::info!(%controller, "Stream is up");
                    self.resolver.on_stream(controller);
                    self.note(Transition::StreamUp { at_ns, controller });
                }
            }
            uplink::News::Frame(frame) => self.on_frame(controller, frame),
            uplink::News::Skipped { kind, reason } => {
                self.metrics.frames_skipped.inc();
                // A controller of another release may send many of a kind: one word about it is enough.
                if self.links.is_first_skipped(controller, kind) {
                    tracing::warn!(%controller, reason, "Frame passed over");
                } else {
                    tracing::debug!(%controller, reason, "Frame passed over");
                }
            }
            uplink::News::Down(error) => {
                self.metrics.stream_ends.inc();
                let reason = chain(&error);
                if self.links.on_down(controller, &reason) {
                    tracing::warn!(%controller, error = reason, "Stream ended");
                    self.note(Transition::StreamDown { at_ns, controller, reason });
                } else {
                    tracing::debug!(%controller, error = reason, "Stream did not come about");
                }
            }
        }
    }

    fn on_frame(&mut self, controller: SocketAddr, frame: ControllerFrame) {
        match frame {
            ControllerFrame::Checks(request) => self.on_checks(request),
            ControllerFrame::Split(split) => self.resolver.on_split(controller, split),
            ControllerFrame::SplitGone(gone) => self.resolver.on_split_gone(controller, gone),
            ControllerFrame::SplitsSent(_) => {
                self.resolver.on_splits_sent(controller);
                if let Some(directory) = &self.directory {
                    self.resolver.retain_controllers(&directory.controllers());
                }
                // Its destinations have to be counted before their history is told.
                self.apply_changes();
                self.read_mesh();
                let totals = match &self.sight {
                    Sight::Counting(ledger) => ledger.totals(None),
                    Sight::Blind { .. } => Vec::new(),
                };
                self.links.on_splits_sent(controller, &self.mesh.endpoints, totals);
            }
        }
    }

    fn on_checks(&mut self, request: CheckRequest) {
        let Err(refused) = self.checks.requests.try_send(request) else { return };
        let request = refused.into_inner();
        let now_ns = (self.clock)();
        for target in request.targets {
            let outcome = CheckOutcome::NotMade;
            let result = CheckResult { id: request.id, to: target.to, started_ns: now_ns, ended_ns: now_ns, outcome };
            self.on_result(&result);
        }
    }

    pub(super) fn on_result(&mut self, result: &CheckResult) {
        self.metrics.on_check(result.outcome);
        if let (CheckOutcome::Passed, Sight::Counting(ledger)) = (result.outcome, &mut self.sight) {
            ledger.note_check_passed(result.to, result.ended_ns);
        }
        self.links.push_result(result, (self.clock)(), &self.metrics);
    }
}
