//! Signatures of requests (AWS Signature Version 4), and the keys that make them.
//!
//! All headers are signed that a request has when it is signed, but those that the transport may change. Follows
//! <https://docs.aws.amazon.com/IAM/latest/UserGuide/create-signed-request.html>.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use http::header::InvalidHeaderValue;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header};
use jiff::Timestamp;
use ring::{digest, hmac};
use url::form_urlencoded;
use zeroize::{Zeroize, Zeroizing};

use crate::transport::encode::{encode_query, hex};

const ALGORITHM: &str = "AWS4-HMAC-SHA256";
const DATE: HeaderName = HeaderName::from_static("x-amz-date");
const CONTENT_HASH: HeaderName = HeaderName::from_static("x-amz-content-sha256");
const TOKEN: HeaderName = HeaderName::from_static("x-amz-security-token");
/// Headers that proxies and the transport may add or change.
const UNSIGNED: [HeaderName; 3] = [
    header::AUTHORIZATION,
    header::CONTENT_LENGTH,
    header::USER_AGENT,
];

/// Keys that requests are signed with.
#[derive(Clone, PartialEq, Eq)]
pub struct Keys {
    /// The public part, which is sent with each request.
    pub access_key: String,
    /// The secret part, which is never sent.
    pub secret_key: String,
    /// What belongs to keys that expire.
    pub token: Option<String>,
}

/// Keys, and how long they live if that is known.
pub(super) struct Temporary {
    pub(super) keys: Keys,
    pub(super) life: Option<Duration>,
}

/// Overwrites what is secret.
impl Drop for Keys {
    fn drop(&mut self) {
        self.secret_key.zeroize();
        self.token.zeroize();
    }
}

/// Shows none of it.
impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys(…)")
    }
}

/// Signs requests to one service of one region.
pub struct Signer<'a> {
    /// The keys.
    pub keys: &'a Keys,
    /// The service, as signatures name it: `s3`, `sts`.
    pub service: &'a str,
    /// The region.
    pub region: &'a str,
}

impl Signer<'_> {
    /// Adds the headers of a signature to those of a request. The transport is to send the `Host` that `uri` names.
    ///
    /// # Errors
    /// When a key or the region has characters that no header can carry.
    pub fn sign(
        &self,
        method: &Method,
        uri: &Uri,
        headers: &mut HeaderMap,
        body: &[u8],
    ) -> Result<(), InvalidHeaderValue> {
        self.sign_at(method, uri, headers, body, Timestamp::now())
    }

    fn sign_at(
        &self,
        method: &Method,
        uri: &Uri,
        headers: &mut HeaderMap,
        body: &[u8],
        now: Timestamp,
    ) -> Result<(), InvalidHeaderValue> {
        let time = now.strftime("%Y%m%dT%H%M%SZ").to_string();
        let day = &time[..8];
        let hash = hex(digest::digest(&digest::SHA256, body));
        headers.insert(DATE, HeaderValue::from_str(&time)?);
        headers.insert(CONTENT_HASH, HeaderValue::from_str(&hash)?);
        if let Some(token) = &self.keys.token {
            let mut token = HeaderValue::from_str(token)?;
            token.set_sensitive(true);
            headers.insert(TOKEN, token);
        }
        let host = uri.authority().map_or("", |authority| authority.as_str());
        let (names, lines) = canonical_headers(headers, host);
        let query = canonical_query(uri.query().unwrap_or_default());
        let path = uri.path();
        let request = format!("{method}\n{path}\n{query}\n{lines}\n{names}\n{hash}");
        let request = hex(digest::digest(&digest::SHA256, request.as_bytes()));
        let scope = format!("{day}/{}/{}/aws4_request", self.region, self.service);
        let signed = format!("{ALGORITHM}\n{time}\n{scope}\n{request}");
        let secret = Zeroizing::new(format!("AWS4{}", self.keys.secret_key));
        let key = [day, self.region, self.service, "aws4_request"]
            .iter()
            .fold(
                hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()),
                |key, part| {
                    let next = hmac::sign(&key, part.as_bytes());
                    hmac::Key::new(hmac::HMAC_SHA256, next.as_ref())
                },
            );
        let signature = hex(hmac::sign(&key, signed.as_bytes()));
        let access_key = &self.keys.access_key;
        let value = format!(
            "{ALGORITHM} Credential={access_key}/{scope}, SignedHeaders={names}, Signature={signature}"
        );
        headers.insert(header::AUTHORIZATION, HeaderValue::from_str(&value)?);
        Ok(())
    }
}

/// The names of the headers that are signed, and a line for each of them.
fn canonical_headers(headers: &HeaderMap, host: &str) -> (String, String) {
    let mut signed: BTreeMap<&str, String> = BTreeMap::new();
    signed.insert("host", host.to_owned());
    for name in headers.keys() {
        if UNSIGNED.contains(name) || name == header::HOST {
            continue;
        }
        let values = headers.get_all(name).iter();
        let values: Vec<_> = values
            .map(|value| String::from_utf8_lossy(value.as_bytes()).trim().to_owned())
            .collect();
        signed.insert(name.as_str(), values.join(","));
    }
    let lines = signed
        .iter()
        .map(|(name, value)| format!("{name}:{value}\n"))
        .collect();
    let names: Vec<&str> = signed.into_keys().collect();
    (names.join(";"), lines)
}

/// The parameters in the one order and spelling that is signed.
fn canonical_query(query: &str) -> String {
    let encoded = |text: &str| {
        let mut out = String::new();
        encode_query(text, &mut out);
        out
    };
    let mut pairs: Vec<_> = form_urlencoded::parse(query.as_bytes())
        .map(|(name, value)| (encoded(&name), encoded(&value)))
        .collect();
    pairs.sort();
    let pairs: Vec<_> = pairs
        .into_iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    pairs.join("&")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The keys of AWS's published examples.
    fn example() -> Keys {
        Keys {
            access_key: "AKIAIOSFODNN7EXAMPLE".to_owned(),
            secret_key: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".to_owned(),
            token: None,
        }
    }

    fn signed(keys: &Keys, uri: &str, headers: &mut HeaderMap) -> String {
        let signer = Signer {
            keys,
            service: "s3",
            region: "us-east-1",
        };
        let now = "2013-05-24T00:00:00Z".parse().unwrap();
        let uri = uri.parse().unwrap();
        signer
            .sign_at(&Method::GET, &uri, headers, b"", now)
            .unwrap();
        let value = headers[header::AUTHORIZATION].to_str().unwrap();
        value.to_owned()
    }

    #[test]
    fn signatures_are_those_that_aws_has_published() {
        let mut headers = HeaderMap::new();
        headers.insert(header::RANGE, HeaderValue::from_static("bytes=0-9"));
        let object = "https://examplebucket.s3.amazonaws.com/test.txt";
        assert_eq!(
            signed(&example(), object, &mut headers),
            "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request, \
             SignedHeaders=host;range;x-amz-content-sha256;x-amz-date, \
             Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
        );
        for (query, signature) in [
            (
                "max-keys=2&prefix=J",
                "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
            ),
            (
                "lifecycle",
                "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
            ),
        ] {
            let uri = format!("https://examplebucket.s3.amazonaws.com/?{query}");
            let value = signed(&example(), &uri, &mut HeaderMap::new());
            assert!(value.ends_with(signature), "{value}");
        }
    }

    #[test]
    fn parameters_are_signed_in_one_spelling_and_order() {
        assert_eq!(
            canonical_query("b=2&a=%2f~&a=%C3%BC"),
            "a=%2F~&a=%C3%BC&b=2"
        );
        assert_eq!(canonical_query(""), "");
    }

    #[test]
    fn a_token_is_signed_and_marked_as_a_secret() {
        let mut keys = example();
        keys.token = Some("session".to_owned());
        let mut headers = HeaderMap::new();
        let value = signed(&keys, "https://h/k", &mut headers);
        assert!(value.contains("x-amz-security-token"), "{value}");
        assert!(!format!("{headers:?}").contains("session"));
    }

    #[test]
    fn keys_that_no_header_can_carry_are_an_error_and_no_panic() {
        for (access_key, token) in [("a\nb", None), ("a", Some("x\r\ny: z"))] {
            let keys = Keys {
                access_key: access_key.to_owned(),
                secret_key: "s".to_owned(),
                token: token.map(str::to_owned),
            };
            let signer = Signer {
                keys: &keys,
                service: "s3",
                region: "r",
            };
            let uri = Uri::from_static("http://h/");
            let outcome = signer.sign(&Method::GET, &uri, &mut HeaderMap::new(), b"");
            assert!(outcome.is_err());
        }
    }
}
