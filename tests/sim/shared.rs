//! Parts of worlds that are the same in many of them: made once, copied when they change, printed once to be told apart.

use std::cell::Cell;
use std::fmt::{Debug, Write};
use std::hash::{DefaultHasher, Hasher as _};
use std::ops::{Deref, DerefMut};
use std::rc::Rc;

#[derive(Clone)]
pub struct Shared<T> {
    part: Rc<T>,
    digest: Cell<Option<u64>>,
}

impl<T> From<T> for Shared<T> {
    fn from(part: T) -> Shared<T> {
        Shared { part: Rc::new(part), digest: Cell::new(None) }
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.part
    }
}

impl<T: Clone> DerefMut for Shared<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.digest.set(None);
        Rc::make_mut(&mut self.part)
    }
}

/// Its digest, so that what is made of parts prints quickly.
impl<T: Debug> Debug for Shared<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let digest = self.digest.get().unwrap_or_else(|| digest(format_args!("{:?}", self.part)));
        self.digest.set(Some(digest));
        f.write_str(&digest.to_string())
    }
}

struct Digest(DefaultHasher);

impl Write for Digest {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.0.write(text.as_bytes());
        Ok(())
    }
}

/// Of what it prints.
pub fn digest(what: std::fmt::Arguments<'_>) -> u64 {
    let mut digest = Digest(DefaultHasher::new());
    digest.write_fmt(what).expect("hashing does not fail");
    digest.0.finish()
}
