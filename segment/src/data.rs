//! The bytes of a block on their way into a segment.

use std::sync::Arc;

use bytes::Bytes;

use super::record::{Checksums, page_sums};

/// A block's bytes, in one piece or several.
pub trait BlockData {
    /// The pieces, in order.
    fn pieces(&self) -> Vec<&[u8]>;

    /// Bytes of all pieces together.
    fn total(&self) -> usize {
        self.pieces().into_iter().map(<[u8]>::len).sum()
    }

    /// The CRC-32C of each page of 4,096 bytes.
    fn page_sums(&self) -> Arc<[u32]> {
        page_sums(&self.pieces()).into()
    }
}

impl<T: AsRef<[u8]>> BlockData for T {
    fn pieces(&self) -> Vec<&[u8]> {
        vec![self.as_ref()]
    }
}

/// A block in the pieces in which it came from its origin: they are put together by the write, not before it.
#[derive(Clone, Debug)]
pub struct Pieces {
    bytes: Vec<Bytes>,
    /// The checksums of its pages, once somebody wanted them.
    pages: Option<Arc<[u32]>>,
}

impl Pieces {
    /// A block without checksums yet.
    pub fn new(bytes: Vec<Bytes>) -> Self {
        Self { bytes, pages: None }
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[Bytes] {
        &self.bytes
    }

    /// Computes the checksums, which need not be computed again when the block is written.
    pub fn checksums(&mut self) -> Checksums {
        let pages = self.page_sums();
        let sums = Checksums::of_pages(&pages);
        self.pages = Some(pages);
        sums
    }
}

impl BlockData for Pieces {
    fn pieces(&self) -> Vec<&[u8]> {
        self.bytes.iter().map(Bytes::as_ref).collect()
    }

    fn page_sums(&self) -> Arc<[u32]> {
        match &self.pages {
            Some(pages) => pages.clone(),
            None => page_sums(&self.pieces()).into(),
        }
    }
}
