//! Who owns which names. In: a wish for an id. Out: an id that no living world has, held by a locked file for as long
//! as this process lives, however it ends. Sweeping takes over the claims of the dead.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::clock::now_ns;

/// Locks and default run directories of all worlds of this machine.
pub(crate) const DIRECTORY: &str = "/run/splitsecond-lab";
/// Four of 36 characters: 1.7 million ids, and room for eight more characters in an interface's name.
const ID_LENGTH: usize = 4;
const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
/// Draws before giving up; with fewer than a thousand living worlds even two in a row collide once in a million.
const DRAWS: usize = 20;

/// The right to the names that start with `ss<id>`.
#[derive(Debug)]
pub(crate) struct Claim {
    /// `ss` and the id.
    prefix: String,
    path: PathBuf,
    /// The kernel drops the lock with the process, also after SIGKILL; children do not inherit the descriptor.
    _lock: File,
}

impl Claim {
    /// Claims the wished id, or a random one.
    ///
    /// # Errors
    /// The wished id is malformed or belongs to a living process.
    pub(crate) fn take(wish: Option<&str>) -> Result<Claim> {
        fs::create_dir_all(DIRECTORY).with_context(|| format!("cannot create {DIRECTORY}"))?;
        if let Some(id) = wish {
            let fits = id.len() == ID_LENGTH && id.bytes().all(|byte| ALPHABET.contains(&byte));
            ensure!(fits, "{id:?} is not an id of {ID_LENGTH} lowercase letters or digits");
            return Claim::try_prefix(&format!("ss{id}"))?.with_context(|| format!("the id {id} is in use"));
        }
        // Ids need to differ, not to be secret; a collision is found by the lock.
        let mut rng = SmallRng::seed_from_u64(now_ns() ^ (u64::from(std::process::id()) << 32));
        for _ in 0..DRAWS {
            let id: String =
                (0..ID_LENGTH).map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())])).collect();
            let path = lock_path(&format!("ss{id}"));
            if path.exists() {
                continue;
            }
            if let Some(claim) = Claim::try_prefix(&format!("ss{id}"))? {
                return Ok(claim);
            }
        }
        bail!("no free id in {DRAWS} draws: is {DIRECTORY} full of leftovers?")
    }

    /// None when a living process holds it, or removed it meanwhile.
    pub(crate) fn try_prefix(prefix: &str) -> Result<Option<Claim>> {
        let path = lock_path(prefix);
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        if lock.try_lock().is_err() {
            return Ok(None);
        }
        // Between our open and our lock the former owner may have unlinked the file: then the lock guards nothing.
        let ours = lock.metadata().context("cannot stat our own lock")?.ino();
        let same = fs::metadata(&path).is_ok_and(|metadata| metadata.ino() == ours);
        Ok(same.then(|| Claim { prefix: prefix.to_owned(), path, _lock: lock }))
    }

    /// Prefixes with a lock file, of the living and of the dead.
    pub(crate) fn prefixes() -> Vec<String> {
        let Ok(entries) = fs::read_dir(DIRECTORY) else {
            return Vec::new();
        };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut prefixes: Vec<String> = names
            .filter_map(|name| name.strip_suffix(".lock").map(str::to_owned))
            .filter(|name| is_prefix(name))
            .collect();
        prefixes.sort();
        prefixes
    }

    /// `ss` and the id: what all names of this world start with.
    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Where logs go when the caller names no place.
    pub(crate) fn default_run_dir(&self) -> PathBuf {
        Path::new(DIRECTORY).join(&self.prefix)
    }

    /// Gives the id back. Only after everything with the prefix is gone.
    pub(crate) fn release(self) -> Result<()> {
        fs::remove_file(&self.path).with_context(|| format!("cannot remove {}", self.path.display()))
    }
}

fn is_prefix(name: &str) -> bool {
    let id = name.strip_prefix("ss").unwrap_or_default();
    id.len() == ID_LENGTH && id.bytes().all(|byte| ALPHABET.contains(&byte))
}

fn lock_path(prefix: &str) -> PathBuf {
    Path::new(DIRECTORY).join(format!("{prefix}.lock"))
}
