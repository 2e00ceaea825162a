//! An open-loop client: starts connections by the clock with exponential gaps, whatever became of the earlier ones, and
//! records each end. In: routes or one address, orders. Out: rows. What a failure means is judged elsewhere.

mod converse;
mod pace;
mod report;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, bail};
use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{MissedTickBehavior, interval, sleep};

use self::converse::Talk;
use self::pace::Pace;
use self::report::Report;
use super::dial::dial;
use super::outcome::Outcome;
use super::route::Routes;
use super::wire::{CONVERSATION, ClientSpec, Conversations, EXTRA_LOOP, Message, Order, Request, Row, Target};
use super::{control, watch as cluster};
use crate::world::clock::now_ns;

/// Connections without an end yet. With a time limit of a second each for handshake and answer this is the bound at
/// 4,000 connections a second to a dead address; beyond it connections are not started and recorded as EMFILE.
const MAX_OUTSTANDING: usize = 8192;
/// Linux's EMFILE.
const TOO_MANY: Outcome = Outcome::Errno(24);
/// How long rows may wait: few lines, and still quick for a drill that watches.
const FLUSH_EVERY: Duration = Duration::from_millis(20);
/// Leaf of connections that were never chosen for one: no weight, or an address that did not answer.
const NO_LEAF: &str = "(none)";

/// Sends until standard input ends.
///
/// # Errors
/// The kubeconfig is unreadable, or the lab does not read any more.
pub async fn run(spec: ClientSpec) -> Result<()> {
    eprintln!("seed {}", spec.seed);
    let mut requests = control::requests()?;
    let (publish, mut routes) = watch::channel(None);
    let mut following = JoinSet::new();
    if let Target::Mesh { kubeconfig, namespace, splits } = spec.target.clone() {
        following.spawn(async move { cluster::follow(&kubeconfig, &namespace, &splits, publish).await });
        while routes.borrow_and_update().is_none() {
            tokio::select! {
                changed = routes.changed() => if changed.is_err() { return watch_ended(following.join_next().await) },
                request = requests.recv() => match request {
                    Some(request) => control::carry_out(request.seq, 0, || bail!("the caches are not complete yet"))?,
                    None => return Ok(()),
                },
            }
        }
    }
    control::say_ready()?;
    let mut client = Client::new(spec, routes);
    let mut flush_tick = interval(FLUSH_EVERY);
    flush_tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let wait_ns = client.next_due_ns().saturating_sub(now_ns());
        tokio::select! {
            biased;
            request = requests.recv() => match request {
                Some(request) => client.carry_out(request)?,
                None => return Ok(()),
            },
            Some(ended) = client.outstanding.join_next() => client.on_end(ended)?,
            row = client.talk.ended() => client.report.push(row?),
            ended = following.join_next(), if !following.is_empty() => return watch_ended(ended),
            _ = flush_tick.tick() => client.flush()?,
            () = sleep(Duration::from_nanos(wait_ns)), if client.is_sending() => client.start_due()?,
        }
    }
}

fn watch_ended(ended: Option<Result<Result<()>, JoinError>>) -> Result<()> {
    match ended {
        Some(Ok(Err(error))) => Err(error.context("cannot follow the split")),
        _ => bail!("the watch of the split ended"),
    }
}

struct Client {
    spec: ClientSpec,
    routes: watch::Receiver<Option<Routes>>,
    rng: SmallRng,
    load: Pace,
    /// The extra loop's address and pace.
    extra: Option<(SocketAddr, Pace)>,
    outstanding: JoinSet<(Row, Option<u8>)>,
    talk: Talk,
    talk_said: Conversations,
    report: Report,
}

impl Client {
    fn new(spec: ClientSpec, routes: watch::Receiver<Option<Routes>>) -> Client {
        let mut rng = SmallRng::seed_from_u64(spec.seed);
        let load = Pace::exponential(spec.rate, now_ns(), &mut rng);
        Client {
            spec,
            routes,
            rng,
            load,
            extra: None,
            outstanding: JoinSet::new(),
            talk: Talk::default(),
            talk_said: Conversations::default(),
            report: Report::default(),
        }
    }

    fn is_sending(&self) -> bool {
        self.next_due_ns() != u64::MAX
    }

    fn next_due_ns(&self) -> u64 {
        let extra = self.extra.as_ref().map_or(u64::MAX, |(_, pace)| pace.due_ns());
        self.load.due_ns().min(extra)
    }

    fn carry_out(&mut self, request: Request) -> Result<()> {
        let outstanding = self.outstanding.len();
        if request.order == Order::Flush {
            self.flush()?;
        }
        let conversation = self.report.leaf(CONVERSATION)?;
        control::carry_out(request.seq, outstanding, || match request.order {
            Order::Rate { per_second } => {
                self.load = Pace::exponential(per_second, now_ns(), &mut self.rng);
                Ok(())
            }
            Order::Loop { address, per_second } => {
                self.extra = (per_second > 0.0).then(|| (address, Pace::steady(per_second, now_ns())));
                Ok(())
            }
            Order::Converse { addresses, connections, every_ms } => {
                let every = Duration::from_millis(u64::from(every_ms));
                self.talk.set(addresses, connections, every, Duration::from_millis(self.spec.timeout_ms), conversation)
            }
            Order::Flush => Ok(()),
            order => bail!("a client cannot carry out {order:?}"),
        })
    }

    fn flush(&mut self) -> Result<()> {
        let talk = self.talk.now();
        if talk != self.talk_said {
            self.talk_said = talk;
            control::say(&Message::Conversations(talk))?;
        }
        self.report.flush()
    }

    /// Starts everything that is due: more than one after a pause of the machine, because the load is open-loop.
    fn start_due(&mut self) -> Result<()> {
        let now = now_ns();
        while self.load.due_ns() <= now {
            self.load.advance(&mut self.rng);
            self.start_one()?;
        }
        while let Some((address, pace)) = self.extra.as_mut().filter(|(_, pace)| pace.due_ns() <= now) {
            pace.advance(&mut self.rng);
            let address = *address;
            let leaf = self.report.leaf(EXTRA_LOOP)?;
            self.start(address, 0, leaf);
        }
        Ok(())
    }

    fn start_one(&mut self) -> Result<()> {
        let (random_split, random_leaf, random_endpoint) =
            (self.rng.next_u64(), self.rng.next_u64(), self.rng.next_u64());
        if let Target::Address { address, .. } = self.spec.target {
            let leaf = self.report.leaf(NO_LEAF)?;
            self.start(address, 0, leaf);
            return Ok(());
        }
        let routes = self.routes.borrow();
        let chosen = routes.as_ref().and_then(|routes| routes.leaf(random_split, random_leaf));
        let leaf = self.report.leaf(chosen.map_or(NO_LEAF, |leaf| &leaf.name))?;
        let dialled = chosen.and_then(|chosen| Some((chosen.endpoint(random_endpoint)?, chosen.first_byte)));
        drop(routes);
        match dialled {
            Some((address, first_byte)) => self.start(address, first_byte, leaf),
            None => self.report.push(Row { start_ns: now_ns(), elapsed_us: 0, leaf, outcome: Outcome::NoEndpoint }),
        }
        Ok(())
    }

    fn start(&mut self, address: SocketAddr, first_byte: u8, leaf: u16) {
        if self.outstanding.len() >= MAX_OUTSTANDING {
            self.report.push(Row { start_ns: now_ns(), elapsed_us: 0, leaf, outcome: TOO_MANY });
            return;
        }
        let limit = Duration::from_millis(self.spec.timeout_ms);
        self.outstanding.spawn(async move {
            let dialled = dial(address, first_byte, limit).await;
            let (start_ns, elapsed_us) = (dialled.start_ns, dialled.elapsed_us);
            (Row { start_ns, elapsed_us, leaf, outcome: dialled.outcome }, dialled.answer)
        });
    }

    fn on_end(&mut self, ended: Result<(Row, Option<u8>), JoinError>) -> Result<()> {
        let Ok((mut row, answer)) = ended else { bail!("a connection's task died") };
        // Only an address without routes leaves the leaf to the answer.
        if let (Target::Address { answers, .. }, Some(answer)) = (&self.spec.target, answer)
            && let Some(name) = answers.get(&answer)
            && !self.report.is(row.leaf, EXTRA_LOOP)
        {
            row.leaf = self.report.leaf(name)?;
        }
        self.report.push(row);
        Ok(())
    }
}
