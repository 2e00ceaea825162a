//! The command and the manifests against the real binaries: a controller's process, an agent's process, and the embedded API
//! server between them; `kubectl kustomize` renders what is shipped. No cluster; what needs root is ignored here.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, also in the functions that its steps share")]

#[path = "cluster/agent.rs"]
mod agent;
#[path = "cluster/bench.rs"]
mod bench;
#[path = "cluster/documents.rs"]
mod documents;
#[path = "cluster/flags.rs"]
mod flags;
#[path = "cluster/joins.rs"]
mod joins;
#[path = "cluster/operator.rs"]
mod operator;
#[path = "cluster/programs.rs"]
mod programs;
#[path = "cluster/rights.rs"]
mod rights;
#[path = "cluster/schema.rs"]
mod schema;
