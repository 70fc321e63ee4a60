//! The bytes of a block on their way into a segment.

use bytes::Bytes;

/// A block's bytes, in one piece or several.
pub trait BlockData {
    /// The pieces, in order.
    fn pieces(&self) -> Vec<&[u8]>;

    /// Bytes of all pieces together.
    fn total(&self) -> usize {
        self.pieces().into_iter().map(<[u8]>::len).sum()
    }
}

impl<T: AsRef<[u8]>> BlockData for T {
    fn pieces(&self) -> Vec<&[u8]> {
        vec![self.as_ref()]
    }
}

/// A block in the pieces in which it came from its origin: they are put together by the write, not before it.
#[derive(Clone, Debug)]
pub struct Pieces(pub Vec<Bytes>);

impl BlockData for Pieces {
    fn pieces(&self) -> Vec<&[u8]> {
        self.0.iter().map(Bytes::as_ref).collect()
    }
}
