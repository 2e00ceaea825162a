//! Splitsecond's node agent, as a library for its binary and its tests.

pub mod kernel;
