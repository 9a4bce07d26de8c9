//! Bytes taken apart into choices and pieces, the same way every time.

/// What is left of the bytes. An empty rest gives zeros and empty pieces, so every input means something.
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    pub fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        first
    }

    /// A number below `count`, which is not above 256.
    pub fn pick(&mut self, count: usize) -> usize {
        usize::from(self.byte()) % count
    }

    /// As many bytes as the next one says, or as there are.
    pub fn piece(&mut self) -> &'a [u8] {
        let len = usize::from(self.byte()).min(self.0.len());
        let (piece, rest) = self.0.split_at(len);
        self.0 = rest;
        piece
    }
}
