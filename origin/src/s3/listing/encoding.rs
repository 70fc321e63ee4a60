//! How a service writes keys.
//!
//! Percent-encoded keys are asked for, so that no key can break the document. Services comply and say so, comply and do
//! not say so, or do not comply; some write a space as `+`, others leave a `+` as it is. A key that reads differently
//! is looked for under each of its names: the service lists the one that is its key.

use crate::transport::encode::{decode, escaped};

/// A way to write keys.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Encoding {
    /// As they are.
    Plain,
    /// `%41` is an `A`.
    Percent,
    /// The same, and `+` is a space, as S3 has it.
    Form,
}

impl Encoding {
    pub(super) fn decode(self, text: &[u8]) -> Vec<u8> {
        match self {
            Self::Plain => text.to_vec(),
            Self::Percent => decode(text),
            Self::Form => {
                let space = |byte: &u8| if *byte == b'+' { b' ' } else { *byte };
                decode(&text.iter().map(space).collect::<Vec<u8>>())
            }
        }
    }
}

/// The ways that a service may write its keys, as far as they are known; the likeliest first, and never none.
#[derive(Debug)]
pub(super) struct Encodings {
    possible: Vec<Encoding>,
    claimed: bool,
}

impl Encodings {
    /// Of a service whose first page says that keys are encoded, or does not.
    pub(super) fn new(claimed: bool) -> Self {
        let possible = if claimed {
            vec![Encoding::Form, Encoding::Percent]
        } else {
            vec![Encoding::Plain, Encoding::Percent, Encoding::Form]
        };
        Self { possible, claimed }
    }

    pub(super) fn likeliest(&self) -> Encoding {
        self.possible[0]
    }

    /// The first key that reads differently, with what it may be.
    pub(super) fn doubt<'a>(
        &mut self,
        keys: impl IntoIterator<Item = &'a [u8]>,
    ) -> Option<(&'a [u8], Vec<(Encoding, Vec<u8>)>)> {
        for key in keys {
            if self.claimed && !is_encoded(key) {
                // Said, but not done.
                self.claimed = false;
                self.possible.push(Encoding::Plain);
            }
            if self.possible.len() == 1 {
                return None;
            }
            if !key.iter().any(|byte| matches!(byte, b'%' | b'+')) {
                continue;
            }
            let readings = self.possible.iter().map(|way| (*way, way.decode(key)));
            let readings: Vec<_> = readings.collect();
            if readings.iter().any(|(_, name)| *name != readings[0].1) {
                return Some((key, readings));
            }
        }
        None
    }

    /// Rules out what reads a key otherwise than as `name`.
    pub(super) fn settle(&mut self, readings: &[(Encoding, Vec<u8>)], name: &[u8]) {
        let right = readings.iter().filter(|(_, reading)| reading == name);
        self.possible = right.map(|(way, _)| *way).collect();
    }

    /// Nothing could be found out: takes the likeliest.
    pub(super) fn give_up(&mut self) {
        self.possible.truncate(1);
    }
}

/// Whether a text can be the work of an encoder.
fn is_encoded(text: &[u8]) -> bool {
    text.iter().enumerate().all(|(at, byte)| match byte {
        b'%' => escaped(text, at).is_some(),
        byte => byte.is_ascii_graphic(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_decoded_to_raw_bytes() {
        assert_eq!(
            Encoding::Form.decode(b"a%20b%2Fc+d%FF%0a"),
            b"a b/c d\xff\n"
        );
        assert_eq!(Encoding::Percent.decode(b"a%20b+c"), b"a b+c");
        assert_eq!(Encoding::Plain.decode(b"a%20b+c"), b"a%20b+c");
        for text in [&b"100%"[..], b"%zz", b"%4"] {
            assert_eq!(Encoding::Form.decode(text), text);
        }
    }

    #[test]
    fn only_keys_that_read_differently_are_in_doubt() {
        let doubt = |claimed: bool, keys: &[&'static str]| {
            let keys: Vec<&[u8]> = keys.iter().map(|key| key.as_bytes()).collect();
            let mut encodings = Encodings::new(claimed);
            let doubt = encodings.doubt(keys.iter().copied());
            doubt.map(|(key, _)| String::from_utf8_lossy(key).into_owned())
        };
        assert_eq!(doubt(true, &["a%20b", "c"]), None);
        assert_eq!(doubt(true, &["a%20b", "c+d"]), Some("c+d".to_owned()));
        assert_eq!(doubt(false, &["a b", "c"]), None);
        assert_eq!(doubt(false, &["a", "c+d"]), Some("c+d".to_owned()));
        assert_eq!(doubt(false, &["a%20b"]), Some("a%20b".to_owned()));
        assert_eq!(doubt(true, &["é", "50%25"]), Some("50%25".to_owned()));
    }

    #[test]
    fn what_was_found_out_holds_for_the_rest() {
        let mut encodings = Encodings::new(false);
        let (_, readings) = encodings.doubt([&b"a%20b"[..]]).unwrap();
        encodings.settle(&readings, b"a b");
        assert_eq!(encodings.likeliest(), Encoding::Percent);
        assert!(encodings.doubt([&b"%41%42"[..]]).is_none());
        let (_, readings) = encodings.doubt([&b"c+d"[..]]).unwrap();
        encodings.settle(&readings, b"c d");
        assert_eq!(encodings.likeliest(), Encoding::Form);
        assert!(encodings.doubt([&b"c+%41"[..]]).is_none());
    }
}
