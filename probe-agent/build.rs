//! Embeds the probe's object, when there is one: `SPLITSECOND_PROBE_OBJECT`, else `<target>/ebpf/probe.o`, which
//! `cargo xtask build-ebpf` makes. A fresh clone has none and builds all the same; the agent then says that it is blind.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

fn main() {
    println!("cargo::rustc-check-cfg=cfg(probe_object)");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=SPLITSECOND_PROBE_OBJECT");
    match env::var_os("SPLITSECOND_PROBE_OBJECT") {
        Some(object) => {
            let object = PathBuf::from(object);
            assert!(object.is_file(), "SPLITSECOND_PROBE_OBJECT names {}, which is no file", object.display());
            embed(&object);
        }
        None => {
            let Some(target) = target_folder() else { return };
            let folder = target.join("ebpf");
            let object = folder.join("probe.o");
            if object.is_file() {
                embed(&object);
            } else if fs::create_dir_all(&folder).is_ok() {
                // Cargo runs this script at every build while it names a missing file; a folder changes when the file
                // arrives.
                println!("cargo::rerun-if-changed={}", folder.display());
            }
        }
    }
}

fn embed(object: &Path) {
    println!("cargo::rerun-if-changed={}", object.display());
    println!("cargo::rustc-cfg=probe_object");
    println!("cargo::rustc-env=SPLITSECOND_EMBEDDED_PROBE={}", object.display());
}

/// Cargo marks its target folder with a tag file, above the folders of profiles and target triples.
fn target_folder() -> Option<PathBuf> {
    let out = PathBuf::from(env::var_os("OUT_DIR")?);
    out.ancestors().find(|folder| folder.join("CACHEDIR.TAG").is_file()).map(Path::to_owned)
}
