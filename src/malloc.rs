//! How glibc's allocator is set up, before anything allocates much.
//!
//! By default glibc raises the size from which a block gets a mapping of its own each time such a block is freed, up to 32 MiB,
//! and gives every thread an arena. Our buffers grow and go (bursts, batches, librdkafka's queues), so after a while they lie in
//! arenas that are never given back. With both fixed, all roles and two sinks peaked at 81 instead of 123 MB working off a
//! backlog and at 65 instead of 100 MB with one transaction of a million rows, at the same speed (docs/performance.md).
//! A global allocator in Rust would not reach librdkafka's blocks, which are most of them.

#![allow(unsafe_code)]

/// Blocks from this size on are mapped and unmapped by themselves: glibc's own first value, kept from growing.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const MMAP_THRESHOLD_BYTES: libc::c_int = 128 * 1024;

/// Threads share arenas; few of ours allocate at the same time.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const ARENAS_MAX: libc::c_int = 2;

/// To be called first thing in `main`. `MALLOC_*` in the environment is overruled.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn set_up() {
    for (parameter, value) in [(libc::M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES), (libc::M_ARENA_MAX, ARENAS_MAX)] {
        // SAFETY: takes two integers by value and may be called at any time; no other thread runs yet.
        let taken = unsafe { libc::mallopt(parameter, value) };
        debug_assert_eq!(taken, 1, "glibc knows both parameters");
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn set_up() {}
