//! Splitsecond's node agent, as a library for its binary and its tests.

pub mod agent;
pub mod backoff;
pub mod budget;
pub mod check;
pub mod cluster;
pub mod config;
pub mod directory;
pub mod index;
pub mod kernel;
pub mod report;
pub mod resolve;
pub mod tally;
pub mod uplink;
