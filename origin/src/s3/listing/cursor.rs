//! From page to page until the last.
//!
//! The way on is a token, or a marker where the service knows the first version of the API only. Invariant: the walk
//! ends. A service that leads in a circle is found out with the memory of one page (Brent, "An improved Monte Carlo
//! factorization algorithm", 1980): it is renewed after 1, 2, 4, … pages, so it lies in the circle before long.
//! Pages of one token need not be in order: not every service sorts its keys. One that leads back to earlier keys by
//! other pages is found out by those ([`Seen`]).

use std::hash::{DefaultHasher, Hash, Hasher};

use crate::transport::encode::encode_query;
use crate::transport::seen::{self, Seen};

/// Pages without a key in a row. Services skip deleted objects page by page.
const MAX_EMPTY: u32 = 10_000;

/// How to ask for a page.
#[derive(Clone, PartialEq, Debug)]
enum Way {
    First,
    Token(String),
    /// Keys after this one, in the first version of the API.
    Marker(Vec<u8>),
}

/// What a page says about the next.
pub(crate) struct Next {
    pub(crate) token: Option<String>,
    /// Decoded.
    pub(crate) marker: Option<Vec<u8>>,
}

/// Where a walk is.
pub(crate) struct Cursor {
    /// `None` behind the last page.
    way: Option<Way>,
    empty: u32,
    kept: Kept,
    seen: Seen,
}

/// One page of those before.
struct Kept {
    way: Way,
    keys: Option<u64>,
    /// Pages since then, and how many there may be.
    age: u64,
    limit: u64,
}

impl Cursor {
    pub(crate) fn new() -> Self {
        Self {
            way: Some(Way::First),
            empty: 0,
            kept: Kept {
                way: Way::First,
                keys: None,
                age: 0,
                limit: 1,
            },
            seen: Seen::new(),
        }
    }

    /// The query for the next page, sorted, as signatures want it. `None` behind the last.
    pub(crate) fn query(&self, prefix: &str) -> Option<String> {
        let mut query = String::new();
        let version = match self.way.as_ref()? {
            Way::First => "encoding-type=url&list-type=2",
            Way::Token(token) => {
                query.push_str("continuation-token=");
                encode_query(token, &mut query);
                "&encoding-type=url&list-type=2"
            }
            Way::Marker(marker) => {
                query.push_str("encoding-type=url&marker=");
                encode_query(marker, &mut query);
                ""
            }
        };
        query.push_str(version);
        query.push_str("&prefix=");
        encode_query(prefix, &mut query);
        Some(query)
    }

    /// Whether there was the last page.
    pub(crate) fn has_ended(&self) -> bool {
        self.way.is_none()
    }

    /// The token to go on with; none at first.
    pub(crate) fn token(&self) -> Option<String> {
        match self.way.as_ref()? {
            Way::Token(token) => Some(token.clone()),
            _ => None,
        }
    }

    /// The page was the last.
    pub(crate) fn end(&mut self) {
        self.way = None;
    }

    /// Goes on behind a page with these keys, or says why that leads nowhere.
    pub(crate) fn advance<'a>(
        &mut self,
        keys: impl IntoIterator<Item = &'a [u8]>,
        next: Next,
    ) -> Result<(), &'static str> {
        let mut hasher = DefaultHasher::new();
        let mut any = false;
        let hashes = keys.into_iter().map(|key| {
            let hash = seen::hash(key);
            hash.hash(&mut hasher);
            any = true;
            hash
        });
        let advances = self.seen.advances(hashes);
        let keys = any.then(|| hasher.finish());
        let way = match next {
            Next {
                token: Some(token), ..
            } => Way::Token(token),
            Next {
                marker: Some(marker),
                ..
            } => Way::Marker(marker),
            _ => {
                return Err(
                    "it is truncated (IsTruncated) and gives neither a continuation token nor a marker to go on with",
                );
            }
        };
        if let (Some(Way::Marker(before)), Way::Marker(marker)) = (&self.way, &way)
            && marker <= before
        {
            return Err("its pages do not advance: the keys after a marker are not behind it");
        }
        self.empty = if any { 0 } else { self.empty + 1 };
        if self.empty > MAX_EMPTY {
            return Err("its pages do not advance: thousands in a row are empty");
        }
        let kept = &mut self.kept;
        if way == kept.way || Some(&way) == self.way.as_ref() {
            return Err("a continuation token comes again");
        }
        if !advances || any && keys == kept.keys {
            return Err("its pages do not advance: keys of earlier pages come again");
        }
        kept.age += 1;
        if kept.age == kept.limit {
            *kept = Kept {
                way: way.clone(),
                keys,
                age: 0,
                limit: kept.limit.saturating_mul(2),
            };
        }
        self.way = Some(way);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(text: &str) -> Next {
        Next {
            token: Some(text.to_owned()),
            marker: None,
        }
    }

    fn marker(text: &str) -> Next {
        Next {
            token: None,
            marker: Some(text.into()),
        }
    }

    #[test]
    fn queries_are_sorted_and_any_token_or_marker_fits_in() {
        let mut cursor = Cursor::new();
        assert_eq!(
            cursor.query("p/").unwrap(),
            "encoding-type=url&list-type=2&prefix=p%2F"
        );
        cursor.advance([&b"a"[..]], token("t\r\n&=+")).unwrap();
        assert_eq!(
            cursor.query("").unwrap(),
            "continuation-token=t%0D%0A%26%3D%2B&encoding-type=url&list-type=2&prefix="
        );
        let mut cursor = Cursor::new();
        let next = Next {
            token: None,
            marker: Some(b"a\n\xff".to_vec()),
        };
        cursor.advance([&b"a\n\xff"[..]], next).unwrap();
        assert_eq!(
            cursor.query("").unwrap(),
            "encoding-type=url&marker=a%0A%FF&prefix="
        );
        cursor.end();
        assert_eq!(cursor.query(""), None);
    }

    #[test]
    fn a_page_without_a_way_on_is_refused() {
        let next = Next {
            token: None,
            marker: None,
        };
        let error = Cursor::new().advance([&b"a"[..]], next).unwrap_err();
        assert!(error.contains("token"), "{error}");
    }

    #[test]
    fn a_circle_of_pages_or_tokens_ends() {
        for length in 1..20 {
            for before in 0..10 {
                let page = |step: usize| {
                    if step < before {
                        step
                    } else {
                        before + (step - before) % length
                    }
                };
                // Tokens that come again on empty pages, and keys that come again behind new tokens.
                for tokens in [true, false] {
                    let mut cursor = Cursor::new();
                    let ended = (0..200).find_map(|step| {
                        let key = page(step).to_string();
                        let (keys, next) = if tokens {
                            (None, page(step).to_string())
                        } else {
                            (Some(key.as_bytes()), step.to_string())
                        };
                        cursor.advance(keys, token(&next)).err()
                    });
                    let said = if tokens { "token" } else { "keys" };
                    assert!(
                        ended.is_some_and(|e| e.contains(said)),
                        "{before} {length} {ended:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn markers_must_grow_and_pages_of_tokens_may_overlap_or_be_out_of_order() {
        let mut cursor = Cursor::new();
        cursor.advance([&b"b"[..]], marker("b")).unwrap();
        assert!(cursor.advance([&b"b"[..]], marker("b")).is_err());
        let mut cursor = Cursor::new();
        for (step, keys) in [["c", "d"], ["d", "e"], ["a", "b"]].iter().enumerate() {
            let keys = keys.iter().map(|key| key.as_bytes());
            cursor.advance(keys, token(&step.to_string())).unwrap();
        }
    }

    #[test]
    fn keys_that_come_again_on_other_pages_behind_other_tokens_end_the_walk() {
        let mut cursor = Cursor::new();
        let ended = (0..1000_usize).find_map(|step| {
            let keys: Vec<_> = (3 * step..3 * step + 3)
                .map(|key| (key % 500).to_string())
                .collect();
            let keys = keys.iter().map(String::as_bytes);
            let error = cursor.advance(keys, token(&step.to_string())).err();
            error.map(|error| (step, error))
        });
        let (step, error) = ended.unwrap();
        assert!((500 / 3..1000 / 3).contains(&step), "{step}");
        assert!(error.contains("keys of earlier pages"), "{error}");
    }

    #[test]
    fn empty_pages_are_passed_over_but_not_for_ever() {
        let mut cursor = Cursor::new();
        let ended = (0..100_000).find(|step| {
            let next = token(&step.to_string());
            cursor.advance(None, next).is_err()
        });
        assert_eq!(ended, Some(MAX_EMPTY));
    }
}
