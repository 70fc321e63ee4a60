//! Signatures with the key of a storage account (Shared Key). Follows
//! <https://learn.microsoft.com/rest/api/storageservices/authorize-with-shared-key>.

use std::collections::BTreeMap;
use std::fmt::{self, Write};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::InvalidHeaderValue;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header};
use ring::hmac;
use url::form_urlencoded;

/// Headers that have a line of their own, in this order; `Date` is empty, since `x-ms-date` takes its place.
const STANDARD_HEADERS: [HeaderName; 11] = [
    header::CONTENT_ENCODING,
    header::CONTENT_LANGUAGE,
    header::CONTENT_LENGTH,
    HeaderName::from_static("content-md5"),
    header::CONTENT_TYPE,
    header::DATE,
    header::IF_MODIFIED_SINCE,
    header::IF_MATCH,
    header::IF_NONE_MATCH,
    header::IF_UNMODIFIED_SINCE,
    header::RANGE,
];

/// The key of a storage account.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct SharedKey {
    account: String,
    key: Vec<u8>,
}

/// Shows none of it.
impl fmt::Debug for SharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedKey(…)")
    }
}

impl SharedKey {
    /// The key of an account, in base64 as Azure shows it. `None` for what is not base64.
    pub(crate) fn new(account: &str, key: &str) -> Option<Self> {
        let key = STANDARD.decode(key.trim()).ok()?;
        let account = account.to_owned();
        Some(Self { account, key })
    }

    /// Adds the header of a signature to those of a request with a body of so many bytes. The request has `x-ms-date`.
    ///
    /// # Errors
    /// When the account's name is none.
    pub(super) fn sign(
        &self,
        method: &Method,
        uri: &Uri,
        headers: &mut HeaderMap,
        length: usize,
    ) -> Result<(), InvalidHeaderValue> {
        let text = |name: &HeaderName| {
            let value = headers.get(name)?;
            Some(String::from_utf8_lossy(value.as_bytes()).trim().to_owned())
        };
        let mut signed = format!("{method}\n");
        for name in &STANDARD_HEADERS {
            let value = match *name {
                header::CONTENT_LENGTH if length > 0 => length.to_string(),
                header::CONTENT_LENGTH | header::DATE => String::new(),
                _ => text(name).unwrap_or_default(),
            };
            signed.push_str(&value);
            signed.push('\n');
        }
        let names: BTreeMap<&str, HeaderName> = headers
            .keys()
            .filter(|name| name.as_str().starts_with("x-ms-"))
            .map(|name| (name.as_str(), name.clone()))
            .collect();
        for (name, key) in &names {
            let value = text(key).unwrap_or_default();
            let _ = writeln!(signed, "{name}:{value}");
        }
        // An emulator has the account in its path once more.
        let _ = write!(signed, "/{}{}", self.account, uri.path());
        let mut parameters: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (name, value) in form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()) {
            let values = parameters.entry(name.to_ascii_lowercase()).or_default();
            values.push(value.into_owned());
        }
        for (name, mut values) in parameters {
            values.sort();
            let _ = write!(signed, "\n{name}:{}", values.join(","));
        }
        let key = hmac::Key::new(hmac::HMAC_SHA256, &self.key);
        let signature = STANDARD.encode(hmac::sign(&key, signed.as_bytes()));
        let value = HeaderValue::from_str(&format!("SharedKey {}:{signature}", self.account))?;
        headers.insert(header::AUTHORIZATION, value);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_that_of_the_documented_string() {
        let key = SharedKey::new("acc", "a2V5").unwrap();
        let uri =
            "https://acc.blob.core.windows.net/con/a%20b?restype=container&comp=list&prefix=p%2F"
                .parse()
                .unwrap();
        let mut headers = HeaderMap::new();
        headers.insert("x-ms-version", HeaderValue::from_static("2021-12-02"));
        headers.insert("x-ms-date", HeaderValue::from_static("D"));
        headers.insert(header::RANGE, HeaderValue::from_static("bytes=0-9"));
        headers.insert(header::IF_MATCH, HeaderValue::from_static("\"e\""));
        key.sign(&Method::GET, &uri, &mut headers, 0).unwrap();
        let string = "GET\n\n\n\n\n\n\n\n\"e\"\n\n\nbytes=0-9\nx-ms-date:D\nx-ms-version:2021-12-02\n\
            /acc/con/a%20b\ncomp:list\nprefix:p/\nrestype:container";
        let hmac_key = hmac::Key::new(hmac::HMAC_SHA256, b"key");
        let expected = STANDARD.encode(hmac::sign(&hmac_key, string.as_bytes()));
        let sent = headers[header::AUTHORIZATION].to_str().unwrap();
        assert_eq!(sent, format!("SharedKey acc:{expected}"));
        assert_eq!(format!("{key:?}"), "SharedKey(…)");
        assert!(SharedKey::new("acc", "no base64!").is_none());
    }
}
