//! Splitsecond's node agent, as a library for its binary and its tests.

pub mod budget;
pub mod index;
pub mod kernel;
pub mod report;
pub mod tally;
