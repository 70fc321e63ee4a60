//! What some buckets want of a request beside its signature: the key that objects are encrypted with (SSE-C), and the word
//! that the reader pays.
//!
//! Both belong to the process that reads, as its keys do: they come from its variables or its profile, and never from a spec.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use md5::{Digest, Md5};
use weir_core::read_settings;

use super::configuration::Configuration;
use crate::error::OriginError;
use crate::transport::environment::unreadable;

const KEY: &str = "WEIR_SSE_C_KEY";
const KEY_FILE: &str = "WEIR_SSE_C_KEY_FILE";
const KEY_OF_PROFILE: &str = "weir_sse_c_key_file";
const PAYER: &str = "AWS_REQUEST_PAYER";
const PAYER_OF_PROFILE: &str = "request_payer";
/// Bytes of a key.
const LENGTH: usize = 32;

const ALGORITHM_HEADER: HeaderName =
    HeaderName::from_static("x-amz-server-side-encryption-customer-algorithm");
const KEY_HEADER: HeaderName = HeaderName::from_static("x-amz-server-side-encryption-customer-key");
const MD5_HEADER: HeaderName =
    HeaderName::from_static("x-amz-server-side-encryption-customer-key-md5");
const PAYER_HEADER: HeaderName = HeaderName::from_static("x-amz-request-payer");

/// What is added to requests.
#[derive(Default)]
pub(super) struct Extras {
    key: Option<CustomerKey>,
    reader_pays: bool,
}

struct CustomerKey {
    key: HeaderValue,
    md5: HeaderValue,
}

impl Extras {
    /// What the variables and the profile say.
    ///
    /// # Errors
    /// When they name a key that is none.
    pub(super) fn of(
        origin: &Arc<str>,
        configuration: &Configuration<'_>,
    ) -> Result<Self, OriginError> {
        let environment = configuration.environment;
        let payer = environment.get(PAYER);
        let payer = payer.or_else(|| configuration.setting(PAYER_OF_PROFILE));
        let reader_pays = match payer {
            None => false,
            Some("requester") => true,
            Some(_) => {
                let problem = format!("{PAYER} or the profile's {PAYER_OF_PROFILE} is unknown");
                let remedy = "write requester, or leave it out";
                return Err(OriginError::config(origin.clone(), problem, remedy));
            }
        };
        let of_profile = || {
            let path = configuration.setting(KEY_OF_PROFILE)?;
            Some((KEY_OF_PROFILE, environment.expand(path)))
        };
        let file = environment.path(KEY_FILE).map(|path| (KEY_FILE, path));
        let (name, bytes) = if let Some(key) = environment.get(KEY) {
            (KEY, key.as_bytes().to_vec())
        } else if let Some((name, path)) = file.or_else(of_profile) {
            let bytes =
                read_settings(&path).map_err(|error| unreadable(origin, name, &path, &error))?;
            (name, bytes)
        } else {
            let key = None;
            return Ok(Self { key, reader_pays });
        };
        let key = CustomerKey::new(&bytes).ok_or_else(|| {
            OriginError::config(
                origin.clone(),
                format!("the key that {name} gives is not one of {LENGTH} bytes"),
                "write its bytes into a file, or write it in base64",
            )
        })?;
        Ok(Self {
            key: Some(key),
            reader_pays,
        })
    }

    /// Whether there is a key, and it may be shown to what is at `uri`: with TLS, or on this machine.
    pub(super) fn has_key_for(&self, uri: &Uri) -> bool {
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
        let ip = host.parse::<std::net::IpAddr>();
        let is_near = host == "localhost" || ip.is_ok_and(|ip| ip.is_loopback());
        self.key.is_some() && (is_near || uri.scheme_str() == Some("https"))
    }

    /// Adds the key that an object is encrypted with.
    pub(super) fn add_key(&self, headers: &mut HeaderMap) {
        if let Some(CustomerKey { key, md5 }) = &self.key {
            headers.insert(ALGORITHM_HEADER, HeaderValue::from_static("AES256"));
            headers.insert(KEY_HEADER, key.clone());
            headers.insert(MD5_HEADER, md5.clone());
        }
    }

    /// Says that the reader pays, if that was said here.
    pub(super) fn add_payer(&self, headers: &mut HeaderMap) {
        if self.reader_pays {
            headers.insert(PAYER_HEADER, HeaderValue::from_static("requester"));
        }
    }
}

impl CustomerKey {
    /// A key as its bytes, or in base64.
    fn new(content: &[u8]) -> Option<Self> {
        let bytes = match content.len() {
            LENGTH => content.to_vec(),
            _ => STANDARD.decode(content.trim_ascii()).ok()?,
        };
        if bytes.len() != LENGTH {
            return None;
        }
        let secret = |bytes: &[u8]| {
            let mut value = HeaderValue::from_str(&STANDARD.encode(bytes)).ok()?;
            value.set_sensitive(true);
            Some(value)
        };
        Some(Self {
            key: secret(&bytes)?,
            md5: secret(&Md5::digest(&bytes))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::environment::Environment;

    fn found(variables: &[(&str, &str)]) -> Result<Extras, String> {
        let all = variables.iter().copied().chain([("HOME", "/nonexistent")]);
        let environment = Environment::of(all);
        let origin = "s3://b".into();
        let configuration = Configuration::load(&origin, None, &environment).unwrap();
        Extras::of(&origin, &configuration).map_err(|error| error.to_string())
    }

    #[test]
    fn a_key_is_bytes_or_base64_and_comes_with_its_digest() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let raw = *b"0123456789abcdef0123456789abcdef";
        let encoded = STANDARD.encode(raw);
        std::fs::write(&path, raw).unwrap();
        let file = path.to_str().unwrap();
        for variables in [(KEY, &*encoded), (KEY_FILE, file)] {
            let extras = found(&[variables]).unwrap();
            let mut headers = HeaderMap::new();
            extras.add_key(&mut headers);
            assert_eq!(headers[KEY_HEADER], encoded);
            // md5sum of the bytes, in base64.
            assert_eq!(headers[MD5_HEADER], "hRasmdxgYDKV3nvbahU1MA==");
            assert!(!format!("{headers:?}").contains(&encoded));
            let has = |uri: &str| extras.has_key_for(&uri.parse().unwrap());
            assert!(has("https://h/k") && has("http://127.0.0.1:9000/k") && !has("http://h/k"));
        }
        for (variables, said) in [
            ((KEY, "hunter2"), KEY),
            ((KEY_FILE, "/nonexistent"), "/nonexistent"),
            ((PAYER, "me"), PAYER),
        ] {
            let error = found(&[variables]).err().unwrap();
            assert!(
                error.contains(said) && !error.contains("hunter2"),
                "{error}"
            );
        }
    }

    #[test]
    fn the_reader_pays_where_that_was_said() {
        let sent = |variables: &[_]| {
            let mut headers = HeaderMap::new();
            found(variables).unwrap().add_payer(&mut headers);
            headers.contains_key(PAYER_HEADER)
        };
        assert!(sent(&[(PAYER, "requester")]) && !sent(&[]));
    }
}
