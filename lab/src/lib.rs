//! Drills: network namespaces as nodes, an in-process API server, faults, load and the measurement of what followed.
//! In: a scenario and its settings. Out: a verdict and its figures. The lab touches only what it made itself, and the
//! product under test never learns that it runs here.

pub mod apiserver;
pub mod bench;
pub mod drill;
pub mod load;
pub mod world;
