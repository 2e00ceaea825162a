//! Load: programs that run inside pods and the record of what they saw. In: a [`wire::PodProgram`], orders as JSON lines
//! on standard input. Out: records and replies as JSON lines on standard output. The programs tell what happened to
//! their connections; what that means is judged elsewhere.
//!
//! `splitsecond-lab pod SPEC` becomes one of the programs: it is an inner command of the lab, started by
//! [`crate::world::Pod::spawn`] with a SPEC in JSON, so that both sides share one type.

pub mod outcome;
pub mod records;
pub mod wire;
