//! Every choice of a simulated run, written down: what is written down can be replayed, and made smaller.
//!
//! A run asks only for numbers below a bound, and 0 is always the dullest answer (nothing happens, no fault, the first of
//! several). So any list of numbers is a run, and a shorter list with more zeros in it is a simpler one.
//!
//! The same run can be asked for all lists there are, one after the other: [`Choices::all`].

use std::fmt::Arguments;
use std::sync::atomic::{AtomicBool, Ordering};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

#[derive(Clone, Debug)]
pub struct Choices {
    random: Option<StdRng>,
    is_written: bool,
    /// What was answered, or is to be.
    pub made: Vec<u32>,
    at: usize,
    /// Of what was asked so far, where all lists are to be had.
    bounds: Option<Vec<u32>>,
}

impl Choices {
    pub fn of_seed(seed: u64) -> Choices {
        Choices { random: Some(StdRng::seed_from_u64(seed)), ..Choices::replay(Vec::new()) }
    }

    /// The same choices once more; behind their end all are 0.
    pub fn replay(made: Vec<u32>) -> Choices {
        Choices { random: None, is_written: true, made, at: 0, bounds: None }
    }

    /// Every list of answers that `run` asks for, once each, until it says that it is enough. Chances are yes or no here, however small they are.
    #[allow(dead_code, reason = "not every simulator searches")]
    pub fn all(mut run: impl FnMut(Choices) -> (Choices, bool)) {
        let mut made = Vec::new();
        loop {
            let (choices, goes_on) = run(Choices { bounds: Some(Vec::new()), ..Choices::replay(made) });
            let bounds = choices.bounds.expect("what was given comes back");
            made = choices.made;
            made.resize(bounds.len(), 0);
            // The last one that can be another one is, and what came after it begins anew.
            let Some(place) = (0..bounds.len()).rev().find(|at| made[*at] + 1 < bounds[*at]) else { return };
            made.truncate(place + 1);
            made[place] += 1;
            if !goes_on {
                return;
            }
        }
    }

    /// From here on the choices are always the same and not written down.
    pub fn write_no_more(&mut self) {
        (self.random, self.is_written) = (Some(StdRng::seed_from_u64(0)), false);
    }

    pub fn below(&mut self, bound: usize) -> usize {
        let bound = u32::try_from(bound).expect("small numbers").max(1);
        let chosen = match &mut self.random {
            Some(random) => {
                let chosen = random.random_range(0..bound);
                if self.is_written {
                    self.made.push(chosen);
                }
                chosen
            }
            None => self.made.get(self.at).map_or(0, |chosen| chosen % bound),
        };
        if let Some(bounds) = &mut self.bounds {
            bounds.push(bound);
        }
        self.at += 1;
        chosen as usize
    }

    /// Whether something happens that does so in so many of a hundred cases.
    pub fn percent(&mut self, cases: usize) -> bool {
        match self.bounds {
            Some(_) => self.below(2) == 1,
            None => self.below(100) >= 100 - cases,
        }
    }
}

/// The simplest choices found that still fail, by leaving blocks out and putting zeros in.
pub fn shrink(mut made: Vec<u32>, fails: impl Fn(&[u32]) -> bool) -> Vec<u32> {
    let mut size = made.len().div_ceil(2);
    while size > 0 {
        let mut at = 0;
        while at < made.len() {
            let end = (at + size).min(made.len());
            let without = [&made[..at], &made[end..]].concat();
            if fails(&without) {
                made = without;
                continue;
            }
            if made[at..end].iter().any(|chosen| *chosen > 0) {
                let mut zeros = made.clone();
                zeros[at..end].fill(0);
                if fails(&zeros) {
                    made = zeros;
                }
            }
            at = end;
        }
        size /= 2;
    }
    made
}

/// The story of a run is told: of one that failed, in its shortest form.
pub static TELLING: AtomicBool = AtomicBool::new(false);

pub fn tell(what: Arguments<'_>) {
    if TELLING.load(Ordering::Relaxed) {
        println!("  {what}");
    }
}
