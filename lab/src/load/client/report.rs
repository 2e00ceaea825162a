//! A client's rows on their way to the lab. In: rows. Out: a line each 20 ms. Bounded: what does not fit between two
//! lines is dropped and counted.

use anyhow::{Context, Result};

use crate::load::control;
use crate::load::wire::{Message, Row};

/// Rows between two flushes: at 20 ms this is 200,000 connections a second, far beyond what one process can start.
const MAX_ROWS: usize = 4096;

/// Rows not sent yet, and the names of leaves sent so far.
#[derive(Debug, Default)]
pub(super) struct Report {
    rows: Vec<Row>,
    leaves: Vec<String>,
    lost: u64,
    lost_said: u64,
}

impl Report {
    /// The number of a leaf; announces a new one before any row can use it.
    pub(super) fn leaf(&mut self, name: &str) -> Result<u16> {
        if let Some(index) = self.leaves.iter().position(|known| known == name) {
            return u16::try_from(index).context("more than 65,536 leaves");
        }
        let index = u16::try_from(self.leaves.len()).context("more than 65,536 leaves")?;
        self.leaves.push(name.to_owned());
        control::say(&Message::Leaf { index, name: name.to_owned() })?;
        Ok(index)
    }

    pub(super) fn is(&self, leaf: u16, name: &str) -> bool {
        self.leaves.get(usize::from(leaf)).is_some_and(|known| known == name)
    }

    pub(super) fn push(&mut self, row: Row) {
        if self.rows.len() < MAX_ROWS {
            self.rows.push(row);
        } else {
            self.lost += 1;
        }
    }

    pub(super) fn flush(&mut self) -> Result<()> {
        if !self.rows.is_empty() {
            let rows = std::mem::take(&mut self.rows);
            control::say(&Message::Records { rows })?;
        }
        if self.lost != self.lost_said {
            self.lost_said = self.lost;
            control::say(&Message::Lost { records: self.lost })?;
        }
        Ok(())
    }
}
