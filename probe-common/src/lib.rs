//! The contracts between Splitsecond's stages, one feature each, none on by default:
//!
//! - [`cause`]: why a connection attempt failed, the one enum that every stage matches exhaustively;
//! - [`abi`] (`abi`, `user`): what the kernel programs and the agent share, map by map;
//! - [`wire`] (`wire`): what agent and controller say to each other;
//! - [`admin`] (`admin`): what both say to their operator.
//!
//! There is no logic here beyond encoding, decoding and the arithmetic that both sides of a contract must share.
#![cfg_attr(not(any(feature = "admin", feature = "user", test)), no_std)]
#![warn(missing_docs)]

#[cfg(feature = "wire")]
extern crate alloc;

pub mod cause;

#[cfg(feature = "abi")]
pub mod abi;
#[cfg(feature = "admin")]
pub mod admin;
#[cfg(feature = "wire")]
pub mod wire;
