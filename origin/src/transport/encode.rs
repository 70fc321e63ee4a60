//! Percent-encoding of keys and values, in the one spelling that signatures are made over.

use std::fmt::Write;

/// Percent-encodes a key as SigV4 wants it: all but unreserved characters and `/`.
pub(crate) fn encode_path(key: &str, out: &mut String) {
    encode(key.as_bytes(), |byte| byte == b'/', out);
}

/// Percent-encodes a value of the query, or one component of a path.
pub(crate) fn encode_query(value: impl AsRef<[u8]>, out: &mut String) {
    encode(value.as_ref(), |_| false, out);
}

/// Decodes `%41` to `A`. What is no escape stays as it is.
pub(crate) fn decode(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        if let Some(value) = escaped(text, at) {
            out.push(value);
            at += 3;
        } else {
            out.push(byte);
            at += 1;
        }
    }
    out
}

/// The byte that `%` and two hexadecimal digits at `at` stand for.
pub(crate) fn escaped(text: &[u8], at: usize) -> Option<u8> {
    let hex = |at: usize| char::from(*text.get(at)?).to_digit(16);
    (text[at] == b'%').then_some(())?;
    Some((hex(at + 1)? * 16 + hex(at + 2)?) as u8)
}

fn encode(bytes: &[u8], also: impl Fn(u8) -> bool, out: &mut String) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for &byte in bytes {
        let plain = byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
        if plain || also(byte) {
            out.push(char::from(byte));
        } else {
            out.push('%');
            out.push(char::from(HEX[usize::from(byte >> 4)]));
            out.push(char::from(HEX[usize::from(byte & 15)]));
        }
    }
}

/// Bytes as lower-case hexadecimal digits.
pub(crate) fn hex(bytes: impl AsRef<[u8]>) -> String {
    let mut text = String::with_capacity(2 * bytes.as_ref().len());
    for byte in bytes.as_ref() {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_encoded_as_signatures_want_them_and_come_back() {
        let mut out = String::new();
        encode_path("a b/é+~\n", &mut out);
        assert_eq!(out, "a%20b/%C3%A9%2B~%0A");
        assert_eq!(decode(out.as_bytes()), "a b/é+~\n".as_bytes());
        let mut out = String::new();
        encode_query("a/b=c", &mut out);
        assert_eq!(out, "a%2Fb%3Dc");
        assert_eq!(decode(b"100%, %zz, %4"), b"100%, %zz, %4");
    }
}
