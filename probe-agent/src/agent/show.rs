//! What the loop publishes: signs of life to the controllers, figures, readiness and `/state`.
//!
//! In: the agent as it stands. Out: flushed outboxes, metrics, the parts of the admin surface. It changes nothing of what
//! the agent does, but for the losses that reports have to admit.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use probe_common::abi::Loss;

use super::surface::Names;
use super::{Agent, Sight, metrics};
use crate::config::Controllers;
use crate::index::Tier;
use crate::resolve::{Kind, Resolver};

impl Agent {
    pub(super) fn flush(&mut self) {
        let now_ns = (self.clock)();
        let lost_events = self.read_losses();
        self.links.flush(now_ns, lost_events);
        if let Sight::Blind { retry_ns: Some(retry_ns), .. } = self.sight
            && retry_ns <= now_ns
        {
            self.open_eyes();
        }
        self.measure();
        let unready = self.unready();
        let mut parts = self.shown.parts();
        parts.now_ns = now_ns;
        parts.blind = match &self.sight {
            Sight::Counting(_) => None,
            Sight::Blind { reason, .. } => Some(reason.clone()),
        };
        parts.unready = unready;
        parts.controllers = self.links.standings();
        parts.watches.clone_from(&self.watches);
        parts.losses = self.losses;
        parts.meshed.clone_from(&self.mesh.endpoints);
    }

    /// Events lost since the flush before.
    fn read_losses(&mut self) -> u64 {
        let Sight::Counting(ledger) = &self.sight else { return 0 };
        let probe = ledger.counters();
        let now = match probe.losses().and_then(|losses| Ok((losses, probe.recursion_misses()?))) {
            Ok(now) => now,
            Err(error) => {
                self.on_read(Some(error));
                return 0;
            }
        };
        let lost =
            |of: &([u64; Loss::COUNT], u64)| of.0[Loss::RingFull as usize] + of.0[Loss::NoStorage as usize] + of.1;
        let lost_events = lost(&now).saturating_sub(lost(&self.losses));
        self.losses = now;
        lost_events
    }

    fn measure(&mut self) {
        self.links.measure(&self.metrics);
        self.metrics.splits.set(self.resolver.splits() as i64);
        let Sight::Counting(ledger) = &self.sight else {
            self.metrics.probe_attached.set(0);
            return;
        };
        self.metrics.probe_attached.set(1);
        if self.has_counted {
            self.metrics.set_sums(&ledger.sums());
        }
        self.metrics.set_losses(&self.losses.0, self.losses.1);
        self.metrics.unplaced.set(ledger.waiting() as i64);
        self.metrics.meshed.set(self.mesh.endpoints.len() as i64);
        self.metrics.proxy_spaces.set(self.mesh.spaces as i64);
        for tier in Tier::ALL {
            let label = metrics::tier(tier);
            self.metrics.destinations.get_or_create(&label).set(i64::from(ledger.in_use(tier)));
            metrics::set(&self.metrics.map_full.get_or_create(&label), ledger.map_full(tier));
        }
    }

    /// Everything that keeps this agent from doing all of its work.
    fn unready(&self) -> Vec<String> {
        let mut unready = Vec::new();
        if let Sight::Blind { reason, .. } = &self.sight {
            unready.push(format!("blind: {reason}"));
        }
        for kind in Kind::ALL {
            if !self.complete.contains(&kind) {
                let error = self.watches.get(kind.as_str()).or_else(|| self.watches.get("configuration"));
                let error = error.map_or(String::new(), |error| format!(": {error}"));
                unready.push(format!("{}s are not listed yet{error}", kind.as_str()));
            }
        }
        if self.config.controllers != Controllers::None && self.links.up() == 0 {
            unready.push("no controller answers".to_owned());
        }
        unready
    }

    pub(super) fn show_destinations(&mut self) {
        let Sight::Counting(ledger) = &self.sight else {
            self.shown.parts().destinations.clear();
            return;
        };
        // Cold sums change without a word; and what was counted since the last flush must not be forgotten below.
        self.metrics.set_sums(&ledger.sums());
        let is_known = self.names_revision == Some(self.resolver.revision());
        if is_known && !std::mem::take(&mut self.has_counted) {
            return;
        }
        if !is_known {
            self.names_revision = Some(self.resolver.revision());
            self.names = names(&self.resolver);
        }
        let views = ledger.hot_views().into_iter();
        let destinations = views.map(|view| (view, self.names.get(&view.to).cloned().unwrap_or_default())).collect();
        let mut parts = self.shown.parts();
        parts.destinations = destinations;
        parts.cold = ledger.in_use(Tier::Cold);
        parts.waiting = ledger.waiting();
    }
}

/// The Services and backends of every hot destination.
fn names(resolver: &Resolver) -> BTreeMap<SocketAddr, Arc<Names>> {
    let named = resolver.backends().into_iter().map(|(to, backends)| {
        let services = resolver.services_of(to).into_iter();
        let services = services.map(|service| format!("{}/{}", service.namespace, service.name)).collect();
        (to, Arc::new(Names { services, backends: backends.into_iter().collect() }))
    });
    named.collect()
}
