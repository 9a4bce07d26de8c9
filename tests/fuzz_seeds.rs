//! The fuzz targets, without a fuzzer: each takes its seeds, every beginning of them, and seeds with a byte changed.
//!
//! `scripts/fuzz` gives the same functions to libFuzzer, minutes each in the long run. Here they are compiled and shown to hold for
//! what is known, which includes whatever a fuzzer has ever found.

#[path = "../fuzz/src/lib.rs"]
mod fuzz;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Of each seed: enough to meet the branches beside it, few enough for a second in all.
const CHANGES: usize = 12;

fn directory(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(name)
}

fn names(directory: &Path) -> BTreeSet<String> {
    let name = |path: PathBuf| path.file_stem().unwrap().to_str().unwrap().to_owned();
    std::fs::read_dir(directory).unwrap().map(|entry| name(entry.unwrap().path())).collect()
}

#[test]
fn every_target_has_a_program_and_seeds() {
    let targets: BTreeSet<String> = fuzz::TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names(&directory("fuzz_targets")), targets);
    assert_eq!(names(&directory("seeds")), targets);
    let manifest = std::fs::read_to_string(directory("Cargo.toml")).unwrap();
    for target in &targets {
        assert!(manifest.contains(&format!("path = \"fuzz_targets/{target}.rs\"")), "{target}");
        let program = std::fs::read_to_string(directory("fuzz_targets").join(format!("{target}.rs"))).unwrap();
        assert!(program.contains(&format!("run(\"{target}\", data)")), "{target}");
    }
}

#[test]
fn seeds_and_what_is_near_them_hold() {
    for (target, _) in fuzz::TARGETS {
        let seeds: Vec<PathBuf> =
            std::fs::read_dir(directory("seeds").join(target)).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(!seeds.is_empty(), "{target}");
        for path in seeds {
            println!("{target} {}", path.display());
            let seed = std::fs::read(&path).unwrap();
            fuzz::run(target, &seed);
            for change in 0..CHANGES.min(seed.len()) {
                // Spread over the seed, another bit each time.
                let at = change * seed.len() / CHANGES.min(seed.len());
                let mut changed = seed.clone();
                changed[at] ^= 1 << (change % 8);
                fuzz::run(target, &changed);
                fuzz::run(target, &seed[..at]);
            }
        }
    }
}
