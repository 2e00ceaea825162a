//! Splitsecond's judgement: what agents and the cluster say goes in, checks to make and weights to write come out.
//!
//! # What is not here
//!
//! No IO, no tasks, no locks, no clock, no floats, no hash order, no randomness, no logging, no error type. The shell
//! that owns a [`Core`] converts, calls [`Core::handle`], drains [`Core::poll`], and calls again at
//! [`Core::deadline`]. Extra calls are harmless. The same inputs at the same times give the same outputs.
//!
//! # How a failure becomes a write
//!
//! Rows of a report become evidence per node and destination ([`evidence`]); a *target*, one port of one Service (or
//! of one gateway that many mirrors share), sums it, turns suspect, has other nodes check it, and is condemned after a
//! last look ([`target`]); a *split* turns its backends' health into weights ([`split`], [`weights`]). [`guard`] names
//! everything that can hold a condemned backend's traffic where it is.
pub mod agents;
pub mod budget;
pub mod config;
pub mod core;
pub mod evidence;
pub mod explain;
pub mod facts;
pub mod guard;
pub mod input;
pub mod output;
pub mod split;
pub mod target;
pub mod time;
pub mod weights;

pub use crate::config::Config;
pub use crate::core::Core;
pub use crate::input::Input;
pub use crate::output::Output;
pub use crate::time::Time;
