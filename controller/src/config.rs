//! The controller's settings: what it is started with, checked as a whole.
//!
//! In: arguments and their environment twins. Out: [`Settings`], or every fault at once. Deliberately no file and no
//! reload: a Deployment's arguments are its configuration, and changing them restarts it.

mod cidr;
pub(crate) mod span;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use controller_core::config::Mode;

pub(crate) use cidr::Cidr;

/// Longest span that any setting may have: a longer one is a unit mixed up.
const SPAN_LIMIT: Duration = Duration::from_secs(24 * 3600);

/// Without a TLS identity only this machine is believed, unless addresses are named.
const DEFAULT_INGEST_ADDR: &str = "127.0.0.1:9443";

/// Our own lines from `info`; the Kubernetes client's are left out, because every error of it is logged by the module
/// that asked, with the object it was about.
const DEFAULT_LOG_LEVEL: &str = "info,kube_client=off,kube_runtime=off,tower=off";

/// The arguments as they were written. Values stay text here, so that all faults can be told together.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "splitsecond-controller",
    version,
    about = "Fuses the agents' reports and drives TrafficSplit weights"
)]
pub(crate) struct Args {
    /// `enforce` writes weights; `observe` decides and records everything, and writes nothing
    #[arg(long, env = "SPLITSECOND_MODE", default_value = "enforce")]
    mode: String,

    /// Label selector of the TrafficSplits to drive. Splits that stop matching are left as they are
    #[arg(short = 'l', long, env = "SPLITSECOND_SELECTOR", default_value = "failover.linkerd.io/controlled-by")]
    selector: String,

    /// Where /live, /ready, /metrics and /state are served. /state shows every tenant: keep others out by network policy
    #[arg(long, env = "SPLITSECOND_ADMIN_ADDR", default_value = "0.0.0.0:8080")]
    admin_addr: String,

    /// Where agents are listened to. Anything but a loopback address needs --insecure-ingest-from
    #[arg(long, env = "SPLITSECOND_INGEST_ADDR", default_value = DEFAULT_INGEST_ADDR)]
    ingest_addr: String,

    /// Addresses that may send reports without TLS, beside loopback, such as 198.18.0.0/15. May be repeated. Whoever has
    /// such an address can speak for any node; connections from elsewhere are refused before a byte is read
    #[arg(long, value_name = "CIDR", env = "SPLITSECOND_INSECURE_INGEST_FROM", value_delimiter = ',')]
    insecure_ingest_from: Vec<String>,

    /// Our own namespace, where the headless Service `splitsecond-agent` says which nodes have an agent
    #[arg(long, env = "SPLITSECOND_NAMESPACE", default_value = "splitsecond")]
    namespace: String,

    /// How long a failover caused by connections lasts at least; each further one without a quiet hour doubles it, up to
    /// --dwell-max. 1s to 1h is sane: below it a flapping backend makes weights flap
    #[arg(long, env = "SPLITSECOND_DWELL", default_value = "30s")]
    dwell: String,

    /// The longest dwell; at least --dwell. 5m to 1h is sane
    #[arg(long, env = "SPLITSECOND_DWELL_MAX", default_value = "15m")]
    dwell_max: String,

    /// How long readiness has to hold before a move that readiness alone caused goes back. 1s to 1m is sane
    #[arg(long, env = "SPLITSECOND_READINESS_HOLD", default_value = "5s")]
    readiness_hold: String,

    /// Shares of the primary on the way back, in thousandths, rising, before its whole weight; `none` goes back at once
    #[arg(long, env = "SPLITSECOND_RAMP", default_value = "50,250,500")]
    ramp: String,

    /// How long each step of --ramp lasts. 1s to 5m is sane: shorter than it takes to see a step fail is no ramp
    #[arg(long, env = "SPLITSECOND_RAMP_STEP", default_value = "5s")]
    ramp_step: String,

    /// Straight successful checks of the primary before the way back begins, over at least --recovery-span. 5 to 100 is
    /// sane
    #[arg(long, env = "SPLITSECOND_RECOVERY_SUCCESSES", default_value = "21")]
    recovery_successes: String,

    /// Over at least how long --recovery-successes have to come. 1s to 1m is sane
    #[arg(long, env = "SPLITSECOND_RECOVERY_SPAN", default_value = "5s")]
    recovery_span: String,

    /// Unrelated backends that fail within this span of each other count against the budget: one may move per span. 0s
    /// switches it off; 1s to 1m is sane
    #[arg(long, env = "SPLITSECOND_GROUP_SPACING", default_value = "10s")]
    group_spacing: String,

    /// At most so many unrelated groups of backends fail over per --group-window. 1 to 10 is sane
    #[arg(long, env = "SPLITSECOND_GROUP_LIMIT", default_value = "3")]
    group_limit: String,

    /// See --group-limit; at least --group-spacing. 1m to 1h is sane
    #[arg(long, env = "SPLITSECOND_GROUP_WINDOW", default_value = "10m")]
    group_window: String,

    /// The set of thresholds to judge by. Only `default` is built yet
    #[arg(long, env = "SPLITSECOND_PROFILE", default_value = "default")]
    profile: String,

    /// A kubeconfig, whose current context is used. Without it: $KUBECONFIG, ~/.kube/config, then the pod's own account
    #[arg(long, env = "SPLITSECOND_KUBECONFIG")]
    kubeconfig: Option<PathBuf>,

    /// What is logged: `error`, `warn`, `info`, `debug`, `trace`, or per module as in `info,splitsecond_controller=debug`
    #[arg(long, env = "SPLITSECOND_LOG", default_value = DEFAULT_LOG_LEVEL)]
    log_level: String,

    /// `plain` for people, `json` for collectors
    #[arg(long, env = "SPLITSECOND_LOG_FORMAT", default_value = "plain")]
    log_format: String,
}

/// What the controller runs with.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// For the judgement.
    pub(crate) core: controller_core::Config,
    /// Label selector of our splits.
    pub(crate) selector: String,
    /// Where the operator's server listens.
    pub(crate) admin_addr: SocketAddr,
    /// Where agents are listened to.
    pub(crate) ingest_addr: SocketAddr,
    /// Whose reports are taken beside loopback's.
    pub(crate) ingest_from: Vec<Cidr>,
    /// Our own namespace.
    pub(crate) namespace: String,
    /// The name of the set of thresholds.
    pub(crate) profile: &'static str,
    /// The kubeconfig to use, if one was named.
    pub(crate) kubeconfig: Option<PathBuf>,
    /// What is logged.
    pub(crate) log_level: String,
    /// How.
    pub(crate) log_format: LogFormat,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogFormat {
    /// For people.
    Plain,
    /// One JSON object a line.
    Json,
}

/// Everything that is wrong with the settings, one sentence each. Whoever started the controller has to change them.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Faults(pub(crate) Vec<String>);

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl Args {
    /// Checks every value and their relations.
    pub(crate) fn settings(self) -> Result<Settings, Faults> {
        let mut reader = Reader::default();
        let core = self.core(&mut reader);
        let ingest_addr = reader.address("--ingest-addr", &self.ingest_addr);
        let ingest_from = reader.blocks("--insecure-ingest-from", &self.insecure_ingest_from);
        if !ingest_addr.ip().is_loopback() && self.insecure_ingest_from.is_empty() {
            reader.fault(format!(
                "--ingest-addr {ingest_addr} would take reports from other machines, and without TLS (not built yet) anyone \
                 could send them: name the addresses to trust with --insecure-ingest-from CIDR, or listen on a loopback \
                 address"
            ));
        }
        let settings = Settings {
            core,
            admin_addr: reader.address("--admin-addr", &self.admin_addr),
            ingest_addr,
            ingest_from,
            profile: reader.one_of("--profile", &self.profile, &[("default", "default")]),
            log_format: reader.one_of(
                "--log-format",
                &self.log_format,
                &[("plain", LogFormat::Plain), ("json", LogFormat::Json)],
            ),
            namespace: reader.name("--namespace", self.namespace),
            selector: self.selector,
            kubeconfig: self.kubeconfig,
            log_level: self.log_level,
        };
        reader.require(!settings.selector.trim().is_empty(), "--selector is empty: it would take every TrafficSplit");
        if let Err(error) = tracing_subscriber::EnvFilter::builder().parse(&settings.log_level) {
            reader.fault(format!("--log-level {:?}: {error}", settings.log_level));
        }
        if reader.faults.is_empty() { Ok(settings) } else { Err(Faults(reader.faults)) }
    }

    fn core(&self, reader: &mut Reader) -> controller_core::Config {
        let ms = Duration::from_millis;
        let core = controller_core::Config {
            mode: reader.one_of("--mode", &self.mode, &[("enforce", Mode::Enforce), ("observe", Mode::Observe)]),
            dwell: reader.span("--dwell", &self.dwell, ms(100)),
            dwell_max: reader.span("--dwell-max", &self.dwell_max, ms(100)),
            readiness_hold: reader.span("--readiness-hold", &self.readiness_hold, Duration::ZERO),
            recovery_successes: reader.count("--recovery-successes", &self.recovery_successes, 1_000),
            recovery_span: reader.span("--recovery-span", &self.recovery_span, Duration::ZERO),
            ramp: reader.ramp("--ramp", &self.ramp),
            ramp_step: reader.span("--ramp-step", &self.ramp_step, ms(100)),
            group_spacing: reader.span("--group-spacing", &self.group_spacing, Duration::ZERO),
            group_limit: reader.count("--group-limit", &self.group_limit, 1_000),
            group_window: reader.span("--group-window", &self.group_window, Duration::ZERO),
            ..controller_core::Config::default()
        };
        reader.require(core.dwell <= core.dwell_max, "--dwell is longer than --dwell-max");
        reader.require(core.group_spacing <= core.group_window, "--group-spacing is longer than --group-window");
        core
    }
}

/// Reads values and remembers what was wrong with them. A value that cannot be read is replaced by one that makes the
/// checks of relations pass, so that one mistake is told once.
#[derive(Default)]
struct Reader {
    faults: Vec<String>,
}

impl Reader {
    fn fault(&mut self, fault: String) {
        self.faults.push(fault);
    }

    fn require(&mut self, holds: bool, fault: &str) {
        if !holds && self.faults.is_empty() {
            self.fault(fault.to_owned());
        }
    }

    fn one_of<T: Copy>(&mut self, option: &str, text: &str, choices: &[(&str, T)]) -> T {
        if let Some((_, value)) = choices.iter().find(|(name, _)| *name == text) {
            return *value;
        }
        let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
        let reason = match (option, text) {
            ("--profile", "fast" | "strict") => "is not built yet".to_owned(),
            _ => format!("is not known: it is one of {}", names.join(", ")),
        };
        self.fault(format!("{option} {text:?} {reason}"));
        choices[0].1
    }

    fn span(&mut self, option: &str, text: &str, least: Duration) -> Duration {
        match span::parse(text) {
            Err(error) => self.fault(format!("{option} {text:?} {error}")),
            Ok(value) if value < least => self.fault(format!("{option} {text:?} is below {}", span::format(least))),
            Ok(value) if value > SPAN_LIMIT => {
                self.fault(format!("{option} {text:?} is above {}", span::format(SPAN_LIMIT)));
            }
            Ok(value) => return value,
        }
        least
    }

    fn count(&mut self, option: &str, text: &str, most: u32) -> u32 {
        let value = text.parse().ok().filter(|value| (1..=most).contains(value));
        value.unwrap_or_else(|| {
            self.fault(format!("{option} {text:?} is not a whole number from 1 to {most}"));
            1
        })
    }

    fn ramp(&mut self, option: &str, text: &str) -> Vec<u16> {
        if text == "none" {
            return Vec::new();
        }
        let shares: Option<Vec<u16>> =
            text.split(',').map(|share| share.trim().parse().ok().filter(|share| (1..1_000).contains(share))).collect();
        match shares {
            Some(shares) if shares.is_sorted_by(|one, next| one < next) => shares,
            _ => {
                self.fault(format!(
                    "{option} {text:?} is not a rising list of thousandths from 1 to 999, nor \"none\""
                ));
                Vec::new()
            }
        }
    }

    fn address(&mut self, option: &str, text: &str) -> SocketAddr {
        text.parse().unwrap_or_else(|_| {
            self.fault(format!("{option} {text:?} is not an address and port, such as 127.0.0.1:9443 or [::1]:9443"));
            SocketAddr::from(([127, 0, 0, 1], 0))
        })
    }

    fn blocks(&mut self, option: &str, texts: &[String]) -> Vec<Cidr> {
        let read = |text: &String| match Cidr::parse(text.trim()) {
            Ok(block) => Some(block),
            Err(error) => {
                self.fault(format!("{option} {text:?} {error}"));
                None
            }
        };
        texts.iter().filter_map(read).collect()
    }

    fn name(&mut self, option: &str, text: String) -> String {
        if !is_label(&text) {
            self.fault(format!(
                "{option} {text:?} is not a Kubernetes name: letters a-z, digits and dashes, at most 63"
            ));
        }
        text
    }
}

/// Whether `text` is a DNS label as Kubernetes takes it for a namespace (RFC 1123).
fn is_label(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !text.is_empty() && text.len() <= 63 && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

#[cfg(test)]
mod tests;
